//! What each lease uses, from its control group or its processes.
//!
//! In comes a closure that says which leases are bound, and to whom. Out goes a published [`LeaseUses`]: use now (CPU
//! smoothed), peaks, I/O, kills for lack of memory. The ledger can take the use from there, and a release the peaks,
//! which outlive the build: the kernel's own peak counters go with the group, and count page cache.
//!
//! A look costs a few files a lease with a group, or one walk over all processes for all leases without. The next comes
//! after 500 times what this one took, but at least a second: at most 0.2% of a core, however many leases there are.

mod cgroup;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stoker_core::admission::{Holder, Usage};
use stoker_core::identity::LeaseId;
use stoker_core::quantity::{Amounts, Span, Timestamp};
use stoker_core::sizing::OomCounters;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::cgroup::{Figures, Group, Layout};
use self::tree::{Scan, Scanner, Tree};
use crate::node::now;
use crate::node::process::ProcessId;

const EVERY_MIN: Duration = Duration::from_secs(1);
const EVERY_MAX: Duration = Duration::from_secs(15);
/// A look may take so small a part of the time between two.
const COST: u32 = 500;
/// CPU use is an average over about so many seconds.
const CPU_SMOOTHED_SECONDS: f64 = 10.0;
/// So long a lease that is no longer bound can still be asked for.
const KEPT: Duration = Duration::from_secs(600);
/// More leases than these are not looked at, nor remembered.
const LEASES_MAX: usize = 8192;

/// Which leases are bound, and who holds each.
pub type HeldLeases = Arc<Vec<(LeaseId, Holder)>>;

/// Where figures come from.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum UseSource {
    /// Nothing was found yet: no pod's group, no process.
    #[default]
    None,
    /// A control group: its path below the hierarchy's root.
    Cgroup(String),
    /// The processes.
    Processes,
}

/// What one lease uses.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LeaseUse {
    /// Where the figures come from.
    pub source: UseSource,
    /// Use at the last look; the disk is not known here.
    pub now: Amounts,
    /// The most so far, and CPU time and time since the first look.
    pub peak: Usage,
    /// Bytes that were read from disks.
    pub io_read_bytes: u64,
    /// Bytes that were written to disks.
    pub io_written_bytes: u64,
    /// Kills for lack of memory since the first look; unset where only processes are seen.
    pub oom: Option<OomCounters>,
    /// The group's own limit.
    pub memory_bytes_limit: Option<u64>,
    /// Nothing of it runs any more; what is told is what was.
    pub ended: bool,
    /// The last look at which something was found.
    pub at: Timestamp,
}

/// What everyone sees.
pub type LeaseUses = BTreeMap<LeaseId, LeaseUse>;

/// The task, and what it publishes.
#[derive(Debug)]
pub struct LeaseMeter {
    views: watch::Sender<Arc<LeaseUses>>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl LeaseMeter {
    /// Looks until `cancel` or [`Self::shutdown`]. To be called inside a runtime.
    #[must_use]
    pub fn start(host_root: &Path, held: watch::Receiver<HeldLeases>, cancel: &CancellationToken) -> Self {
        let views = watch::Sender::default();
        let stop = cancel.child_token();
        let meter = Meter::new(host_root);
        let task = tokio::spawn(look_on(meter, held, views.clone(), stop.clone()));
        Self { views, stop, task: Mutex::new(Some(task)) }
    }

    /// The last look.
    #[must_use]
    pub fn view(&self) -> Arc<LeaseUses> {
        Arc::clone(&self.views.borrow())
    }

    /// Wakes after each look that found something new.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<LeaseUses>> {
        self.views.subscribe()
    }

    /// Ends the task and waits for it.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let task = self.task.lock().ok().and_then(|mut task| task.take());
        if let Some(task) = task {
            // It ends by itself; that it panicked was logged when it did.
            drop(task.await);
        }
    }
}

async fn look_on(
    mut meter: Meter,
    held: watch::Receiver<HeldLeases>,
    views: watch::Sender<Arc<LeaseUses>>,
    stop: CancellationToken,
) {
    let mut wait = EVERY_MIN;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let leases = Arc::clone(&held.borrow());
        if leases.is_empty() && meter.known.is_empty() {
            wait = EVERY_MIN;
            continue;
        }
        let began = Instant::now();
        let looked = tokio::task::spawn_blocking(move || {
            meter.look(&leases, Instant::now(), now());
            meter
        });
        // It only ends otherwise where it panicked, which is logged; then nothing more is known of any lease.
        let Ok(back) = looked.await else { return };
        meter = back;
        wait = (began.elapsed() * COST).clamp(EVERY_MIN, EVERY_MAX);
        let uses: LeaseUses = meter.known.iter().map(|(lease, known)| (lease.clone(), known.seen.clone())).collect();
        views.send_if_modified(|before| {
            let differs = **before != uses;
            if differs {
                *before = Arc::new(uses);
            }
            differs
        });
    }
}

/// Looks, and remembers.
struct Meter {
    host_root: PathBuf,
    layout: Layout,
    scanner: Scanner,
    known: BTreeMap<LeaseId, Known>,
}

/// What is remembered of a lease.
struct Known {
    from: From,
    seen: LeaseUse,
    began: Instant,
    /// The last look, and CPU time then.
    cpu: Option<(Instant, u64)>,
    /// The moving average since.
    cpu_millis: Option<f64>,
    /// What its group had counted before. A pod's group is all its own; that of a process can be older than the lease.
    oom_before: Option<OomCounters>,
    unbound: Option<Instant>,
}

/// Where its figures are.
enum From {
    Pod(String, Option<Group>),
    Process(Tree, Option<Group>),
}

impl Meter {
    fn new(host_root: &Path) -> Self {
        Self {
            host_root: host_root.to_owned(),
            layout: Layout::of(host_root),
            scanner: Scanner::new(host_root),
            known: BTreeMap::new(),
        }
    }

    fn look(&mut self, held: &[(LeaseId, Holder)], at: Instant, now: Timestamp) {
        for (lease, holder) in held.iter().take(LEASES_MAX) {
            let known = self.known.entry(lease.clone()).or_insert_with(|| Known::new(holder, at));
            known.unbound = None;
        }
        let bound: BTreeSet<&LeaseId> = held.iter().map(|(lease, _)| lease).collect();
        for (_, known) in self.known.iter_mut().filter(|(lease, _)| !bound.contains(lease)) {
            known.unbound.get_or_insert(at);
        }
        self.known.retain(|_, known| known.unbound.is_none_or(|since| at.duration_since(since) < KEPT));
        while self.known.len() > LEASES_MAX {
            self.known.pop_first();
        }
        let by_processes = self.known.values().any(|known| known.unbound.is_none() && known.needs_processes());
        let scan = if by_processes { self.scanner.scan() } else { None };
        for (lease, known) in self.known.iter_mut().filter(|(_, known)| known.unbound.is_none()) {
            known.find(lease, &self.layout, scan.as_ref(), &self.host_root);
            if let Some(figures) = known.read(lease, scan.as_ref(), &self.host_root) {
                known.note(&figures, at, now);
            }
        }
    }
}

impl Known {
    fn new(holder: &Holder, at: Instant) -> Self {
        let from = match holder {
            Holder::Pod { uid, .. } => From::Pod(uid.clone(), None),
            Holder::Process { pid, start_ticks } => {
                let pid = i32::try_from(*pid).unwrap_or(-1);
                From::Process(Tree::new(ProcessId { pid, start_ticks: start_ticks.unsigned_abs() }), None)
            }
        };
        Self {
            from,
            seen: LeaseUse::default(),
            began: at,
            cpu: None,
            cpu_millis: None,
            oom_before: None,
            unbound: None,
        }
    }

    fn needs_processes(&self) -> bool {
        match &self.from {
            From::Pod(..) => false,
            From::Process(_, group) => group.as_ref().is_none_or(|group| !group.counts_cpu()),
        }
    }

    /// Looks for its group where it has none yet. That of a process counts only where no other is in it: a build that
    /// runs in somebody's session shares theirs.
    fn find(&mut self, lease: &LeaseId, layout: &Layout, scan: Option<&Scan>, host_root: &Path) {
        match &mut self.from {
            From::Pod(uid, group @ None) => *group = layout.of_pod(uid),
            From::Process(tree, group @ None) => {
                let Some(scan) = scan else { return };
                let members = tree.follow(scan, lease.as_str());
                let own = |found: &Group| {
                    found.processes().is_some_and(|all| !all.is_empty() && all.iter().all(|pid| members.contains(pid)))
                };
                *group = layout.of_process(host_root, tree.holder()).filter(own);
            }
            From::Pod(..) | From::Process(..) => {}
        }
    }

    fn read(&mut self, lease: &LeaseId, scan: Option<&Scan>, host_root: &Path) -> Option<Figures> {
        let (figures, source, limit) = match &mut self.from {
            From::Pod(_, Some(group)) => {
                (group.read().ok(), UseSource::Cgroup(group.name.clone()), group.memory_limit())
            }
            From::Process(tree, Some(group)) => {
                let mut figures = group.read().ok();
                // Its memory may be a group's and its CPU all the machine's.
                if let (Some(figures), false) = (&mut figures, group.counts_cpu()) {
                    let seen = tree.read(scan?, lease.as_str(), host_root).unwrap_or_default();
                    let (memory_bytes, oom) = (figures.memory_bytes, figures.oom);
                    *figures = Figures { memory_bytes, oom, ..seen };
                }
                (figures, UseSource::Cgroup(group.name.clone()), group.memory_limit())
            }
            From::Process(tree, None) => (tree.read(scan?, lease.as_str(), host_root), UseSource::Processes, None),
            From::Pod(_, None) => return None,
        };
        self.seen.ended = figures.is_none();
        if figures.is_none() {
            self.seen.now = Amounts::default();
            return None;
        }
        (self.seen.source, self.seen.memory_bytes_limit) = (source, limit);
        figures
    }

    fn note(&mut self, figures: &Figures, at: Instant, now: Timestamp) {
        let by_cgroup = matches!(self.seen.source, UseSource::Cgroup(_));
        let rate = self.cpu.replace((at, figures.cpu_micros)).and_then(|(then, before)| {
            let seconds = at.duration_since(then).as_secs_f64();
            (seconds > 0.0).then(|| (figures.cpu_micros.saturating_sub(before) as f64 / seconds / 1000.0, seconds))
        });
        if let Some((millis, seconds)) = rate {
            let weight = 1.0 - (-seconds / CPU_SMOOTHED_SECONDS).exp();
            self.cpu_millis = Some(self.cpu_millis.map_or(millis, |average| average + weight * (millis - average)));
            self.seen.peak.cpu_millis_peak = self.seen.peak.cpu_millis_peak.max(millis.round() as u64);
        }
        let seen = &mut self.seen;
        seen.now = Amounts {
            cpu_millis: self.cpu_millis.unwrap_or(0.0).round() as u64,
            memory_bytes: figures.memory_bytes,
            ..Amounts::default()
        };
        seen.peak.memory_bytes_peak = seen.peak.memory_bytes_peak.max(figures.memory_bytes);
        seen.peak.processes_peak = seen.peak.processes_peak.max(figures.processes);
        seen.peak.cpu_time = Span(i64::try_from(figures.cpu_micros / 1000).unwrap_or(i64::MAX));
        let elapsed = at.duration_since(self.began).as_millis();
        seen.peak.elapsed = Span(i64::try_from(elapsed).unwrap_or(i64::MAX));
        (seen.io_read_bytes, seen.io_written_bytes) = (figures.io_read_bytes, figures.io_written_bytes);
        if by_cgroup {
            let at_first = if matches!(self.from, From::Pod(..)) { OomCounters::default() } else { figures.oom };
            let before = *self.oom_before.get_or_insert(at_first);
            seen.oom = Some(figures.oom.since(before));
        }
        seen.at = now;
    }
}
