//! How long it takes.

use std::time::{Duration, Instant};

use super::Farm;

/// The value below which this share of them lies: the nearest rank.
pub(crate) fn quantile(all: &mut [Duration], share: f64) -> Duration {
    assert!(!all.is_empty(), "nothing was measured");
    all.sort_unstable();
    let rank = (share * all.len() as f64).ceil() as usize;
    all[rank.clamp(1, all.len()) - 1]
}

impl Farm {
    /// From each pod's making to its gate's going, of those that were made since and whose gate went.
    pub(crate) fn waited(&self, since: Instant) -> Vec<Duration> {
        let lives = self.hands.lives();
        let made = lives.values().filter(|life| life.created >= since);
        made.filter_map(|life| life.ungated.map(|at| at - life.created)).collect()
    }

    /// From the first pod's making, since then, to the last gate's going.
    pub(crate) fn took(&self, since: Instant) -> Duration {
        let lives = self.hands.lives();
        let first = lives.values().map(|life| life.created).filter(|created| *created >= since).min();
        let last = lives.values().filter_map(|life| life.ungated).max();
        last.zip(first).map(|(last, first)| last - first).unwrap_or_default()
    }

    /// Writes to the API server so far, by method and resource.
    pub(crate) fn writes(&self) -> std::collections::BTreeMap<String, usize> {
        let mut all = std::collections::BTreeMap::new();
        for (method, path) in self.api.requests() {
            if method != "GET" {
                let resource = ["pods", "events", "leases"].into_iter().find(|name| path.contains(&format!("/{name}")));
                *all.entry(format!("{method} {}", resource.unwrap_or("other"))).or_default() += 1;
            }
        }
        all
    }
}
