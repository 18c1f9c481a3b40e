//! Builds in pods: leases are bound, counted and ended by what the API server and the pods' control groups say.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::support::api_server::{ApiServer, Health};
use crate::support::cgroup::{PodGroup, made};
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

mod ends;
mod rights;
mod told;

const NODE: &str = "ghost";
/// In the configuration: for how long the API server may be away, and for how long a lease waits for its next pod.
const AWAY_AFTER: Duration = Duration::from_secs(2);

/// An agent that asks an API server, which has its node.
struct World {
    api: ApiServer,
    agent: Agent,
    url: String,
    _upstream: Upstream,
    _repo: TestRepo,
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "30", "memory": "60Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn pod(name: &str, lease: &str, cpu: &str, memory: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "builds", "uid": uid(name), "annotations": {"stoker.build/lease": lease},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": "job-uid", "controller": true}],
        },
        "spec": {
            "nodeName": NODE, "serviceAccountName": "builder",
            "containers": [{"name": "build", "image": "build", "resources": {"requests": {"cpu": cpu, "memory": memory}}}],
        },
        "status": {"phase": "Running"},
    })
}

/// Of this process alone: tests run side by side, and so do their groups.
fn uid(name: &str) -> String {
    let mut hash = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(&(name, std::process::id(), std::thread::current().name()), &mut hash);
    format!("{:016x}", std::hash::Hasher::finish(&hash))
}

fn ended(pod: &mut Value, phase: &str, reason: &str, code: i32) {
    let state = json!({"terminated": {"exitCode": code, "reason": reason}});
    pod["status"] = json!({"phase": phase, "containerStatuses": [{"name": "build", "state": state}]});
}

impl World {
    fn new(more: &str) -> Self {
        let repo = TestRepo::standard();
        let (upstream, url) = Upstream::of(&repo);
        let api = ApiServer::start();
        api.put("nodes", node());
        let cluster = format!(
            "kubernetes: {{watch: on, awayAfter: {}s, heartbeat: 1s, namespace: stoker, rebindWithin: 3s, \
             unlimited: size{more}}}\n",
            AWAY_AFTER.as_secs()
        );
        let text = configuration(PLAIN, &[&url]).replace("node: {", &format!("node: {{name: {NODE}, ")) + &cluster;
        let mut agent = prepared(&text);
        std::fs::create_dir_all(agent.root().join("host/sys/fs")).unwrap();
        symlink("/sys/fs/cgroup", agent.root().join("host/sys/fs/cgroup")).unwrap();
        let kubeconfig = agent.root().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
        agent.env("KUBECONFIG", kubeconfig);
        agent.launch();
        agent.wait_ready();
        Self { api, agent, url, _upstream: upstream, _repo: repo }
    }

    async fn open(&self) {
        status_until(&self.agent, "the gate opens", |now| gate_is(now, v1::GateState::Open)).await;
        mirror_ready(&self.agent, &self.url).await;
    }

    fn order(&self, id: &str, rebind: v1::Rebind) -> v1::AdmitRequest {
        let owner = v1::Owner { namespace: "builds".into(), service_account: "builder".into() };
        v1::AdmitRequest { owner: Some(owner), rebind: rebind.into(), ..order(id, branch(&self.url, "main"), small()) }
    }

    async fn granted(&self, id: &str, rebind: v1::Rebind) -> String {
        admit(&self.agent, self.order(id, rebind)).await.unwrap().granted().id
    }

    /// A lease whose pod runs.
    async fn running(&self, id: &str, rebind: v1::Rebind) -> (String, Option<PodGroup>) {
        let lease = self.granted(id, rebind).await;
        let group = PodGroup::run(&uid(id), None, "sleep 1000");
        self.api.put("pods", pod(id, &lease, "100m", "64Mi"));
        self.bound_to(&lease, id).await;
        (lease, group)
    }

    async fn bound_to(&self, lease: &str, name: &str) -> v1::Lease {
        let is = |lease: &v1::Lease| matches!(&lease.holder, Some(v1::lease::Holder::Pod(pod)) if pod.uid == uid(name));
        lease_until(&self.agent, lease, &format!("{name} has the lease"), is).await
    }

    async fn ended(&self, lease: &str) -> v1::Lease {
        lease_until(&self.agent, lease, "the lease has ended", |lease| lease.ended_at.is_some()).await
    }

    async fn shut_by(&self, code: v1::reason::Code) -> v1::Status {
        let shut = |now: &v1::Status| {
            gate_is(now, v1::GateState::Shut) && codes(&now.gate.as_ref().unwrap().reasons).contains(&code)
        };
        status_until(&self.agent, &format!("the gate is shut: {code:?}"), shut).await
    }
}

/// Deleted without a release: the lease ends when nothing of the pod runs, the workspace goes, who waits is admitted.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_deleted_without_a_release_ends_its_lease() {
    let world = World::new("");
    world.open().await;
    let (first, group) = world.running("first", v1::Rebind::Never).await;
    let group = made!(group);
    let workspace = prepare(&world.agent, &first).await.unwrap();
    // One that fits only when the first has gone.
    // Its pod counts within its lease from the first look at it on.
    let looked = |now: &v1::Status| now.lease_use.iter().any(|seen| seen.lease_id == first && !seen.source.is_empty());
    let now = status_until(&world.agent, "the pod is looked at", looked).await.ledger.unwrap();
    let rest = size(100, now.free.as_ref().unwrap().memory_bytes.unwrap() + 32 * MIB);
    let second = v1::AdmitRequest {
        build: Some(v1::Build { source: Some(branch(&world.url, "main")), declared: Some(rest), ..Default::default() }),
        ..world.order("second", v1::Rebind::Never)
    };
    let mut waits = Awaiting::begin(&world.agent, second).await;
    assert!(matches!(waits.next().await, Answer::Waiting(_)));

    world.api.delete("pods", "builds", "first");
    // Gone for the API, and something of it still runs: nothing ends, though what came after it was seen.
    world.api.put("pods", pod("marker", "none", "0", "0"));
    wait::until(LIMIT, "a later pod was looked at", || world.agent.log().contains("there is no live lease \"none\""));
    assert_eq!(lease(&world.agent, &first).await.state(), v1::LeaseState::Bound);
    group.end();
    let over = world.ended(&first).await;
    assert_eq!((over.state(), over.outcome()), (v1::LeaseState::Orphaned, v1::Outcome::Lost));
    assert_eq!(codes(&over.reasons), [v1::reason::Code::HolderGone]);
    waits.granted().await;
    wait::until(LIMIT, "the workspace is gone", || !Path::new(&workspace.src).exists());
}

/// A Job with two pods on one lease: one is bound; the other counts beside it and is told.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_pods_one_has_the_lease_and_the_other_counts_beside_it() {
    let world = World::new("");
    world.open().await;
    let (lease, group) = world.running("a", v1::Rebind::Never).await;
    let _group = made!(group);
    let before = status(&world.agent).await.ledger.unwrap();
    world.api.put("pods", pod("b", &lease, "25", "30Gi"));
    let told = || world.agent.log().contains("LEASE_NOT_THEIRS");
    wait::until(LIMIT, "the second pod is refused", told);
    world.bound_to(&lease, "a").await;
    status_until(&world.agent, "what it asks for counts", |now| {
        let free = |ledger: &v1::Ledger| ledger.free.as_ref().unwrap().memory_bytes.unwrap();
        free(now.ledger.as_ref().unwrap()) + 25 * GIB < free(&before)
    })
    .await;
    // What the scheduler has no room for waits, whatever the ledger has.
    let large =
        v1::Build { source: Some(branch(&world.url, "main")), declared: Some(size(6000, GIB)), ..Default::default() };
    let order = v1::AdmitRequest { build: Some(large), take_ticket: false, ..world.order("large", v1::Rebind::Never) };
    let waits = admit(&world.agent, order).await.unwrap().waiting();
    assert_eq!(codes(&waits.reasons), [v1::reason::Code::NodeRequests]);
    // An annotation is no proof: of another service account, none.
    let other = world.granted("other", v1::Rebind::Never).await;
    let mut thief = pod("thief", &other, "0", "0");
    thief["spec"]["serviceAccountName"] = json!("default");
    world.api.put("pods", thief);
    wait::until(LIMIT, "the thief is refused", || world.agent.log().contains("builds/thief"));
    assert_eq!(super::lease(&world.agent, &other).await.state(), v1::LeaseState::Reserved);
    // Nor does a call bind it to that one, to one that is not here, or under another name.
    let named = |name: &str, uid: String| v1::Pod { namespace: "builds".into(), name: name.into(), uid };
    for (pod, word) in [
        (named("thief", uid("thief")), "another service account"),
        (named("nowhere", uid("nowhere")), "does not run on this node"),
        (named("a", uid("thief")), "does not run on this node"),
    ] {
        let request = v1::BindRequest { lease_id: other.clone(), to: Some(v1::bind_request::To::Pod(pod)) };
        let refused = world.agent.admission().await.bind(request).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(word), "{refused:?}");
    }
    world.api.put("pods", pod("c", "", "100m", "64Mi"));
    let to = Some(v1::bind_request::To::Pod(named("c", uid("c"))));
    let bind = async || {
        let request = v1::BindRequest { lease_id: other.clone(), to: to.clone() };
        world.agent.admission().await.bind(request).await.is_ok()
    };
    wait::until_async(LIMIT, "a call binds it to a pod that may have it", bind).await;
    world.bound_to(&other, "c").await;
}

/// A Job makes its pod again: the lease goes on with the next one, or does not, as it was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_its_job_makes_again_has_the_lease_where_that_was_asked_for() {
    let world = World::new("");
    world.open().await;
    for (rebind, goes_on) in [(v1::Rebind::SameOwner, true), (v1::Rebind::Never, false)] {
        let first = format!("first-{goes_on}");
        let next = format!("next-{goes_on}");
        let (lease, group) = world.running(&first, rebind).await;
        made!(group).end();
        world.api.change("pods", "builds", &first, |pod| ended(pod, "Failed", "Error", 1));
        if goes_on {
            world.api.put("pods", pod(&next, &lease, "100m", "64Mi"));
            let bound = world.bound_to(&lease, &next).await;
            assert_eq!(bound.state(), v1::LeaseState::Bound);
            // That one ends, and none follows: it is waited for no longer than is said.
            world.api.change("pods", "builds", &next, |pod| ended(pod, "Failed", "Error", 1));
        }
        let over = world.ended(&lease).await;
        assert_eq!((over.state(), over.outcome()), (v1::LeaseState::Released, v1::Outcome::Failed));
    }
}

/// Three builds run while the agent is away; one of them ends meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_back_finds_its_pods() {
    let mut world = World::new("");
    world.open().await;
    let mut running = BTreeMap::new();
    for name in ["a", "b", "c"] {
        let (lease, group) = world.running(name, v1::Rebind::Never).await;
        let workspace = prepare(&world.agent, &lease).await.unwrap();
        running.insert(name, (lease, made!(group), workspace));
    }
    world.agent.kill9();
    let (gone, group, workspace) = running.remove("c").unwrap();
    group.end();
    world.api.delete("pods", "builds", "c");
    world.agent.launch();
    world.agent.wait_ready();
    let over = world.ended(&gone).await;
    assert_eq!(over.outcome(), v1::Outcome::Lost);
    wait::until(LIMIT, "its workspace is gone", || !Path::new(&workspace.src).exists());
    for (name, (lease, _group, workspace)) in &running {
        world.bound_to(lease, name).await;
        assert!(Path::new(&workspace.src).join(".git").exists(), "{name}");
    }
}

/// The API server is away: what runs is untouched, new builds are told why, and all is well again after.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_api_server_is_away_what_runs_goes_on() {
    let world = World::new("");
    world.open().await;
    let (stays, group) = world.running("stays", v1::Rebind::Never).await;
    let _group = made!(group);
    let (ends, group) = world.running("ends", v1::Rebind::Never).await;
    let group = made!(group);
    let (unseen, other) = world.running("unseen", v1::Rebind::Never).await;
    let other = made!(other);
    world.api.go_away();
    let shut = world.shut_by(v1::reason::Code::ApiServerAway).await;
    let message = &shut.gate.as_ref().unwrap().reasons[0].message;
    assert!(message.contains("what runs goes on"), "{message}");
    let told = admit(&world.agent, world.order("new", v1::Rebind::Never)).await.unwrap().waiting();
    assert_eq!(codes(&told.reasons), [v1::reason::Code::ApiServerAway]);
    // Its group goes: the kubelet needs no API server for that.
    group.end();
    let over = world.ended(&ends).await;
    assert_eq!(over.outcome(), v1::Outcome::Lost);
    assert_eq!(lease(&world.agent, &stays).await.state(), v1::LeaseState::Bound);
    assert_eq!(lease(&world.agent, &unseen).await.state(), v1::LeaseState::Bound);
    // For ten minutes by hand: nothing that waits grows tired.
    let away = Instant::now();
    while away.elapsed() < Duration::from_secs(leases::from_environment("STOKER_AWAY_SECONDS", 0)) {
        for held in [&stays, &unseen] {
            assert_eq!(lease(&world.agent, held).await.state(), v1::LeaseState::Bound);
        }
        let now = status_until(&world.agent, "it answers", |_| true).await;
        assert_eq!(codes(&now.gate.unwrap().reasons), [v1::reason::Code::ApiServerAway]);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    // While it was away a pod was deleted, which no watch has told.
    world.api.delete("pods", "builds", "unseen");
    world.api.forget_history();
    world.api.come_back();
    world.api.set_health(Health::Well);
    world.open().await;
    other.end();
    world.ended(&unseen).await;
    assert_eq!(lease(&world.agent, &stays).await.state(), v1::LeaseState::Bound);
}

/// Cordoned, not ready, tainted, deleted, added again: the gate says so, and opens by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_takes_no_pods_takes_no_builds() {
    use v1::reason::Code;
    let world = World::new(", tolerates: [dedicated]");
    world.open().await;
    let change = |change: fn(&mut Value)| world.api.change("nodes", "", NODE, change);
    for (code, bad) in [
        (Code::NodeCordoned, (|node: &mut Value| node["spec"]["unschedulable"] = json!(true)) as fn(&mut Value)),
        (Code::NodeNotReady, |node| node["status"]["conditions"][0]["status"] = json!("Unknown")),
        (Code::NodeTainted, |node| {
            let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
            node["spec"]["taints"] = json!([taint("dedicated"), taint("node.kubernetes.io/disk-pressure")]);
        }),
    ] {
        change(bad);
        let shut = world.shut_by(code).await;
        assert_eq!(codes(&shut.gate.unwrap().reasons), [code]);
        world.api.put("nodes", node());
        world.open().await;
    }
    world.api.delete("nodes", "", NODE);
    world.shut_by(Code::NodeGone).await;
    world.api.put("nodes", node());
    world.open().await;
    world.granted("after", v1::Rebind::Never).await;
    let heartbeat = world.api.get("leases", "stoker", NODE).expect("a heartbeat");
    assert_eq!(heartbeat["spec"]["leaseDurationSeconds"], 3, "{heartbeat}");
}

/// Its time budget is over: its pod is evicted, and asked again where a disruption budget says no.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_evicted_at_its_time_budget() {
    let world = World::new("");
    world.open().await;
    let declared = v1::Size { time_budget: Some(seconds(1)), ..small() };
    let build = v1::Build { source: Some(branch(&world.url, "main")), declared: Some(declared), ..Default::default() };
    let order = v1::AdmitRequest { build: Some(build), ..world.order("long", v1::Rebind::Never) };
    let lease = admit(&world.agent, order).await.unwrap().granted().id;
    let group = made!(PodGroup::run(&uid("long"), None, "sleep 1000"));
    world.api.refuse_evictions(true);
    world.api.put("pods", pod("long", &lease, "100m", "64Mi"));
    wait::until(LIMIT, "the eviction is refused", || world.agent.log().contains("its pod is not evicted"));
    world.api.refuse_evictions(false);
    let evicted = || {
        let pod = world.api.get("pods", "builds", "long").unwrap();
        pod["metadata"].get("deletionTimestamp").is_some()
    };
    wait::until(LIMIT, "the pod is evicted", evicted);
    group.end();
    world.api.delete("pods", "builds", "long");
    let over = world.ended(&lease).await;
    assert_eq!(over.outcome(), v1::Outcome::TimeBudgetExceeded);
}

/// A watch that is cut, throttled, answered with errors or too old to resume misses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_troubled_misses_nothing() {
    let world = World::new("");
    world.open().await;
    for round in 0..4 {
        let name = format!("p{round}");
        let id = world.granted(&name, v1::Rebind::Never).await;
        match round {
            0 => world.api.cut_watches(),
            1 => {
                world.api.put("pods", pod("noise", "", "0", "0"));
                world.api.forget_history();
                world.api.cut_watches();
            }
            2 => {
                world.api.set_health(Health::Status(429));
                world.api.cut_watches();
            }
            _ => {
                world.api.set_health(Health::Status(500));
                world.api.cut_watches();
            }
        }
        world.api.put("pods", pod(&name, &id, "100m", "64Mi"));
        let _group = made!(PodGroup::run(&uid(&name), None, "sleep 1000"));
        if round >= 2 {
            wait::until(LIMIT, "its trouble is told", || world.agent.log().contains("the API server does not answer"));
            world.api.set_health(Health::Well);
        }
        world.bound_to(&id, &name).await;
        world.open().await;
    }
}

fn condition(node: &Value) -> Value {
    let all = node["status"]["conditions"].as_array().unwrap();
    all.iter().find(|found| found["type"] == "BuildPressure").cloned().unwrap_or(Value::Null)
}

/// How many mirrors a node says that it has.
fn mirrors(node: &Value) -> usize {
    let labels = node["metadata"]["labels"].as_object().unwrap();
    labels.keys().filter(|key| key.starts_with("stoker.build/mirror.127.0.0.1.")).count()
}

/// Condition, labels, annotations, taint and events come on transitions, and what is others' on the node stays.
#[tokio::test(flavor = "multi_thread")]
async fn the_node_object_tells_what_turned_over_and_nothing_else() {
    let world = World::new(", taint: {after: 0s, until: 1s}");
    let theirs = json!({"key": "example.org/theirs", "effect": "PreferNoSchedule"});
    world.api.change("nodes", "", NODE, |node| {
        node["spec"]["taints"] = json!([theirs]);
        node["metadata"]["labels"]["stoker.build/mirror.gone-00000000"] = json!("true");
    });
    world.open().await;
    let now = || world.api.get("nodes", "", NODE).unwrap();
    wait::until(LIMIT, "the open gate is told", || condition(&now())["status"] == "False");
    wait::until(LIMIT, "the mirror is told", || mirrors(&now()) == 1);
    let node = now();
    assert!(node["metadata"]["labels"].get("stoker.build/mirror.gone-00000000").is_none(), "{node}");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], NODE);
    assert_eq!(node["metadata"]["annotations"]["stoker.build/gate"], "open");

    world.api.change("nodes", "", NODE, |node| node["spec"]["unschedulable"] = json!(true));
    wait::until(LIMIT, "the cordon is told", || condition(&now())["reason"] == "NodeCordoned");
    let taints = || now()["spec"]["taints"].as_array().unwrap().clone();
    wait::until(LIMIT, "the node is tainted", || taints().len() == 2);
    assert_eq!(taints()[0], theirs);
    assert_eq!(taints()[1], json!({"key": "stoker.build/pressure", "effect": "NoSchedule"}));
    let since = condition(&now())["lastTransitionTime"].clone();

    // Nothing turns over, so nothing is written, however much else changes.
    wait::until(LIMIT, "the event of the node", || {
        world
            .api
            .all("events")
            .iter()
            .any(|event| event["reason"] == "BuildPressure" && event["regarding"]["kind"] == "Node")
    });
    let writes =
        || world.api.requests().iter().filter(|(method, path)| method == "PATCH" && path.contains("/nodes/")).count();
    let before = writes();
    for round in 0..20 {
        world.api.put("pods", pod(&format!("noise-{round}"), "", "10m", "1Mi"));
    }
    let beats = || world.api.requests().iter().filter(|(_, path)| path.contains("/leases/")).count();
    let begun = beats();
    wait::until(LIMIT, "four heartbeats", || beats() >= begun + 4);
    assert_eq!(writes(), before);
    assert_eq!(condition(&now())["lastTransitionTime"], since);

    // Who takes our label away is not fought; the taint goes when the gate opens.
    world.api.change("nodes", "", NODE, |node| {
        node["spec"].as_object_mut().unwrap().remove("unschedulable");
    });
    wait::until(LIMIT, "the taint is gone", || taints() == [theirs.clone()]);
    wait::until(LIMIT, "the open gate is told", || condition(&now())["status"] == "False");
    wait::until(LIMIT, "the event of its end", || {
        world.api.all("events").iter().any(|event| event["reason"] == "BuildPressureOver")
    });
    // A node that is added again is told everything.
    world.api.delete("nodes", "", NODE);
    world.shut_by(v1::reason::Code::NodeGone).await;
    world.api.put("nodes", node_again());
    wait::until(LIMIT, "the new node is told", || condition(&now())["status"] == "False" && mirrors(&now()) == 1);
    // A pod that does not get its lease is told by an event of its own.
    let lease = world.granted("lease", v1::Rebind::Never).await;
    let mut thief = pod("thief", &lease, "0", "0");
    thief["spec"]["serviceAccountName"] = json!("default");
    world.api.put("pods", thief);
    wait::until(LIMIT, "the event of the pod", || {
        let events = world.api.all("events");
        events.iter().any(|event| event["reason"] == "LeaseNotBound" && event["regarding"]["name"] == "thief")
    });
}

fn node_again() -> Value {
    let mut node = node();
    node["metadata"]["uid"] = json!("another");
    node
}

/// A thousand pods, a hundred changes a second: memory is bounded, and every change arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_pods_that_change_all_the_time_are_followed_in_bounded_memory() {
    let world = World::new("");
    world.api.change("nodes", "", NODE, |node| node["status"]["allocatable"]["pods"] = json!("2000"));
    world.open().await;
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", world.agent.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let named = |index: usize| format!("many-{index}");
    for index in 0..1000 {
        world.api.put("pods", pod(&named(index), "", "1m", "1Mi"));
    }
    let free = |now: &v1::Status| now.ledger.as_ref().unwrap().free.as_ref().unwrap().memory_bytes.unwrap();
    status_until(&world.agent, "all are counted", |now| free(now) < 60 * GIB - 1000 * MIB).await;
    let before = resident();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    for change in 0..1000 {
        ticks.tick().await;
        let name = named(change % 1000);
        world.api.change("pods", "builds", &name, |pod| {
            pod["metadata"]["annotations"]["example.org/change"] = json!(format!("{change}-{}", "x".repeat(4096)));
        });
    }
    // The last change arrives.
    let lease = world.granted("last", v1::Rebind::Never).await;
    let group = made!(PodGroup::run(&uid("last"), None, "sleep 1000"));
    world.api.put("pods", pod("last", &lease, "1m", "1Mi"));
    world.bound_to(&lease, "last").await;
    let after = resident();
    assert!(after < before + (24 << 10), "{before} KiB were resident, {after} are");
    drop(group);
}

/// The node boots: mounts are gone, pods with the same uids come back. No build starts on sources that are not there.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_no_build_starts_on_an_empty_source() {
    let mut world = World::new("");
    world.open().await;
    let (lease, group) = world.running("first", v1::Rebind::SameOwner).await;
    let group = made!(group);
    let workspace = prepare(&world.agent, &lease).await.unwrap();
    let src = PathBuf::from(&workspace.src);
    assert!(src.join(".git").exists());
    world.agent.kill9();
    group.end();
    for mounted in crate::support::disk::mounts_below(&world.agent.root().join("pool")) {
        // What the killed agent had started may hold it for a moment.
        wait::until(LIMIT, "nothing holds the mount", || {
            Command::new("umount").arg(&mounted).stderr(Stdio::null()).status().unwrap().success()
        });
    }
    let boot_id = world.agent.root().join("host/proc/sys/kernel/random/boot_id");
    std::fs::write(boot_id, "9f1c7a52-6f0e-4c53-9d3e-2b7f7a3f0c11\n").unwrap();
    // The kubelet starts what it had, and looks for its volumes: `type: Directory` waits where there is none.
    world.agent.launch();
    world.agent.wait_ready();
    let over = world.ended(&lease).await;
    assert_eq!(codes(&over.reasons), [v1::reason::Code::NodeRebooted]);
    wait::until(LIMIT, "the workspace is gone with all that was mounted in it", || !src.parent().unwrap().exists());
    wait::until(LIMIT, "its pod is told", || {
        let events = world.api.all("events");
        events.iter().any(|event| event["reason"] == "LeaseNotBound" && event["regarding"]["name"] == "first")
    });
    // A new lease gives it sources again.
    world.open().await;
    let again = world.granted("again", v1::Rebind::Never).await;
    let workspace = prepare(&world.agent, &again).await.unwrap();
    assert!(Path::new(&workspace.src).join(".git").exists());
}
