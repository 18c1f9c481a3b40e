//! The share of the last moments in which work stalled, from the kernel's running totals.

use alloc::collections::VecDeque;

use super::poll::INTERVAL_MIN;
use crate::quantity::{Span, Timestamp};

/// Over how long: the window of the triggers.
pub const STALL_WINDOW: Span = Span::seconds(2);
const SAMPLES_MAX: usize = 32;

/// Totals over the last window.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct StallMeter {
    /// When, and the microseconds in which all work had stalled until then; the oldest first.
    samples: VecDeque<(Timestamp, u64)>,
}

impl StallMeter {
    /// Takes the next total; gives the share of the window in hundredths of a percent, nothing where it cannot be told.
    ///
    /// No work can have stalled for longer than time went by. Where the total says so (after the machine slept, or when
    /// the clock jumped) it is no measure: what was seen is forgotten, and the next window begins with this total.
    pub fn note(&mut self, total_micros: u64, now: Timestamp) -> Option<u32> {
        if let Some((at, before)) = self.samples.back() {
            let elapsed_micros = now.since(*at).0.saturating_mul(1000).unsigned_abs();
            // The kernel adds up when it likes: what it tells now may have been a look earlier.
            let slack_micros = INTERVAL_MIN.0.saturating_mul(1000).unsigned_abs();
            let went = total_micros.checked_sub(*before);
            if now < *at || went.is_none_or(|went| went > elapsed_micros.saturating_add(slack_micros)) {
                self.samples.clear();
            }
        }
        self.samples.push_back((now, total_micros));
        while self.samples.len() > SAMPLES_MAX
            || self.samples.get(1).is_some_and(|(at, _)| now.since(*at) >= STALL_WINDOW)
        {
            self.samples.pop_front();
        }
        // The most that any of them shows: the oldest can be a look older than the window, and from it on alone what has
        // just begun would seem to be less.
        let share = |(at, before): &(Timestamp, u64)| {
            let micros = now.since(*at).0.max(STALL_WINDOW.0).saturating_mul(1000).unsigned_abs();
            let stalled = u128::from(total_micros.saturating_sub(*before));
            let share = stalled.saturating_mul(10_000).checked_div(u128::from(micros))?;
            Some(u32::try_from(share).unwrap_or(u32::MAX).min(10_000))
        };
        self.samples.iter().rev().skip(1).filter_map(share).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_the_whole_window() {
        let mut meter = StallMeter::default();
        assert_eq!(meter.note(5_000_000, Timestamp(0)), None, "one total says nothing");
        assert_eq!(meter.note(5_400_000, Timestamp(500)), Some(2000), "400 ms of 2 s");
        assert_eq!(meter.note(5_400_000, Timestamp(1500)), Some(2000));
        assert_eq!(meter.note(5_400_000, Timestamp(4000)), Some(0), "it is over");
    }

    #[test]
    fn what_has_just_begun_counts_whole_wherever_the_looks_lay() {
        let mut meter = StallMeter::default();
        for at in [0, 1000, 2000] {
            meter.note(5_000_000, Timestamp(at));
        }
        // The trigger fires between two looks, and the oldest total is 2.9 s old.
        assert_eq!(meter.note(5_400_000, Timestamp(2900)), Some(2000), "400 ms of 2 s");
    }

    #[test]
    fn a_stall_that_is_longer_than_the_time_is_discarded() {
        let mut meter = StallMeter::default();
        meter.note(0, Timestamp(0));
        assert_eq!(meter.note(60_000_000, Timestamp(1000)), None, "60 s in one");
        assert_eq!(meter.note(60_100_000, Timestamp(2000)), Some(500), "from there on it counts again");
        assert_eq!(meter.note(60_100_000, Timestamp(1000)), None, "the clock went back");
        assert_eq!(meter.note(5, Timestamp(2000)), None, "the total went back");
    }
}
