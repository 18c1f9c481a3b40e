//! A farm that fits on one machine: thousands of simulated agents, each at an address of its own with the real ledger; an API
//! server; pods that wait under the gate; hands that do what a scheduler and kubelets do; and real `stoker controller`s.
//!
//! [`agent`], [`wire`], [`words`]: the agents. [`objects`]: what the API server has. [`hands`]: what happens to pods.
//! [`process`]: the controllers. [`fate`]: what goes wrong. [`holds`]: what must be so whatever happens. [`measured`]: how long it takes.

pub(crate) mod agent;
pub(crate) mod fate;
pub(crate) mod hands;
pub(crate) mod holds;
pub(crate) mod measured;
pub(crate) mod objects;
pub(crate) mod process;
pub(crate) mod wire;
pub(crate) mod words;

use std::sync::Arc;
use std::time::Duration;

use agent::{Counts, Simulated};
use hands::{Hands, Pace, Wrongs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use objects::{Asks, NAMESPACE, SERVICE};
use process::{Controller, ELECTION};
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::Identity;

use super::api_server::ApiServer;
use super::authority::Authority;
use super::chance::Chance;
use super::wait;

/// Namespaces that have pods: each is a tenant.
const TENANTS: u64 = 8;
/// Repositories, of which each agent has a few.
const REPOSITORIES: u64 = 40;

/// What there is.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) agents: usize,
    /// CPUs of one node, at least and at most; GiB are twice as many.
    pub(crate) cpus: (u64, u64),
    pub(crate) pace: Pace,
    /// How long a grant is kept for its pod, as the controllers are told.
    pub(crate) bind_within: Duration,
    /// The agents have certificates, as in a cluster.
    pub(crate) tls: bool,
    /// What the controllers are told beside whom to ask.
    pub(crate) arguments: Vec<String>,
    pub(crate) seed: u64,
}

pub(crate) struct Farm {
    pub(crate) agents: Vec<Arc<Simulated>>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) api: Arc<ApiServer>,
    pub(crate) hands: Arc<Hands>,
    pub(crate) controllers: Vec<Controller>,
    pub(crate) wrongs: Wrongs,
    pub(crate) chance: Chance,
    pods: usize,
    pub(crate) runtime: Option<Runtime>,
    _home: tempfile::TempDir,
}

/// The name of a repository that an agent may have.
fn repository(number: u64) -> String {
    format!("https://git.example.org/project-{number}")
}

impl Farm {
    /// All agents listen, all is told to the API server; no controller runs yet.
    pub(crate) fn new(plan: &Plan) -> Self {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // A listener and a connection or two for each.
        assert!(most > 3 * plan.agents as u64 + 512, "{} agents need more than {most} open files", plan.agents);
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let mut chance = Chance::new(plan.seed).fork(1);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let counts = Arc::new(Counts::default());
        let authority = plan.tls.then(|| Authority::new("the farm"));
        let identity = authority.as_ref().map(|authority| {
            let signed = authority.server_of(&[&format!("{SERVICE}.{NAMESPACE}.svc")]);
            Identity::from_pem(signed.certificate, signed.key)
        });
        let port = super::free_port();
        let agents: Vec<_> = (0..plan.agents)
            .map(|number| {
                let (least, most) = plan.cpus;
                let cpus = least + chance.below(most - least + 1);
                let mut mirrors: Vec<String> = (0..3).map(|_| key(&repository(chance.below(REPOSITORIES)))).collect();
                mirrors.sort();
                mirrors.dedup();
                Simulated::new((number, port), cpus, mirrors, identity.clone(), &counts)
            })
            .collect();
        agents.iter().for_each(|agent| agent.start(runtime.handle(), false));
        let api = Arc::new(ApiServer::start());
        objects::slices(&agents).into_iter().for_each(|slice| api.put("endpointslices", slice));
        let wrongs = Wrongs::default();
        let hands = Hands::new(&agents, plan.pace, &wrongs, chance.fork(2));
        runtime.spawn(Arc::clone(&hands).follow(Arc::clone(&api)));
        let (all, wrong, bind_within) = (agents.clone(), Arc::clone(&wrongs), plan.bind_within);
        runtime.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1));
            loop {
                ticks.tick().await;
                all.iter().for_each(|agent| agent.advance());
                wrong.lock().unwrap().extend(holds::at_any_time(&all, bind_within));
            }
        });
        let home = super::place("farm-");
        std::fs::write(home.path().join("kubeconfig"), api.kubeconfig()).unwrap();
        let mut arguments = vec![format!("--port={port}")];
        arguments.extend_from_slice(&plan.arguments);
        if let Some(authority) = &authority {
            let path = home.path().join("ca.pem");
            std::fs::write(&path, authority.pem()).unwrap();
            arguments.push(format!("--ca-file={}", path.display()));
        }
        let controllers = ["first", "second"].map(|name| Controller::new(home.path(), name, &arguments)).into();
        Self { agents, counts, api, hands, controllers, wrongs, chance, pods: 0, runtime: Some(runtime), _home: home }
    }

    /// So many pods more, each of so many CPUs. Their names.
    pub(crate) fn add_pods(&mut self, count: usize, cpu: u64) -> Vec<Asks> {
        let all: Vec<_> = (0..count)
            .map(|_| {
                self.pods += 1;
                Asks {
                    name: format!("pod-{:06}", self.pods),
                    namespace: format!("team-{}", self.chance.below(TENANTS)),
                    cpu,
                    gib: cpu * 2,
                    repository: repository(self.chance.below(REPOSITORIES)),
                }
            })
            .collect();
        all.iter().enumerate().for_each(|(number, asks)| self.api.put("pods", objects::pod(asks, number)));
        all
    }

    /// Whoever leads, as the API server has it.
    pub(crate) fn leader(&self) -> Option<usize> {
        let lease = self.api.get("leases", NAMESPACE, ELECTION)?;
        let holder = objects::text(&lease, "/spec/holderIdentity").to_owned();
        self.controllers.iter().position(|controller| controller.identity == holder)
    }

    pub(crate) fn start_controllers(&mut self) {
        self.controllers.iter_mut().for_each(Controller::start);
    }

    /// Waits until a controller leads and hears all agents.
    #[track_caller]
    pub(crate) fn wait_until_heard(&mut self, limit: Duration) {
        let heard = wait::holds_within(limit, || {
            for controller in &self.controllers {
                assert!(controller.runs(), "{} ended\n{}", controller.identity, controller.log());
            }
            let streams = self.counts.streams.load(std::sync::atomic::Ordering::Relaxed);
            self.leader().is_some() && usize::try_from(streams).unwrap() >= self.agents.len()
        });
        let streams = self.counts.streams.load(std::sync::atomic::Ordering::Relaxed);
        assert!(heard, "leader {:?}, {streams} streams of {}", self.leader(), self.agents.len());
    }

    /// The pods that are there.
    pub(crate) fn pods(&self) -> Vec<Value> {
        self.api.all("pods")
    }
}

/// How a repository's key is written: without the scheme.
fn key(url: &str) -> String {
    url.trim_start_matches("https://").to_owned()
}

impl Drop for Farm {
    fn drop(&mut self) {
        self.controllers.iter_mut().for_each(Controller::kill);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
