//! What a build used: what its caller says, and what was seen of it.

use serde::{Deserialize, Serialize};

use crate::quantity::{Span, Timestamp};
use crate::sizing::Sample;

use super::{Facts, Lease};

/// Fewer looks than these say little of a peak.
const LOOKS_MIN: u32 = 3;

/// What a build really used. What is 0 was not measured.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes, without reclaimable cache.
    pub memory_bytes_peak: u64,
    /// Thousandths of a core, over about a second.
    pub cpu_millis_peak: u64,
    /// CPU time.
    pub cpu_time: Span,
    /// Time from start to end.
    pub elapsed: Span,
    /// Bytes on the pool.
    pub disk_bytes: u64,
    /// Inodes on the pool.
    pub disk_inodes: u64,
    /// Processes at once.
    pub processes_peak: u32,
}

impl Usage {
    /// Each figure of `self` that was measured, else that of `other`.
    fn or(self, other: Self) -> Self {
        let known = |mine: u64, other: u64| if mine > 0 { mine } else { other };
        let span = |mine: Span, other: Span| if mine > Span(0) { mine } else { other };
        Self {
            memory_bytes_peak: known(self.memory_bytes_peak, other.memory_bytes_peak),
            cpu_millis_peak: known(self.cpu_millis_peak, other.cpu_millis_peak),
            cpu_time: span(self.cpu_time, other.cpu_time),
            elapsed: span(self.elapsed, other.elapsed),
            disk_bytes: known(self.disk_bytes, other.disk_bytes),
            disk_inodes: known(self.disk_inodes, other.disk_inodes),
            processes_peak: if self.processes_peak > 0 { self.processes_peak } else { other.processes_peak },
        }
    }
}

/// What the meter saw of one lease.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The most so far.
    pub peak: Usage,
    /// The first look at which something was found.
    pub began: Timestamp,
    /// The last one.
    pub at: Timestamp,
    /// How many there were.
    pub looks: u32,
}

impl Seen {
    /// Whether it was looked at for (nearly) all of such a time, so that its peak was hardly missed.
    fn is_whole(&self, lasted: Span) -> bool {
        let watched = self.at.since(self.began).0;
        self.looks >= LOOKS_MIN && watched.saturating_mul(4) >= lasted.0.saturating_mul(3)
    }
}

impl Facts {
    /// Nothing takes more than there is, whatever its caller says; a pool that is away says nothing of what it has.
    pub(super) fn within_capacity(&self, usage: Usage) -> Usage {
        let there = |told: u64, most: u64| if most == 0 { told } else { told.min(most) };
        Usage {
            memory_bytes_peak: there(usage.memory_bytes_peak, self.capacity.memory_bytes),
            cpu_millis_peak: there(usage.cpu_millis_peak, self.capacity.cpu_millis),
            disk_bytes: there(usage.disk_bytes, self.capacity.disk_bytes),
            disk_inodes: there(usage.disk_inodes, self.capacity.disk_inodes),
            ..usage
        }
    }

    /// The lease with its peak at its end: what its caller measured, and of the rest what was seen.
    pub(super) fn measured(&self, lease: &Lease, told: Option<Usage>, now: Timestamp) -> Lease {
        let (told, seen) = (told.unwrap_or_default(), self.in_use.get(&lease.id).map(|found| found.seen));
        let lasted = lease.bound_at.map_or(Span(0), |at| now.since(at));
        let seen = seen.unwrap_or_default();
        let peak = told.or(Usage { elapsed: Span(0), ..seen.peak });
        if peak == Usage::default() {
            return lease.clone();
        }
        let peak = peak.or(Usage { elapsed: lasted, ..Usage::default() });
        let peak = self.within_capacity(peak);
        let at_least = told.memory_bytes_peak == 0 && !seen.is_whole(lasted);
        Lease { peak: Some(peak), peak_at_least: at_least, ..lease.clone() }
    }
}

impl Lease {
    /// What its end tells of the next such build. What nobody saw says nothing.
    #[must_use]
    pub fn sample(&self) -> Option<Sample> {
        let peak = self.peak.filter(|peak| peak.memory_bytes_peak > 0)?;
        Some(Sample {
            memory_bytes_peak: peak.memory_bytes_peak,
            cpu_millis_peak: peak.cpu_millis_peak,
            cpu_millis_given: self.sizing.size.amounts.cpu_millis,
            disk_bytes: peak.disk_bytes,
            elapsed: peak.elapsed,
            outcome: self.outcome?,
            censored: self.peak_at_least,
        })
    }
}
