//! Who passes the head of the queue, and who does not.

use super::*;
use crate::cluster::{Pod, Pods};

/// 40 of 54.5 GiB run for half an hour; a build of 50 GiB waits at the head.
fn blocked() -> (Node, LeaseId) {
    let mut node = Node::new();
    let first = node.running(request("first", 4, 40), "a");
    node.waiting(lasting(60, request("large", 4, 50)));
    node.pass(Span(1));
    (node, first)
}

#[test]
fn a_small_build_passes_where_it_is_over_by_then_or_fits_beside() {
    let (mut node, _) = blocked();
    // 20 minutes, 5 until it is bound, and the grace: over before the half hour is.
    node.granted(lasting(20, request("short", 2, 4)));
    // 4.5 GiB are left over beside the large one.
    node.granted(lasting(600, request("beside", 2, 4)));
    let late = node.waiting(lasting(25, request("late", 2, 4)));
    assert_eq!(codes(&late.reasons), [Code::QueueAhead]);
    assert!(late.reasons[0].message.ends_with("it would keep the first of them waiting longer"));
    assert_eq!(node.queued(), ["large", "late"]);
}

#[test]
fn what_waits_behind_passes_in_its_order_as_well() {
    let (mut node, _) = blocked();
    node.waiting(lasting(600, request("wide", 25, 2)));
    let passes = node.granted(lasting(20, request("a", 20, 10)));
    node.waiting(lasting(20, request("b", 20, 10)));
    node.waiting(lasting(20, request("c", 20, 10)));
    assert_eq!(node.queued(), ["large", "wide", "b", "c"]);
    node.release(&passes);
    node.pass(Span(1));
    assert_eq!(node.live(), ["first", "b"]);
}

#[test]
fn where_budgets_are_only_reported_nobody_is_over_by_then() {
    let (mut node, _) = blocked();
    node.facts.end_at_budget = false;
    node.waiting(lasting(1, request("short", 2, 10)));
    node.granted(lasting(600, request("beside", 2, 4)));
}

#[test]
fn what_runs_shorter_by_its_history_is_not_held_to_its_budget() {
    let mut node = Node::new();
    let usual = Request { expected: Some(Span::minutes(10)), ..request("first", 4, 40) };
    node.running(usual, "a");
    node.waiting(request("large", 4, 50));
    node.waiting(lasting(20, request("twenty", 2, 10)));
    node.granted(lasting(4, request("four", 2, 10)));
    // After its usual time it may end at any moment.
    node.now = node.now.plus(Span::minutes(11));
    node.tell(&Command::Await(request_id("large")));
    node.pass(Span(0));
    node.facts.pass_for = Span::hours(1);
    node.waiting(lasting(1, request("one", 1, 5)));
    assert_eq!(node.ledger.view(&node.facts, node.now).reservation(amounts(4, 50), None).unwrap().at, node.now);
}

#[test]
fn after_a_while_at_the_head_nothing_passes() {
    let (mut node, first) = blocked();
    for minute in 0..9 {
        node.pass(Span::minutes(1));
        node.tell(&Command::Await(request_id("large")));
        let lease = node.granted(lasting(5, request(&format!("small{minute}"), 1, 1)));
        node.release(&lease);
    }
    node.pass(Span::minutes(1));
    let last = node.waiting(lasting(5, request("last", 1, 1)));
    assert!(last.reasons[0].message.contains("nothing passes it now"), "{:?}", last.reasons);
    // Nor does one whose turn would come before.
    let urgent = node.waiting(Request { priority: 100, ..lasting(5, request("urgent", 1, 1)) });
    assert_eq!((urgent.position, codes(&urgent.reasons)), (2, Vec::from([Code::QueueAhead])));
    node.release(&first);
    node.pass(Span(1));
    assert_eq!(node.live(), ["large", "urgent", "last"]);
}

#[test]
fn nothing_passes_where_passing_is_switched_off() {
    let (mut node, _) = blocked();
    node.facts.pass_for = Span(0);
    node.waiting(lasting(1, request("tiny", 1, 1)));
}

#[test]
fn the_head_waits_no_longer_for_those_that_passed_it() {
    let (mut node, first) = blocked();
    let at = |node: &Node| node.ledger.view(&node.facts, node.now).head().unwrap().reservation.unwrap().at;
    let before = at(&node);
    node.granted(lasting(20, request("short", 2, 4)));
    assert_eq!(at(&node), before);
    node.granted(lasting(600, request("beside", 2, 4)));
    assert_eq!(at(&node), before);
    let _ = first;
}

#[test]
fn one_of_the_same_tenant_leaves_the_first_what_it_may_still_have() {
    let mut node = Node::new();
    let capped = Tenant { leases_max: Some(2), ..Tenant::default() };
    node.facts.tenants = Arc::new(Tenants { named: BTreeMap::new(), other: capped });
    node.running(of("blue", request("first", 4, 40)), "a");
    node.running(of("red", request("r0", 1, 1)), "b");
    node.waiting(of("red", request("large", 4, 50)));
    let second = node.waiting(of("red", lasting(5, request("second", 1, 1))));
    assert!(second.reasons[0].message.contains("what its tenant's first may still have"), "{:?}", second.reasons);
    node.granted(of("blue", lasting(5, request("other", 1, 1))));
}

/// The example of `docs/admission.md`.
#[test]
fn the_example_of_the_documentation_is_so() {
    let mut node = Node::new();
    node.running(request("taken", 4, 40), "a");
    for number in 0..6 {
        node.waiting(of("red", request(&format!("red{number}"), 20, 40)));
    }
    let blue = node.waiting(of("blue", request("blue", 20, 40)));
    assert_eq!(blue.position, 2);
    node.granted(of("green", lasting(10, request("green", 1, 2))));
    let own = node.waiting(of("red", lasting(20, request("own", 2, 10))));
    assert_eq!((own.position, codes(&own.reasons)), (8, Vec::from([Code::QueueAhead])), "it would cost red its turn");
    let last = node.granted(of("blue", lasting(20, request("small", 2, 10))));
    node.release(&last);
    let beside = node.granted(of("blue", lasting(30, request("beside", 2, 10))));
    node.release(&beside);
    let large = node.waiting(of("blue", lasting(30, request("large", 2, 16))));
    assert_eq!(codes(&large.reasons), Vec::from([Code::MemoryHeld, Code::QueueAhead]));
}

/// The scheduler has placed their pods here: what it gave them is taken, whether or not they start.
#[test]
fn those_whose_pods_are_here_pass_one_that_waits_for_the_scheduler_no_longer_than_others() {
    let placed = |id: &str, cpu: u64| {
        let terms = Terms { pod: String::from(id), ..Terms::default() };
        Request { terms, ..request(id, cpu, 1) }
    };
    let mut node = Node::new();
    let first = node.running(request("first", 4, 10), "first");
    let pod = |uid: &str| Pod { uid: String::from(uid), requests: amounts(4, 10), ..Pod::default() };
    let pods = ["first", "later"].map(|uid| (String::from(uid), Arc::new(pod(uid))));
    node.facts.pods = Some(Arc::new(Pods::new(pods.into())));
    let room = |cpu| Some(Scheduler { free: amounts(cpu, 30), pods: 10 });
    node.facts.pass_for = Span::seconds(1);
    node.facts.scheduler = room(2);
    assert_eq!(codes(&node.waiting(request("head", 6, 10)).reasons), [Code::NodeRequests]);
    node.pass(Span(1));
    node.running(placed("soon", 1), "soon");
    // The end of the first lease's pod is enough for the head: now it is kept for it.
    node.pass(node.facts.pass_for);
    let later = node.waiting(placed("later", 1));
    assert!(later.reasons[0].message.contains("nothing passes it now"), "{:?}", later.reasons);
    node.pass(Span::seconds(1));
    assert_eq!(node.live(), ["first", "soon"]);
    // It is not once the scheduler gave what the first lease's pod had to the one that waits: both would for ever.
    node.facts.scheduler = room(1);
    node.pass(Span::seconds(1));
    assert_eq!(node.live(), ["first", "soon", "later"]);
    node.release(&first);
    node.facts.scheduler = room(6);
    node.pass(Span::seconds(1));
    assert_eq!(node.live(), ["soon", "later", "head"]);
}
