//! A build's control group: where it is under cgroup v1, v2 and hybrid, and what its files say.
//!
//! All is read below the host's root: a container's own `/sys/fs/cgroup` shows its own group only. Of each controller it
//! is found out by itself which hierarchy has it: on a hybrid machine some are in `unified`, the others are not.
//!
//! Formats: the kernel's `Documentation/admin-guide/cgroup-v2.rst`, and `cgroup-v1/{memory,cpuacct,pids}.rst`. Names of
//! pods' groups: the kubelet's `cgroup_manager_linux.go`. The groups of containers below a pod's (`cri-containerd-ID.scope`,
//! `crio-ID.scope`, or the plain ID) need not be known: a pod's group counts all of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use stoker_core::examination::PodsLimit;
use stoker_core::sizing::OomCounters;

use super::Limits;

/// Groups below a pod's, and how deep, whose counters are added up under v1, where they are each group's own.
const GROUPS_MAX: usize = 256;
const DEPTH_MAX: usize = 4;

/// Where the controllers of this machine are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    memory: Option<Home>,
    cpu: Option<Home>,
    io: Option<Home>,
    pids: Option<Home>,
    /// Where CPU is bounded: under v1 that need not be where it is counted.
    quota: Option<Home>,
}

/// A hierarchy that has a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Home {
    unified: bool,
    /// As `/proc/PID/cgroup` calls it; empty for the unified one.
    controller: &'static str,
    root: PathBuf,
}

impl Layout {
    pub(super) fn of(host_root: &Path) -> Self {
        let root = host_root.join("sys/fs/cgroup");
        let find = |controller: &'static str, v1: &[&str]| {
            let unified = [root.clone(), root.join("unified")].into_iter().find(|home| {
                let listed = fs::read_to_string(home.join("cgroup.controllers")).unwrap_or_default();
                listed.split_whitespace().any(|found| found == if controller == "cpuacct" { "cpu" } else { controller })
            });
            if let Some(root) = unified {
                return Some(Home { unified: true, controller: "", root });
            }
            // On v1 the controller of I/O is called `blkio`.
            let name = if controller == "io" { "blkio" } else { controller };
            let root = v1.iter().map(|folder| root.join(folder)).find(|folder| folder.is_dir())?;
            Some(Home { unified: false, controller: name, root })
        };
        Self {
            memory: find("memory", &["memory"]),
            cpu: find("cpuacct", &["cpuacct", "cpu,cpuacct"]),
            io: find("io", &["blkio"]),
            pids: find("pids", &["pids"]),
            quota: find("cpu", &["cpu,cpuacct", "cpu"]),
        }
    }

    /// The group that a process is in; nothing where it has no memory controller, or is in the root group.
    pub(super) fn of_process(&self, host_root: &Path, pid: i32) -> Option<Group> {
        let group = self.group(Self::path_of_process(host_root, pid)?);
        group.memory.is_some().then_some(group)
    }

    /// What a process is kept to, whoever else is in its groups.
    pub(super) fn limits_of_process(&self, host_root: &Path, pid: i32) -> Limits {
        Self::path_of_process(host_root, pid).map(|path| self.limits(path)).unwrap_or_default()
    }

    /// What a pod is kept to.
    pub(super) fn limits_of_pod(&self, uid: &str) -> Limits {
        let names = pod_names(uid);
        self.limits(|home| names.iter().find(|name| home.root.join(name).is_dir()).cloned())
    }

    fn limits(&self, path: impl Fn(&Home) -> Option<String>) -> Limits {
        let group = |home: &Option<Home>| {
            let home = home.as_ref()?;
            Some((home.root.join(path(home)?), home.root.clone()))
        };
        Limits::of(group(&self.quota), group(&self.memory))
    }

    /// What the group of all pods is kept to, by itself or by one above it.
    pub(super) fn limit_of_all_pods(&self) -> PodsLimit {
        let Some(home) = &self.memory else { return PodsLimit::Unseen };
        let found = ALL_PODS.iter().map(|name| home.root.join(name)).find(|group| group.is_dir());
        let files = ["memory.max", "memory.limit_in_bytes"];
        let Some(path) = found.filter(|group| files.iter().any(|file| group.join(file).is_file())) else {
            return PodsLimit::Unseen;
        };
        let limits = Limits::of(None, Some((path, home.root.clone())));
        limits.memory_bytes.map_or(PodsLimit::Nothing, PodsLimit::Bytes)
    }

    /// The path of its group in each hierarchy.
    fn path_of_process(host_root: &Path, pid: i32) -> Option<impl Fn(&Home) -> Option<String>> {
        let proc = |pid: &str| fs::read_to_string(host_root.join("proc").join(pid).join("cgroup")).ok();
        let (text, first) = (proc(&pid.to_string())?, proc("1").unwrap_or_default());
        Some(move |home: &Home| {
            let path = path_of(&text, home)?;
            let ups = |path: &str| path.split('/').filter(|part| *part == "..").count();
            // Seen from a cgroup namespace, paths begin at its root. The first process of the host is at the top.
            let above = ups(path);
            if above > 0 && above != path_of(&first, home).map_or(0, ups) {
                return None;
            }
            let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | "..")).collect();
            (!parts.is_empty()).then(|| parts.join("/"))
        })
    }

    /// The group of a pod; nothing where there is none (yet).
    pub(super) fn of_pod(&self, uid: &str) -> Option<Group> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if uid.is_empty() || uid.len() > 64 || !uid.bytes().all(plain) {
            return None;
        }
        let names = pod_names(uid);
        // Looked for once in each hierarchy, whichever controllers that has.
        let found: RefCell<BTreeMap<PathBuf, Option<String>>> = RefCell::default();
        let group = self.group(|home| {
            let look = || names.iter().find(|name| home.root.join(name).is_dir()).cloned();
            found.borrow_mut().entry(home.root.clone()).or_insert_with(look).clone()
        });
        group.memory.is_some().then_some(group)
    }

    fn group(&self, path: impl Fn(&Home) -> Option<String>) -> Group {
        let place = |home: &Option<Home>| {
            let home = home.as_ref()?;
            Some(Place { unified: home.unified, path: home.root.join(path(home)?) })
        };
        let name = self.memory.as_ref().and_then(&path).unwrap_or_default();
        Group { name, memory: place(&self.memory), cpu: place(&self.cpu), io: place(&self.io), pids: place(&self.pids) }
    }
}

/// The path in `/proc/PID/cgroup`: lines `ID:CONTROLLERS:PATH`, `0::PATH` for the unified hierarchy; cgroups(7).
fn path_of<'a>(text: &'a str, home: &Home) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let same = match home.unified {
            true => id == "0" && controllers.is_empty(),
            false => controllers.split(',').any(|controller| controller == home.controller),
        };
        same.then_some(path)
    })
}

/// The group of all pods, as [`pod_names`] has it.
const ALL_PODS: [&str; 4] = ["kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"];

/// As a kubelet names it with its systemd and its cgroupfs driver, for each class; also below `kubelet`, which is what
/// nodes in containers (kind, minikube) have as `cgroupRoot`.
fn pod_names(uid: &str) -> Vec<String> {
    let escaped = uid.replace('-', "_");
    let mut names = Vec::new();
    for class in ["burstable", "besteffort", ""] {
        let (dash, slash) = match class {
            "" => (String::new(), String::new()),
            class => (format!("-{class}"), format!("/{class}")),
        };
        let slice = |prefix: &str| match class {
            "" => format!("{prefix}kubepods-pod{escaped}.slice"),
            _ => format!("{prefix}kubepods{dash}.slice/{prefix}kubepods{dash}-pod{escaped}.slice"),
        };
        names.push(format!("kubepods.slice/{}", slice("")));
        names.push(format!("kubepods{slash}/pod{uid}"));
        names.push(format!("kubelet.slice/kubelet-kubepods.slice/{}", slice("kubelet-")));
        names.push(format!("kubelet/kubepods{slash}/pod{uid}"));
    }
    names
}

/// A build's group, in each hierarchy that has one of the controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Its path in the hierarchy of the memory controller.
    pub(super) name: String,
    memory: Option<Place>,
    cpu: Option<Place>,
    io: Option<Place>,
    pids: Option<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    unified: bool,
    path: PathBuf,
}

/// What a group's files say.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Figures {
    /// All but what can be dropped at once: tmpfs, shared and swapped memory are in it.
    pub(super) memory_bytes: u64,
    /// The same without any page cache, nor what else the machine counts as available (`MemAvailable`).
    pub(super) unavailable_bytes: u64,
    /// CPU time so far, in microseconds.
    pub(super) cpu_micros: u64,
    pub(super) io_read_bytes: u64,
    pub(super) io_written_bytes: u64,
    pub(super) processes: u32,
    pub(super) oom: OomCounters,
}

impl Group {
    /// Looks at it.
    ///
    /// # Errors
    /// Its memory cannot be read: it is gone. Other figures that are not there are 0.
    pub(super) fn read(&self) -> io::Result<Figures> {
        let memory = self.memory()?;
        let (io_read_bytes, io_written_bytes) = self.io.as_ref().map(io_bytes).unwrap_or_default();
        let processes = self.pids.as_ref().and_then(|place| number(&place.path.join("pids.current")).ok());
        Ok(Figures {
            memory_bytes: memory.used_bytes,
            unavailable_bytes: memory.unavailable_bytes,
            cpu_micros: self.cpu.as_ref().and_then(cpu_micros).unwrap_or(0),
            io_read_bytes,
            io_written_bytes,
            processes: u32::try_from(processes.unwrap_or(0)).unwrap_or(u32::MAX),
            oom: self.oom(),
        })
    }

    /// Memory, what of it is not available, and CPU time in microseconds: two files, for what there may be a thousand of.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn read_briefly(&self) -> io::Result<(u64, u64, u64)> {
        let memory = self.memory()?;
        Ok((memory.used_bytes, memory.unavailable_bytes, self.cpu.as_ref().and_then(cpu_micros).unwrap_or(0)))
    }

    fn memory(&self) -> io::Result<Memory> {
        let place = self.memory.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if place.unified { memory_v2(&place.path) } else { memory_v1(&place.path) }
    }

    /// Its kills, and those below it; none where it is gone.
    pub(super) fn oom(&self) -> OomCounters {
        let mut left = GROUPS_MAX;
        match &self.memory {
            Some(place) if place.unified => events_v2(&place.path),
            Some(place) => events_v1(&place.path, DEPTH_MAX, &mut left),
            None => OomCounters::default(),
        }
    }

    /// Whether its CPU time is its own too.
    pub(super) const fn counts_cpu(&self) -> bool {
        self.cpu.is_some()
    }

    /// Its own limit of memory; unset: none, or it cannot be read.
    pub(super) fn memory_limit(&self) -> Option<u64> {
        // v1 writes "none" as the largest multiple of a page.
        const NONE_FROM: u64 = 1 << 62;
        let place = self.memory.as_ref()?;
        let file = if place.unified { "memory.max" } else { "memory.limit_in_bytes" };
        number(&place.path.join(file)).ok().filter(|limit| *limit < NONE_FROM)
    }

    /// Whether anything runs in it or below it; nothing where it is gone.
    pub(super) fn populated(&self) -> Option<bool> {
        let place = self.memory.as_ref()?;
        if place.unified {
            let events = fs::read_to_string(place.path.join("cgroup.events")).ok()?;
            return field(&events, "populated").map(|populated| populated > 0);
        }
        place.path.is_dir().then(|| has_processes(&place.path, DEPTH_MAX, &mut GROUPS_MAX.clone()))
    }

    /// Whether there is such a group (still).
    pub(super) fn is_there(&self) -> bool {
        self.memory.as_ref().is_some_and(|place| place.path.is_dir())
    }

    /// The processes in it, not those of groups below.
    pub(super) fn processes(&self) -> Option<Vec<i32>> {
        let text = fs::read_to_string(self.memory.as_ref()?.path.join("cgroup.procs")).ok()?;
        Some(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

fn number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The value of a line `NAME VALUE`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

struct Memory {
    used_bytes: u64,
    unavailable_bytes: u64,
}

impl Memory {
    /// `inactive` is cache that can be dropped at once, `available` what else the machine counts as available.
    const fn of(current: u64, inactive: u64, available: u64, swapped: u64) -> Self {
        let used = current.saturating_sub(inactive);
        let unavailable = used.saturating_sub(available);
        Self { used_bytes: used.saturating_add(swapped), unavailable_bytes: unavailable.saturating_add(swapped) }
    }
}

fn memory_v2(path: &Path) -> io::Result<Memory> {
    let stat = fs::read_to_string(path.join("memory.stat"))?;
    let swapped = number(&path.join("memory.swap.current")).unwrap_or(0);
    let current = number(&path.join("memory.current"))?;
    let of = |name: &str| field(&stat, name).unwrap_or(0);
    let available = of("active_file").saturating_add(of("slab_reclaimable"));
    Ok(Memory::of(current, of("inactive_file"), available, swapped))
}

fn memory_v1(path: &Path) -> io::Result<Memory> {
    let stat = fs::read_to_string(path.join("memory.stat"))?;
    let usage = number(&path.join("memory.usage_in_bytes"))?;
    let of = |name: &str| field(&stat, name).unwrap_or(0);
    Ok(Memory::of(usage, of("total_inactive_file"), of("total_active_file"), of("total_swap")))
}

fn events_v2(path: &Path) -> OomCounters {
    let text = fs::read_to_string(path.join("memory.events")).unwrap_or_default();
    OomCounters { kills: field(&text, "oom_kill").unwrap_or(0), at_limit: field(&text, "oom").unwrap_or(0) }
}

fn events_v1(path: &Path, depth: usize, left: &mut usize) -> OomCounters {
    let text = fs::read_to_string(path.join("memory.oom_control")).unwrap_or_default();
    let mut sum = OomCounters {
        // Since Linux 4.13.
        kills: field(&text, "oom_kill").unwrap_or(0),
        at_limit: number(&path.join("memory.failcnt")).unwrap_or(0),
    };
    let below = (depth > 0).then(|| fs::read_dir(path)).into_iter().flatten().flatten().flatten();
    for group in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let Some(rest) = left.checked_sub(1) else { break };
        *left = rest;
        sum = sum.plus(events_v1(&group.path(), depth - 1, left));
    }
    sum
}

/// More groups than are looked at may have some.
fn has_processes(path: &Path, depth: usize, left: &mut usize) -> bool {
    if fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| !text.trim().is_empty()) {
        return true;
    }
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    let mut groups = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.any(|group| {
        let Some(rest) = left.checked_sub(1) else { return true };
        *left = rest;
        depth == 0 || has_processes(&group.path(), depth - 1, left)
    })
}

fn cpu_micros(place: &Place) -> Option<u64> {
    if place.unified {
        return field(&fs::read_to_string(place.path.join("cpu.stat")).ok()?, "usage_usec");
    }
    Some(number(&place.path.join("cpuacct.usage")).ok()? / 1000)
}

/// Read and written, over all devices.
fn io_bytes(place: &Place) -> (u64, u64) {
    if place.unified {
        let text = fs::read_to_string(place.path.join("io.stat")).unwrap_or_default();
        let sum = |name: &str| {
            let parts = text.split_whitespace().filter_map(|part| part.strip_prefix(name)?.parse::<u64>().ok());
            parts.fold(0, u64::saturating_add)
        };
        return (sum("rbytes="), sum("wbytes="));
    }
    let file = place.path.join("blkio.throttle.io_service_bytes_recursive");
    let text = fs::read_to_string(file).unwrap_or_default();
    let sum = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(name)?.1.trim().parse::<u64>().ok());
        lines.fold(0, u64::saturating_add)
    };
    (sum(" Read "), sum(" Write "))
}
