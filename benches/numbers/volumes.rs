//! Sources as a volume, beside what an init container does on the same node.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use stoker_proto::csi::node_client::NodeClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use crate::numbers::report::{By, Line, Report, Samples, Target, Unit, alternate};
use crate::numbers::world::World;
use crate::support::api_server::ApiServer;
use crate::support::front::Front;
use crate::support::kubelet::{self, Pod};
use crate::support::repository::git_out;
use crate::support::stoker::Agent;
use crate::support::token_review::Cluster;
use crate::support::upstream::Upstream;
use crate::support::wait;

const LIMIT: Duration = Duration::from_secs(900);
/// Volumes of one round: each takes milliseconds.
const VOLUMES: usize = 20;

/// A node with a driver, and pods that it never saw before.
struct Node {
    agent: Agent,
    tokens: Cluster,
    api: ApiServer,
    runtime: Runtime,
    url: String,
    commit: String,
    pods: RefCell<usize>,
    _front: Front,
}

impl Node {
    fn start(url: String, commit: String) -> Self {
        let mut node = kubelet::node();
        // Those that ended stay in the API server, as they do in a cluster.
        node["status"]["allocatable"]["pods"] = json!("4096");
        let (agent, tokens, api, front) = kubelet::start(node, "", |_| {});
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        agent.stoker().run(["repo", "add", &url]).expect_code(0);
        let filled = || {
            let all = agent.stoker().run(["repo", "show", &url, "-o", "json"]).expect_code(0).json();
            all["repository"]["state"] == "REPOSITORY_STATE_READY"
        };
        wait::until(LIMIT, "the mirror is filled", filled);
        Self { agent, tokens, api, runtime, url, commit, pods: RefCell::new(0), _front: front }
    }

    /// A pod that the agent has seen, for the kubelet asks later than the API server tells.
    fn pod(&self) -> Pod {
        let number = self.pods.replace_with(|number| *number + 1);
        let uid: &'static str = Box::leak(format!("uid-{number}").into_boxed_str());
        self.api.put("pods", kubelet::pod(uid, "builds"));
        Pod::new(&self.agent.root().join("shared/kubelet"), &self.tokens, uid, "builds")
    }

    /// A kubelet connects for each call.
    async fn driver(socket: PathBuf) -> NodeClient<Channel> {
        let address = format!("unix://{}", socket.display());
        NodeClient::new(Endpoint::try_from(address).unwrap().connect().await.unwrap())
    }

    /// How long it takes until a pod has its volume. It is there, whole, and gone again afterwards.
    fn publish(&self, pod: &Pod, files: usize) -> Duration {
        let reference = format!("sha:{}", self.commit);
        let size = [("cpu", "100m"), ("memory", "64MiB"), ("disk", "1MiB")];
        let attributes = [[("repository", self.url.as_str()), ("ref", &reference)].as_slice(), &size].concat();
        let (request, socket) = (pod.wants(&attributes), self.agent.root().join("plugin/csi.sock"));
        let again = socket.clone();
        let took = self.on(async move {
            loop {
                let began = Instant::now();
                match Self::driver(again.clone()).await.node_publish_volume(request.clone()).await {
                    Ok(_) => return began.elapsed(),
                    // The first one of all waits for the checkout.
                    Err(status) if status.code() == tonic::Code::Unavailable => {}
                    Err(status) => panic!("{status:?}"),
                }
            }
        });
        let top = std::fs::read_dir(pod.src()).unwrap().count();
        assert!(top > 1, "{top} entries");
        let listed = git_out(&pod.src(), &["rev-parse", "HEAD"]);
        assert_eq!(listed, self.commit, "of {files} files");
        let leaves = pod.leaves();
        self.on(async move { Self::driver(socket).await.node_unpublish_volume(leaves).await.map(drop).unwrap() });
        self.api.delete("pods", pod.namespace, &format!("pod-{}", pod.uid));
        took
    }

    fn on<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.block_on(self.runtime.spawn(work)).unwrap()
    }

    /// Waits until what was thrown away is really gone, so that its removal slows nothing that is measured.
    fn wait_for_trash(&self) {
        let pool = self.agent.root().join("shared/pool/stoker");
        let empty = |name| std::fs::read_dir(pool.join(name)).is_ok_and(|mut entries| entries.next().is_none());
        wait::until(LIMIT, "the trash is empty", || empty("workspaces") && empty("trash"));
    }
}

/// From `NodePublishVolume` to its return, for pods that the node never saw, of a commit that is kept; beside clones from the
/// same upstream on the same node, without what starting their container costs.
pub(crate) fn publish(world: &World, report: &mut Report) {
    if !nix::unistd::geteuid().is_root() {
        println!("volume: not measured: mounts need root");
        return;
    }
    let rounds = world.options.rounds();
    let repo = world.line();
    let files = git_out(&repo.path(), &["ls-tree", "-r", "--name-only", "main"]).lines().count();
    let (_upstream, url) = Upstream::of(repo);
    let node = Node::start(url.clone(), repo.commit("main"));
    let mirror = node.agent.root().join("mirror.git");
    git_out(node.agent.root(), &["clone", "--quiet", "--mirror", &url, mirror.to_str().unwrap()]);
    let mut number = 0;
    let mut clone = |more: &[&str]| {
        number += 1;
        let place = node.agent.root().join(format!("peer-{number}"));
        rustix::fs::sync();
        let began = Instant::now();
        git_out(node.agent.root(), &[&["clone", "--quiet"], more, &[&url, place.to_str().unwrap()]].concat());
        let mut samples = Samples::default();
        samples.push_time(began.elapsed());
        samples
    };
    node.publish(&node.pod(), files);
    let ours = || {
        node.wait_for_trash();
        let pods: Vec<Pod> = (0..VOLUMES).map(|_| node.pod()).collect();
        rustix::fs::sync();
        let mut samples = Samples::default();
        // The last one told of is the first: then the agent has seen them all.
        node.publish(pods.last().unwrap(), files);
        pods[..VOLUMES - 1].iter().for_each(|pod| samples.push_time(node.publish(pod, files)));
        samples
    };
    let (shallow, depth) = alternate(rounds, ours, || clone(&["--depth", "1"]));
    let (borrowed, reference) = alternate(rounds, ours, || clone(&["--reference", mirror.to_str().unwrap()]));
    let mut all = shallow.clone();
    all.extend(borrowed.clone());
    let mut line = |what: &str, ours, peer, target| {
        report.line(Line { what: format!("volume, {files} files{what}"), unit: Unit::Time, ours, peer, target });
    };
    line("", shallow, Some(("git clone --depth 1", depth)), Target::Max(By::Median, 0.060));
    line("", borrowed, Some(("git clone --reference", reference)), Target::Max(By::Median, 0.060));
    line(", p99", all.at(0.99), None, Target::Told("none"));
}
