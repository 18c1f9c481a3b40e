//! A map whose entries hold until a moment, and that never grows beyond a bound.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

use tokio::time::Instant;

/// How many entries one has.
const ENTRIES_MAX: usize = 4096;

/// Values by key, each until a moment of its own.
pub(super) struct ForAWhile<K, V>(HashMap<K, (V, Instant)>);

impl<K, V> Default for ForAWhile<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash, V> ForAWhile<K, V> {
    /// What holds now.
    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q, now: Instant) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get_until(key, now).map(|(value, _)| value)
    }

    /// What holds now, and until when.
    pub(super) fn get_until<Q: Eq + Hash + ?Sized>(&self, key: &Q, now: Instant) -> Option<(&V, Instant)>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).filter(|(_, until)| *until > now).map(|(value, until)| (value, *until))
    }

    /// What held last, and may be over.
    pub(super) fn last<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map(|(value, _)| value)
    }

    /// Where it is full, what is over goes, or else what is over next.
    pub(super) fn insert(&mut self, key: K, value: V, until: Instant) {
        if self.0.len() >= ENTRIES_MAX && !self.0.contains_key(&key) {
            let now = Instant::now();
            self.0.retain(|_, (_, until)| *until > now);
            let next = self.0.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| key.clone());
            if let Some(next) = next.filter(|_| self.0.len() >= ENTRIES_MAX) {
                self.0.remove(&next);
            }
        }
        self.0.insert(key, (value, until));
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_over_is_not_told_and_it_never_grows_beyond_its_bound() {
        let (mut map, now) = (ForAWhile::default(), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        map.insert("a".to_owned(), 1, later(5));
        assert_eq!(map.get("a", later(4)), Some(&1));
        assert_eq!((map.get("a", later(5)), map.last("a")), (None, Some(&1)));
        for number in 0..2 * ENTRIES_MAX {
            map.insert(number.to_string(), 2, later(100 + number as u64));
        }
        assert_eq!(map.0.len(), ENTRIES_MAX);
        assert_eq!(map.last("a"), None, "the first to be over went first");
    }
}
