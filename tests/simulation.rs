//! A whole farm on one machine: simulated agents, and real controllers that place pods on them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use stoker_proto::v1;
use stoker_proto::v1::admission_service_client::AdmissionServiceClient;
use tonic::transport::Endpoint;

use crate::support::chance;
use crate::support::farm::fate::Rounds;
use crate::support::farm::hands::Pace;
use crate::support::farm::objects::{Asks, LEASE, is_gated};
use crate::support::farm::{Farm, Plan, holds};
use crate::support::wait;

/// As the controllers ask for.
const BIND_WITHIN: Duration = Duration::from_secs(120);

fn plan(agents: usize) -> Plan {
    let seed = chance::seed("STOKER_SIMULATION_SEED");
    eprintln!("STOKER_SIMULATION_SEED={seed}");
    let builds = (Duration::from_millis(200), Duration::from_millis(800));
    Plan {
        agents,
        cpus: (4, 8),
        pace: Pace { builds, late: (0, Duration::ZERO) },
        bind_within: BIND_WITHIN,
        tls: false,
        arguments: Vec::new(),
        seed,
    }
}

/// What is simulated is like the real thing in what a controller sees of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_agent_tells_its_room_and_can_be_lost() {
    let farm = Farm::new(&plan(3));
    let agent = &farm.agents[1];
    let address = format!("http://{}", agent.address);
    let endpoint = Endpoint::try_from(address).unwrap();
    let mut client = AdmissionServiceClient::new(endpoint.connect().await.unwrap());
    let mut rooms = client.watch_room(v1::WatchRoomRequest::default()).await.unwrap().into_inner();
    let first = rooms.message().await.unwrap().unwrap();
    assert_eq!(first.node.unwrap().name, "node-00001");
    let free = first.room.unwrap().free.unwrap().cpu_millis.unwrap();
    let build = v1::Build {
        declared: Some(v1::Size { cpu_millis: Some(1000), memory_bytes: Some(1 << 30), ..Default::default() }),
        ..Default::default()
    };
    let admit = v1::AdmitRequest { request_id: "gate-a-1".into(), build: Some(build), ..Default::default() };
    let granted = match client.admit(admit.clone()).await.unwrap().into_inner().decision {
        Some(v1::admit_response::Decision::Granted(lease)) => lease,
        other => panic!("{other:?}"),
    };
    let next = rooms.message().await.unwrap().unwrap().room.unwrap();
    assert_eq!(next.free.unwrap().cpu_millis.unwrap(), free - 1000);
    assert_eq!(next.grants.first().map(|grant| grant.lease_id.as_str()), Some(granted.id.as_str()));
    assert_eq!(farm.counts.streams.load(Ordering::Relaxed), 1);

    agent.silence(true);
    let silent = tokio::time::timeout(Duration::from_millis(300), client.admit(admit.clone())).await;
    assert!(silent.is_err(), "{silent:?}");
    agent.silence(false);
    client.admit(admit.clone()).await.unwrap();
    agent.kill();
    assert!(rooms.message().await.is_err());
    wait::until_async(Duration::from_secs(10), "nobody listens", async || endpoint.connect().await.is_err()).await;
    agent.start(farm.runtime.as_ref().unwrap().handle(), true);
    let mut client = AdmissionServiceClient::new(endpoint.connect().await.unwrap());
    let again = match client.admit(admit.clone()).await.unwrap().into_inner().decision {
        Some(v1::admit_response::Decision::Granted(lease)) => lease,
        other => panic!("{other:?}"),
    };
    assert_eq!(again.id, granted.id, "its journal has it");
    agent.kill();
    agent.start(farm.runtime.as_ref().unwrap().handle(), false);
    let mut client = AdmissionServiceClient::new(endpoint.connect().await.unwrap());
    let lost = client.get_lease(v1::GetLeaseRequest { lease_id: granted.id }).await.unwrap_err();
    assert_eq!(lost.code(), tonic::Code::NotFound);
}

/// Grants a pod's request at an agent, as a controller does; the lease's id.
async fn granted(farm: &Farm, agent: usize, uid: &str, attempt: u32) -> String {
    let address = format!("http://{}", farm.agents[agent].address);
    let mut client = AdmissionServiceClient::connect(address).await.unwrap();
    let declared = v1::Size { cpu_millis: Some(1000), memory_bytes: Some(1 << 30), ..Default::default() };
    let build = v1::Build { declared: Some(declared), ..Default::default() };
    let request_id = format!("gate-{uid}-{attempt}");
    let admit = v1::AdmitRequest { request_id, build: Some(build), ..Default::default() };
    match client.admit(admit).await.unwrap().into_inner().decision {
        Some(v1::admit_response::Decision::Granted(lease)) => lease.id,
        other => panic!("{other:?}"),
    }
}

/// Takes the gate away as a controller does.
fn place(farm: &Farm, asks: &Asks, node: &str, lease: &str) {
    farm.api.change("pods", &asks.namespace, &asks.name, |pod| {
        pod["spec"]["schedulingGates"] = json!([]);
        pod["metadata"]["annotations"] = json!({LEASE: lease});
        let only = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
        pod["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": only}]}}});
    });
}

/// Else a round in which nothing is found says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_is_noticed() {
    let mut farm = Farm::new(&plan(3));
    let asks = farm.add_pods(2, 1);
    let uid = |asks: &Asks| farm.api.get("pods", &asks.namespace, &asks.name).unwrap()["metadata"]["uid"].clone();
    let (first, second) = (uid(&asks[0]), uid(&asks[1]));
    let lease = granted(&farm, 1, first.as_str().unwrap(), 1).await;
    assert_eq!(holds::at_any_time(&farm.agents, BIND_WITHIN), [""; 0]);
    granted(&farm, 2, first.as_str().unwrap(), 2).await;
    let wrongs = holds::at_any_time(&farm.agents, BIND_WITHIN);
    assert!(wrongs.len() == 1 && wrongs[0].contains("gate-"), "{wrongs:?}");
    farm.agents[2].kill();
    assert_eq!(holds::at_any_time(&farm.agents, BIND_WITHIN), [""; 0], "nobody could give that one back");
    farm.wrongs.lock().unwrap().clear();

    place(&farm, &asks[0], "node-00001", &lease);
    let ends = async || farm.api.get("pods", &asks[0].namespace, &asks[0].name).is_none();
    wait::until_async(Duration::from_secs(10), "it was placed, has built and is gone", ends).await;
    assert!(farm.agents[1].live().is_empty(), "its lease ended with it");
    assert_eq!(*farm.wrongs.lock().unwrap(), [""; 0]);
    place(&farm, &asks[1], "node-00001", "");
    let told = async || !farm.wrongs.lock().unwrap().is_empty();
    wait::until_async(Duration::from_secs(10), "a pod without a lease is noticed", told).await;
    assert_eq!(farm.without_a_reason(), [""; 0], "it waits no more");
    granted(&farm, 1, second.as_str().unwrap(), 1).await;
    assert_eq!(farm.left_over(Duration::ZERO).len(), 2, "{:?}", farm.left_over(Duration::ZERO));
}

/// A small part of what `cargo bench --bench controller -- --rounds 200` does.
#[test]
fn after_losses_each_pod_was_placed_once_and_nothing_is_left() {
    let mut farm = Farm::new(&plan(100));
    farm.start_controllers();
    farm.wait_until_heard(Duration::from_secs(60));
    let rounds = Rounds {
        pods: 60,
        kills: false,
        window: Duration::from_millis(1000),
        bind_within: BIND_WITHIN,
        settled_within: Duration::from_secs(180),
    };
    for number in 1..=5 {
        let told = farm.round(&rounds);
        eprintln!("{number}: {} placed, settled in {:?}: {}", told.placed, told.settled, told.words.join("; "));
    }
    let never = farm.add_pods(1, 64);
    let told = || farm.without_a_reason().is_empty();
    wait::until(Duration::from_secs(30), "a pod that fits nowhere is told why", told);
    let pod = farm.api.get("pods", &never[0].namespace, &never[0].name).unwrap();
    assert!(is_gated(&pod), "{pod:#}");
}
