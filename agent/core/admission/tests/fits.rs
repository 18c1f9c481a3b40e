//! Does it fit: now, later, never; and what everyone is told.

use crate::cluster::{Pod, Pods};
use crate::sizing::{DERIVED_FLOOR, Declared, Language, Policy, size};

use super::*;

fn reason_of(waiting: &Waiting, code: Code) -> Reason {
    waiting.reasons.iter().find(|reason| reason.code == code).unwrap_or_else(|| panic!("{waiting:?}")).clone()
}

#[test]
fn a_second_large_build_waits_for_memory_and_is_told_both_figures() {
    let mut node = Node::new();
    node.running(request("first", 20, 40), "a");
    let waiting = node.waiting(request("second", 2, 40));
    assert_eq!(codes(&waiting.reasons), [Code::MemoryHeld]);
    let held = reason_of(&waiting, Code::MemoryHeld);
    assert_eq!((held.wanted, held.available), (40 * GIB, 14 * GIB + GIB / 2));
    assert_eq!(
        held.message,
        "40 GiB of memory wanted, 14.5 GiB free: leases hold 40 GiB, others 0 B, of the budget of 54.5 GiB"
    );
    assert_eq!(held.expected_until, Some(node.now.plus(Span::minutes(30))));
    assert!((Span::seconds(5)..=Span::seconds(120)).contains(&waiting.retry_after), "{:?}", waiting.retry_after);
}

#[test]
fn a_unit_that_says_what_it_is_of_is_not_said_twice() {
    let mut node = Node::new();
    node.running(request("first", 26, 4), "a");
    let waiting = node.waiting(request("second", 4, 4));
    assert_eq!(
        waiting.reasons[0].message,
        "4 CPU wanted, 2 CPU free: leases hold 26 CPU, others 0 CPU, of the budget of 28 CPU"
    );
}

#[test]
fn hints_stay_within_their_bounds_whatever_the_jitter() {
    for (jitter, after) in [(0, 1), (999, 1), (0, 29 * 60), (999, 29 * 60), (u16::MAX, 60)] {
        let mut node = Node::new();
        node.running(request("first", 20, 40), "a");
        node.facts.jitter = jitter;
        node.now = node.now.plus(Span::seconds(after));
        let hint = node.waiting(request("second", 2, 40)).retry_after;
        assert!((Span::seconds(5)..=Span::seconds(120)).contains(&hint), "{hint:?} with jitter {jitter}");
    }
}

#[test]
fn what_is_declared_above_the_budget_is_rejected_for_good() {
    let mut node = Node::new();
    let Answer::Rejected(reasons, sizing) = node.admit(request("huge", 2, 60)) else { panic!("not rejected") };
    assert_eq!(codes(&reasons), [Code::MemoryBudget]);
    assert_eq!((reasons[0].wanted, reasons[0].available), (60 * GIB, 54 * GIB + GIB / 2));
    assert!(reasons[0].message.contains("62.5 GiB less 8 GiB reserved"), "{}", reasons[0].message);
    assert_eq!(sizing.unwrap().size.amounts.memory_bytes, 60 * GIB);
    assert_eq!(node.ledger, Ledger::default(), "nothing is remembered of it");
}

#[test]
fn every_resource_that_never_fits_is_named() {
    let mut node = Node::new();
    let mut request = request("huge", 30, 60);
    request.sizing.size.amounts.disk_bytes = 500 * GIB;
    request.sizing.size.amounts.disk_inodes = 60_000_000;
    let Answer::Rejected(reasons, _) = node.admit(request) else { panic!("not rejected") };
    let all = [Code::MemoryBudget, Code::CpuBudget, Code::DiskBudget, Code::DiskInodesBudget];
    assert_eq!(codes(&reasons), all);
}

#[test]
fn a_pool_that_is_not_there_makes_builds_wait_and_rejects_none() {
    let mut node = Node::new();
    node.facts.capacity = Amounts { disk_bytes: 0, disk_inodes: 0, ..node.facts.capacity };
    node.facts.disk_free = Amounts::default();
    node.facts.gate = gate(GateState::Shut, &[Code::PoolNotReady]);
    let waiting = node.waiting(request("first", 2, 4));
    assert_eq!(waiting.reasons[0].code, Code::PoolNotReady);
    (node.facts.capacity, node.facts.disk_free, node.facts.gate) =
        (facts().capacity, facts().disk_free, Gate::default());
    node.pass(Span::seconds(1));
    assert_eq!(node.live(), ["first"]);
}

#[test]
fn the_first_build_on_an_idle_node_starts_despite_soft_signals_but_not_despite_floors() {
    for (state, code, starts) in [
        (GateState::Shut, Code::MemoryPressure, true),
        (GateState::Narrow, Code::MemoryNarrow, true),
        (GateState::Shut, Code::MemoryFloor, false),
        (GateState::Shut, Code::DiskFloor, false),
        (GateState::Shut, Code::RootDiskInodesFloor, false),
        (GateState::Shut, Code::PoolNotReady, false),
        (GateState::Shut, Code::SensorFailed, false),
    ] {
        let mut node = Node::new();
        node.facts.gate = gate(state, &[code]);
        // Others use so much that it would not fit beside them.
        node.facts.others = amounts(10, 30);
        let answer = node.admit(request("first", 20, 40));
        assert_eq!(matches!(answer, Answer::Granted(_)), starts, "{code:?}");
        let second = node.waiting(request("second", 4, 8));
        assert_eq!(second.reasons[0].code, code, "with one running or waiting, the gate holds the next");
    }
}

#[test]
fn beside_what_others_use_only_the_first_build_starts() {
    let mut node = Node::new();
    node.facts.others = amounts(10, 30);
    node.granted(request("first", 20, 40));
    let waiting = node.waiting(request("second", 1, 1));
    assert_eq!(codes(&waiting.reasons), [Code::MemoryHeld]);
    assert!(waiting.reasons[0].message.contains("others 22 GiB"), "{}", waiting.reasons[0].message);
}

#[test]
fn what_others_use_is_not_hidden_behind_a_lease_of_which_nothing_is_known() {
    let mut node = Node::new();
    node.facts.others = amounts(4, 28);
    let first = node.granted(request("first", 4, 20));
    let others = |node: &Node| node.ledger.totals(&node.facts).others.memory_bytes;
    assert_eq!(others(&node), 20 * GIB, "28 GiB are used, 8 of them by the system");
    node.lease_reply(&Command::Bind { lease: first.clone(), holder: pod("a"), controller: String::new() });
    assert_eq!(others(&node), 20 * GIB, "nobody has looked yet");
    assert_eq!(node.ledger.totals(&node.facts).free.memory_bytes, 14 * GIB + GIB / 2);
    assert_eq!(codes(&node.waiting(request("second", 2, 20)).reasons), [Code::MemoryHeld]);
    // Looked at, it uses nothing of the 28 GiB.
    node.uses(&first, amounts(0, 0));
    assert_eq!(others(&node), 20 * GIB);
    // Where nothing of it can be measured, its size may be part of what was seen, and more is others'.
    Arc::make_mut(&mut node.facts.in_use).insert(first, InUse::default());
    assert_eq!(others(&node), 0);
    node.facts.others = amounts(4, 30);
    assert_eq!(others(&node), 2 * GIB);
}

#[test]
fn what_others_use_within_the_reserve_costs_nothing() {
    let mut node = Node::new();
    node.facts.others = amounts(4, 8);
    assert_eq!(node.ledger.totals(&node.facts).free.memory_bytes, 54 * GIB + GIB / 2);
}

#[test]
fn a_lease_that_uses_more_than_its_size_counts_by_its_use() {
    let mut node = Node::new();
    let id = node.running(request("first", 4, 10), "a");
    for (used, held) in [(2, 10), (30, 30)] {
        node.uses(&id, amounts(1, used));
        let totals = node.ledger.totals(&node.facts);
        assert_eq!((totals.leased.memory_bytes, totals.others.memory_bytes), (held * GIB, 0));
    }
    assert_eq!(codes(&node.waiting(request("second", 2, 25)).reasons), [Code::MemoryHeld]);
}

/// Pods by uid, with what they ask for.
fn pods(all: &[(&str, Amounts)]) -> Option<Arc<Pods>> {
    let pods = all.iter().map(|(uid, requests)| {
        let pod = Pod { uid: String::from(*uid), requests: *requests, ..Pod::default() };
        (pod.uid.clone(), Arc::new(pod))
    });
    Some(Arc::new(Pods::new(pods.collect())))
}

#[test]
fn what_a_pod_asks_of_the_cluster_counts_where_it_is_more_than_the_lease() {
    let mut node = Node::new();
    node.running(request("first", 4, 10), "a");
    node.facts.pods = pods(&[("a", amounts(6, 20)), ("b", amounts(1, 1))]);
    let leased = node.ledger.totals(&node.facts).leased;
    assert_eq!((leased.cpu_millis, leased.memory_bytes), (6_000, 20 * GIB));
}

#[test]
fn a_pod_that_nothing_keeps_to_its_size_counts_as_the_whole_node() {
    let mut node = Node::new();
    let id = node.running(request("first", 4, 10), "a");
    let limits = |cpu_millis, memory_bytes| Some(Amounts { cpu_millis, memory_bytes, ..Amounts::default() });
    let mut held = |limits: Option<Amounts>| {
        let seen = InUse { used: Some(amounts(1, 1)), limits, ..InUse::default() };
        Arc::make_mut(&mut node.facts.in_use).insert(id.clone(), seen);
        let leased = node.ledger.totals(&node.facts).leased;
        (leased.cpu_millis, leased.memory_bytes / GIB)
    };
    assert_eq!(held(None), (4000, 10), "nothing was seen yet");
    assert_eq!(held(limits(4000, 10 * GIB)), (4000, 10));
    assert_eq!(held(limits(u64::MAX, 10 * GIB)), (28_000, 10), "of CPU all, of memory its size");
    assert_eq!(held(limits(4001, u64::MAX)), (28_000, 54));
    assert_eq!(codes(&node.waiting(request("second", 1, 1)).reasons), [Code::MemoryHeld, Code::CpuHeld]);
    node.facts.unlimited_is_node = false;
    assert_eq!(node.ledger.totals(&node.facts).leased.cpu_millis, 4000);
}

#[test]
fn what_the_scheduler_would_not_place_waits_even_where_nothing_runs() {
    let mut node = Node::new();
    let room = |cpu, gib, pods| Some(Scheduler { free: amounts(cpu, gib), pods });
    node.facts.scheduler = room(3, 60, 100);
    assert_eq!(codes(&node.waiting(request("first", 4, 10)).reasons), [Code::NodeRequests]);
    node.facts.scheduler = room(10, 60, 100);
    node.pass(Span::seconds(1));
    assert_eq!(node.live(), ["first"]);
    // Its pod is to come: what it will ask for is not free any more.
    assert_eq!(codes(&node.waiting(request("second", 7, 10)).reasons), [Code::NodeRequests]);
    // A node has so many pods, and no more.
    let mut node = Node::new();
    node.facts.scheduler = room(28, 54, 1);
    node.granted(request("first", 4, 10));
    assert_eq!(codes(&node.waiting(request("second", 4, 10)).reasons), [Code::NodeRequests]);
}

/// The scheduler has placed its pod, which waits for its lease: what that has left is for others, and they see it so.
#[test]
fn a_pod_that_is_here_already_does_not_wait_for_the_scheduler() {
    let room = |cpu, gib, pods| Some(Scheduler { free: amounts(cpu, gib), pods });
    let placed = |request: Request| {
        let terms = Terms { pod: String::from("uid"), ..Terms::default() };
        Request { terms, ..request }
    };
    let with_pod = || {
        let mut node = Node::new();
        let asks = Pod { uid: String::from("uid"), requests: amounts(20, 40), ..Pod::default() };
        node.facts.pods = Some(Arc::new(Pods::new([(asks.uid.clone(), Arc::new(asks))].into())));
        node.facts.scheduler = room(8, 14, 0);
        node.facts.pass_for = Span::seconds(1);
        assert_eq!(codes(&node.waiting(request("other", 9, 10)).reasons), [Code::NodeRequests, Code::NodeRequests]);
        node
    };
    let mut node = with_pod();
    let id = node.granted(placed(request("own", 22, 42)));
    assert_eq!(node.ledger.lease(&id).unwrap().terms.pod, "uid");
    // Of the scheduler's it takes what is beyond what its pod asked for, and no second pod.
    assert_eq!(node.ledger.totals(&node.facts).scheduler, room(6, 12, 0));
    // Nor behind one that does, however long that one was passed: it waits for the end of this very pod.
    let mut node = with_pod();
    node.facts.leases_max = 0;
    node.waiting(placed(request("own", 22, 42)));
    node.pass(Span::seconds(2));
    node.facts.leases_max = 100;
    node.pass(Span::seconds(2));
    assert_eq!(node.live(), ["own"]);
    // What leases hold counts for it as for all.
    let mut node = Node::new();
    node.running(request("first", 20, 40), "a");
    node.facts.scheduler = room(8, 14, 0);
    assert_eq!(codes(&node.waiting(placed(request("own", 20, 10))).reasons), [Code::CpuHeld]);
}

#[test]
fn a_disk_without_room_holds_back_the_first_build_on_an_idle_node_too() {
    let mut node = Node::new();
    node.facts.disk_free.disk_bytes = 10 * GIB;
    node.facts.others = amounts(10, 30);
    let waiting = node.waiting(request("first", 20, 40));
    assert_eq!(codes(&waiting.reasons), [Code::DiskHeld], "soft figures do not count, the disk does");
    node.facts.disk_free.disk_bytes = 20 * GIB;
    node.pass(Span::seconds(1));
    assert_eq!(node.live(), ["first"]);
}

#[test]
fn disk_that_a_lease_has_written_is_not_counted_twice() {
    let mut node = Node::new();
    let id = node.running(request("first", 4, 8), "a");
    let before = node.ledger.totals(&node.facts);
    assert_eq!((before.free.disk_bytes, before.unwritten.disk_bytes), (380 * GIB, 20 * GIB), "all of it is to come");
    // It writes 15 of its 20 GiB, then 25: what it holds grows only by what is beyond its size.
    for (written, unwritten, free) in [(15, 5, 380), (25, 0, 375)] {
        node.facts.disk_free.disk_bytes = (400 - written) * GIB;
        let seen = Amounts { disk_bytes: written * GIB, ..amounts(4, 8) };
        node.uses(&id, seen);
        let totals = node.ledger.totals(&node.facts);
        assert_eq!(totals.unwritten.disk_bytes, unwritten * GIB);
        assert_eq!((totals.free.disk_bytes, totals.others.disk_bytes), (free * GIB, 0));
    }
}

/// For what others' files take of the pool no lease's end makes room.
#[test]
fn what_nobody_declared_never_waits_for_disk_that_others_fill() {
    let mut node = Node::new();
    let derived = |node: &Node| {
        let room = node.ledger.totals(&node.facts).derivable();
        let declared = Declared { cpu_millis: Some(1000), memory_bytes: Some(GIB), ..Declared::default() };
        size(&declared, None, None, Language::Other, &Policy::default(), &room)
    };
    assert_eq!(derived(&node).size.amounts.disk_bytes, 20 * GIB, "the default, where there is room");
    node.facts.disk_free.disk_bytes = 20 * GIB;
    let sizing = derived(&node);
    assert_eq!(
        (sizing.size.amounts.disk_bytes, sizing.clamped),
        (18 * GIB, true),
        "all but a tenth of what others leave"
    );
    let first = node.granted(Request { sizing, ..request("first", 1, 1) });

    // What a lease has written comes back with its end, so the next is as big and waits for that alone.
    node.uses(&first, Amounts { disk_bytes: 12 * GIB, ..amounts(1, 1) });
    node.facts.disk_free.disk_bytes = 8 * GIB;
    let next = Request { sizing: derived(&node), ..request("next", 1, 1) };
    assert_eq!(next.sizing.size.amounts.disk_bytes, 18 * GIB);
    assert_eq!(codes(&node.waiting(next).reasons), [Code::DiskHeld]);
    node.release(&first);
    Arc::make_mut(&mut node.facts.in_use).clear();
    node.facts.disk_free.disk_bytes = 20 * GIB;
    node.pass(Span::seconds(1));
    assert_eq!(node.live(), ["next"]);

    // A little is asked for where there is none: it waits, and says what for. Inodes the same.
    (node.facts.disk_free.disk_bytes, node.facts.disk_free.disk_inodes) = (0, 0);
    let room = node.ledger.totals(&node.facts).derivable();
    assert_eq!((room.disk_bytes, room.disk_inodes), (DERIVED_FLOOR.disk_bytes, DERIVED_FLOOR.disk_inodes));
    node.facts.capacity.disk_bytes = GIB / 8;
    assert_eq!(node.ledger.totals(&node.facts).derivable().disk_bytes, GIB / 8, "nor more than all of a tiny pool");
    node.facts.capacity = Amounts { disk_bytes: 0, disk_inodes: 0, ..node.facts.capacity };
    assert_eq!(node.ledger.totals(&node.facts).derivable().disk_bytes, 0, "a pool that is away says nothing");
}

#[test]
fn disk_that_leases_hold_is_not_given_twice() {
    let mut node = Node::new();
    let large = |id: &str| {
        let mut request = request(id, 1, 1);
        request.sizing.size.amounts.disk_bytes = 250 * GIB;
        request
    };
    node.granted(large("first"));
    let waiting = node.waiting(large("second"));
    assert_eq!(codes(&waiting.reasons), [Code::DiskHeld]);
    assert_eq!((waiting.reasons[0].wanted, waiting.reasons[0].available), (250 * GIB, 150 * GIB));
}

#[test]
fn a_narrow_gate_lets_only_small_builds_through() {
    let mut node = Node::new();
    node.granted(request("running", 2, 4));
    node.facts.gate = gate(GateState::Narrow, &[Code::MemoryNarrow]);
    node.granted(request("small", 2, 4));
    for (id, cpu, gib) in [("wide", 3, 4), ("tall", 2, 5)] {
        assert_eq!(node.waiting(request(id, cpu, gib)).reasons[0].code, Code::MemoryNarrow);
    }
}

#[test]
fn maintenance_and_drain_hold_builds_back_with_the_note_and_the_end() {
    for (mode, code) in [(Mode::Maintenance, Code::ModeMaintenance), (Mode::Drain, Code::ModeDrain)] {
        let mut node = Node::new();
        let until = node.now.plus(Span::minutes(10));
        let note = String::from("new kernel");
        node.tell(&Command::SetMode(ModeState { mode, until: Some(until), note, deadline: None }));
        let waiting = node.waiting(request("first", 2, 4));
        assert_eq!(codes(&waiting.reasons), [code]);
        assert!(waiting.reasons[0].message.ends_with(": new kernel"), "{}", waiting.reasons[0].message);
        assert_eq!(waiting.reasons[0].expected_until, Some(until));
        node.now = until;
        node.granted(request("first", 2, 4));
    }
}

#[test]
fn what_runs_goes_on_in_maintenance() {
    let mut node = Node::new();
    let id = node.granted(request("first", 2, 4));
    node.tell(&Command::SetMode(ModeState { mode: Mode::Maintenance, ..ModeState::default() }));
    node.lease_reply(&Command::Bind { lease: id.clone(), holder: pod("a"), controller: String::new() });
    node.pass(Span::minutes(10));
    assert_eq!(node.release(&id).state, LeaseState::Released);
}

#[test]
fn no_more_leases_are_live_than_the_bound() {
    let mut node = Node::new();
    node.facts.leases_max = 2;
    let first = node.granted(request("first", 1, 1));
    node.granted(request("second", 1, 1));
    assert_eq!(codes(&node.waiting(request("third", 1, 1)).reasons), [Code::LeasesFull]);
    node.release(&first);
    node.pass(Span::seconds(1));
    assert_eq!(node.live(), ["second", "third"]);
}
