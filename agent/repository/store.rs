//! A store: the object store that fetches of one network's repositories write to, and whose turn it is.
//!
//! Forks of one repository, of one trust class, share a store under refs of their own ([`super::fetch`]). Fetch, upkeep
//! and publication of all of them are one after the other: whoever has the [`Turn`] is the one writer. Turns are given
//! in the order of asking; upkeep looks at [`Store::waiting`] and gives way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedMutexGuard, watch};

use stoker_core::identity::Component;
use stoker_core::source::RepositoryUrl;

use super::lock;
use super::upkeep::Known;

/// One store. What is in it is on disk; see [`super::disk::StorePaths`].
#[derive(Debug)]
pub(super) struct Store {
    turn: Arc<tokio::sync::Mutex<()>>,
    waiting: watch::Sender<usize>,
    pub(super) known: Mutex<Known>,
    suspicion: Mutex<Option<Suspicion>>,
    /// What the last mending did, in words.
    mended: Mutex<Option<String>>,
}

/// Why a store may be damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspicion {
    /// What was seen.
    pub(super) why: String,
    /// Only reading every object tells whether it is whole.
    pub(super) full: bool,
}

/// The right to write to a store, for as long as it lives.
#[derive(Debug)]
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

/// One who waits for the turn.
struct Waiter<'a>(&'a watch::Sender<usize>);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

impl Store {
    fn new() -> Self {
        Self {
            turn: Arc::default(),
            waiting: watch::Sender::new(0),
            known: Mutex::default(),
            suspicion: Mutex::default(),
            mended: Mutex::default(),
        }
    }

    /// The turn, where it is free and nobody waits for it.
    pub(super) fn try_turn(&self) -> Option<Turn> {
        let free = *self.waiting.borrow() == 0;
        let guard = if free { Arc::clone(&self.turn).try_lock_owned().ok() } else { None };
        guard.map(|guard| Turn { _guard: guard })
    }

    /// It may be damaged: whoever has the turn next mends it. A suspicion of what only a full look shows stays one.
    pub(super) fn suspect(&self, suspicion: Suspicion) {
        let mut held = lock(&self.suspicion);
        let full = suspicion.full || held.as_ref().is_some_and(|held| held.full);
        *held = Some(Suspicion { full, ..suspicion });
    }

    /// Why it may be damaged, where it may be.
    pub(super) fn suspicion(&self) -> Option<Suspicion> {
        lock(&self.suspicion).clone()
    }

    /// It is whole.
    pub(super) fn trust_again(&self, mended: String) {
        *lock(&self.suspicion) = None;
        *lock(&self.mended) = Some(mended);
    }

    /// What the last mending did; asked once.
    pub(super) fn take_mended(&self) -> Option<String> {
        lock(&self.mended).take()
    }

    /// Waits for the turn.
    pub(super) async fn turn(&self) -> Turn {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _waiter = Waiter(&self.waiting);
        Turn { _guard: Arc::clone(&self.turn).lock_owned().await }
    }

    /// How many wait for the turn.
    pub(super) fn waiting(&self) -> watch::Receiver<usize> {
        self.waiting.subscribe()
    }
}

/// The name of the store that begins with this repository.
pub(super) fn name_of(trust: &str, url: &RepositoryUrl) -> String {
    Component::of(&[trust, url.key()]).as_str().to_owned()
}

/// All stores that somebody asked for.
#[derive(Debug, Default)]
pub(super) struct Stores {
    by_name: Mutex<BTreeMap<String, Arc<Store>>>,
}

impl Stores {
    /// The store of this name.
    pub(super) fn get(&self, name: &str) -> Arc<Store> {
        let mut stores = lock(&self.by_name);
        let store = stores.entry(name.to_owned()).or_insert_with(|| Arc::new(Store::new()));
        Arc::clone(store)
    }
}
