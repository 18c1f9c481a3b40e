//! What a command's whole process tree uses while it runs: the peaks that go into the history.
//!
//! The kernel adds up memory for control groups, and CPU for children that were waited for; `stoker run` works without
//! rights to the former, and a build's daemons are none of the latter. So the tree is read from `/proc`: who descends
//! from the command, or ever did, or belongs to a process group or session that one of these leads. All figures are
//! lower bounds: what starts and ends between two samples is seen only as CPU time of the parent that waited for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use procfs::ProcError;
use procfs::process::{Process, all_processes};

use crate::node::processes::{Seen, TreeTicks};

/// More processes than these are not followed.
const PROCESSES_MAX: usize = 4096;

/// In a larger tree memory is read the cheap way: `smaps_rollup` walks all pages of a process and holds its map.
const ROLLUPS_MAX: usize = 200;

/// CPU use is the mean over about this long.
const WINDOW: Duration = Duration::from_secs(1);

/// What a tree used.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peaks {
    /// The most anonymous, shared and swapped memory of all processes at one time; page cache does not count.
    pub(crate) memory_bytes_peak: u64,
    /// The most CPU over about a second, in thousandths of a core.
    pub(crate) cpu_millis_peak: u64,
    /// CPU time of all processes, ended ones included.
    pub(crate) cpu_time: Duration,
    /// The most processes at one time.
    pub(crate) processes_peak: u32,
}

/// Samples a process and all that descends from it.
///
/// The caller says when: every 100 ms at first, every second later. CPU time is whole when the last sample falls
/// between the command's end and its reaping (`waitid` with `WNOWAIT`), for a zombie still shows its times.
#[derive(Debug)]
pub(crate) struct TreeSampler {
    root: i32,
    /// Start time of the root; none where it was gone before the first look.
    root_start: Option<u64>,
    members: BTreeMap<i32, Seen>,
    /// Process groups and sessions that a member leads or led, as long as one of them is there.
    groups: BTreeSet<i32>,
    cpu: CpuTime,
    memory_bytes_peak: u64,
    processes_peak: u32,
}

impl TreeSampler {
    /// Begins with `root`, a process that runs and is not reaped before the sampler is dropped or told.
    pub(crate) fn new(root: Pid) -> Self {
        let root = root.as_raw();
        let stat = Process::new(root).and_then(|process| process.stat()).ok();
        let mut sampler = Self {
            root,
            root_start: stat.as_ref().map(|stat| stat.starttime),
            members: BTreeMap::new(),
            groups: BTreeSet::new(),
            cpu: CpuTime::default(),
            memory_bytes_peak: 0,
            processes_peak: 0,
        };
        sampler.sample();
        sampler
    }

    /// Looks once. Where `/proc` cannot be read, the sample is left out.
    pub(crate) fn sample(&mut self) {
        let Some((all, unreadable)) = self.all() else { return };
        let mut members = self.find(&all);
        // What is there but could not be read this time did not end.
        for (pid, member) in self.members.iter().filter(|(pid, _)| unreadable.contains(pid)) {
            members.entry(*pid).or_insert(*member);
        }
        self.cpu.add(&self.members, &members);
        self.members = members;

        let alive = || self.members.iter().filter(|(_, member)| !member.zombie).map(|(pid, _)| *pid);
        let processes = alive().count();
        let memory = if processes > ROLLUPS_MAX {
            let each: Vec<Resident> = alive().filter_map(resident).collect();
            // They may all map the same shared memory, so that it counts once: as often as there are processes would
            // be wrong by much, the largest of them is what one must have.
            let shared = each.iter().map(|memory| memory.shared).max().unwrap_or(0);
            each.iter().fold(shared, |sum, memory| sum.saturating_add(memory.private))
        } else {
            alive().map(proportional).fold(0, u64::saturating_add)
        };
        self.memory_bytes_peak = self.memory_bytes_peak.max(memory);
        self.processes_peak = self.processes_peak.max(u32::try_from(processes).unwrap_or(u32::MAX));
    }

    /// Those that descend from the root, without it, and are alive now: what is left over when it ended. Take a sample
    /// before.
    pub(crate) fn descendants(&self) -> Vec<Pid> {
        let lives = |pid: i32, member: &Seen| {
            let stat = Process::new(pid).and_then(|process| process.stat());
            stat.is_ok_and(|stat| stat.starttime == member.start && !Seen::of(&stat).zombie)
        };
        let others = self.members.iter().filter(|(pid, member)| **pid != self.root && lives(**pid, member));
        others.map(|(pid, _)| Pid::from_raw(*pid)).collect()
    }

    /// Looks a last time. `max_rss_bytes` is the largest process by the kernel's own count (`ru_maxrss`, times 1024): it
    /// counts file pages too, so it stands only where no sample saw any memory.
    pub(crate) fn finish(mut self, max_rss_bytes: Option<u64>) -> Peaks {
        self.sample();
        Peaks {
            memory_bytes_peak: match self.memory_bytes_peak {
                0 => max_rss_bytes.unwrap_or(0),
                seen => seen,
            },
            cpu_millis_peak: self.cpu.millis_peak(),
            cpu_time: self.cpu.time(),
            processes_peak: self.processes_peak,
        }
    }

    /// All processes of the machine, and those of ours that are there but could not be read.
    fn all(&self) -> Option<(BTreeMap<i32, Seen>, BTreeSet<i32>)> {
        let mut all = BTreeMap::new();
        let mut unreadable = BTreeSet::new();
        for process in all_processes().ok()? {
            match process.and_then(|process| process.stat()) {
                Ok(stat) => {
                    all.insert(stat.pid, Seen::of(&stat));
                }
                Err(ProcError::NotFound(_)) => {}
                // Reading the directory itself failed, or there are no more descriptors: nothing can be told.
                Err(_) => {
                    let there = |pid: &&i32| std::fs::exists(format!("/proc/{pid}")).unwrap_or(true);
                    unreadable = self.members.keys().filter(there).copied().collect();
                }
            }
        }
        unreadable.retain(|pid| !all.contains_key(pid));
        Some((all, unreadable))
    }

    /// The members among all processes: the root, former members, whoever is in their groups, and all that descends
    /// from these.
    fn find(&mut self, all: &BTreeMap<i32, Seen>) -> BTreeMap<i32, Seen> {
        let Some(root_start) = self.root_start else { return BTreeMap::new() };
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        let mut grouped: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        // Nothing that is older than the root descends from it, whatever its numbers say.
        for (pid, process) in all.iter().filter(|(_, process)| process.start >= root_start) {
            children.entry(process.parent).or_default().push(*pid);
            grouped.entry(process.group).or_default().push(*pid);
            grouped.entry(process.session).or_default().push(*pid);
        }
        let same = |pid: &i32, start: u64| all.get(pid).is_some_and(|process| process.start == start);
        let mut next: Vec<i32> = self.members.iter().filter(|(p, m)| same(p, m.start)).map(|(p, _)| *p).collect();
        if same(&self.root, root_start) {
            next.push(self.root);
        }
        next.extend(self.groups.iter().filter_map(|group| grouped.get(group)).flatten());
        let mut found = BTreeMap::new();
        while let Some(pid) = next.pop() {
            let Some(process) = all.get(&pid) else { continue };
            if found.len() >= PROCESSES_MAX || found.insert(pid, *process).is_some() {
                continue;
            }
            next.extend(children.get(&pid).into_iter().flatten());
            if process.group == pid || process.session == pid {
                self.groups.insert(pid);
                next.extend(grouped.get(&pid).into_iter().flatten());
            }
        }
        // A group without members is over, and its number may be given again.
        let in_use: BTreeSet<i32> = found.values().flat_map(|member| [member.group, member.session]).collect();
        self.groups.retain(|group| in_use.contains(group));
        found
    }
}

/// CPU time of a tree over its life, and over about a second.
#[derive(Debug)]
struct CpuTime {
    ticks: TreeTicks,
    /// Total by time, the last of which is the latest and the first about [`WINDOW`] older.
    window: VecDeque<(Instant, u64)>,
    /// When it began, and the total then.
    first: Option<(Instant, u64)>,
    millis_peak: Option<u64>,
    ticks_per_second: u64,
    /// No tree uses more than the machine has; more is CPU time that was seen late.
    millis_max: u64,
}

impl Default for CpuTime {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            ticks: TreeTicks::default(),
            window: VecDeque::new(),
            first: None,
            millis_peak: None,
            ticks_per_second: procfs::ticks_per_second().max(1),
            millis_max: u64::try_from(cores).unwrap_or(u64::MAX).saturating_mul(1000),
        }
    }
}

impl CpuTime {
    fn add(&mut self, before: &BTreeMap<i32, Seen>, after: &BTreeMap<i32, Seen>) {
        let total = self.ticks.add(before, after);
        let now = Instant::now();
        self.first.get_or_insert((now, total));
        self.window.push_back((now, total));
        while self.window.get(1).is_some_and(|(then, _)| now.duration_since(*then) >= WINDOW) {
            self.window.pop_front();
        }
        if let Some((then, total)) = self.window.front().copied()
            && now.duration_since(then) >= WINDOW
        {
            let millis = self.rate(then, total, now);
            self.millis_peak = self.millis_peak.max(Some(millis));
        }
    }

    /// Mean use since a point, in thousandths of a core.
    fn rate(&self, then: Instant, total: u64, now: Instant) -> u64 {
        let elapsed_ms = now.duration_since(then).as_millis().max(1);
        let ticks = u128::from(self.ticks.total().saturating_sub(total));
        let millis = ticks.saturating_mul(1_000_000) / u128::from(self.ticks_per_second) / elapsed_ms;
        u64::try_from(millis).unwrap_or(u64::MAX).min(self.millis_max)
    }

    /// Where it all took less than a window: the mean over all of it.
    fn millis_peak(&self) -> u64 {
        let whole = self.first.map(|(then, total)| self.rate(then, total, Instant::now()));
        self.millis_peak.or(whole).unwrap_or(0)
    }

    fn time(&self) -> Duration {
        let millis = u128::from(self.ticks.total()).saturating_mul(1000) / u128::from(self.ticks_per_second);
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

/// Memory of a process, its share only of what it shares: from `smaps_rollup` (Linux 5.4; proc(5)), or what
/// [`resident`] says where that is denied.
fn proportional(pid: i32) -> u64 {
    let rollup = Process::new(pid).and_then(|process| process.smaps_rollup());
    let fields = rollup.ok().and_then(|rollup| rollup.memory_map_rollup.0.into_iter().next());
    let shares = fields.and_then(|fields| {
        let field = |name: &str| fields.extension.map.get(name).copied();
        let swapped = field("SwapPss").unwrap_or(0);
        Some(field("Pss_Anon")?.saturating_add(field("Pss_Shmem")?).saturating_add(swapped))
    });
    shares.or_else(|| resident(pid).map(|memory| memory.private.saturating_add(memory.shared))).unwrap_or(0)
}

/// Memory of a process in bytes, without regard to who shares it.
struct Resident {
    /// Anonymous and swapped.
    private: u64,
    /// Shared memory and tmpfs.
    shared: u64,
}

/// From `/proc/PID/status`, which counts in KiB.
fn resident(pid: i32) -> Option<Resident> {
    let status = Process::new(pid).and_then(|process| process.status()).ok()?;
    let bytes = |kib: Option<u64>| kib.unwrap_or(0).saturating_mul(1024);
    let private = bytes(status.rssanon).saturating_add(bytes(status.vmswap));
    Some(Resident { private, shared: bytes(status.rssshmem) })
}

#[cfg(test)]
mod tests;
