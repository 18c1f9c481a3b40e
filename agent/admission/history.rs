//! What builds used, as far as the journal keeps it: the last runs of each key, and of all keys so many runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use stoker_core::sizing::history::{SAMPLES_MAX, Sample};

/// Runs of all keys together; the oldest go first, here and in the journal.
pub(super) const RUNS_MAX: usize = 40_000;

/// The runs. Each has its number, by which it is found again when its time is over.
#[derive(Debug, Default)]
pub(super) struct History {
    by_key: BTreeMap<Arc<str>, VecDeque<(u64, Sample)>>,
    /// Whose each of the last [`RUNS_MAX`] is, whether it is still kept or not; oldest first, without a gap.
    order: VecDeque<Arc<str>>,
    /// The number of the next one.
    next: u64,
}

impl History {
    /// One more run.
    pub(super) fn push(&mut self, key: &str, sample: Sample) {
        let known = self.by_key.get_key_value(key).map(|(key, _)| Arc::clone(key));
        let key = known.unwrap_or_else(|| Arc::from(key));
        let runs = self.by_key.entry(Arc::clone(&key)).or_default();
        runs.push_back((self.next, sample));
        if runs.len() > SAMPLES_MAX {
            runs.pop_front();
        }
        self.next += 1;
        self.order.push_back(key);
        if self.order.len() > RUNS_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.next.saturating_sub(u64::try_from(self.order.len()).unwrap_or(u64::MAX));
        let Some(key) = self.order.pop_front() else { return };
        let Some(runs) = self.by_key.get_mut(&key) else { return };
        if runs.front().is_some_and(|(number, _)| *number == oldest) {
            runs.pop_front();
        }
        if runs.is_empty() {
            self.by_key.remove(&key);
        }
    }

    /// Those of one key, oldest first.
    pub(super) fn of(&self, key: &str) -> impl Iterator<Item = Sample> {
        self.by_key.get(key).into_iter().flatten().map(|(_, sample)| *sample)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use stoker_core::quantity::Span;
    use stoker_core::sizing::Outcome;

    use super::*;

    fn sample(number: usize) -> Sample {
        let elapsed = Span(i64::try_from(number).unwrap());
        Sample {
            memory_bytes_peak: 1,
            cpu_millis_peak: 1,
            cpu_millis_given: 0,
            disk_bytes: 0,
            elapsed,
            outcome: Outcome::Succeeded,
            censored: false,
        }
    }

    fn times(history: &History, key: &str) -> Vec<i64> {
        history.of(key).map(|sample| sample.elapsed.0).collect()
    }

    #[test]
    fn a_key_has_its_last_runs_and_keys_go_with_their_last() {
        let mut history = History::default();
        history.push("old", sample(0));
        (0..=SAMPLES_MAX).for_each(|number| history.push("busy", sample(number)));
        assert_eq!((times(&history, "old"), times(&history, "busy").len()), (vec![0], SAMPLES_MAX));
        assert_eq!(times(&history, "busy")[0], 1, "the oldest went");
        let before = SAMPLES_MAX + 2;
        (before..RUNS_MAX).for_each(|number| history.push(&format!("key {number}"), sample(number)));
        assert_eq!((times(&history, "old"), history.by_key.len()), (vec![0], RUNS_MAX - before + 2));
        history.push("new", sample(7));
        assert_eq!((times(&history, "old"), times(&history, "new")), (vec![], vec![7]));
        // The oldest run of the busy key went long ago; its next goes with its own turn.
        history.push("newer", sample(8));
        assert_eq!(times(&history, "busy").len(), SAMPLES_MAX);
        history.push("newest", sample(9));
        assert_eq!(times(&history, "busy").len(), SAMPLES_MAX - 1);
        assert_eq!((history.order.len(), history.by_key.len()), (RUNS_MAX, RUNS_MAX - before + 4));
    }
}
