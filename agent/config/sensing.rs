//! What is watched beside the pools: as written, and as validated.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::file::FloorSection;
use super::units::Time;
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

/// The control plane, where it shares the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ControlPlaneSection {
    /// A URL that answers 200 while it is well (https://127.0.0.1:6443/readyz); http on loopback only. Unset: not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readyz: Option<String>,
    /// Absolute path of the certificates that vouch for it, in PEM (/etc/kubernetes/pki/ca.crt); for https.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Control groups whose stalls count: paths below the root of the hierarchy, `*` is any text; at most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<String>,
    /// An answer that takes longer narrows the gate, three times as long shuts it: a time from 10ms to 1m.
    pub latency: Time,
}

impl Default for ControlPlaneSection {
    /// A kubelet gives an API server 15 s, its clients notice one.
    fn default() -> Self {
        Self { readyz: None, ca: None, cgroups: Vec::new(), latency: "1s".into() }
    }
}

/// The control plane, where it shares the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    /// What is asked.
    pub readyz: Option<Readyz>,
    /// Patterns of control groups.
    pub cgroups: Vec<PathBuf>,
    /// What takes longer is slow.
    pub latency: Duration,
}

/// What is asked whether it is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readyz {
    /// An absolute URL.
    pub url: Uri,
    /// The certificates that vouch for it; there where it is https.
    pub ca: Option<PathBuf>,
}
