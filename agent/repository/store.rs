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
        Self { turn: Arc::default(), waiting: watch::Sender::new(0), known: Mutex::default() }
    }

    /// Waits for the turn.
    pub(super) async fn turn(&self) -> Turn {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _waiter = Waiter(&self.waiting);
        Turn { _guard: Arc::clone(&self.turn).lock_owned().await }
    }

    /// The turn, where nobody has it and nobody waits for it.
    pub(super) fn try_turn(&self) -> Option<Turn> {
        let guard = Arc::clone(&self.turn).try_lock_owned().ok()?;
        Some(Turn { _guard: guard })
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
