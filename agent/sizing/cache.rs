//! Facts of commits, read once and remembered: a commit never changes. Who asks for one that is being read waits for that
//! reading and begins none of its own.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stoker_core::identity::CommitId;
use stoker_core::reason::{Code, Reason};
use tokio::sync::watch;
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

/// What a reading came to.
type Outcome = Result<Arc<Facts>, Reason>;
type Reading = watch::Receiver<Option<Outcome>>;
/// Of which commit, out of which snapshot: one that is damaged says nothing of another.
type Place = (CommitId, PathBuf);

#[derive(Debug, Default)]
struct Known {
    facts: BTreeMap<CommitId, Arc<Facts>>,
    order: VecDeque<CommitId>,
    /// Those that are being read: one for each place, so no more than the semaphores let in or that wait for them.
    readings: BTreeMap<Place, Reading>,
}

/// How one who asks gets them.
enum Joined {
    Known(Arc<Facts>),
    /// Somebody reads them.
    Reading(Reading),
    /// Nobody did: it is the caller's turn.
    Turn(Reading, Turn),
}

/// The one who reads a commit, and tells the others; gone without a word where its caller is.
struct Turn {
    cache: FactsCache,
    pin: SnapshotPin,
    commit: CommitId,
    told: watch::Sender<Option<Outcome>>,
}

impl Turn {
    /// Blocks on the disk, and on the evaluation of a build spec.
    fn read(self) {
        let outcome = self.cache.read(&self.pin, self.commit);
        self.told.send_replace(Some(outcome));
    }
}

impl Drop for Turn {
    /// After what it found is known: whoever comes now finds that, or begins anew.
    fn drop(&mut self) {
        self.cache.known().readings.remove(&(self.commit, self.pin.path().to_owned()));
    }
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

    /// What keeps build specs from being read, on this node.
    #[must_use]
    pub fn fault(&self) -> Option<Reason> {
        self.nickel.fault()
    }

    /// Reads them where they are not known.
    ///
    /// # Errors
    /// When the commit cannot be read.
    pub async fn of(&self, pin: &SnapshotPin, commit: CommitId) -> Outcome {
        loop {
            let mut reading = match self.join(pin, commit) {
                Joined::Known(facts) => return Ok(facts),
                Joined::Reading(reading) => reading,
                Joined::Turn(reading, turn) => {
                    // Few at a time: a reading may wait long for its spec, on a thread that others need too. It is never
                    // closed.
                    let permit = Arc::clone(&self.foreground).acquire_owned().await;
                    let read = tokio::task::spawn_blocking(move || {
                        turn.read();
                        drop(permit);
                    });
                    // Who comes after it would only do the same.
                    if read.await.is_err_and(|error| error.is_panic()) {
                        let message = "reading it ended early; see the agent's log".to_owned();
                        return Err(Reason::new(Code::RepositoryCorrupt, commit.to_string(), message));
                    }
                    reading
                }
            };
            if let Ok(outcome) = reading.wait_for(Option::is_some).await
                && let Some(outcome) = outcome.clone()
            {
                return outcome;
            }
            if self.cancel.is_cancelled() {
                return Err(Reason::new(Code::RepositoryCorrupt, commit.to_string(), "the agent is stopping"));
            }
            // Whose turn it was went away before it came to its end: somebody else's now.
        }
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
            match self.join(pin, commit) {
                Joined::Known(facts) => return Some(facts),
                Joined::Reading(_) => {}
                Joined::Turn(_, turn) => drop(tokio::task::spawn_blocking(move || {
                    turn.read();
                    drop(permit);
                })),
            }
        }
        None
    }

    /// What is known; else the reading that is under way, and the turn to do it where there was none.
    fn join(&self, pin: &SnapshotPin, commit: CommitId) -> Joined {
        let mut known = self.known();
        if let Some(facts) = known.facts.get(&commit) {
            return Joined::Known(Arc::clone(facts));
        }
        let place = (commit, pin.path().to_owned());
        if let Some(reading) = known.readings.get(&place) {
            return Joined::Reading(reading.clone());
        }
        let (told, reading) = watch::channel(None);
        known.readings.insert(place, reading.clone());
        Joined::Turn(reading, Turn { cache: self.clone(), pin: pin.clone(), commit, told })
    }

    fn read(&self, pin: &SnapshotPin, commit: CommitId) -> Outcome {
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
