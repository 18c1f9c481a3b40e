//! What the operator wants, in two steps: [`file`](self) is the YAML as written (unknown fields refused), [`Config`] is
//! what the rooms get: validated, with defaults, in units. Nothing is touched while a configuration is read.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use stoker_core::quantity::Amounts;
use stoker_core::source::RepositoryUrl;

/// A valid configuration for this node: pools of other nodes are not in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Journal and history; the only thing that is not on a pool.
    pub state: PathBuf,
    /// The machine.
    pub node: Node,
    /// The data filesystems.
    pub pools: Vec<Pool>,
    /// The git repositories.
    pub repositories: Repositories,
    /// Where workspaces are made: the name of a pool.
    pub workspaces: Workspaces,
    /// When the gate shuts.
    pub pressure: Pressure,
    /// Bounds of leases and tickets.
    pub admission: Admission,
    /// Where the agent answers.
    pub listen: Listen,
}

/// The machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The node's name; its host name where none is given.
    pub name: String,
    /// Kept for the control plane and the system (CPU and memory).
    pub reserve: Amounts,
    /// `/proc` and `/sys` are read below it.
    pub host_root: PathBuf,
    /// What must stay free on the root filesystem.
    pub root_floor: Floor,
}

/// A pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Its name, unique.
    pub name: String,
    /// Absolute, without `.` and `..`; no pool lies in another.
    pub path: PathBuf,
    /// Refuse it while it is not a mounted filesystem of its own.
    pub mount_required: bool,
    /// The filesystem that must be there, as `FS_IOC_GETFSUUID` tells.
    pub uuid: Option<[u8; 16]>,
    /// Make the unmounted mount point immutable.
    pub seal: bool,
    /// What must stay free.
    pub floor: Floor,
    /// Made and kept.
    pub directories: Vec<Directory>,
}

/// What must stay free of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// Of its bytes.
    pub bytes: Share,
    /// Of its inodes.
    pub inodes: Share,
}

/// A part of a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// So many.
    Absolute(u64),
    /// So many hundredths of a percent.
    Basis(u32),
}

impl Share {
    /// How much that is of `total`.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Absolute(value) => value,
            Self::Basis(basis) => {
                u64::try_from(u128::from(total) * u128::from(basis) / 10_000).unwrap_or(u64::MAX)
            }
        }
    }
}

/// A declared directory of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Relative to the pool, without `.` and `..`; never below `stoker`, which is the agent's.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// User id; unset: the agent's own.
    pub owner: Option<u32>,
    /// Group id; unset: the agent's own.
    pub group: Option<u32>,
    /// How long its content is kept.
    pub retention: Retention,
    /// The most bytes that it may hold.
    pub limit: Option<u64>,
}

/// How long a thing is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Until its lease ends.
    Scratch,
    /// Least recently used, within its limit.
    Cache,
    /// 14 days unless released.
    Output,
    /// Until removed.
    Mirror,
}

/// The git repositories.
#[derive(Debug, Clone, PartialEq)]
pub struct Repositories {
    /// The name of the pool that holds them.
    pub pool: String,
    /// The most bytes that they may hold.
    pub limit: Option<u64>,
    /// How often declared mirrors ask upstream.
    pub refresh: Duration,
    /// How many fetches run at once.
    pub parallel: usize,
    /// How long one fetch may take.
    pub fetch_within: Duration,
    /// Who may add a repository.
    pub add: Add,
    /// Host patterns for repositories that are added on demand: `github.com`, `*.example.org`, `*`.
    pub allow: Vec<String>,
    /// URL schemes that may be fetched from: `https`, `http`, `ssh`, `git`, `file`.
    pub protocols: Vec<String>,
    /// Filled at start and kept fresh.
    pub mirrors: Vec<Mirror>,
}

/// Who may add a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Add {
    /// Only the declared ones are served.
    Declared,
    /// Callers may add what `allow` and `protocols` let in.
    OnDemand,
}

/// A declared mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Canonical.
    pub url: RepositoryUrl,
    /// Never evicted.
    pub pin: bool,
    /// Who may read it.
    pub trust: String,
}

/// Where workspaces are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspaces {
    /// The name of a pool.
    pub pool: String,
}

/// When the gate shuts. Each pair: enter below the first, leave after `hold` above the second.
#[derive(Debug, Clone, PartialEq)]
pub struct Pressure {
    /// Available memory below which nothing new starts.
    pub memory_floor: Share,
    /// Available memory below which only small builds start.
    pub memory_narrow: Share,
    /// How long a better state must last before it is entered.
    pub hold: Duration,
}

/// Bounds of leases and tickets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The most live leases.
    pub leases_max: usize,
    /// The most tickets.
    pub tickets_max: usize,
    /// What happens at the end of a time budget.
    pub time_budget: TimeBudget,
}

/// What happens at the end of a time budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeBudget {
    /// The build is ended.
    End,
    /// It is reported.
    Report,
}

/// Where the agent answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// A unix socket.
    pub socket: Option<PathBuf>,
    /// gRPC over TCP. Without TLS only on loopback, and only where the configuration says so.
    pub grpc: Option<SocketAddr>,
    /// Metrics, health, page, git.
    pub http: Option<SocketAddr>,
}
