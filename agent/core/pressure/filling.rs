//! How fast a filesystem fills, and when it reaches its floor.
//!
//! Two windows look back from the newest sample: 30 s see a burst, 5 min remember a slow fill over its pauses. The
//! speed in a window is what went between its first sample and the newest, over the whole window: what was not seen
//! counts as quiet, so that the first second after the start is no speed. The larger of both counts.
//!
//! From this follows when a steady writer that begins on a quiet disk is met. After `t` seconds at `r` bytes a second
//! the 30 s window says `r t / 30`. With `F` bytes above the floor the gate shuts where `(F - r t) / (r t / 30)` is below
//! the forecast of `T` seconds, that is where `r t > F / (1 + T / 30)`: with the default of 60 s once a third of the
//! room went within 30 s, however fast the writer is.

use alloc::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Filesystem, OBSERVATION_GAP_MAX};
use crate::quantity::{Span, Timestamp};

/// The window that sees a burst.
pub const SLOPE_SHORT: Span = Span::seconds(30);
/// The window that remembers a slow fill.
pub const SLOPE_LONG: Span = Span::minutes(5);
/// A window keeps a sample for each of so many parts of it, and no more.
const PARTS: i64 = 30;
const MINUTE_MILLIS: u128 = 60_000;

/// How fast free bytes and inodes go; 0 where they do not.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slope {
    /// Bytes a minute.
    pub bytes_per_minute: u64,
    /// Inodes a minute.
    pub inodes_per_minute: u64,
}

impl Slope {
    /// When at this speed the first floor of the filesystem is reached; nothing where it does not fill.
    #[must_use]
    pub fn floor_in(&self, disk: &Filesystem) -> Option<Span> {
        let bytes = gone_in(disk.free_bytes.saturating_sub(disk.floor_bytes), self.bytes_per_minute);
        let counted = (disk.total_inodes > 0).then_some(self.inodes_per_minute);
        let inodes = gone_in(disk.free_inodes.saturating_sub(disk.floor_inodes), counted.unwrap_or(0));
        bytes.into_iter().chain(inodes).min()
    }
}

/// How long until `room` is gone at this speed; nothing where it does not go.
pub(super) fn gone_in(room: u64, per_minute: u64) -> Option<Span> {
    let millis = u128::from(room).saturating_mul(MINUTE_MILLIS).checked_div(u128::from(per_minute))?;
    Some(Span(i64::try_from(millis).unwrap_or(i64::MAX)))
}

/// What is remembered of one filesystem: at most 64 samples, however often it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filling {
    newest: Option<Sample>,
    short: Window,
    long: Window,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at: Timestamp,
    free_bytes: u64,
    free_inodes: u64,
}

impl Default for Filling {
    fn default() -> Self {
        Self { newest: None, short: Window::of(SLOPE_SHORT), long: Window::of(SLOPE_LONG) }
    }
}

impl Filling {
    /// Takes the next look. One of the same time is the same look. After a clock that went back, or a gap in which
    /// nobody looked, all that was seen before is forgotten: its distance in time is not known.
    pub fn note(&mut self, free_bytes: u64, free_inodes: u64, now: Timestamp) {
        if let Some(newest) = self.newest {
            if newest.at == now {
                return;
            }
            if now < newest.at || now.since(newest.at) > OBSERVATION_GAP_MAX {
                *self = Self::default();
            }
        }
        let sample = Sample { at: now, free_bytes, free_inodes };
        self.newest = Some(sample);
        self.short.note(sample);
        self.long.note(sample);
    }

    /// The larger of both windows, for bytes and for inodes.
    #[must_use]
    pub fn slope(&self) -> Slope {
        let Some(newest) = self.newest else { return Slope::default() };
        let (short, long) = (self.short.slope(newest), self.long.slope(newest));
        Slope {
            bytes_per_minute: short.bytes_per_minute.max(long.bytes_per_minute),
            inodes_per_minute: short.inodes_per_minute.max(long.inodes_per_minute),
        }
    }
}

/// The samples of one window, the oldest first. The first is the newest of those as old as the window, where there are
/// such.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    length: Span,
    samples: VecDeque<Sample>,
}

impl Window {
    const fn of(length: Span) -> Self {
        Self { length, samples: VecDeque::new() }
    }

    fn note(&mut self, sample: Sample) {
        let part = self.length.0 / PARTS;
        let due = self.samples.back().is_none_or(|last| sample.at.since(last.at).0 >= part);
        if due {
            self.samples.push_back(sample);
        }
        while self.samples.get(1).is_some_and(|second| sample.at.since(second.at) >= self.length) {
            self.samples.pop_front();
        }
    }

    fn slope(&self, newest: Sample) -> Slope {
        let Some(first) = self.samples.front() else { return Slope::default() };
        let millis = newest.at.since(first.at).0.max(self.length.0).max(1).unsigned_abs();
        let per_minute = |before: u64, now: u64| {
            let gone = u128::from(before.saturating_sub(now));
            let speed = gone.saturating_mul(MINUTE_MILLIS).checked_div(u128::from(millis)).unwrap_or(0);
            u64::try_from(speed).unwrap_or(u64::MAX)
        };
        Slope {
            bytes_per_minute: per_minute(first.free_bytes, newest.free_bytes),
            inodes_per_minute: per_minute(first.free_inodes, newest.free_inodes),
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A look a second, each `step` bytes and as many inodes below the one before.
    fn filling(from: u64, step: u64, seconds: i64) -> Filling {
        let mut filling = Filling::default();
        for second in 0..=seconds {
            let gone = step * second.unsigned_abs();
            filling.note(from - gone, from - gone, Timestamp(second * 1000));
        }
        filling
    }

    #[test]
    fn a_steady_writer_has_its_speed_after_a_window() {
        let slope = filling(1 << 40, MIB, 30).slope();
        assert_eq!(slope, Slope { bytes_per_minute: 60 * MIB, inodes_per_minute: 60 * MIB });
        assert_eq!(filling(1 << 40, MIB, 600).slope(), slope, "and keeps it");
        assert_eq!(filling(1 << 40, MIB, 3).slope().bytes_per_minute, 6 * MIB, "3 MiB in 30 s");
    }

    #[test]
    fn a_slow_fill_is_remembered_over_its_pauses() {
        let mut filling = filling(1 << 40, MIB, 120);
        let free = (1 << 40) - 120 * MIB;
        for second in 121..=160 {
            filling.note(free, free, Timestamp(second * 1000));
        }
        assert_eq!(filling.slope().bytes_per_minute, 24 * MIB, "120 MiB in 5 min");
        for second in 161..=440 {
            filling.note(free, free, Timestamp(second * 1000));
        }
        assert_eq!(filling.slope(), Slope::default(), "after 5 min of quiet it is over");
    }

    #[test]
    fn room_that_came_back_is_no_speed() {
        let mut filling = filling(1 << 30, MIB, 60);
        filling.note(1 << 30, 1 << 30, Timestamp(61_000));
        assert_eq!(filling.slope(), Slope::default());
    }

    #[test]
    fn a_jump_of_the_clock_or_a_gap_begins_anew() {
        for at in [-5_000, 60_000 + OBSERVATION_GAP_MAX.0 + 1] {
            let mut filling = filling(1 << 30, MIB, 60);
            filling.note(0, 0, Timestamp(at));
            assert_eq!(filling.slope(), Slope::default());
        }
    }

    #[test]
    fn what_does_not_go_is_never_gone() {
        assert_eq!(gone_in(5, 0), None);
        assert_eq!(gone_in(10 * MIB, 60 * MIB), Some(Span::seconds(10)));
        assert_eq!(gone_in(u64::MAX, 1), Some(Span(i64::MAX)));
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_no_speed_is_more_than_what_went(
            looks in proptest::collection::vec((1i64..4000, any::<u64>(), 0u64..1 << 40), 1..400)
        ) {
            let (mut filling, mut now) = (Filling::default(), 0);
            let mut seen: Vec<(i64, u64)> = Vec::new();
            for (step, bytes, inodes) in looks {
                now += step;
                filling.note(bytes, inodes, Timestamp(now));
                seen.push((now, inodes));
                prop_assert!(filling.short.samples.len() + filling.long.samples.len() <= 64);
                // Never more than the largest fall within the long window, as if it had happened within the short one.
                let past = seen.iter().filter(|(at, _)| now - at <= SLOPE_LONG.0 + 20_000);
                let highest = past.map(|(_, inodes)| *inodes).max().unwrap_or(0);
                prop_assert!(filling.slope().inodes_per_minute <= (highest - inodes) * 2);
            }
        }
    }
}
