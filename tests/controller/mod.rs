//! Nodes for gated pods: real controllers and real agents, and an API server that keeps what it is given.

mod away;
mod passed;
mod leaders;
mod placed;
mod theirs;

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use stoker_proto::v1;

use crate::admission::configuration;
use crate::support::api_server::ApiServer;
use crate::support::repository::TestRepo;
use crate::support::stoker::{Agent, Running, Stoker, http_get};
use crate::support::upstream::Upstream;
use crate::support::{free_port, wait};

/// What anything may take: debug builds on two busy cores, and an election of 15 s.
const LIMIT: Duration = Duration::from_secs(90);
const NODES: [&str; 2] = ["ghost", "exo0"];
const GATE: &str = "stoker.build/admission";
const LEASE: &str = "/metadata/annotations/stoker.build~1lease";
const PLACEMENT: &str = "/metadata/annotations/stoker.build~1placement";

/// Two nodes with room for three builds each, and a cluster.
struct World {
    agents: Vec<Agent>,
    api: ApiServer,
    home: Stoker,
    port: u16,
    url: String,
    _upstream: Upstream,
    _repo: TestRepo,
}

/// A controller; killed when it is dropped.
struct Controller {
    running: Running,
    http: u16,
}

impl Controller {
    fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    fn leads(&self) -> bool {
        http_get(self.http, "/readyz").is_some_and(|(status, body)| status == 200 && body == "leads\n")
    }

    fn wait_leads(&self) {
        wait::until(LIMIT, "the controller leads", || self.leads());
    }
}

impl World {
    fn start() -> Self {
        let repo = TestRepo::standard();
        let (upstream, url) = Upstream::of(&repo);
        let (api, home, port) = (ApiServer::start(), Stoker::new(), free_port());
        std::fs::write(home.home().join("kubeconfig"), api.kubeconfig()).unwrap();
        let mut endpoints = Vec::new();
        let agents = NODES.iter().zip(1..).map(|(name, last)| {
            api.put("nodes", node(name));
            endpoints.push(json!({"addresses": [format!("127.0.0.{last}")], "nodeName": name, "conditions": {"ready": true}}));
            let mut agent = Agent::prepare(&format!(
                "listen: {{socket: $ROOT/run/stoker.sock, grpc: {{address: \"127.0.0.{last}:{port}\", insecure: loopback}}}}\n\
                 kubernetes: {{watch: on, heartbeat: 1s, namespace: stoker, unlimited: size}}\n{}",
                configuration().replace("name: ghost", &format!("name: {name}"))
            ));
            agent.env("KUBECONFIG", home.home().join("kubeconfig"));
            agent.launch();
            agent.wait_ready();
            wait::until(LIMIT, "the gate opens", || agent.log().contains("gate state=open"));
            agent
        });
        let agents = agents.collect();
        let metadata = json!({"name": "stoker-agents-x", "namespace": "stoker",
            "labels": {"kubernetes.io/service-name": "stoker-agents"}});
        api.put("endpointslices", json!({"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints}));
        Self { agents, api, home, port, url, _upstream: upstream, _repo: repo }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.home.home().join("kubeconfig")
    }

    fn controller(&self, identity: &str) -> Controller {
        self.controller_with(identity, &[])
    }

    fn controller_with(&self, identity: &str, more: &[&str]) -> Controller {
        let http = free_port();
        let (port, address) = (self.port.to_string(), format!("127.0.0.1:{http}"));
        let args = ["controller", "--port", &port, "--http", &address, "--identity", identity];
        let running =
            self.home.command(args.iter().chain(more)).env("KUBECONFIG", self.kubeconfig()).env("STOKER_LOG", "debug");
        Controller { running: running.deadline(LIMIT * 4).spawn(), http }
    }

    /// A gated pod that wants a third of a node.
    fn gated(&self, name: &str) {
        self.gated_as(name, &json!({}));
    }

    /// With more in its spec.
    fn gated_as(&self, name: &str, more: &Value) {
        let attributes =
            json!({"repository": self.url, "ref": "branch:main", "disk": "1MiB", "cpu": "100m", "time": "10m"});
        let requests = json!({"resources": {"requests": {"memory": "2Gi", "cpu": "50m"}}});
        let mut container = json!({"name": "build"});
        container.as_object_mut().unwrap().extend(requests.as_object().unwrap().clone());
        let mut spec = json!({
            "schedulingGates": [{"name": GATE}],
            "serviceAccountName": "builder",
            "containers": [container],
            "volumes": [{"name": "src", "csi": {"driver": "stoker.build", "volumeAttributes": attributes}}],
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let metadata = json!({"name": name, "namespace": "builds", "creationTimestamp": "2026-01-01T00:00:00Z"});
        self.api.put("pods", json!({"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}));
    }

    /// All pods that are there.
    fn names(&self) -> Vec<String> {
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
        self.api.all("pods").iter().map(name).collect()
    }

    fn pod(&self, name: &str) -> Value {
        self.api.get("pods", "builds", name).unwrap()
    }

    fn text(&self, name: &str, path: &str) -> String {
        self.pod(name).pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    fn is_gated(&self, name: &str) -> bool {
        self.pod(name)["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty())
    }

    /// The node that a pod was let go to, when it was.
    fn wait_placed(&self, name: &str) -> String {
        wait::until(LIMIT, &format!("{name} is placed; {:?}", self.reasons(name)), || !self.is_gated(name));
        let placement = self.text(name, PLACEMENT);
        placement.split(' ').next().unwrap().to_owned()
    }

    /// What events say of a pod.
    fn reasons(&self, name: &str) -> Vec<String> {
        let uid = self.text(name, "/metadata/uid");
        let all = self.api.all("events").into_iter();
        let of_it = all.filter(|event| event["regarding"]["uid"] == uid.as_str());
        of_it
            .map(|event| format!("{}: {}", event["reason"].as_str().unwrap(), event["note"].as_str().unwrap()))
            .collect()
    }

    fn wait_told(&self, name: &str, reason: &str) -> String {
        let found = || self.reasons(name).into_iter().find(|text| text.starts_with(reason));
        wait::until(LIMIT, &format!("{name} is told {reason}"), || found().is_some());
        found().unwrap()
    }

    fn agent(&self, node: &str) -> &Agent {
        &self.agents[NODES.iter().position(|name| *name == node).unwrap()]
    }

    fn signal_agents(&self, signal: Signal) {
        self.agents.iter().for_each(|agent| kill(Pid::from_raw(agent.pid().cast_signed()), signal).unwrap());
    }

    /// Nodes, ids and requests of the leases that live.
    async fn live(&self) -> Vec<(&'static str, v1::Lease)> {
        let mut all = Vec::new();
        for (node, agent) in NODES.iter().zip(&self.agents) {
            let listed = agent.admission().await.list_leases(v1::ListLeasesRequest::default()).await.unwrap();
            all.extend(listed.into_inner().leases.into_iter().map(|lease| (*node, lease)));
        }
        all
    }

    /// A pod has one lease, the one that lives.
    async fn has_one_lease(&self, name: &str) {
        let (uid, id) = (self.text(name, "/metadata/uid"), self.text(name, LEASE));
        let of_it =
            self.live().await.into_iter().filter(|(_, lease)| lease.request_id.starts_with(&format!("gate-{uid}-")));
        let ids: Vec<String> = of_it.map(|(_, lease)| lease.id).collect();
        assert_eq!(ids, [id], "{name}");
    }
}

fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": if name == "ghost" { "a" } else { "b" }}},
        "spec": {},
        "status": {
            "capacity": {"cpu": "32", "memory": "62Gi", "pods": "110"},
            "allocatable": {"cpu": "32", "memory": "62Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}
