//! Lines of the audit log about callers that were not let in, and how many there are.

use std::time::Instant;

use super::{Access, Denied, Peer, lock};
use crate::config::access::Rate;

/// The most bytes of what a line is about: callers name it.
const SUBJECT_BYTES_MAX: usize = 256;
/// How often it is told that somebody was not looked at: a line for each call would be what the limit is against.
const LINES: Rate = Rate { per_second: 1, burst: 1 };

/// What a line is about, no longer than a line should be.
#[must_use]
pub fn cut(mut subject: String) -> String {
    subject.truncate(subject.floor_char_boundary(SUBJECT_BYTES_MAX));
    subject
}

impl Access {
    /// Whether what was refused has its line now: credentials that were looked at as often as calls are, others once a
    /// second for each key.
    #[must_use]
    pub fn tells(&self, denied: &Denied, key: &str) -> bool {
        let (word, rate) = match denied {
            Denied::Unknown(_) | Denied::Forbidden(_) => ("seen", self.inner.configured.borrow().access.rate),
            Denied::TooOften(..) | Denied::Unchecked(_) => ("unseen", LINES),
        };
        lock(&self.inner.limits).tell(format!("{word} {key}"), rate, Instant::now())
    }

    /// Tells of credentials that did not count; `on` is what was asked for.
    pub fn tell_refused(&self, peer: &Peer, method: &str, on: &str, denied: &Denied) {
        if !self.tells(denied, &peer.key()) {
            return;
        }
        let (who, reason, on) = (peer.name(), denied.reason(), cut(on.to_owned()));
        let outcome = reason.code.word();
        tracing::info!(target: "audit", who, way = "none", method, on, outcome, why = reason.message, "audit");
    }
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_subject_is_cut_between_characters() {
        assert_eq!(cut("request b-17".to_owned()), "request b-17");
        let long = cut(format!("a{}", "ü".repeat(300)));
        assert!(long.len() == 255 && long.ends_with('ü'), "{long}");
    }
}
