//! The samplers on recorded trees, and the task on files that change.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

use stoker_core::pressure::{DiskReading, Stall};
use stoker_core::reason::Code;

use super::sample::{CpuMeter, Ticks};
use super::*;
use crate::config::{self, Add, Config, Floor, Listen, Node, Pool, Repositories, Share, TimeBudget, Workspaces};

const LIMIT: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

fn recorded(tree: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/proc").join(tree)
}

fn nothing() -> Floor {
    Floor { bytes: Share::Absolute(0), inodes: Share::Absolute(0) }
}

fn pool(path: &Path, mount_required: bool) -> Pool {
    Pool {
        name: "data".to_owned(),
        path: path.to_owned(),
        mount_required,
        uuid: None,
        seal: false,
        floor: nothing(),
        directories: Vec::new(),
    }
}

fn configured(config: Config) -> Configured {
    watch::Sender::new(Arc::new(config)).subscribe()
}

fn config(host_root: &Path) -> Config {
    Config {
        state: PathBuf::new(),
        node: Node {
            name: "ghost".to_owned(),
            reserve: Amounts::default(),
            others_cpu_counts: true,
            host_root: host_root.to_owned(),
            root_floor: nothing(),
            filesystems: Vec::new(),
        },
        pools: Vec::new(),
        repositories: Repositories {
            git: config::git::GitChild {
                user: None,
                memory_bytes: 1 << 30,
                processes: 64,
                helper: None,
                personal: false,
            },
            credentials: Vec::new(),
            forges: Vec::new(),
            pool: "data".to_owned(),
            limit: None,
            refresh: SLOW_EVERY,
            parallel: 1,
            parallel_per_host: 1,
            fetch_within: SLOW_EVERY,
            check: SLOW_EVERY,
            seeds: Vec::new(),
            add: Add::Declared,
            allow: Vec::new(),
            protocols: Vec::new(),
            upkeep: config::Upkeep::default(),
            min_age: Duration::from_secs(3600),
            paths: None,
            mirrors: Vec::new(),
            manifests: Vec::new(),
            submodules: config::Submodules { depth: 1, repositories: 1 },
            lfs: config::Lfs { object_limit: 1, limit: None },
            serve: config::Serve::default(),
        },
        workspaces: Workspaces { pool: "data".to_owned(), ..Workspaces::default() },
        keeping: config::Keeping::default(),
        pressure: config::Pressure {
            memory_floor: Share::Basis(500),
            memory_narrow: Share::Basis(1000),
            disk_forecast: Duration::ZERO,
            control_plane: None,
            hold: Duration::ZERO,
        },
        admission: config::Admission {
            leases_max: 1,
            tickets_max: 1,
            time_budget: TimeBudget::End,
            pass_for: Duration::ZERO,
            age_after: Duration::ZERO,
            tenants: Arc::default(),
        },
        sizing: config::Sizing::default(),
        kubernetes: config::Kubernetes::none(),
        listen: Listen { socket: None, grpc: None, grpc_tls: None, http: None, http_tls: None, private_git: false },
        volume: None,
        access: config::Access::default(),
    }
}

/// One look at a recorded tree, with the pools that there are.
fn look_once(tree: &str, pools: &Pools, reserved: Amounts) -> PressureView {
    let config = configured(config(&recorded(tree)));
    let disks = DiskProbe::new(config.clone()).measure(pools);
    looker(config, reserved).look(&disks, Timestamp(1), true, None)
}

fn no_cluster() -> watch::Receiver<Arc<Cluster>> {
    watch::Sender::new(Arc::new(Cluster::default())).subscribe()
}

fn looker(config: Configured, reserved: Amounts) -> Looker {
    let probe = watch::Sender::new(Probe::default()).subscribe();
    Looker::new(config, watch::Sender::new(reserved).subscribe(), no_cluster(), probe)
}

fn codes(view: &PressureView) -> Vec<Code> {
    view.gate.reasons.iter().map(|reason| reason.code).collect()
}

#[test]
fn a_calm_node_is_read_in_full_and_open() {
    let view = look_once("node-32cpu-62g", &Pools::open(&[]), Amounts::default());
    let memory = view.readings.memory.unwrap();
    assert_eq!((memory.total_bytes, memory.available_bytes), ((65_536_000 << 10) - (1 << 30), 51_380_224 << 10));
    let known = |some_avg10, some_avg60, full_avg10, full_avg60| {
        StallReading::Known(Stall { some_avg10, some_avg60, full_avg10, full_avg60, full_now: 0 })
    };
    assert_eq!(view.readings.memory_stall, known(0, 4, 0, 3));
    assert_eq!(view.readings.cpu_stall, known(1234, 987, 0, 0));
    assert_eq!(view.readings.io_stall, known(321, 210, 105, 80));
    assert_eq!(view.readings.cpu, None, "one look shows no use");
    assert!(matches!(view.readings.root, DiskReading::Known(disk) if disk.total_bytes > 0));
    assert_eq!((view.gate.state, codes(&view)), (GateState::Open, vec![]));
}

#[test]
fn what_the_trigger_says_shuts_the_gate_at_once_where_anything_stalled() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("node");
    let copied = std::process::Command::new("cp").arg("-r").arg(recorded("node-32cpu-62g")).arg(&root).status();
    assert!(copied.unwrap().success());
    let stalled = |total_us: u64| {
        let line = |kind: &str| format!("{kind} avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}\n");
        fs::write(root.join("proc/pressure/memory"), line("some") + &line("full")).unwrap();
    };
    let config = configured(config(&root));
    let disks = DiskProbe::new(config.clone()).measure(&Pools::open(&[]));
    let mut looker = looker(config, Amounts::default());
    let mut gate = |at, told| looker.look(&disks, Timestamp(at), true, told).gate.state;
    stalled(1_000_000);
    assert_eq!(gate(1000, None), GateState::Open);
    assert_eq!(gate(2000, Some(Stalled::Full)), GateState::Open, "a trigger that was just made says it of nothing");
    stalled(1_030_000);
    assert_eq!(gate(3000, Some(Stalled::Some)), GateState::Open, "that is worth a look");
    stalled(1_060_000);
    assert_eq!(gate(4000, Some(Stalled::Full)), GateState::Shut, "the totals show little of it");
}

#[test]
fn a_node_that_compilers_filled_is_shut_with_figures() {
    let view = look_once("node-32cpu-62g-full", &Pools::open(&[]), Amounts::default());
    assert_eq!((view.gate.state, codes(&view)), (GateState::Shut, vec![Code::MemoryFloor, Code::MemoryPressure]));
    assert_eq!(view.gate.reasons[0].available, 1_468_006 << 10);
}

#[test]
fn kernels_that_do_not_tell_of_stalls_are_no_failure() {
    let view = look_once("node-4cpu-no-psi", &Pools::open(&[]), Amounts::default());
    assert_eq!((view.readings.memory_stall, view.gate.state), (StallReading::Untold, GateState::Open));
    let view = look_once("node-4cpu-5.10", &Pools::open(&[]), Amounts::default());
    assert_eq!(view.readings.cpu_stall.known().unwrap().some_avg10, 150);
    assert_eq!(view.gate.state, GateState::Open);
}

#[test]
fn a_tree_without_files_fails_closed() {
    let view = look_once("no-such-node", &Pools::open(&[]), Amounts::default());
    assert_eq!((view.gate.state, codes(&view)), (GateState::Shut, vec![Code::SensorFailed, Code::SensorFailed]));
}

#[test]
fn stalls_that_cannot_be_understood_are_a_failure() {
    let host = tempfile::tempdir().unwrap();
    fs::create_dir_all(host.path().join("proc/pressure")).unwrap();
    for text in ["", "some", "some avg10=x avg60=0.00 avg300=0.00 total=1", "some avg10=-1.00 avg60=0 avg300=0 total=1"]
    {
        fs::write(host.path().join("proc/pressure/memory"), text).unwrap();
        assert_eq!(Sampler::new(host.path()).stalls().0[0], StallReading::Failed, "{text:?}");
    }
}

#[test]
fn what_leases_reserved_counts_against_their_pool_and_a_missing_pool_shuts() {
    let home = tempfile::tempdir().unwrap();
    let pools = Pools::open(&[pool(home.path(), false)]);
    let reserved = Amounts { disk_bytes: 3 * MIB, disk_inodes: 5, ..Amounts::default() };
    let view = look_once("node-32cpu-62g", &pools, reserved);
    let DiskReading::Known(disk) = view.readings.pools[0].disk else { panic!("{:?}", view.readings.pools) };
    assert_eq!((disk.reserved_bytes, disk.reserved_inodes), (3 * MIB, 5));
    let view = look_once("node-32cpu-62g", &Pools::open(&[pool(home.path(), true)]), reserved);
    assert_eq!((view.gate.state, codes(&view)), (GateState::Shut, vec![Code::PoolNotReady]));
    assert!(view.gate.reasons[0].message.contains("is not a mounted filesystem"));
}

#[test]
fn cpu_use_is_smoothed_over_ten_seconds() {
    let mut meter = CpuMeter::default();
    let mut feed = |busy, total| meter.feed(Ticks { busy, total }, 4, 100);
    assert_eq!(feed(0, 0), None);
    assert_eq!(feed(0, 400).unwrap().used_millis, 0);
    // Ten seconds of all four CPUs: 1 - 1/e of the way.
    let after = feed(4000, 4400).unwrap();
    assert_eq!((after.total_millis, after.used_millis), (4000, 2528));
    // A counter that went back is no use, and no overflow.
    assert!(feed(3000, 8400).unwrap().used_millis < 2528);
    assert_eq!(feed(0, 0).unwrap().total_millis, 4000);
}

#[test]
fn only_what_people_would_see_wakes() {
    let calm = look_once("node-32cpu-62g", &Pools::open(&[]), Amounts::default());
    let mut other = calm.clone();
    other.readings.memory.as_mut().unwrap().available_bytes += 100 * MIB;
    assert!(!show::differs(&calm.readings, &other.readings));
    other.readings.memory.as_mut().unwrap().available_bytes += 1000 * MIB;
    assert!(show::differs(&calm.readings, &other.readings));
    let full = look_once("node-32cpu-62g-full", &Pools::open(&[]), Amounts::default());
    let mut figures = full.gate.clone();
    figures.reasons[0].available += 1;
    assert!(show::same_gate(&full.gate, &figures) && !show::same_gate(&full.gate, &calm.gate));
}

/// A host of our own whose memory can be set.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        fs::create_dir(host.0.path().join("proc")).unwrap();
        fs::copy(recorded("node-32cpu-62g").join("proc/stat"), host.0.path().join("proc/stat")).unwrap();
        host.available_percent(80);
        host
    }

    /// Replaced as a whole: nobody reads half a file.
    fn available_percent(&self, percent: u64) {
        let text = fs::read_to_string(recorded("node-32cpu-62g").join("proc/meminfo")).unwrap();
        let available = format!("MemAvailable:   {} kB", 65_536_000 / 100 * percent);
        let text = text.replace("MemAvailable:   51380224 kB", &available);
        assert!(text.contains(&available));
        fs::write(self.0.path().join("meminfo.new"), text).unwrap();
        fs::rename(self.0.path().join("meminfo.new"), self.0.path().join("proc/meminfo")).unwrap();
    }
}

async fn becomes(views: &mut watch::Receiver<Arc<PressureView>>, state: GateState) -> Arc<PressureView> {
    let reached = views.wait_for(|view| view.gate.state == state);
    let view = tokio::time::timeout(LIMIT, reached).await.expect("in time").unwrap();
    Arc::clone(&view)
}

#[tokio::test]
async fn memory_that_falls_shuts_the_gate_and_memory_that_rises_opens_it() {
    let host = Host::new();
    host.available_percent(8);
    let (_reserved, receiver) = watch::channel(Amounts::default());
    let pressure = Pressure::start(
        &configured(config(host.0.path())),
        Pools::open(&[]),
        receiver,
        no_cluster(),
        &CancellationToken::new(),
    );
    assert_eq!(pressure.view().gate.state, GateState::Narrow, "there is a gate from the beginning");
    let mut views = pressure.subscribe();
    let began = Instant::now();
    host.available_percent(2);
    let view = becomes(&mut views, GateState::Shut).await;
    // 3% of 62.5 GiB above the floor fill in 320 ms; a busy machine may look late.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(codes(&view), [Code::MemoryFloor]);
    host.available_percent(80);
    becomes(&mut views, GateState::Open).await;
    tokio::time::timeout(LIMIT, pressure.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_pool_that_goes_and_comes_moves_the_gate() {
    let (host, home) = (Host::new(), tempfile::tempdir().unwrap());
    let pools = Pools::open(&[pool(home.path(), false)]);
    let (_reserved, receiver) = watch::channel(Amounts::default());
    let pressure = Pressure::start(
        &configured(config(host.0.path())),
        pools.clone(),
        receiver,
        no_cluster(),
        &CancellationToken::new(),
    );
    let mut views = pressure.subscribe();
    assert_eq!(pressure.view().gate.state, GateState::Open);
    pools.detach("data").await;
    assert_eq!(codes(&*becomes(&mut views, GateState::Shut).await), [Code::PoolNotReady]);
    pools.attach("data").await;
    becomes(&mut views, GateState::Open).await;
    pressure.shutdown().await;
}

#[tokio::test]
async fn the_task_ends_with_its_token() {
    let (_reserved, receiver) = watch::channel(Amounts::default());
    let cancel = CancellationToken::new();
    let pressure = Pressure::start(
        &configured(config(&recorded("node-32cpu-62g"))),
        Pools::open(&[]),
        receiver,
        no_cluster(),
        &cancel,
    );
    cancel.cancel();
    let task = pressure.task.lock().unwrap().take().unwrap();
    tokio::time::timeout(LIMIT, task).await.unwrap().unwrap();
}
