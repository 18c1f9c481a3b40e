//! Which kept checkouts go, so that the disk does not fill by them.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use stoker_core::quantity::Timestamp;

use super::{Checkouts, DIRECTORY, lock};
use crate::admission::now;

/// So many evictions are remembered for people.
const REMEMBERED: usize = 16;

/// What is told of kept checkouts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// How many there are.
    pub count: u64,
    /// How many of them are layers over others.
    pub layers: u64,
    /// What they hold on the disk, as their indexes have it.
    pub bytes: u64,
    /// How many went since the agent started, to make room.
    pub evicted: u64,
    /// When the last one went.
    pub last_evicted_at: Option<Timestamp>,
}

/// What went.
#[derive(Debug, Default)]
pub(super) struct Evictions {
    count: u64,
    last: VecDeque<(Timestamp, String)>,
}

impl Checkouts {
    /// Lets go of those that nobody holds, the one not used for longest first: until all together hold at most
    /// `limit_bytes`, and `wanted_bytes` were freed. How many went.
    pub(crate) fn evict(&self, root: &Path, limit_bytes: u64, wanted_bytes: u64) -> usize {
        let place = root.join(DIRECTORY);
        let mut freed = 0_u64;
        let mut gone = 0_usize;
        loop {
            let victim = {
                let mut kept = self.kept();
                let all = kept.values().fold(0_u64, |sum, one| sum.saturating_add(one.record().own_bytes));
                if all <= limit_bytes && freed >= wanted_bytes && kept.len() <= super::KEPT_MAX {
                    break;
                }
                // Held by the map alone: no workspace reads it, and no layer stands on it.
                let free = kept.values().filter(|one| Arc::strong_count(one) == 1);
                let oldest = free.min_by_key(|one| one.record().used_at).map(|one| one.name());
                // Under the lock nobody takes it; and nobody makes it anew before it has left its place.
                oldest.and_then(|name| Some((self.turn(&name).try_lock_owned().ok()?, kept.remove(&name)?)))
            };
            let Some((_turn, victim)) = victim else { break };
            let record = victim.record().clone();
            if let Err(error) = self.remove(&place, &record.name) {
                tracing::warn!(%error, checkout = record.name, "cannot be evicted; it goes at the next start");
                break;
            }
            tracing::info!(checkout = record.name, bytes = record.own_bytes, "a kept checkout was evicted");
            freed = freed.saturating_add(record.own_bytes);
            gone = gone.saturating_add(1);
            let mut evictions = lock(&self.inner.evictions);
            evictions.count = evictions.count.saturating_add(1);
            evictions.last.push_front((now(), record.name));
            evictions.last.truncate(REMEMBERED);
        }
        gone
    }

    /// What is told of them.
    pub(crate) fn view(&self) -> View {
        let evictions = lock(&self.inner.evictions);
        let mut view = View {
            evicted: evictions.count,
            last_evicted_at: evictions.last.front().map(|(at, _)| *at),
            ..View::default()
        };
        drop(evictions);
        for one in self.kept().values() {
            let record = one.record();
            view.count = view.count.saturating_add(1);
            view.layers = view.layers.saturating_add(u64::from(record.base.is_some()));
            view.bytes = view.bytes.saturating_add(record.own_bytes);
        }
        view
    }
}
