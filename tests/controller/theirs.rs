//! What stands on a pod anybody may have written who may write pods.

use super::*;
use crate::support::loopdev::needs_root;

/// A pod of another, without the gate, names the node and the lease of one that waits for its node.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_neither_renewed_nor_given_back_for_a_pod_that_only_names_it() {
    needs_root!();
    let world = World::start();
    let _controller = world.leader("one");
    world.gated("build");
    let node = world.wait_placed("build");
    let lease = world.text("build", LEASE);
    let notes = json!({"stoker.build/placement": format!("{node} 1 9000000000000000"), "stoker.build/lease": lease});
    let metadata = json!({"name": "thief", "namespace": "others", "annotations": notes});
    let spec = json!({"containers": [{"name": "build"}]});
    world.api.put("pods", json!({"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}));
    let told = || world.api.all("events").iter().any(|event| event["reason"] == "LeaseForeign");
    wait::until(LIMIT, "it is told, and left alone", told);
    world.api.delete("pods", "others", "thief");
    // What is begun after it is done after it: another comes and goes, and has its own lease given back.
    world.gated("next");
    world.wait_placed("next");
    world.api.delete("pods", "builds", "next");
    wait::until_async(LIMIT, "one lease is given back", async || world.live().await.len() == 1).await;
    world.has_one_lease("build").await;
}

/// Others take the gate away while a node is asked: what that gives is given back.
#[tokio::test(flavor = "multi_thread")]
async fn who_takes_the_gate_away_alone_has_no_lease() {
    needs_root!();
    let world = World::start();
    let _controller = world.leader("one");
    world.granted_and_held("build").await;
    world.api.change("pods", "builds", "build", |pod| pod["spec"]["schedulingGates"] = json!([]));
    world.api.hold("");
    wait::until_async(LIMIT, "it is given back", async || world.live().await.is_empty()).await;
    assert_eq!(world.text("build", LEASE), "");
}

/// Pods without the gate, which anybody can have written as if they had been placed, take the places of none that wait.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_only_look_placed_take_half_of_the_places_at_most() {
    needs_root!();
    let world = World::start();
    let notes = json!({"stoker.build/placement": "ghost 1 1", "stoker.build/lease": "0000000000000000"});
    for number in 0..6 {
        let metadata = json!({"name": format!("looks-{number}"), "namespace": "others", "annotations": notes});
        let spec = json!({"containers": [{"name": "build"}]});
        world.api.put("pods", json!({"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}));
    }
    let controller = world.controller_with("one", &["--pods-max", "4"]);
    controller.wait_leads();
    world.gated("build");
    world.wait_placed("build");
}
