//! The days as a picture: the memory that builds use, the line that they must stay below, and who was killed.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::day::machine::{Machine, POINT_SECONDS};
use crate::day::report::Row;
use crate::day::workload::GIB;

const WIDTH: f64 = 920.0;
const PANEL: f64 = 132.0;
const GAP: f64 = 44.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 62.0;
/// What is drawn of it.
const HOURS: f64 = 26.0;

/// An SVG that stands alone; light and dark by the reader's wish.
pub(crate) fn svg(rows: &[Row<'_>], machine: &Machine) -> String {
    let height = TOP + rows.len() as f64 * (PANEL + GAP);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"Memory that builds use over a day, under four kinds of admission\">\n<style>\n\
         text{{font:12px system-ui,sans-serif;fill:#57606a}} .name{{font-weight:600;fill:#1f2328}} \
         .grid{{stroke:#d0d7de;stroke-width:1}} .used{{fill:#0969da;fill-opacity:.28;stroke:#0969da;stroke-width:1}} \
         .budget{{stroke:#9a6700;stroke-width:1.2;stroke-dasharray:5 4}} .all{{stroke:#57606a;stroke-width:1}} \
         .kill{{stroke:#cf222e;stroke-width:1.4}} .back{{fill:#fff}}\n\
         @media(prefers-color-scheme:dark){{text{{fill:#8d96a0}}.name{{fill:#e6edf3}}.grid{{stroke:#30363d}}.back{{fill:#0d1117}}\
         .used{{fill:#4493f8;stroke:#4493f8}}.budget{{stroke:#d29922}}.all{{stroke:#8d96a0}}.kill{{stroke:#f85149}}}}\n</style>\n\
         <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    );
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"20\">GiB that builds use · dashed: their budget, above it the control plane's reserve · red: the node ran out and killed</text>"
    );
    for (number, row) in rows.iter().enumerate() {
        panel(&mut text, row, machine, TOP + number as f64 * (PANEL + GAP));
    }
    text.push_str("</svg>\n");
    text
}

fn panel(text: &mut String, row: &Row<'_>, machine: &Machine, top: f64) {
    let right = WIDTH - RIGHT;
    let x = |seconds: f64| LEFT + (seconds / (HOURS * 3600.0)).min(1.0) * (right - LEFT);
    let y = |bytes: f64| top + PANEL * (1.0 - (bytes / machine.memory_bytes as f64).min(1.0));
    let run = row.run;
    let _ = writeln!(
        text,
        "<text class=\"name\" x=\"{LEFT}\" y=\"{:.0}\">{}</text><text x=\"{right}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
        top - 9.0,
        row.name,
        top - 9.0,
        said(row),
    );
    for hour in (0..=24_u32).step_by(6) {
        let at = x(f64::from(hour) * 3600.0);
        let _ = writeln!(
            text,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{:.1}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{hour:02}:00</text>",
            top + PANEL,
            top + PANEL + 15.0,
        );
    }
    let points = run.memory.iter().enumerate().map(|(n, used)| (n as f64 * f64::from(POINT_SECONDS), *used as f64));
    let within = points.take_while(|(at, _)| *at <= HOURS * 3600.0);
    let mut path = format!("M{:.1} {:.1}", x(0.0), y(0.0));
    let mut last = 0.0;
    for (at, used) in within {
        let _ = write!(path, "L{:.1} {:.1}", x(at), y(used));
        last = at;
    }
    let _ = writeln!(text, "<path class=\"used\" d=\"{path}L{:.1} {:.1}Z\"/>", x(last), y(0.0));
    for (class, bytes) in [("budget", machine.budget_bytes()), ("all", machine.memory_bytes)] {
        let at = y(bytes as f64);
        let _ = writeln!(
            text,
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{:.1}</text>",
            LEFT - 7.0,
            at + 4.0,
            bytes as f64 / GIB as f64,
        );
    }
    // One mark for all that would lie on each other.
    let marks: BTreeSet<u32> = run.kills.iter().map(|second| second / 120).collect();
    for mark in marks.into_iter().filter(|at| f64::from(at * 120) <= HOURS * 3600.0) {
        let at = x(f64::from(mark * 120));
        let _ = writeln!(
            text,
            "<line class=\"kill\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{:.1}\"/>",
            top + 12.0
        );
    }
}

fn said(row: &Row<'_>) -> String {
    let run = row.run;
    let over = f64::from(run.over) / 3600.0;
    match run.killed_by_node {
        0 => format!("nothing killed by the node · the last build is over at {over:.1} h"),
        1 => format!("1 build killed by the node · the last is over at {over:.1} h"),
        count => format!("{count} builds killed by the node · the last is over at {over:.1} h"),
    }
}
