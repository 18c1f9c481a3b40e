//! What the samplers read, in integers.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{ControlPlane, Slope};
use crate::reason::Reason;

/// One look at the machine. A part that could not be read says so; nothing is guessed.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    /// Unset: could not be read.
    pub memory: Option<Memory>,
    /// Unset: could not be read, or not yet for long enough.
    pub cpu: Option<Cpu>,
    /// Unset: the kernel does not tell.
    pub load: Option<Load>,
    /// How much work waits for memory.
    pub memory_stall: StallReading,
    /// How much work waits for CPU. Shown only: a pod's own limit looks the same.
    pub cpu_stall: StallReading,
    /// How much work waits for I/O. Shown only.
    pub io_stall: StallReading,
    /// The root filesystem.
    pub root: DiskReading,
    /// The pools, in the order of the configuration.
    pub pools: Vec<PoolReading>,
    /// Other filesystems of the node, in the order of the configuration.
    pub filesystems: Vec<WatchedReading>,
    /// The control plane that shares the node.
    pub control_plane: ControlPlane,
    /// Why, by the cluster's word, no pod may come.
    pub cluster: Vec<Reason>,
}

/// Memory of the machine.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `MemTotal` less huge pages, which no build can use unasked.
    pub total_bytes: u64,
    /// `MemAvailable`: what can be given out without swapping.
    pub available_bytes: u64,
}

/// CPU of the machine.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Thousandths of a core that are online.
    pub total_millis: u64,
    /// Thousandths of a core in use, smoothed over about 10 s.
    pub used_millis: u64,
}

/// How many tasks run or wait for a CPU or a disk, as averages, in hundredths; proc_loadavg(5). Shown only: it says
/// nothing of which of the two they wait for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Over a minute.
    pub avg_1m: u32,
    /// Over five.
    pub avg_5m: u32,
    /// Over fifteen.
    pub avg_15m: u32,
}

/// Pressure stall information: the share of time in which work waited, in hundredths of a percent (10,000 is always).
/// `some`: at least one task; `full`: all that could run (the kernel's `Documentation/accounting/psi.rst`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// Over 10 s.
    pub some_avg10: u32,
    /// Over 60 s.
    pub some_avg60: u32,
    /// Over 10 s.
    pub full_avg10: u32,
    /// Over 60 s.
    pub full_avg60: u32,
    /// All work, over the last 2 s; 0 where it is not told.
    pub full_now: u32,
}

impl Stall {
    /// What the gate goes by: the average of 10 s, or the last 2 s where they are worse.
    #[must_use]
    pub fn full_worst(self) -> u32 {
        self.full_avg10.max(self.full_now)
    }
}

/// Stalls, as far as they are told.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StallReading {
    /// This kernel does not tell, which is no failure.
    #[default]
    Untold,
    /// It tells.
    Known(Stall),
    /// It should tell, and did not.
    Failed,
}

impl StallReading {
    /// The figures, where there are some.
    #[must_use]
    pub const fn known(self) -> Option<Stall> {
        match self {
            Self::Known(stall) => Some(stall),
            Self::Untold | Self::Failed => None,
        }
    }
}

/// How full a filesystem is, and what must stay free.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// All bytes.
    pub total_bytes: u64,
    /// What may still be written without special rights.
    pub free_bytes: u64,
    /// All inodes; 0: this filesystem has no fixed number (btrfs), so that inodes never run out.
    pub total_inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
    /// Bytes that must stay free.
    pub floor_bytes: u64,
    /// Inodes that must stay free.
    pub floor_inodes: u64,
    /// Bytes that leases have reserved and not written yet.
    pub reserved_bytes: u64,
    /// Inodes that leases have reserved and not made yet.
    pub reserved_inodes: u64,
    /// How fast it fills.
    pub slope: Slope,
}

/// A filesystem, as far as it could be read.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskReading {
    /// It does not answer, or answers with an error.
    #[default]
    Failed,
    /// A pool that is not there, or not as declared; in words.
    NotReady(String),
    /// It tells.
    Known(Filesystem),
}

/// A pool, as far as it could be read.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReading {
    /// Its name.
    pub name: String,
    /// Repositories or workspaces lie on it, so that without it no build can start.
    pub needed: bool,
    /// Its filesystem.
    pub disk: DiskReading,
}

/// A filesystem that is watched and not managed, as far as it could be read.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchedReading {
    /// Where it is mounted, or a path on it.
    pub path: String,
    /// Its filesystem.
    pub disk: DiskReading,
}
