//! What is watched beside the pools: as written, and as validated.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::file::FloorSection;
use super::{Floor, Share};

/// A filesystem of the node that builds must not fill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilesystemSection {
    /// An absolute path on it, below `hostRoot`.
    pub path: String,
    /// What must stay free.
    #[serde(default)]
    pub floor: FloorSection,
}

/// A filesystem of the node that is watched, and not managed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedFilesystem {
    /// A path on it, as the host has it.
    pub path: PathBuf,
    /// What must stay free.
    pub floor: Floor,
    /// Nobody asked for it by name: it counts only where it is there and not the root filesystem.
    pub by_default: bool,
}

/// Where nothing else is said. Each floor is where a kubelet begins to evict: 10% of its own filesystem, 15% of the one
/// with the images, 5% of inodes (its `evictionHard`).
pub(super) fn by_default() -> Vec<WatchedFilesystem> {
    let watched = |path: &str, bytes| WatchedFilesystem {
        path: PathBuf::from(path),
        floor: Floor { bytes: Share::Basis(bytes), inodes: Share::Basis(500) },
        by_default: true,
    };
    vec![watched("/var/lib/kubelet", 1000), watched("/var/lib/containers", 1500), watched("/var/lib/containerd", 1500)]
}
