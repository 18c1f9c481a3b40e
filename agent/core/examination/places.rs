//! Pools against etcd's disk and the root filesystem.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Draft, Finding, Kind, Severity};

/// Where a path lies.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Place {
    /// What it is called: a pool's name.
    pub name: String,
    /// The path, as the node has it.
    pub path: String,
    /// The mount that it is on.
    pub mount: String,
    /// The filesystem's device, `MAJOR:MINOR`.
    pub device: String,
    /// The whole disks below it (`nvme0n1`): those of a volume group are several. Empty: not known.
    pub disks: BTreeSet<String>,
}

impl Place {
    fn shares_filesystem(&self, other: &Self) -> bool {
        !self.device.is_empty() && self.device == other.device
    }
}

/// Where everything lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The root filesystem.
    pub root: Place,
    /// The pools that are there.
    pub pools: Vec<Place>,
    /// Where etcd's data is: where its static pod says, or where a distribution without one keeps it; or why that is not
    /// known.
    pub etcd: Result<Vec<Place>, String>,
    /// Filesystems that the agent watches, the root among them.
    pub watched: Vec<Watched>,
}

/// A filesystem that the agent watches.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Watched {
    /// A path on it, as the node has it.
    pub path: String,
    /// Its bytes.
    pub total_bytes: u64,
    /// Its inodes; 0: without a fixed number.
    pub total_inodes: u64,
    /// Bytes that must stay free.
    pub floor_bytes: u64,
    /// Inodes that must stay free.
    pub floor_inodes: u64,
    /// The kubelet's own directory is on it.
    pub nodefs: bool,
    /// The container runtime's images are on it.
    pub imagefs: bool,
}

pub(super) fn examine(places: &Places, draft: &mut Draft) {
    let etcd = match &places.etcd {
        Ok(etcd) => etcd.as_slice(),
        Err(why) => {
            draft.unseen.push(format!("etcd's disk: {why}"));
            &[]
        }
    };
    for pool in &places.pools {
        if let Some(found) = etcd.iter().find_map(|etcd| shared(pool, etcd)) {
            draft.findings.push(on_etcd(pool, &found));
        }
        if pool.shares_filesystem(&places.root) {
            draft.findings.push(Finding {
                kind: Kind::PoolOnRoot,
                severity: Severity::Warning,
                subject: pool.name.clone(),
                what: format!("pool {} ({}) is on the root filesystem", pool.name, pool.path),
                why: "builds fill the disk of the kubelet, of images and of logs, which evicts pods".into(),
                remedy: format!("mount a disk at {}, and declare the pool with `mount: required`", pool.path),
            });
        }
    }
}

/// What a pool and etcd's data have in common, in words.
fn shared(pool: &Place, etcd: &Place) -> Option<String> {
    if pool.shares_filesystem(etcd) {
        return Some(format!("the filesystem of {} with etcd's data ({})", pool.mount, etcd.path));
    }
    let both = pool.disks.intersection(&etcd.disks).cloned().collect::<Vec<_>>();
    (!both.is_empty()).then(|| format!("{} with etcd's data ({})", both.join(", "), etcd.path))
}

fn on_etcd(pool: &Place, common: &str) -> Finding {
    Finding {
        kind: Kind::PoolOnEtcdDisk,
        severity: Severity::Warning,
        subject: pool.name.clone(),
        what: format!("pool {} ({}) shares {common}", pool.name, pool.path),
        why: "etcd waits for its disk at each write, and the API server for etcd; builds write all the time".into(),
        remedy: format!("mount another disk at {}, or move etcd's data to one of its own", pool.path),
    }
}
