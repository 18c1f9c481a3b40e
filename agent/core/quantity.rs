//! Amounts and times. Integers only: the unit is in the type, and arithmetic saturates.

use core::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, as the node's clock says.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This time and a span later.
    #[must_use]
    pub const fn plus(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// How long ago `earlier` was; nothing where it lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Span {
        let millis = self.0.saturating_sub(earlier.0);
        Span(if millis < 0 { 0 } else { millis })
    }
}

/// A length of time in milliseconds, never negative.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span(pub i64);

impl Span {
    /// So many seconds.
    #[must_use]
    pub const fn seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// So many minutes.
    #[must_use]
    pub const fn minutes(minutes: i64) -> Self {
        Self::seconds(minutes.saturating_mul(60))
    }

    /// So many hours.
    #[must_use]
    pub const fn hours(hours: i64) -> Self {
        Self::minutes(hours.saturating_mul(60))
    }
}

/// CPU, memory, disk bytes and disk inodes of one build, node or floor; the unit of each is in its name.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes on the pool.
    pub disk_bytes: u64,
    /// Inodes on the pool.
    pub disk_inodes: u64,
}

impl Amounts {
    /// Each amount by the resource that it is of.
    #[must_use]
    pub const fn get(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Cpu => self.cpu_millis,
            Resource::Memory => self.memory_bytes,
            Resource::DiskBytes => self.disk_bytes,
            Resource::DiskInodes => self.disk_inodes,
            Resource::Time => 0,
        }
    }

    /// Whether there is nothing of anything.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Part by part.
    #[must_use]
    pub fn zip(self, other: Self, part: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_millis: part(self.cpu_millis, other.cpu_millis),
            memory_bytes: part(self.memory_bytes, other.memory_bytes),
            disk_bytes: part(self.disk_bytes, other.disk_bytes),
            disk_inodes: part(self.disk_inodes, other.disk_inodes),
        }
    }

    /// The sum, saturating.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// What is left; nothing where `other` is more.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    /// The larger of each part.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.zip(other, u64::max)
    }

    /// The smaller of each part.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        self.zip(other, u64::min)
    }
}

/// What a build may use: its amounts, and the time after which it is ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// CPU, memory and disk.
    pub amounts: Amounts,
    /// From binding to the end.
    pub time_budget: Span,
}

/// What a size is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Thousandths of a core.
    Cpu,
    /// Bytes.
    Memory,
    /// Bytes on the pool.
    DiskBytes,
    /// Inodes on the pool.
    DiskInodes,
    /// Milliseconds.
    Time,
}

impl Resource {
    /// All that the ledger adds up, in the order in which people are told.
    pub const LEDGER: [Self; 4] = [Self::Memory, Self::Cpu, Self::DiskBytes, Self::DiskInodes];

    /// One word for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::DiskBytes => "disk",
            Self::DiskInodes => "inodes",
            Self::Time => "time",
        }
    }

    /// `value` in the unit of this resource, as people write it.
    #[must_use]
    pub const fn show(self, value: u64) -> Shown {
        Shown { resource: self, value }
    }
}

/// A value with its unit; see [`Resource::show`].
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    resource: Resource,
    value: u64,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.resource {
            Resource::Cpu => tenths(f, self.value, 1000, " CPU"),
            Resource::Memory | Resource::DiskBytes => bytes(f, self.value),
            Resource::DiskInodes => write!(f, "{} inodes", self.value),
            Resource::Time => span(f, self.value),
        }
    }
}

/// One digit after the point, none where it is zero; rounded to the nearest.
fn tenths(f: &mut fmt::Formatter<'_>, value: u64, unit: u64, name: &str) -> fmt::Result {
    let half = u128::from(unit / 2);
    let rounded = u128::from(value).saturating_mul(10).saturating_add(half);
    let scaled = rounded.checked_div(u128::from(unit)).unwrap_or_default();
    match (scaled / 10, scaled % 10) {
        (whole, 0) => write!(f, "{whole}{name}"),
        (whole, tenth) => write!(f, "{whole}.{tenth}{name}"),
    }
}

fn bytes(f: &mut fmt::Formatter<'_>, value: u64) -> fmt::Result {
    const UNITS: [(&str, u32); 5] = [(" PiB", 50), (" TiB", 40), (" GiB", 30), (" MiB", 20), (" KiB", 10)];
    match UNITS.iter().find(|(_, shift)| value >> shift > 0) {
        Some((name, shift)) => tenths(f, value, 1 << shift, name),
        None => write!(f, "{value} B"),
    }
}

fn span(f: &mut fmt::Formatter<'_>, millis: u64) -> fmt::Result {
    let seconds = millis / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0) => write!(f, "{millis} ms"),
        (0, 0, s) => write!(f, "{s} s"),
        (0, m, 0) => write!(f, "{m} min"),
        (0, m, s) => write!(f, "{m} min {s} s"),
        (h, 0, _) => write!(f, "{h} h"),
        (h, m, _) => write!(f, "{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn people_read_amounts_in_the_unit_they_think_in() {
        let shown = |resource: Resource, value| resource.show(value).to_string();
        assert_eq!(shown(Resource::Cpu, 2000), "2 CPU");
        assert_eq!(shown(Resource::Cpu, 250), "0.3 CPU");
        assert_eq!(shown(Resource::Memory, 62 << 30 | 512 << 20), "62.5 GiB");
        assert_eq!(shown(Resource::DiskBytes, 1023), "1023 B");
        assert_eq!(shown(Resource::DiskBytes, u64::MAX), "16384 PiB");
        assert_eq!(shown(Resource::Time, 90 * 60 * 1000), "1 h 30 min");
        assert_eq!(shown(Resource::Time, 12), "12 ms");
    }

    #[test]
    fn a_clock_that_went_back_gives_no_negative_span() {
        assert_eq!(Timestamp(5).since(Timestamp(9)), Span(0));
    }
}
