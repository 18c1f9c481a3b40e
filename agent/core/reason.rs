//! Why something waits, is refused or is not as it should be: one closed list for replies, logs, metrics and events.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::quantity::{Resource, Timestamp};

/// Builds the enum, its list and its words from one table, so that they cannot drift apart.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// The closed list. The word of each is the same in replies, logs, metric labels, events and on the command line.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code { $($(#[doc = $doc])+ #[serde(rename = $word)] $name,)+ }

        impl Code {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The word, as `MEMORY_FLOOR`.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }
        }
    };
}

impl Code {
    /// Whether an upstream answered, and gives us nothing: it has no such repository (any more), or does not let us in.
    #[must_use]
    pub const fn upstream_says_no(self) -> bool {
        matches!(self, Self::UpstreamNotFound | Self::UpstreamUnauthorized)
    }

    /// Whether it is about a node: its room, its gate, its mode. What is as large waits there as well, whoever asks.
    #[must_use]
    pub const fn is_of_node(self) -> bool {
        matches!(
            self,
            Self::MemoryFloor
                | Self::MemoryPressure
                | Self::MemoryNarrow
                | Self::MemoryBudget
                | Self::MemoryHeld
                | Self::CpuBudget
                | Self::CpuHeld
                | Self::DiskFloor
                | Self::DiskInodesFloor
                | Self::DiskBudget
                | Self::DiskHeld
                | Self::DiskInodesBudget
                | Self::DiskInodesHeld
                | Self::RootDiskFloor
                | Self::RootDiskInodesFloor
                | Self::DiskForecast
                | Self::DiskInodesForecast
                | Self::NodeDiskFloor
                | Self::NodeDiskInodesFloor
                | Self::ControlPlaneSlow
                | Self::ControlPlaneStalled
                | Self::ApiServerAway
                | Self::NodeGone
                | Self::NodeCordoned
                | Self::NodeNotReady
                | Self::NodeTainted
                | Self::NodeRequests
                | Self::PoolNotReady
                | Self::ModeMaintenance
                | Self::ModeDrain
                | Self::JournalUnavailable
                | Self::SensorFailed
                | Self::QueueAhead
                | Self::QueueFull
                | Self::LeasesFull
        )
    }
}

codes! {
    /// Available memory is below the floor.
    MemoryFloor = "MEMORY_FLOOR",
    /// Processes stall for memory.
    MemoryPressure = "MEMORY_PRESSURE",
    /// Available memory nears the floor: small builds only.
    MemoryNarrow = "MEMORY_NARROW",
    /// More memory than the node's whole budget.
    MemoryBudget = "MEMORY_BUDGET",
    /// Memory that others hold now.
    MemoryHeld = "MEMORY_HELD",
    /// More CPU than the node's whole budget.
    CpuBudget = "CPU_BUDGET",
    /// CPU that others hold now.
    CpuHeld = "CPU_HELD",
    /// A pool's free bytes are below its floor.
    DiskFloor = "DISK_FLOOR",
    /// A pool's free inodes are below its floor.
    DiskInodesFloor = "DISK_INODES_FLOOR",
    /// More disk than the pool could ever give.
    DiskBudget = "DISK_BUDGET",
    /// Disk that others hold now.
    DiskHeld = "DISK_HELD",
    /// More inodes than the pool could ever give.
    DiskInodesBudget = "DISK_INODES_BUDGET",
    /// Inodes that others hold now.
    DiskInodesHeld = "DISK_INODES_HELD",
    /// The root filesystem's free bytes are below the floor.
    RootDiskFloor = "ROOT_DISK_FLOOR",
    /// The root filesystem's free inodes are below the floor.
    RootDiskInodesFloor = "ROOT_DISK_INODES_FLOOR",
    /// At the speed at which it fills, a filesystem's free bytes reach their floor soon.
    DiskForecast = "DISK_FORECAST",
    /// At the speed at which they go, a filesystem's free inodes reach their floor soon.
    DiskInodesForecast = "DISK_INODES_FORECAST",
    /// Free bytes of another filesystem of the node (the kubelet's, the container runtime's) are below the floor.
    NodeDiskFloor = "NODE_DISK_FLOOR",
    /// Free inodes of such a filesystem are below the floor.
    NodeDiskInodesFloor = "NODE_DISK_INODES_FLOOR",
    /// The control plane on this node is slow: small builds only.
    ControlPlaneSlow = "CONTROL_PLANE_SLOW",
    /// The control plane on this node does not answer, or stands still.
    ControlPlaneStalled = "CONTROL_PLANE_STALLED",
    /// The API server does not answer, or has not answered yet.
    ApiServerAway = "API_SERVER_AWAY",
    /// The cluster has no node of this name.
    NodeGone = "NODE_GONE",
    /// The node is cordoned.
    NodeCordoned = "NODE_CORDONED",
    /// The cluster takes the node for not ready.
    NodeNotReady = "NODE_NOT_READY",
    /// The node has a taint that keeps builds away.
    NodeTainted = "NODE_TAINTED",
    /// The scheduler of the cluster would not place it: too much is requested by pods, or there are too many.
    NodeRequests = "NODE_REQUESTS",
    /// The pool is not there, or not as declared.
    PoolNotReady = "POOL_NOT_READY",
    /// The operator holds new builds back.
    ModeMaintenance = "MODE_MAINTENANCE",
    /// The operator empties the node.
    ModeDrain = "MODE_DRAIN",
    /// The journal cannot be written.
    JournalUnavailable = "JOURNAL_UNAVAILABLE",
    /// A sensor gives no values.
    SensorFailed = "SENSOR_FAILED",
    /// A new configuration is not right; the one before goes on.
    ConfigInvalid = "CONFIG_INVALID",
    /// Others are before it.
    QueueAhead = "QUEUE_AHEAD",
    /// No more tickets are given.
    QueueFull = "QUEUE_FULL",
    /// The ticket was not awaited and ran out.
    TicketExpired = "TICKET_EXPIRED",
    /// Somebody cancelled the ticket.
    TicketCancelled = "TICKET_CANCELLED",
    /// As many leases as the ledger keeps.
    LeasesFull = "LEASES_FULL",
    /// As much as its tenant may have.
    TenantQuota = "TENANT_QUOTA",
    /// Upstream does not answer.
    UpstreamUnreachable = "UPSTREAM_UNREACHABLE",
    /// Upstream answers that there is no such repository, or that we may not read it.
    UpstreamNotFound = "UPSTREAM_NOT_FOUND",
    /// Upstream has no such ref.
    RefNotFound = "REF_NOT_FOUND",
    /// Neither we nor upstream have the commit.
    CommitNotFound = "COMMIT_NOT_FOUND",
    /// The commit is there, but no ref of this repository reaches it.
    CommitUnreachable = "COMMIT_UNREACHABLE",
    /// The ref names another commit than the caller expects.
    CommitUnexpected = "COMMIT_UNEXPECTED",
    /// Only declared repositories are served here.
    RepositoryNotDeclared = "REPOSITORY_NOT_DECLARED",
    /// The configuration does not allow this repository.
    RepositoryNotAllowed = "REPOSITORY_NOT_ALLOWED",
    /// The mirror never filled.
    RepositoryEmpty = "REPOSITORY_EMPTY",
    /// The mirror was evicted for want of room.
    RepositoryEvicted = "REPOSITORY_EVICTED",
    /// The repositories are over their limit, and nothing may be evicted.
    RepositoriesLimit = "REPOSITORIES_LIMIT",
    /// Objects are named by SHA-256.
    ObjectFormatUnsupported = "OBJECT_FORMAT_UNSUPPORTED",
    /// A local repository without its whole history.
    RepositoryShallow = "REPOSITORY_SHALLOW",
    /// A local repository of another user.
    RepositoryForeignOwner = "REPOSITORY_FOREIGN_OWNER",
    /// Objects are damaged.
    RepositoryCorrupt = "REPOSITORY_CORRUPT",
    /// A manifest says nothing that could be followed; the list before goes on.
    ManifestInvalid = "MANIFEST_INVALID",
    /// A commit's submodules cannot be had as it says.
    SubmoduleInvalid = "SUBMODULE_INVALID",
    /// Upstream answers too slowly.
    UpstreamTimeout = "UPSTREAM_TIMEOUT",
    /// Upstream wants another proof of who asks, or none that we have is good enough.
    UpstreamUnauthorized = "UPSTREAM_UNAUTHORIZED",
    /// Upstream's host key or certificate is none that is trusted here.
    UpstreamUntrusted = "UPSTREAM_UNTRUSTED",
    /// The file of a declared credential cannot be used.
    CredentialUnreadable = "CREDENTIAL_UNREADABLE",
    /// Git runs with more rights than it should, or not at all where the configuration wants none of that.
    ContainmentReduced = "CONTAINMENT_REDUCED",
    /// A git child needed more memory than it may have.
    GitMemoryLimit = "GIT_MEMORY_LIMIT",
    /// A git child was ended from outside: by the kernel, for memory, or by a person.
    GitKilled = "GIT_KILLED",
    /// The helper that git runs in is away.
    GitHelperAway = "GIT_HELPER_AWAY",
    /// A large file is not to be had: its LFS server, or the local repository, does not have it.
    LfsObjectMissing = "LFS_OBJECT_MISSING",
    /// What came for a large file is not what its pointer names.
    LfsObjectCorrupt = "LFS_OBJECT_CORRUPT",
    /// Large files above what the configuration lets in.
    LfsLimit = "LFS_LIMIT",
    /// What was brought to be imported is not what an import takes.
    ArchiveInvalid = "ARCHIVE_INVALID",
    /// The build spec at the commit is not valid.
    SpecInvalid = "SPEC_INVALID",
    /// The build spec needs a program that is not here, or that did not come to its end.
    SpecUnevaluated = "SPEC_UNEVALUATED",
    /// A size is declared above the operator's cap.
    SizeCap = "SIZE_CAP",
    /// A size is declared far above what such builds use.
    OverDeclared = "OVER_DECLARED",
    /// A lease's holder has no limit of CPU or memory within its size.
    LeaseUnlimited = "LEASE_UNLIMITED",
    /// A lease's build holds more disk than the lease's size.
    LeaseOverDisk = "LEASE_OVER_DISK",
    /// The reservation was not bound in time.
    LeaseExpired = "LEASE_EXPIRED",
    /// The build ran longer than its time budget.
    TimeBudgetExceeded = "TIME_BUDGET_EXCEEDED",
    /// Nine tenths of the build's time budget are used up.
    TimeBudgetNear = "TIME_BUDGET_NEAR",
    /// The API server lets the agent not do what it is to do.
    RightMissing = "RIGHT_MISSING",
    /// A pod says that it has a lease that it does not get.
    LeaseNotTheirs = "LEASE_NOT_THEIRS",
    /// The process or pod that held the lease is gone.
    HolderGone = "HOLDER_GONE",
    /// The node booted since.
    NodeRebooted = "NODE_REBOOTED",
    /// No further retry is given.
    RetriesUsedUp = "RETRIES_USED_UP",
    /// It was kept for as long as its retention says.
    RetentionOver = "RETENTION_OVER",
    /// Scratch whose leases have ended.
    ScratchOver = "SCRATCH_OVER",
    /// Caches of tenants above their limit.
    CacheLimit = "CACHE_LIMIT",
    /// A declared directory above its limit.
    DirectoryLimit = "DIRECTORY_LIMIT",
    /// No lease, output or rule knows it.
    Orphan = "ORPHAN",
    /// What proves who asks is missing or wrong.
    CredentialInvalid = "CREDENTIAL_INVALID",
    /// Who asks cannot be checked now.
    CredentialUnchecked = "CREDENTIAL_UNCHECKED",
    /// Whoever asks may not.
    AccessDenied = "ACCESS_DENIED",
    /// Whoever asks does so too often.
    RateLimited = "RATE_LIMITED",
    /// New files of a listener's TLS make no whole; the certificates before go on.
    CertificateInvalid = "CERTIFICATE_INVALID",
}

/// One reason, with the figures on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Which.
    pub code: Code,
    /// What it is about, where it is about an amount.
    pub resource: Option<Resource>,
    /// In the unit of the resource.
    pub wanted: u64,
    /// In the unit of the resource.
    pub available: u64,
    /// The pool, lease, repository or ref.
    pub subject: String,
    /// A sentence for people: what is so, and what to do about it where something can be done.
    pub message: String,
    /// When it may be over.
    pub expected_until: Option<Timestamp>,
}

impl Reason {
    /// A reason in words.
    #[must_use]
    pub fn new(code: Code, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            resource: None,
            wanted: 0,
            available: 0,
            subject: subject.into(),
            message: message.into(),
            expected_until: None,
        }
    }

    /// The same, about an amount.
    #[must_use]
    pub fn about(mut self, resource: Resource, wanted: u64, available: u64) -> Self {
        self.resource = Some(resource);
        self.wanted = wanted;
        self.available = available;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn every_word_is_its_own() {
        for (i, a) in Code::ALL.iter().enumerate() {
            for b in Code::ALL.iter().skip(i.saturating_add(1)) {
                assert_ne!(a.word(), b.word());
            }
        }
    }
}
