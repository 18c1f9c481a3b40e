//! Time that runs out: the warning before a budget ends, and the deadline of a drain.

use super::*;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

use v1::reason::Code as Why;

/// A lease that is bound to a process, with so much time.
async fn running(agent: &Agent, url: &str, id: &str, budget: i64) -> (v1::Lease, Holder) {
    let declared = v1::Size { time_budget: Some(seconds(budget)), ..small() };
    let lease = admit(agent, order(id, branch(url, "main"), declared)).await.unwrap().granted();
    let holder = Holder::start(agent, "exec sleep 1000");
    (bind(agent, &lease.id, holder.process()).await.unwrap(), holder)
}

/// Where budgets end nothing it is told all the same, and the build goes on; a restart does not tell it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_nearly_used_up_is_told_once_and_outlives_a_kill() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = start(&format!("admission: {{timeBudget: report}}\n{}", configuration(PLAIN, &[&url])));
    mirror_ready(&agent, &url).await;
    let (lease, _holder) = running(&agent, &url, "one", 5).await;
    let (long, _other) = running(&agent, &url, "long", 3600).await;
    let watch = v1::WatchLeasesRequest::default();
    let mut watched = agent.admission().await.watch_leases(watch).await.unwrap().into_inner();
    let near = |lease: &v1::Lease| codes(&lease.reasons) == [Why::TimeBudgetNear];
    let told = async {
        loop {
            let now = watched.message().await.unwrap().expect("the stream goes on").lease;
            match now.filter(|now| now.id == lease.id && !now.reasons.is_empty()) {
                Some(now) => return now,
                None => continue,
            }
        }
    };
    let now = tokio::time::timeout(LIMIT, told).await.expect("it is told to those who watch");
    assert!(near(&now), "{now:?}");
    let reason = &now.reasons[0];
    assert_eq!((reason.available, reason.expected_until), (5_000, lease.ends_at), "{reason:?}");
    assert!((4_500..7_000).contains(&reason.wanted), "{reason:?}");
    let shown = agent.stoker().run(["lease", "show", &lease.id]).expect_code(0).stdout;
    assert!(shown.contains("nine tenths of its time budget of 5 s are used up"), "{shown}");
    assert_eq!(status(&agent).await.counts.unwrap().time_budget_near, 1);
    let times = |agent: &Agent| agent.log().matches("TIME_BUDGET_NEAR").count();
    assert_eq!(times(&agent), 1, "{}", agent.log());
    agent.restart();
    // Time is looked at before anything is told.
    release(&agent, &long.id).await.unwrap();
    let again = admit(&agent, order("later", branch(&url, "main"), small())).await.unwrap().granted();
    release(&agent, &again.id).await.unwrap();
    let now = super::lease(&agent, &lease.id).await;
    assert!(near(&now) && now.state() == v1::LeaseState::Bound, "{now:?}");
    assert_eq!((times(&agent), now.reasons.len()), (1, 1), "{}", agent.log());
}

async fn drain(agent: &Agent, within: i64) {
    let now = jiff::Timestamp::now().as_second();
    let deadline = Some(prost_types::Timestamp { seconds: now + within, nanos: 0 });
    let mode = v1::SetModeRequest { mode: v1::Mode::Drain.into(), deadline, ..Default::default() };
    agent.node().await.set_mode(mode).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_deadline_a_drain_ends_what_still_runs_and_goes_on() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let (lease, mut holder) = running(&agent, &url, "one", 3600).await;
    let unbound = admit(&agent, order("two", branch(&url, "main"), small())).await.unwrap().granted();
    drain(&agent, 6).await;
    let now = super::lease(&agent, &lease.id).await;
    assert_eq!((now.ends_at, now.reasons.len()), (lease.ends_at, 0), "nothing before the deadline");
    let shown = agent.stoker().run(["mode"]).expect_code(0).stdout;
    assert!(shown.contains("deadline"), "{shown}");
    let now = lease_until(&agent, &lease.id, "it is told", |now| !now.reasons.is_empty()).await;
    assert_eq!(codes(&now.reasons), [Why::ModeDrain]);
    let expired = lease_until(&agent, &unbound.id, "what is not bound ends", |now| now.ended_at.is_some()).await;
    assert_eq!((expired.outcome(), codes(&expired.reasons)), (v1::Outcome::Evicted, vec![Why::ModeDrain]));
    wait::until(LIMIT, "the process was ended", || holder.ended());
    let ended = lease_until(&agent, &lease.id, "its lease ends", |now| now.ended_at.is_some()).await;
    assert_eq!((ended.outcome(), codes(&ended.reasons)), (v1::Outcome::Evicted, vec![Why::ModeDrain]));
    let now = status(&agent).await;
    assert_eq!((now.mode(), now.alarms.len()), (v1::Mode::Drain, 0), "it stays drained: {now:?}");
    let waits = admit(&agent, order("three", branch(&url, "main"), small())).await.unwrap().waiting();
    assert_eq!(codes(&waits.reasons), [Why::ModeDrain]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_budgets_end_nothing_the_deadline_of_a_drain_names_what_still_runs() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = start(&format!("admission: {{timeBudget: report}}\n{}", configuration(PLAIN, &[&url])));
    mirror_ready(&agent, &url).await;
    let (lease, _holder) = running(&agent, &url, "one", 3600).await;
    drain(&agent, 2).await;
    let now = status_until(&agent, "it is named", |now| !now.alarms.is_empty()).await;
    assert_eq!((codes(&now.alarms), now.mode()), (vec![Why::ModeDrain], v1::Mode::Drain));
    assert!(now.alarms[0].message.contains(&lease.id), "{:?}", now.alarms);
    let still = super::lease(&agent, &lease.id).await;
    assert_eq!((still.state(), still.reasons.len()), (v1::LeaseState::Bound, 0), "{still:?}");
    release(&agent, &lease.id).await.unwrap();
    assert_eq!(status(&agent).await.alarms, []);
}
