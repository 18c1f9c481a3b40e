//! Random lives of a node: whatever is asked in whatever order, what must hold holds after every step.

extern crate std;

use super::*;
use crate::quantity::Resource;

use proptest::prelude::*;

/// One step. Numbers choose among what is there at that moment.
#[derive(Debug, Clone)]
enum Step {
    Admit { name: u8, size: u8, ticket: bool, other: bool, priority: i32 },
    Retry { name: u8, of: u8 },
    OutOfMemory(u8, bool),
    Restart(bool),
    Await(u8),
    Bind(u8, u8),
    Renew(u8, i64),
    Release(u8, bool),
    Gone(Vec<u8>),
    Cancel(u8),
    Resize(u8, u8),
    Mode(u8, i64),
    Advance(i64),
    Others(u64, u64, u64),
    Use(u8, u64),
    Gate(u8),
    ClockBack(i64),
    Jitter(u16),
}

/// CPUs and GiB: small, common, large, the whole budget, more than the budget.
const SIZES: [(u64, u64); 7] = [(1, 1), (2, 4), (4, 8), (16, 32), (20, 40), (28, 54), (29, 56)];
/// Few enough that leases and places run out, and that the same ids come again.
const NAMES: u8 = 14;

/// A step from chance. (A strategy for each kind, chosen among with `prop_oneof`, takes four times as long as the
/// ledger itself: it seeds a generator for every alternative.)
fn step() -> impl Strategy<Value = Step> {
    (0..52u8, any::<u64>(), any::<u64>()).prop_map(|(kind, first, second)| {
        let (one, two) = (first as u8, second as u8);
        let within = |span: Span| (second % span.0 as u64) as i64;
        match kind {
            0..=10 => {
                let (name, size) = (one % NAMES, two % SIZES.len() as u8);
                let priority = if first >> 40 & 7 == 0 { (second >> 40 & 3) as i32 - 1 } else { 0 };
                Step::Admit { name, size, ticket: second & 1 << 32 == 0, other: first >> 32 & 31 == 0, priority }
            }
            11..=14 => Step::Await(one % NAMES),
            15..=18 => Step::Bind(one, two % 3),
            19 => Step::Renew(one, within(Span::hours(1))),
            20..=23 => Step::Release(one, second & 1 == 0),
            24 => Step::Gone(Vec::from([one, two])),
            25 => Step::Cancel(one),
            // Never above what its tenant may hold: sizes are clamped to that.
            50 => Step::Resize(one, two % 4),
            26 => Step::Mode(one % 6, within(Span::minutes(10))),
            27..=32 => Step::Advance(within(Span::minutes(1))),
            33 | 34 => Step::Advance(within(Span::hours(1))),
            35 => Step::Advance(within(Span::hours(30))),
            36 | 37 => Step::Others(first % 32_000, second % (62 * GIB), (first >> 16) % (400 * GIB)),
            38 | 39 => Step::Use(one, second % (60 * GIB)),
            40 => Step::Gate(one % 6),
            41 => Step::ClockBack(within(Span::seconds(1))),
            42 => Step::ClockBack(within(Span::hours(48))),
            43 => Step::Jitter((first % 1000) as u16),
            44 | 45 => Step::OutOfMemory(one, second & 1 == 0),
            46 | 47 => Step::Retry { name: one % NAMES, of: two },
            _ => Step::Restart(second & 15 == 0),
        }
    })
}

/// What a lease is known to have written to the pool.
fn written(facts: &Facts, lease: &Lease) -> Amounts {
    facts.in_use.get(&lease.id).map(|seen| seen.written).unwrap_or_default()
}

/// What a lease is taken to use of what others seem to use.
fn unmeasured(facts: &Facts, lease: &Lease) -> Amounts {
    let in_vain = facts.in_use.get(&lease.id).is_some_and(|seen| seen.used.is_none());
    if in_vain { lease.sizing.size.amounts } else { Amounts::default() }
}

/// A request's ticket, and how many are before it.
fn place_of<'a>(view: &View<'a>, request: &RequestId) -> Option<(usize, &'a Arc<Ticket>)> {
    let ticket = view.ledger.ticket_of(request)?;
    Some((view.ledger.stands(&order::Standing::of(ticket), view.facts, view.now).1, ticket))
}

/// Whose request that is: a request keeps its tenant. One of the three has caps.
fn tenant_of(name: u8) -> &'static str {
    ["red", "blue", "green"][usize::from(name % 3)]
}

fn tenants() -> Tenants {
    let green =
        Tenant { leases_max: Some(2), memory_bytes_max: Some(41 * GIB), tickets_max: Some(3), ..Tenant::default() };
    let red = Tenant { weight: 3, ..Tenant::default() };
    let named = [(String::from("green"), green), (String::from("red"), red)];
    Tenants { named: BTreeMap::from(named), other: Tenant::default() }
}

/// The one at `number`, counted round and round.
fn pick<T>(mut all: Vec<T>, number: u8) -> Option<T> {
    (!all.is_empty()).then(|| all.swap_remove(usize::from(number) % all.len()))
}

impl Node {
    fn any_lease(&self, number: u8) -> Option<LeaseId> {
        pick(self.ledger.live().chain(self.ledger.ended()).map(|lease| lease.id.clone()).collect(), number)
    }

    fn command(&mut self, step: &Step) -> Option<Command> {
        Some(match step {
            Step::Admit { name, size, ticket, other, priority } => {
                let (cpu, gib) = SIZES[usize::from(*size)];
                let mut request = of(tenant_of(*name), request(&format!("r{name}"), cpu, gib));
                request.priority = *priority;
                request.expected = (*size % 3 == 0).then_some(Span::minutes(12));
                request.digest = if *other { String::from("other") } else { String::from("same") };
                let (lease, place) = (self.fresh("lease"), self.fresh("ticket"));
                Command::Admit { request: Box::new(request), lease, ticket: ticket.then_some(place), awaited: *other }
            }
            Step::Await(name) => Command::Await(request_id(&format!("r{name}"))),
            Step::Bind(lease, holder) => Command::Bind {
                lease: self.any_lease(*lease)?,
                holder: pod(&format!("pod{holder}")),
                controller: String::new(),
            },
            Step::Renew(lease, span) => Command::Renew(self.any_lease(*lease)?, Span(*span)),
            Step::Release(lease, used) => Command::Release {
                lease: self.any_lease(*lease)?,
                outcome: if *used { Outcome::Succeeded } else { Outcome::Failed },
                exit_code: used.then_some(0),
                usage: used.then(|| usage(3)),
            },
            Step::Retry { name, of: first } => {
                let (lease, place) = (self.fresh("lease"), self.fresh("ticket"));
                let mut request = of(tenant_of(*name), request(&format!("retry{name}"), 1, 1));
                request.retry_of = Some(self.any_lease(*first)?);
                request.digest = format!("{:?}", request.retry_of);
                Command::Admit { request: Box::new(request), lease, ticket: Some(place), awaited: true }
            }
            Step::OutOfMemory(lease, own) => Command::Release {
                lease: self.any_lease(*lease)?,
                outcome: if *own { Outcome::OutOfMemoryLimit } else { Outcome::OutOfMemoryNode },
                exit_code: Some(137),
                usage: Some(usage(3)),
            },
            Step::Gone(leases) => {
                let ids = leases.iter().filter_map(|lease| self.any_lease(*lease)).collect();
                Command::Gone(ids, Code::HolderGone)
            }
            Step::Cancel(ticket) => {
                Command::Cancel(pick(self.ledger.tickets().map(|ticket| ticket.id.clone()).collect(), *ticket)?)
            }
            Step::Resize(ticket, size) => {
                let ticket = pick(self.ledger.tickets().cloned().collect(), *ticket)?;
                let (cpu, gib) = SIZES[usize::from(*size)];
                let (id, mut sizing) = (ticket.id.clone(), ticket.request.sizing.clone());
                sizing.size = Size { amounts: amounts(cpu, gib), ..sizing.size };
                Command::Resize(Vec::from([(id, sizing)]))
            }
            Step::Mode(mode, until) => {
                let mode = match mode {
                    0 => Mode::Maintenance,
                    1 => Mode::Drain,
                    _ => Mode::Accepting,
                };
                Command::SetMode(ModeState {
                    mode,
                    until: Some(self.now.plus(Span(*until))),
                    note: String::new(),
                    deadline: (until % 2 == 0).then(|| self.now.plus(Span(until / 2))),
                })
            }
            Step::Advance(span) => {
                self.now = self.now.plus(Span(*span));
                Command::Advance
            }
            Step::Restart(reboot) => {
                self.restart();
                let lost = self.ledger.live().map(|lease| lease.id.clone()).collect();
                Command::Gone(if *reboot { lost } else { Vec::new() }, Code::NodeRebooted)
            }
            Step::Others(..) | Step::Use(..) | Step::Gate(_) | Step::ClockBack(_) | Step::Jitter(_) => {
                self.happen(step);
                return None;
            }
        })
    }

    /// What no command does.
    fn happen(&mut self, step: &Step) {
        match step {
            Step::Others(cpu, memory, disk) => {
                self.facts.others = Amounts { cpu_millis: *cpu, memory_bytes: *memory, ..Amounts::default() };
                self.facts.disk_free.disk_bytes = *disk;
            }
            Step::Use(lease, memory) => {
                let live: Vec<Arc<Lease>> = self.ledger.live().cloned().collect();
                let Some(lease) = pick(live, *lease) else { return };
                let used = Amounts { memory_bytes: *memory, ..amounts(1, 0) };
                // What was written is seen on the pool, also of a build that is not found.
                let written = Amounts { disk_bytes: memory / 2, ..Amounts::default() };
                let seen = InUse { used: (memory % 8 > 0).then_some(used), written, ..InUse::default() };
                Arc::make_mut(&mut self.facts.in_use).insert(lease.id.clone(), seen);
            }
            Step::Gate(which) => {
                self.facts.gate = match which {
                    0 => gate(GateState::Shut, &[Code::MemoryFloor]),
                    1 => gate(GateState::Shut, &[Code::MemoryPressure]),
                    2 => gate(GateState::Narrow, &[Code::MemoryNarrow]),
                    _ => Gate::default(),
                };
            }
            Step::ClockBack(span) => self.now = Timestamp(self.now.0 - span),
            Step::Jitter(jitter) => self.facts.jitter = *jitter,
            _ => {}
        }
    }

    /// What the journal has is all that is left; what was seen of leases is seen anew.
    fn restart(&mut self) {
        assert_eq!(self.twin.read(), self.ledger, "the journal has the same ledger");
        self.facts.in_use = Arc::default();
        let fresh: Vec<_> = self.ledger.tickets().map(|ticket| Ticket::clone(ticket)).collect();
        for ticket in fresh {
            let event = Event::Ticket(Arc::new(Ticket { expires_at: self.now.plus(Span::seconds(60)), ..ticket }));
            self.twin.write(&event);
            self.ledger.apply(event);
        }
    }

    /// One step, and all that must hold of it.
    fn step(&mut self, step: &Step) {
        let Some(command) = self.command(step) else { return };
        self.take(&command);
        if command == Command::Advance {
            self.nothing_is_overdue();
            for _ in 0..4 {
                let lease = self.fresh("lease");
                if !self.take(&Command::Next { lease }).iter().any(|event| matches!(event, Event::Lease(_))) {
                    assert_eq!(self.ledger.view(&self.facts, self.now).next(), None, "what is free is used at once");
                    break;
                }
            }
        }
    }

    fn take(&mut self, command: &Command) -> Vec<Event> {
        let before = self.ledger.clone();
        self.priority = if let Command::Admit { request, .. } = command { request.priority } else { 0 };
        let (reply, events) = self.tell(command);
        self.grants_were_judged(before.clone(), &events);
        self.reply_is_true(&before, command, &reply);
        assert!(self.ledger.live_count() <= self.facts.leases_max);
        assert!(self.ledger.queued() <= self.facts.tickets_max);
        self.nothing_is_lost(&before, &events);
        let now = self.now;
        for lease in before.live() {
            let after = self.ledger.lease(&lease.id).expect("a live lease is not forgotten");
            assert!(after.live() || after.ended_at == Some(now));
            assert!(after.ends_at <= lease.ends_at || lease.ends_at.is_none(), "nothing moves the end of a build away");
        }
        events
    }

    /// Leases go by being forgotten only, tickets by becoming a lease, running out or being given up.
    fn nothing_is_lost(&self, before: &Ledger, events: &[Event]) {
        let forgotten = |id: &LeaseId| events.iter().any(|event| *event == Event::Forgotten(id.clone()));
        for lease in before.live().chain(before.ended()) {
            let kept = self.ledger.lease(&lease.id).is_some_and(|now| now.request_id == lease.request_id);
            assert!(kept || (!lease.live() && forgotten(&lease.id)), "{lease:?} is lost");
        }
        let gone = |id: &TicketId| events.iter().any(|event| *event == Event::TicketGone(id.clone()));
        for ticket in before.tickets() {
            assert!(self.ledger.ticket(&ticket.id).is_some() || gone(&ticket.id), "{ticket:?} is lost");
        }
    }

    /// The order is one order, however it is looked at, and what people are told is what is done.
    fn the_queue_is_one(&self) {
        let view = self.ledger.view(&self.facts, self.now);
        let order: Vec<_> = view.queue().collect();
        assert_eq!(order.len(), self.ledger.queued());
        let next = view.next().map(|(ticket, ..)| ticket.id.clone());
        let mut may_start = Vec::new();
        for (place, ticket) in order.iter().enumerate() {
            let (ahead, same) = place_of(&view, &ticket.request.id).unwrap();
            assert_eq!(
                (ahead, &same.id),
                (place, &ticket.id),
                "{:?}",
                order.iter().map(|t| t.order).collect::<Vec<_>>()
            );
            may_start.extend((view.waits(ticket) == Fit::Now).then(|| ticket.id.clone()));
        }
        assert_eq!(next, may_start.first().cloned());
    }

    /// Walks through the events: at each grant there was room, and it was that one's turn, or the head waits no longer
    /// for it than it had to wait anyway.
    fn grants_were_judged(&self, mut walk: Ledger, events: &[Event]) {
        for event in events {
            let Event::Lease(lease) = event else {
                walk.apply(event.clone());
                continue;
            };
            if walk.lease(&lease.id).is_some() {
                walk.apply(event.clone());
                continue;
            }
            let wanted = lease.sizing.size.amounts;
            assert!(self.has_room(&walk, wanted), "a command gives what is not there");
            assert!(self.within_caps(&walk, lease), "a command gives a tenant more than it may have");
            let before = walk.view(&self.facts, self.now).head().cloned();
            let mut after = walk.clone();
            after.apply(event.clone());
            if let Some(ticket) = walk.ticket_of(&lease.request_id) {
                after.apply(Event::TicketGone(ticket.id.clone()));
            }
            let view = after.view(&self.facts, self.now);
            let head = before.filter(|head| head.ticket.request.id != lease.request_id);
            if let Some(head) = head.filter(|head| self.was_behind(&walk, head, lease)) {
                assert!(!order::was_passed(&head.ticket, &self.facts, self.now), "a command: nothing passes it now");
                let at = |kept: Option<reserve::Reservation>| kept.expect("it can be said when the head fits").at;
                let kept = at(view.kept_for(&head.ticket));
                assert!(kept <= at(head.reservation), "a command makes the head wait");
            }
            walk.apply(event.clone());
        }
    }

    /// Whether a grant went to one that stands behind the head.
    fn was_behind(&self, walk: &Ledger, head: &view::Head, lease: &Lease) -> bool {
        let budget = walk.totals(&self.facts).budget;
        let key = match walk.ticket_of(&lease.request_id) {
            Some(ticket) => walk.stands(&order::Standing::of(ticket), &self.facts, self.now).0,
            None => {
                let standing = order::Standing {
                    tenant: &lease.scope.tenant,
                    rank: core::cmp::Reverse(if lease.retry_of.is_some() { i32::MAX } else { self.priority }),
                    order: lease.place.order,
                    cost: order::cost(&lease.sizing.size, &budget),
                };
                walk.stands(&standing, &self.facts, self.now).0
            }
        };
        head.key < key
    }

    fn within_caps(&self, walk: &Ledger, lease: &Lease) -> bool {
        let caps = self.facts.tenants.of(&lease.scope.tenant);
        let own = walk.live().filter(|other| other.scope.tenant == lease.scope.tenant);
        let (count, memory) = own.fold((1, lease.sizing.size.amounts.memory_bytes), |(count, memory), other| {
            (count + 1, memory + self.facts.held(other).memory_bytes)
        });
        caps.leases_max.is_none_or(|max| count <= max) && caps.memory_bytes_max.is_none_or(|max| memory <= max)
    }

    /// The inequality of the design, added up once more by other means. The only build of an idle node needs no room
    /// beside what others use, but it needs its disk.
    fn has_room(&self, ledger: &Ledger, wanted: Amounts) -> bool {
        Resource::LEDGER.into_iter().all(|resource| {
            let sum = |part: &dyn Fn(&Lease) -> Amounts| -> u128 {
                ledger.live().map(|lease| u128::from(part(lease).get(resource))).sum()
            };
            let held = sum(&|lease| self.facts.held(lease));
            let unmeasured = sum(&|lease| unmeasured(&self.facts, lease));
            let used = u128::from(self.facts.others.get(resource)).saturating_sub(unmeasured);
            let (room, taken) = match resource {
                Resource::DiskBytes | Resource::DiskInodes => {
                    let unwritten = |lease: &Lease| self.facts.held(lease).less(written(&self.facts, lease));
                    (self.facts.disk_free.get(resource), sum(&unwritten))
                }
                _ if ledger.live_count() == 0 => {
                    (self.facts.capacity.get(resource), self.facts.reserve.get(resource).into())
                }
                _ => (self.facts.capacity.get(resource), used.max(self.facts.reserve.get(resource).into()) + held),
            };
            taken + u128::from(wanted.get(resource)) <= u128::from(room)
        })
    }

    fn reply_is_true(&self, before: &Ledger, command: &Command, reply: &Reply) {
        match reply {
            Reply::Answer(Answer::Granted(lease)) => {
                assert_eq!(**lease, self.lease(&lease.id), "what is told is what stands");
                let known = before.lease_of(&lease.request_id);
                assert!(known.is_none_or(|known| known.id == lease.id), "one request, one lease");
            }
            Reply::Answer(Answer::Waiting(waiting)) => {
                assert!((5_000..=120_000).contains(&waiting.retry_after.0));
                assert!(!waiting.reasons.is_empty() || matches!(command, Command::Await(_)));
                let view = self.ledger.view(&self.facts, self.now);
                let place = waiting.ticket.as_ref().and_then(|ticket| place_of(&view, &ticket.request.id));
                assert_eq!(place.map(|(ahead, _)| ahead + 1), (waiting.position > 0).then_some(waiting.position));
                assert_eq!(place.map(|(_, ticket)| &**ticket), waiting.ticket.as_ref());
            }
            Reply::Answer(Answer::Rejected(reasons, _)) => {
                let never = [Code::MemoryBudget, Code::CpuBudget, Code::DiskBudget, Code::DiskInodesBudget];
                let never = [&never[..], &[Code::TenantQuota, Code::RetriesUsedUp]].concat();
                assert!(codes(reasons).iter().all(|code| never.contains(code)), "{reasons:?}");
            }
            Reply::Lease(lease) => assert_eq!(**lease, self.lease(&lease.id)),
            Reply::Refused(_) => assert_eq!(*before, self.ledger, "a refusal changes nothing"),
            Reply::Done => {}
        }
    }

    /// After a look at the time, nothing is left that should have ended, and no deadline is too far away.
    fn nothing_is_overdue(&self) {
        for lease in self.ledger.live() {
            let due = match lease.state {
                LeaseState::Bound => lease.ends_at.unwrap().plus(Span::seconds(30)),
                _ => lease.confirm_by.unwrap_or(lease.bind_by).min(lease.bind_by),
            };
            assert!(self.now <= due && due <= self.now.plus(Span::minutes(31)), "{lease:?} at {:?}", self.now);
        }
        for ticket in self.ledger.tickets() {
            assert!(self.now <= ticket.expires_at && ticket.expires_at <= self.now.plus(Span::minutes(4)));
        }
    }

    /// With nothing in the way, everyone who waits and says so is answered.
    fn comes_to_rest(&mut self) {
        (self.facts.gate, self.facts.others) = (Gate::default(), Amounts::default());
        self.facts.in_use = Arc::default();
        self.facts.disk_free = facts().disk_free;
        self.tell(&Command::SetMode(ModeState::default()));
        let waiting: Vec<RequestId> = self.ledger.tickets().map(|ticket| ticket.request.id.clone()).collect();
        for _ in 0..=waiting.len() {
            let live: Vec<LeaseId> = self.ledger.live().map(|lease| lease.id.clone()).collect();
            live.iter().for_each(|lease| drop(self.release(lease)));
            waiting.iter().for_each(|request| drop(self.tell(&Command::Await(request.clone()))));
            self.pass(Span::seconds(1));
        }
        assert_eq!(self.ledger.queued(), 0);
        assert!(waiting.iter().all(|request| self.ledger.lease_of(request).is_some()), "nobody's place was lost");
    }
}

/// Steps of one life.
const STEPS: usize = 200;

/// A node that lives through these steps and then comes to rest; how many commands its ledger was told on the way.
fn live(steps: &[Step]) -> u64 {
    let mut node = Node::new();
    (node.facts.leases_max, node.facts.tickets_max) = (5, 6);
    node.facts.tenants = Arc::new(tenants());
    for (count, step) in steps.iter().enumerate() {
        node.step(step);
        if count % 5 == 0 {
            node.the_queue_is_one();
        }
        if count % 10 == 0 {
            assert_eq!(node.twin.read(), node.ledger, "the journal has the same ledger");
        }
    }
    node.comes_to_rest();
    node.told
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_is_asked_in_whatever_order_the_promises_hold(steps in proptest::collection::vec(step(), STEPS)) {
        live(&steps);
    }
}

/// `STOKER_LEDGER_SEED` makes the same lives again.
#[test]
#[ignore = "takes minutes; with --release --nocapture it says how many, and of which seed"]
fn the_promises_hold_over_a_million_operations() {
    use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
    use std::time::{Instant, SystemTime};

    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let seed: u64 = std::env::var("STOKER_LEDGER_SEED").map_or_else(|_| now(), |text| text.parse().unwrap());
    std::eprintln!("STOKER_LEDGER_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = ProptestConfig { cases: 6_000, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (began, told) = (Instant::now(), core::cell::Cell::new(0));
    let lives = runner.run(&proptest::collection::vec(step(), STEPS), |steps| {
        told.set(told.get() + live(&steps));
        Ok(())
    });
    lives.unwrap();
    std::eprintln!("{} operations in {:.0?}", told.get(), began.elapsed());
    assert!(told.get() > 1_000_000);
}
