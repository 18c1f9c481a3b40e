//! Amounts as people write them, and what they are in the agent's units. The text is kept as it was written, so that a
//! configuration is printed as its author thinks of it.

use std::time::Duration;

use jiff::fmt::friendly::SpanParser;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::problem::{Fault, shown};
use super::{Share, validate::text};

/// Amounts from here on are refused: they are on no machine, and most often a slip of the unit.
const AMOUNT_END: u64 = 1 << 63;

macro_rules! written {
    ($(#[doc = $doc:literal])+ $name:ident, $types:tt, $description:literal, $examples:tt) => {
        $(#[doc = $doc])+
        #[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": $types, "description": $description, "examples": $examples })
            }
        }
    };
}

written! {
    /// CPU: cores, or thousandths of a core with the suffix `m`.
    Cores, ["string", "number"], "CPU: a number of cores, or thousandths of a core with the suffix m.", [4, "2.5", "500m"]
}
written! {
    /// Bytes, with a unit.
    Bytes, ["string", "integer"], "Bytes: a number with a unit (KiB, MiB, GiB, TiB; kB, MB, GB, TB), or plain bytes.",
    ["8GiB", "400 GB"]
}
written! {
    /// Bytes, or a part of a whole.
    BytesOrPercent, ["string", "integer"], "Bytes with a unit, or a percentage of the whole, to hundredths of a percent.",
    ["10GiB", "10%"]
}
written! {
    /// A number, or a part of a whole.
    CountOrPercent, ["string", "integer"], "A number, or a percentage of the whole, to hundredths of a percent.",
    [100000, "5%"]
}
written! {
    /// A length of time.
    Time, ["string"], "A length of time: numbers with units (d, h, m, s, ms); a day has 24 hours.",
    ["5m", "1h30m", "500ms", "14d"]
}
written! {
    /// Permission bits.
    Mode, ["string"], "Permission bits in octal, in quotes.", ["0755", "1777"]
}

impl Cores {
    /// In thousandths of a core.
    pub(super) fn millis(&self) -> Result<u64, Fault> {
        let remedy = "write a number of cores, as `4` or `2.5`, or thousandths, as `500m`";
        let wrong = |why: &str| Fault::new(format!("{} {why}", shown(&self.0)), remedy);
        if self.0.starts_with('-') {
            return Err(wrong("is negative"));
        }
        let fitting = |millis: Option<u64>| {
            millis.filter(|millis| *millis < AMOUNT_END).ok_or_else(|| wrong("is more than any machine has"))
        };
        let (whole, part) = match (self.0.strip_suffix('m'), self.0.split_once('.')) {
            (Some(millis), _) if text::only_digits(millis) => return fitting(digits(millis)),
            (_, Some((whole, part))) => (whole, part),
            (_, None) => (self.0.as_str(), "0"),
        };
        if !text::only_digits(whole) || !text::only_digits(part) {
            return Err(wrong("is not an amount of CPU"));
        }
        if part.len() > 3 {
            return Err(wrong("is finer than a thousandth of a core"));
        }
        // `5` after the point is 500 thousandths.
        let scale = 10_u64.pow(3_u32.saturating_sub(u32::try_from(part.len()).unwrap_or(3)));
        let rest = digits(part).unwrap_or(0).saturating_mul(scale);
        fitting(digits(whole).and_then(|cores| cores.checked_mul(1000)).and_then(|millis| millis.checked_add(rest)))
    }
}

impl Bytes {
    /// In bytes.
    pub(super) fn bytes(&self) -> Result<u64, Fault> {
        bytes(&self.0, "write a number with a unit, as `8GiB` or `400 GB`")
    }
}

impl BytesOrPercent {
    /// Bytes, or hundredths of a percent.
    pub(super) fn share(&self) -> Result<Share, Fault> {
        let remedy = "write bytes with a unit, as `10GiB`, or a percentage below 100, as `10%`";
        match self.0.strip_suffix('%') {
            Some(percent) => basis(percent, &self.0, remedy),
            None => bytes(&self.0, remedy).map(Share::Absolute),
        }
    }
}

impl CountOrPercent {
    /// A number, or hundredths of a percent.
    pub(super) fn share(&self) -> Result<Share, Fault> {
        let remedy = "write a number, as `100000`, or a percentage below 100, as `5%`";
        let wrong = |why: &str| Fault::new(format!("{} {why}", shown(&self.0)), remedy);
        match self.0.strip_suffix('%') {
            Some(percent) => basis(percent, &self.0, remedy),
            None if self.0.starts_with('-') => Err(wrong("is negative")),
            None => match digits(&self.0) {
                Some(count) if count < AMOUNT_END => Ok(Share::Absolute(count)),
                Some(_) => Err(wrong("is more than any filesystem has")),
                None if text::only_digits(&self.0) => Err(wrong("is more than any filesystem has")),
                None => Err(wrong("is not a number or a percentage")),
            },
        }
    }
}

impl Time {
    /// The length of time.
    pub(super) fn duration(&self) -> Result<Duration, Fault> {
        static PARSER: SpanParser = SpanParser::new();
        let remedy = "write numbers with units, as `5m`, `1h30m`, `500ms` or `14d`";
        let wrong = |why: &str| Fault::new(format!("{} {why}", shown(&self.0)), remedy);
        if self.0.starts_with('-') || self.0.ends_with("ago") {
            return Err(wrong("is negative"));
        }
        let none = || wrong("is not a length of time");
        // The parser knows no days, for some have 23 hours. Retention is counted in them nevertheless.
        let (days, rest) = match self.0.split_once('d') {
            Some((days, rest)) if text::only_digits(days) => (digits(days).ok_or_else(none)?, rest.trim_start()),
            _ => (0, self.0.as_str()),
        };
        let rest = match rest {
            "" if !self.0.is_empty() => Duration::ZERO,
            rest => PARSER.parse_unsigned_duration(rest).map_err(|_| none())?,
        };
        let days = days.checked_mul(24 * 3600).map(Duration::from_secs).ok_or_else(none)?;
        days.checked_add(rest).ok_or_else(none)
    }
}

impl Mode {
    /// The bits.
    pub(super) fn bits(&self) -> Result<u32, Fault> {
        let remedy = "write three or four octal digits in quotes, as `\"0755\"`";
        let octal = matches!(self.0.len(), 3 | 4) && self.0.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        match u32::from_str_radix(&self.0, 8) {
            Ok(bits) if octal => Ok(bits),
            _ => Err(Fault::new(format!("{} is not a mode", shown(&self.0)), remedy)),
        }
    }
}

fn bytes(text: &str, remedy: &str) -> Result<u64, Fault> {
    let wrong = |why: &str| Fault::new(format!("{} {why}", shown(text)), remedy);
    if text.starts_with('-') {
        return Err(wrong("is negative"));
    }
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(wrong("is not a number of bytes"));
    }
    // Elsewhere on a cluster the suffix `m` means thousandths; nobody means megabytes by it for sure.
    if text.ends_with('m') {
        return Err(wrong("has the unit m, which can mean two things"));
    }
    match text.parse::<bytesize::ByteSize>() {
        // The parser saturates.
        Ok(size) if size.as_u64() < AMOUNT_END => Ok(size.as_u64()),
        Ok(_) => Err(wrong("is more than any machine has")),
        Err(_) if text::only_digits(text) => Err(wrong("is more than any machine has")),
        Err(_) => Err(wrong("is not a number of bytes")),
    }
}

/// `2.5` is 250 hundredths of a percent.
fn basis(percent: &str, written: &str, remedy: &str) -> Result<Share, Fault> {
    let wrong = |why: &str| Fault::new(format!("{} {why}", shown(written)), remedy);
    if percent.starts_with('-') {
        return Err(wrong("is negative"));
    }
    let (whole, part) = percent.split_once('.').unwrap_or((percent, "00"));
    let part = if part.len() == 1 { format!("{part}0") } else { part.to_owned() };
    match (digits(whole), digits(&part)) {
        (Some(_), Some(_)) if part.len() > 2 => Err(wrong("is finer than a hundredth of a percent")),
        (Some(whole), Some(part)) => match whole.saturating_mul(100).saturating_add(part) {
            basis @ 0..10_000 => Ok(Share::Basis(u32::try_from(basis).unwrap_or(0))),
            10_000 => Err(wrong("leaves nothing to use")),
            _ => Err(wrong("is more than the whole")),
        },
        _ if text::only_digits(whole) => Err(wrong("is more than the whole")),
        _ => Err(wrong("is not a percentage")),
    }
}

/// A whole number without sign or blanks.
fn digits(text: &str) -> Option<u64> {
    if text::only_digits(text) { text.parse().ok() } else { None }
}

/// Thousandths of a core, as the command line has them: by the same rules, with the remedy after the fault.
pub(crate) fn cpu_millis(text: &str) -> Result<u64, String> {
    Cores::from(text).millis().map_err(told)
}

/// Bytes, as the command line has them.
pub(crate) fn plain_bytes(text: &str) -> Result<u64, String> {
    Bytes::from(text).bytes().map_err(told)
}

/// A length of time, as the command line has it.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    Time::from(text).duration().map_err(told)
}

fn told(fault: Fault) -> String {
    format!("{}; {}", fault.message, fault.remedy)
}
