//! Leaders that end in the middle: whoever goes on asks the same node by the same name.

use super::*;
use crate::support::loopdev::needs_root;

/// Killed after it wrote whom it asks, before it had an answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_before_the_answer_leaves_one_lease() {
    needs_root!();
    let world = World::start();
    let first = world.leader("first");
    let second = world.controller("second");
    first.wait_hears(2);
    world.signal_agents(Signal::SIGSTOP);
    world.gated("build");
    wait::until(LIMIT, "it is written whom it asks", || !world.text("build", PLACEMENT).is_empty());
    let asked = world.meant("build");
    first.signal(Signal::SIGKILL);
    world.signal_agents(Signal::SIGCONT);
    second.wait_leads();
    assert_eq!(world.wait_placed("build"), asked);
    assert_eq!(world.text("build", PLACEMENT).split(' ').nth(1), Some("1"), "by the same name");
    world.has_one_lease("build").await;
}

/// Killed after it had the lease, before that stood on the pod.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_after_the_answer_leaves_one_lease() {
    needs_root!();
    let world = World::start();
    let first = world.leader("first");
    let second = world.controller("second");
    world.granted_and_held("build").await;
    first.signal(Signal::SIGKILL);
    world.api.hold("");
    second.wait_leads();
    world.wait_placed("build");
    world.has_one_lease("build").await;
    assert_eq!(world.live().await.len(), 1);
}

/// Stopped for longer than an election takes: what it then writes is not what is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_for_long_spoils_nothing() {
    needs_root!();
    let world = World::start();
    let first = world.leader("first");
    let second = world.controller("second");
    world.granted_and_held("build").await;
    first.signal(Signal::SIGSTOP);
    // The old leader's patch stays held; the new one's goes through.
    second.wait_leads();
    world.api.hold("");
    world.wait_placed("build");
    first.signal(Signal::SIGCONT);
    wait::until(LIMIT, "it leads no more", || first.stands_by());
    world.has_one_lease("build").await;
    world.gated("next");
    world.wait_placed("next");
    world.has_one_lease("next").await;
    assert!(second.leads() && world.live().await.len() == 2);
}

/// Told to end, it lets the next one begin at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_end_gives_up_at_once() {
    needs_root!();
    let world = World::start();
    let first = world.leader("first");
    let second = world.controller("second");
    wait::until(LIMIT, "it stands by", || second.stands_by());
    first.signal(Signal::SIGTERM);
    first.running.wait().expect_code(0);
    let begun = std::time::Instant::now();
    second.wait_leads();
    assert!(begun.elapsed() < Duration::from_secs(12), "without waiting for the hold to end: {:?}", begun.elapsed());
    let lease = world.api.get("leases", "stoker", "stoker-controller").unwrap();
    assert_eq!(
        (lease["spec"]["holderIdentity"].as_str(), lease["spec"]["leaseTransitions"].as_i64()),
        (Some("second"), Some(1))
    );
}
