//! How far it is. On a terminal a bar with the time that is left; elsewhere a line for each turn.

use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::io::{IsTerminal, stderr};

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(turns: u64) -> Self {
        if turns == 0 || !stderr().is_terminal() {
            return Progress { bar: None };
        }
        let bar = ProgressBar::new(turns);
        let template = "{bar:30} {pos}/{len}, {elapsed} gone, {eta} to go: {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Progress { bar: Some(bar) }
    }

    /// A turn begins.
    pub(crate) fn begin(&self, turn: &impl Display) {
        if let Some(bar) = &self.bar {
            bar.set_message(turn.to_string());
        }
    }

    /// A turn is over.
    pub(crate) fn end(&self, figures: &impl Display) {
        match &self.bar {
            Some(bar) => bar.inc(1),
            None => eprintln!("{figures}"),
        }
    }

    /// Says something that stays to be read.
    pub(crate) fn say(&self, line: &impl Display) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
