//! Which store a repository fetches into: its own, or the one of the network of forks that it belongs to.
//!
//! A fork is declared, or found out: when most of what an upstream advertises is in a store of the same trust class
//! already, the two are one network. Two that are filled for the first time at once would not see each other, so a fill
//! claims what it is about to bring, and another one of the same network waits for it and looks again. Nothing is ever
//! shared across trust classes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use stoker_core::identity::CommitId;
use stoker_core::reason::Reason;
use stoker_core::source::RepositoryUrl;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::entry::{Entry, stopping};
use super::fetch::blocking;
use super::snapshot::SnapshotPin;
use super::store::name_of;
use super::{Shared, lock};

/// How many tips of an upstream are looked for.
pub(super) const TIPS_MAX: usize = 64;
/// How many of them are looked for before a store of strangers is given up.
const TIPS_FIRST: usize = 8;
/// How long a chain of declared forks may be.
const CHAIN_MAX: usize = 8;

/// What fills are about to bring.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// One decides at a time.
    deciding: tokio::sync::Mutex<()>,
    held: Mutex<Vec<Arc<Held>>>,
}

#[derive(Debug)]
struct Held {
    trust: String,
    tips: BTreeSet<CommitId>,
    over: CancellationToken,
}

/// A first fill that others of its network wait for, until this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    _over: DropGuard,
}

impl Claims {
    /// One that brings at least half of the same.
    fn like(&self, trust: &str, tips: &[CommitId]) -> Option<CancellationToken> {
        let mut held = lock(&self.held);
        held.retain(|claim| !claim.over.is_cancelled());
        let same = |claim: &&Arc<Held>| {
            claim.trust == trust && is_most(tips.iter().filter(|tip| claim.tips.contains(tip)).count(), tips.len())
        };
        held.iter().find(same).map(|claim| claim.over.clone())
    }

    fn claim(&self, trust: &str, tips: &[CommitId]) -> Claim {
        let over = CancellationToken::new();
        let claim = Held { trust: trust.to_owned(), tips: tips.iter().copied().collect(), over: over.clone() };
        lock(&self.held).push(Arc::new(claim));
        Claim { _over: over.drop_guard() }
    }
}

/// Whether so many of them are enough to be of one network: half, as where a fork has one branch of its own beside the
/// one that it began with.
const fn is_most(count: usize, of: usize) -> bool {
    count > 0 && count * 2 >= of
}

/// The store's name, and where the repository begins a new network, the claim on it.
pub(super) async fn choose(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    tips: &[CommitId],
) -> Result<(String, Option<Claim>), Reason> {
    let meta = entry.state().meta.clone();
    if let Some(store) = meta.store {
        return Ok((store, None));
    }
    if let Some(root) = &meta.fork_of {
        return Ok((declared(shared, &meta.trust, root), None));
    }
    loop {
        let deciding = shared.claims.deciding.lock().await;
        if let Some(found) = find(shared, entry, &meta.trust, tips).await? {
            tracing::info!(
                repository = entry.url.key(),
                store = found,
                "most of it is in a store already: it is shared"
            );
            return Ok((found, None));
        }
        let Some(other) = shared.claims.like(&meta.trust, tips) else {
            return Ok((name_of(&meta.trust, &entry.url), Some(shared.claims.claim(&meta.trust, tips))));
        };
        drop(deciding);
        if entry.stop.run_until_cancelled(other.cancelled()).await.is_none() {
            return Err(stopping(&entry.url));
        }
    }
}

/// The store of a declared fork: that of what it is a fork of, whether that was filled yet or not.
fn declared(shared: &Shared, trust: &str, root: &RepositoryUrl) -> String {
    let mut root = root.clone();
    for _ in 0..CHAIN_MAX {
        let meta = match shared.get(&root) {
            Some(entry) => entry.state().meta.clone(),
            None => break,
        };
        if meta.trust != trust {
            break;
        }
        match (meta.store, meta.fork_of) {
            (Some(store), _) => return store,
            (None, Some(further)) => root = further,
            (None, None) => break,
        }
    }
    name_of(trust, &root)
}

/// A store of the class that has most of these tips.
async fn find(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    trust: &str,
    tips: &[CommitId],
) -> Result<Option<String>, Reason> {
    let mut stores: BTreeMap<String, SnapshotPin> = BTreeMap::new();
    for other in shared.all() {
        let state = other.state();
        if Arc::ptr_eq(&other, entry) || state.meta.trust != trust || state.meta.removed {
            continue;
        }
        if let (Some(store), Some(pin)) = (&state.meta.store, &state.current) {
            stores.entry(store.clone()).or_insert_with(|| pin.clone());
        }
    }
    let (reader, tips) = (shared.reader.clone(), tips.to_vec());
    blocking(entry.url.key(), move || {
        let first: Vec<CommitId> = tips.iter().copied().step_by(tips.len().div_ceil(TIPS_FIRST).max(1)).collect();
        // One that cannot be read is no home for another.
        let holds = |pin: &SnapshotPin, tips: &[CommitId]| reader.count(pin, tips).unwrap_or(0);
        let home = |(_, pin): &(String, SnapshotPin)| holds(pin, &first) > 0 && is_most(holds(pin, &tips), tips.len());
        stores.into_iter().find(home).map(|(store, _)| store)
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ids(range: std::ops::Range<u32>) -> Vec<CommitId> {
        range.map(|number| format!("{number:040x}").parse().unwrap()).collect()
    }

    #[test]
    fn a_claim_holds_for_its_class_and_its_life() {
        let claims = Claims::default();
        let claim = claims.claim("public", &ids(0..10));
        assert!(claims.like("public", &ids(5..15)).is_some());
        assert!(claims.like("public", &ids(6..16)).is_none(), "less than half");
        assert!(claims.like("private", &ids(0..10)).is_none());
        assert!(claims.like("public", &[]).is_none());
        let other = claims.like("public", &ids(0..10)).unwrap();
        drop(claim);
        assert!(other.is_cancelled());
        assert!(claims.like("public", &ids(0..10)).is_none());
    }
}
