//! Agents that end in the middle: what they gave they know again, and what they did not give is nobody's.

use super::*;
use crate::support::loopdev::needs_root;

/// Which node is asked for a pod is written, and its agent has not heard of it.
fn asked_and_unheard(world: &World, name: &str) -> String {
    world.signal_agents(Signal::SIGSTOP);
    world.gated(name);
    wait::until(LIMIT, "it is written whom it asks", || !world.text(name, PLACEMENT).is_empty());
    world.meant(name)
}

/// It is killed; the other goes on.
fn kill_of_two(world: &mut World, asked: &str) {
    world.agent_mut(asked).kill9();
    let other = NODES.iter().find(|name| **name != asked).unwrap();
    kill(Pid::from_raw(world.agent(other).pid().cast_signed()), Signal::SIGCONT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_before_it_was_asked_leaves_one_lease() {
    needs_root!();
    let mut world = World::start();
    let controller = world.leader("one");
    controller.wait_hears(2);
    let asked = asked_and_unheard(&world, "build");
    kill_of_two(&mut world, &asked);
    world.wait_told("build", "NodeSilent");
    assert!(world.is_gated("build"));
    begin(world.agent_mut(&asked));
    assert_eq!(world.wait_placed("build"), asked);
    world.has_one_lease("build").await;
    assert_eq!(world.live().await.len(), 1);
}

/// Several pods were asked of it when it ended: that its answers said nothing is over when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_with_several_asked_takes_new_ones_when_it_is_back() {
    needs_root!();
    let mut world = World::start();
    let controller = world.leader("one");
    controller.wait_hears(2);
    let in_zone = json!({"nodeSelector": {"zone": "a"}});
    world.signal_agents(Signal::SIGSTOP);
    for name in ["first", "second"] {
        world.gated_as(name, &in_zone);
        wait::until(LIMIT, "it is written whom it asks", || !world.text(name, PLACEMENT).is_empty());
    }
    kill_of_two(&mut world, "ghost");
    for name in ["first", "second"] {
        world.wait_told(name, "NodeSilent");
    }
    begin(world.agent_mut("ghost"));
    for name in ["first", "second", "third"] {
        if name == "third" {
            world.gated_as(name, &in_zone);
        }
        assert_eq!(world.wait_placed(name), "ghost");
        world.has_one_lease(name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_after_it_granted_leaves_one_lease() {
    needs_root!();
    let mut world = World::start();
    let _controller = world.leader("one");
    world.granted_and_held("build").await;
    let asked = world.meant("build");
    world.agent_mut(&asked).kill9();
    world.api.hold("");
    assert_eq!(world.wait_placed("build"), asked);
    begin(world.agent_mut(&asked));
    world.has_one_lease("build").await;
    assert_eq!(world.live().await.len(), 1);
}

/// The pod goes while nobody can give its lease back.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_nobody_could_give_back_runs_out_by_itself() {
    needs_root!();
    let mut world = World::start();
    let _controller = world.leader("one");
    world.granted_and_held("build").await;
    let asked = world.meant("build");
    world.agent_mut(&asked).kill9();
    world.api.delete("pods", "builds", "build");
    world.api.hold("");
    begin(world.agent_mut(&asked));
    let lease = world.live().await.remove(0).1;
    let (granted, bind_by) = (lease.created_at.unwrap(), lease.bind_by.unwrap());
    assert!((119..=121).contains(&(bind_by.seconds - granted.seconds)), "{granted:?} {bind_by:?}");
    // What comes after has its own, and does not keep it.
    world.gated("next");
    world.wait_placed("next");
    assert_eq!(world.live().await.into_iter().find(|(_, one)| one.id == lease.id).unwrap().1.bind_by, Some(bind_by));
}

/// The node that was asked never comes back: the pod is held for it until its grant has run out.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stays_silent_holds_a_pod_until_its_grant_has_run_out() {
    needs_root!();
    let mut world = World::start();
    let controller = world.leader("one");
    controller.wait_hears(2);
    let asked = asked_and_unheard(&world, "build");
    kill_of_two(&mut world, &asked);
    let why = world.wait_told("build", "NodeSilent");
    assert!(why.contains(&asked), "{why}");
    // What comes after goes elsewhere at once, and it does not.
    world.gated("next");
    let other = world.wait_placed("next");
    assert!(other != asked && world.is_gated("build"));
    world.age("build", Duration::from_secs(181));
    assert_eq!(world.wait_placed("build"), other);
    assert!(world.text("build", PLACEMENT).starts_with(&format!("{other} 2 ")), "another name for another grant");
    begin(world.agent_mut(&asked));
    world.has_one_lease("build").await;
    assert_eq!(world.live().await.len(), 2);
}
