//! Upkeep of stores, eviction, and the read-only path: as written, and as validated.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{Bytes, Time};

/// Repacks, bitmaps and commit-graphs, while no fetch waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UpkeepSection {
    /// How often each store is looked at; one that needs nothing is left alone: a time from 1s to 168h.
    pub every: Time,
    /// How often a store that changed is repacked in full, where the disk has room for a second copy: a time from 1s to
    /// 8760h.
    pub full_every: Time,
    /// How long objects stay that no ref reaches any more, counted from the full repack that finds them so: a time up
    /// to 8760h; 0s drops them at once. Snapshots keep theirs in any case.
    pub grace: Time,
    /// Memory for one repack, in bytes with a unit: 64MiB to 1TiB. Repositories with large files take more, slowly.
    pub memory: Bytes,
    /// Threads of one repack: 1 to 64.
    pub threads: u64,
}

impl Default for UpkeepSection {
    fn default() -> Self {
        Self {
            every: "10m".into(),
            full_every: "168h".into(),
            grace: "336h".into(),
            memory: "512MiB".into(),
            threads: 1,
        }
    }
}

/// A read-only folder with one bare repository a project, for `git clone --reference`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathsSection {
    /// The folder: a path relative to the pool of the repositories, never below "stoker". In it are
    /// `<host>/<owner>/<name>` always, and `<name>` where no other repository has that name.
    pub directory: String,
    /// How long objects stay there that went out of use, so that what was cloned through it stays whole: a time up to
    /// 8760h. Eviction does not shorten it.
    #[serde(default = "default_grace")]
    pub grace: Time,
    /// The trust classes whose repositories are shown: everybody who can read the folder can read them.
    #[serde(default = "default_trust")]
    pub trust: Vec<String>,
}

fn default_grace() -> Time {
    "336h".into()
}

fn default_trust() -> Vec<String> {
    vec![super::TRUST_DEFAULT.to_owned()]
}

/// Upkeep of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upkeep {
    /// How often each store is looked at.
    pub every: Duration,
    /// How often a store that changed is repacked in full.
    pub full_every: Duration,
    /// How long unreachable objects stay.
    pub grace: Duration,
    /// Memory for one repack.
    pub memory_bytes: u64,
    /// Threads of one repack.
    pub threads: usize,
}

impl Default for Upkeep {
    /// What the file's defaults say; a test holds the two together.
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            every: Duration::from_secs(600),
            full_every: 168 * hour,
            grace: 336 * hour,
            memory_bytes: 512 << 20,
            threads: 1,
        }
    }
}

/// The read-only folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Relative to the pool.
    pub directory: PathBuf,
    /// How long objects stay that went out of use.
    pub grace: Duration,
    /// The classes that are shown.
    pub trust: Vec<String>,
}
