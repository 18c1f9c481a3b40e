//! Small parts of a page. Whatever comes from outside goes through [`Text`], in content and in attributes alike.

use std::fmt::{self, Display, Write};

use prost_types::Timestamp as ProtoTimestamp;
use stoker_core::quantity::{Resource, Span, Timestamp};

/// A value as text of a page, escaped for content and for attributes in double quotes. Control characters and those
/// that turn the direction of writing around are shown as what they are.
pub(super) struct Text<T>(pub(super) T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.write_str("&amp;")?,
                '<' => self.0.write_str("&lt;")?,
                '>' => self.0.write_str("&gt;")?,
                '"' => self.0.write_str("&quot;")?,
                '\'' => self.0.write_str("&#39;")?,
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => write!(self.0, "\\u{{{:x}}}", u32::from(c))?,
                c if c.is_control() => self.0.write_char('\u{fffd}')?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// One part of a bar.
pub(super) struct Part {
    /// The class that colours it.
    pub(super) class: &'static str,
    /// How much, in the unit of the whole.
    pub(super) value: u64,
}

/// A bar of `parts` in a whole of `total`, with an optional mark; `told` says the same in words.
///
/// Widths are attributes of an SVG: the page's policy allows no style on elements.
pub(super) fn bar(total: u64, parts: &[Part], mark: Option<u64>, told: &str) -> String {
    let mut out = format!("<svg class=\"bar\" role=\"img\" aria-label=\"{}\"><rect class=\"rest\"/>", Text(told));
    let mut at = 0_u64;
    for part in parts {
        let width = part.value.min(total.saturating_sub(at));
        let _ = write!(
            out,
            "<rect class=\"{}\" x=\"{}%\" width=\"{}%\"/>",
            part.class,
            percent(at, total),
            percent(width, total)
        );
        at = at.saturating_add(width);
    }
    if let Some(mark) = mark {
        let _ = write!(out, "<rect class=\"mark\" x=\"{}%\"/>", percent(mark.min(total), total));
    }
    out.push_str("</svg>");
    out
}

/// With two digits after the point.
fn percent(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// What the wire has as a signed number.
pub(super) fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// `1 lease`, `2 leases`.
pub(super) fn number(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A time of the wire, in ours.
pub(super) fn time(at: &ProtoTimestamp) -> Timestamp {
    Timestamp(at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos) / 1_000_000))
}

/// `3 min ago`, with the whole time for those who want it.
pub(super) fn ago(at: Timestamp, now: Timestamp) -> String {
    moment(at, &format!("{} ago", rough(now.since(at))))
}

/// `in 3 min`, or `now`.
pub(super) fn ahead(at: Timestamp, now: Timestamp) -> String {
    match at.since(now) {
        Span(0) => moment(at, "now"),
        span => moment(at, &format!("in {}", rough(span))),
    }
}

fn moment(at: Timestamp, words: &str) -> String {
    match jiff::Timestamp::from_millisecond(at.0) {
        Ok(exact) => format!("<time datetime=\"{exact:.0}\" title=\"{exact:.0}\">{words}</time>"),
        Err(_) => words.to_owned(),
    }
}

/// A span by its largest unit: whoever reads a page wants no seconds of a day.
pub(super) fn rough(span: Span) -> String {
    let seconds = u64::try_from(span.0 / 1000).unwrap_or(0);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A value in the unit of its resource. Nobody reads the eighth digit of a count of inodes.
pub(super) fn shown(resource: Resource, value: u64) -> String {
    let (unit, name) = match (resource, value) {
        (Resource::DiskInodes, 1_000_000_000..) => (1_000_000_000, " billion"),
        (Resource::DiskInodes, 1_000_000..) => (1_000_000, " million"),
        (Resource::DiskInodes, 10_000..) => (1_000, " thousand"),
        (Resource::DiskInodes, _) => (1, ""),
        _ => return resource.show(value).to_string(),
    };
    let tenths = u128::from(value) * 10 / unit;
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole}{name}"),
        (whole, tenth) => format!("{whole}.{tenth}{name}"),
    }
}

/// Hundredths of a percent, as `27.5%`.
pub(super) fn share(hundredths: i32) -> String {
    let hundredths = u32::try_from(hundredths).unwrap_or(0);
    format!("{}.{}%", hundredths / 100, hundredths / 10 % 10)
}
