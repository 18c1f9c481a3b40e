//! Tenants in turn: weights, priorities, caps.

use super::*;

/// A node that runs one build at a time, of 20 CPU and 40 GiB.
fn one_at_a_time() -> (Node, LeaseId) {
    let mut node = Node::new();
    let first = node.running(request("first", 20, 40), "a");
    (node, first)
}

fn weights(node: &mut Node, weights: &[(&str, u32)]) {
    let named =
        weights.iter().map(|(name, weight)| (String::from(*name), Tenant { weight: *weight, ..Tenant::default() }));
    node.facts.tenants = Arc::new(Tenants { named: named.collect(), other: Tenant::default() });
}

/// Ends what runs, one after the other, and says who came in which order; who waits says so.
fn drain(node: &mut Node, mut running: LeaseId) -> Vec<String> {
    let mut order = Vec::new();
    loop {
        node.release(&running);
        node.pass(Span::seconds(1));
        let Some(next) = node.ledger.live().next().cloned() else { return order };
        node.tell(&Command::Await(next.request_id.clone()));
        order.push(String::from(next.request_id.as_str()));
        running = next.id.clone();
        let waiting: Vec<_> = node.ledger.tickets().map(|ticket| ticket.request.id.clone()).collect();
        waiting.into_iter().for_each(|request| drop(node.tell(&Command::Await(request))));
    }
}

#[test]
fn a_tenant_that_asks_for_much_does_not_keep_one_that_asks_for_little() {
    let (mut node, first) = one_at_a_time();
    for number in 0..6 {
        node.waiting(of("red", request(&format!("red{number}"), 20, 40)));
    }
    let blue = node.waiting(of("blue", request("blue0", 20, 40)));
    assert_eq!(blue.position, 2, "one of the red ones asked earlier, and it is blue's turn next");
    node.waiting(of("blue", request("blue1", 20, 40)));
    assert_eq!(drain(&mut node, first), ["red0", "blue0", "red1", "blue1", "red2", "red3", "red4", "red5"]);
}

#[test]
fn a_build_that_is_sized_anew_keeps_its_place() {
    for (gib, resized) in [(54, "red0"), (2, "red1")] {
        let (mut node, first) = one_at_a_time();
        for name in ["red0", "blue0", "red1", "blue1"] {
            node.waiting(of(&name[..name.len() - 1], request(name, 20, 40)));
        }
        let ticket = node.ledger.ticket_of(&request_id(resized)).unwrap();
        let mut sizing = ticket.request.sizing.clone();
        sizing.size.amounts = amounts(20, gib);
        let command = Command::Resize(Vec::from([(ticket.id.clone(), sizing)]));
        let events = node.tell(&command).1;
        assert_eq!(events.len(), 1);
        let size = node.ledger.ticket_of(&request_id(resized)).unwrap().request.sizing.size;
        assert_eq!(size.amounts.memory_bytes, gib * GIB);
        assert_eq!(drain(&mut node, first), ["red0", "blue0", "red1", "blue1"], "{resized}");
    }
}

#[test]
fn one_of_twice_the_weight_gets_twice_as_many_turns() {
    let (mut node, first) = one_at_a_time();
    weights(&mut node, &[("red", 2)]);
    for number in 0..6 {
        node.waiting(of("blue", request(&format!("b{number}"), 20, 40)));
        node.waiting(of("red", request(&format!("r{number}"), 20, 40)));
    }
    let order = drain(&mut node, first);
    assert_eq!(order[..9], ["r0", "b0", "r1", "r2", "b1", "r3", "r4", "b2", "r5"].map(String::from));
}

#[test]
fn large_builds_cost_more_of_a_turn_than_small_ones() {
    let (mut node, first) = one_at_a_time();
    for number in 0..3 {
        node.waiting(of("red", request(&format!("r{number}"), 20, 40)));
    }
    for number in 0..9 {
        // A third of the time on the same room.
        node.waiting(of("blue", lasting(10, request(&format!("b{number}"), 20, 40))));
    }
    let order = drain(&mut node, first);
    assert_eq!(order.iter().take(8).filter(|id| id.starts_with('b')).count(), 6, "{order:?}");
}

#[test]
fn who_used_a_node_that_was_idle_does_not_pay_for_it_and_nobody_saves_turns() {
    let mut node = Node::new();
    for number in 0..20 {
        let lease = node.running(of("red", request(&format!("early{number}"), 20, 40)), "a");
        node.release(&lease);
    }
    let first = node.running(of("red", request("first", 20, 40)), "a");
    for number in 0..3 {
        node.waiting(of("blue", request(&format!("b{number}"), 20, 40)));
        node.waiting(of("red", request(&format!("r{number}"), 20, 40)));
    }
    assert_eq!(drain(&mut node, first), ["b0", "r0", "b1", "r1", "b2", "r2"]);
}

#[test]
fn a_higher_priority_goes_first_among_its_own_tenants_only() {
    let (mut node, first) = one_at_a_time();
    node.waiting(of("blue", request("b0", 20, 40)));
    node.waiting(of("red", request("r0", 20, 40)));
    let urgent = |id: &str, priority| Request { priority, ..of("red", request(id, 20, 40)) };
    node.waiting(urgent("urgent", 5));
    node.waiting(urgent("idle", -5));
    node.waiting(of("red", request("r1", 20, 40)));
    assert_eq!(drain(&mut node, first), ["b0", "urgent", "r0", "r1", "idle"]);
}

#[test]
fn after_a_long_wait_a_priority_counts_no_more() {
    let mut node = Node::new();
    node.running(lasting(600, request("first", 20, 40)), "a");
    node.waiting(Request { priority: -5, ..request("old", 20, 40) });
    for minute in 0..30 {
        node.pass(Span::minutes(2));
        node.tell(&Command::Await(request_id("old")));
        assert_eq!(node.queued(), ["old"], "minute {minute}");
    }
    node.waiting(Request { priority: 5, ..request("urgent", 20, 40) });
    assert_eq!(node.queued(), ["old", "urgent"]);
}

#[test]
fn a_tenant_at_its_cap_waits_for_itself_and_is_in_nobodys_way() {
    let mut node = Node::new();
    let capped = Tenant { leases_max: Some(2), memory_bytes_max: Some(10 * GIB), ..Tenant::default() };
    node.facts.tenants =
        Arc::new(Tenants { named: BTreeMap::from([(String::from("red"), capped)]), other: Tenant::default() });
    let first = node.running(of("red", request("r0", 1, 4)), "a");
    let large = node.waiting(of("red", request("large", 1, 8)));
    assert_eq!(codes(&large.reasons), [Code::TenantQuota]);
    assert_eq!((large.reasons[0].wanted, large.reasons[0].available), (8 * GIB, 6 * GIB));
    assert_eq!(
        large.reasons[0].message,
        "8 GiB of memory wanted, tenant \"red\" holds 4 GiB of the 10 GiB that it may have"
    );
    let small = node.waiting(of("red", request("small", 1, 4)));
    assert_eq!(codes(&small.reasons), [Code::QueueAhead], "its own tenant's is before it: that would starve");
    node.granted(of("blue", request("b0", 20, 40)));
    assert_eq!(node.queued(), ["large", "small"]);
    node.release(&first);
    node.pass(Span(1));
    assert_eq!((node.live(), node.queued()), (Vec::from(["b0", "large"]), Vec::from(["small"])));
    let Answer::Rejected(reasons, _) = node.admit(of("red", request("huge", 1, 11))) else { panic!("not rejected") };
    assert_eq!(codes(&reasons), [Code::TenantQuota]);
}

#[test]
fn a_tenants_cap_on_leases_and_tickets_holds_for_it_alone() {
    let mut node = Node::new();
    let other = Tenant { leases_max: Some(1), tickets_max: Some(1), ..Tenant::default() };
    node.facts.tenants = Arc::new(Tenants { named: BTreeMap::new(), other });
    node.granted(of("red", request("r0", 1, 1)));
    assert_eq!(codes(&node.waiting(of("red", request("r1", 1, 1))).reasons), [Code::TenantQuota]);
    let full = node.waiting(of("red", request("r2", 1, 1)));
    assert_eq!(codes(&full.reasons), [Code::TenantQuota, Code::QueueAhead, Code::QueueFull]);
    assert_eq!((full.ticket, full.reasons[2].subject.as_str()), (None, "red"));
    node.granted(of("blue", request("b0", 1, 1)));
}

#[test]
fn a_cap_saves_no_turns_up() {
    let (mut node, first) = one_at_a_time();
    let named = [(String::from("red"), Tenant { leases_max: Some(1), ..Tenant::default() })];
    node.facts.tenants = Arc::new(Tenants { named: BTreeMap::from(named), other: Tenant::default() });
    // Red runs one small build for as long as twenty of blue's take, and waits for its cap meanwhile.
    let small = node.running(of("red", lasting(600, request("r0", 1, 1))), "r");
    for number in 1..5 {
        node.waiting(of("red", request(&format!("r{number}"), 20, 40)));
    }
    let mut running = first;
    for number in 0..20 {
        node.waiting(of("blue", request(&format!("b{number}"), 20, 40)));
        node.release(&running);
        node.pass(Span::seconds(1));
        let id = node.ledger.lease_of(&request_id(&format!("b{number}"))).unwrap().id.clone();
        node.lease_reply(&Command::Bind { lease: id.clone(), holder: pod("b"), controller: String::new() });
        running = id;
        for number in 1..5 {
            node.tell(&Command::Await(request_id(&format!("r{number}"))));
        }
    }
    for number in 20..23 {
        node.waiting(of("blue", request(&format!("b{number}"), 20, 40)));
    }
    node.release(&small);
    let order = drain(&mut node, running);
    assert_eq!(order[..6], ["r1", "r2", "b20", "r3", "b21", "r4"].map(String::from), "{order:?}");
}
