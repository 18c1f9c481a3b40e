//! The machine: it runs what it is told to run, a second at a time, and kills when memory is gone.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use crate::day::workload::{GIB, Job, Workload};

/// How often somebody tries a build again that was killed.
const TRIES_MAX: u32 = 3;
/// Nothing is waited for longer than so many times the day.
const DAYS_MAX: u32 = 4;
/// How many runs of a kind are remembered.
const RUNS_KNOWN: usize = 32;
/// A plot has a point for each of so many seconds.
pub(crate) const POINT_SECONDS: u32 = 120;

/// What there is, and what is not for builds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) reserve_cpu_millis: u64,
    pub(crate) reserve_bytes: u64,
}

impl Machine {
    /// 32 CPU and 62.5 GiB, and the control plane on it.
    pub(crate) const SINGLE_NODE: Self = Self {
        cpu_millis: 32_000,
        memory_bytes: 62 * GIB + GIB / 2,
        reserve_cpu_millis: 4_000,
        reserve_bytes: 8 * GIB,
    };

    pub(crate) const fn budget_bytes(&self) -> u64 {
        self.memory_bytes - self.reserve_bytes
    }

    pub(crate) const fn budget_cpu_millis(&self) -> u64 {
        self.cpu_millis - self.reserve_cpu_millis
    }

    /// The same with a part of the budget.
    pub(crate) const fn share(&self, of: u64) -> Self {
        Self {
            cpu_millis: self.reserve_cpu_millis + self.budget_cpu_millis() / of,
            memory_bytes: self.reserve_bytes + self.budget_bytes() / of,
            ..*self
        }
    }

    /// What the control plane and the system use: it goes up and down, within the reserve.
    pub(crate) fn system_bytes(&self, second: u32) -> u64 {
        let wave = (f64::from(second) / 1800.0).sin() + (f64::from(second) / 7000.0).cos();
        (self.reserve_bytes as f64 * (0.65 + 0.1 * wave)) as u64
    }

    pub(crate) const fn system_cpu_millis(&self) -> u64 {
        self.reserve_cpu_millis / 2
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = self.memory_bytes as f64 / GIB as f64;
        let reserve = self.reserve_bytes / GIB;
        write!(
            f,
            "{} CPU and {gib} GiB, {} CPU and {reserve} GiB reserved",
            self.cpu_millis / 1000,
            self.reserve_cpu_millis / 1000
        )
    }
}

/// A build that may start now, and within what.
pub(crate) struct Start {
    pub(crate) job: usize,
    pub(crate) cpu_millis_max: u64,
    pub(crate) bytes_max: u64,
}

/// How a build left the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    /// At its own limit.
    Limit,
    /// The node ran out.
    Node,
}

/// What a build uses at this moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    pub(crate) job: usize,
    pub(crate) cpu_millis: u64,
    pub(crate) bytes: u64,
}

/// What is so at this second.
pub(crate) struct Now<'a> {
    pub(crate) second: u32,
    pub(crate) machine: &'a Machine,
    pub(crate) uses: &'a [Use],
}

/// Decides who may start.
pub(crate) trait Policy {
    /// Another build wants to start; one that was killed comes again.
    fn arrives(&mut self, number: usize, job: &Job, now: &Now<'_>);
    /// Who may start now.
    fn start(&mut self, jobs: &[Job], now: &Now<'_>) -> Vec<Start>;
    /// A build is over. Gives whether it is tried again without its author doing anything.
    fn ended(&mut self, number: usize, job: &Job, end: End, peak_bytes: u64, seconds: u32, now: &Now<'_>) -> bool;
}

struct Running {
    job: usize,
    began: u32,
    left_millis: f64,
    cpu_millis_max: u64,
    bytes_max: u64,
    cpu_millis: u64,
    bytes: u64,
    peak: u64,
}

/// What came of a day.
#[derive(Debug, Default, Clone)]
pub(crate) struct Run {
    /// Of each build that started: tenant, peak, seconds from its first arrival to its first start.
    pub(crate) waits: Vec<(usize, u64, u32)>,
    pub(crate) killed_by_node: u32,
    pub(crate) killed_at_limit: u32,
    /// Killed at a limit below what the same kind's runs had shown when it asked, but for the highest twentieth.
    pub(crate) killed_though_known: u32,
    /// Builds that nobody tried any more.
    pub(crate) lost: u32,
    pub(crate) finished: u32,
    /// Seconds in which builds were in the reserve.
    pub(crate) invaded_seconds: u32,
    /// Seconds in which builds wanted more CPU than is theirs.
    pub(crate) crowded_seconds: u32,
    /// Milliseconds of one core that went into builds that finished within the day.
    pub(crate) useful_millis: f64,
    /// Second at which the last build was over.
    pub(crate) over: u32,
    /// Bytes that builds used at most within each [`POINT_SECONDS`].
    pub(crate) memory: Vec<u64>,
    /// Builds that waited then.
    pub(crate) waiting: Vec<usize>,
    /// When the node ran out.
    pub(crate) kills: Vec<u32>,
}

/// A day under a policy, and the time after it until nothing is left.
pub(crate) fn run(machine: &Machine, workload: &Workload, policy: &mut dyn Policy) -> Run {
    let mut day = Day {
        machine,
        workload,
        result: Run::default(),
        running: Vec::new(),
        started: vec![false; workload.jobs.len()],
        tries: vec![0; workload.jobs.len()],
        known: BTreeMap::new(),
        known_then: vec![0; workload.jobs.len()],
    };
    let mut next = 0;
    let mut again: VecDeque<usize> = VecDeque::new();
    let mut waiting = 0;
    for second in 0..workload.seconds * DAYS_MAX {
        let uses = day.uses();
        let now = Now { second, machine, uses: &uses };
        while workload.jobs.get(next).is_some_and(|job| job.arrives <= second) {
            day.asks(next);
            policy.arrives(next, &workload.jobs[next], &now);
            (next, waiting) = (next + 1, waiting + 1);
        }
        for job in again.drain(..) {
            day.asks(job);
            policy.arrives(job, &workload.jobs[job], &now);
            waiting += 1;
        }
        for start in policy.start(&workload.jobs, &now) {
            waiting -= 1;
            day.start(&start, second);
        }
        day.second(second, policy, &mut again);
        day.note(second, waiting);
        if next == workload.jobs.len() && waiting == 0 && day.running.is_empty() && again.is_empty() {
            break;
        }
    }
    day.result.lost += u32::try_from(waiting + day.running.len()).unwrap();
    day.result
}

struct Day<'a> {
    machine: &'a Machine,
    workload: &'a Workload,
    result: Run,
    running: Vec<Running>,
    started: Vec<bool>,
    tries: Vec<u32>,
    /// The peaks of each kind's last runs.
    known: BTreeMap<usize, VecDeque<u64>>,
    /// Their 95th percentile, when each build asked.
    known_then: Vec<u64>,
}

impl Day<'_> {
    fn uses(&self) -> Vec<Use> {
        self.running.iter().map(|r| Use { job: r.job, cpu_millis: r.cpu_millis, bytes: r.bytes }).collect()
    }

    fn asks(&mut self, job: usize) {
        let kind = self.workload.jobs[job].kind;
        self.known_then[job] = self.known.get(&kind).map_or(0, p95);
    }

    fn start(&mut self, start: &Start, second: u32) {
        let job = &self.workload.jobs[start.job];
        if !std::mem::replace(&mut self.started[start.job], true) {
            self.result.waits.push((job.tenant, job.peak_bytes, second - job.arrives));
        }
        self.tries[start.job] += 1;
        self.running.push(Running {
            job: start.job,
            began: second,
            left_millis: job.work_millis,
            cpu_millis_max: start.cpu_millis_max,
            bytes_max: start.bytes_max,
            cpu_millis: 0,
            bytes: 0,
            peak: 0,
        });
    }

    /// Everybody works for a second, within what there is.
    fn second(&mut self, second: u32, policy: &mut dyn Policy, again: &mut VecDeque<usize>) {
        let jobs = &self.workload.jobs;
        let wanted: u64 = self.running.iter().map(|r| jobs[r.job].cpu_millis.min(r.cpu_millis_max)).sum();
        self.result.crowded_seconds += u32::from(wanted > self.machine.budget_cpu_millis());
        let there = self.machine.cpu_millis - self.machine.system_cpu_millis();
        let share = if wanted > there { there as f64 / wanted as f64 } else { 1.0 };
        for one in &mut self.running {
            let job = &jobs[one.job];
            let rate = job.cpu_millis.min(one.cpu_millis_max) as f64 * share;
            one.cpu_millis = rate as u64;
            one.left_millis -= rate;
            one.bytes = used_bytes(job, 1.0 - (one.left_millis / job.work_millis).max(0.0));
            one.peak = one.peak.max(one.bytes.min(one.bytes_max));
        }
        let mut ends: Vec<(usize, End)> = Vec::new();
        for (place, one) in self.running.iter().enumerate() {
            if one.bytes > one.bytes_max {
                ends.push((place, End::Limit));
            } else if one.left_millis <= 0.0 {
                ends.push((place, End::Done));
            }
        }
        self.leave(&ends, second, policy, again);
        let system = self.machine.system_bytes(second);
        loop {
            let used: u64 = self.running.iter().map(|one| one.bytes).sum();
            if used + system <= self.machine.memory_bytes {
                if used > self.machine.budget_bytes() {
                    self.result.invaded_seconds += 1;
                }
                break;
            }
            // As the kernel does: whoever has most.
            let largest = (0..self.running.len()).max_by_key(|place| self.running[*place].bytes).unwrap();
            self.result.kills.push(second);
            self.leave(&[(largest, End::Node)], second, policy, again);
        }
    }

    fn leave(&mut self, ends: &[(usize, End)], second: u32, policy: &mut dyn Policy, again: &mut VecDeque<usize>) {
        for (place, end) in ends.iter().rev() {
            let one = self.running.remove(*place);
            let job = &self.workload.jobs[one.job];
            let uses = self.uses();
            let now = Now { second, machine: self.machine, uses: &uses };
            let retried = policy.ended(one.job, job, *end, one.peak, second - one.began + 1, &now);
            let known = self.known.entry(job.kind).or_default();
            match end {
                End::Done => {
                    self.result.finished += 1;
                    self.result.over = second;
                    known.push_back(job.peak_bytes);
                    if known.len() > RUNS_KNOWN {
                        known.pop_front();
                    }
                    if second < self.workload.seconds {
                        self.result.useful_millis += job.work_millis;
                    }
                }
                End::Limit => {
                    self.result.killed_at_limit += 1;
                    self.result.killed_though_known += u32::from(self.known_then[one.job] >= job.peak_bytes);
                }
                End::Node => self.result.killed_by_node += 1,
            }
            if *end != End::Done {
                match retried && self.tries[one.job] < TRIES_MAX {
                    true => again.push_back(one.job),
                    false => self.result.lost += 1,
                }
            }
        }
    }

    fn note(&mut self, second: u32, waiting: usize) {
        let point = (second / POINT_SECONDS) as usize;
        let used = self.running.iter().map(|one| one.bytes).sum();
        if self.result.memory.len() <= point {
            self.result.memory.push(0);
            self.result.waiting.push(0);
        }
        let (memory, waits) = (&mut self.result.memory[point], &mut self.result.waiting[point]);
        (*memory, *waits) = ((*memory).max(used), (*waits).max(waiting));
    }
}

/// 0 where nothing ran yet.
fn p95(peaks: &VecDeque<u64>) -> u64 {
    let mut peaks: Vec<u64> = peaks.iter().copied().collect();
    peaks.sort_unstable();
    peaks.get((peaks.len() * 95).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0)
}

/// Memory over a build's life: little at first, most in its second half, where things are linked.
fn used_bytes(job: &Job, progress: f64) -> u64 {
    let share = match progress {
        p if p < 0.6 => 0.15 + 0.5 * p / 0.6,
        p if p < 0.8 => 0.65 + 0.35 * (p - 0.6) / 0.2,
        _ => 1.0,
    };
    (job.peak_bytes as f64 * share) as u64
}
