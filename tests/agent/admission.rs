//! A node of 32 CPU and 62.5 GiB, and time budgets.

use stoker_proto::v1;
use stoker_proto::v1::reason::Code as Why;

use super::*;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

#[tokio::test(flavor = "multi_thread")]
async fn a_build_of_40_gib_waits_for_another_until_its_time_runs_out() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let reserve = configuration(PLAIN, &[&url]).replace("node: {", "node: {reserve: {cpu: 4, memory: 8GiB}, ");
    let agent = start(&reserve);
    mirror_ready(&agent, &url).await;
    let now = status(&agent).await.ledger.unwrap();
    assert_eq!(now.capacity.as_ref().unwrap().cpu_millis, Some(32_000));
    assert_eq!(now.reserve.as_ref().unwrap().memory_bytes, Some(8 * GIB));

    // One that can never fit is told so, and may fit elsewhere.
    let at_once = size(20_000, 40 * GIB);
    let never = admit(&agent, order("never", branch(&url, "main"), size(4_000, 60 * GIB))).await.unwrap().rejected();
    assert_eq!(codes(&never.reasons), [Why::MemoryBudget]);
    assert_eq!(never.reasons[0].wanted, 60 * GIB);
    assert_eq!(Some(never.reasons[0].available), now.budget.as_ref().unwrap().memory_bytes);
    assert!(!never.final_everywhere, "a larger node may have room");

    let hasty = v1::AdmitRequest { bind_within: Some(seconds(1)), ..order("first", branch(&url, "main"), at_once) };
    let patient = v1::AdmitRequest { bind_within: Some(seconds(20)), ..hasty.clone() };
    let first = admit(&agent, v1::AdmitRequest { request_id: "patient".into(), ..patient }).await.unwrap().granted();

    // A second one waits for memory, is told the figures of both sides, and when to ask again.
    let second = order("second", branch(&url, "main"), size(4_000, 40 * GIB));
    let mut awaiting = Awaiting::begin(&agent, second.clone()).await;
    let waiting = awaiting.next().await.waiting();
    assert_eq!(codes(&waiting.reasons), [Why::MemoryHeld]);
    let held = &waiting.reasons[0];
    assert_eq!(held.resource(), v1::Resource::Memory);
    assert_eq!(held.wanted, 40 * GIB);
    let ledger = status(&agent).await.ledger.unwrap();
    assert_eq!(ledger.leased.unwrap().memory_bytes, Some(40 * GIB));
    assert_eq!(Some(held.available), ledger.free.unwrap().memory_bytes);
    assert!(held.available > 0 && held.available < 40 * GIB, "{held:?}");
    assert!(held.message.contains("40") && held.message.contains("leases hold"), "{}", held.message);
    let hint = waiting.retry_after.unwrap();
    assert!((5..=120).contains(&hint.seconds), "{hint:?}");
    let ticket = waiting.ticket.unwrap();
    assert_eq!((ticket.position, ticket.request_id.as_str()), (1, "second"));

    // Both CPUs and memory: the same size as the first waits for memory, and one place behind.
    let third = admit(&agent, order("third", branch(&url, "main"), size(20_000, 40 * GIB))).await.unwrap().waiting();
    assert_eq!(codes(&third.reasons), [Why::MemoryHeld, Why::CpuHeld, Why::QueueAhead]);
    assert_eq!(third.ticket.unwrap().position, 2);

    // Its reservation runs out without a release: the second is granted, the third still waits.
    let renew = v1::RenewRequest { lease_id: first.id.clone(), reserve_for: Some(seconds(1)) };
    agent.admission().await.renew(renew).await.unwrap();
    let granted = awaiting.granted().await;
    assert_eq!(granted.sizing.unwrap().size.unwrap().memory_bytes, Some(40 * GIB));
    let ended = lease(&agent, &first.id).await;
    assert_eq!((ended.state(), ended.outcome()), (v1::LeaseState::Expired, v1::Outcome::Lost));
    assert_eq!(codes(&ended.reasons), [Why::LeaseExpired]);
    let left = tickets(&agent).await;
    assert_eq!(left.iter().map(|ticket| ticket.request_id.as_str()).collect::<Vec<_>>(), ["third"]);

    // The same with the shortest reservation that can be asked for.
    release(&agent, &granted.id).await.unwrap();
    let third = order("third", branch(&url, "main"), size(20_000, 40 * GIB));
    let third = Awaiting::begin(&agent, third).await.granted().await;
    release(&agent, &third.id).await.unwrap();
    let first = admit(&agent, hasty).await.unwrap().granted();
    let mut awaiting = Awaiting::begin(&agent, order("fourth", branch(&url, "main"), size(4_000, 40 * GIB))).await;
    awaiting.granted().await;
    assert_eq!(lease(&agent, &first.id).await.state(), v1::LeaseState::Expired);
}

/// Two builds that run past their budget: one ends when it is asked to, one does not hear.
#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_outlives_its_time_budget_is_ended() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let mut running = Vec::new();
    for (id, script) in [("hears", "exec sleep 1000"), ("deaf", "trap '' TERM; while :; do sleep 1; done")] {
        let declared = v1::Size { time_budget: Some(seconds(1)), ..small() };
        let granted = admit(&agent, order(id, branch(&url, "main"), declared)).await.unwrap().granted();
        let holder = Holder::start(&agent, script);
        let bound = bind(&agent, &granted.id, holder.process()).await.unwrap();
        assert_eq!(bound.state(), v1::LeaseState::Bound);
        assert!(bound.ends_at.is_some());
        running.push((granted.id, holder));
    }
    for (id, holder) in &mut running {
        wait::until(LIMIT, "the process was ended", || holder.ended());
        let over = |lease: &v1::Lease| lease.state() != v1::LeaseState::Bound;
        let ended = lease_until(&agent, id, "the lease ended", over).await;
        assert_eq!(ended.outcome(), v1::Outcome::TimeBudgetExceeded, "{ended:?}");
        assert!(!ended.reasons.is_empty());
    }
    assert_eq!(status(&agent).await.counts.unwrap().leases, 0);
}
