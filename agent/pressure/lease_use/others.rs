//! What all the rest of the machine uses: the machine less the leases, both from one look and in one unit.
//!
//! The machine counts as available whatever page cache it could drop, and a lease's use has its active part. So of each
//! lease only what the machine has not counted as available is taken off; swap counts on both sides.

use std::path::Path;

use stoker_core::quantity::Amounts;

use super::super::sample::{Sampler, Ticks};
use super::CPU_SMOOTHED_SECONDS;
use super::pods::Sum;

/// CPU and memory in use of which neither a lease nor another pod was seen to use it, and what those pods hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Others {
    /// Smoothed. Unset before the second look.
    pub cpu_millis: Option<u64>,
    /// Swapped memory is in it.
    pub memory_bytes: u64,
    /// What pods without a lease hold.
    pub pods: Amounts,
}

/// What all leases, or all other pods, of one look used.
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
    pub(super) fn look(&mut self, leases: Leases, pods: &Sum) -> Option<Others> {
        self.cpu(leases.cpu_micros.saturating_add(pods.used.cpu_micros));
        let in_use = self.sampler.memory_in_use()?;
        let known = leases.unavailable_bytes.saturating_add(pods.used.unavailable_bytes);
        Some(Others {
            cpu_millis: self.cpu_millis.map(|millis| (millis.round() as u64).max(pods.of_the_system.cpu_millis)),
            memory_bytes: in_use.saturating_sub(known).max(pods.of_the_system.memory_bytes),
            pods: pods.held,
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
        self.cpu_millis = smoothed(self.cpu_millis, millis * seconds, seconds);
    }
}

/// The moving average after so much more CPU time, in milliseconds, within so many seconds.
pub(super) fn smoothed(average: Option<f64>, spent_millis: f64, seconds: f64) -> Option<f64> {
    if seconds <= 0.0 {
        return average;
    }
    let (now, weight) = (spent_millis / seconds, 1.0 - (-seconds / CPU_SMOOTHED_SECONDS).exp());
    Some(average.map_or(now, |average| average + weight * (now - average)))
}
