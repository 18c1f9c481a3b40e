//! What a kubelet has and sends where a pod wants a volume of the driver: its directory, the pod's token, the request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use stoker_proto::csi;

use super::api_server::ApiServer;
use super::front::Front;
use super::stoker::Agent;
use super::token_review::{AUDIENCE, Claims, Cluster, of};
use super::wait;

/// The one node there is.
pub(crate) const NODE: &str = "ghost";

/// Nothing but what a test does holds a build back; only what it declares counts.
const CONFIGURATION: &str = "\
node: {name: ghost, hostRoot: $ROOT/host, reserve: {cpu: 0, memory: 0}, rootFloor: {bytes: 0, inodes: 0}}
pressure: {memoryFloor: 1MiB, memoryNarrow: 2MiB, hold: 100ms, diskForecast: 0s}
pools: [{name: data, path: $ROOT/shared/pool, mount: optional, floor: {bytes: 1MiB, inodes: 1}}]
repositories: {refresh: 24h, protocols: [http], add: on-demand, allow: [127.0.0.1]}
kubernetes: {watch: on, heartbeat: 1s, namespace: stoker, unlimited: size}
access: {rules: [{role: scheduler, namespaces: [builds, red]}]}
volume: {socket: $ROOT/plugin/csi.sock, kubelet: $ROOT/shared/kubelet}
";

/// A pod with one volume.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) uid: &'static str,
    pub(crate) namespace: &'static str,
    pub(crate) target: PathBuf,
    pub(crate) token: String,
    /// Its name, where the pod has several.
    pub(crate) volume: Option<&'static str>,
}

impl Pod {
    /// One whose volumes the kubelet is about to mount, below its directory.
    pub(crate) fn new(kubelet: &Path, tokens: &Cluster, uid: &'static str, namespace: &'static str) -> Self {
        let volume = kubelet.join("pods").join(uid).join("volumes/kubernetes.io~csi/src");
        std::fs::create_dir_all(&volume).unwrap();
        let claims = Claims { pod_uid: Some(uid), ..of(namespace, "default") };
        Self { uid, namespace, target: volume.join("mount"), token: tokens.token(&claims), volume: None }
    }

    pub(crate) fn volume(&self) -> String {
        format!("csi-{}{}", self.uid, self.volume.unwrap_or_default())
    }

    /// The sources, as the pod sees them.
    pub(crate) fn src(&self) -> PathBuf {
        self.target.join("src")
    }

    /// What the kubelet sends for a volume with these attributes.
    pub(crate) fn wants(&self, attributes: &[(&str, &str)]) -> csi::NodePublishVolumeRequest {
        let token = json!({AUDIENCE: {"token": self.token, "expirationTimestamp": "2100-01-01T00:00:00Z"}}).to_string();
        let name = format!("pod-{}", self.uid);
        let of_the_kubelet = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.namespace", self.namespace),
            ("csi.storage.k8s.io/pod.name", &name),
            ("csi.storage.k8s.io/pod.uid", self.uid),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
            ("csi.storage.k8s.io/serviceAccount.tokens", &token),
        ];
        let context = of_the_kubelet.iter().chain(attributes);
        let context: BTreeMap<String, String> =
            context.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        csi::NodePublishVolumeRequest {
            volume_id: self.volume(),
            target_path: self.target.to_str().unwrap().to_owned(),
            volume_capability: Some(mount_capability()),
            volume_context: context,
            ..Default::default()
        }
    }

    /// What it sends when the pod is gone.
    pub(crate) fn leaves(&self) -> csi::NodeUnpublishVolumeRequest {
        let target_path = self.target.to_str().unwrap().to_owned();
        csi::NodeUnpublishVolumeRequest { volume_id: self.volume(), target_path }
    }
}

pub(crate) fn mount_capability() -> csi::VolumeCapability {
    use csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
    csi::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

/// The node, as the API server has it.
pub(crate) fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {},
        "status": {"allocatable": {"cpu": "30", "memory": "60Gi", "pods": "110"},
                   "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// A pod that the scheduler placed there.
pub(crate) fn pod(uid: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{uid}"), "namespace": namespace, "uid": uid},
        "spec": {"nodeName": NODE, "serviceAccountName": "default", "containers": [{"name": "main", "image": "build"}]},
        "status": {"phase": "Pending"},
    })
}

/// An agent with a driver and a kubelet's directory, on a recorded machine, in a cluster that has this one node.
/// Before it begins, `before` may do something to what the node shares with pods.
pub(crate) fn start(node: Value, more: &str, before: impl FnOnce(&Path)) -> (Agent, Cluster, ApiServer, Front) {
    let (tokens, api) = (Cluster::start(), ApiServer::start());
    api.put("nodes", node);
    let front = Front::of(&tokens, &api);
    let mut agent = Agent::prepare(&format!("{CONFIGURATION}{more}"));
    let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/proc/node-32cpu-62g");
    let copied = std::process::Command::new("cp").arg("-r").arg(tree).arg(agent.root().join("host")).status();
    assert!(copied.unwrap().success());
    directories(&agent.root().join("shared"));
    before(&agent.root().join("shared"));
    let kubeconfig = agent.root().join("kubeconfig");
    std::fs::write(&kubeconfig, &front.kubeconfig).unwrap();
    agent.env("KUBECONFIG", kubeconfig);
    agent.launch();
    agent.wait_ready();
    // It does not know from the first moment which pods are here.
    wait::until(Duration::from_secs(60), "the gate opens", || agent.log().contains("gate state=open"));
    (agent, tokens, api, front)
}

/// Makes a folder whose mounts are shared, as those of a node are: what is mounted or unmounted at one place of it happens at
/// all that come from there. In it are the directories of a kubelet.
fn directories(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    share(folder);
    for inner in ["kubelet/pods", "kubelet/plugins_registry"] {
        std::fs::create_dir_all(folder.join(inner)).unwrap();
    }
}

/// Once more, after something took it from the folder.
pub(crate) fn share(folder: &Path) {
    if nix::unistd::geteuid().is_root() {
        let folder = folder.to_str().unwrap();
        for args in [["--bind", folder, folder].as_slice(), ["--make-shared", folder].as_slice()] {
            assert!(std::process::Command::new("mount").args(args).status().unwrap().success());
        }
    }
}
