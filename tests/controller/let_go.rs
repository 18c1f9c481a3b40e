//! Pods that an operator lets go without any node's word: none keeps a lease for them.

use super::*;
use crate::support::loopdev::needs_root;

/// It was granted already when the operator lost patience.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_go_while_a_node_is_asked_has_no_lease() {
    needs_root!();
    let world = World::start();
    let _controller = world.leader("one");
    world.granted_and_held("build").await;
    world.api.change("pods", "builds", "build", |pod| {
        pod["metadata"]["annotations"][GATE] = json!("skip");
    });
    world.api.hold("");
    wait::until(LIMIT, "it is let go", || !world.is_gated("build"));
    world.wait_told("build", "Skipped");
    assert_eq!((world.text("build", LEASE), world.text("build", PLACEMENT)), (String::new(), String::new()));
    assert_eq!(world.pod("build")["spec"]["affinity"], Value::Null, "it may go anywhere");
    wait::until_async(LIMIT, "its lease is given back", async || world.live().await.is_empty()).await;
}

/// One was never seen by a controller, another had a lease already, and nobody led when their gates were taken away.
#[tokio::test(flavor = "multi_thread")]
async fn whose_gate_is_taken_away_while_nobody_leads_has_no_lease() {
    needs_root!();
    let world = World::start();
    let first = world.leader("one");
    world.granted_and_held("granted").await;
    drop(first);
    world.api.hold("");
    world.gated("unseen");
    for name in ["granted", "unseen"] {
        world.api.change("pods", "builds", name, |pod| pod["spec"]["schedulingGates"] = json!([]));
    }
    let as_they_are = ["granted", "unseen"].map(|name| world.pod(name));
    let (node, lease) = world.live().await.remove(0);
    let _controller = world.leader("one");
    world.gated("next");
    world.wait_placed("next");
    assert_eq!(["granted", "unseen"].map(|name| world.pod(name)), as_they_are);
    // Nobody keeps what was given for it: it runs out.
    let soon = v1::RenewRequest { lease_id: lease.id.clone(), reserve_for: seconds(1) };
    world.agent(node).admission().await.renew(soon).await.unwrap();
    let ended = async || world.live().await.iter().all(|(_, one)| one.id != lease.id);
    wait::until_async(LIMIT, "it runs out", ended).await;
    assert_eq!(world.live().await.len(), 1);
}
