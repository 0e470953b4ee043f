//! The throughput of calls, drawn: a row for each backend, a panel for each call, a line for each peer.

use crate::case::{Backend, Call, Case, Peer, Task};
use crate::client::Result;
use crate::report::{RATE, Report};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

const PANEL: (u32, u32) = (230, 170);
const HEAD: u32 = 40;
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) fn draw(file: &Path, report: &Report) -> Result<()> {
    let is_there = |backend: &Backend| Call::ALL.iter().any(|call| !report.points(*backend, *call).is_empty());
    let backends: Vec<_> = Backend::ALL.iter().copied().filter(is_there).collect();
    let was_made = |call: &Call| backends.iter().any(|backend| !report.points(*backend, *call).is_empty());
    let calls: Vec<_> = Call::ALL.iter().copied().filter(was_made).collect();
    if backends.is_empty() {
        return Err("no calls were measured that could be drawn".into());
    }
    let (width, height) = (PANEL.0 * u32::try_from(calls.len())?, PANEL.1 * u32::try_from(backends.len())?);
    let root = SVGBackend::new(file, (width.max(3 * PANEL.0), height + HEAD)).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEAD);
    legend(&head)?;
    let panels = body.split_evenly((backends.len(), calls.len()));
    let points = backends.iter().flat_map(|backend| calls.iter().map(move |call| (*backend, *call)));
    for (area, (backend, call)) in panels.iter().zip(points) {
        panel(area, report, backend, call)?;
    }
    root.present()?;
    Ok(())
}

fn colour(peer: Peer) -> RGBColor {
    match peer {
        Peer::Kvactor => RGBColor(0xd6, 0x28, 0x28),
        Peer::KvactorTokio => RGBColor(0xf7, 0x7f, 0x00),
        Peer::Raw => RGBColor(0x40, 0x40, 0x40),
        Peer::Libkv => RGBColor(0x1d, 0x6f, 0xb8),
    }
}

fn legend(area: &Area<'_>) -> Result<()> {
    area.draw(&Text::new("Calls per second over callers:", (10, 12), (FONT, 15)))?;
    for (peer, at) in Peer::ALL.iter().zip((250..).step_by(140)) {
        area.draw(&PathElement::new([(at, 20), (at + 24, 20)], colour(*peer).stroke_width(3)))?;
        area.draw(&Text::new(peer.to_string(), (at + 30, 12), (FONT, 15)))?;
    }
    Ok(())
}

fn panel(area: &Area<'_>, report: &Report, backend: Backend, call: Call) -> Result<()> {
    let callers = report.points(backend, call);
    if callers.is_empty() {
        return Ok(());
    }
    let line = |peer: Peer| -> Vec<(i32, f64)> {
        let rate = |callers| report.median(Case { task: Task::Calls { call, callers }, backend, peer }, RATE);
        (0..).zip(&callers).filter_map(|(at, callers)| Some((at, rate(*callers)?))).collect()
    };
    let lines: Vec<_> = Peer::ALL.iter().map(|peer| (*peer, line(*peer))).collect();
    let highest = lines.iter().flat_map(|(_, line)| line).map(|(_, rate)| *rate).fold(1.0, f64::max);
    let last = i32::try_from(callers.len())?.max(2) - 1;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{backend} {call}"), (FONT, 14))
        .margin(6)
        .x_label_area_size(20)
        .y_label_area_size(44)
        .build_cartesian_2d(0..last, 0.0..highest * 1.1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_labels(callers.len())
        .x_label_formatter(&|at| {
            usize::try_from(*at).ok().and_then(|at| callers.get(at)).map_or(String::new(), usize::to_string)
        })
        .y_labels(4)
        .y_label_formatter(&|rate| short(*rate))
        .label_style((FONT, 11))
        .draw()?;
    for (peer, line) in lines {
        chart.draw_series(LineSeries::new(line, colour(peer).stroke_width(2).filled()).point_size(2))?;
    }
    Ok(())
}

fn short(rate: f64) -> String {
    match rate {
        millions if millions >= 1e6 => format!("{:.1}M", millions / 1e6),
        thousands if thousands >= 1e4 => format!("{:.0}k", thousands / 1e3),
        thousands if thousands >= 1e3 => format!("{:.1}k", thousands / 1e3),
        some if some >= 10.0 => format!("{some:.0}"),
        few => format!("{few:.1}"),
    }
}
