//! Sources as volumes: what a kubelet asks of the driver over its socket, with a cluster that makes pods and their tokens,
//! and real mounts.

mod carried;
mod crowd;
mod ended;
mod hostile;
mod known;
mod one_build;
mod own_cache;
mod publish;
mod sanity;
mod shown;
mod slow;
mod survive;
mod together;
mod users;

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
use crate::support::kubelet::{self, NODE, Pod, node, pod};
use crate::support::loopdev::needs_root;
use crate::support::repository::{TestRepo, git_out};
use crate::support::stoker::Agent;
use crate::support::token_review::{Claims, Cluster, of};
use crate::support::upstream::Upstream;
use crate::support::wait;

const LIMIT: Duration = Duration::from_secs(60);

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
        let (agent, tokens, api, front) = kubelet::start(node(), more, before);
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
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).unwrap().origin(origin);
        // Its file is there before anybody listens, as that of an agent that ended is.
        wait::until_async(LIMIT, "somebody listens", async || endpoint.connect().await.is_ok()).await;
        endpoint.connect().await.unwrap()
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
        Pod::new(&self.kubelet(), &self.tokens, uid, namespace)
    }

    /// What the kubelet sends for a volume with these attributes.
    fn wanted(&self, pod: &Pod, attributes: &[(&str, &str)]) -> csi::NodePublishVolumeRequest {
        // Else they are refused.
        let readonly = attributes.contains(&("kind", "mirrors")) || *attributes == [("kind", "cache")];
        csi::NodePublishVolumeRequest { readonly, ..pod.wants(attributes) }
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
        self.node().await.node_unpublish_volume(pod.leaves()).await.map(drop)
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
