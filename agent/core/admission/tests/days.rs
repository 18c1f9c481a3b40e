//! Days on which builds end just when they should: then nobody waits longer than could be foreseen.

use super::*;
use crate::quantity::Resource;

use proptest::prelude::*;

/// When it asks (a second each), for whom, how large, and for how many minutes.
#[derive(Debug, Clone)]
struct Build {
    after: i64,
    tenant: u8,
    cpu: u64,
    gib: u64,
    minutes: i64,
    priority: i32,
}

fn build() -> impl Strategy<Value = Build> {
    let sizes = prop_oneof![6 => 1..4u64, 2 => 4..16u64, 1 => 16..28u64];
    (0..600i64, 0..4u8, sizes, 1..3u64, 1..90i64, 0..9i32).prop_map(|(after, tenant, cpu, per, minutes, priority)| {
        Build { after, tenant, cpu, gib: (cpu * per).min(54), minutes, priority: if priority == 8 { 1 } else { 0 } }
    })
}

/// What was foreseen for a build while it was the head.
#[derive(Debug, Clone, Copy)]
struct Foreseen {
    starts: Timestamp,
}

/// Lives through a day: builds are bound as soon as they are granted and end with their time budget. At each moment at
/// which something happens the head's start is foreseen; it never moves away while it is the head.
fn live(builds: &[Build], pass_for: Span) -> Node {
    let mut node = Node::new();
    node.facts.pass_for = pass_for;
    let (mut arrivals, mut at) = (Vec::new(), node.now);
    for (number, build) in builds.iter().enumerate() {
        at = at.plus(Span::seconds(build.after));
        let request = lasting(build.minutes, request(&format!("b{number}"), build.cpu, build.gib));
        let tenant = ["red", "blue", "green", "grey"][usize::from(build.tenant)];
        arrivals.push((at, Request { priority: build.priority, ..of(tenant, request) }));
    }
    arrivals.reverse();
    let mut foreseen: Option<(TicketId, Foreseen)> = None;
    let last = at;
    while !arrivals.is_empty() || node.ledger.queued() > 0 {
        let ends = node.ledger.live().filter_map(|lease| lease.ends_at).min();
        let next = arrivals.last().map(|(at, _)| *at).into_iter().chain(ends).min().expect("something happens");
        assert!(next <= last.plus(Span::hours(90 * builds.len() as i64)), "every build starts in bounded time");
        node.now = next.max(node.now);
        let over: Vec<_> =
            node.ledger.live().filter(|lease| lease.ends_at.is_some_and(|end| end <= node.now)).collect();
        let over: Vec<_> = over.into_iter().map(|lease| lease.id.clone()).collect();
        over.iter().for_each(|lease| drop(node.release(lease)));
        while arrivals.last().is_some_and(|(at, _)| *at <= node.now) {
            let (_, request) = arrivals.pop().unwrap();
            node.admit(request);
        }
        node.facts.tickets_max = usize::MAX;
        let waiting: Vec<_> = node.ledger.tickets().map(|ticket| ticket.request.id.clone()).collect();
        waiting.into_iter().for_each(|request| drop(node.tell(&Command::Await(request))));
        node.pass(Span(0));
        let granted: Vec<_> = node.ledger.live().filter(|lease| lease.holder.is_none()).collect();
        // Whose turn came before the head's did not pass it: that one is foreseen anew.
        let in_turn = granted.iter().any(|lease| lease.place.clock >= lease.place.turn);
        let granted: Vec<_> = granted.into_iter().map(|lease| lease.id.clone()).collect();
        granted.into_iter().for_each(|lease| {
            drop(node.lease_reply(&Command::Bind { lease, holder: pod("p"), controller: String::new() }))
        });
        foreseen = as_foreseen(&node, foreseen.filter(|_| !in_turn));
    }
    node
}

fn as_foreseen(node: &Node, before: Option<(TicketId, Foreseen)>) -> Option<(TicketId, Foreseen)> {
    let view = node.ledger.view(&node.facts, node.now);
    let head = view.head()?;
    let starts = head.reservation.expect("nobody but builds holds anything").at;
    if let Some((_, before)) = before.filter(|(id, _)| *id == head.ticket.id) {
        assert!(starts <= before.starts, "the head is to wait until {starts:?}, it was {before:?}");
    }
    Some((head.ticket.id.clone(), Foreseen { starts }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn the_head_never_waits_longer_than_was_foreseen_and_everyone_starts(
        builds in proptest::collection::vec(build(), 1..60)
    ) {
        for pass_for in [Span(0), Span::minutes(10), Span::hours(24)] {
            let node = live(&builds, pass_for);
            let started = node.ledger.live_count() + node.ledger.ended_count();
            prop_assert_eq!(started, builds.len());
        }
    }

    #[test]
    fn a_freed_resource_is_usable_at_once(sizes in proptest::collection::vec((1..14u64, 1..27u64), 1..20)) {
        let mut node = Node::new();
        let mut held = Vec::new();
        for (number, (cpu, gib)) in sizes.into_iter().enumerate() {
            let Reply::Answer(answer) = node.ask(request(&format!("b{number}"), cpu, gib), false) else { continue };
            if let Answer::Granted(lease) = answer {
                held.push(lease.id);
            }
        }
        while let Some(lease) = held.pop() {
            let before = node.ledger.totals(&node.facts);
            let size = node.lease(&lease).sizing.size.amounts;
            node.release(&lease);
            let after = node.ledger.totals(&node.facts);
            for resource in Resource::LEDGER {
                prop_assert_eq!(after.free.get(resource), before.free.get(resource) + size.get(resource));
            }
            // Just as large a one starts there.
            let same = request(&format!("again-{lease}"), size.cpu_millis / 1000, size.memory_bytes / GIB);
            let again = node.granted(same);
            node.release(&again);
        }
    }
}

/// The head's own tenant had another pass it, and so its turn: then a third passed the one whose turn it was meanwhile.
#[test]
fn a_build_that_passes_its_own_tenants_first_does_not_cost_it_its_place() {
    let build = |(after, tenant, cpu, gib, minutes)| Build { after, tenant, cpu, gib, minutes, priority: 0 };
    let day = [
        (234, 2, 19, 38, 22),
        (28, 3, 9, 18, 57),
        (194, 0, 1, 1, 70),
        (132, 2, 2, 2, 48),
        (300, 3, 13, 26, 24),
        (387, 2, 4, 8, 64),
        (130, 3, 2, 2, 17),
        (240, 1, 1, 2, 26),
        (330, 3, 14, 14, 8),
        (172, 2, 1, 2, 39),
        (114, 2, 1, 1, 55),
        (274, 3, 3, 6, 69),
        (208, 1, 4, 4, 65),
        (564, 2, 1, 1, 78),
        (416, 1, 20, 40, 3),
        (273, 3, 1, 2, 38),
        (184, 2, 3, 3, 5),
        (212, 1, 6, 6, 34),
        (276, 0, 3, 3, 9),
        (352, 1, 2, 2, 26),
        (231, 3, 1, 2, 82),
        (63, 1, 3, 6, 23),
        (464, 1, 2, 2, 83),
        (324, 1, 2, 2, 89),
        (14, 0, 21, 42, 60),
    ];
    let builds: Vec<Build> = day.into_iter().map(build).collect();
    for pass_for in [Span(0), Span::minutes(10), Span::hours(24)] {
        live(&builds, pass_for);
    }
}
