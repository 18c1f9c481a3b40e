//! What all the rest of the machine uses: the machine less the leases, both from one look and in one unit.
//!
//! The machine counts as available whatever page cache it could drop, and a lease's use has its active part. So of each
//! lease only what the machine has not counted as available is taken off; swap counts on both sides.

use std::path::Path;

use super::super::sample::{Sampler, Ticks};
use super::CPU_SMOOTHED_SECONDS;

/// CPU and memory in use of which no lease was seen to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Others {
    /// Smoothed. Unset before the second look.
    pub cpu_millis: Option<u64>,
    /// Swapped memory is in it.
    pub memory_bytes: u64,
}

/// What all leases of one look used.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leases {
    /// See [`super::cgroup::Figures::unavailable_bytes`].
    pub(super) unavailable_bytes: u64,
    /// Since the look before.
    pub(super) cpu_micros: u64,
}

/// Looks at the machine after each look at the leases.
pub(super) struct OthersMeter {
    sampler: Sampler,
    last: Option<Ticks>,
    cpu_millis: Option<f64>,
}

impl OthersMeter {
    pub(super) fn new(host_root: &Path) -> Self {
        Self { sampler: Sampler::new(host_root), last: None, cpu_millis: None }
    }

    /// Nothing where the machine does not tell.
    pub(super) fn look(&mut self, leases: Leases) -> Option<Others> {
        self.cpu(leases.cpu_micros);
        let in_use = self.sampler.memory_in_use()?;
        Some(Others {
            cpu_millis: self.cpu_millis.map(|millis| millis.round() as u64),
            memory_bytes: in_use.saturating_sub(leases.unavailable_bytes),
        })
    }

    /// How much time went by is in the machine's own ticks.
    fn cpu(&mut self, leases_micros: u64) {
        let Some((now, cpus)) = self.sampler.ticks() else { return };
        let Some(before) = self.last.replace(now) else { return };
        let per_second = procfs::ticks_per_second().max(1) as f64;
        let seconds = now.total.saturating_sub(before.total) as f64 / per_second / cpus.max(1) as f64;
        if seconds <= 0.0 {
            return;
        }
        let busy_seconds = now.busy.saturating_sub(before.busy) as f64 / per_second - leases_micros as f64 / 1e6;
        let millis = busy_seconds.max(0.0) * 1000.0 / seconds;
        let weight = 1.0 - (-seconds / CPU_SMOOTHED_SECONDS).exp();
        self.cpu_millis = Some(self.cpu_millis.map_or(millis, |average| average + weight * (millis - average)));
    }
}
