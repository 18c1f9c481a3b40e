//! Sources as volumes: where the kubelet finds the driver. Both the section as written and what is left of it when it is
//! valid.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sources as volumes of pods: the CSI driver `stoker.build`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VolumeSection {
    /// Absolute path of the driver's unix socket, at most 107 bytes, in a folder of its own and the same on the host
    /// (/var/lib/kubelet/plugins/stoker.build/csi.sock). Unset: there is no driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Absolute path of the kubelet's own directory: volumes are mounted below its `pods`, and the driver makes itself
    /// known in its `plugins_registry`.
    pub kubelet: String,
}

impl Default for VolumeSection {
    fn default() -> Self {
        Self { socket: None, kubelet: "/var/lib/kubelet".to_owned() }
    }
}

/// Where the driver and the kubelet meet; validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The driver's socket.
    pub socket: PathBuf,
    /// The kubelet's directory.
    pub kubelet: PathBuf,
}

impl Volume {
    /// The socket by which the driver makes itself known. A kubelet calls the host that it speaks to by the whole path, with
    /// each slash as `%2F`, and HTTP/2 is refused with a host like that; what stands before an `@` is no host.
    #[must_use]
    pub fn registration(&self) -> PathBuf {
        self.kubelet.join("plugins_registry/stoker.build@reg.sock")
    }
}
