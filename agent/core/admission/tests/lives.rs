//! A lease from its grant to the day when it is forgotten.

use crate::cluster::{Ended, Pod, PodLife, Pods};

use super::*;

#[test]
fn a_reservation_that_nobody_binds_expires_and_the_next_is_admitted() {
    let mut node = Node::new();
    let first = node.granted(request("first", 20, 40));
    node.pass(Span::minutes(4));
    node.waiting(request("second", 2, 40));
    node.pass(Span::minutes(1));
    assert_eq!(node.live(), ["first"], "at its last moment it still stands");
    node.pass(Span(1));
    assert_eq!(node.live(), ["second"]);
    let ended = node.lease(&first);
    assert_eq!((ended.state, ended.outcome), (LeaseState::Expired, Some(Outcome::Lost)));
    assert_eq!(codes(&ended.reasons), [Code::LeaseExpired]);
}

#[test]
fn a_bound_lease_ends_after_its_time_budget_and_a_grace() {
    let mut node = Node::new();
    let id = node.running(request("first", 20, 40), "a");
    node.pass(Span::seconds(30 * 60 + 30));
    assert_eq!(node.lease(&id).state, LeaseState::Bound);
    node.pass(Span(1));
    let ended = node.lease(&id);
    assert_eq!((ended.state, ended.outcome), (LeaseState::Expired, Some(Outcome::TimeBudgetExceeded)));
    assert_eq!(
        codes(&ended.reasons),
        [Code::TimeBudgetNear, Code::TimeBudgetExceeded],
        "what it was told before stays"
    );
}

#[test]
fn a_bound_lease_does_not_expire_by_its_reservation() {
    let mut node = Node::new();
    let id = node.running(request("first", 20, 40), "a");
    node.pass(Span::minutes(6));
    assert_eq!(node.lease(&id).state, LeaseState::Bound);
}

#[test]
fn a_holder_that_goes_without_a_word_orphans_its_lease() {
    let mut node = Node::new();
    let id = node.running(request("first", 20, 40), "a");
    node.tell(&Command::Gone(Vec::from([id.clone()]), Code::HolderGone));
    let lost = node.lease(&id);
    assert_eq!((lost.state, lost.outcome), (LeaseState::Orphaned, Some(Outcome::Lost)));
    let late = node.running(request("second", 20, 40), "b");
    node.now = node.now.plus(Span::minutes(30));
    node.tell(&Command::Gone(Vec::from([late.clone()]), Code::HolderGone));
    assert_eq!(node.lease(&late).outcome, Some(Outcome::TimeBudgetExceeded), "it was ended, it did not vanish");
}

#[test]
fn the_same_id_gets_the_same_answer_and_other_content_is_a_conflict() {
    let mut node = Node::new();
    let first = node.granted(request("first", 20, 40));
    assert_eq!(node.granted(request("first", 20, 40)), first);
    node.waiting(request("second", 2, 40));
    assert_eq!(node.waiting(request("second", 2, 40)).position, 1);
    assert_eq!((node.live(), node.queued()), (Vec::from(["first"]), Vec::from(["second"])));
    for id in ["first", "second"] {
        let reply = node.ask(request(id, 3, 3), true);
        assert_eq!(reply, Reply::Refused(Refused::Conflict(request_id(id))));
    }
}

#[test]
fn ids_live_a_day_past_the_lease_and_are_then_forgotten() {
    let mut node = Node::new();
    let first = node.granted(request("first", 20, 40));
    node.release(&first);
    node.pass(Span(Span::hours(24).0 - 1));
    assert_eq!(node.granted(request("first", 20, 40)), first, "the same answer: the lease that has ended");
    assert_eq!(node.ask(request("first", 1, 1), true), Reply::Refused(Refused::Conflict(request_id("first"))));
    node.pass(Span(1));
    assert_eq!(node.ledger, Ledger::default());
    assert_eq!(node.refused(&Command::Renew(first.clone(), Span::minutes(1))), Refused::NoLease(first.clone()));
    assert_ne!(node.granted(request("first", 1, 1)), first);
}

#[test]
fn a_release_after_the_end_keeps_the_end_and_takes_the_figures() {
    let mut node = Node::new();
    let id = node.running(request("first", 20, 40), "a");
    node.tell(&Command::Gone(Vec::from([id.clone()]), Code::HolderGone));
    let end = node.lease(&id).ended_at;
    node.now = node.now.plus(Span::minutes(1));
    let release = |usage| Command::Release { lease: id.clone(), outcome: Outcome::Failed, exit_code: Some(2), usage };
    let late = node.lease_reply(&release(Some(usage(9))));
    assert_eq!((late.state, late.ended_at, late.outcome), (LeaseState::Orphaned, end, Some(Outcome::Lost)));
    assert_eq!((late.exit_code, late.peak), (Some(2), Some(usage(9))));
    assert_eq!(node.lease_reply(&release(Some(usage(1)))), late, "the first figures stand");
}

#[test]
fn a_second_release_changes_nothing() {
    let mut node = Node::new();
    let id = node.running(request("first", 20, 40), "a");
    let released = node.release(&id);
    node.now = node.now.plus(Span::minutes(1));
    let again = Command::Release { lease: id, outcome: Outcome::Failed, exit_code: Some(1), usage: None };
    assert_eq!(node.lease_reply(&again), released);
}

#[test]
fn another_holder_is_refused_and_the_same_one_may_bind_again() {
    let mut node = Node::new();
    let id = node.running(request("first", 20, 40), "a");
    let bound = node.lease(&id);
    node.now = node.now.plus(Span::minutes(1));
    assert_eq!(
        node.lease_reply(&Command::Bind { lease: id.clone(), holder: pod("a"), controller: String::new() }),
        bound
    );
    assert_eq!(
        node.refused(&Command::Bind { lease: id.clone(), holder: pod("b"), controller: String::new() }),
        Refused::BoundToAnother(id.clone())
    );
    node.release(&id);
    let refused = node.refused(&Command::Bind { lease: id.clone(), holder: pod("a"), controller: String::new() });
    assert_eq!(refused, Refused::Ended(id, LeaseState::Released));
}

#[test]
fn a_lease_goes_to_the_next_pod_only_from_one_that_ended() {
    let mut node = Node::new();
    let terms = Terms { rebind: Rebind::SameOwner, ..Terms::default() };
    let id = node.granted(Request { terms, ..request("first", 2, 4) });
    let to = |uid: &str, controller: &str| Command::Bind {
        lease: id.clone(),
        holder: pod(uid),
        controller: String::from(controller),
    };
    node.lease_reply(&to("a", "job"));
    let held = |life: PodLife| {
        let pod = Pod { uid: String::from("a"), life, ..Pod::default() };
        Some(Arc::new(Pods::new([(String::from("a"), Arc::new(pod))].into())))
    };
    node.facts.pods = held(PodLife::Running);
    assert_eq!(node.refused(&to("b", "job")), Refused::BoundToAnother(id.clone()), "it runs");
    node.facts.pods = held(PodLife::Ended(Ended::default()));
    assert_eq!(node.refused(&to("b", "another")), Refused::BoundToAnother(id.clone()), "of something else");
    assert_eq!(node.lease_reply(&to("b", "job")).holder, Some(pod("b")));
    let never = node.granted(request("second", 2, 4));
    let bind = |uid| Command::Bind { lease: never.clone(), holder: pod(uid), controller: String::from("job") };
    node.lease_reply(&bind("a"));
    assert_eq!(node.refused(&bind("b")), Refused::BoundToAnother(never.clone()), "it was not asked for so");
}

#[test]
fn a_renewal_keeps_a_reservation_and_never_moves_the_end_of_a_build() {
    let mut node = Node::new();
    let id = node.granted(request("first", 20, 40));
    node.now = node.now.plus(Span::minutes(4));
    let renewed = node.lease_reply(&Command::Renew(id.clone(), Span::minutes(10)));
    assert_eq!((renewed.bind_by, renewed.ends_at), (node.now.plus(Span::minutes(10)), None));
    let long = node.lease_reply(&Command::Renew(id.clone(), Span::hours(100)));
    assert_eq!(long.bind_by, node.now.plus(BIND_WITHIN_MAX), "nobody reserves for ever");
    node.lease_reply(&Command::Bind { lease: id.clone(), holder: pod("a"), controller: String::new() });
    let bound = node.lease(&id);
    node.now = node.now.plus(Span::minutes(10));
    assert_eq!(node.lease_reply(&Command::Renew(id, Span::hours(1))), bound);
}

#[test]
fn a_clock_that_is_set_back_lengthens_no_life() {
    let mut node = Node::new();
    let bound = node.running(request("bound", 2, 4), "a");
    let reserved = node.granted(request("reserved", 20, 40));
    node.waiting(request("waits", 2, 40));
    node.now = Timestamp(node.now.0 - Span::hours(1000).0);
    node.pass(Span(0));
    assert_eq!((node.live(), node.queued()), (Vec::from(["bound", "reserved"]), Vec::from(["waits"])));
    node.pass(Span::seconds(241));
    assert_eq!(node.queued(), Vec::<&str>::new(), "nobody awaited it");
    node.pass(BIND_WITHIN_MAX);
    assert_eq!(node.lease(&reserved).state, LeaseState::Expired);
    assert_eq!(node.lease(&bound).state, LeaseState::Expired, "30 min of budget and the grace are over");
}

#[test]
fn a_clock_that_is_set_back_ends_nothing() {
    let mut node = Node::new();
    let ended = node.granted(request("ended", 1, 1));
    node.release(&ended);
    let bound = node.running(request("bound", 2, 4), "a");
    let reserved = node.granted(request("reserved", 2, 4));
    for back in [1, 1000, Span::hours(1).0, node.now.0] {
        node.now = Timestamp(node.now.0 - back);
        node.pass(Span(0));
        assert_eq!(node.ledger.live_count(), 2);
        assert_eq!(node.granted(request("ended", 1, 1)), ended);
    }
    node.lease_reply(&Command::Bind { lease: reserved, holder: pod("b"), controller: String::new() });
    assert_eq!(node.release(&bound).state, LeaseState::Released);
}

#[test]
fn the_oldest_ended_leases_go_first_where_there_are_too_many() {
    let mut node = Node::new();
    let end = |node: &mut Node, number: usize| {
        let lease = Lease {
            id: node.fresh("lease"),
            request_id: request_id(&format!("r{number}")),
            state: LeaseState::Released,
            ended_at: Some(node.now),
            outcome: Some(Outcome::Succeeded),
            ..node.lease(&LeaseId::try_from(String::from("lease000001")).unwrap())
        };
        node.ledger.apply(Event::Lease(Arc::new(lease)));
    };
    node.granted(request("template", 1, 1));
    (0..10_003).for_each(|number| end(&mut node, number));
    node.pass(Span(1));
    assert_eq!(node.ledger.ended_count(), 10_000);
    assert!(node.ledger.lease_of(&request_id("r2")).is_none());
    assert!(node.ledger.lease_of(&request_id("r3")).is_some());
}

fn seen(node: &mut Node, lease: &LeaseId, memory_gib: u64, minutes: i64) {
    let peak = Usage { processes_peak: 5, cpu_millis_peak: 1_500, ..usage(memory_gib) };
    let began = Timestamp(node.now.0 - minutes * MINUTE);
    let seen = Seen { peak, began, at: node.now, looks: 20 };
    Arc::make_mut(&mut node.facts.in_use).insert(lease.clone(), InUse { seen, ..InUse::default() });
}

#[test]
fn a_caller_knows_better_than_who_looked_on_and_what_it_does_not_know_was_seen() {
    let mut node = Node::new();
    let id = node.running(request("first", 4, 8), "a");
    node.now = node.now.plus(Span::minutes(10));
    seen(&mut node, &id, 6, 10);
    let usage = Some(Usage { memory_bytes_peak: 7 * GIB, ..Usage::default() });
    let end = Command::Release { lease: id, outcome: Outcome::Succeeded, exit_code: Some(0), usage };
    let peak = node.lease_reply(&end).peak.unwrap();
    assert_eq!((peak.memory_bytes_peak, peak.cpu_millis_peak, peak.processes_peak), (7 * GIB, 1_500, 5));
    assert_eq!(peak.elapsed, Span::minutes(10), "from its begin to its end, however late somebody looked first");
}

#[test]
fn what_was_seen_of_a_part_of_a_build_says_at_least_so_much() {
    for (minutes, at_least) in [(10, false), (8, false), (7, true)] {
        let mut node = Node::new();
        let id = node.running(request("first", 4, 8), "a");
        node.now = node.now.plus(Span::minutes(10));
        seen(&mut node, &id, 6, minutes);
        let sample = node.release(&id).sample().unwrap();
        assert_eq!((sample.memory_bytes_peak, sample.cpu_millis_given), (6 * GIB, 4_000));
        assert_eq!(sample.at_least(), at_least, "{minutes} of 10 minutes");
    }
    let mut node = Node::new();
    let id = node.running(request("first", 4, 8), "a");
    assert_eq!(node.release(&id).sample(), None, "nobody saw anything");
}

#[test]
fn a_build_that_nobody_released_tells_what_was_seen_of_it_too() {
    let mut node = Node::new();
    let lost = node.running(request("first", 4, 8), "a");
    let overdue = node.running(request("second", 4, 8), "b");
    node.now = node.now.plus(Span::minutes(29));
    seen(&mut node, &lost, 6, 29);
    seen(&mut node, &overdue, 7, 29);
    node.tell(&Command::Gone(Vec::from([lost.clone()]), Code::HolderGone));
    node.pass(Span::minutes(2));
    for (id, gib, outcome) in [(lost, 6, Outcome::Lost), (overdue, 7, Outcome::TimeBudgetExceeded)] {
        let sample = node.lease(&id).sample().unwrap();
        assert_eq!((sample.memory_bytes_peak, sample.outcome), (gib * GIB, outcome));
        assert!(sample.at_least());
        // A release that comes late takes nothing back.
        assert_eq!(node.release(&id).sample(), Some(sample));
    }
}

#[test]
fn nine_tenths_of_a_time_budget_are_told_once() {
    let mut node = Node::new();
    let id = node.running(request("first", 20, 40), "a");
    node.pass(Span(27 * MINUTE - 1));
    assert_eq!(node.lease(&id).reasons, []);
    assert_eq!(node.pass(Span(1)).len(), 1);
    let told = node.lease(&id);
    assert_eq!((told.state, codes(&told.reasons)), (LeaseState::Bound, Vec::from([Code::TimeBudgetNear])));
    assert_eq!((told.reasons[0].wanted, told.reasons[0].available), (27 * 60_000, 30 * 60_000));
    assert_eq!(node.pass(Span::minutes(1)), [], "once");
    let ended = node.release(&id);
    assert_eq!((ended.outcome, codes(&ended.reasons)), (Some(Outcome::Succeeded), Vec::from([Code::TimeBudgetNear])));
}

/// A node in a drain with a deadline in ten minutes: what runs, and what is not bound.
fn drained(end_at_budget: bool) -> (Node, LeaseId, LeaseId) {
    let mut node = Node::new();
    node.facts.end_at_budget = end_at_budget;
    let runs = node.running(request("runs", 2, 4), "a");
    let unbound = node.granted(Request { bind_within: Span::minutes(30), ..request("unbound", 2, 4) });
    let deadline = Some(node.now.plus(Span::minutes(10)));
    node.tell(&Command::SetMode(ModeState { mode: Mode::Drain, deadline, ..ModeState::default() }));
    assert_eq!(node.pass(Span(10 * MINUTE - 1)), [], "nothing before the deadline");
    node.pass(Span(1));
    let ended = node.lease(&unbound);
    assert_eq!((ended.state, ended.outcome), (LeaseState::Expired, Some(Outcome::Evicted)));
    assert_eq!(codes(&ended.reasons), [Code::ModeDrain]);
    (node, runs, unbound)
}

#[test]
fn the_deadline_of_a_drain_ends_what_runs_and_the_node_stays_drained() {
    let (mut node, runs, _) = drained(true);
    let told = node.lease(&runs);
    assert_eq!(
        (told.state, told.ends_at, codes(&told.reasons)),
        (LeaseState::Bound, Some(node.now), Vec::from([Code::ModeDrain]))
    );
    assert_eq!(node.pass(Span::seconds(30)), [], "its grace");
    node.pass(Span(1));
    let ended = node.lease(&runs);
    assert_eq!((ended.state, ended.outcome), (LeaseState::Expired, Some(Outcome::Evicted)));
    assert_eq!(codes(&node.waiting(request("new", 2, 4)).reasons), [Code::ModeDrain]);
    // And one whose holder heard and went.
    let (mut node, runs, _) = drained(true);
    node.tell(&Command::Gone(Vec::from([runs.clone()]), Code::HolderGone));
    assert_eq!(node.lease(&runs).outcome, Some(Outcome::Evicted));
    // Its caller takes for a failure of the build what the node did; a success stays one.
    for (told, outcome) in [(Outcome::Failed, Outcome::Evicted), (Outcome::Succeeded, Outcome::Succeeded)] {
        let (mut node, runs, _) = drained(true);
        let release = Command::Release { lease: runs, outcome: told, exit_code: Some(143), usage: None };
        assert_eq!(node.lease_reply(&release).outcome, Some(outcome));
    }
}

#[test]
fn where_budgets_end_nothing_the_deadline_of_a_drain_does_neither() {
    let (mut node, runs, _) = drained(false);
    node.pass(Span::minutes(5));
    assert_eq!((node.lease(&runs).state, node.lease(&runs).reasons), (LeaseState::Bound, Vec::new()));
}
