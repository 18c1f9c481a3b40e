//! What the room shows of a repository.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_core::identity::CommitId;
use stoker_core::quantity::Timestamp;
use stoker_core::reason::Reason;
use stoker_core::source::{Origin, RepositoryUrl};
use tokio::sync::watch;

use super::Repositories;
use super::entry::Ask;
use super::evict::Evicted;
use super::progress::Progress;
use super::snapshot::SnapshotPin;
use super::upkeep::LastUpkeep;

/// What a repository is doing, or is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepositoryState {
    /// Known, never filled.
    Empty,
    /// The first fill runs.
    Filling,
    /// It serves.
    Ready,
    /// It serves, and fetches.
    Fetching,
    /// The last fetch failed; the last good snapshot serves.
    Stale,
    /// The store is damaged and is cloned anew; the last good snapshot serves.
    Quarantined,
}

/// One repository, for people and for the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// As the first who named it spelled it; without credentials.
    pub url: RepositoryUrl,
    /// What it does.
    pub state: RepositoryState,
    /// It stands in the configuration, or in a list that stands there.
    pub declared: bool,
    /// Who declared it, in words; empty where somebody added it.
    pub declared_by: String,
    /// The submodules of its HEAD are mirrors too.
    pub submodules: bool,
    /// Never evicted.
    pub pinned: bool,
    /// Who may read it.
    pub trust: String,
    /// Store and snapshots together, each inode once.
    pub disk_bytes: u64,
    /// In the newest snapshot.
    pub objects: u64,
    /// In the newest snapshot.
    pub refs: u64,
    /// The branch that HEAD names, or a commit; empty where nothing is known.
    pub head: String,
    /// When objects last came.
    pub last_fetch_at: Option<Timestamp>,
    /// When upstream is asked next, unless somebody wants it sooner.
    pub next_refresh_at: Option<Timestamp>,
    /// When upstream last answered and we had all that it has.
    pub confirmed_at: Option<Timestamp>,
    /// The newest snapshot's name; empty where there is none.
    pub snapshot: String,
    /// How many snapshots are on disk.
    pub snapshots: usize,
    /// What is wrong, where something is.
    pub reasons: Vec<Reason>,
    /// The fetch that runs.
    pub progress: Option<Progress>,
    /// Requests that were answered without upstream.
    pub hits: u64,
    /// Requests that asked upstream.
    pub misses: u64,
    /// Below the pool's `stoker/repositories`.
    pub folder: String,
    /// Fetches that failed in a row.
    pub failures: u32,
    /// Its store, which forks share; empty where it never fetched.
    pub store: String,
    /// It was filled with all that upstream listed; before that its snapshot may hold what somebody waited for.
    pub filled: bool,
    /// Requests that were answered with something older than they asked for.
    pub stale: u64,
    /// How often each step of mending made it whole since the start: `recheck`, `fetch`, `repair`, `clone`, or `failed`.
    pub heals: BTreeMap<&'static str, u64>,
    /// In the newest snapshot.
    pub packs: usize,
    /// When it was last asked for.
    pub last_used_at: Option<Timestamp>,
    /// When and why it was evicted, where nobody asked for it since.
    pub evicted: Option<Evicted>,
    /// Snapshots that leases or readers hold.
    pub snapshots_in_use: usize,
    /// How many hold them.
    pub holders: usize,
    /// How many other repositories fetch into its store.
    pub shares_store_with: usize,
    /// What upkeep last did to its store.
    pub last_upkeep: Option<LastUpkeep>,
    /// What upkeep had to leave for want of room.
    pub upkeep_skipped: Option<Reason>,
}

/// One commit, and the snapshot that holds it for as long as this value lives.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The commit.
    pub commit: CommitId,
    /// Holds the commit's snapshot on disk.
    pub pin: SnapshotPin,
    /// A URL that any git client can clone.
    pub clone_url: String,
    /// The full name of a ref there, or the commit where no ref is known.
    pub clone_ref: String,
    /// When upstream last confirmed it.
    pub as_of: Timestamp,
    /// Where the answer came from.
    pub origin: Origin,
    /// First line of the commit's message.
    pub subject: String,
    /// No ref of the repository reaches it: only another fork of its network has it, and the caller allowed that.
    pub other_fork: bool,
}

/// What is there of a source, without asking anybody.
#[derive(Debug, Clone)]
pub enum Cached {
    /// No mirror, or one that never filled.
    None,
    /// The mirror, but not this ref or commit.
    Mirror,
    /// The commit; its age is not looked at.
    Commit(SnapshotPin, CommitId),
}

/// A fetch that runs or will; see [`Repositories::refresh`]. Dropping it does not end the fetch.
#[derive(Debug)]
pub struct RefreshHandle {
    pub(super) repositories: Repositories,
    pub(super) url: RepositoryUrl,
    pub(super) progress: watch::Receiver<Progress>,
    /// None where there was nothing to do.
    pub(super) ask: Option<Ask>,
}

impl RefreshHandle {
    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Waits for its end, at most `patience`.
    ///
    /// # Errors
    /// The reason why it failed; `UPSTREAM_TIMEOUT` where it is not over (it goes on).
    pub async fn wait(self, patience: Duration) -> Result<View, Reason> {
        if let Some(ask) = self.ask {
            ask.wait(tokio::time::Instant::now() + patience).await?.result.clone()?;
        }
        self.repositories.get(&self.url).ok_or_else(|| super::unknown(&self.url))
    }
}
