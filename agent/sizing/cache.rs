//! Facts of commits, read once and remembered: a commit never changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stoker_core::identity::CommitId;
use stoker_core::reason::{Code, Reason};
use tokio_util::sync::CancellationToken;

use super::{Facts, Nickel};
use crate::repository::{ReadError, Reader, SnapshotPin};

/// Commits that are remembered; the oldest go first.
const COMMITS_MAX: usize = 4096;
/// Files of a commit that are counted.
const FILES_MAX: u64 = 2_000_000;
/// Readings that run at once; further ones that nobody waits for are left out.
const READINGS_MAX: usize = 2;
/// How many are read at a time that somebody waits for.
const FOREGROUND_MAX: usize = 8;

#[derive(Debug, Default)]
struct Known {
    facts: BTreeMap<CommitId, Arc<Facts>>,
    order: VecDeque<CommitId>,
}

/// What commits say of their builds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FactsCache {
    reader: Reader,
    nickel: Nickel,
    known: Arc<Mutex<Known>>,
    background: Arc<tokio::sync::Semaphore>,
    foreground: Arc<tokio::sync::Semaphore>,
    cancel: CancellationToken,
}

impl FactsCache {
    /// Empty; nothing is begun after `cancel`.
    #[must_use]
    pub fn new(reader: Reader, nickel: Nickel, cancel: CancellationToken) -> Self {
        let background = Arc::new(tokio::sync::Semaphore::new(READINGS_MAX));
        let foreground = Arc::new(tokio::sync::Semaphore::new(FOREGROUND_MAX));
        Self { reader, nickel, known: Arc::default(), background, foreground, cancel }
    }

    /// Reads them where they are not known.
    ///
    /// # Errors
    /// When the commit cannot be read.
    pub async fn of(&self, pin: &SnapshotPin, commit: CommitId) -> Result<Arc<Facts>, Reason> {
        let known = || self.known().facts.get(&commit).cloned();
        if let Some(facts) = known() {
            return Ok(facts);
        }
        // Few at a time: a reading may wait long for its spec, on a thread that others need too. It is never closed.
        let _turn = self.foreground.acquire().await;
        if let Some(facts) = known() {
            return Ok(facts);
        }
        let (reader, pin) = (self.clone(), pin.clone());
        let read = tokio::task::spawn_blocking(move || reader.read(&pin, commit)).await;
        read.unwrap_or_else(|error| Err(Reason::new(Code::RepositoryCorrupt, commit.to_string(), error.to_string())))
    }

    /// What is known now. Where nothing is, it is read in the background, for the next time.
    #[must_use]
    pub fn known_or_ask(&self, pin: &SnapshotPin, commit: CommitId) -> Option<Arc<Facts>> {
        if let Some(facts) = self.known().facts.get(&commit) {
            return Some(Arc::clone(facts));
        }
        if !self.cancel.is_cancelled()
            && let Ok(permit) = Arc::clone(&self.background).try_acquire_owned()
        {
            let (reader, pin) = (self.clone(), pin.clone());
            tokio::task::spawn_blocking(move || {
                let _ = reader.read(&pin, commit);
                drop(permit);
            });
        }
        None
    }

    fn read(&self, pin: &SnapshotPin, commit: CommitId) -> Result<Arc<Facts>, Reason> {
        let damaged = |error: ReadError| Reason::new(Code::RepositoryCorrupt, pin.url().key(), error.to_string());
        let found = self.reader.summarise(pin, commit, FILES_MAX).map_err(damaged)?;
        let by_extension = found.by_extension.into_iter();
        let tree = super::Tree {
            root_files: self.reader.root_files(pin, commit).map_err(damaged)?,
            extensions: by_extension.map(|(name, extent)| (name, (extent.files, extent.bytes))).collect(),
            files: found.total.files,
            bytes: found.total.bytes,
        };
        let bound = u64::try_from(super::spec::BYTES_MAX).unwrap_or(u64::MAX);
        let read = |path: &str| match self.reader.blob(pin, commit, path, bound) {
            Ok(content) => content,
            // The parser names the bound: it gets as much as breaks it.
            Err(ReadError::TooLarge { .. }) => Some(vec![b' '; super::spec::BYTES_MAX + 1]),
            Err(_) => None,
        };
        // On a thread of its own kind: nothing else waits for this one.
        let evaluate = |source: &[u8]| tokio::runtime::Handle::current().block_on(self.nickel.evaluate(source));
        let facts = Arc::new(Facts::of(&tree, read, evaluate));
        if facts.is_passing() {
            return Ok(facts);
        }
        let mut known = self.known();
        if known.facts.insert(commit, Arc::clone(&facts)).is_none() {
            known.order.push_back(commit);
        }
        while known.order.len() > COMMITS_MAX {
            if let Some(oldest) = known.order.pop_front() {
                known.facts.remove(&oldest);
            }
        }
        drop(known);
        Ok(facts)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
