//! A pod goes to a node with room, with its lease; it waits where there is none, and is told why.

use super::*;
use crate::support::loopdev::needs_root;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_placed_where_there_is_room_and_binds_its_lease_there() {
    needs_root!();
    let world = World::start();
    let _controller = world.leader("one");
    let term =
        |key: &str, value: &str| json!({"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]});
    let terms = json!([term("zone", "b"), term("zone", "nowhere")]);
    let affinity =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
    world.gated_as("build", &json!({"affinity": affinity, "schedulingGates": [{"name": GATE}, {"name": "another"}]}));
    // What others decide of it comes first: no room is kept for that long.
    assert!(world.wait_told("build", "GatedByOthers").contains("another"));
    assert!(world.live().await.is_empty());
    world.api.change("pods", "builds", "build", |pod| pod["spec"]["schedulingGates"] = json!([{"name": GATE}]));
    world.wait_placed("build");
    assert_eq!(world.text("build", PLACEMENT).split(' ').next(), Some("exo0"), "by its zone");
    let found = world.pod("build");
    let required = &found["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let here = json!({"key": "metadata.name", "operator": "In", "values": ["exo0"]});
    let both = |value: &str| json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [value]}], "matchFields": [here]});
    assert_eq!(required["nodeSelectorTerms"], json!([both("b"), both("nowhere")]));
    world.has_one_lease("build").await;
    let lease = world.text("build", LEASE);
    let (_, held) = world.live().await.into_iter().find(|(_, held)| held.id == lease).unwrap();
    let size = held.sizing.unwrap().size.unwrap();
    assert_eq!((size.cpu_millis, size.memory_bytes), (Some(100), Some(2 << 30)), "the larger of volume and requests");
    assert!(world.wait_told("build", "Placed").contains("exo0"));

    // The scheduler places it, and the agent binds it by the annotation.
    world.api.change("pods", "builds", "build", |pod| {
        pod["spec"]["nodeName"] = json!("exo0");
    });
    let bound = async || {
        let listed = world.live().await;
        listed.iter().any(|(node, held)| *node == "exo0" && held.id == lease && held.state() == v1::LeaseState::Bound)
    };
    wait::until_async(LIMIT, "the lease is bound", bound).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_room_waits_with_the_figures_until_there_is_some() {
    needs_root!();
    let world = World::start();
    let controller = world.leader("one");
    let first: Vec<String> = (0..6).map(|number| format!("first-{number}")).collect();
    first.iter().for_each(|name| world.gated(name));
    let mut on: Vec<String> = first.iter().map(|name| world.wait_placed(name)).collect();
    on.sort();
    assert_eq!(on, ["exo0", "exo0", "exo0", "ghost", "ghost", "ghost"]);
    for name in &first {
        world.has_one_lease(name).await;
    }
    world.gated("second");
    let why = world.wait_told("second", "NodesFull");
    assert!(why.contains("2 GiB of memory") && why.contains("2 full"), "{why}");
    world.gated_as("huge", &json!({"containers": [{"name": "build", "resources": {"requests": {"memory": "900Gi"}}}]}));
    let never = world.wait_told("huge", "NeverFits");
    assert!(never.contains("900 GiB of memory") && never.contains("the largest of 2 nodes"), "{never}");
    world.gated_as("wrong", &json!({"volumes": []}));
    assert!(world.wait_told("wrong", "BuildInvalid").contains("stoker.build/repository"));
    assert!(world.is_gated("second") && world.is_gated("huge") && world.is_gated("wrong"));

    let full = |name: &str| world.reasons(name).iter().filter(|text| text.starts_with("NodesFull")).count();
    assert_eq!(full("second"), 1, "once for each reason");
    // One that never came to its node is deleted: its lease is given back, and who waits has its room.
    world.api.delete("pods", "builds", &first[0]);
    world.wait_placed("second");
    world.has_one_lease("second").await;
    // An operator lets one go without any node's word.
    world.api.change("pods", "builds", "huge", |pod| {
        pod["metadata"]["annotations"] = json!({"stoker.build/admission": "skip"});
    });
    wait::until(LIMIT, "it is let go", || !world.is_gated("huge"));
    assert_eq!(world.text("huge", LEASE), "");
    world.wait_told("huge", "Skipped");
    let (status, metrics) = http_get(controller.http, "/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(metrics.contains("stoker_controller_decisions_total{what=\"placed\"} 7"), "{metrics}");
    assert!(
        metrics.contains("stoker_controller_leader 1")
            && metrics.contains("stoker_controller_pod_wait_seconds_count 7")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_repository_is_there_is_better_and_no_trap() {
    needs_root!();
    let world = World::start();
    let mut warm = world.agent("exo0").repository().await;
    warm.add_repository(v1::AddRepositoryRequest { url: world.url.clone(), ..Default::default() }).await.unwrap();
    let request = v1::RefreshRepositoryRequest { url: world.url.clone(), only_if_empty: true };
    let mut events = warm.refresh_repository(request).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}
    // Pods are there before anybody leads; both agents are heard before one is asked.
    let controller = world.leader("one");
    controller.wait_hears(2);
    world.gated("warm");
    assert_eq!(world.wait_placed("warm"), "exo0");
    // Full, it is left for the other.
    let rest: Vec<String> = (0..5).map(|number| format!("rest-{number}")).collect();
    rest.iter().for_each(|name| world.gated(name));
    let on: Vec<String> = rest.iter().map(|name| world.wait_placed(name)).collect();
    assert_eq!(on.iter().filter(|node| *node == "exo0").count(), 2, "{on:?}");
}

/// No volume of it says what it builds: annotations do, and what it asks of the scheduler is its size.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_volume_says_by_annotations_what_it_builds() {
    needs_root!();
    let world = World::start();
    let _controller = world.leader("one");
    world.gated_like("build", |pod| {
        pod["spec"]["volumes"] = json!([{"name": "tmp", "emptyDir": {}}]);
        pod["metadata"]["annotations"] =
            json!({"stoker.build/repository": world.url, "stoker.build/ref": "tag:v1.0", "theirs": "stays"});
    });
    world.wait_placed("build");
    world.has_one_lease("build").await;
    let lease = world.held("build").await.unwrap();
    let size = lease.sizing.unwrap().size.unwrap();
    assert_eq!((size.cpu_millis, size.memory_bytes), (Some(50), Some(2 << 30)));
    assert_eq!((&*lease.scope.unwrap().tenant, &*lease.source.unwrap().clone_ref), ("builds", "refs/tags/v1.0"));
    assert_eq!(world.text("build", "/metadata/annotations/theirs"), "stays");
}

/// Six have all the room; of those that wait, one began first and another matters more.
#[tokio::test(flavor = "multi_thread")]
async fn of_one_tenant_who_matters_more_goes_first_and_then_who_waits_longer() {
    needs_root!();
    let world = World::start();
    let _controller = world.leader("one");
    let first: Vec<String> = (0..6).map(|number| format!("first-{number}")).collect();
    first.iter().for_each(|name| world.gated(name));
    first.iter().for_each(|name| drop(world.wait_placed(name)));
    for (name, minute, priority) in [("younger", 2, 0), ("older", 1, 0), ("urgent", 3, 5)] {
        world.gated_like(name, |pod| {
            pod["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:0{minute}:00Z"));
            pod["spec"]["priority"] = json!(priority);
        });
        world.wait_told(name, "NodesFull");
    }
    for (gone, placed) in first.iter().zip(["urgent", "older", "younger"]) {
        assert!(world.is_gated(placed), "{placed}: not before its turn");
        world.api.delete("pods", "builds", gone);
        world.wait_placed(placed);
    }
}
