//! Who is away lets nobody go: pods stay gated, and are told why where that can be.

use super::*;
use crate::support::loopdev::needs_root;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_while_it_is_granted_gives_its_lease_back() {
    needs_root!();
    let world = World::start();
    let _controller = world.leader("one");
    world.granted_and_held("build").await;
    world.api.delete("pods", "builds", "build");
    world.api.hold("");
    wait::until_async(LIMIT, "it is given back", async || world.live().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_agents_pods_stay_gated_and_are_told_so() {
    needs_root!();
    let mut world = World::start();
    let _controller = world.leader("one");
    world.agents.iter_mut().for_each(Agent::kill9);
    world.gated("build");
    let why = world.wait_told("build", "AgentsAway");
    assert!(why.contains("stoker.build/admission=skip"), "{why}");
    assert!(world.is_gated("build"));
    world.agents.iter_mut().for_each(|agent| {
        agent.launch();
        agent.wait_ready();
    });
    world.wait_placed("build");
    world.has_one_lease("build").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_api_server_nothing_is_let_go_and_then_all() {
    needs_root!();
    let world = World::start();
    let controller = world.leader("one");
    world.api.go_away();
    // It may not act for longer than it holds the right to lead.
    wait::until(LIMIT, "it leads no more", || !controller.leads());
    world.gated("build");
    assert!(world.is_gated("build") && world.live().await.is_empty());
    world.api.set_health(crate::support::api_server::Health::Well);
    world.api.come_back();
    world.wait_placed("build");
    world.has_one_lease("build").await;
}
