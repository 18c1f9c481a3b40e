//! What the operator wants, in two steps: [`mod@file`] is the YAML as written (unknown fields refused), [`Config`] is
//! what the rooms get: validated, with defaults, in units. Nothing is touched while a configuration is read.
//!
//! In comes a path ([`load`]) or a text ([`read`]) and the [`NodeIdentity`] that decides which pools are here. Out goes
//! a [`Config`], or every problem at once ([`ConfigErrors`]), each with its field, its line and a remedy. `stoker run`
//! has no file: [`Config::for_run`] makes its configuration. [`reload::take_over`] tells what of a new one can be applied at
//! once.
//!
//! The way of a text: `document` reads YAML into a tree that knows its lines, `shape` holds the tree against the
//! schema, `file` takes what is left into structs with defaults, `validate` judges the values.

pub mod access;
mod document;
pub mod file;
pub mod git;
pub mod keeping;
pub mod kubernetes;
mod problem;
pub mod reload;
pub mod run;
pub mod sensing;
pub mod serve;
mod shape;
pub mod sizing;
pub mod units;
mod upkeep;
mod validate;
pub mod volume;
pub mod workspaces;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stoker_core::admission::Tenants;
use stoker_core::quantity::Amounts;
use stoker_core::source::{RepositoryUrl, SourceRef};

pub use access::Access;
pub use document::FILE_BYTES_MAX;
pub use file::File;
pub use keeping::Keeping;
pub use kubernetes::Kubernetes;
pub use problem::{ConfigErrors, PROBLEMS_MAX, Problem};
use problem::{Fault, Place, Problems};
pub use sensing::{ControlPlane, WatchedFilesystem};
pub use serve::Serve;
pub use sizing::{NICKEL_PROGRAM, NickelLimits, Sizing};
pub use upkeep::{Paths, PathsSection, Upkeep, UpkeepSection};
pub use volume::{Volume, VolumeSection};
pub use workspaces::{Workspaces, WorkspacesSection};

/// The configuration that holds now.
pub type Configured = tokio::sync::watch::Receiver<Arc<Config>>;

/// The trust class of what names none.
pub const TRUST_DEFAULT: &str = "default";

/// The most bytes of a socket's path: `sun_path` of unix(7) has 108, the last of them 0.
pub const SOCKET_BYTES_MAX: usize = 107;

/// Which node this is: decides which pools are here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Its name; a name in the file comes first.
    pub name: String,
    /// Its labels; none outside Kubernetes.
    pub labels: BTreeMap<String, String>,
}

impl NodeIdentity {
    /// The node that this process runs on. In a pod the host's name is not the node's: there `STOKER_NODE` tells it.
    #[must_use]
    pub fn of_this_node() -> Self {
        let given = std::env::var("STOKER_NODE").ok().filter(|name| !name.is_empty());
        let host = || nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self { name: given.unwrap_or_else(host), labels: BTreeMap::new() }
    }
}

impl File {
    /// Whether where a pool is depends on labels of the node.
    #[must_use]
    pub fn asks_for_labels(&self) -> bool {
        self.pools.iter().any(|pool| pool.nodes.as_ref().is_some_and(|nodes| !nodes.labels.is_empty()))
    }
}

/// Reads the file at `path` and validates it for this node. Reads nothing else, touches nothing.
///
/// # Errors
///
/// The file cannot be read, or something in it is wrong: all that is.
pub fn load(path: &Path, node: &NodeIdentity) -> Result<(File, Config), ConfigErrors> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    // One byte more than the bound shows that there is more.
    let bound = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let opened = std::fs::File::open(path);
    if let Err(error) = opened.and_then(|file| file.take(bound).read_to_end(&mut bytes)) {
        let remedy = "name a file that the agent may read";
        return Err(ConfigErrors::whole(&name, Fault::new(format!("the file cannot be read: {error}"), remedy)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => read(&text, &name, node),
        Err(error) if error.as_bytes().len() > FILE_BYTES_MAX => {
            let message = format!("the file has more than {FILE_BYTES_MAX} bytes");
            Err(ConfigErrors::whole(&name, Fault::new(message, "remove what is not configuration")))
        }
        Err(_) => Err(ConfigErrors::whole(&name, Fault::new("the file is not UTF-8", "save it as UTF-8"))),
    }
}

/// Reads a configuration from `text`; `source_name` is what problems call it.
///
/// # Errors
///
/// Something in it is wrong: all that is.
pub fn read(text: &str, source_name: &str, node: &NodeIdentity) -> Result<(File, Config), ConfigErrors> {
    let tree = document::parse(text, source_name)?;
    let root = Place::root(&tree);
    let mut problems = Problems::default();
    let shaped = shape::check(&tree, &file::schema(), &root, &mut problems);
    let mut file: File = match serde_json::from_value(shaped) {
        Ok(file) => file,
        // What has the shape of the schema has the shape of the structs; should they ever differ, it is a refusal.
        Err(error) => {
            problems.add(&root, Fault::new(error.to_string(), "compare it with `stoker config schema`"));
            return Err(problems.into_errors(source_name));
        }
    };
    let config = validate::validate(&file, node, &root, &mut problems);
    if !problems.is_empty() {
        return Err(problems.into_errors(source_name));
    }
    // The two defaults that depend on the rest of the file; with them the file says all that holds.
    file.repositories.pool.get_or_insert_with(|| config.repositories.pool.clone());
    file.workspaces.pool.get_or_insert_with(|| config.workspaces.pool.clone());
    Ok((file, config))
}

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
    /// How long outputs, caches and what nobody knows are kept.
    pub keeping: Keeping,
    /// When the gate shuts.
    pub pressure: Pressure,
    /// Bounds of leases and tickets.
    pub admission: Admission,
    /// How big builds are.
    pub sizing: Sizing,
    /// The cluster that the node belongs to.
    pub kubernetes: Kubernetes,
    /// Where the agent answers.
    pub listen: Listen,
    /// Sources as volumes of pods; unset: there is no driver.
    pub volume: Option<Volume>,
    /// Who may ask what.
    pub access: Access,
}

/// The machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The node's name; its host name where none is given.
    pub name: String,
    /// Kept for the control plane and the system (CPU and memory).
    pub reserve: Amounts,
    /// What others use of the CPU holds builds back. On a machine where people work too it does not: they share it.
    pub others_cpu_counts: bool,
    /// `/proc` and `/sys` are read below it.
    pub host_root: PathBuf,
    /// What must stay free on the root filesystem.
    pub root_floor: Floor,
    /// Further filesystems of the node.
    pub filesystems: Vec<WatchedFilesystem>,
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

impl Default for Share {
    /// Nothing.
    fn default() -> Self {
        Self::Absolute(0)
    }
}

impl Share {
    /// How much that is of `total`.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Absolute(value) => value,
            Self::Basis(basis) => u64::try_from(u128::from(total) * u128::from(basis) / 10_000).unwrap_or(u64::MAX),
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
    /// Until the leases have ended under which it came.
    Scratch,
    /// Others keep it within its limit.
    Cache,
    /// For a time after it came.
    Output,
    /// Until removed.
    Mirror,
}

/// The git repositories.
#[derive(Debug, Clone, PartialEq)]
pub struct Repositories {
    /// The name of the pool that holds them. Where no pool of this node has it, this node keeps no repositories.
    pub pool: String,
    /// The most bytes that they may hold.
    pub limit: Option<u64>,
    /// How often declared mirrors ask upstream.
    pub refresh: Duration,
    /// How many fetches run at once.
    pub parallel: usize,
    /// How many of them from one host.
    pub parallel_per_host: usize,
    /// How long one fetch may take.
    pub fetch_within: Duration,
    /// How often each repository is looked through for damage.
    pub check: Duration,
    /// Directories of seeds.
    pub seeds: Vec<PathBuf>,
    /// Upkeep of stores.
    pub upkeep: Upkeep,
    /// Nothing that was filled more recently is evicted.
    pub min_age: Duration,
    /// A read-only folder for those who take paths.
    pub paths: Option<Paths>,
    /// Who may add a repository.
    pub add: Add,
    /// Host patterns for repositories that are added on demand: `github.com`, `*.example.org`, `*`.
    pub allow: Vec<String>,
    /// URL schemes that may be fetched from: `https`, `http`, `ssh`, `git`, `file`.
    pub protocols: Vec<String>,
    /// What git children may do.
    pub git: git::GitChild,
    /// Who we are to upstreams.
    pub credentials: Vec<git::Credential>,
    /// Who is asked where a pull request comes from.
    pub forges: Vec<git::Forge>,
    /// Filled at start and kept fresh.
    pub mirrors: Vec<Mirror>,
    /// Lists of further mirrors.
    pub manifests: Vec<Manifest>,
    /// Bounds of submodules.
    pub submodules: Submodules,
    /// Bounds of large files.
    pub lfs: Lfs,
    /// Git over HTTP.
    pub serve: Serve,
}

impl Repositories {
    /// The mirrors, and the repositories of the manifests where those are not among them.
    pub fn declared(&self) -> impl Iterator<Item = Mirror> + '_ {
        let manifests = self.manifests.iter().filter_map(|manifest| match &manifest.from {
            ManifestFrom::Repository { url, .. } => {
                let (pin, trust) = (manifest.pin, manifest.trust.clone());
                Some(Mirror { url: url.clone(), pin, trust, fork_of: None, submodules: false, lfs: false })
            }
            ManifestFrom::File { .. } => None,
        });
        let mut seen = std::collections::BTreeSet::new();
        self.mirrors.iter().cloned().chain(manifests).filter(move |mirror| seen.insert(mirror.url.clone()))
    }
}

/// A manifest of the `repo` tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Where it lies.
    pub from: ManifestFrom,
    /// The groups of projects that are wanted; empty: the tool's default.
    pub groups: Vec<String>,
    /// Its projects are never evicted.
    pub pin: bool,
    /// Who may read its projects.
    pub trust: String,
}

/// Where a manifest lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestFrom {
    /// In a repository, which is a declared mirror.
    Repository {
        /// The repository.
        url: RepositoryUrl,
        /// Which state of it; never a pull request.
        reference: SourceRef,
        /// The file there.
        file: String,
    },
    /// On this machine.
    File {
        /// Absolute.
        path: PathBuf,
        /// Where its repository would be.
        base: RepositoryUrl,
    },
}

impl std::fmt::Display for Manifest {
    /// `manifest https://host/path`, with ref and file where they are not the usual ones.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.from {
            ManifestFrom::File { path, .. } => write!(f, "manifest {}", path.display()),
            ManifestFrom::Repository { url, reference, file } => {
                write!(f, "manifest {url}")?;
                if *reference != SourceRef::Head {
                    write!(f, " {reference}")?;
                }
                if file != MANIFEST_FILE { write!(f, " {file}") } else { Ok(()) }
            }
        }
    }
}

/// What a manifest is called where nobody says otherwise.
pub const MANIFEST_FILE: &str = "default.xml";

/// Bounds of submodules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submodules {
    /// How deep they may be nested.
    pub depth: usize,
    /// How many one repository may have, with those of its submodules.
    pub repositories: usize,
}

/// Bounds of large files (git-lfs).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lfs {
    /// The most bytes that one of them may have.
    pub object_limit: u64,
    /// The most bytes that all of them may hold.
    pub limit: Option<u64>,
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
    /// A repository of the same network: they share a store.
    pub fork_of: Option<RepositoryUrl>,
    /// The submodules of its HEAD are mirrors too.
    pub submodules: bool,
    /// With the large files of its HEAD, and of its workspaces.
    pub lfs: bool,
}

/// When the gate shuts. Each pair: enter below the first, leave after `hold` above the second.
#[derive(Debug, Clone, PartialEq)]
pub struct Pressure {
    /// Available memory below which nothing new starts.
    pub memory_floor: Share,
    /// Available memory below which only small builds start.
    pub memory_narrow: Share,
    /// A filesystem that reaches its floor sooner than this shuts the gate; zero: no forecasts.
    pub disk_forecast: Duration,
    /// The control plane that shares the node; unset: it is not watched.
    pub control_plane: Option<ControlPlane>,
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
    /// For how long others may pass the head of the queue.
    pub pass_for: Duration,
    /// After this wait a build comes first in its tenant.
    pub age_after: Duration,
    /// Shares and caps.
    pub tenants: Arc<Tenants>,
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
    /// Its TLS.
    pub grpc_tls: Option<TlsFiles>,
    /// Metrics, health, page, git.
    pub http: Option<SocketAddr>,
    /// Its TLS.
    pub http_tls: Option<TlsFiles>,
    /// Git on a free port of the loopback address, below a path that only this agent's builds are told.
    pub private_git: bool,
}

/// What a listener proves itself with, and whom it asks for a proof. Read again whenever it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: its certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// PEM: the certificate's private key.
    pub key: PathBuf,
    /// PEM: the authorities whose clients are known by their certificates. Unset: clients are not asked for one.
    pub client_ca: Option<PathBuf>,
}
