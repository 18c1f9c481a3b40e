//! Who waits on several agents: one lease in the end, whatever comes between.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::support::upstream::Fault;

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_on_three_has_one_lease_in_the_end() {
    needs_root!();
    let fleet = Fleet::start();
    for node in NODES {
        fleet.fill(node).await;
    }
    let full = fleet.lease("admit", &["-o", "json", "--request-id", "now"]).run().expect_code(75).json();
    assert!(full["waiting"]["retryAfter"].is_string(), "{full}");
    assert!(fleet.waited_on().await.is_empty(), "it wanted no place");

    // With one place it is kept, and found again.
    let ticket = ["--request-id", "queued", "--ticket", "-o", "json"];
    let first = fleet.lease("admit", &ticket).run().expect_code(75).json();
    let again = fleet.lease("admit", &ticket).run().expect_code(75).json();
    assert_eq!(first["address"], again["address"]);
    assert_eq!(first["waiting"]["ticket"]["id"], again["waiting"]["ticket"]["id"]);
    assert_eq!(fleet.waited_on().await.len(), 1);
    let waiting = fleet.lease("admit", &["--request-id", "queued", "--wait"]).spawn();
    fleet.is_waited_on_everywhere().await;
    waiting.signal(Signal::SIGTERM);
    waiting.wait().expect_code(130);
    assert!(fleet.waited_on().await.is_empty(), "a signal leaves nothing behind");

    // All at once, again and again: who is first is chance.
    for (round, nodes) in [&NODES[..], &NODES[1..], &NODES[..1], &NODES[..], &NODES[..2]].into_iter().enumerate() {
        let id = format!("race-{round}");
        let waiting = fleet.lease("admit", &["--request-id", &id, "--wait", "-o", "json"]).spawn();
        fleet.is_waited_on_everywhere().await;
        fleet.come_free(nodes).await;
        let (node, address) = placed(&waiting.wait().expect_code(0));
        assert_eq!((fleet.leases_of(&id).await, address), (vec![&*node], fleet.address(&node)));
        assert!(nodes.contains(&node.as_str()) && fleet.waited_on().await.is_empty());
        let lease = fleet.live().await.into_iter().find(|(_, lease)| lease.request_id == id).unwrap().1;
        assert!(lease.confirm_by.is_none(), "it is confirmed: {lease:?}");
        fleet.release(&node, &lease.id).await;
        // Full again, whatever was given back.
        for node in NODES {
            let live = fleet.live().await;
            for (_, lease) in live.into_iter().filter(|(at, _)| *at == node) {
                fleet.release(node, &lease.id).await;
            }
            fleet.fill(node).await;
        }
    }

    let mut given_back = 0;
    for agent in &fleet.agents {
        let request = v1::ListLeasesRequest { states: vec![v1::LeaseState::Released.into()], ..Default::default() };
        let ended = agent.admission().await.list_leases(request).await.unwrap().into_inner().leases;
        let lost = |lease: &&v1::Lease| lease.request_id.starts_with("race-") && lease.outcome() == v1::Outcome::Lost;
        given_back += ended.iter().filter(lost).count();
    }
    eprintln!("five races, {given_back} grants given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_go_and_come_end_no_wait() {
    needs_root!();
    let mut fleet = Fleet::start();
    for node in NODES {
        fleet.fill(node).await;
    }
    let waits = |fleet: &Fleet, id: &str| fleet.lease("admit", &["--request-id", id, "--wait", "-o", "json"]).spawn();

    // One dies, and another comes free.
    let waiting = waits(&fleet, "survivor");
    fleet.is_waited_on_everywhere().await;
    fleet.agents[0].kill9();
    fleet.come_free(&["exo1"]).await;
    assert_eq!(placed(&waiting.wait().expect_code(0)).0, "exo1");
    fleet.agents[0].restart();
    assert_eq!(fleet.leases_of("survivor").await, ["exo1"]);
    fleet.cancel("ghost").await;

    // One stands still: what it has is named, and nobody waits for it.
    let waiting = waits(&fleet, "stopped");
    fleet.is_waited_on_everywhere().await;
    let (ghost, room) = (Pid::from_raw(fleet.agent("ghost").pid().cast_signed()), fleet.first("exo0").await);
    kill(ghost, Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    fleet.release("exo0", &room).await;
    let output = waiting.wait().expect_code(0);
    kill(ghost, Signal::SIGCONT).unwrap();
    assert_eq!((placed(&output).0.as_str(), begun.elapsed() < SOON), ("exo0", true));
    let told = format!("what {} has of request stopped runs out by itself", fleet.address("ghost"));
    assert!(output.stderr.contains(&told), "{}", output.stderr);
    fleet.cancel("ghost").await;
    assert!(fleet.waited_on().await.is_empty());

    // One starts again: it is waited on as before.
    let waiting = waits(&fleet, "again");
    fleet.is_waited_on_everywhere().await;
    fleet.agents[0].restart();
    fleet.come_free(&["ghost"]).await;
    assert_eq!(placed(&waiting.wait().expect_code(0)).0, "ghost");
    assert_eq!((fleet.leases_of("again").await, fleet.waited_on().await), (vec!["ghost"], vec![]));

    // One comes that has room. It is seen at the next look around.
    fleet.resolve(&[1]);
    let waiting = waits(&fleet, "look");
    wait::until_async(SOON, "a place", async || fleet.waited_on().await == ["ghost"]).await;
    fleet.come_free(&["exo1"]).await;
    fleet.resolve(&[1, 3]);
    assert_eq!(placed(&waiting.wait().expect_code(0)).0, "exo1");
    assert!(fleet.waited_on().await.is_empty());

    // Somebody gives its only place up; and all agents go.
    fleet.resolve(&[1]);
    let waiting = waits(&fleet, "cancelled");
    wait::until_async(SOON, "a place", async || fleet.waited_on().await == ["ghost"]).await;
    fleet.cancel("ghost").await;
    let cancelled = waiting.wait().expect_code(1);
    assert!(cancelled.stdout.contains("TICKET_CANCELLED"), "{}", cancelled.stdout);
    fleet.resolve(&[1, 2, 3]);
    let waiting = waits(&fleet, "alone");
    fleet.is_waited_on_everywhere().await;
    fleet.agents.iter_mut().for_each(Agent::kill9);
    let alone = waiting.wait().expect_code(2);
    assert!(alone.stderr.contains("no agent answers"), "{}", alone.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_interrupted_before_an_answer_leaves_nothing() {
    needs_root!();
    let fleet = Fleet::start();
    fleet.upstream.fault(Fault::Hang);
    let asks = fleet.lease("admit", &["--request-id", "hangs", "--wait"]).spawn();
    wait::until(SOON, "a question to upstream", || fleet.upstream.requests().total() > 0);
    asks.signal(Signal::SIGINT);
    asks.wait().expect_code(130);
    fleet.upstream.fault(Fault::None);
    // Each agent decides about this one after what hung.
    for node in NODES {
        fleet.fill(node).await;
    }
    assert!(fleet.leases_of("hangs").await.is_empty() && fleet.waited_on().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_killed_leaves_what_runs_out_by_itself() {
    needs_root!();
    let fleet = Fleet::start();
    for node in NODES {
        fleet.fill(node).await;
    }
    let waiting = fleet.lease("admit", &["--request-id", "killed", "--wait"]).spawn();
    fleet.is_waited_on_everywhere().await;
    waiting.signal(Signal::SIGKILL);
    assert_eq!(waiting.wait().signal(), Some(Signal::SIGKILL as i32));
    // Its places come to their turn, and nobody confirms.
    fleet.come_free(&NODES).await;
    let begun = Instant::now();
    let granted = async || !fleet.leases_of("killed").await.is_empty();
    wait::until_async(SOON, "the grant of one that is gone", granted).await;
    let nothing_is_left = async || fleet.leases_of("killed").await.is_empty() && fleet.waited_on().await.is_empty();
    wait::until_async(Duration::from_secs(60), "grants that run out", nothing_is_left).await;
    eprintln!("what a killed command left ran out in {:?}", begun.elapsed());
    let spent = fleet.lease("admit", &["--request-id", "killed"]).run().expect_code(2);
    assert!(spent.stderr.contains("use a new id"), "{}", spent.stderr);
    let again = fleet.lease("admit", &["--request-id", "another", "-o", "json"]).run().expect_code(0);
    assert_eq!(fleet.leases_of("another").await, [placed(&again).0]);
}
