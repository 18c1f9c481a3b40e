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
        other_pods: Amounts::default(),
        scheduler: None,
        pods: None,
        unlimited_is_node: true,
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
        history: History::default(),
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
        resizing: Resizing::default(),
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

/// An operator's table that says another size for those who declare nothing.
fn other_table(facts: &Facts) -> Facts {
    let mut policy = (*facts.sizing).clone();
    policy.defaults.other.memory_bytes *= 2;
    Facts { sizing: Arc::new(policy), ..facts.clone() }
}

#[test]
fn many_who_wait_are_sized_anew_in_parts_and_who_asks_at_once() {
    const WAITING: usize = 1300;
    let state = tempfile::tempdir().unwrap();
    let mut writer = writer(state.path());
    let room = || super::super::room_of(&Ledger::default().totals(&facts()), &facts(), "");
    let undeclared = |number: usize| {
        let mut admit = admit(&format!("waits{number:04}"));
        if let Command::Admit { request, .. } = &mut admit {
            let asked = stoker_core::sizing::Asked {
                declared: Default::default(),
                spec: None,
                language: Default::default(),
                history_key: "key".to_owned(),
            };
            (request.sizing, request.asked) = (asked.size(None, &facts().sizing, &room()), Some(Box::new(asked)));
        }
        admit
    };
    writer.facts = Arc::new(|| Facts { tickets_max: WAITING, ..facts() });
    told(&mut writer, (0..WAITING).map(undeclared).collect());
    assert_eq!((writer.working.queued(), writer.resizing.is_done()), (WAITING, false));
    while !writer.resizing.is_done() {
        told(&mut writer, Vec::new());
    }
    let memory = |writer: &Writer, id: &str| {
        let ticket = writer.working.ticket_of(&id.to_owned().try_into().unwrap()).cloned().unwrap();
        ticket.request.sizing.size.amounts.memory_bytes
    };
    let before = memory(&writer, "waits0000");
    writer.facts = Arc::new(|| other_table(&Facts { tickets_max: WAITING, ..facts() }));
    let anew = |writer: &Writer| {
        writer.working.tickets().filter(|t| t.request.sizing.size.amounts.memory_bytes > before).count()
    };
    let mut parts = Vec::new();
    loop {
        let last = format!("waits{:04}", WAITING - 1);
        let asks = if parts.len() == 1 { vec![Command::Await(last.clone().try_into().unwrap())] } else { Vec::new() };
        let already = anew(&writer);
        told(&mut writer, asks);
        parts.push(anew(&writer) - already);
        if parts.len() == 2 {
            assert_eq!(memory(&writer, &last), before * 2, "who asks has its size at once");
        }
        if writer.resizing.is_done() {
            break;
        }
    }
    assert_eq!(parts, [512, 513, 275]);
    assert_eq!(
        writer
            .journal
            .ledger()
            .unwrap()
            .tickets()
            .filter(|t| t.request.sizing.size.amounts.memory_bytes > before)
            .count(),
        WAITING
    );
}
