//! A node that goes away with pods that were to come there.

use std::time::Instant;

use super::*;
use crate::support::loopdev::needs_root;

/// Two pods were to come to a node that is no more: one that something controls, and one that nobody makes again. What
/// they are told at last.
fn lose(world: &mut World) -> [String; 2] {
    for name in ["made", "alone"] {
        world.gated_like(name, |pod| {
            pod["spec"]["nodeSelector"] = json!({"zone": "a"});
            let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": "1"});
            pod["metadata"]["ownerReferences"] = json!([owner]);
            pod["metadata"]["ownerReferences"][0]["controller"] = json!(name == "made");
        });
    }
    let uids = ["made", "alone"].map(|name| world.text(name, "/metadata/uid"));
    assert_eq!(["made", "alone"].map(|name| world.wait_placed(name)), ["ghost", "ghost"]);
    world.agent_mut("ghost").kill9();
    let silent = Instant::now();
    let found = |uid: &str| world.reasons_of(uid).into_iter().find(|text| text.starts_with("NodeAway"));
    wait::until(LIMIT, "they are told that their node is away", || uids.iter().all(|uid| found(uid).is_some()));
    assert!(silent.elapsed() >= Duration::from_secs(5), "not before: {:?}", silent.elapsed());
    uids.map(|uid| found(&uid).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_node_is_away_is_replaced_where_something_makes_it_again() {
    needs_root!();
    let mut world = World::start();
    let controller = world.controller_with("one", &["--gone-after", "5s", "--replace"]);
    controller.wait_leads();
    let [made, alone] = lose(&mut world);
    assert!(made.contains("ghost is silent for 5 s") && made.contains("it is deleted"), "{made}");
    assert!(alone.contains("delete it and make it again"), "{alone}");
    wait::until(LIMIT, "it is deleted", || world.api.get("pods", "builds", "made").is_none());
    world.gated("made");
    assert_eq!(world.wait_placed("made"), "exo0");
    assert!(world.api.get("pods", "builds", "alone").is_some(), "nobody would make it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_be_deleted_is_told_so() {
    needs_root!();
    let mut world = World::start();
    world.api.forbid(&[("DELETE", "pods")]);
    let controller = world.controller_with("one", &["--gone-after", "5s", "--replace"]);
    controller.wait_leads();
    lose(&mut world);
    let told = world.wait_told("made", "NotDeleted");
    assert!(told.contains("`delete` on pods"), "{told}");
    assert!(world.api.get("pods", "builds", "made").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_node_is_away_stays_where_nobody_said_otherwise() {
    needs_root!();
    let mut world = World::start();
    let controller = world.controller_with("one", &["--gone-after", "5s"]);
    controller.wait_leads();
    let [made, alone] = lose(&mut world);
    assert!(made.contains("(--replace does that by itself)"), "{made}");
    assert!(alone.contains("delete it and make it again"), "{alone}");
    // What is begun after it is done after it.
    world.gated("next");
    assert_eq!(world.wait_placed("next"), "exo0");
    let deleted = || world.api.requests().into_iter().find(|(method, _)| method == "DELETE");
    assert_eq!(deleted(), None);
}
