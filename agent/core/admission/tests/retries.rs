//! A build that ran out of memory is tried once more.

use super::*;
use crate::quantity::Resource;
use crate::sizing::{Basis, Tier};

fn out_of_memory(node: &mut Node, lease: &LeaseId, outcome: Outcome) -> Lease {
    node.lease_reply(&Command::Release { lease: lease.clone(), outcome, exit_code: Some(137), usage: Some(usage(4)) })
}

fn retry(id: &str, of: &LeaseId) -> Request {
    Request { retry_of: Some(of.clone()), ..request(id, 1, 1) }
}

#[test]
fn at_its_own_limit_it_gets_one_step_up_and_then_no_more() {
    let mut node = Node::new();
    let first = node.running(request("first", 2, 4), "a");
    let ended = out_of_memory(&mut node, &first, Outcome::OutOfMemoryLimit);
    let advised = ended.retry.unwrap().size.unwrap();
    assert_eq!((advised.amounts.cpu_millis, advised.amounts.memory_bytes), (4_000, 8 * GIB));
    let second = node.granted(retry("again", &first));
    let lease = node.lease(&second);
    assert_eq!((lease.sizing.size, lease.attempt), (advised, 2));
    assert_eq!(node.granted(retry("again", &first)), second, "asked again it is the same");
    let other = node.refused(&Command::Admit {
        request: Box::new(retry("third", &first)),
        lease: LeaseId::try_from(String::from("x")).unwrap(),
        ticket: None,
        awaited: false,
    });
    assert_eq!(other, Refused::Retried(first, request_id("again")));
    let ended = out_of_memory(&mut node, &second, Outcome::OutOfMemoryLimit);
    let retries = ended.retry.unwrap();
    assert_eq!((retries.size, codes(&retries.reasons)), (None, Vec::from([Code::RetriesUsedUp])));
    assert_eq!(
        retries.reasons[0].message,
        "it ran out of memory again, with 8 GiB: declare at least 9.6 GiB, or let it use less"
    );
    let Answer::Rejected(reasons, _) = node.admit(retry("final", &second)) else { panic!("not rejected") };
    assert_eq!(codes(&reasons), [Code::RetriesUsedUp]);
}

#[test]
fn where_the_node_ran_out_it_gets_the_same_size() {
    let mut node = Node::new();
    let first = node.running(request("first", 2, 4), "a");
    let size = out_of_memory(&mut node, &first, Outcome::OutOfMemoryNode).sizing.size;
    let second = node.granted(retry("again", &first));
    assert_eq!(node.lease(&second).sizing.size, size);
}

/// Its first attempt had its default while there was room for that.
#[test]
fn a_retry_never_waits_for_disk_that_others_have_filled_since() {
    let mut node = Node::new();
    for (id, tier, expected) in [("default", Tier::LanguageDefault, 18), ("declared", Tier::Request, 20)] {
        node.facts.disk_free.disk_bytes = 400 * GIB;
        let mut first = request(id, 2, 4);
        first.sizing.basis.push(Basis::new(Resource::DiskBytes, tier, 20 * GIB));
        let first = node.running(first, id);
        out_of_memory(&mut node, &first, Outcome::OutOfMemoryLimit);
        node.facts.disk_free.disk_bytes = 20 * GIB;
        let again = node.granted(retry(&format!("{id}-again"), &first));
        let sizing = node.lease(&again).sizing;
        assert_eq!((sizing.size.amounts.disk_bytes, sizing.clamped), (expected * GIB, expected < 20), "{id}");
        assert_eq!(sizing.size.amounts.memory_bytes, 8 * GIB);
        node.release(&again);
    }
}

#[test]
fn a_step_never_goes_above_the_budget() {
    let mut node = Node::new();
    let first = node.running(request("first", 2, 50), "a");
    let ended = out_of_memory(&mut node, &first, Outcome::OutOfMemoryLimit);
    assert_eq!(codes(&ended.retry.unwrap().reasons), [Code::MemoryBudget]);
    assert!(matches!(node.admit(retry("again", &first)), Answer::Rejected(..)));
}

#[test]
fn a_step_never_goes_above_what_the_tenant_may_hold() {
    for (max, code) in [(6, None), (5, None), (4, Some(Code::TenantQuota))] {
        let mut node = Node::new();
        let red = Tenant { memory_bytes_max: Some(max * GIB), cpu_millis_max: Some(3_000), ..Tenant::default() };
        let named = BTreeMap::from([(String::from("red"), red)]);
        node.facts.tenants = Arc::new(Tenants { named, other: Tenant::default() });
        let first = node.running(of("red", request("first", 2, 4)), "a");
        let retry_of = out_of_memory(&mut node, &first, Outcome::OutOfMemoryLimit).retry.unwrap();
        let told = retry_of.size.map(|size| (size.amounts.cpu_millis, size.amounts.memory_bytes));
        assert_eq!(told, code.is_none().then_some((3_000, max * GIB)));
        assert_eq!(codes(&retry_of.reasons), Vec::from_iter(code));
        match node.admit(of("red", retry("again", &first))) {
            Answer::Granted(lease) => assert_eq!(Some(lease.sizing.size), retry_of.size),
            other => assert!(code.is_some(), "{other:?}"),
        }
    }
}

#[test]
fn a_build_spec_can_do_without() {
    let mut node = Node::new();
    let first = node.running(Request { no_retry: true, ..request("first", 2, 4) }, "a");
    let ended = out_of_memory(&mut node, &first, Outcome::OutOfMemoryLimit);
    assert_eq!((ended.retry.unwrap().size, true), (None, ended.no_retry));
}

#[test]
fn only_what_ran_out_of_memory_and_has_ended_is_tried_again() {
    let mut node = Node::new();
    let first = node.running(request("first", 2, 4), "a");
    let admit = |request| Command::Admit {
        request: Box::new(request),
        lease: LeaseId::try_from(String::from("x")).unwrap(),
        ticket: None,
        awaited: false,
    };
    assert_eq!(node.refused(&admit(retry("again", &first))), Refused::NotOver(first.clone()));
    node.release(&first);
    assert_eq!(node.refused(&admit(retry("again", &first))), Refused::NotOutOfMemory(first));
    let unknown = LeaseId::try_from(String::from("unknown")).unwrap();
    assert_eq!(node.refused(&admit(retry("again", &unknown))), Refused::NoLease(unknown));
}

#[test]
fn a_retry_stands_where_its_first_attempt_did() {
    let mut node = Node::new();
    let first = node.running(of("red", request("first", 2, 4)), "a");
    node.running(of("blue", request("runs", 20, 48)), "b");
    for id in ["second", "third"] {
        node.waiting(of("red", request(id, 2, 40)));
        node.waiting(of("green", request(&format!("green-{id}"), 2, 40)));
    }
    node.waiting(Request { priority: 100, ..of("red", request("urgent", 2, 40)) });
    let asked = node.lease(&first).place.asked_at;
    node.now = node.now.plus(Span::minutes(5));
    out_of_memory(&mut node, &first, Outcome::OutOfMemoryLimit);
    let waiting = node.waiting(retry("again", &first));
    assert_eq!((waiting.position, waiting.ticket.unwrap().created_at), (1, asked));
    assert_eq!(node.queued()[0], "again");
    assert_eq!(node.waiting(of("red", request("later", 2, 40))).ticket.unwrap().order, 8, "its order is taken");
}
