//! How often an upstream in trouble is asked: by itself ever more rarely, and not by every request that comes.
//!
//! After a failure the pauses between two attempts grow. A request that comes in a pause is answered by what is known, or
//! by the failure with the time of the next attempt; one that comes after it asks, together with all who come meanwhile.
//! Who asks for a refresh by name (an operator) is not held back.

use std::sync::Mutex;
use std::time::Duration;

use stoker_core::quantity::Timestamp;
use stoker_core::reason::{Code, Reason};
use tokio::time::Instant;

use super::entry::{Ask, Entry};
use super::for_a_while::ForAWhile;
use super::listing::Wanted;
use super::{Shared, lock};
use crate::node::jittered;

/// The longest pause between two attempts after failures.
const BACKOFF_MAX: Duration = Duration::from_secs(30 * 60);
/// The first pause after a failure; each further one doubles it.
const BACKOFF_FIRST: Duration = Duration::from_secs(5);
/// The longest that requests are held back: who waits for an upstream that came back must not wait for half an hour, and
/// once a minute hurts nobody.
const HELD_MAX: Duration = Duration::from_secs(60);

/// Upstreams in trouble, by the repository's key: also of those that were forgotten because they were not there.
#[derive(Default)]
pub(super) struct Backoffs {
    held: Mutex<ForAWhile<String, Held>>,
}

struct Held {
    failures: u32,
    /// With the time of the next attempt.
    why: Reason,
}

impl Backoffs {
    /// A visit succeeded, or upstream answered that it has nothing for us.
    fn clear(&self, key: &str) {
        lock(&self.held).remove(key);
    }

    fn hold(&self, key: &str, why: &Reason, failures: u32, now: (Timestamp, Instant)) {
        let mut held = lock(&self.held);
        // Also of a pause that is over: who failed again right after it is in trouble for longer.
        let before = held.last(key).map_or(0, |held| held.failures);
        let failures = failures.max(before.saturating_add(1));
        let pause = jittered(backoff(failures).min(HELD_MAX));
        let at = now.0.0.saturating_add(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX));
        let why = Reason { expected_until: Some(Timestamp(at)), ..why.clone() };
        held.insert(key.to_owned(), Held { failures, why }, now.1 + pause);
    }

    /// Why upstream is not asked now, where it is not.
    fn why(&self, key: &str, now: Instant) -> Option<Reason> {
        let held = lock(&self.held);
        let (held, until) = held.get_until(key, now)?;
        let seconds = until.saturating_duration_since(now).as_secs() + 1;
        let message = format!(
            "{}; upstream is asked again in {seconds} s, or at once by `stoker repo refresh`",
            held.why.message
        );
        Some(Reason { message, ..held.why.clone() })
    }
}

impl Shared {
    /// Joins the batch that waits, for a request: not while upstream is left alone after a failure.
    ///
    /// # Errors
    /// That failure, with the time of the next attempt.
    pub(super) fn ask(&self, entry: &Entry, wanted: Wanted) -> Result<Ask, Reason> {
        // A visit that is about to come anyway is no further one.
        let comes = entry.state().waits();
        match self.backoffs.why(entry.url.key(), Instant::now()) {
            Some(why) if !comes => Err(why),
            _ => entry.ask(wanted),
        }
    }

    /// Takes note of how a visit ended; `failures` in a row, with this one.
    pub(super) fn note_visit(&self, key: &str, result: &Result<(), Reason>, failures: u32) {
        match result {
            Err(why) if is_trouble(why.code) => self.backoffs.hold(key, why, failures, (self.now(), Instant::now())),
            _ => self.backoffs.clear(key),
        }
    }
}

/// Whether upstream is in trouble. One that answers no is well, and a disk that is full is not its fault.
const fn is_trouble(code: Code) -> bool {
    matches!(code, Code::UpstreamUnreachable | Code::UpstreamTimeout)
}

/// The pause after so many failures in a row.
pub(super) fn backoff(failures: u32) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(BACKOFF_MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_half_an_hour() {
        assert_eq!(backoff(1), Duration::from_secs(5));
        assert_eq!(backoff(4), Duration::from_secs(40));
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
        for _ in 0..1000 {
            let pause = jittered(Duration::from_secs(100));
            assert!((80..=120).contains(&pause.as_secs()), "{pause:?}");
        }
    }

    #[test]
    fn requests_are_held_for_a_minute_at_most() {
        let backoffs = Backoffs::default();
        let why = Reason::new(Code::UpstreamUnreachable, "x", "no connection");
        let begin = Instant::now();
        let now = (Timestamp(1_000_000), begin);
        assert_eq!(backoffs.why("x", begin), None);
        for (failures, least, most) in [(1, 4, 6), (1, 8, 12), (1, 16, 24), (9, 48, 72), (99, 48, 72)] {
            backoffs.hold("x", &why, failures, now);
            let told = backoffs.why("x", begin).unwrap();
            let millis = told.expected_until.unwrap().0 - 1_000_000;
            assert!((least * 1000..=most * 1000).contains(&millis), "{failures}: {millis}");
            assert!(told.message.starts_with("no connection; upstream is asked again in "), "{told:?}");
            let after = |millis: i64| begin + Duration::from_millis(millis.unsigned_abs());
            assert!(backoffs.why("x", after(millis - 1)).is_some(), "{failures}");
            assert_eq!(backoffs.why("x", after(millis + 1)), None, "{failures}");
        }
        backoffs.clear("x");
        assert_eq!(backoffs.why("x", begin), None);
    }
}
