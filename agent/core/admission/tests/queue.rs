//! Who waits, in which order, and for how long a place is kept.

use super::*;

/// A node that is full, and as many builds of 40 GiB that wait.
fn full(waiters: &[&str]) -> (Node, LeaseId) {
    let mut node = Node::new();
    let first = node.running(request("first", 20, 40), "a");
    for id in waiters {
        node.waiting(request(id, 2, 40));
    }
    (node, first)
}

#[test]
fn who_asked_first_starts_first_and_the_rest_hear_how_many_are_before_them() {
    let (mut node, first) = full(&["second", "third"]);
    let third = node.waiting(request("third", 2, 40));
    assert_eq!(third.position, 2);
    assert_eq!(codes(&third.reasons), [Code::MemoryHeld, Code::QueueAhead]);
    assert_eq!(third.reasons[1].message, "1 build waits before it; it would keep the first of them waiting longer");
    assert_eq!(third.reasons[1].expected_until, Some(node.now.plus(Span::minutes(30))), "when the first may start");
    // Of 54.5 GiB 14.5 are free, and stay so beside the second: this would take more.
    let large = node.waiting(request("large", 1, 15));
    assert_eq!(codes(&large.reasons), [Code::MemoryHeld, Code::QueueAhead]);
    assert!(large.reasons[1].message.starts_with("2 builds wait before it"), "{}", large.reasons[1].message);
    node.release(&first);
    node.pass(Span(1));
    assert_eq!((node.live(), node.queued()), (Vec::from(["second"]), Vec::from(["third", "large"])));
}

#[test]
fn a_retry_keeps_its_first_place_whatever_it_asks_of_tickets() {
    let (mut node, _) = full(&["second", "third"]);
    let Reply::Answer(Answer::Waiting(again)) = node.ask(request("second", 2, 40), false) else { panic!("no wait") };
    assert_eq!(again.position, 1);
    assert_eq!(node.queued(), ["second", "third"]);
}

#[test]
fn who_wants_no_ticket_takes_no_place() {
    let (mut node, _) = full(&[]);
    let Reply::Answer(Answer::Waiting(waiting)) = node.ask(request("second", 2, 40), false) else { panic!("no wait") };
    assert_eq!((waiting.ticket, waiting.position), (None, 0));
    assert_eq!(node.ledger.queued(), 0);
}

#[test]
fn a_grant_out_of_waiting_that_nobody_confirms_goes_to_the_next() {
    let (mut node, first) = full(&["second", "third"]);
    node.release(&first);
    node.pass(Span(1));
    let granted = node.now;
    assert_eq!(node.ledger.lease_of(&request_id("second")).unwrap().confirm_by, Some(granted.plus(Span::seconds(30))));
    node.tell(&Command::Await(request_id("third")));
    node.pass(Span::seconds(30));
    assert_eq!(node.live(), ["second"]);
    node.pass(Span(1));
    assert_eq!(node.live(), ["third"]);
}

#[test]
fn awaiting_asking_again_renewing_and_binding_all_confirm_a_grant() {
    for way in 0..4 {
        let (mut node, first) = full(&["second"]);
        node.release(&first);
        node.pass(Span(1));
        let id = node.ledger.lease_of(&request_id("second")).unwrap().id.clone();
        match way {
            0 => drop(node.tell(&Command::Await(request_id("second")))),
            1 => assert_eq!(node.granted(request("second", 2, 40)), id),
            2 => drop(node.tell(&Command::Renew(id, Span::minutes(5)))),
            _ => drop(node.tell(&Command::Bind { lease: id, holder: pod("b"), controller: String::new() })),
        }
        node.pass(Span::seconds(31));
        assert_eq!(node.live(), ["second"], "way {way}");
    }
}

#[test]
fn a_first_grant_needs_no_confirmation() {
    let mut node = Node::new();
    let id = node.granted(request("first", 20, 40));
    assert_eq!(node.lease(&id).confirm_by, None);
}

#[test]
fn a_ticket_lives_for_twice_its_hint_unless_it_is_awaited() {
    let (mut node, _) = full(&["second"]);
    let hint = node.waiting(request("second", 2, 40)).retry_after;
    for _ in 0..3 {
        node.pass(Span(hint.0 * 2));
        assert_eq!(node.queued(), ["second"]);
        node.tell(&Command::Await(request_id("second")));
    }
    node.pass(Span(hint.0 * 2 + 1));
    assert_eq!(node.ledger.queued(), 0);
    assert_eq!(node.tell(&Command::Await(request_id("second"))).0, Reply::Done, "neither lease nor place");
}

#[test]
fn a_full_queue_gives_no_more_places_and_says_so() {
    let (mut node, _) = full(&[]);
    node.facts.tickets_max = 1;
    node.waiting(request("second", 2, 40));
    let third = node.waiting(request("third", 2, 40));
    assert_eq!((third.ticket, third.position), (None, 0));
    assert_eq!(codes(&third.reasons), [Code::MemoryHeld, Code::QueueAhead, Code::QueueFull]);
    assert_eq!(node.waiting(request("second", 2, 40)).position, 1, "who has a place keeps it");
}

#[test]
fn a_place_can_be_given_up() {
    let (mut node, _) = full(&["second", "third"]);
    let id = node.waiting(request("second", 2, 40)).ticket.unwrap().id;
    assert_eq!(node.tell(&Command::Cancel(id.clone())).0, Reply::Done);
    assert_eq!(node.queued(), ["third"]);
    assert_eq!(node.waiting(request("third", 2, 40)).position, 1);
    assert_eq!(node.refused(&Command::Cancel(id.clone())), Refused::NoTicket(id));
}

#[test]
fn several_that_fit_together_start_together() {
    let (mut node, first) = full(&["large"]);
    for id in ["a", "b", "c"] {
        node.waiting(request(id, 9, 6));
    }
    node.release(&first);
    node.pass(Span(1));
    assert_eq!((node.live(), node.queued()), (Vec::from(["large", "a", "b"]), Vec::from(["c"])));
}

#[test]
fn a_build_that_fits_no_more_is_rejected_when_it_asks_and_blocks_nobody() {
    let (mut node, first) = full(&["large", "second"]);
    node.waiting(request("tiny", 9, 1));
    // The node has less memory than it had, so that 40 GiB never fit.
    node.facts.capacity.memory_bytes = 40 * GIB;
    node.release(&first);
    node.pass(Span(1));
    assert_eq!((node.live(), node.queued()), (Vec::from(["tiny"]), Vec::from(["large", "second"])));
    let (reply, _) = node.tell(&Command::Await(request_id("large")));
    assert!(matches!(reply, Reply::Answer(Answer::Rejected(..))), "{reply:?}");
    assert!(matches!(node.admit(request("second", 2, 40)), Answer::Rejected(..)));
    assert_eq!(node.ledger.queued(), 0);
}

#[test]
fn who_asks_again_is_told_to_do_so_before_a_grant_could_pass_on() {
    let mut node = Node::new();
    node.running(lasting(600, request("first", 20, 40)), "a");
    let without = node.ask(request("second", 2, 40), false);
    let Reply::Answer(Answer::Waiting(without)) = without else { panic!("{without:?}") };
    assert!(without.retry_after > Span::seconds(60), "without a ticket nothing can be lost: {without:?}");
    for _ in 0..2 {
        let polled = node.ask_as(request("second", 2, 40), true, false);
        let Reply::Answer(Answer::Waiting(polled)) = polled else { panic!("{polled:?}") };
        assert!(polled.retry_after < time::CONFIRM_WITHIN, "{polled:?}");
    }
    let awaited = node.tell(&Command::Await(request_id("second"))).0;
    let Reply::Answer(Answer::Waiting(awaited)) = awaited else { panic!("{awaited:?}") };
    assert!(awaited.retry_after > Span::seconds(60), "{awaited:?}");
}
