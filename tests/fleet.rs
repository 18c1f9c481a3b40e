//! All agents behind one name: three of them on addresses of their own, and a resolver that knows them.

mod waiting;

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use stoker_proto::v1;

use crate::admission::{MEMORY, configuration};
use crate::support::authority::{Authority, swap_secret};
use crate::support::loopdev::needs_root;
use crate::support::repository::TestRepo;
use crate::support::stoker::{Agent, BINARY, Invocation, Output, Stoker};
use crate::support::token_review::{Cluster, of};
use crate::support::upstream::Upstream;
use crate::support::wire::{seconds, source};
use crate::support::{free_port, wait};

const NAME: &str = "agents.stoker.test";
const NODES: [&str; 3] = ["ghost", "exo0", "exo1"];
/// What a command may take beside what it waits for: a debug build on two busy cores.
const SOON: Duration = Duration::from_secs(30);
/// What an agent may take that is asked with others, as `agent/cli/fleet.rs` has it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);

/// Three agents with room for three builds each, and who asks them.
pub(crate) struct Fleet {
    agents: Vec<Agent>,
    pub(crate) caller: Stoker,
    port: u16,
    pub(crate) url: String,
    upstream: Upstream,
    _repo: TestRepo,
}

impl Fleet {
    /// On loopback without TLS.
    pub(crate) fn start() -> Self {
        Self::with("insecure: loopback", "", |_| ())
    }

    /// Each with this in its `listen.grpc`, more in its configuration, and `before` it starts.
    fn with(grpc: &str, more: &str, mut before: impl FnMut(&mut Agent)) -> Self {
        let repo = TestRepo::standard();
        let (upstream, url) = Upstream::of(&repo);
        let port = free_port();
        let agents = NODES.iter().zip(1..).map(|(name, last)| {
            let mut agent = Agent::prepare(&format!(
                "listen: {{socket: $ROOT/run/stoker.sock, grpc: {{address: \"127.0.0.{last}:{port}\", {grpc}}}}}\n{}{more}",
                configuration().replace("name: ghost", &format!("name: {name}"))
            ));
            before(&mut agent);
            agent.launch();
            agent.wait_ready();
            agent
        });
        let fleet = Self { agents: agents.collect(), caller: Stoker::new(), port, url, upstream, _repo: repo };
        fleet.resolve(&[1, 2, 3]);
        fleet
    }

    /// From now on the name has the addresses 127.0.0.N.
    fn resolve(&self, last: &[u8]) {
        let hosts: String = last.iter().map(|last| format!("127.0.0.{last} {NAME}\n")).collect();
        std::fs::write(self.hosts(), hosts).unwrap();
    }

    fn hosts(&self) -> std::path::PathBuf {
        self.caller.home().join("hosts")
    }

    /// A program for which the name is resolved; the machine's own hosts stay as they are.
    pub(crate) fn program(&self, program: &str, args: &[&str]) -> Invocation {
        let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        let hosts = self.hosts();
        let before = ["--mount", "--propagation", "private", "sh", "-c", script, hosts.to_str().unwrap(), program];
        self.caller.program("unshare", before.iter().chain(args))
    }

    pub(crate) fn name(&self) -> String {
        format!("{NAME}:{}", self.port)
    }

    fn lease(&self, verb: &str, more: &[&str]) -> Invocation {
        let name = self.name();
        let build = ["--repo", &self.url, "--ref", "branch:main", "--memory", "2GiB"];
        let rest = ["--disk", "1MiB", "--time", "10m", "--fleet", &name];
        // A third of a node, unless a test says more.
        let cpu: &[&str] = if more.contains(&"--cpu") { &[] } else { &["--cpu", "100m"] };
        let args = [&["lease", verb][..], &build, &rest, cpu, more].concat();
        self.program(BINARY, &args)
    }

    pub(crate) fn agent(&self, node: &str) -> &Agent {
        let at = NODES.iter().position(|name| *name == node).unwrap();
        &self.agents[at]
    }

    pub(crate) fn address(&self, node: &str) -> String {
        let at = NODES.iter().position(|name| *name == node).unwrap();
        format!("127.0.0.{}:{}", at + 1, self.port)
    }

    /// Whoever lives: nodes and request ids of the live leases.
    async fn live(&self) -> Vec<(&str, v1::Lease)> {
        let mut all = Vec::new();
        for (node, agent) in NODES.iter().zip(&self.agents) {
            let listed = agent.admission().await.list_leases(v1::ListLeasesRequest::default()).await.unwrap();
            all.extend(listed.into_inner().leases.into_iter().map(|lease| (*node, lease)));
        }
        all
    }

    /// The nodes on which a request has a lease that lives.
    pub(crate) async fn leases_of(&self, request_id: &str) -> Vec<&str> {
        let live = self.live().await;
        live.into_iter().filter(|(_, lease)| lease.request_id == request_id).map(|(node, _)| node).collect()
    }

    /// The nodes on which somebody waits.
    async fn waited_on(&self) -> Vec<&str> {
        let mut all = Vec::new();
        for (node, agent) in NODES.iter().zip(&self.agents) {
            let listed = agent.admission().await.list_tickets(v1::ListTicketsRequest::default()).await.unwrap();
            all.extend(listed.into_inner().tickets.iter().map(|_| *node));
        }
        all
    }

    async fn is_waited_on_everywhere(&self) {
        wait::until_async(SOON, "a ticket on each", || async { self.waited_on().await.len() == NODES.len() }).await;
    }

    /// There is room for no more on this node, for as long as nobody releases.
    async fn fill(&self, node: &str) {
        for number in 0..3 {
            let declared = v1::Size {
                cpu_millis: Some(100),
                memory_bytes: Some(MEMORY),
                disk_bytes: Some(1 << 20),
                disk_inodes: Some(100),
                time_budget: seconds(600),
            };
            let build = v1::Build {
                source: Some(source(&self.url, "branch:main")),
                declared: Some(declared),
                ..v1::Build::default()
            };
            let request = v1::AdmitRequest {
                request_id: format!("fill-{node}-{number}-{}", uuid::Uuid::now_v7()),
                build: Some(build),
                bind_within: seconds(1800),
                ..v1::AdmitRequest::default()
            };
            let answer = self.agent(node).admission().await.admit(request).await.unwrap().into_inner();
            assert!(matches!(answer.decision, Some(v1::admit_response::Decision::Granted(_))), "{answer:?}");
        }
    }

    async fn release(&self, node: &str, lease_id: &str) {
        let mut request = v1::ReleaseRequest { lease_id: lease_id.to_owned(), ..v1::ReleaseRequest::default() };
        request.set_outcome(v1::Outcome::Succeeded);
        self.agent(node).admission().await.release(request).await.unwrap();
    }

    /// The first of a node's leases.
    async fn first(&self, node: &str) -> String {
        let listed = self.agent(node).admission().await.list_leases(v1::ListLeasesRequest::default()).await.unwrap();
        listed.into_inner().leases[0].id.clone()
    }

    /// One build less on each of these nodes, at the same time.
    async fn come_free(&self, nodes: &[&str]) {
        let mut ended = Vec::new();
        for node in nodes {
            let id = self.first(node).await;
            ended.push(async move { self.release(node, &id).await });
        }
        futures_util::future::join_all(ended).await;
    }

    /// The places of all who wait on a node are given up.
    async fn cancel(&self, node: &str) {
        let mut client = self.agent(node).admission().await;
        for ticket in client.list_tickets(v1::ListTicketsRequest::default()).await.unwrap().into_inner().tickets {
            client.cancel_ticket(v1::CancelTicketRequest { ticket_id: ticket.id }).await.unwrap();
        }
    }
}

/// `(node, address)` of an answer to `admit -o json`.
fn placed(output: &Output) -> (String, String) {
    let answer = output.json();
    assert!(answer["granted"]["id"].is_string(), "{answer}");
    (answer["node"]["name"].as_str().unwrap().to_owned(), answer["address"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_is_taken_and_one_that_is_silent_costs_its_deadline() {
    needs_root!();
    let fleet = Fleet::start();
    let request = v1::RefreshRepositoryRequest { url: fleet.url.clone(), only_if_empty: true };
    let add = v1::AddRepositoryRequest { url: fleet.url.clone(), ..v1::AddRepositoryRequest::default() };
    let mut warm = fleet.agent("exo0").repository().await;
    warm.add_repository(add).await.unwrap();
    let mut events = warm.refresh_repository(request).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}
    fleet.fill("exo1").await;

    let all = fleet.lease("evaluate", &["-o", "json"]).run().expect_code(0).json();
    let said = |key: &str| -> Vec<String> {
        let agents = all["agents"].as_array().unwrap().iter();
        agents.map(|agent| agent["evaluation"][key].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(said("verdict"), ["VERDICT_FITS", "VERDICT_FITS", "VERDICT_WAITS"]);
    let first = &all["agents"][0];
    assert_eq!(
        (first["node"]["name"].as_str(), first["address"].as_str()),
        (Some("exo0"), Some(&*fleet.address("exo0")))
    );
    assert_eq!(
        (all["agents"][2]["node"]["name"].as_str(), all["missing"].to_string()),
        (Some("exo1"), "[]".to_owned())
    );

    // Nobody listens on .4; on .5 somebody does who never answers.
    fleet.resolve(&[1, 2, 3, 4]);
    // One run that takes less than it would be waited for shows that: others may fall on a busy moment of the machine.
    let (mut without, mut said) = (Duration::ZERO, String::new());
    let costs_nothing = wait::holds_within(SOON, || {
        let begun = Instant::now();
        said = fleet.lease("evaluate", &[]).run().expect_code(0).stdout;
        without = begun.elapsed();
        without < ANSWERED_WITHIN && said.contains("127.0.0.4") && said.contains("must wait")
    });
    assert!(costs_nothing, "one that is dead costs nothing, and is told: {without:?}, {said}");
    let silent = TcpListener::bind(("127.0.0.5", fleet.port)).unwrap();
    fleet.resolve(&[1, 2, 3, 4, 5]);
    let begun = Instant::now();
    let table = fleet.lease("evaluate", &[]).run().expect_code(0);
    let with = begun.elapsed();
    eprintln!("evaluate beside a dead agent: {without:?}; beside a silent one as well: {with:?}");
    assert!((ANSWERED_WITHIN..ANSWERED_WITHIN * 2 + SOON).contains(&with), "{with:?}");
    assert!(table.stdout.contains("127.0.0.5") && table.stdout.contains("no answer within 3 s"), "{}", table.stdout);

    let asks = |more: &[&str]| {
        let args = [&["--request-id", "a-build", "-o", "json"], more].concat();
        placed(&fleet.lease("admit", &args).run().expect_code(0))
    };
    let taken = ("exo0".to_owned(), fleet.address("exo0"));
    assert_eq!(asks(&[]), taken);
    // After a break: where it is, and not a second one.
    assert_eq!((asks(&[]), asks(&["--wait"])), (taken.clone(), taken));
    assert_eq!(fleet.leases_of("a-build").await, ["exo0"]);
    let other = fleet.lease("admit", &["--request-id", "a-build", "--target", "other"]).run().expect_code(2);
    assert!(other.stderr.contains("a-build"), "{}", other.stderr);
    assert_eq!(fleet.leases_of("a-build").await, ["exo0"]);

    // No is an answer only where nobody is missing who might say yes.
    let never = fleet.lease("admit", &["--cpu", "1000"]).run();
    assert!(never.expect_code(2).stderr.contains("not all agents answer"));
    drop(silent);
    fleet.resolve(&[1, 2, 3]);
    let never = fleet.lease("admit", &["--cpu", "1000", "--wait"]).run().expect_code(1);
    assert!(never.stdout.contains("CPU_BUDGET"), "{}", never.stdout);
    fleet.lease("evaluate", &["--cpu", "1000"]).run().expect_code(1);
    fleet.resolve(&[4]);
    let nobody = fleet.lease("admit", &["--wait"]).run().expect_code(2);
    assert!(nobody.stderr.contains("no agent answers: 1 asked at agents.stoker.test"), "{}", nobody.stderr);
    std::fs::write(fleet.hosts(), "").unwrap();
    let unknown = fleet.lease("admit", &[]).run().expect_code(2);
    assert!(unknown.stderr.contains("no agent answers: --fleet agents.stoker.test"), "{}", unknown.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_name_the_service_and_tokens_say_who_asks() {
    needs_root!();
    let (cluster, authority) = (Cluster::start(), Authority::new("farm"));
    let signed = authority.server_of(&[NAME]);
    let grpc = "tls: {certificate: $ROOT/tls/tls.crt, key: $ROOT/tls/tls.key}";
    let rule = "access: {rules: [{role: scheduler, serviceAccounts: [builds/default]}]}\n";
    let fleet = Fleet::with(grpc, rule, |agent| {
        let root = agent.root().to_owned();
        std::fs::create_dir(root.join("tls")).unwrap();
        swap_secret(&root.join("tls"), "first", &[("tls.crt", &signed.certificate), ("tls.key", &signed.key)]);
        std::fs::write(root.join("kubeconfig"), cluster.kubeconfig()).unwrap();
        agent.env("KUBECONFIG", root.join("kubeconfig"));
    });
    let home = fleet.caller.home();
    std::fs::write(home.join("ca.crt"), authority.pem()).unwrap();
    std::fs::write(home.join("token"), cluster.token(&of("builds", "default"))).unwrap();
    std::fs::write(home.join("anothers"), cluster.token(&of("red", "default"))).unwrap();
    let with = |invocation: Invocation, token: &str| {
        let token = if token.is_empty() { String::new() } else { home.join(token).to_str().unwrap().to_owned() };
        invocation.env("STOKER_CA_FILE", home.join("ca.crt")).env("STOKER_TOKEN_FILE", token)
    };
    for (token, told) in [("", "CREDENTIAL_INVALID"), ("anothers", "ACCESS_DENIED")] {
        let refused = with(fleet.lease("admit", &["--wait"]), token).run().expect_code(2);
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
    }
    let strange = with(fleet.lease("admit", &["--server-name", "stoker.stoker.svc"]), "token").run().expect_code(2);
    assert!(strange.stderr.contains("no agent answers: 3 asked"), "{}", strange.stderr);

    // What a shell sources names the agent for what follows.
    let granted = with(fleet.lease("admit", &["-o", "env"]), "token").run().expect_code(0).stdout;
    let line = format!("STOKER_SERVER_NAME='{NAME}'\n");
    assert!(granted.contains(&line) && granted.contains("STOKER_ADDRESS='127.0.0."), "{granted}");
    let script = format!("set -a; {granted}\n{BINARY} lease release \"$STOKER_LEASE\" --exit-code 0 -o json");
    let released = with(fleet.caller.program("sh", ["-euc", &script]), "token").run().expect_code(0).json();
    assert_eq!(released["lease"]["state"], "LEASE_STATE_RELEASED");
    let (address, _) = granted.split_once("STOKER_ADDRESS='").unwrap().1.split_once('\'').unwrap();
    let list = |more: &[&str]| {
        with(fleet.caller.command(["--address", address, "lease", "list"].iter().chain(more)), "token").run()
    };
    list(&["--server-name", NAME]).expect_code(0);
    let unnamed = list(&[]).expect_code(2);
    assert!(unnamed.stderr.contains("no agent answers at"), "{}", unnamed.stderr);
    assert!(fleet.live().await.is_empty());
}

#[test]
fn a_socket_that_is_named_comes_before_an_address_of_the_environment() {
    let port = free_port();
    let agent = Agent::start(&format!(
        "pools: [{{name: data, path: $ROOT/pool, mount: optional}}]\n\
         listen: {{socket: $ROOT/run/stoker.sock, grpc: {{address: \"[::1]:{port}\", insecure: loopback}}}}\n"
    ));
    let socket = agent.socket();
    let status = |args: &[&str], address: &str| {
        let outside = Path::new("/nowhere/stoker.sock");
        let args = args.iter().chain(&["status"]);
        agent.stoker().command(args).env("STOKER_SOCKET", outside).env("STOKER_ADDRESS", address).run()
    };
    let named = ["--socket", socket.to_str().unwrap()];
    status(&named, "").expect_code(0);
    status(&named, "127.0.0.1:1").expect_code(0);
    let by_variable = status(&[], "127.0.0.1:1").expect_code(2);
    assert!(by_variable.stderr.contains("no agent answers at 127.0.0.1:1"), "{}", by_variable.stderr);
    let by_socket = status(&[], "").expect_code(2);
    assert!(by_socket.stderr.contains("/nowhere/stoker.sock"), "{}", by_socket.stderr);

    let fleet = ["lease", "evaluate", "--repo", "https://github.com/a/b", "--fleet"];
    let name = format!("[::1]:{port}");
    let other = agent.stoker().command(fleet.iter().copied().chain([name.as_str(), "-o", "json"]));
    let other = other.env("STOKER_ADDRESS", "127.0.0.1:1").run().json();
    assert_eq!((other["agents"][0]["address"].as_str(), other["missing"].to_string()), (Some(&*name), "[]".to_owned()));
    for (more, told) in [
        (&["a:1", "--address", "b:1"][..], "leave out --socket and --address"),
        (&["a:1", "--socket", "b"], "leave out --socket and --address"),
        (&["a"], "write NAME:PORT"),
    ] {
        let wrong = agent.stoker().run(fleet.iter().chain(more)).expect_code(64);
        assert!(wrong.stderr.contains(told), "{}", wrong.stderr);
    }
}
