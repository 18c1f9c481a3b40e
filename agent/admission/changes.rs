//! What changed of leases, for those who watch: the last changes in a ring, with tokens that say where a watcher is.

use std::collections::VecDeque;
use std::sync::Arc;

use stoker_core::admission::{Lease, Ledger};

/// Changes that are kept for watchers who fell behind.
const KEPT_MAX: usize = 4096;

/// A watch cannot go on from there: the watcher must begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not one that an agent gave.
    #[error("is not one of ours; pass the watch_token of a list or of a watch, or none")]
    Foreign,
    /// Of an agent that runs no more, or older than what is kept.
    #[error("is too old: list the leases again, and watch from there")]
    TooOld,
}

/// The last changes, oldest first.
#[derive(Debug)]
pub(super) struct Changes {
    /// Tokens of another start say nothing here.
    incarnation: String,
    last: u64,
    kept: VecDeque<Arc<Lease>>,
}

impl Changes {
    pub(super) fn new(incarnation: String) -> Self {
        Self { incarnation, last: 0, kept: VecDeque::new() }
    }

    pub(super) fn push(&mut self, lease: Arc<Lease>) {
        self.last += 1;
        self.kept.push_back(lease);
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
    }

    /// Where a watcher is who has seen all.
    pub(super) fn token(&self) -> String {
        self.token_at(self.last)
    }

    fn token_at(&self, number: u64) -> String {
        format!("{}.{number}", self.incarnation)
    }

    /// What came after `token`, each with its own token.
    pub(super) fn since(&self, token: &str) -> Result<Vec<(Arc<Lease>, String)>, TokenError> {
        let (incarnation, number) = token.split_once('.').ok_or(TokenError::Foreign)?;
        let seen: u64 = number.parse().map_err(|_| TokenError::Foreign)?;
        let first = self.last + 1 - self.kept.len() as u64;
        if incarnation != self.incarnation {
            return Err(TokenError::TooOld);
        }
        if seen > self.last {
            return Err(TokenError::Foreign);
        }
        if seen + 1 < first {
            return Err(TokenError::TooOld);
        }
        let skip = usize::try_from(seen + 1 - first).unwrap_or(usize::MAX);
        let numbered = self.kept.iter().zip(first..).skip(skip);
        Ok(numbered.map(|(lease, number)| (Arc::clone(lease), self.token_at(number))).collect())
    }

    /// The live leases, and where a watch goes on from them.
    pub(super) fn state(&self, ledger: &Ledger) -> (Vec<Arc<Lease>>, String) {
        (ledger.live().cloned().collect(), self.token())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lease(number: u64) -> Arc<Lease> {
        let record = include_str!("../../tests/fixtures/journal/lease.json");
        let mut lease: Lease = serde_json::from_str(record).unwrap();
        lease.id = format!("{number:016}").try_into().unwrap();
        Arc::new(lease)
    }

    #[test]
    fn a_watcher_goes_on_where_it_was_or_is_told_to_begin_anew() {
        let mut changes = Changes::new("a".to_owned());
        let start = changes.token();
        assert_eq!(changes.since(&start).unwrap(), []);
        (1..=3).for_each(|number| changes.push(lease(number)));
        let seen = changes.since(&start).unwrap();
        assert_eq!(seen.iter().map(|(_, token)| token.as_str()).collect::<Vec<_>>(), ["a.1", "a.2", "a.3"]);
        assert_eq!(changes.since("a.2").unwrap(), [(lease(3), "a.3".to_owned())]);
        assert_eq!(changes.since(&changes.token()).unwrap(), []);
        (0..KEPT_MAX as u64).for_each(|number| changes.push(lease(number)));
        assert_eq!(changes.since("a.3").unwrap().len(), KEPT_MAX);
        for (token, why) in [
            ("a.2", TokenError::TooOld),
            ("b.5000", TokenError::TooOld),
            ("a.99999", TokenError::Foreign),
            ("a.18446744073709551615", TokenError::Foreign),
            ("a", TokenError::Foreign),
            ("a.x", TokenError::Foreign),
        ] {
            assert_eq!(changes.since(token), Err(why), "{token}");
        }
    }
}
