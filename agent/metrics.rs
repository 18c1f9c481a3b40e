//! All metrics, with their help texts and units, in this one file.
//!
//! What is so at this moment (pools, memory, the gate, the ledger, repositories), and what the rooms count themselves
//! (fetches, failed commits), is read from them when somebody scrapes: nothing has to be kept up to date, and nothing
//! can be forgotten when it goes. What callers were told is counted in [`Metrics`], where they are told it.
//!
//! Labels come from closed lists or from the configuration, and are bounded: a caller cannot make a series. Units are
//! Prometheus' base units: bytes, seconds, cores, ratios from 0 to 1.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use stoker_core::admission::Answer;
use stoker_core::quantity::Timestamp;
use stoker_proto::v1;

use crate::access::Denied;
use crate::node::State;
use crate::repository::{LfsCounts, RepositoryState, View, serve};

/// The content type of [`Metrics::scrape`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The most mirrors, pools and directories that get series of their own.
const SERIES_MAX: usize = 512;

/// All that a pool can be.
const POOL_STATES: [State; 9] = [
    State::Ready,
    State::NotMounted,
    State::Absent,
    State::NotADirectory,
    State::ReadOnly,
    State::WrongFilesystem,
    State::Symlink,
    State::Failed,
    State::Detached,
];

/// All that a repository can be, with the word of each.
const REPOSITORY_STATES: [(RepositoryState, &str); 6] = [
    (RepositoryState::Empty, "empty"),
    (RepositoryState::Filling, "filling"),
    (RepositoryState::Ready, "ready"),
    (RepositoryState::Fetching, "fetching"),
    (RepositoryState::Stale, "stale"),
    (RepositoryState::Quarantined, "quarantined"),
];

/// The word of a repository's state.
pub(crate) fn repository_word(state: RepositoryState) -> &'static str {
    REPOSITORY_STATES.iter().find(|(known, _)| *known == state).map_or("unknown", |(_, word)| word)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Admission {
    decision: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Heal {
    step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fetch {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cache {
    answer: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Evicted {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    face: &'static str,
    reason: &'static str,
}

/// By which face somebody asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// gRPC, by the socket or the network.
    Grpc,
    /// HTTP.
    Http,
}

impl Face {
    const fn word(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

/// What happened since the agent started. Cheap to clone: all clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    admissions: Family<Admission, Counter>,
    refused: Family<Refused, Counter>,
}

impl Metrics {
    /// A caller was told this. What waits or is rejected is counted under its first reason, which is the weightiest.
    pub fn answered(&self, answer: &Answer) {
        let (decision, reasons): (_, &[_]) = match answer {
            Answer::Granted(_) => ("granted", &[]),
            Answer::Waiting(waiting) => ("wait", &waiting.reasons),
            Answer::Rejected(reasons, _) => ("rejected", reasons),
        };
        let reason = reasons.first().map_or("", |reason| reason.code.word());
        self.admissions.get_or_create(&Admission { decision, reason }).inc();
    }

    /// A call was refused for who asked, or how often. What looks as if it were not there is not counted.
    pub fn refused(&self, face: Face, denied: &Denied) {
        let reason = denied.reason().code.word();
        self.refused.get_or_create(&Refused { face: face.word(), reason }).inc();
    }

    /// All metrics as OpenMetrics text; see [`CONTENT_TYPE`].
    ///
    /// # Errors
    /// None that a `String` gives; the encoder's signature has one.
    pub fn scrape(&self, seen: &Seen<'_>) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("stoker");
        registry.register(
            "admissions",
            "Answers to requests for admission, by decision and first reason",
            self.admissions.clone(),
        );
        let help = "Calls that were refused for who asked, or how often, by face and reason";
        registry.register("refused_calls", help, self.refused.clone());
        let fetches = Family::<Fetch, Counter>::default();
        for (outcome, count) in seen.fetches {
            fetches.get_or_create(&Fetch { outcome }).inc_by(*count);
        }
        registry.register("fetches", "Fetches from upstreams that ended, by outcome", fetches);
        let answers = Family::<Cache, Counter>::default();
        for (answer, count) in seen.answers {
            answers.get_or_create(&Cache { answer }).inc_by(*count);
        }
        let help = "Requests for sources, by what answered: the cache alone (hit), upstream was asked (miss), the cache with \
                    less than was asked for (stale)";
        registry.register("repository_answers", help, answers);
        served(&seen.serve, &mut registry);
        let heals = Family::<Heal, Counter>::default();
        for (step, count) in seen.heals {
            heals.get_or_create(&Heal { step }).inc_by(*count);
        }
        let help = "Damaged stores of repositories, by the step that made them whole again, or failed";
        registry.register("repository_heals", help, heals);
        let forges = Family::<Fetch, Counter>::default();
        for (outcome, count) in seen.forges {
            forges.get_or_create(&Fetch { outcome }).inc_by(*count);
        }
        registry.register("forge_answers", "Questions to forges where a pull request comes from, by outcome", forges);
        large_files(&seen.lfs, &mut registry);
        let evictions = Family::<Evicted, Counter>::default();
        for (reason, count) in seen.evictions {
            evictions.get_or_create(&Evicted { reason }).inc_by(*count);
        }
        let help = "Old snapshots and mirrors that were evicted for want of room, by reason";
        registry.register("repository_evictions", help, evictions);
        let gave_way: ConstCounter<u64> = ConstCounter::new(seen.upkeep_gave_way);
        registry.register("upkeep_gave_way", "Upkeep of stores that was put off because a fetch waited", gave_way);
        let failures: ConstCounter<u64> = ConstCounter::new(seen.journal_failures);
        registry.register("journal_failures", "Batches that could not be written to the journal", failures);
        let node = seen.status.node.clone().unwrap_or_default();
        let build = Info::new([("version", node.agent_version), ("node", node.name)]);
        registry.register("build", "The version of the agent and the name of its node", build);
        registry.register_collector(Box::new(gauges(seen)));
        let mut text = String::with_capacity(16 << 10);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// What fetching large files counts.
fn large_files(counts: &LfsCounts, registry: &mut Registry) {
    let objects: ConstCounter<u64> = ConstCounter::new(counts.objects);
    registry.register("lfs_objects", "Large files (git-lfs) that were fetched", objects);
    let bytes: ConstCounter<u64> = ConstCounter::new(counts.bytes);
    registry.register_with_unit("lfs_fetched", "Large files (git-lfs) that were fetched", Unit::Bytes, bytes);
    let by_reason = |counts: &BTreeMap<&'static str, u64>| {
        let family = Family::<Evicted, Counter>::default();
        for (reason, count) in counts {
            family.get_or_create(&Evicted { reason }).inc_by(*count);
        }
        family
    };
    let help = "Commits whose large files could not be had, by reason";
    registry.register("lfs_failures", help, by_reason(&counts.failures));
    let help = "Commits whose large files were not fetched for want of room, by reason";
    registry.register("lfs_refused", help, by_reason(&counts.refused));
}

/// What git over HTTP counts.
fn served(counts: &serve::Counts, registry: &mut Registry) {
    let requests = Family::<Fetch, Counter>::default();
    for (outcome, count) in &counts.outcomes {
        requests.get_or_create(&Fetch { outcome }).inc_by(*count);
    }
    registry.register("git_requests", "Requests for git over HTTP that ended, by outcome", requests);
    let sent: ConstCounter<u64> = ConstCounter::new(counts.bytes_sent);
    registry.register_with_unit("git_sent", "Answers to git clients over HTTP", Unit::Bytes, sent);
    let shared: ConstCounter<u64> = ConstCounter::new(counts.shared);
    registry.register("git_shared", "Answers to git clients that another client's request had made", shared);
}

/// What the gauges are read from.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The node on one screen.
    pub status: &'a v1::Status,
    /// All repositories.
    pub repositories: &'a [View],
    /// The keys of those that are named; others are counted only.
    pub labelled: &'a BTreeSet<String>,
    /// How many requests for sources were answered how, since the start.
    pub answers: &'a BTreeMap<&'static str, u64>,
    /// How many fetches ended how, since the start.
    pub fetches: &'a BTreeMap<&'static str, u64>,
    /// How often each step made a damaged store whole again, since the start.
    pub heals: &'a BTreeMap<&'static str, u64>,
    /// What came of questions to forges, since the start.
    pub forges: &'a BTreeMap<&'static str, u64>,
    /// What came of fetching large files, since the start.
    pub lfs: LfsCounts,
    /// What all repositories take on the disk, each file once; unset before the first measurement.
    pub repositories_bytes: Option<u64>,
    /// Evictions since the start, by reason.
    pub evictions: &'a BTreeMap<&'static str, u64>,
    /// How often upkeep gave way to a fetch, since the start.
    pub upkeep_gave_way: u64,
    /// No mirror is filled, for the repositories are over their limit.
    pub over_limit: bool,
    /// Batches that could not be written to the journal, since the start.
    pub journal_failures: u64,
    /// What git over HTTP counts.
    pub serve: serve::Counts,
    /// What the agent itself takes.
    pub own: Own,
    /// When that is.
    pub now: Timestamp,
}

/// What the agent's own process takes; a part that cannot be read is unset.
#[derive(Debug, Default, Clone, Copy)]
pub struct Own {
    /// Bytes of memory that are resident.
    pub resident_bytes: Option<u64>,
    /// Open file descriptors.
    pub open_fds: Option<usize>,
}

impl Own {
    /// From `/proc/self`.
    #[must_use]
    pub fn read() -> Self {
        let Ok(process) = procfs::process::Process::myself() else { return Self::default() };
        let resident = process.statm().ok().map(|pages| pages.resident.saturating_mul(procfs::page_size()));
        Self { resident_bytes: resident, open_fds: process.fd_count().ok() }
    }
}

type Labels = Vec<(&'static str, String)>;

/// One metric that is read, with all its series.
#[derive(Debug)]
struct Gauge {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    series: Vec<(Labels, f64)>,
}

/// All metrics that are read.
#[derive(Debug, Default)]
struct Gauges(Vec<Gauge>);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for gauge in self.0.iter().filter(|gauge| !gauge.series.is_empty()) {
            let help = format!("{}.", gauge.help); // as the registry writes it
            let mut metric = encoder.encode_descriptor(gauge.name, &help, gauge.unit.as_ref(), MetricType::Gauge)?;
            for (labels, value) in &gauge.series {
                match labels.is_empty() {
                    true => metric.encode_gauge(value)?,
                    false => metric.encode_family(labels)?.encode_gauge(value)?,
                }
            }
        }
        Ok(())
    }
}

impl Gauges {
    fn add(&mut self, name: &'static str, help: &'static str, unit: Option<Unit>, series: Vec<(Labels, f64)>) {
        self.0.push(Gauge { name, help, unit, series });
    }

    /// One value without labels; nothing where it is not known.
    fn one(&mut self, name: &'static str, help: &'static str, unit: Option<Unit>, value: Option<f64>) {
        self.add(name, help, unit, value.map(|value| (Vec::new(), value)).into_iter().collect());
    }
}

/// Large integers lose their last digits in a metric, as in every Prometheus.
#[allow(clippy::cast_precision_loss)]
const fn float(value: i64) -> f64 {
    value as f64
}

fn label(name: &'static str, value: impl Into<String>) -> Labels {
    vec![(name, value.into())]
}

const fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

fn gauges(seen: &Seen<'_>) -> Gauges {
    let mut all = Gauges::default();
    agent(seen, &mut all);
    machine(seen.status, &mut all);
    pools(seen.status, &mut all);
    gate(seen.status, &mut all);
    if let Some(ledger) = &seen.status.ledger {
        self::ledger(ledger, &mut all);
    }
    repositories(seen, &mut all);
    let number = |count: usize| Some(float(i64::try_from(count).unwrap_or(i64::MAX)));
    all.one("git_clients", "Requests for git over HTTP that are served now", None, number(seen.serve.clients));
    all.one("git_children", "Children that serve git over HTTP now", None, number(seen.serve.children));
    all
}

fn agent(seen: &Seen<'_>, all: &mut Gauges) {
    let started = seen.status.started_at.map(|at| float(at.seconds));
    all.one("start_time", "When the agent started, since the Unix epoch", Some(Unit::Seconds), started);
    let resident = seen.own.resident_bytes.map(|bytes| float(i64::try_from(bytes).unwrap_or(i64::MAX)));
    all.one("process_resident_memory", "Resident memory of the agent itself", Some(Unit::Bytes), resident);
    let fds = seen.own.open_fds.map(|count| float(i64::try_from(count).unwrap_or(i64::MAX)));
    all.one("process_open_fds", "Open file descriptors of the agent itself", None, fds);
    let counts = seen.status.counts.unwrap_or_default();
    all.one("leases", "Leases that hold room now", None, Some(counts.leases.into()));
    all.one("tickets", "Builds that wait in the queue", None, Some(counts.tickets.into()));
    let help = "Live leases and tickets whose size is declared far above what such builds use";
    all.one("sizes_over_declared", help, None, Some(counts.over_declared.into()));
    let help = "Leases whose holder has no limit of CPU or memory within its size";
    all.one("leases_unlimited", help, None, Some(counts.unlimited.into()));
    let help = "Live leases that have used up nine tenths of their time budget";
    all.one("leases_time_budget_near", help, None, Some(counts.time_budget_near.into()));
    all.one("workspaces", "Workspaces on the pool", None, Some(counts.workspaces.into()));
    let made = seen.status.workspaces.as_ref();
    let help = "Commits that are kept checked out";
    all.one("checkouts", help, None, made.map(|made| made.checkouts.into()));
    let help = "What commits that are kept checked out hold on the disk";
    all.one("checkouts_disk", help, Some(Unit::Bytes), made.map(|made| float(made.checkout_bytes)));
    kept(seen.status.retention.as_ref(), all);
}

/// What is kept for a time, and what of it went.
fn kept(kept: Option<&v1::Retention>, all: &mut Gauges) {
    let Some(kept) = kept.filter(|kept| kept.looked_at.is_some()) else { return };
    let told = [
        ("outputs", "Outputs that are kept", kept.outputs),
        ("outputs_released", "Outputs that are kept for good", kept.outputs_released),
        ("caches", "Caches of tenants", kept.caches),
        ("orphans", "Things in the agent's own directories that no lease, output or rule knows", kept.orphans),
        ("retention_removed", "Things that retention removed, since its journal began", kept.removed),
    ];
    for (name, help, value) in told {
        all.one(name, help, None, Some(float(value)));
    }
    let held = [
        ("outputs_disk", "What outputs take on the disk", kept.outputs_bytes),
        ("caches_disk", "What caches of tenants take on the disk", kept.caches_bytes),
        ("orphans_disk", "What things take that nobody knows", kept.orphans_bytes),
        ("retention_removed_disk", "What those took on the disk", kept.removed_bytes),
    ];
    for (name, help, value) in held {
        all.one(name, help, Some(Unit::Bytes), Some(float(value)));
    }
    let help = "When retention last really removed something, since the Unix epoch; absent where it never did";
    let last = kept.last_removed_at.map(|at| float(at.seconds));
    all.one("retention_last_removed", help, Some(Unit::Seconds), last);
}

fn machine(status: &v1::Status, all: &mut Gauges) {
    let memory = status.memory.as_ref();
    let total = memory.map(|memory| float(memory.total_bytes));
    all.one("memory_total", "Memory of the machine", Some(Unit::Bytes), total);
    let available = memory.map(|memory| float(memory.available_bytes));
    all.one("memory_available", "Memory that can be had without swapping", Some(Unit::Bytes), available);
    let cpu = status.cpu.as_ref();
    let cores_of = |millis: i64| float(millis) / 1000.0;
    all.one("cpu_total_cores", "CPUs of the machine", None, cpu.map(|cpu| cores_of(cpu.total_millis)));
    let used = cpu.map(|cpu| cores_of(cpu.used_millis));
    all.one("cpu_used_cores", "CPUs in use, smoothed over about 10 seconds", None, used);
    if let Some(load) = cpu.and_then(|cpu| cpu.load) {
        let series = [("1m", load.avg_1m), ("5m", load.avg_5m), ("15m", load.avg_15m)];
        let series = series.map(|(over, hundredths)| (label("over", over), f64::from(hundredths) / 100.0));
        all.add("load_average", "Tasks that run or wait for a CPU or a disk", None, series.into());
    }
    if let Some(memory) = memory.filter(|memory| !memory.stall_source.is_empty()) {
        let series = ["triggers", "averages"].map(|word| (label("source", word), flag(memory.stall_source == word)));
        all.add("memory_stall_source", "1 for how stalls for memory are learnt of", None, series.into());
    }
    let latency = status.control_plane.as_ref().and_then(|plane| plane.latency);
    let latency = latency.map(|time| float(time.seconds) + f64::from(time.nanos) / 1e9);
    let help = "How soon the control plane on this node answered its probe; absent where it does not";
    all.one("control_plane_latency", help, Some(Unit::Seconds), latency);
    let stalls = [
        ("memory", memory.and_then(|memory| memory.stall)),
        ("cpu", cpu.and_then(|cpu| cpu.stall)),
        ("io", status.io.as_ref().and_then(|io| io.stall)),
    ];
    let mut series = Vec::new();
    for (resource, stall) in stalls {
        if let Some(stall) = stall.filter(|stall| stall.known) {
            let shares = [
                ("some", "10s", stall.some_avg10),
                ("some", "60s", stall.some_avg60),
                ("full", "10s", stall.full_avg10),
                ("full", "60s", stall.full_avg60),
            ];
            series.extend(shares.map(|(kind, window, hundredths)| {
                let labels = vec![("resource", resource.into()), ("kind", kind.into()), ("window", window.into())];
                (labels, f64::from(hundredths) / 10_000.0)
            }));
        }
    }
    let help = "Share of time in which some or all work waited for a resource (pressure stall information)";
    all.add("pressure", help, Some(Unit::Other("ratio".to_owned())), series);
}

/// A metric of a filesystem: its name for pools and for the root, its help text, its unit, the value.
type FilesystemMetric = (&'static str, &'static str, &'static str, Option<Unit>, fn(&v1::Filesystem) -> i64);

fn pools(status: &v1::Status, all: &mut Gauges) {
    let pools: Vec<&v1::Pool> = status.pools.iter().take(SERIES_MAX).collect();
    let states = pools.iter().flat_map(|pool| {
        POOL_STATES.map(|state| {
            let labels = vec![("pool", pool.name.clone()), ("state", state.word().into())];
            (labels, flag(pool.state == state.word()))
        })
    });
    all.add("pool_state", "1 for the state that the pool is in", None, states.collect());
    let directories = pools.iter().flat_map(|pool| {
        pool.directories.iter().map(|directory| {
            let labels = vec![("pool", pool.name.clone()), ("path", directory.path.clone())];
            (labels, flag(directory.state == State::Prepared.word()))
        })
    });
    let help = "1 where a declared directory is there as declared";
    all.add("directory_prepared", help, None, directories.take(SERIES_MAX).collect());
    let metrics: [FilesystemMetric; 6] = [
        ("pool_size", "root_size", "Size of the filesystem", Some(Unit::Bytes), |disk| disk.total_bytes),
        ("pool_free", "root_free", "Free bytes of the filesystem", Some(Unit::Bytes), |disk| disk.free_bytes),
        ("pool_floor", "root_floor", "Bytes that must stay free", Some(Unit::Bytes), |disk| disk.floor_bytes),
        ("pool_inodes", "root_inodes", "Inodes of the filesystem; 0: made as needed", None, |disk| disk.total_inodes),
        ("pool_inodes_free", "root_inodes_free", "Free inodes", None, |disk| disk.free_inodes),
        ("pool_inodes_floor", "root_inodes_floor", "Inodes that must stay free", None, |disk| disk.floor_inodes),
    ];
    for (of_pool, of_root, help, unit, value) in metrics {
        let series = pools.iter().filter_map(|pool| {
            let disk = pool.filesystem.as_ref()?;
            Some((label("pool", pool.name.clone()), float(value(disk))))
        });
        all.add(of_pool, help, unit.clone(), series.collect());
        all.one(of_root, help, unit, status.root.as_ref().map(|disk| float(value(disk))));
    }
    filesystems(status, all);
}

/// What is told of every filesystem alike: pools, the root (`/`), and what else is watched.
fn filesystems(status: &v1::Status, all: &mut Gauges) {
    let pools = status.pools.iter().map(|pool| (label("pool", pool.name.clone()), pool.filesystem.as_ref()));
    let root = std::iter::once((label("path", "/"), status.root.as_ref()));
    let watched = status.filesystems.iter().map(|disk| (label("path", disk.path.clone()), disk.filesystem.as_ref()));
    let known = pools.take(SERIES_MAX).chain(root).chain(watched.clone());
    let known: Vec<(Labels, &v1::Filesystem)> = known.filter_map(|(labels, disk)| Some((labels, disk?))).collect();
    let each = |value: fn(&v1::Filesystem) -> Option<f64>| {
        known.iter().filter_map(|(labels, disk)| Some((labels.clone(), value(disk)?))).collect()
    };
    let help = "How fast free bytes go, in a second: the larger of what 30 s and 5 min say";
    let unit = Unit::Other("bytes_per_second".to_owned());
    all.add("filesystem_fill", help, Some(unit), each(|disk| Some(float(disk.bytes_per_minute) / 60.0)));
    let help = "When at the present speed a floor is reached; absent where it does not fill";
    let floor_in = |disk: &v1::Filesystem| disk.floor_in.map(|time| float(time.seconds));
    all.add("filesystem_floor_in", help, Some(Unit::Seconds), each(floor_in));
    let of_watched = |value: fn(&v1::Filesystem) -> i64| {
        watched.clone().filter_map(|(labels, disk)| Some((labels, float(value(disk?))))).collect()
    };
    let help = "Free bytes of a filesystem of the node that is no pool";
    all.add("filesystem_free", help, Some(Unit::Bytes), of_watched(|disk| disk.free_bytes));
    let help = "Bytes that must stay free of a filesystem of the node that is no pool";
    all.add("filesystem_floor", help, Some(Unit::Bytes), of_watched(|disk| disk.floor_bytes));
}

fn gate(status: &v1::Status, all: &mut Gauges) {
    let gate = status.gate.clone().unwrap_or_default();
    let states = [(v1::GateState::Open, "open"), (v1::GateState::Narrow, "narrow"), (v1::GateState::Shut, "shut")];
    let states = states.map(|(state, word)| (label("state", word), flag(gate.state() == state)));
    all.add("gate_state", "1 for the state of the gate: what may start", None, states.into());
    let modes =
        [(v1::Mode::Accepting, "accepting"), (v1::Mode::Maintenance, "maintenance"), (v1::Mode::Drain, "drain")];
    let modes = modes.map(|(mode, word)| (label("mode", word), flag(status.mode() == mode)));
    all.add("mode", "1 for the mode that the operator wants", None, modes.into());
    let mut held = BTreeMap::<&str, f64>::new();
    for reason in gate.reasons.iter().chain(&status.alarms) {
        *held.entry(reason.code().as_str_name()).or_default() += 1.0;
    }
    let held = held.into_iter().map(|(code, count)| (label("reason", code), count));
    all.add(
        "reasons",
        "How often each reason holds now, of the gate and of what is to be mended",
        None,
        held.collect(),
    );
    let alarms = float(i64::try_from(status.alarms.len()).unwrap_or(i64::MAX));
    all.one("alarms", "Things that an operator should mend", None, Some(alarms));
}

/// A resource of the ledger: the metric's name, its help text, its unit, the value in it.
type LedgerMetric = (&'static str, &'static str, Option<Unit>, fn(&v1::Size) -> f64);

fn ledger(ledger: &v1::Ledger, all: &mut Gauges) {
    let parts = [
        ("capacity", &ledger.capacity),
        ("reserve", &ledger.reserve),
        ("budget", &ledger.budget),
        ("others", &ledger.others),
        ("leased", &ledger.leased),
        ("free", &ledger.free),
    ];
    let metrics: [LedgerMetric; 4] = [
        ("ledger_cpu_cores", "CPUs in the ledger, by part", None, |size| float(size.cpu_millis()) / 1000.0),
        ("ledger_memory", "Memory in the ledger, by part", Some(Unit::Bytes), |size| float(size.memory_bytes())),
        ("ledger_disk", "Disk in the ledger, by part", Some(Unit::Bytes), |size| float(size.disk_bytes())),
        ("ledger_disk_inodes", "Inodes in the ledger, by part", None, |size| float(size.disk_inodes())),
    ];
    for (name, help, unit, value) in metrics {
        let series = parts.iter().filter_map(|(part, size)| Some((label("part", *part), value(size.as_ref()?))));
        all.add(name, help, unit, series.collect());
    }
}

fn repositories(seen: &Seen<'_>, all: &mut Gauges) {
    let number = |count: usize| float(i64::try_from(count).unwrap_or(i64::MAX));
    let states = REPOSITORY_STATES.map(|(state, word)| {
        let count = seen.repositories.iter().filter(|repository| repository.state == state).count();
        (label("state", word), number(count))
    });
    all.add("repositories", "Repositories in the cache, by state", None, states.into());
    let declared = || seen.repositories.iter().filter(|repository| repository.declared);
    let empty = declared().filter(|repository| repository.snapshot.is_empty()).count();
    let help = "Declared mirrors that never filled: builds find nothing there";
    all.one("mirrors_empty", help, None, Some(number(empty)));
    let named = || declared().filter(|repository| seen.labelled.contains(repository.url.key())).take(SERIES_MAX);
    let ages = named().filter_map(|repository| {
        let age = seen.now.since(repository.confirmed_at?);
        Some((label("repository", repository.url.key()), float(age.0) / 1000.0))
    });
    let help = "How long ago upstream last confirmed a declared mirror";
    all.add("mirror_age", help, Some(Unit::Seconds), ages.collect());
    let sizes = named().map(|repository| {
        let bytes = i64::try_from(repository.disk_bytes).unwrap_or(i64::MAX);
        (label("repository", repository.url.key()), float(bytes))
    });
    let help = "Disk that a declared mirror takes; what forks share is counted with each of them";
    all.add("mirror_disk", help, Some(Unit::Bytes), sizes.collect());
    let disk = seen.repositories_bytes.map(|bytes| float(i64::try_from(bytes).unwrap_or(i64::MAX)));
    all.one("repositories_disk", "Disk that all repositories take, each file once", Some(Unit::Bytes), disk);
    let help = "1 where the repositories are over their limit and nothing may be evicted: no mirror is filled";
    all.one("repositories_over_limit", help, None, Some(flag(seen.over_limit)));
}

#[cfg(test)]
mod tests;
