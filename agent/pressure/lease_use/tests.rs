//! Recorded control groups, and processes of this machine.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use futures_util::FutureExt as _;

use super::*;
use crate::node::process::start_ticks;
use tokio::sync::watch;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const RECORDED: &str = "6f1c9f0e-27b4-4f5e-9c3a-0d3f6b1e2a44";
const WRITTEN: &str = "0c7e4a52-91d3-4b6f-8e15-3a9f2d7c6b08";

fn tree(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cgroup").join(name)
}

fn pod(uid: &str) -> Holder {
    Holder::Pod { namespace: "builds".to_owned(), name: "build".to_owned(), uid: uid.to_owned() }
}

fn lease(id: &str) -> LeaseId {
    id.to_owned().try_into().unwrap()
}

#[test]
fn a_pod_under_v1_is_its_memory_without_cache_and_whom_its_limit_killed() {
    let root = tree("v1-hybrid-cgroupfs");
    let group = Layout::of(&root).of_pod(RECORDED).unwrap();
    assert_eq!(group.name, format!("kubepods/burstable/pod{RECORDED}"));
    let figures = group.read().unwrap();
    // Shared memory counts; nothing of the 20 MiB that were written was left as inactive cache.
    assert_eq!(figures.memory_bytes, 56_098_816);
    assert_eq!((figures.cpu_micros, figures.processes), (484_438, 1));
    // Counted in the container's group, and nowhere above.
    assert_eq!(figures.oom, OomCounters { kills: 1, at_limit: 125 });
    assert_eq!(group.memory_limit(), None);
    let container = Layout::of(&root).of_process(&root, 4242).unwrap();
    assert_eq!((container.memory_limit(), container.processes().unwrap()), (Some(96 * MIB), vec![4242]));
}

#[test]
fn a_pod_under_v2_is_found_as_each_driver_names_it() {
    for (name, path, oom) in [
        (
            "v2-systemd-containerd",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0c7e4a52_91d3_4b6f_8e15_3a9f2d7c6b08.slice",
            OomCounters { kills: 2, at_limit: 1 },
        ),
        ("v2-cgroupfs-crio", "kubepods/pod0c7e4a52-91d3-4b6f-8e15-3a9f2d7c6b08", OomCounters { kills: 1, at_limit: 0 }),
    ] {
        let group = Layout::of(&tree(name)).of_pod(WRITTEN).unwrap();
        let expected = Figures {
            memory_bytes: 5 * GIB + 64 * MIB - 1536 * MIB + 128 * MIB,
            unavailable_bytes: 5 * GIB + 64 * MIB - 1536 * MIB + 128 * MIB - 256 * MIB,
            cpu_micros: 183_400_250,
            io_read_bytes: 4_097_000,
            io_written_bytes: 8_194_000,
            processes: 37,
            oom,
        };
        assert_eq!((group.name.as_str(), group.read().unwrap()), (path, expected));
        assert_eq!(group.memory_limit(), Some(8 * GIB));
    }
}

#[test]
fn controllers_of_a_hybrid_machine_are_found_one_by_one() {
    let group = Layout::of(&tree("hybrid-unified-memory")).of_pod(WRITTEN).unwrap();
    let figures = group.read().unwrap();
    assert_eq!((figures.cpu_micros, figures.processes), (2_500_000, 4));
    assert_eq!(figures.memory_bytes, 5 * GIB + 64 * MIB - 1536 * MIB + 128 * MIB);
}

#[test]
fn paths_of_a_cgroup_namespace_are_led_back_to_the_hosts_root() {
    let root = tree("v2-systemd-containerd");
    let layout = Layout::of(&root);
    let group = layout.of_process(&root, 5151).unwrap();
    assert!(group.name.starts_with("kubepods.slice/") && group.name.ends_with(".scope"), "{}", group.name);
    assert_eq!(layout.of_process(&root, 5152), None, "below a group whose name is not known here");
    let root = tree("v2-cgroupfs-crio");
    assert_eq!(Layout::of(&root).of_process(&root, 77), None, "the root group is nobody's own");
    assert_eq!(Layout::of(&root).of_process(&root, 78), None);
}

#[test]
fn a_uid_never_becomes_a_path() {
    let layout = Layout::of(&tree("v2-cgroupfs-crio"));
    for uid in ["", "..", "x/../../pod", "a b", &"a".repeat(65)] {
        assert_eq!(layout.of_pod(uid), None, "{uid:?}");
    }
}

#[test]
fn peaks_and_kills_outlive_the_group() {
    let place = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(tree("v2-cgroupfs-crio")).arg(place.path().join("host")).status();
    assert!(copied.unwrap().success());
    let root = place.path().join("host");
    let group = root.join(format!("sys/fs/cgroup/kubepods/pod{WRITTEN}"));
    let mut meter = Meter::new(&root);
    let held = [(lease("one"), pod(WRITTEN)), (lease("two"), pod("not-there-yet"))];
    let begin = Instant::now();
    let second = Duration::from_secs(1);
    meter.look(&held, &Cluster::default(), begin, Timestamp(1));
    std::fs::write(group.join("memory.current"), "7516192768\n").unwrap();
    std::fs::write(group.join("cpu.stat"), "usage_usec 187400250\n").unwrap();
    meter.look(&held, &Cluster::default(), begin + second, Timestamp(2));
    std::fs::write(group.join("memory.current"), "1073741824\n").unwrap();
    meter.look(&held, &Cluster::default(), begin + second * 2, Timestamp(3));
    std::fs::rename(&group, place.path().join("gone")).unwrap();
    meter.look(&held, &Cluster::default(), begin + second * 3, Timestamp(4));
    meter.look(&[], &Cluster::default(), begin + second * 4, Timestamp(5));
    let seen = &meter.known[&lease("one")].seen;
    assert!(seen.ended && seen.at == Timestamp(3), "{seen:?}");
    assert_eq!(seen.now, Amounts::default());
    assert_eq!(seen.peak.memory_bytes_peak, 7 * GIB - 1536 * MIB + 128 * MIB);
    assert_eq!((seen.peak.cpu_millis_peak, seen.peak.processes_peak), (4000, 37));
    assert_eq!(seen.oom, Some(OomCounters { kills: 1, at_limit: 0 }));
    assert_eq!(meter.known[&lease("two")].seen, LeaseUse::default(), "a pod without a group says nothing");
    meter.look(&[], &Cluster::default(), begin + second * 4 + KEPT, Timestamp(6));
    assert!(meter.known.is_empty(), "it is forgotten in the end");
}

#[test]
fn others_use_what_the_machine_uses_less_the_leases_at_that_very_look() {
    let place = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(tree("v2-cgroupfs-crio")).arg(place.path().join("host")).status();
    assert!(copied.unwrap().success());
    let root = place.path().join("host");
    let group = root.join(format!("sys/fs/cgroup/kubepods/pod{WRITTEN}"));
    let kib = |bytes: u64| bytes >> 10;
    let machine = |available: u64, busy: u64, idle: u64| {
        let (total, available, swapped) = (kib(64 * GIB), kib(available), kib(2 * GIB));
        let memory =
            format!("MemTotal: {total} kB\nMemAvailable: {available} kB\nSwapTotal: {swapped} kB\nSwapFree: 0 kB\n");
        std::fs::write(root.join("proc/meminfo"), memory).unwrap();
        let cpu = format!("{busy} 0 0 {idle} 0 0 0 0 0 0");
        let rest = "intr 0\nctxt 0\nbtime 1700000000\nprocesses 1\nprocs_running 1\nprocs_blocked 0\nsoftirq 0\n";
        std::fs::write(root.join("proc/stat"), format!("cpu  {cpu}\ncpu0 {cpu}\ncpu1 {cpu}\n{rest}")).unwrap();
    };
    let mut meter = Meter::new(&root);
    let held = [(lease("one"), pod(WRITTEN))];
    let begin = Instant::now();
    machine(40 * GIB, 1000, 100_000);
    // Without its active file pages, which the machine counts as available; both sides with what was swapped out.
    let own = 5 * GIB + 64 * MIB - 1536 * MIB + 128 * MIB - 256 * MIB;
    let others = meter.look(&held, &Cluster::default(), begin, Timestamp(1)).others.unwrap();
    assert_eq!(others, Others { cpu_millis: None, memory_bytes: 26 * GIB - own, pods: Amounts::default() });
    // A second of two CPUs: 150 ticks of 200 are busy, 100 of them the lease's.
    machine(39 * GIB, 1150, 100_050);
    std::fs::write(group.join("cpu.stat"), "usage_usec 184400250\n").unwrap();
    let others = meter.look(&held, &Cluster::default(), begin + Duration::from_secs(1), Timestamp(2)).others.unwrap();
    assert_eq!(others, Others { cpu_millis: Some(500), memory_bytes: 27 * GIB - own, pods: Amounts::default() });
    // Released, what still runs of it is others'.
    let others = meter.look(&[], &Cluster::default(), begin + Duration::from_secs(2), Timestamp(3)).others.unwrap();
    assert_eq!(others.memory_bytes, 27 * GIB);
}

#[tokio::test]
async fn a_lease_that_comes_or_goes_is_looked_at_soon_and_not_with_the_next_turn() {
    let (tell, mut held) = watch::channel(HeldLeases::default());
    let mut cluster = watch::Sender::default().subscribe();
    let turn = Turn { latest: Some(Instant::now() + Duration::from_secs(3600)), ..Turn::default() };
    assert!(turn.comes(&mut held, &mut cluster).now_or_never().is_none());
    tell.send_replace(Arc::new(vec![(lease("one"), pod(WRITTEN))]));
    assert!(turn.comes(&mut held, &mut cluster).now_or_never().is_some());
    // Not for more than its part of the time.
    let turn = Turn::after(Instant::now(), Duration::from_secs(3600));
    tell.send_replace(HeldLeases::default());
    assert!(turn.comes(&mut held, &mut cluster).now_or_never().is_none());
}

/// A child that holds memory, with a descendant that left its group, session and parent; ended with the test.
struct Holding(Child, i32);

impl Holding {
    fn start(lease: &str) -> Self {
        let script = "import os,time\n\
                      r,w=os.pipe()\n\
                      if os.fork()==0:\n    os.setsid()\n    if os.fork()>0: os._exit(0)\n    \
                      b=bytearray(b'b'*(16<<20)); os.write(w,str(os.getpid()).encode()); time.sleep(600)\n\
                      os.wait(); a=bytearray(b'a'*(32<<20))\n\
                      print(os.read(r,20).decode(),flush=True); time.sleep(600)";
        let mut child = Command::new("python3");
        let child = child.args(["-c", script]);
        let mut child = child.env("STOKER_LEASE", lease).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self(child, line.trim().parse().unwrap())
    }

    fn holder(&self) -> Holder {
        let pid = i32::try_from(self.0.id()).unwrap();
        let start_ticks = i64::try_from(start_ticks(pid).unwrap()).unwrap();
        Holder::Process { pid: pid.into(), start_ticks }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.1), nix::sys::signal::Signal::SIGKILL);
    }
}

#[test]
fn processes_are_followed_from_the_holder_and_by_their_environment() {
    let mut holding = Holding::start("one");
    let mut meter = Meter::new(Path::new("/"));
    let held = [(lease("one"), holding.holder())];
    meter.look(&held, &Cluster::default(), Instant::now(), Timestamp(1));
    let seen = meter.known[&lease("one")].seen.clone();
    assert_eq!((seen.source, seen.peak.processes_peak, seen.oom), (UseSource::Processes, 2, None));
    assert!((48 * MIB..128 * MIB).contains(&seen.now.memory_bytes), "{}", seen.now.memory_bytes);
    // The holder ends; what it left behind still counts.
    holding.0.kill().unwrap();
    holding.0.wait().unwrap();
    meter.look(&held, &Cluster::default(), Instant::now(), Timestamp(2));
    let seen = meter.known[&lease("one")].seen.clone();
    assert!(!seen.ended && (16 * MIB..48 * MIB).contains(&seen.now.memory_bytes), "{seen:?}");
    assert!(seen.peak.memory_bytes_peak >= 48 * MIB);
    drop(holding);
    let end = Instant::now() + Duration::from_secs(10);
    while !meter.known[&lease("one")].seen.ended {
        assert!(Instant::now() < end, "it never ends");
        meter.look(&held, &Cluster::default(), Instant::now(), Timestamp(3));
    }
    assert_eq!(meter.known[&lease("one")].seen.now, Amounts::default());
}

#[tokio::test]
async fn what_is_seen_is_published() {
    let (_held, held) = watch::channel(Arc::new(vec![(lease("one"), pod(WRITTEN))]));
    let meter = LeaseMeter::start(
        &tree("v2-cgroupfs-crio"),
        held,
        watch::Sender::default().subscribe(),
        &CancellationToken::new(),
    );
    let mut views = meter.subscribe();
    let seen = views.wait_for(|look| look.leases.contains_key(&lease("one")));
    let seen = tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap().unwrap().clone();
    assert_eq!(seen.leases[&lease("one")].now.memory_bytes, meter.view().leases[&lease("one")].now.memory_bytes);
    tokio::time::timeout(Duration::from_secs(30), meter.shutdown()).await.unwrap();
}

#[test]
fn the_node_s_own_pods_are_looked_at_by_the_hash_of_their_file_and_stay_with_the_system() {
    let own = stoker_core::cluster::StaticPod { hash: WRITTEN.to_owned(), ..Default::default() };
    let requests = Amounts { cpu_millis: 125, memory_bytes: GIB, ..Amounts::default() };
    let mirror =
        stoker_core::cluster::Pod { uid: RECORDED.to_owned(), own: Some(own.into()), requests, ..Default::default() };
    let all = stoker_core::cluster::Pods::new([(mirror.uid.clone(), Arc::new(mirror))].into());
    let cluster = Cluster { asked: true, pods: Some(Arc::new(all)), ..Cluster::default() };
    let layout = Layout::of(&tree("v2-systemd-containerd"));
    let sum = OtherPods::default().look(&layout, &cluster, &BTreeSet::new(), Instant::now());
    assert_eq!(sum.own.get(WRITTEN).unwrap().memory_bytes, 5 * GIB + 64 * MIB - 1536 * MIB + 128 * MIB);
    assert_eq!((sum.of_the_system, sum.held, sum.used), (requests, Amounts::default(), Leases::default()));
}

#[test]
fn the_limit_of_all_pods_is_found_under_each_name() {
    for (name, file, text, expected) in [
        ("kubepods.slice", "memory.max", "1073741824", PodsLimit::Bytes(GIB)),
        ("kubelet.slice/kubelet-kubepods.slice", "memory.max", "max", PodsLimit::Nothing),
        // A group that is handed no memory has no such file.
        ("kubepods", "cgroup.procs", "", PodsLimit::Unseen),
        ("system.slice", "memory.max", "max", PodsLimit::Unseen),
    ] {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("sys/fs/cgroup").join(name);
        std::fs::create_dir_all(&group).unwrap();
        std::fs::write(root.path().join("sys/fs/cgroup/cgroup.controllers"), "cpu io memory pids\n").unwrap();
        std::fs::write(group.join(file), format!("{text}\n")).unwrap();
        assert_eq!(Layout::of(root.path()).limit_of_all_pods(), expected, "{name}");
    }
    let v1 = tempfile::tempdir().unwrap();
    let group = v1.path().join("sys/fs/cgroup/memory/kubepods");
    std::fs::create_dir_all(&group).unwrap();
    std::fs::write(group.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
    assert_eq!(Layout::of(v1.path()).limit_of_all_pods(), PodsLimit::Nothing);
}
