//! What the ledger promises, one test a promise, and then all at once under random operations.
//!
//! The node of the tests is the one of the incident: 32 CPU and 62.5 GiB, of which 4 and 8 are reserved. After every
//! command the invariants hold, and the events make the same ledger when they are applied twice, and when only the
//! last record of each thing is read back, as from the journal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::arithmetic_side_effects)]

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::*;
use crate::identity::{CommitId, LeaseId, RequestId, Scope, TicketId};
use crate::invariants;
use crate::pressure::{Gate, GateState};
use crate::quantity::{Amounts, Size, Span, Timestamp};
use crate::reason::{Code, Reason};
use crate::sizing::{Outcome, Sizing};

mod days;
mod fits;
mod lives;
mod passing;
mod queue;
mod random;
mod retries;
mod turns;
mod twins;

const GIB: u64 = 1 << 30;
const MINUTE: i64 = 60_000;

fn request_id(text: &str) -> RequestId {
    RequestId::try_from(String::from(text)).unwrap()
}

fn amounts(cpu: u64, gib: u64) -> Amounts {
    Amounts { cpu_millis: cpu * 1000, memory_bytes: gib * GIB, disk_bytes: 20 * GIB, disk_inodes: 1_000_000 }
}

/// A request of that id: as many CPUs and GiB, half an hour to run, five minutes to be bound.
fn request(id: &str, cpu: u64, gib: u64) -> Request {
    let size = Size { amounts: amounts(cpu, gib), time_budget: Span::minutes(30) };
    Request {
        id: request_id(id),
        digest: format!("{id}-{cpu}-{gib}"),
        source: Source {
            repository: String::from("https://example.org/stoker"),
            reference: String::from("branch:main"),
            commit: CommitId::new([7; 20]),
            clone_url: String::new(),
            clone_ref: String::new(),
            as_of: Timestamp(0),
            origin: String::from("upstream"),
            snapshot: String::from("s1"),
            subject: String::new(),
            other_fork: false,
        },
        sizing: Sizing { size, basis: Vec::new(), clamped: false, provisional: false },
        scope: Scope::default(),
        target: String::new(),
        cache_keys: Vec::new(),
        attempt: 1,
        bind_within: Span::minutes(5),
        priority: 0,
        expected: None,
        retry_of: None,
        no_retry: false,
        terms: Terms::default(),
        asked: None,
    }
}

/// A lease of that request, just granted by an empty node.
pub(crate) fn lease_of(id: &str) -> Lease {
    let lease = LeaseId::try_from(format!("lease-{id}")).unwrap();
    let request = Box::new(request(id, 1, 1));
    let command = Command::Admit { request, lease, ticket: None, awaited: false };
    match Ledger::default().decide(&command, &facts(), Timestamp(0)).0 {
        Reply::Answer(Answer::Granted(lease)) => *lease,
        other => panic!("{other:?}"),
    }
}

/// The same of a tenant.
fn of(tenant: &str, request: Request) -> Request {
    Request { scope: Scope { tenant: String::from(tenant), ..Scope::default() }, ..request }
}

/// The same with another time budget.
fn lasting(minutes: i64, mut request: Request) -> Request {
    request.sizing.size.time_budget = Span::minutes(minutes);
    request
}

fn pod(uid: &str) -> Holder {
    Holder::Pod { namespace: String::from("builds"), name: String::from("build"), uid: String::from(uid) }
}

fn usage(memory_gib: u64) -> Usage {
    Usage { memory_bytes_peak: memory_gib * GIB, ..Usage::default() }
}

fn gate(state: GateState, codes: &[Code]) -> Gate {
    let reasons = codes.iter().map(|code| Reason::new(*code, "node", "so it is")).collect();
    Gate { state, reasons, since: Timestamp(0) }
}

/// Idle, with room on the pool for 400 GiB.
fn facts() -> Facts {
    let disk = Amounts { disk_bytes: 400 * GIB, disk_inodes: 50_000_000, ..Amounts::default() };
    Facts {
        capacity: Amounts { cpu_millis: 32_000, memory_bytes: 62 * GIB + GIB / 2, ..disk },
        reserve: Amounts { cpu_millis: 4_000, memory_bytes: 8 * GIB, ..Amounts::default() },
        others: Amounts::default(),
        in_use: Arc::default(),
        disk_free: disk,
        other_pods: Amounts::default(),
        scheduler: None,
        pods: None,
        unlimited_is_node: true,
        gate: Gate::default(),
        leases_max: 200,
        sizing: Arc::default(),
        tickets_max: 100,
        tenants: Arc::default(),
        pass_for: Span::minutes(10),
        age_after: Span::hours(1),
        end_at_budget: true,
        jitter: 0,
    }
}

/// A ledger with its facts and its clock.
struct Node {
    ledger: Ledger,
    facts: Facts,
    now: Timestamp,
    serial: u32,
    /// Of the request at hand.
    priority: i32,
    twin: twins::Journal,
    /// Commands so far.
    told: u64,
}

impl Node {
    fn new() -> Self {
        let now = Timestamp(1_000_000 * MINUTE);
        Self {
            ledger: Ledger::default(),
            facts: facts(),
            now,
            serial: 0,
            priority: 0,
            twin: twins::Journal::default(),
            told: 0,
        }
    }

    fn fresh<T: TryFrom<String>>(&mut self, kind: &str) -> T
    where
        T::Error: core::fmt::Debug,
    {
        self.serial += 1;
        T::try_from(format!("{kind}{:06}", self.serial)).unwrap()
    }

    /// Decides, applies, and asks all that must hold.
    fn tell(&mut self, command: &Command) -> (Reply, Vec<Event>) {
        self.told += 1;
        let (reply, events) = self.ledger.decide(command, &self.facts, self.now);
        for event in &events {
            self.ledger.apply(event.clone());
            self.twin.write(event);
        }
        self.holds(&events);
        (reply, events)
    }

    fn holds(&self, events: &[Event]) {
        assert!(invariants::never_over_budget(&self.ledger, &self.facts));
        assert!(invariants::one_place_a_request(&self.ledger));
        assert!(invariants::lives_are_whole(&self.ledger));
        assert!(invariants::sizes_add_up(&self.ledger));
        let mut again = self.ledger.clone();
        events.iter().for_each(|event| again.apply(event.clone()));
        assert_eq!(again, self.ledger, "applying {events:?} twice is the same as once");
    }

    fn ask(&mut self, request: Request, ticket: bool) -> Reply {
        self.ask_as(request, ticket, true)
    }

    fn ask_as(&mut self, request: Request, ticket: bool, awaited: bool) -> Reply {
        let (lease, place) = (self.fresh("lease"), self.fresh("ticket"));
        let (request, ticket) = (Box::new(request), ticket.then_some(place));
        self.tell(&Command::Admit { request, lease, ticket, awaited }).0
    }

    fn admit(&mut self, request: Request) -> Answer {
        match self.ask(request, true) {
            Reply::Answer(answer) => answer,
            reply => panic!("{reply:?}"),
        }
    }

    fn granted(&mut self, request: Request) -> LeaseId {
        match self.admit(request) {
            Answer::Granted(lease) => lease.id,
            answer => panic!("{answer:?}"),
        }
    }

    fn waiting(&mut self, request: Request) -> Waiting {
        match self.admit(request) {
            Answer::Waiting(waiting) => *waiting,
            answer => panic!("{answer:?}"),
        }
    }

    /// A lease in use by the pod of that uid.
    fn running(&mut self, request: Request, uid: &str) -> LeaseId {
        let id = self.granted(request);
        self.lease_reply(&Command::Bind { lease: id.clone(), holder: pod(uid), controller: String::new() });
        id
    }

    fn lease_reply(&mut self, command: &Command) -> Lease {
        match self.tell(command).0 {
            Reply::Lease(lease) => *lease,
            reply => panic!("{reply:?}"),
        }
    }

    fn refused(&mut self, command: &Command) -> Refused {
        let before = self.ledger.clone();
        match self.tell(command).0 {
            Reply::Refused(why) if self.ledger == before => why,
            reply => panic!("{reply:?}"),
        }
    }

    fn release(&mut self, lease: &LeaseId) -> Lease {
        let outcome = Outcome::Succeeded;
        self.lease_reply(&Command::Release { lease: lease.clone(), outcome, exit_code: Some(0), usage: None })
    }

    /// Lets so much time pass, then looks once; all are granted what there is room for.
    fn pass(&mut self, span: Span) -> Vec<Event> {
        self.now = self.now.plus(span);
        let mut events = self.tell(&Command::Advance).1;
        while self.ledger.queued() > 0 {
            let lease = self.fresh("lease");
            let next = self.tell(&Command::Next { lease }).1;
            let granted = next.iter().any(|event| matches!(event, Event::Lease(_)));
            events.extend(next);
            if !granted {
                break;
            }
        }
        events
    }

    fn lease(&self, id: &LeaseId) -> Lease {
        Lease::clone(self.ledger.lease(id).unwrap())
    }

    /// The live leases' requests, in the order of their grants.
    fn live(&self) -> Vec<&str> {
        self.ledger.live().map(|lease| lease.request_id.as_str()).collect()
    }

    /// The requests that wait, in the order of their turns.
    fn queued(&self) -> Vec<&str> {
        let order = self.ledger.view(&self.facts, self.now).queue().map(|ticket| ticket.order).collect::<Vec<_>>();
        let find = |order| self.ledger.tickets().find(|ticket| ticket.order == order).unwrap().request.id.as_str();
        order.into_iter().map(find).collect()
    }

    /// What a lease is seen to use, and to have written.
    fn uses(&mut self, lease: &LeaseId, used: Amounts) {
        let (disk_bytes, disk_inodes) = (used.disk_bytes, used.disk_inodes);
        let written = Amounts { disk_bytes, disk_inodes, ..Amounts::default() };
        let used = Amounts { disk_bytes: 0, disk_inodes: 0, ..used };
        let seen = InUse { used: Some(used), written, ..InUse::default() };
        Arc::make_mut(&mut self.facts.in_use).insert(lease.clone(), seen);
    }
}

fn codes(reasons: &[Reason]) -> Vec<Code> {
    reasons.iter().map(|reason| reason.code).collect()
}
