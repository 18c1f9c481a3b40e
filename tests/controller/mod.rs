//! Nodes for gated pods: real controllers and real agents, and an API server that keeps what it is given.

mod away;
mod deaths;
mod kept;
mod leaders;
mod let_go;
mod lost;
mod passed;
mod placed;
mod theirs;
mod told;
mod trusted;
mod watched;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use stoker_proto::v1;

use crate::admission::configuration;
use crate::support::api_server::ApiServer;
use crate::support::repository::TestRepo;
use crate::support::stoker::{Agent, Running, Stoker, http_get};
use crate::support::upstream::Upstream;
use crate::support::wire::seconds;
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

    fn stands_by(&self) -> bool {
        http_get(self.http, "/readyz").is_some_and(|(status, body)| status == 200 && body == "stands by\n")
    }

    /// Waits until so many agents tell their room.
    fn wait_hears(&self, agents: usize) {
        let line = format!("stoker_controller_agents{{what=\"told\"}} {agents}\n");
        let hears = || http_get(self.http, "/metrics").is_some_and(|(_, text)| text.contains(&line));
        wait::until(LIMIT, &format!("it hears {agents} agents"), hears);
    }
}

impl World {
    fn start() -> Self {
        let api = ApiServer::start();
        let kubeconfig = api.kubeconfig();
        Self::of(api, &kubeconfig, "insecure: loopback", "", |_| {})
    }

    /// With the rest of what agents are told of gRPC, more in their configuration, and what is done before they begin.
    fn of(api: ApiServer, kubeconfig: &str, grpc: &str, more: &str, before: impl Fn(&Agent)) -> Self {
        let repo = TestRepo::standard();
        let (upstream, url) = Upstream::of(&repo);
        let (home, port) = (Stoker::new(), free_port());
        std::fs::write(home.home().join("kubeconfig"), kubeconfig).unwrap();
        let mut endpoints = Vec::new();
        let agents = NODES.iter().zip(1..).map(|(name, last)| {
            api.put("nodes", node(name));
            endpoints.push(
                json!({"addresses": [format!("127.0.0.{last}")], "nodeName": name, "conditions": {"ready": true}}),
            );
            let mut agent = Agent::prepare(&format!(
                "listen: {{socket: $ROOT/run/stoker.sock, grpc: {{address: \"127.0.0.{last}:{port}\", {grpc}}}}}\n\
                 kubernetes: {{watch: on, heartbeat: 1s, namespace: stoker, unlimited: size}}\n{}{more}",
                configuration().replace("name: ghost", &format!("name: {name}"))
            ));
            agent.env("KUBECONFIG", home.home().join("kubeconfig"));
            before(&agent);
            begin(&mut agent);
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

    /// With more arguments.
    fn controller_with(&self, identity: &str, more: &[&str]) -> Controller {
        let http = free_port();
        let (port, address) = (self.port.to_string(), format!("127.0.0.1:{http}"));
        let args = ["controller", "--port", &port, "--http", &address, "--identity", identity];
        let running = self.home.command(args.iter().chain(more)).env("KUBECONFIG", self.kubeconfig());
        let running = running.env("STOKER_LOG", "info,stoker=debug");
        Controller { running: running.deadline(LIMIT * 4).spawn(), http }
    }

    /// A controller that leads.
    fn leader(&self, identity: &str) -> Controller {
        let controller = self.controller(identity);
        controller.wait_leads();
        controller
    }

    /// A gated pod that wants a third of a node.
    fn gated(&self, name: &str) {
        self.gated_as(name, &json!({}));
    }

    /// With more in its spec.
    fn gated_as(&self, name: &str, more: &Value) {
        self.gated_like(name, |pod| {
            pod["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        });
    }

    /// With something changed.
    fn gated_like(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let attributes =
            json!({"repository": self.url, "ref": "branch:main", "disk": "1MiB", "cpu": "100m", "time": "10m"});
        let requests = json!({"requests": {"memory": "2Gi", "cpu": "50m"}});
        let spec = json!({
            "schedulingGates": [{"name": GATE}],
            "serviceAccountName": "builder",
            "containers": [{"name": "build", "resources": requests}],
            "volumes": [{"name": "src", "csi": {"driver": "stoker.build", "volumeAttributes": attributes}}],
        });
        let metadata = json!({"name": name, "namespace": "builds", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let mut pod = json!({"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}});
        change(&mut pod);
        self.api.put("pods", pod);
    }

    /// A gated pod that has been granted a lease; what would let it go is held until [`ApiServer::hold`] says otherwise.
    async fn granted_and_held(&self, name: &str) {
        self.api.hold("schedulingGates");
        self.gated(name);
        wait::until_async(LIMIT, "it is granted", async || self.live().await.len() == 1).await;
    }

    /// All pods that are there.
    fn names(&self) -> Vec<String> {
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
        let all = self.api.all("pods").into_iter().filter(|pod| pod["metadata"]["namespace"] == "builds");
        all.map(|pod| name(&pod)).collect()
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
        self.meant(name)
    }

    /// The node that stands on a pod as the one that is asked for it.
    fn meant(&self, name: &str) -> String {
        self.text(name, PLACEMENT).split(' ').next().unwrap().to_owned()
    }

    /// What events say of a pod.
    fn reasons(&self, name: &str) -> Vec<String> {
        self.reasons_of(&self.text(name, "/metadata/uid"))
    }

    fn reasons_of(&self, uid: &str) -> Vec<String> {
        let all = self.api.all("events").into_iter();
        let of_it = all.filter(|event| event["regarding"]["uid"] == uid);
        of_it
            .map(|event| format!("{}: {}", event["reason"].as_str().unwrap(), event["note"].as_str().unwrap()))
            .collect()
    }

    fn wait_told(&self, name: &str, reason: &str) -> String {
        let found = || self.reasons(name).into_iter().find(|text| text.starts_with(reason));
        wait::until(LIMIT, &format!("{name} is told {reason}"), || found().is_some());
        found().unwrap()
    }

    /// What stands on a pod of its node was written so long ago.
    fn age(&self, name: &str, by: Duration) {
        let since = (SystemTime::now() - by).duration_since(SystemTime::UNIX_EPOCH).unwrap();
        self.api.change("pods", "builds", name, |pod| {
            let placement = pod.pointer_mut(PLACEMENT).unwrap();
            let (meant, _) = placement.as_str().unwrap().rsplit_once(' ').unwrap();
            *placement = json!(format!("{meant} {}", since.as_millis()));
        });
    }

    fn agent(&self, node: &str) -> &Agent {
        &self.agents[number_of(node)]
    }

    fn agent_mut(&mut self, node: &str) -> &mut Agent {
        &mut self.agents[number_of(node)]
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

    /// The lease that stands on a pod, as its node has it, where it lives.
    async fn held(&self, name: &str) -> Option<v1::Lease> {
        let id = self.text(name, LEASE);
        self.live().await.into_iter().map(|(_, lease)| lease).find(|lease| lease.id == id)
    }

    /// Until when a pod's lease is reserved.
    async fn bind_by(&self, name: &str) -> (i64, i32) {
        let held = self.held(name).await.unwrap();
        held.bind_by.map(|at| (at.seconds, at.nanos)).unwrap()
    }

    /// A pod's reservation runs out, as where nobody keeps it.
    async fn run_out(&self, name: &str, node: &str) {
        let lease_id = self.text(name, LEASE);
        let soon = v1::RenewRequest { lease_id, reserve_for: seconds(1) };
        self.agent(node).admission().await.renew(soon).await.unwrap();
        wait::until_async(LIMIT, "it runs out", async || self.held(name).await.is_none()).await;
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

fn number_of(node: &str) -> usize {
    NODES.iter().position(|name| *name == node).unwrap()
}

/// Starts an agent, and waits until its node takes builds.
fn begin(agent: &mut Agent) {
    let before = agent.log().len();
    agent.launch();
    agent.wait_ready();
    wait::until(LIMIT, "the gate opens", || agent.log()[before..].contains("gate state=open"));
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
