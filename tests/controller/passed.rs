//! What is kept for whom, and for how long.

use super::*;
use crate::support::loopdev::needs_root;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_kept_for_a_large_pod_that_small_ones_pass() {
    needs_root!();
    let world = World::start();
    let controller = world.controller_with("one", &["--keep-after", "1s"]);
    controller.wait_leads();
    let small: Vec<String> = (0..6).map(|number| format!("small-{number}")).collect();
    small.iter().for_each(|name| world.gated(name));
    let on: Vec<String> = small.iter().map(|name| world.wait_placed(name)).collect();
    let large = json!({"priority": 7,
        "containers": [{"name": "build", "resources": {"requests": {"memory": "5Gi", "cpu": "50m"}}}]});
    // What asks for nothing, or for more than there is, stands before it and is in nobody's way.
    for (name, memory) in [("wrong", "1Gi"), ("huge", "900Gi")] {
        let mut other = world.pod(&small[0]);
        other["metadata"] = json!({"name": name, "namespace": "a-quiet-one"});
        other["spec"]["containers"][0]["resources"]["requests"]["memory"] = json!(memory);
        other["spec"]["schedulingGates"] = json!([{"name": GATE}]);
        other["spec"]["affinity"] = Value::Null;
        if name == "wrong" {
            other["spec"]["volumes"] = json!([]);
        }
        world.api.put("pods", other);
    }
    world.gated_as("large", &large);
    world.wait_told("large", "NodesFull");

    // One after the other ends and another takes its place, until a node is kept for the large one.
    let kept = || world.reasons("large").into_iter().find(|text| text.starts_with("NodeKept"));
    let mut passing = small[0].clone();
    for number in 0.. {
        world.api.delete("pods", "builds", &passing);
        passing = format!("passing-{number}");
        world.gated(&passing);
        wait::until(LIMIT, "it passes, or nothing does any more", || !world.is_gated(&passing) || kept().is_some());
        if kept().is_some() {
            break;
        }
    }
    let kept = kept().unwrap();
    let node = NODES.into_iter().find(|node| kept.contains(&format!("to {node} until"))).unwrap();
    let of_it = |world: &World, name: &str| world.text(name, PLACEMENT).split(' ').next() == Some(node);
    let there: Vec<String> = world.names().into_iter().filter(|name| of_it(&world, name)).collect();
    world.gated("later");
    for name in there {
        assert!(world.is_gated("later"), "nothing else goes to {node}");
        world.api.delete("pods", "builds", &name);
    }
    assert_eq!(world.wait_placed("large"), node);
    world.has_one_lease("large").await;
    // It is for all again.
    world.api.delete("pods", "builds", "large");
    world.wait_placed("later");
    assert!(on.iter().any(|name| name == node), "both nodes were full");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_scheduler_does_not_place_is_told_so_and_made_again_elsewhere() {
    needs_root!();
    let world = World::start();
    let controller = world.controller_with("one", &["--keep-for", "3s", "--replace"]);
    controller.wait_leads();
    world.gated("alone");
    world.gated("owned");
    let owner = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": true}]);
    world.api.change("pods", "builds", "owned", |pod| pod["metadata"]["ownerReferences"] = owner);
    let uid = world.text("owned", "/metadata/uid");
    wait::until(LIMIT, "it is deleted", || world.api.get("pods", "builds", "owned").is_none());
    let told = |event: &Value| event["regarding"]["uid"] == uid.as_str() && event["reason"] == "NotScheduled";
    wait::until(LIMIT, "that is told", || world.api.all("events").iter().any(told));
    let why = world.wait_told("alone", "NotScheduled");
    assert!(why.contains("was kept for it for 3 s") && why.contains("delete it and make it again"), "{why}");
    let only_its = async || {
        let all = world.live().await;
        matches!(all.as_slice(), [(_, lease)] if lease.id == world.text("alone", LEASE))
    };
    wait::until_async(LIMIT, "the lease of the one that is gone is given back", only_its).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_names_another_node_than_its_endpoint_is_not_asked() {
    needs_root!();
    let world = World::start();
    world.api.change("endpointslices", "stoker", "stoker-agents-x", |slice| {
        slice["endpoints"][1]["nodeName"] = json!("another");
    });
    let controller = world.controller("one");
    controller.wait_leads();
    let pods: Vec<String> = (0..4).map(|number| format!("build-{number}")).collect();
    pods.iter().for_each(|name| world.gated(name));
    let placed = || pods.iter().filter(|name| !world.is_gated(name)).count();
    wait::until(LIMIT, "one node is full", || placed() == 3);
    let waits = pods.iter().find(|name| world.is_gated(name)).unwrap();
    assert!(world.wait_told(waits, "NodesFull").contains("of 1 nodes"));
    assert!(world.live().await.iter().all(|(node, _)| *node == "ghost"));
    // The cluster says otherwise now.
    world.api.change("endpointslices", "stoker", "stoker-agents-x", |slice| {
        slice["endpoints"][1]["nodeName"] = json!("exo0");
    });
    assert_eq!(world.wait_placed(waits), "exo0");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_pods_than_are_held_come_in_their_time_and_one_tenants_are_not_in_anothers_way() {
    needs_root!();
    let world = World::start();
    let controller = world.controller_with("one", &["--pods-max", "4"]);
    controller.wait_leads();
    let huge = json!({"containers": [{"name": "build", "resources": {"requests": {"memory": "900Gi"}}}]});
    let all: Vec<String> = (0..6).map(|number| format!("huge-{number}")).collect();
    all.iter().for_each(|name| world.gated_as(name, &huge));
    let told = || all.iter().filter(|name| !world.reasons(name).is_empty()).count();
    wait::until(LIMIT, "four are held", || told() == 4);
    // All places are taken by one tenant: another's has one all the same.
    let mut other = world.pod(&all[0]);
    other["metadata"] = json!({"name": "other", "namespace": "others"});
    other["spec"]["containers"][0]["resources"]["requests"]["memory"] = json!("2Gi");
    world.api.put("pods", other);
    let placed = || world.api.get("pods", "others", "other").unwrap()["spec"]["schedulingGates"] == json!([]);
    wait::until(LIMIT, "the other tenant's is placed", placed);
    // Those that were left out are seen when there is room for them.
    all.iter().filter(|name| !world.reasons(name).is_empty()).for_each(|name| world.api.delete("pods", "builds", name));
    let left: Vec<&String> = all.iter().filter(|name| world.api.get("pods", "builds", name).is_some()).collect();
    assert!(!left.is_empty());
    left.iter().for_each(|name| drop(world.wait_told(name, "NeverFits")));
}
