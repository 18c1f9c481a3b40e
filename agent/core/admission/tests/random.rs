//! Random lives of a node: whatever is asked in whatever order, what must hold holds after every step.

use super::*;
use crate::quantity::Resource;

use proptest::prelude::*;

/// One step. Numbers choose among what is there at that moment.
#[derive(Debug, Clone)]
enum Step {
    Admit { name: u8, size: u8, ticket: bool, other: bool },
    Await(u8),
    Confirm(u8),
    Bind(u8, u8),
    Renew(u8, i64),
    Release(u8, bool),
    Gone(Vec<u8>),
    Cancel(u8),
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
    (0..44u8, any::<u64>(), any::<u64>()).prop_map(|(kind, first, second)| {
        let (one, two) = (first as u8, second as u8);
        let within = |span: Span| (second % span.0 as u64) as i64;
        match kind {
            0..=10 => {
                let (name, size) = (one % NAMES, two % SIZES.len() as u8);
                Step::Admit { name, size, ticket: second & 1 << 32 == 0, other: first >> 32 & 31 == 0 }
            }
            11..=13 => Step::Await(one % NAMES),
            14 => Step::Confirm(one),
            15..=18 => Step::Bind(one, two % 3),
            19 => Step::Renew(one, within(Span::hours(1))),
            20..=23 => Step::Release(one, second & 1 == 0),
            24 => Step::Gone(Vec::from([one, two])),
            25 => Step::Cancel(one),
            26 => Step::Mode(one % 6, within(Span::minutes(10))),
            27..=32 => Step::Advance(within(Span::minutes(1))),
            33 | 34 => Step::Advance(within(Span::hours(1))),
            35 => Step::Advance(within(Span::hours(30))),
            36 | 37 => Step::Others(first % 32_000, second % (62 * GIB), (first >> 16) % (400 * GIB)),
            38 | 39 => Step::Use(one, second % (60 * GIB)),
            40 => Step::Gate(one % 6),
            41 => Step::ClockBack(within(Span::seconds(1))),
            42 => Step::ClockBack(within(Span::hours(48))),
            _ => Step::Jitter((first % 1000) as u16),
        }
    })
}

/// What a lease is taken to use.
fn known_use(lease: &Lease) -> Amounts {
    match (lease.in_use, lease.state) {
        (Some(used), _) => used,
        (None, LeaseState::Reserved) => Amounts::default(),
        (None, _) => lease.sizing.size.amounts,
    }
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
            Step::Admit { name, size, ticket, other } => {
                let (cpu, gib) = SIZES[usize::from(*size)];
                let mut request = request(&format!("r{name}"), cpu, gib);
                request.digest = if *other { String::from("other") } else { String::from("same") };
                let (lease, place) = (self.fresh("lease"), self.fresh("ticket"));
                Command::Admit { request: Box::new(request), lease, ticket: ticket.then_some(place) }
            }
            Step::Await(name) => Command::Await(request_id(&format!("r{name}"))),
            Step::Confirm(lease) => Command::Confirm(self.any_lease(*lease)?),
            Step::Bind(lease, holder) => Command::Bind(self.any_lease(*lease)?, pod(&format!("pod{holder}"))),
            Step::Renew(lease, span) => Command::Renew(self.any_lease(*lease)?, Span(*span)),
            Step::Release(lease, used) => Command::Release {
                lease: self.any_lease(*lease)?,
                outcome: if *used { Outcome::Succeeded } else { Outcome::Failed },
                exit_code: used.then_some(0),
                usage: used.then(|| usage(3)),
            },
            Step::Gone(leases) => {
                let ids = leases.iter().filter_map(|lease| self.any_lease(*lease)).collect();
                Command::Gone(ids, Code::HolderGone)
            }
            Step::Cancel(ticket) => {
                Command::Cancel(pick(self.ledger.tickets().map(|ticket| ticket.id.clone()).collect(), *ticket)?)
            }
            Step::Mode(mode, until) => {
                let mode = match mode {
                    0 => Mode::Maintenance,
                    1 => Mode::Drain,
                    _ => Mode::Accepting,
                };
                Command::SetMode(ModeState { mode, until: Some(self.now.plus(Span(*until))), note: String::new() })
            }
            Step::Advance(span) => {
                self.now = self.now.plus(Span(*span));
                Command::Advance { leases: (0..4).map(|_| self.fresh("lease")).collect() }
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
                self.facts.used = Amounts { cpu_millis: *cpu, memory_bytes: *memory, ..Amounts::default() };
                self.facts.disk_free.disk_bytes = *disk;
            }
            Step::Use(lease, memory) => {
                let live: Vec<Arc<Lease>> = self.ledger.live().cloned().collect();
                let Some(lease) = pick(live, *lease) else { return };
                let in_use = Some(Amounts { memory_bytes: *memory, ..amounts(1, 0) });
                let event = Event::Lease(Arc::new(Lease { in_use, ..Lease::clone(&lease) }));
                self.twin.write(&event);
                self.ledger.apply(event);
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

    /// One step, and all that must hold of it.
    fn step(&mut self, step: &Step) {
        let Some(command) = self.command(step) else { return };
        let before = self.ledger.clone();
        let (reply, events) = self.tell(&command);
        self.grants_were_judged(before.clone(), &command, &events);
        self.reply_is_true(&before, &command, &reply);
        assert!(self.ledger.live_count() <= self.facts.leases_max);
        assert!(self.ledger.queued() <= self.facts.tickets_max);
        let now = self.now;
        for lease in before.live() {
            let after = self.ledger.lease(&lease.id).expect("a live lease is not forgotten");
            assert!(after.live() || after.ended_at == Some(now));
            assert!(after.ends_at <= lease.ends_at || lease.ends_at.is_none(), "nothing moves the end of a build away");
        }
        if matches!(command, Command::Advance { .. }) {
            self.nothing_is_overdue();
        }
    }

    /// Walks through the events: at each grant the fit said so, to whom it was due, and there was room.
    fn grants_were_judged(&self, mut walk: Ledger, command: &Command, events: &[Event]) {
        for event in events {
            if let Event::Lease(lease) = event
                && walk.lease(&lease.id).is_none()
            {
                let wanted = lease.sizing.size.amounts;
                assert_eq!(walk.fit(wanted, 0, &self.facts, self.now), Fit::Now);
                let first = walk.tickets().next();
                assert!(
                    first.is_none_or(|ticket| ticket.request.id == lease.request_id),
                    "{command:?} jumps the queue"
                );
                assert!(walk.live_count() == 0 || self.has_room(&walk, wanted), "{command:?} gives what is not there");
            }
            walk.apply(event.clone());
        }
    }

    /// The inequality of the design, added up once more by other means.
    fn has_room(&self, ledger: &Ledger, wanted: Amounts) -> bool {
        Resource::LEDGER.into_iter().all(|resource| {
            let sum = |part: fn(&Lease) -> Amounts| -> u128 {
                ledger.live().map(|lease| u128::from(part(lease).get(resource))).sum()
            };
            let used = u128::from(self.facts.used.get(resource)).saturating_sub(sum(known_use));
            let (room, system) = match resource {
                Resource::DiskBytes | Resource::DiskInodes => (self.facts.disk_free.get(resource), 0),
                _ => (self.facts.capacity.get(resource), used.max(self.facts.reserve.get(resource).into())),
            };
            system + sum(Lease::held) + u128::from(wanted.get(resource)) <= u128::from(room)
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
                let place = waiting.ticket.as_ref().and_then(|ticket| self.ledger.place_of(&ticket.request.id));
                assert_eq!(place.map(|(ahead, _)| ahead + 1), (waiting.position > 0).then_some(waiting.position));
                assert_eq!(place.map(|(_, ticket)| &**ticket), waiting.ticket.as_ref());
            }
            Reply::Answer(Answer::Rejected(reasons, _)) => {
                let never = [Code::MemoryBudget, Code::CpuBudget, Code::DiskBudget, Code::DiskInodesBudget];
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
        (self.facts.gate, self.facts.used) = (Gate::default(), Amounts::default());
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

proptest! {
    // 1,050 lives of 200 steps: more than 200,000 operations.
    #![proptest_config(ProptestConfig { cases: 1050, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_in_whatever_order_the_promises_hold(steps in proptest::collection::vec(step(), 200)) {
        let mut node = Node::new();
        (node.facts.leases_max, node.facts.tickets_max) = (5, 4);
        for (count, step) in steps.iter().enumerate() {
            node.step(step);
            if count % 10 == 0 {
                assert_eq!(node.twin.read(), node.ledger, "the journal has the same ledger");
            }
        }
        node.comes_to_rest();
    }
}
