//! The configuration file as written: its fields, their documentation, their defaults. The JSON Schema comes from here,
//! and `config print` writes these structs back. What a value means, and whether it is right, is `validate`'s affair.
//!
//! Defaults are in the `Default` implementations, next to each section, and nowhere else.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod admission;
mod git;
mod listen;

pub use admission::{AdmissionSection, ShareSection, TenantSection, TimeBudgetWord};
pub use git::{BasicSection, CredentialSection, ForgeSection, ForgeWord, GitSection, SshSection, TokenSection};
pub use listen::{GrpcSection, HttpSection, Insecure, ListenSection, TlsSection};

use super::access::AccessSection;
use super::keeping::{CachesSection, OrphansSection, OutputsSection};
use super::kubernetes::KubernetesSection;
use super::sensing::{ControlPlaneSection, FilesystemSection};
use super::serve::ServeSection;
use super::sizing::SizingSection;
use super::units::{Bytes, BytesOrPercent, Cores, CountOrPercent, Mode, Time};
use super::upkeep::{PathsSection, UpkeepSection};
use super::volume::VolumeSection;
use super::workspaces::WorkspacesSection;

/// The configuration of a Stoker agent. One file can serve all nodes of a cluster: pools say on which they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// The version of this format.
    pub api_version: ApiVersion,
    /// The kind of this file.
    pub kind: FileKind,
    /// Absolute path of the agent's own directory: journal and history, at most 64 MiB. It lies on no pool.
    #[serde(default = "default_state")]
    pub state: String,
    /// The machine.
    #[serde(default)]
    pub node: NodeSection,
    /// The data filesystems: 1 to 64.
    pub pools: Vec<PoolSection>,
    /// The git repositories.
    #[serde(default)]
    pub repositories: RepositoriesSection,
    /// Where workspaces are made.
    #[serde(default)]
    pub workspaces: WorkspacesSection,
    /// What builds leave.
    #[serde(default)]
    pub outputs: OutputsSection,
    /// Caches of tenants.
    #[serde(default)]
    pub caches: CachesSection,
    /// What nobody knows.
    #[serde(default)]
    pub orphans: OrphansSection,
    /// When the gate shuts.
    #[serde(default)]
    pub pressure: PressureSection,
    /// Bounds of leases and tickets.
    #[serde(default)]
    pub admission: AdmissionSection,
    /// How big builds are.
    #[serde(default)]
    pub sizing: SizingSection,
    /// The cluster that the node belongs to.
    #[serde(default)]
    pub kubernetes: KubernetesSection,
    /// Where the agent answers.
    #[serde(default)]
    pub listen: ListenSection,
    /// Sources as volumes of pods.
    #[serde(default)]
    pub volume: VolumeSection,
    /// Who may ask what.
    #[serde(default)]
    pub access: AccessSection,
}

fn default_state() -> String {
    "/var/lib/stoker".to_owned()
}

/// The version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The first, and the only one.
    #[serde(rename = "stoker.build/v1")]
    V1,
}

/// The kind of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FileKind {
    /// What an agent reads.
    AgentConfig,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeSection {
    /// The node's name. Unset: what the agent is started with, else the host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Kept for the control plane and the system; builds never get it.
    pub reserve: ReserveSection,
    /// Absolute path below which /proc and /sys are read (in a pod, where the host's root is mounted).
    pub host_root: String,
    /// What must stay free on the root filesystem; 0 where it does not matter.
    pub root_floor: FloorSection,
    /// Further filesystems of the node that builds must not fill: at most 16. Unset: those of the kubelet and of the
    /// container runtimes, where they are there and not on the root filesystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filesystems: Option<Vec<FilesystemSection>>,
}

impl Default for NodeSection {
    fn default() -> Self {
        Self {
            name: None,
            reserve: ReserveSection::default(),
            host_root: "/".to_owned(),
            root_floor: FloorSection::default(),
            filesystems: None,
        }
    }
}

/// Kept for the control plane and the system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ReserveSection {
    /// CPU in cores (4, 2.5) or thousandths (500m).
    pub cpu: Cores,
    /// Memory in bytes, with a unit (8GiB).
    pub memory: Bytes,
}

impl Default for ReserveSection {
    /// Enough for a kubelet and its kind; a node that carries a control plane needs more.
    fn default() -> Self {
        Self { cpu: "500m".into(), memory: "1GiB".into() }
    }
}

/// What must stay free of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FloorSection {
    /// Bytes with a unit (10GiB), or a percentage of the filesystem (10%).
    pub bytes: BytesOrPercent,
    /// A number of inodes (100000), or a percentage of the filesystem's (5%).
    pub inodes: CountOrPercent,
}

impl Default for FloorSection {
    /// Where a kubelet begins to evict, so that builds stop before it does.
    fn default() -> Self {
        Self { bytes: "10%".into(), inodes: "5%".into() }
    }
}

/// A data filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolSection {
    /// Its name: at most 63 of a-z, 0-9 and the hyphen; unique on each node.
    pub name: String,
    /// Its absolute path; no pool of a node lies in another.
    pub path: String,
    /// On which nodes it exists. Unset: on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodesSection>,
    /// Whether the path must be a mounted filesystem of its own.
    #[serde(default)]
    pub mount: Mount,
    /// The UUID of the filesystem that must be there, as blkid prints it. Unset: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Make the mount point immutable while nothing is mounted there and it is empty.
    #[serde(default)]
    pub seal: bool,
    /// What must stay free.
    #[serde(default)]
    pub floor: FloorSection,
    /// Directories that are made and kept: at most 256.
    #[serde(default)]
    pub directories: Vec<DirectorySection>,
}

/// On which nodes a pool exists: where all that is given holds.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodesSection {
    /// The node has one of these names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The node has all of these labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Whether a pool's path must be a mount.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mount {
    /// The pool is refused while its path is not a mounted filesystem of its own.
    #[default]
    Required,
    /// The pool may lie on the root filesystem.
    Optional,
}

/// A directory that is made and kept in a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DirectorySection {
    /// Its path, relative to the pool; never below "stoker", which is the agent's own.
    pub path: String,
    /// Permission bits in octal, in quotes ("0755").
    #[serde(default = "default_mode")]
    pub mode: Mode,
    /// User id that owns it. Unset: the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u64>,
    /// Group id that owns it. Unset: the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u64>,
    /// How long its content is kept.
    #[serde(default)]
    pub retention: RetentionWord,
    /// The most bytes that it may hold, with a unit (400GiB). Unset: what the pool's floor leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Bytes>,
}

fn default_mode() -> Mode {
    "0755".into()
}

/// How long a thing is kept.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RetentionWord {
    /// Until the leases that lived when it was first seen have ended, and at least as long as orphans are left alone.
    Scratch,
    /// Others fill it and keep it within a quota of their own: it is counted and held against its limit, not emptied.
    Cache,
    /// As long as outputs are kept (14 days), counted from when it was first seen; above its limit the oldest goes.
    Output,
    /// Until removed: the agent deletes nothing that nobody told it to.
    #[default]
    Mirror,
}

/// The git repositories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RepositoriesSection {
    /// The pool that holds them. Unset: the pool, where all have one name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The most bytes that they may hold, with a unit (200GiB). Unset: what the pool's floor leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Bytes>,
    /// How often mirrors ask upstream: a time from 1s to 168h.
    pub refresh: Time,
    /// How many fetches run at once: 1 to 64.
    pub parallel: u64,
    /// How many of them from one host: 1 to 64.
    pub parallel_per_host: u64,
    /// How long one fetch may take: a time from 1s to 24h.
    pub fetch_within: Time,
    /// How often each repository is looked through for damage on the disk: a time from 1s to 8760h.
    pub check: Time,
    /// Absolute paths of directories with seeds: unpacked archives of `stoker repo export`, one a directory. A mirror that
    /// is filled for the first time takes its seed first, and only the rest from upstream. At most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<String>,
    /// Who may add a repository.
    pub add: AddWord,
    /// Hosts from which repositories may be added on demand: a name (github.com), all below a name (*.example.org),
    /// an address (127.0.0.1), or * for all but local addresses. At most 256.
    pub allow: Vec<String>,
    /// What may be spoken with upstreams.
    pub protocols: Vec<ProtocolWord>,
    /// What git children may do.
    pub git: GitSection,
    /// Who we are to upstreams: at most 256.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialSection>,
    /// Forges whose API tells where a pull request comes from: at most 64. Without one, only the upstream's own ref of it
    /// is told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forges: Vec<ForgeSection>,
    /// Repacks, bitmaps and commit-graphs, while no fetch waits.
    pub upkeep: UpkeepSection,
    /// Mirrors that were filled more recently are never evicted: a time up to 8760h. Above `limit` or below the pool's
    /// floor old snapshots go, then mirrors that are not pinned and that no lease uses.
    pub min_age: Time,
    /// A read-only folder for `git clone --reference`. Unset: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<PathsSection>,
    /// Repositories that are filled at start and kept fresh: at most 10000.
    pub mirrors: Vec<MirrorSection>,
    /// Manifests of the `repo` tool, whose projects are mirrors as if each were declared: at most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<ManifestSection>,
    /// Bounds of submodules, where a mirror or a workspace has them.
    pub submodules: SubmodulesSection,
    /// Bounds of large files (git-lfs).
    pub lfs: LfsSection,
    /// Git over HTTP.
    pub serve: ServeSection,
}

/// Bounds of large files (git-lfs), which are fetched where a mirror or a workspace asks for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LfsSection {
    /// The most bytes that one of them may have, with a unit (10GiB).
    pub object_limit: Bytes,
    /// The most bytes that all of them may hold, with a unit (200GiB); those not used for longest go. Unset: what the
    /// pool's floor leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Bytes>,
}

impl Default for LfsSection {
    /// Twice what the large forges take.
    fn default() -> Self {
        Self { object_limit: "10GiB".into(), limit: None }
    }
}

impl Default for RepositoriesSection {
    /// An hour is twice what a slow link needs for the largest repositories seen.
    fn default() -> Self {
        Self {
            pool: None,
            limit: None,
            refresh: "5m".into(),
            parallel: 8,
            parallel_per_host: 4,
            fetch_within: "1h".into(),
            check: "24h".into(),
            seeds: Vec::new(),
            add: AddWord::default(),
            allow: Vec::new(),
            protocols: vec![ProtocolWord::Https, ProtocolWord::Ssh],
            git: GitSection::default(),
            credentials: Vec::new(),
            forges: Vec::new(),
            upkeep: UpkeepSection::default(),
            min_age: "1h".into(),
            paths: None,
            mirrors: Vec::new(),
            manifests: Vec::new(),
            submodules: SubmodulesSection::default(),
            lfs: LfsSection::default(),
            serve: ServeSection::default(),
        }
    }
}

/// Who may add a repository.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AddWord {
    /// Nobody: only the declared ones are served.
    #[default]
    Declared,
    /// Callers, within `allow` and `protocols`.
    OnDemand,
}

/// What is spoken with an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolWord {
    /// HTTP over TLS.
    Https,
    /// HTTP in the clear: who is on the way can change what arrives.
    Http,
    /// SSH.
    Ssh,
    /// Git's own, in the clear.
    Git,
    /// Paths of this machine.
    File,
}

impl ProtocolWord {
    /// The scheme of its URLs.
    pub(super) const fn scheme(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::Git => "git",
            Self::File => "file",
        }
    }
}

/// A repository that is filled at start and kept fresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MirrorSection {
    /// Its upstream: a URL of an allowed protocol, without credentials. Spellings of one repository are one mirror.
    pub url: String,
    /// Never evict it.
    #[serde(default)]
    pub pin: bool,
    /// The trust class that may read it: at most 63 of a-z, 0-9 and the hyphen.
    #[serde(default = "default_trust")]
    pub trust: String,
    /// The URL of a repository that it is a fork of: those of one trust class share their objects on disk. Unset: found
    /// out when it is filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork_of: Option<String>,
    /// Mirror the submodules of its HEAD too, and theirs, of the same trust class.
    #[serde(default)]
    pub submodules: bool,
    /// Fetch the large files (git-lfs) of its HEAD, and give its workspaces theirs.
    #[serde(default)]
    pub lfs: bool,
}

/// A manifest of the `repo` tool: `url` where it lies in a repository, which is mirrored too, or `path` and `base`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ManifestSection {
    /// The repository that it lies in; it is read again whenever that changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Which state of the repository: head, branch:NAME, tag:NAME or sha:COMMIT. Unset: head.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The file in the repository. Unset: default.xml.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Absolute path of a manifest on this machine; it is read again whenever it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// With `path`: the URL of the folder in which its repository would lie, to which `fetch` is relative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Groups of projects, as `repo init --groups` takes them; at most 64. Unset: its default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Never evict its projects.
    pub pin: bool,
    /// The trust class that may read its projects: at most 63 of a-z, 0-9 and the hyphen.
    #[serde(default = "default_trust")]
    pub trust: String,
}

/// Bounds of submodules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SubmodulesSection {
    /// How deep they may be nested: 1 to 32.
    pub depth: u64,
    /// How many one repository may have, with those of its submodules: 1 to 2000.
    pub repositories: u64,
}

impl Default for SubmodulesSection {
    fn default() -> Self {
        Self { depth: 5, repositories: 200 }
    }
}

fn default_trust() -> String {
    super::TRUST_DEFAULT.to_owned()
}

/// When the gate shuts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PressureSection {
    /// Available memory below which nothing new starts: bytes with a unit (2GiB), or a percentage of memory (5%).
    pub memory_floor: BytesOrPercent,
    /// Available memory below which only small builds start: bytes with a unit, or a percentage; not below memoryFloor.
    pub memory_narrow: BytesOrPercent,
    /// A filesystem that, as fast as it fills, reaches its floor sooner than this shuts the gate: a time up to 1h; 0s
    /// for no forecasts.
    pub disk_forecast: Time,
    /// The control plane, where it shares the node. Unset: it is not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlaneSection>,
    /// How long a better state must last before it is entered: a time from 100ms to 1h.
    pub hold: Time,
}

impl Default for PressureSection {
    fn default() -> Self {
        Self {
            memory_floor: "5%".into(),
            memory_narrow: "10%".into(),
            disk_forecast: "1m".into(),
            control_plane: None,
            hold: "30s".into(),
        }
    }
}

/// The JSON Schema of the file.
#[must_use]
pub fn schema() -> serde_json::Value {
    let settings =
        schemars::generate::SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<File>().to_value()
}

/// The file as YAML, with all defaults filled in. It reads back to the same [`File`].
///
/// # Errors
///
/// The serializer's, which happen only where it cannot write to memory.
pub fn to_yaml(file: &File) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(file)
}
