//! A pod that has its node, until it comes there.

use super::*;
use crate::support::loopdev::needs_root;

/// The other was let go a quarter of an hour ago.
#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_is_kept_for_a_quarter_of_an_hour() {
    needs_root!();
    let world = World::start();
    let first = world.leader("one");
    for name in ["kept", "late"] {
        world.gated(name);
        world.wait_placed(name);
    }
    drop(first);
    world.age("late", Duration::from_secs(15 * 60));
    let (mut until, late) = (world.bind_by("kept").await, world.bind_by("late").await);
    let _controller = world.leader("one");
    // At once by who begins to lead, and then again.
    for _ in 0..2 {
        wait::until_async(LIMIT, "it is renewed", async || world.bind_by("kept").await > until).await;
        until = world.bind_by("kept").await;
        world.wait_told("late", "NotScheduled");
        assert_eq!(world.bind_by("late").await, late, "it is not kept any longer");
    }
    world.has_one_lease("kept").await;
    // Its room is free again as soon as it goes.
    world.api.delete("pods", "builds", "kept");
    wait::until_async(LIMIT, "it is given back", async || world.live().await.len() == 1).await;
}

/// Nobody renewed it, for nobody led.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_lease_ran_out_the_same_node_is_asked_for_another() {
    needs_root!();
    let world = World::start();
    let first = world.leader("one");
    world.gated("build");
    let node = world.wait_placed("build");
    let (lease, spec) = (world.text("build", LEASE), world.pod("build")["spec"].clone());
    drop(first);
    world.run_out("build", &node).await;
    assert!(world.live().await.is_empty());
    let _controller = world.leader("one");
    wait::until(LIMIT, "it has another lease", || world.text("build", LEASE) != lease);
    assert!(world.text("build", PLACEMENT).starts_with(&format!("{node} 2 ")), "{}", world.text("build", PLACEMENT));
    assert_eq!(world.pod("build")["spec"], spec, "nobody may change where it goes");
    world.has_one_lease("build").await;
    assert_eq!(world.live().await.len(), 1);
}
