//! A pod that has its node, until it comes there.

use super::*;
use crate::support::loopdev::needs_root;

/// One was let go just now, the other a quarter of an hour ago.
#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_is_kept_for_a_quarter_of_an_hour() {
    needs_root!();
    let world = World::start();
    let controller = world.hasty("one", &[]);
    controller.wait_leads();
    world.gated("kept");
    world.gated("late");
    world.wait_placed("late");
    world.age("late", Duration::from_secs(15 * 60));
    wait::until(LIMIT, "it has its lease", || !world.text("kept", LEASE).is_empty());
    let mut until = world.bind_by("kept").await;
    let mut late = None;
    for _ in 0..3 {
        wait::until_async(LIMIT, "it is renewed", async || world.bind_by("kept").await > until).await;
        until = world.bind_by("kept").await;
        // What was on its way then has come.
        let now = world.bind_by("late").await;
        assert_eq!(*late.get_or_insert(now), now, "it is not kept any longer");
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
