//! What is remembered of one repository, so that a restart needs no network: `<folder>/meta`, JSON. The same with what
//! was only seen or asked for since is in `<folder>/seen`, where no power was lost meanwhile.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use stoker_core::identity::CommitId;
use stoker_core::quantity::Timestamp;
use stoker_core::reason::Reason;
use stoker_core::source::RepositoryUrl;

use super::commits::Named;
use super::declare::CONFIGURATION;
use super::disk::{Paths, replace};
use super::evict::Evicted;
use super::listing::Head;
use crate::config::{Mirror, TRUST_DEFAULT};

/// How many pinned pull requests one repository keeps; the ones asked for longest ago go first.
pub(super) const PINS_MAX: usize = 1000;
/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A ref outside of branches and tags, fetched on demand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pin {
    /// As upstream calls it.
    pub(super) name: String,
    pub(super) commit: CommitId,
    /// When upstream last said so.
    pub(super) confirmed_at: Timestamp,
}

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    /// As the first who named it spelled it; without credentials.
    pub(super) url: RepositoryUrl,
    pub(super) trust: String,
    pub(super) pinned: bool,
    pub(super) declared: bool,
    /// What it was declared a fork of.
    #[serde(default)]
    pub(super) fork_of: Option<RepositoryUrl>,
    /// The store that it fetches into, where it did.
    #[serde(default)]
    pub(super) store: Option<String>,
    /// Which store of that name has its refs; see [`super::disk::StorePaths::generation`].
    #[serde(default)]
    pub(super) generation: Option<String>,
    /// Snapshots of lower numbers are of another trust class.
    #[serde(default)]
    pub(super) first_snapshot: u64,
    /// Who declared it, in words; empty where somebody added it.
    #[serde(default)]
    pub(super) declared_by: String,
    /// The submodules of its HEAD are mirrors too.
    #[serde(default)]
    pub(super) submodules: bool,
    /// It was removed, and stands here only for snapshots that something still pins.
    #[serde(default)]
    pub(super) removed: bool,
    #[serde(default)]
    pub(super) head: Option<Head>,
    /// When objects last came.
    #[serde(default)]
    pub(super) last_fetch_at: Option<Timestamp>,
    /// When upstream last listed its refs and we had them all.
    #[serde(default)]
    pub(super) confirmed_at: Option<Timestamp>,
    /// When upstream listed the refs of which the newest snapshot has only those that somebody waited for.
    #[serde(default)]
    pub(super) partial_at: Option<Timestamp>,
    /// In a row.
    #[serde(default)]
    pub(super) failures: u32,
    /// Why the last fetch failed.
    #[serde(default)]
    pub(super) error: Option<Reason>,
    /// Upstream, when it was last asked for its refs, did not have it (any more) or did not let us in.
    #[serde(default)]
    pub(super) denied: bool,
    #[serde(default)]
    pub(super) pins: Vec<Pin>,
    /// Commits that were fetched by their name; the ones asked for longest ago first.
    #[serde(default)]
    pub(super) commits: Vec<Named>,
    /// Requests that were answered without upstream.
    #[serde(default)]
    pub(super) hits: u64,
    /// Requests that asked upstream.
    #[serde(default)]
    pub(super) misses: u64,
    /// Requests that were answered with something older than they asked for.
    #[serde(default)]
    pub(super) stale: u64,
    /// When it was last asked for.
    #[serde(default)]
    pub(super) last_used_at: Option<Timestamp>,
    /// When it was filled for the first time, or again after an eviction.
    #[serde(default)]
    pub(super) filled_at: Option<Timestamp>,
    /// How long that took.
    #[serde(default)]
    pub(super) fill_millis: u64,
    /// It was evicted, and nobody asked for it since.
    #[serde(default)]
    pub(super) evicted: Option<Evicted>,
}

impl Meta {
    pub(super) fn new(url: RepositoryUrl, trust: String, pinned: bool, declared: bool) -> Self {
        let trust = if trust.is_empty() { TRUST_DEFAULT.to_owned() } else { trust };
        Self {
            url,
            trust,
            pinned,
            declared,
            fork_of: None,
            store: None,
            generation: None,
            first_snapshot: 0,
            declared_by: if declared { CONFIGURATION.to_owned() } else { String::new() },
            submodules: false,
            removed: false,
            head: None,
            last_fetch_at: None,
            confirmed_at: None,
            partial_at: None,
            failures: 0,
            error: None,
            denied: false,
            pins: Vec::new(),
            commits: Vec::new(),
            hits: 0,
            misses: 0,
            stale: 0,
            last_used_at: None,
            filled_at: None,
            fill_millis: 0,
            evicted: None,
        }
    }

    /// As an entry of the configuration has it.
    pub(super) fn declared(mirror: &Mirror) -> Self {
        let meta = Self::new(mirror.url.clone(), mirror.trust.clone(), mirror.pin, true);
        Self { fork_of: mirror.fork_of.clone(), submodules: mirror.submodules, ..meta }
    }

    /// The newest that is whole.
    pub(super) fn read(paths: &Paths) -> io::Result<Self> {
        Self::read_file(&paths.seen()).or_else(|_| Self::read_file(&paths.meta()))
    }

    fn read_file(file: &Path) -> io::Result<Self> {
        let bytes = std::fs::metadata(file)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("{} has {bytes} bytes", file.display())));
        }
        let mut meta: Self = serde_json::from_slice(&std::fs::read(file)?).map_err(io::Error::other)?;
        if meta.trust.is_empty() {
            TRUST_DEFAULT.clone_into(&mut meta.trust);
        }
        Ok(meta)
    }

    /// `durable`: it survives a loss of power; not worth it for a mere confirmation. That goes to a file of its own, for
    /// an unsynced one in the place of `meta` could be neither the old nor the new one after such a loss, and with what is
    /// known of it the repository would go.
    pub(super) fn write(&self, paths: &Paths, durable: bool) -> io::Result<()> {
        let content = serde_json::to_vec(self).map_err(io::Error::other)?;
        if !durable {
            return replace(&paths.seen(), &content, false);
        }
        // First: what comes after it is on the disk no sooner, and an older one must not stand beside a newer.
        match std::fs::remove_file(paths.seen()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        replace(&paths.meta(), &content, true)
    }

    pub(super) fn pin(&self, name: &str) -> Option<&Pin> {
        self.pins.iter().find(|pin| pin.name == name)
    }

    /// Puts the pin last, and gives those that are too many.
    pub(super) fn set_pin(&mut self, pin: Pin) -> Vec<Pin> {
        self.pins.retain(|other| other.name != pin.name);
        self.pins.push(pin);
        let surplus = self.pins.len().saturating_sub(PINS_MAX);
        self.pins.drain(..surplus).collect()
    }
}
