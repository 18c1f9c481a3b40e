//! A build's processes, where it has no control group of its own: its holder, what descends from it, and what says by
//! `STOKER_LEASE` in its environment that it belongs there. Figures are estimates: what starts and ends between two looks
//! is seen only as CPU time of the parent that waited for it, and what processes still share after a fork counts for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use procfs::FromRead as _;
use procfs::process::Stat;

use super::cgroup::Figures;
use crate::node::process::{ProcessId, variable};
use crate::node::processes::{Seen, TreeTicks};

/// The variable that every build has.
const VARIABLE: &str = "STOKER_LEASE";
/// More processes than these of one tree are not followed.
const MEMBERS_MAX: usize = 4096;

/// All processes at one moment, for all trees alike.
#[derive(Debug, Default)]
pub(super) struct Scan {
    all: BTreeMap<i32, Seen>,
    children: BTreeMap<i32, Vec<i32>>,
    /// Those that name a lease.
    claims: BTreeMap<String, Vec<i32>>,
}

/// Reads scans, and remembers of whom it has asked for the variable: a process is asked once for each parent that it
/// has. Who loses its parent gets the first process for one, or one that takes orphans in (`PR_SET_CHILD_SUBREAPER`).
#[derive(Debug)]
pub(super) struct Scanner {
    host_root: PathBuf,
    asked: BTreeMap<(i32, u64, i32), Option<String>>,
}

impl Scanner {
    pub(super) fn new(host_root: &Path) -> Self {
        Self { host_root: host_root.to_owned(), asked: BTreeMap::new() }
    }

    /// Nothing where `/proc` cannot be read: then nobody has ended.
    pub(super) fn scan(&mut self) -> Option<Scan> {
        let proc = self.host_root.join("proc");
        let mut scan = Scan::default();
        for entry in fs::read_dir(&proc).ok()?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let read = fs::File::open(proc.join(pid.to_string()).join("stat"));
            let Ok(stat) = read.map_err(Into::into).and_then(Stat::from_read) else { continue };
            let seen = Seen::of(&stat);
            scan.children.entry(stat.ppid).or_default().push(pid);
            scan.all.insert(pid, seen);
        }
        self.claims(&mut scan);
        Some(scan)
    }

    fn claims(&mut self, scan: &mut Scan) {
        let mut asked = BTreeMap::new();
        for (pid, seen) in scan.all.iter().filter(|(_, seen)| !seen.zombie) {
            let key = (*pid, seen.start, seen.parent);
            let found = self.asked.remove(&key).unwrap_or_else(|| {
                variable(&self.host_root, *pid, VARIABLE).and_then(|value| String::from_utf8(value).ok())
            });
            if let Some(lease) = &found {
                scan.claims.entry(lease.clone()).or_default().push(*pid);
            }
            asked.insert(key, found);
        }
        self.asked = asked;
    }
}

/// One build's processes.
#[derive(Debug)]
pub(super) struct Tree {
    holder: ProcessId,
    members: BTreeMap<i32, Seen>,
    ticks: TreeTicks,
    /// Of each member, and of those that are gone.
    io: BTreeMap<i32, (u64, u64)>,
    io_gone: (u64, u64),
}

impl Tree {
    pub(super) fn new(holder: ProcessId) -> Self {
        Self { holder, members: BTreeMap::new(), ticks: TreeTicks::default(), io: BTreeMap::new(), io_gone: (0, 0) }
    }

    /// The number of the process that holds the lease.
    pub(super) const fn holder(&self) -> i32 {
        self.holder.pid
    }

    /// The members of this moment.
    pub(super) fn follow(&mut self, scan: &Scan, lease: &str) -> BTreeSet<i32> {
        let same = |pid: i32, start: u64| scan.all.get(&pid).is_some_and(|seen| seen.start == start);
        let mut next: Vec<i32> = self.members.iter().filter(|(p, m)| same(**p, m.start)).map(|(p, _)| *p).collect();
        next.extend(same(self.holder.pid, self.holder.start_ticks).then_some(self.holder.pid));
        next.extend(scan.claims.get(lease).into_iter().flatten());
        let mut found = BTreeSet::new();
        while let Some(pid) = next.pop() {
            let lives = scan.all.get(&pid).is_some_and(|seen| seen.start >= self.holder.start_ticks);
            if lives && found.len() < MEMBERS_MAX && found.insert(pid) {
                next.extend(scan.children.get(&pid).into_iter().flatten());
            }
        }
        found
    }

    /// What it uses; nothing where no process of it is left.
    pub(super) fn read(&mut self, scan: &Scan, lease: &str, host_root: &Path) -> Option<Figures> {
        let found = self.follow(scan, lease);
        let members: BTreeMap<i32, Seen> =
            found.into_iter().filter_map(|pid| Some((pid, *scan.all.get(&pid)?))).collect();
        let ticks = self.ticks.add(&self.members, &members);
        let (mut private, mut shared, mut processes) = (0_u64, 0, 0);
        let mut io = BTreeMap::new();
        for (pid, seen) in &members {
            let before = self.io.remove(pid).unwrap_or_default();
            io.insert(*pid, io_of(host_root, *pid).unwrap_or(before));
            if !seen.zombie {
                processes += 1;
                let memory = memory_of(host_root, *pid);
                private = private.saturating_add(memory.private);
                // They may all map the same shared memory, so that the largest part of it counts, once.
                shared = memory.shared.max(shared);
            }
        }
        let sum = |all: &BTreeMap<i32, (u64, u64)>, begin: (u64, u64)| {
            all.values().fold(begin, |sum, of| (sum.0.saturating_add(of.0), sum.1.saturating_add(of.1)))
        };
        self.io_gone = sum(&self.io, self.io_gone);
        let (io_read_bytes, io_written_bytes) = sum(&io, self.io_gone);
        (self.members, self.io) = (members, io);
        if processes == 0 {
            return None;
        }
        let micros = u128::from(ticks).saturating_mul(1_000_000) / u128::from(procfs::ticks_per_second().max(1));
        let memory_bytes = private.saturating_add(shared);
        Some(Figures {
            memory_bytes,
            unavailable_bytes: memory_bytes,
            cpu_micros: u64::try_from(micros).unwrap_or(u64::MAX),
            io_read_bytes,
            io_written_bytes,
            processes,
            ..Figures::default()
        })
    }
}

/// Memory of a process in bytes: proc_pid_status(5), which counts in KiB.
#[derive(Default)]
struct Memory {
    /// Anonymous and swapped.
    private: u64,
    /// Shared memory and tmpfs.
    shared: u64,
}

fn memory_of(host_root: &Path, pid: i32) -> Memory {
    let text = fs::read_to_string(host_root.join("proc").join(pid.to_string()).join("status")).unwrap_or_default();
    let field = |name: &str| colon_field(&text, name).unwrap_or(0).saturating_mul(1024);
    Memory { private: field("RssAnon").saturating_add(field("VmSwap")), shared: field("RssShmem") }
}

/// Bytes that really came from disks, and went there: proc_pid_io(5).
fn io_of(host_root: &Path, pid: i32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(host_root.join("proc").join(pid.to_string()).join("io")).ok()?;
    Some((colon_field(&text, "read_bytes")?, colon_field(&text, "write_bytes")?))
}

/// The number of a line `NAME: NUMBER`.
fn colon_field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse().ok()
}
