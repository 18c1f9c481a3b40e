//! The product: its sizing, its gate, its ledger. What stands here only carries figures between them and the machine.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use stoker_core::admission::{
    Answer, Command, Event, Facts, Holder, InUse, Ledger, Reply, Request, Source, Tenants, Ticket, Usage,
};
use stoker_core::identity::{CommitId, LeaseId, RequestId, Scope, TicketId};
use stoker_core::pressure::{
    Cpu, DiskReading, Filesystem, GateMemory, Limits, Memory, Readings, Slope, StallReading, decide,
};
use stoker_core::quantity::{Amounts, Span, Timestamp};
use stoker_core::sizing::history::SAMPLES_MAX;
use stoker_core::sizing::{Declared, Outcome, Policy as Sizes, Sample, size, summary};

use crate::day::machine::{End, Machine, Now, Policy, Start};
use crate::day::workload::{GIB, Job, TENANTS};

/// Of the pool: there is enough of it, a day of memory is what this is about.
const DISK: Filesystem = Filesystem {
    total_bytes: 8 << 40,
    free_bytes: 8 << 40,
    floor_bytes: 1 << 30,
    reserved_bytes: 0,
    total_inodes: 1 << 40,
    free_inodes: 1 << 40,
    floor_inodes: 1000,
    reserved_inodes: 0,
    slope: Slope { bytes_per_minute: 0, inodes_per_minute: 0 },
};
/// Callers await their builds all the time, and so keep their places: renewed so often, for so long.
const AWAITED_EVERY: u32 = 120;
const AWAITED_FOR: Span = Span::seconds(200);
/// With nothing begun or ended, the queue is looked at so often.
const LOOK_EVERY: u32 = 10;

/// A build, as the ledger knows it.
#[derive(Default)]
struct Known {
    lease: Option<LeaseId>,
    /// Its last lease, which ran out of memory.
    retry_of: Option<LeaseId>,
    attempt: u32,
}

pub(crate) struct Stoker {
    ledger: Ledger,
    gate: GateMemory,
    limits: Limits,
    budget: Amounts,
    history: BTreeMap<usize, VecDeque<Sample>>,
    builds: BTreeMap<usize, Known>,
    requests: BTreeMap<RequestId, usize>,
    granted: Vec<LeaseId>,
    ids: u64,
    /// Something happened since somebody was last asked to start.
    moved: bool,
}

impl Stoker {
    pub(crate) fn new(machine: &Machine) -> Self {
        let floor = machine.memory_bytes / 20;
        Self {
            ledger: Ledger::default(),
            gate: GateMemory::default(),
            limits: Limits {
                memory_floor: floor,
                memory_narrow: floor * 2,
                memory_stall_full: 1000,
                hold: Span::seconds(30),
                ..Limits::default()
            },
            budget: Amounts {
                cpu_millis: machine.budget_cpu_millis(),
                memory_bytes: machine.budget_bytes(),
                disk_bytes: DISK.total_bytes - DISK.floor_bytes,
                disk_inodes: DISK.total_inodes - DISK.floor_inodes,
            },
            history: BTreeMap::new(),
            builds: BTreeMap::new(),
            requests: BTreeMap::new(),
            granted: Vec::new(),
            ids: 0,
            moved: false,
        }
    }

    fn id(&mut self, kind: &str) -> String {
        self.ids += 1;
        format!("{kind}{:08}", self.ids)
    }

    fn look(&mut self, now: &Now<'_>) {
        let machine = now.machine;
        let used: u64 = now.uses.iter().map(|one| one.bytes).sum::<u64>() + machine.system_bytes(now.second);
        let memory =
            Memory { total_bytes: machine.memory_bytes, available_bytes: machine.memory_bytes.saturating_sub(used) };
        let readings = Readings {
            memory: Some(memory),
            cpu: Some(Cpu { total_millis: machine.cpu_millis, used_millis: used_cpu(now) }),
            memory_stall: StallReading::Untold,
            root: DiskReading::Known(DISK),
            ..Readings::default()
        };
        self.gate = decide(&self.gate, &readings, &self.limits, at(now));
    }

    fn facts(&self, now: &Now<'_>) -> Facts {
        let machine = now.machine;
        let in_use = now.uses.iter().filter_map(|one| {
            let lease = self.builds.get(&one.job)?.lease.clone()?;
            let used = Amounts { cpu_millis: one.cpu_millis, memory_bytes: one.bytes, ..Amounts::default() };
            Some((lease, InUse { used: Some(used), ..InUse::default() }))
        });
        Facts {
            capacity: self.budget.plus(Amounts {
                cpu_millis: machine.reserve_cpu_millis,
                memory_bytes: machine.reserve_bytes,
                ..Amounts::default()
            }),
            reserve: Amounts {
                cpu_millis: machine.reserve_cpu_millis,
                memory_bytes: machine.reserve_bytes,
                ..Amounts::default()
            },
            other_pods: Amounts::default(),
            scheduler: None,
            pods: None,
            unlimited_is_node: true,
            others: Amounts {
                cpu_millis: machine.system_cpu_millis(),
                memory_bytes: machine.system_bytes(now.second),
                ..Amounts::default()
            },
            in_use: Arc::new(in_use.collect()),
            disk_free: Amounts { cpu_millis: 0, memory_bytes: 0, ..self.budget },
            gate: self.gate.gate.clone(),
            leases_max: 256,
            sizing: Arc::default(),
            tickets_max: 10_000,
            tenants: Arc::new(Tenants::default()),
            pass_for: Span::minutes(10),
            age_after: Span::hours(1),
            end_at_budget: true,
            jitter: 0,
        }
    }

    fn tell(&mut self, command: &Command, now: &Now<'_>) -> Reply {
        let (reply, events) = self.ledger.decide(command, &self.facts(now), at(now));
        for event in events {
            if let Event::Lease(lease) = &event
                && lease.live()
                && lease.bound_at.is_none()
                && self.requests.get(&lease.request_id).is_some_and(|job| self.builds[job].lease.is_none())
            {
                let job = self.requests[&lease.request_id];
                self.builds.entry(job).or_default().lease = Some(lease.id.clone());
                self.granted.push(lease.id.clone());
            }
            self.ledger.apply(event);
        }
        self.moved = true;
        reply
    }

    fn await_all(&mut self, now: Timestamp) {
        let tickets: Vec<_> = self.ledger.tickets().cloned().collect();
        for ticket in tickets {
            let kept = Ticket { expires_at: now.plus(AWAITED_FOR), ..Ticket::clone(&ticket) };
            self.ledger.apply(Event::Ticket(Arc::new(kept)));
        }
    }

    fn request(&mut self, number: usize, job: &Job) -> Request {
        let known = self.builds.entry(number).or_default();
        known.attempt += 1;
        known.lease = None;
        let (attempt, retry_of) = (known.attempt, known.retry_of.clone());
        let declared = Declared {
            cpu_millis: job.declared.map(|(cpu, _)| cpu.min(self.budget.cpu_millis)),
            memory_bytes: job.declared.map(|(_, bytes)| bytes.min(self.budget.memory_bytes)),
            time_budget: Some(time_budget(job)),
            ..Declared::default()
        };
        let samples: Vec<Sample> = self.history.get(&job.kind).into_iter().flatten().copied().collect();
        let seen = (!samples.is_empty()).then(|| summary(&samples));
        let sizing = size(&declared, None, seen.as_ref(), job.language, &Sizes::default(), &self.budget);
        let id = RequestId::try_from(format!("build-{number}-{attempt}")).unwrap();
        self.requests.insert(id.clone(), number);
        Request {
            id,
            digest: String::new(),
            source: source(),
            sizing,
            scope: Scope { tenant: TENANTS[job.tenant].to_owned(), ..Scope::default() },
            target: format!("{}", job.kind),
            cache_keys: Vec::new(),
            attempt: 1,
            bind_within: Span::minutes(5),
            priority: 0,
            expected: median(&samples),
            retry_of,
            no_retry: false,
            terms: stoker_core::admission::Terms::default(),
            asked: None,
        }
    }
}

impl Policy for Stoker {
    fn arrives(&mut self, number: usize, job: &Job, now: &Now<'_>) {
        let request = self.request(number, job);
        let (lease, ticket) = (self.id("lease"), self.id("ticket"));
        let command = Command::Admit {
            request: Box::new(request),
            lease: LeaseId::try_from(lease).unwrap(),
            ticket: Some(TicketId::try_from(ticket).unwrap()),
            awaited: true,
        };
        match self.tell(&command, now) {
            Reply::Answer(Answer::Granted(_)) => {}
            Reply::Answer(Answer::Waiting(waiting)) => {
                let ticket = waiting.ticket.expect("the queue has room for a day of builds");
                let kept = Ticket { expires_at: at(now).plus(AWAITED_FOR), ..ticket };
                self.ledger.apply(Event::Ticket(Arc::new(kept)));
            }
            other => panic!("a build of the day is neither granted nor waits: {other:?}"),
        }
    }

    fn start(&mut self, jobs: &[Job], now: &Now<'_>) -> Vec<Start> {
        self.look(now);
        if now.second.is_multiple_of(AWAITED_EVERY) {
            self.await_all(at(now));
        }
        if self.moved || now.second.is_multiple_of(LOOK_EVERY) {
            self.tell(&Command::Advance, now);
            let mut granted = usize::MAX;
            while self.ledger.queued() > 0 && granted != self.granted.len() {
                granted = self.granted.len();
                let lease = LeaseId::try_from(self.id("lease")).unwrap();
                self.tell(&Command::Next { lease }, now);
            }
        }
        self.moved = false;
        let mut starts = Vec::new();
        for id in std::mem::take(&mut self.granted) {
            let Some(lease) = self.ledger.lease(&id).filter(|lease| lease.live()).cloned() else { continue };
            let job = self.requests[&lease.request_id];
            assert!(jobs.get(job).is_some(), "a lease of no build");
            let holder = Holder::Pod { namespace: "day".into(), name: id.to_string(), uid: id.to_string() };
            self.tell(&Command::Bind { lease: id, holder, controller: String::new() }, now);
            let given = lease.sizing.size.amounts;
            starts.push(Start { job, cpu_millis_max: given.cpu_millis, bytes_max: given.memory_bytes });
        }
        starts
    }

    fn ended(&mut self, number: usize, job: &Job, end: End, peak_bytes: u64, seconds: u32, now: &Now<'_>) -> bool {
        let outcome = match end {
            End::Done => Outcome::Succeeded,
            End::Limit => Outcome::OutOfMemoryLimit,
            End::Node => Outcome::OutOfMemoryNode,
        };
        let id = self.builds[&number].lease.clone().expect("what ends has a lease");
        let lease = self.ledger.lease(&id).expect("and the ledger knows it");
        assert!(lease.live(), "its author declared enough time: {lease:?}");
        let given = lease.sizing.size.amounts;
        let elapsed = Span::seconds(i64::from(seconds));
        let usage = Usage {
            memory_bytes_peak: peak_bytes,
            cpu_millis_peak: job.cpu_millis.min(given.cpu_millis),
            elapsed,
            ..Usage::default()
        };
        let command = Command::Release { lease: id.clone(), outcome, exit_code: None, usage: Some(usage) };
        let Reply::Lease(_) = self.tell(&command, now) else { panic!("a release that gives no lease") };
        let samples = self.history.entry(job.kind).or_default();
        samples.push_back(Sample {
            memory_bytes_peak: peak_bytes,
            cpu_millis_peak: usage.cpu_millis_peak,
            cpu_millis_given: given.cpu_millis,
            disk_bytes: 0,
            elapsed,
            outcome,
            censored: false,
        });
        if samples.len() > SAMPLES_MAX {
            samples.pop_front();
        }
        let known = self.builds.get_mut(&number).expect("it ran");
        known.retry_of = Some(id);
        end != End::Done && known.attempt < 2
    }
}

/// What its author declares: three times as long as such builds take, in steps of ten minutes.
fn time_budget(job: &Job) -> Span {
    let cores_millis = job.declared.map_or(job.cpu_millis, |(cpu, _)| cpu).min(2000);
    let seconds = job.work_millis / cores_millis as f64;
    Span::minutes((seconds * 3.0 / 600.0).ceil() as i64 * 10).min(Span::hours(24))
}

/// How long such builds take, as the agent tells: the median of those that succeeded, from three on.
fn median(samples: &[Sample]) -> Option<Span> {
    let succeeded = samples.iter().filter(|run| run.outcome == Outcome::Succeeded);
    let mut times: Vec<Span> = succeeded.map(|run| run.elapsed).collect();
    times.sort_unstable();
    (times.len() >= 3).then(|| times[times.len() / 2])
}

const fn at(now: &Now<'_>) -> Timestamp {
    Timestamp(1_700_000_000_000 + now.second as i64 * 1000)
}

fn used_cpu(now: &Now<'_>) -> u64 {
    now.uses.iter().map(|one| one.cpu_millis).sum::<u64>() + now.machine.system_cpu_millis()
}

fn source() -> Source {
    Source {
        repository: "https://example.org/project".into(),
        reference: "branch:main".into(),
        commit: CommitId::new([7; 20]),
        clone_url: String::new(),
        clone_ref: String::new(),
        as_of: Timestamp(0),
        origin: "cache".into(),
        snapshot: "s1".into(),
        subject: String::new(),
        other_fork: false,
    }
}

const _: () = assert!(DISK.floor_bytes < GIB * 2);
