//! What is kept for a time, on the page.

use stoker_core::quantity::Resource;
use stoker_proto::v1;

use super::super::html::{ago, ahead, count, number, shown, time};
use super::{Sight, section};

/// Outputs, caches and orphans, and when retention last really removed something.
pub(super) fn kept(sight: &Sight<'_>) -> String {
    let Some(kept) = &sight.status.retention else { return String::new() };
    let figures = [
        ("output", "outputs", kept.outputs, kept.outputs_bytes),
        ("cache", "caches", kept.caches, kept.caches_bytes),
        ("orphan", "orphans", kept.orphans, kept.orphans_bytes),
    ];
    let figure = |(one, many, things, bytes): (&str, &str, i64, i64)| {
        let things = number(usize::try_from(things).unwrap_or(0), one, many);
        format!("<li><b>{things}</b> {}</li>", shown(Resource::DiskBytes, count(bytes)))
    };
    let rows: String = figures.into_iter().map(figure).collect();
    let last = last(kept, sight);
    let next = kept.next_at.as_ref().map(|at| format!(" The next goes {}.", ahead(time(at), sight.now)));
    let words = format!("<p>{last}{} <a href=\"/outputs/\">outputs</a></p>", next.unwrap_or_default());
    section("kept", "Kept", "until their retention is over", &format!("<ul class=\"figures\">{rows}</ul>{words}"))
}

fn last(kept: &v1::Retention, sight: &Sight<'_>) -> String {
    match &kept.last_removed_at {
        None => "Retention removed nothing yet.".to_owned(),
        Some(at) => {
            let things = number(usize::try_from(kept.last_removed).unwrap_or(0), "thing", "things");
            let bytes = shown(Resource::DiskBytes, count(kept.last_removed_bytes));
            format!("Retention last removed {things} ({bytes}) {}.", ago(time(at), sight.now))
        }
    }
}
