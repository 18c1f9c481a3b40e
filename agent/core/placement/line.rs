//! Whose turn it is: tenants in turn; of one tenant the higher priority first, then who waits longer.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use core::cmp::Reverse;

use crate::quantity::Timestamp;

/// A pod's place among those of its tenant.
type Key = (Reverse<i32>, Timestamp, String);

#[derive(Debug, Default)]
struct Tenant {
    /// How many turns it has had, less those that it let pass while nobody of it waited.
    turns: u64,
    waiting: BTreeSet<Key>,
}

/// All who wait.
#[derive(Debug, Default)]
pub struct Line {
    tenants: BTreeMap<String, Tenant>,
    /// Of whom each is, and its key.
    of: BTreeMap<String, (String, Key)>,
    /// The turns that the one had who was served last, at most: who comes anew or is served after long has no fewer.
    turn: u64,
}

impl Line {
    /// One waits, from now on or still.
    pub fn join(&mut self, uid: &str, tenant: &str, priority: i32, since: Timestamp) {
        let key = (Reverse(priority), since, uid.to_string());
        if self.of.get(uid).is_some_and(|(of, known)| of == tenant && *known == key) {
            return;
        }
        self.leave(uid);
        // Who comes anew does not have all the turns that it did not wait for.
        let line = self.tenants.entry(tenant.to_string());
        line.or_insert_with(|| Tenant { turns: self.turn, ..Tenant::default() }).waiting.insert(key.clone());
        self.of.insert(uid.to_string(), (tenant.to_string(), key));
    }

    /// One waits no more.
    pub fn leave(&mut self, uid: &str) {
        let Some((tenant, key)) = self.of.remove(uid) else { return };
        if let Some(line) = self.tenants.get_mut(&tenant) {
            line.waiting.remove(&key);
            if line.waiting.is_empty() {
                self.tenants.remove(&tenant);
            }
        }
    }

    /// One got what it waited for: its tenant had a turn. Turns that it could not use before are not kept for it.
    pub fn served(&mut self, uid: &str, tenant: &str) {
        if let Some(line) = self.tenants.get_mut(tenant) {
            self.turn = self.turn.max(line.turns);
            line.turns = line.turns.saturating_add(1).max(self.turn);
        }
        self.leave(uid);
    }

    /// The last of a tenant.
    #[must_use]
    pub fn last_of(&self, tenant: &str) -> Option<&str> {
        let (.., uid) = self.tenants.get(tenant)?.waiting.last()?;
        Some(uid)
    }

    /// Of how many tenants pods wait.
    #[must_use]
    pub fn tenants(&self) -> usize {
        self.tenants.len()
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// All, in the order in which they are to be asked for.
    pub fn in_turn(&self) -> impl Iterator<Item = &str> {
        // The n-th of a tenant comes when it has had n turns more.
        let mut next: BTreeSet<(u64, &str)> = BTreeSet::new();
        let mut lines: BTreeMap<&str, _> = BTreeMap::new();
        for (name, tenant) in &self.tenants {
            next.insert((tenant.turns, name));
            lines.insert(name, tenant.waiting.iter());
        }
        core::iter::from_fn(move || {
            loop {
                let (turns, name) = next.pop_first()?;
                if let Some((.., uid)) = lines.get_mut(name).and_then(Iterator::next) {
                    next.insert((turns.saturating_add(1), name));
                    return Some(uid.as_str());
                }
            }
        })
    }
}
