//! What runs of one key (repository, target, architecture) used, and what that says of the next one.
//!
//! Only a run that succeeded shows how much its build needs. Any other one shows that it needs *at least* so much: it
//! was killed, or stopped at a fault before it came to its peak. Such a run can raise what the history leads to, never
//! lower it.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::millis;
use crate::quantity::{Resource, Span};

/// How many runs of one key are looked at: the latest.
pub const SAMPLES_MAX: usize = 32;

/// With fewer complete runs than these the 95th percentile is the maximum, and the confidence is low.
pub const RUNS_FOR_CONFIDENCE: u32 = 20;

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its command exited with 0.
    Succeeded,
    /// Its command exited otherwise, or could not be started.
    Failed,
    /// It was killed because it reached its own limit.
    OutOfMemoryLimit,
    /// It was killed because the node ran out.
    OutOfMemoryNode,
    /// It was ended after its time budget.
    TimeBudgetExceeded,
    /// The node or the cluster sent it away.
    Evicted,
    /// Nobody saw its end.
    Lost,
}

/// What one run used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The most memory at one time, without page cache that can be reclaimed.
    pub memory_bytes_peak: u64,
    /// The most CPU, in thousandths of a core, over about a second.
    pub cpu_millis_peak: u64,
    /// The CPU that the lease gave; 0 where it is not known.
    #[serde(default)]
    pub cpu_millis_given: u64,
    /// The most that it had on the pool; 0 where it was not measured.
    pub disk_bytes: u64,
    /// From start to end.
    pub elapsed: Span,
    /// How it ended.
    pub outcome: Outcome,
    /// The figures are lower bounds, whatever the outcome says.
    pub censored: bool,
}

impl Sample {
    /// Whether the figures say "at least".
    #[must_use]
    pub const fn at_least(&self) -> bool {
        self.censored || !matches!(self.outcome, Outcome::Succeeded)
    }

    /// CPU used, counted up to what was given. More than that says that the work could be spread further, not that it
    /// needs to be.
    const fn cpu_millis_counted(&self) -> u64 {
        match self.cpu_millis_given {
            0 => self.cpu_millis_peak,
            given if given < self.cpu_millis_peak => given,
            _ => self.cpu_millis_peak,
        }
    }

    /// Whether it used (nearly) all the CPU that it was given.
    const fn cpu_at_limit(&self) -> bool {
        let near = self.cpu_millis_given.saturating_sub(self.cpu_millis_given / 20);
        self.cpu_millis_given > 0 && self.cpu_millis_peak >= near
    }
}

/// How much a history is worth.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// Fewer than [`RUNS_FOR_CONFIDENCE`] runs.
    Low,
    /// Enough runs, or nothing that rests on runs.
    #[default]
    Normal,
}

impl Confidence {
    /// After so many runs.
    #[must_use]
    pub const fn of(runs: u32) -> Self {
        if runs < RUNS_FOR_CONFIDENCE { Self::Low } else { Self::Normal }
    }
}

/// What a caller measured itself.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// 95th percentile of the peaks, in thousandths of a core; 0 where it is not known.
    pub cpu_millis_p95: u64,
    /// 95th percentile of the peaks, in bytes; 0 where it is not known.
    pub memory_bytes_p95: u64,
    /// Over so many runs.
    pub runs: u32,
}

impl Measured {
    /// The caller's figure; none where it has none.
    pub(super) fn p95(&self, resource: Resource) -> Option<u64> {
        let value = match resource {
            Resource::Cpu => self.cpu_millis_p95,
            Resource::Memory => self.memory_bytes_p95,
            _ => 0,
        };
        (value > 0).then_some(value)
    }

    /// The caller's figure with the margin; none where it has none.
    pub(super) fn leads_to(&self, resource: Resource) -> Option<u64> {
        self.p95(resource).map(with_margin)
    }
}

/// What the latest runs say together. Made by [`summary`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistorySummary {
    /// 95th percentile of the peaks.
    pub memory_bytes_p95: u64,
    /// 95th percentile of the peaks, each counted up to what was given.
    pub cpu_millis_p95: u64,
    /// The most CPU that a run was given, where all know it: the margin goes no further.
    pub cpu_millis_ceiling: Option<u64>,
    /// Some run used all the CPU that it was given.
    pub cpu_elastic: bool,
    /// 95th percentile, where it was measured.
    pub disk_bytes_p95: Option<u64>,
    /// 95th percentile of how long the complete ones took. The others do not count: a build that hangs until its time
    /// budget ends it would otherwise get a fifth more each time.
    pub time_p95: Option<Span>,
    /// How many runs were looked at, at most [`SAMPLES_MAX`].
    pub runs: u32,
    /// How many of them succeeded, so that their figures are whole.
    pub runs_complete: u32,
    /// Whether the complete ones are enough.
    pub confidence: Confidence,
}

impl HistorySummary {
    /// What the runs used at most, but for one in twenty; none where nothing was measured.
    pub(super) fn p95(&self, resource: Resource) -> Option<u64> {
        let value = match resource {
            Resource::Memory => self.memory_bytes_p95,
            Resource::Cpu => self.cpu_millis_p95,
            Resource::DiskBytes => self.disk_bytes_p95?,
            Resource::DiskInodes => return None,
            Resource::Time => millis(self.time_p95?),
        };
        (value > 0).then_some(value)
    }

    /// What a build should get after this history; none where the history says nothing of this resource.
    ///
    /// `fallback` is the language's default, 0 where the size is declared. It stays the least where the history has
    /// lower bounds only; for CPU where it was all used (else a size that contention once lowered could never grow
    /// again); and for time, which is a bound and holds no room.
    pub(super) fn leads_to(&self, resource: Resource, fallback: u64) -> Option<u64> {
        let (value, fallback_is_least) = match resource {
            Resource::Memory => (with_margin(self.memory_bytes_p95), false),
            Resource::Cpu => {
                let ceiling = self.cpu_millis_ceiling.unwrap_or(u64::MAX);
                (with_margin(self.cpu_millis_p95).min(ceiling), self.cpu_elastic)
            }
            Resource::DiskBytes => (with_margin(self.disk_bytes_p95?), false),
            Resource::DiskInodes => return None,
            Resource::Time => (with_margin(millis(self.time_p95?)), true),
        };
        if value == 0 || self.runs == 0 {
            return None;
        }
        // Where the default is more, it is the default that counts, and it is called so.
        let least = fallback_is_least || self.runs_complete == 0;
        (!least || value > fallback).then_some(value)
    }
}

/// What these runs (oldest first) say together. Only the last [`SAMPLES_MAX`] count; without any, zeros.
#[must_use]
pub fn summary(samples: &[Sample]) -> HistorySummary {
    let window = samples.get(samples.len().saturating_sub(SAMPLES_MAX)..).unwrap_or(samples);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let runs_complete = count(window.iter().filter(|sample| !sample.at_least()).count());
    let known = |value: u64| (value > 0).then_some(value);
    let given = |sample: &Sample| known(sample.cpu_millis_given);
    HistorySummary {
        memory_bytes_p95: estimate(window, |sample| sample.memory_bytes_peak),
        cpu_millis_p95: estimate(window, Sample::cpu_millis_counted),
        // `None` is the least, so one run that does not know leaves no ceiling.
        cpu_millis_ceiling: window
            .iter()
            .map(given)
            .min()
            .flatten()
            .and_then(|_| window.iter().filter_map(given).max()),
        cpu_elastic: window.iter().any(Sample::cpu_at_limit),
        disk_bytes_p95: known(estimate(window, |sample| sample.disk_bytes)),
        time_p95: nearest_rank_p95(complete(window, |sample| millis(sample.elapsed)))
            .and_then(known)
            .map(|value| Span(i64::try_from(value).unwrap_or(i64::MAX))),
        runs: count(window.len()),
        runs_complete,
        confidence: Confidence::of(runs_complete),
    }
}

/// The 95th percentile of the complete runs, or the largest lower bound where that is more.
fn estimate(window: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    let bound = window.iter().filter(|sample| sample.at_least()).map(&of).max();
    nearest_rank_p95(complete(window, &of)).max(bound).unwrap_or(0)
}

fn complete(window: &[Sample], of: impl Fn(&Sample) -> u64) -> Vec<u64> {
    window.iter().filter(|sample| !sample.at_least()).map(of).collect()
}

/// The value of rank `ceil(0.95 n)`. Below 20 values that is the maximum.
fn nearest_rank_p95(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    let rank = values.len().saturating_mul(95).div_ceil(100);
    values.get(rank.checked_sub(1)?).copied()
}

/// A fifth more, rounded up.
pub(super) fn with_margin(value: u64) -> u64 {
    value.saturating_add(value.div_ceil(5))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn succeeded(memory: u64) -> Sample {
        Sample {
            memory_bytes_peak: memory,
            cpu_millis_peak: 1500,
            cpu_millis_given: 2000,
            disk_bytes: 0,
            elapsed: Span::minutes(1),
            outcome: Outcome::Succeeded,
            censored: false,
        }
    }

    #[test]
    fn under_twenty_runs_the_percentile_is_the_maximum() {
        let mut samples: Vec<Sample> = (1..=19).map(succeeded).collect();
        let few = summary(&samples);
        assert_eq!((few.memory_bytes_p95, few.confidence, few.runs), (19, Confidence::Low, 19));
        samples.push(succeeded(20));
        let enough = summary(&samples);
        assert_eq!((enough.memory_bytes_p95, enough.confidence, enough.runs), (19, Confidence::Normal, 20));
    }

    #[test]
    fn only_the_latest_runs_count() {
        let mut samples = vec![succeeded(1 << 40)];
        samples.extend((0..32).map(|_| succeeded(7)));
        assert_eq!((summary(&samples).memory_bytes_p95, summary(&samples).runs), (7, 32));
    }

    #[test]
    fn no_runs_say_nothing() {
        let none = summary(&[]);
        assert_eq!((none.runs, none.disk_bytes_p95, none.time_p95), (0, None, None));
        assert!([Resource::Cpu, Resource::Memory, Resource::Time].iter().all(|r| none.leads_to(*r, 5).is_none()));
    }

    #[test]
    fn a_build_that_failed_early_does_not_shrink_the_next_one() {
        let quick = Sample { outcome: Outcome::Failed, ..succeeded(5) };
        let mut samples: Vec<Sample> = (0..20).map(|_| succeeded(100)).collect();
        samples.extend([quick; 12]);
        assert_eq!(summary(&samples).memory_bytes_p95, 100);
        assert_eq!(summary(&[quick]).leads_to(Resource::Memory, 4000), None, "the default stays");
        assert_eq!(summary(&[succeeded(5)]).leads_to(Resource::Memory, 4000), Some(6));
    }

    #[test]
    fn a_build_that_hangs_does_not_raise_its_own_time_budget() {
        let hung = Sample { outcome: Outcome::TimeBudgetExceeded, elapsed: Span::hours(1), ..succeeded(5) };
        assert_eq!(summary(&[succeeded(5), hung]).time_p95, Some(Span::minutes(1)));
        assert_eq!(summary(&[hung]).time_p95, None);
    }

    #[test]
    fn cpu_at_its_limit_is_elastic_not_bigger() {
        let given = |peak, given| {
            summary(&[Sample { cpu_millis_peak: peak, cpu_millis_given: given, ..succeeded(1) }])
                .leads_to(Resource::Cpu, 2000)
        };
        assert_eq!(given(4000, 4000), Some(4000), "it used all of it, and gets the same again");
        assert_eq!(given(32_000, 4000), Some(4000), "nothing held it back, and it gets the same again");
        assert_eq!(given(1000, 1000), None, "squeezed below the default, it gets the default again");
        assert_eq!(given(1000, 4000), Some(1200));
        assert_eq!(given(1000, 0), Some(1200));
    }

    prop_compose! {
        fn any_sample()(memory in 0..1_000_000u64, cpu in 0..64_000u64, given in prop_oneof![Just(0u64), 1..64_000u64],
                        disk in 0..1_000_000u64, elapsed in 0..1_000_000i64, ok in any::<bool>(), censored in any::<bool>())
                       -> Sample {
            let outcome = if ok { Outcome::Succeeded } else { Outcome::OutOfMemoryLimit };
            Sample { memory_bytes_peak: memory, cpu_millis_peak: cpu, cpu_millis_given: given, disk_bytes: disk,
                     elapsed: Span(elapsed), outcome, censored }
        }
    }

    /// None counts as nothing, so that what a history adds can be compared.
    fn all(samples: &[Sample]) -> [u64; 4] {
        let summary = summary(samples);
        [Resource::Cpu, Resource::Memory, Resource::DiskBytes, Resource::Time]
            .map(|resource| summary.leads_to(resource, 2000).unwrap_or(2000))
    }

    proptest! {
        #[test]
        fn a_censored_run_raises_or_changes_nothing(
            samples in prop::collection::vec(any_sample(), 1..31), more in any_sample()
        ) {
            // The CPU's ceiling rises with what is given; here the same is given.
            let more = Sample { censored: true, cpu_millis_given: samples[0].cpu_millis_given, ..more };
            let before = summary(&samples);
            let after = summary(&[samples.as_slice(), &[more]].concat());
            prop_assert!(after.memory_bytes_p95 >= before.memory_bytes_p95);
            prop_assert!(after.cpu_millis_p95 >= before.cpu_millis_p95);
            prop_assert!(after.disk_bytes_p95 >= before.disk_bytes_p95);
            prop_assert!(after.time_p95 >= before.time_p95);
            prop_assert!(after.memory_bytes_p95 >= more.memory_bytes_peak);
        }

        #[test]
        fn a_run_that_used_more_never_leads_to_less(
            samples in prop::collection::vec(any_sample(), 1..33), at in any::<prop::sample::Index>(), more in 0..100_000u64
        ) {
            let mut raised = samples.clone();
            let sample = at.get(&samples);
            raised[at.index(samples.len())] = Sample {
                memory_bytes_peak: sample.memory_bytes_peak + more,
                cpu_millis_peak: sample.cpu_millis_peak + more,
                disk_bytes: sample.disk_bytes + more,
                elapsed: Span(sample.elapsed.0 + i64::try_from(more).unwrap()),
                ..*sample
            };
            for (before, after) in all(&samples).into_iter().zip(all(&raised)) {
                prop_assert!(after >= before, "{before} > {after}");
            }
        }
    }
}
