//! What each lease uses, from its control group or its processes.
//!
//! In comes which leases are bound, and to whom. Out goes a published [`Look`]: of each lease its use now (CPU smoothed),
//! peaks, I/O, kills for lack of memory; and what all the rest of the machine used at that very look. The ledger takes
//! both from there, so that no use counts twice or not at all; a release takes the peaks, which outlive the build: the
//! kernel's own peak counters go with the group, and count page cache.
//!
//! A look costs a few files a lease with a group, or one walk over all processes for all leases without. The next comes
//! after 500 times what this one took, but at least a second: at most 0.2% of a core, however many leases there are.
//! It comes sooner where a lease was bound or ended, for what it uses is then no more others', or others' again, and where
//! pods of the node changed: that is 2% of a core, while they come and go all the time.

mod cgroup;
mod limit;
mod others;
mod pods;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stoker_core::admission::{Holder, Usage};
use stoker_core::cluster::Cluster;
use stoker_core::cluster::bind::Group as PodGroup;
use stoker_core::examination::PodsLimit;
use stoker_core::identity::LeaseId;
use stoker_core::quantity::{Amounts, Span, Timestamp};
use stoker_core::reason::Reason;
use stoker_core::sizing::OomCounters;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::cgroup::{Figures, Group, Layout};
pub use self::limit::Limits;
pub use self::others::Others;
use self::others::{Leases, OthersMeter};
use self::pods::OtherPods;
use self::tree::{Scan, Scanner, Tree};
use crate::node::now;
use crate::node::process::ProcessId;

const EVERY_MIN: Duration = Duration::from_secs(1);
const EVERY_MAX: Duration = Duration::from_secs(15);
/// A look may take so small a part of the time between two,
const COST: u32 = 500;
/// and of that to one that a lease asks for that comes or goes.
const COST_SOON: u32 = 50;
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
    /// To count them once more.
    pub recount: Option<Recount>,
    /// The group's own limit.
    pub memory_bytes_limit: Option<u64>,
    /// What this group and all above it keep it to.
    pub limits: Limits,
    /// Nothing of it runs any more; what is told is what was.
    pub ended: bool,
    /// The first look at which something was found.
    pub began: Timestamp,
    /// The last one.
    pub at: Timestamp,
    /// How many there were.
    pub looks: u32,
}

/// A build's group, and what it had counted before the build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recount {
    group: Group,
    before: OomCounters,
}

impl LeaseUse {
    /// Kills as of now: a build that was killed ends sooner than the next look comes. Blocks for a few files.
    #[must_use]
    pub fn oom_now(&self) -> Option<OomCounters> {
        let seen = self.oom?;
        let now = self.recount.as_ref().map(|again| again.group.oom().since(again.before)).unwrap_or_default();
        // A group that is gone has counted nothing.
        Some(OomCounters { kills: seen.kills.max(now.kills), at_limit: seen.at_limit.max(now.at_limit) })
    }

    /// What of a lease of this size its holder is not kept to, where that runs and was found.
    #[must_use]
    pub fn unlimited(&self, size: &Amounts) -> Vec<Reason> {
        let seen = self.source != UseSource::None && !self.ended;
        if seen { self.limits.beyond(size) } else { Vec::new() }
    }
}

/// Looks whether anything of a pod still runs.
#[derive(Debug)]
pub struct PodGroups {
    layout: Layout,
    /// Those that were found, by the uid of their pod.
    found: BTreeMap<String, Group>,
}

impl PodGroups {
    /// For the machine whose root is here.
    #[must_use]
    pub fn new(host_root: &Path) -> Self {
        Self { layout: Layout::of(host_root), found: BTreeMap::new() }
    }

    /// What there is of each of these pods; others are forgotten. Blocks for a file or two a pod.
    pub fn look(&mut self, pods: impl IntoIterator<Item = String>) -> BTreeMap<String, PodGroup> {
        let looked: BTreeMap<String, PodGroup> =
            pods.into_iter().map(|uid| (uid.clone(), self.look_at(&uid))).collect();
        self.found.retain(|uid, _| looked.contains_key(uid));
        looked
    }

    fn look_at(&mut self, uid: &str) -> PodGroup {
        let was_found = self.found.contains_key(uid);
        let there = |group: &Group| match group.populated() {
            Some(true) => PodGroup::Runs,
            Some(false) => PodGroup::Empty,
            // It is there, and does not tell.
            None if group.is_there() => PodGroup::Unseen,
            None => PodGroup::Gone,
        };
        match self.found.get(uid).map(there) {
            Some(PodGroup::Gone) | None => {}
            Some(known) => return known,
        }
        match self.layout.of_pod(uid) {
            Some(group) => {
                let now = there(&group);
                self.found.insert(uid.to_owned(), group);
                now
            }
            None if was_found => PodGroup::Gone,
            None => PodGroup::Unseen,
        }
    }
}

/// By lease.
pub type LeaseUses = BTreeMap<LeaseId, LeaseUse>;

/// What everyone sees.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Look {
    /// The leases that are bound, and for a while those that were.
    pub leases: LeaseUses,
    /// All the rest, without those that are bound. Unset: the machine does not tell.
    pub others: Option<Others>,
    /// What the node's own pods were seen to use, by the hash of their file.
    pub own_pods: BTreeMap<String, Amounts>,
    /// What the group of all pods is kept to.
    pub pods_limit: PodsLimit,
}

/// The task, and what it publishes.
#[derive(Debug)]
pub struct LeaseMeter {
    views: watch::Sender<Arc<Look>>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl LeaseMeter {
    /// Looks until `cancel` or [`Self::shutdown`]. To be called inside a runtime.
    #[must_use]
    pub fn start(
        host_root: &Path,
        held: watch::Receiver<HeldLeases>,
        cluster: watch::Receiver<Arc<Cluster>>,
        cancel: &CancellationToken,
    ) -> Self {
        let views = watch::Sender::default();
        let stop = cancel.child_token();
        let task = tokio::spawn(look_on(host_root.to_owned(), held, cluster, views.clone(), stop.clone()));
        Self { views, stop, task: Mutex::new(Some(task)) }
    }

    /// The last look.
    #[must_use]
    pub fn view(&self) -> Arc<Look> {
        Arc::clone(&self.views.borrow())
    }

    /// Wakes after each look that found something new.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Look>> {
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
    host_root: PathBuf,
    mut held: watch::Receiver<HeldLeases>,
    mut cluster: watch::Receiver<Arc<Cluster>>,
    views: watch::Sender<Arc<Look>>,
    stop: CancellationToken,
) {
    let (mut meter, mut turn) = (Meter::new(&host_root), Turn::default());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = turn.comes(&mut held, &mut cluster) => {}
        }
        let leases = Arc::clone(&held.borrow_and_update());
        let around = Arc::clone(&cluster.borrow_and_update());
        let began = Instant::now();
        let looked = tokio::task::spawn_blocking(move || {
            let look = meter.look(&leases, &around, Instant::now(), now());
            (meter, look)
        });
        let look = match looked.await {
            Ok((back, look)) => {
                meter = back;
                look
            }
            // It panicked, which is logged: what others use is not known until a new meter has looked.
            Err(_) => {
                meter = Meter::new(&host_root);
                Look::default()
            }
        };
        turn = Turn::after(began, began.elapsed());
        views.send_if_modified(|before| {
            let differs = **before != look;
            if differs {
                *before = Arc::new(look);
            }
            differs
        });
    }
}

/// When the next look comes.
#[derive(Default)]
struct Turn {
    /// Where a lease comes or goes. At once where it is unset, as `latest`.
    soonest: Option<Instant>,
    latest: Option<Instant>,
}

impl Turn {
    fn after(began: Instant, took: Duration) -> Self {
        let latest = began + (took * COST).clamp(EVERY_MIN, EVERY_MAX);
        Self { soonest: Some((began + took * COST_SOON).min(latest)), latest: Some(latest) }
    }

    async fn comes(&self, held: &mut watch::Receiver<HeldLeases>, cluster: &mut watch::Receiver<Arc<Cluster>>) {
        let until = async |at: Option<Instant>| {
            if let Some(at) = at {
                tokio::time::sleep_until(at.into()).await;
            }
        };
        tokio::select! {
            () = until(self.latest) => {}
            Ok(()) = held.changed() => until(self.soonest).await,
            Ok(()) = cluster.changed() => until(self.soonest).await,
        }
    }
}

/// Looks, and remembers.
struct Meter {
    host_root: PathBuf,
    layout: Layout,
    scanner: Scanner,
    others: OthersMeter,
    pods: OtherPods,
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
            others: OthersMeter::new(host_root),
            pods: OtherPods::default(),
            known: BTreeMap::new(),
        }
    }

    fn look(&mut self, held: &[(LeaseId, Holder)], cluster: &Cluster, at: Instant, now: Timestamp) -> Look {
        for (lease, holder) in held.iter().take(LEASES_MAX) {
            let known = self.known.entry(lease.clone()).or_insert_with(|| Known::new(holder, at));
            known.unbound = None;
            known.follow(holder, at);
        }
        let bound: BTreeSet<&LeaseId> = held.iter().map(|(lease, _)| lease).collect();
        for (_, known) in self.known.iter_mut().filter(|(lease, _)| !bound.contains(lease)) {
            known.unbound.get_or_insert(at);
        }
        self.known.retain(|_, known| known.unbound.is_none_or(|since| at.duration_since(since) < KEPT));
        self.forget_surplus();
        let by_processes = self.known.values().any(|known| known.unbound.is_none() && known.needs_processes());
        let scan = if by_processes { self.scanner.scan() } else { None };
        let mut sum = Leases::default();
        for (lease, known) in self.known.iter_mut().filter(|(_, known)| known.unbound.is_none()) {
            known.find(lease, &self.layout, scan.as_ref(), &self.host_root);
            if let Some(figures) = known.read(lease, scan.as_ref(), &self.host_root) {
                let cpu_micros = known.note(&figures, at, now);
                sum.unavailable_bytes = sum.unavailable_bytes.saturating_add(figures.unavailable_bytes);
                sum.cpu_micros = sum.cpu_micros.saturating_add(cpu_micros);
                known.seen.limits = match &known.from {
                    From::Pod(uid, _) => self.layout.limits_of_pod(uid),
                    From::Process(tree, _) => self.layout.limits_of_process(&self.host_root, tree.holder()),
                };
            }
        }
        let of_pod = |(_, holder): &'_ (LeaseId, Holder)| match holder {
            Holder::Pod { uid, .. } => Some(uid.clone()),
            Holder::Process { .. } => None,
        };
        let leased: Vec<String> = held.iter().filter_map(of_pod).collect();
        let leased = leased.iter().map(String::as_str).collect();
        let pods = self.pods.look(&self.layout, cluster, &leased, at);
        let others = self.others.look(sum, &pods);
        let leases = self.known.iter().map(|(lease, known)| (lease.clone(), known.seen.clone())).collect();
        Look { leases, others, own_pods: pods.own, pods_limit: self.layout.limit_of_all_pods() }
    }

    /// Those that ended first; one that is bound is never forgotten.
    fn forget_surplus(&mut self) {
        let surplus = self.known.len().saturating_sub(LEASES_MAX);
        if surplus > 0 {
            let unbound = self.known.iter().filter_map(|(lease, known)| Some((known.unbound?, lease.clone())));
            let mut oldest: Vec<_> = unbound.collect();
            oldest.sort();
            oldest.into_iter().take(surplus).for_each(|(_, lease)| drop(self.known.remove(&lease)));
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

    /// A lease that has its next pod is looked at there. What the one before used at most stays.
    fn follow(&mut self, holder: &Holder, at: Instant) {
        if let (From::Pod(seen, _), Holder::Pod { uid, .. }) = (&self.from, holder)
            && seen != uid
        {
            let Usage { memory_bytes_peak, cpu_millis_peak, processes_peak, .. } = self.seen.peak;
            *self = Self::new(holder, at);
            self.seen.peak = Usage { memory_bytes_peak, cpu_millis_peak, processes_peak, ..Usage::default() };
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
                    let Figures { memory_bytes, unavailable_bytes, oom, .. } = *figures;
                    *figures = Figures { memory_bytes, unavailable_bytes, oom, ..seen };
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

    /// Gives the CPU time since the look before, in microseconds.
    fn note(&mut self, figures: &Figures, at: Instant, now: Timestamp) -> u64 {
        let by_cgroup = matches!(self.seen.source, UseSource::Cgroup(_));
        let before = self.cpu.replace((at, figures.cpu_micros));
        let micros = before.map_or(0, |(_, before)| figures.cpu_micros.saturating_sub(before));
        if let Some((then, _)) = before {
            let seconds = at.duration_since(then).as_secs_f64();
            let millis = micros as f64 / 1000.0;
            self.cpu_millis = others::smoothed(self.cpu_millis, millis, seconds);
            if seconds > 0.0 {
                let peak = (millis / seconds).round() as u64;
                self.seen.peak.cpu_millis_peak = self.seen.peak.cpu_millis_peak.max(peak);
            }
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
            seen.recount = match &self.from {
                From::Pod(_, group) | From::Process(_, group) => group.clone().map(|group| Recount { group, before }),
            };
        }
        if seen.looks == 0 {
            seen.began = now;
        }
        (seen.at, seen.looks) = (now, seen.looks.saturating_add(1));
        micros
    }
}
