//! A table in Markdown, which is as good to read on a terminal.

use std::fmt;

pub(crate) struct Table {
    title: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// Where there is nothing to tell.
pub(crate) const NOTHING: &str = "-";

impl Table {
    pub(crate) fn new(title: String, header: &[&str]) -> Self {
        Table { title, header: header.iter().map(|name| (*name).to_owned()).collect(), rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// Without the columns that tell nothing: of a peer that wasn't compared, that is.
    fn columns(&self) -> Vec<usize> {
        let tells = |at: &usize| self.rows.iter().any(|row| row[*at] != NOTHING);
        (0..self.header.len()).filter(tells).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return Ok(());
        }
        let columns = self.columns();
        let widest = |at: &usize| self.rows.iter().chain([&self.header]).map(|row| row[*at].len()).max().unwrap_or(0);
        let widths: Vec<_> = columns.iter().map(widest).collect();
        let line = self.header.iter().map(|_| String::new()).collect::<Vec<_>>();
        writeln!(f, "\n{}\n", self.title)?;
        for (number, row) in [&self.header, &line].into_iter().chain(&self.rows).enumerate() {
            for (at, width) in columns.iter().zip(&widths) {
                match number {
                    1 => write!(f, "| {} ", "-".repeat(*width))?,
                    _ => write!(f, "| {:width$} ", row[*at])?,
                }
            }
            writeln!(f, "|")?;
        }
        Ok(())
    }
}
