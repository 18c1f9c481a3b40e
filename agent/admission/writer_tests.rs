//! A journal that takes nothing more, beneath a queue.

#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use stoker_core::admission::{Lease, Tenants, Ticket};
use stoker_core::pressure::Gate;
use stoker_core::quantity::Amounts;

use super::*;

/// Nothing fits: everyone waits.
fn facts() -> Facts {
    let gib = |gib: u64| Amounts { cpu_millis: 8_000, memory_bytes: gib << 30, ..Amounts::default() };
    Facts {
        capacity: gib(64),
        reserve: Amounts::default(),
        others: gib(64),
        in_use: Arc::default(),
        disk_free: Amounts::default(),
        gate: Gate {
            state: stoker_core::pressure::GateState::Shut,
            reasons: vec![Reason::new(Code::MemoryFloor, "memory", "none is left")],
            since: Timestamp(0),
        },
        leases_max: 10,
        tickets_max: 10,
        sizing: Arc::default(),
        tenants: Arc::new(Tenants::default()),
        pass_for: Span::minutes(10),
        age_after: Span::hours(1),
        end_at_budget: true,
        jitter: 0,
    }
}

fn request(id: &str) -> stoker_core::admission::Request {
    let lease: Lease = serde_json::from_str(include_str!("../../tests/fixtures/journal/lease.json")).unwrap();
    stoker_core::admission::Request { id: id.to_owned().try_into().unwrap(), ..super::super::known_request(&lease) }
}

/// A writer whose thread is the test's.
fn writer(state: &Path) -> Writer {
    let journal = Journal::open(state).unwrap();
    let published = Published {
        ledger: Ledger::default(),
        revision: 0,
        changes: Changes::new("test".to_owned()),
        pins: BTreeMap::new(),
        history: BTreeMap::new(),
        journal_error: None,
        journal_failures: 0,
    };
    Writer {
        journal,
        working: Ledger::default(),
        facts: Arc::new(facts),
        published: Arc::new(RwLock::new(published)),
        version: watch::Sender::new(0),
        waiters: Waiters::default(),
        state: state.to_owned(),
        starved: false,
        unasked: 0,
        sized_by: None,
        untidied: 0,
    }
}

fn told(writer: &mut Writer, commands: Vec<Command>) -> Vec<Result<Reply, WriterError>> {
    let replies: Arc<Mutex<Vec<_>>> = Arc::default();
    let asks = commands.into_iter().map(|command| {
        let (reply, answer) = oneshot::channel();
        replies.lock().unwrap().push(answer);
        Ask { command, pin: None, reply }
    });
    writer.batch(asks.collect());
    let mut replies = replies.lock().unwrap();
    replies.iter_mut().map(|answer| answer.try_recv().unwrap()).collect()
}

fn admit(id: &str) -> Command {
    Command::Admit { request: Box::new(request(id)), lease: new_id(), ticket: Some(new_id()), awaited: true }
}

#[test]
fn who_waits_keeps_its_place_and_its_time_where_another_cannot_be_recorded() {
    let state = tempfile::tempdir().unwrap();
    let mut writer = writer(state.path());
    told(&mut writer, vec![admit("first"), admit("second")]);
    let expiry = |ledger: &Ledger, id: &str| {
        let ticket = ledger.ticket_of(&id.to_owned().try_into().unwrap()).cloned();
        ticket.map(|ticket: Arc<Ticket>| ticket.expires_at)
    };
    let given = expiry(&writer.working, "first").unwrap();
    let wait = |writer: &mut Writer, id: &str| {
        // Until the clock has moved on by a millisecond.
        while expiry(&writer.working, id).unwrap() <= given {
            told(writer, vec![Command::Await(id.to_owned().try_into().unwrap())]);
        }
    };
    wait(&mut writer, "first");
    let kept = expiry(&writer.working, "first").unwrap();
    // Not a page more.
    writer.journal.refuse_more();
    let await_second = Command::Await("second".to_owned().try_into().unwrap());
    let many: Vec<_> = (0..8).map(|number| admit(&format!("more{number}"))).collect();
    let replies = told(&mut writer, [vec![await_second], many].concat());
    assert!(matches!(&replies[0], Ok(Reply::Answer(Answer::Waiting(_)))), "{:?}", replies[0]);
    let starved = |reply: &Result<Reply, WriterError>| match reply {
        Ok(Reply::Answer(Answer::Waiting(waiting))) => waiting.reasons[0].code == Code::JournalUnavailable,
        _ => false,
    };
    assert!(replies[1..].iter().all(starved), "{replies:?}");
    assert_eq!(expiry(&writer.working, "first"), Some(kept), "as it was told");
    assert!(expiry(&writer.working, "second").unwrap() >= given);
    let published = writer.published.read().unwrap();
    assert_eq!(published.ledger, writer.working);
    assert_eq!((writer.working.queued(), published.journal_failures), (2, 1));
}
