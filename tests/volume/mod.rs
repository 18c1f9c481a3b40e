//! Sources as volumes: what a kubelet asks of the driver over its socket, with a cluster that makes pods and their tokens,
//! and real mounts.

mod carried;
mod crowd;
mod hostile;
mod known;
mod one_build;
mod publish;
mod sanity;
mod shown;
mod survive;
mod users;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use stoker_proto::csi;
use stoker_proto::csi::identity_client::IdentityClient;
use stoker_proto::csi::node_client::NodeClient;
use stoker_proto::plugin_registration::registration_client::RegistrationClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::support::api_server::ApiServer;
use crate::support::disk::mounts_below;
use crate::support::front::Front;
use crate::support::loopdev::needs_root;
use crate::support::repository::{TestRepo, git_out};
use crate::support::stoker::Agent;
use crate::support::token_review::{AUDIENCE, Claims, Cluster, of};
use crate::support::upstream::Upstream;
use crate::support::wait;

const LIMIT: Duration = Duration::from_secs(60);
const NODE: &str = "ghost";

/// An agent with a driver, a kubelet's directory, and a cluster with one node.
struct World {
    agent: Agent,
    tokens: Cluster,
    api: ApiServer,
    url: String,
    repo: TestRepo,
    upstream: Upstream,
    _front: Front,
}

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

impl World {
    fn new(more: &str) -> Self {
        Self::of(TestRepo::standard(), more)
    }

    fn of(repo: TestRepo, more: &str) -> Self {
        Self::with(repo, more, |_| {})
    }

    /// The same after something was done to the folder of what the node shares with pods.
    fn with(repo: TestRepo, more: &str, before: impl FnOnce(&Path)) -> Self {
        let (upstream, url) = Upstream::of(&repo);
        let (tokens, api) = (Cluster::start(), ApiServer::start());
        api.put("nodes", node());
        let front = Front::of(&tokens, &api);
        let mut agent = Agent::prepare(&format!("{CONFIGURATION}{more}"));
        let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/proc/node-32cpu-62g");
        let copied = std::process::Command::new("cp").arg("-r").arg(tree).arg(agent.root().join("host")).status();
        assert!(copied.unwrap().success());
        share(&agent.root().join("shared"));
        for folder in ["kubelet/pods", "kubelet/plugins_registry"] {
            std::fs::create_dir_all(agent.root().join("shared").join(folder)).unwrap();
        }
        before(&agent.root().join("shared"));
        let kubeconfig = agent.root().join("kubeconfig");
        std::fs::write(&kubeconfig, &front.kubeconfig).unwrap();
        agent.env("KUBECONFIG", kubeconfig);
        agent.launch();
        agent.wait_ready();
        // It does not know from the first moment which pods are here.
        wait::until(LIMIT, "the gate opens", || agent.log().contains("gate state=open"));
        Self { agent, tokens, api, url, repo, upstream, _front: front }
    }

    fn kubelet(&self) -> PathBuf {
        self.agent.root().join("shared/kubelet")
    }

    fn pool(&self) -> PathBuf {
        self.agent.root().join("shared/pool")
    }

    async fn channel(socket: &Path) -> Channel {
        let address = format!("unix://{}", socket.display());
        Endpoint::try_from(address).unwrap().connect().await.unwrap()
    }

    /// As a kubelet reaches whoever makes itself known: the host of its calls is the path, with all escaped in it that a host
    /// may not have.
    async fn registering(socket: &Path) -> Channel {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(&byte);
        let escaped = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        let host: String = socket.to_str().unwrap().bytes().map(escaped).collect();
        let origin = format!("http://{host}").parse().expect("a host that HTTP/2 lets through");
        let address = format!("unix://{}", socket.display());
        Endpoint::try_from(address).unwrap().origin(origin).connect().await.unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.agent.root().join("plugin/csi.sock")
    }

    fn registration(&self) -> PathBuf {
        self.kubelet().join("plugins_registry/stoker.build@reg.sock")
    }

    async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(Self::channel(&self.socket()).await)
    }

    async fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(Self::channel(&self.socket()).await)
    }

    /// A pod that the scheduler placed here, and whose volumes the kubelet is about to mount.
    fn pod(&self, uid: &'static str) -> Pod {
        self.pod_of(uid, "builds")
    }

    fn pod_of(&self, uid: &'static str, namespace: &'static str) -> Pod {
        self.api.put("pods", pod(uid, namespace));
        self.pod_elsewhere(uid, namespace)
    }

    /// One of which the API server does not say that it is here.
    fn pod_elsewhere(&self, uid: &'static str, namespace: &'static str) -> Pod {
        let volume = self.kubelet().join("pods").join(uid).join("volumes/kubernetes.io~csi/src");
        std::fs::create_dir_all(&volume).unwrap();
        let claims = Claims { pod_uid: Some(uid), ..of(namespace, "default") };
        Pod { uid, namespace, target: volume.join("mount"), token: self.tokens.token(&claims), volume: None }
    }

    /// What the kubelet sends for a volume with these attributes.
    fn wanted(&self, pod: &Pod, attributes: &[(&str, &str)]) -> csi::NodePublishVolumeRequest {
        let token = json!({AUDIENCE: {"token": pod.token, "expirationTimestamp": "2100-01-01T00:00:00Z"}}).to_string();
        let name = format!("pod-{}", pod.uid);
        let of_the_kubelet = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.namespace", pod.namespace),
            ("csi.storage.k8s.io/pod.name", &name),
            ("csi.storage.k8s.io/pod.uid", pod.uid),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
            ("csi.storage.k8s.io/serviceAccount.tokens", &token),
        ];
        let context = of_the_kubelet.iter().chain(attributes);
        let context: BTreeMap<String, String> =
            context.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        csi::NodePublishVolumeRequest {
            volume_id: pod.volume(),
            target_path: pod.target.to_str().unwrap().to_owned(),
            volume_capability: Some(mount_capability()),
            volume_context: context,
            ..Default::default()
        }
    }

    /// The attributes of a small build of `main`.
    fn main(&self) -> [(&str, &str); 5] {
        [("repository", &self.url), ("ref", "branch:main"), ("cpu", "100m"), ("memory", "64MiB"), ("disk", "1MiB")]
    }

    /// Another volume of a pod.
    fn beside(&self, pod: &Pod, name: &'static str) -> Pod {
        let volume = self.kubelet().join("pods").join(pod.uid).join("volumes/kubernetes.io~csi").join(name);
        std::fs::create_dir_all(&volume).unwrap();
        Pod { target: volume.join("mount"), volume: Some(name), ..pod.clone() }
    }

    async fn publish(&self, request: csi::NodePublishVolumeRequest) -> Result<(), Status> {
        self.node().await.node_publish_volume(request).await.map(drop)
    }

    /// As a kubelet does: again and again, while it may come by itself.
    async fn publish_at_last(&self, request: &csi::NodePublishVolumeRequest) {
        let published = async || match self.publish(request.clone()).await {
            Ok(()) => true,
            Err(status) => {
                let comes = matches!(status.code(), Code::Unavailable | Code::Aborted | Code::ResourceExhausted);
                assert!(comes, "{status:?}");
                false
            }
        };
        wait::until_async(LIMIT, "it is published", published).await;
    }

    /// Somebody admits a build of `main` for a tenant, before there is a volume.
    fn admit(&self, tenant: &str) -> String {
        let of = ["lease", "admit", "--repo", &self.url, "--ref", "branch:main", "--tenant", tenant];
        let size = ["--cpu", "100m", "--memory", "64MiB", "--disk", "1MiB", "-o", "json"];
        let granted = self.agent.stoker().run(of.into_iter().chain(size)).expect_code(0).json()["granted"].clone();
        granted["id"].as_str().unwrap().to_owned()
    }

    /// A pod that names a lease since it is here.
    fn pod_with(&self, uid: &'static str, lease: &str) -> Pod {
        self.pod_like(uid, |pod| pod["metadata"]["annotations"] = json!({"stoker.build/lease": lease}))
    }

    /// A pod that is so since it is here.
    fn pod_like(&self, uid: &'static str, change: impl FnOnce(&mut Value)) -> Pod {
        let mut object = pod(uid, "builds");
        change(&mut object);
        self.api.put("pods", object);
        self.pod_elsewhere(uid, "builds")
    }

    /// Whoever admitted a pod's build writes its lease into the pod.
    fn annotate(&self, pod: &Pod, lease: &str) {
        self.api.change("pods", pod.namespace, &format!("pod-{}", pod.uid), |pod| {
            pod["metadata"]["annotations"] = json!({"stoker.build/lease": lease});
        });
    }

    async fn unpublish(&self, pod: &Pod) -> Result<(), Status> {
        let target_path = pod.target.to_str().unwrap().to_owned();
        let request = csi::NodeUnpublishVolumeRequest { volume_id: pod.volume(), target_path };
        self.node().await.node_unpublish_volume(request).await.map(drop)
    }

    fn leases(&self) -> Vec<Value> {
        let all = self.agent.stoker().run(["lease", "list", "-o", "json"]).expect_code(0).json();
        all["leases"].as_array().unwrap().clone()
    }

    fn tickets(&self) -> Vec<Value> {
        let all = self.agent.stoker().run(["ticket", "list", "-o", "json"]).expect_code(0).json();
        all["tickets"].as_array().unwrap().clone()
    }

    /// A lease that somebody has, or had.
    fn lease(&self, id: &str) -> Value {
        self.agent.stoker().run(["lease", "show", id, "-o", "json"]).expect_code(0).json()["lease"].clone()
    }

    /// Its mirror, so that what a test measures or limits is not that.
    fn fill(&self) {
        self.agent.stoker().run(["repo", "add", &self.url]).expect_code(0);
        let filled = || {
            let all = self.agent.stoker().run(["repo", "show", &self.url, "-o", "json"]).expect_code(0).json();
            all["repository"]["state"] == "REPOSITORY_STATE_READY"
        };
        wait::until(LIMIT, "the mirror is filled", filled);
    }

    /// Nothing is mounted for a pod, and nothing is held for anybody.
    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(mounts_below(&self.kubelet()), Vec::<PathBuf>::new());
        assert_eq!((self.leases(), self.tickets()), (Vec::new(), Vec::new()));
    }
}

/// Makes a folder whose mounts are shared, as those of a node are: what is mounted or unmounted at one place of it happens at
/// all that come from there.
fn share(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    share_again(folder);
}

fn share_again(folder: &Path) {
    if nix::unistd::geteuid().is_root() {
        let folder = folder.to_str().unwrap();
        for args in [["--bind", folder, folder].as_slice(), ["--make-shared", folder].as_slice()] {
            assert!(std::process::Command::new("mount").args(args).status().unwrap().success());
        }
    }
}

/// A pod with one volume.
#[derive(Clone)]
struct Pod {
    uid: &'static str,
    namespace: &'static str,
    target: PathBuf,
    token: String,
    /// Its name, where the pod has several.
    volume: Option<&'static str>,
}

impl Pod {
    fn volume(&self) -> String {
        format!("csi-{}{}", self.uid, self.volume.unwrap_or_default())
    }

    /// The sources, as the pod sees them.
    fn src(&self) -> PathBuf {
        self.target.join("src")
    }
}

fn mount_capability() -> csi::VolumeCapability {
    use csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
    csi::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {},
        "status": {"allocatable": {"cpu": "30", "memory": "60Gi", "pods": "110"},
                   "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pod(uid: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{uid}"), "namespace": namespace, "uid": uid},
        "spec": {"nodeName": NODE, "serviceAccountName": "default", "containers": [{"name": "main", "image": "build"}]},
        "status": {"phase": "Pending"},
    })
}
