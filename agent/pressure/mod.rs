//! Pressure: what the machine feels, and whether new builds may start.
//!
//! In come the kernel's files below the host's root, how full the root filesystem and the pools are, and what leases
//! have reserved and not written yet. Out goes a published [`PressureView`]: the readings and the gate, decided in
//! `stoker_core::pressure`. A gate that changes is published at once; figures at most once a second, and only when
//! people would see the difference.
//!
//! Beside it, [`lease_use`] says what each lease uses.
//!
//! One task looks at memory every 100 ms to 1 s, the sooner the nearer the floor is, for compilers fill memory faster
//! than any average shows. Disks are asked in a thread beside it, so that one that hangs delays nothing: it counts as
//! failed.

mod control_plane;
mod disks;
mod kernel_file;
pub mod lease_use;
mod psi;
mod sample;
mod show;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stoker_core::cluster::Cluster;
use stoker_core::pressure::{
    ControlPlane, Cpu, Gate, GateMemory, GateState, GroupReading, Limits, Load, Memory, Probe, Readings, StallMeter,
    StallReading, decide, interval,
};
use stoker_core::quantity::{Amounts, Span, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::disks::{DiskProbe, DiskWatch, Disks, Fillings};
pub use self::psi::StallSource;
use self::psi::{Stalled, Triggers};
use self::sample::Sampler;
pub use crate::config::Configured;
use crate::node::{Filesystem, Pools, now};

/// How often disks, CPU and stalls are looked at, and how often figures are published at most.
const SLOW_EVERY: Duration = Duration::from_secs(1);
/// The share of time in which all work waits for memory, from which on nothing new starts: 20%, in hundredths of a
/// percent. A node that swaps or reclaims that much makes every build slower than waiting would.
const MEMORY_STALL_FULL: u32 = 2000;

/// What everyone sees.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PressureView {
    /// The last look.
    pub readings: Readings,
    /// The root filesystem with its kind; unset where it does not answer.
    pub root: Option<Filesystem>,
    /// Whether builds may start.
    pub gate: Gate,
    /// How stalls for memory are learnt of.
    pub stall_source: StallSource,
    /// When this was so.
    pub at: Timestamp,
}

/// The room: one task, and what it publishes.
#[derive(Debug)]
pub struct Pressure {
    views: watch::Sender<Arc<PressureView>>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Pressure {
    /// Looks once, so that there is a gate from the beginning, and goes on in a task until `cancel` or
    /// [`Self::shutdown`]. `reserved` is the disk that leases have reserved on the workspaces' pool and not written.
    ///
    /// To be called inside a runtime. Blocks for as long as the filesystems take to answer.
    #[must_use]
    pub fn start(
        config: &Configured,
        pools: Pools,
        reserved: watch::Receiver<Amounts>,
        cluster: watch::Receiver<Arc<Cluster>>,
        cancel: &CancellationToken,
    ) -> Self {
        let probe = DiskProbe::new(config.clone());
        let disks = probe.measure(&pools);
        let probes = watch::Sender::new(Probe::default());
        let mut looker = Looker::new(config.clone(), reserved, cluster, probes.subscribe());
        let triggers = match Triggers::arm(&config.borrow().node.host_root.join("proc")) {
            Ok(triggers) => {
                looker.stall_source = StallSource::Triggers;
                Some(triggers)
            }
            Err(why) => {
                tracing::info!("stalls for memory are read from averages: {why}");
                looker.stall_source = StallSource::Averages(why);
                None
            }
        };
        let first = looker.look(&disks, now(), true, None);
        if first.gate.state != GateState::Open {
            log_gate(&first.gate);
        }
        let views = watch::Sender::new(Arc::new(first));
        let stop = cancel.child_token();
        let disks = DiskWatch { probe, pools, disks, asked: None };
        let looking = look_on(looker, disks, triggers, views.clone(), stop.clone());
        let probing = control_plane::probe_on(config.clone(), probes, stop.clone());
        let task = tokio::spawn(async move {
            tokio::join!(looking, probing);
        });
        Self { views, stop, task: Mutex::new(Some(task)) }
    }

    /// The last look.
    #[must_use]
    pub fn view(&self) -> Arc<PressureView> {
        Arc::clone(&self.views.borrow())
    }

    /// Wakes when the gate changes, and at most once a second when figures changed so that people would see it.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<PressureView>> {
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

/// Samples, and turns samples into views; remembers the gate.
struct Looker {
    sampler: Sampler,
    config: Configured,
    workspaces: String,
    needed: [String; 2],
    reserved: watch::Receiver<Amounts>,
    cluster: watch::Receiver<Arc<Cluster>>,
    gate: GateMemory,
    slow: Slow,
    fillings: Fillings,
    stall_meter: StallMeter,
    stall_source: StallSource,
    probe: watch::Receiver<Probe>,
}

/// What is not sampled at every look.
#[derive(Default)]
struct Slow {
    cpu: Option<Cpu>,
    load: Option<Load>,
    groups: Vec<GroupReading>,
    stalls: [StallReading; 3],
}

impl Looker {
    fn new(
        config: Configured,
        reserved: watch::Receiver<Amounts>,
        cluster: watch::Receiver<Arc<Cluster>>,
        probe: watch::Receiver<Probe>,
    ) -> Self {
        let now = Arc::clone(&config.borrow());
        Self {
            sampler: Sampler::new(&now.node.host_root),
            workspaces: now.workspaces.pool.clone(),
            needed: [now.workspaces.pool.clone(), now.repositories.pool.clone()],
            config,
            reserved,
            cluster,
            gate: GateMemory::default(),
            slow: Slow::default(),
            fillings: Fillings::default(),
            stall_meter: StallMeter::default(),
            stall_source: StallSource::default(),
            probe,
        }
    }

    /// One look: memory always, CPU and stalls where `slow`. `told` is what a trigger says now.
    fn look(&mut self, disks: &Disks, now: Timestamp, slow: bool, told: Option<Stalled>) -> PressureView {
        if slow {
            let (cpu, load) = (self.sampler.cpu(), self.sampler.load());
            self.slow = Slow { cpu, load, groups: self.groups(), stalls: self.stalls(now, told) };
        }
        let memory = self.sampler.memory();
        let [memory_stall, cpu_stall, io_stall] = self.slow.stalls;
        let (reserved, workspaces, needed) = (*self.reserved.borrow(), &self.workspaces, &self.needed);
        let disks_now = self.fillings.readings(
            disks,
            |pool| if pool == workspaces { reserved } else { Amounts::default() },
            |pool| needed.iter().any(|name| name == pool),
        );
        let readings = Readings {
            memory,
            cpu: self.slow.cpu,
            load: self.slow.load,
            memory_stall,
            cpu_stall,
            io_stall,
            root: disks_now.root,
            pools: disks_now.pools,
            filesystems: disks_now.watched,
            control_plane: ControlPlane { probe: self.probe.borrow().clone(), groups: self.slow.groups.clone() },
            cluster: self.cluster.borrow().held_back(&self.config.borrow().kubernetes.tolerates),
        };
        self.gate = decide(&self.gate, &readings, &self.limits(memory), now);
        PressureView {
            readings,
            root: disks.root.clone(),
            gate: self.gate.gate.clone(),
            stall_source: self.stall_source.clone(),
            at: now,
        }
    }

    fn groups(&self) -> Vec<GroupReading> {
        let config = Arc::clone(&self.config.borrow());
        let watched = config.pressure.control_plane.as_ref();
        watched.map_or_else(Vec::new, |watched| control_plane::groups(&config.node.host_root, &watched.cgroups))
    }

    /// Stalls, with what the last moments were like for memory: averages lag behind. What the kernel measured for its
    /// trigger counts as it says, however little of it is seen in totals that were read a second apart. Where nothing is
    /// seen it does not: the first event of a trigger without rights can be none, for the kernel then compares the totals
    /// of one of its clocks with those of another.
    fn stalls(&mut self, now: Timestamp, told: Option<Stalled>) -> [StallReading; 3] {
        let (mut stalls, total) = self.sampler.stalls();
        let full_now = total.and_then(|total| self.stall_meter.note(total, now));
        let is_seen = full_now.is_some_and(|share| share > 0);
        let told = if is_seen && told == Some(Stalled::Full) { MEMORY_STALL_FULL } else { 0 };
        if let [StallReading::Known(memory), ..] = &mut stalls {
            memory.full_now = full_now.unwrap_or(0).max(told);
        }
        stalls
    }

    fn limits(&self, memory: Option<Memory>) -> Limits {
        let total = memory.map_or(0, |memory| memory.total_bytes);
        let config = Arc::clone(&self.config.borrow());
        Limits {
            memory_floor: config.pressure.memory_floor.of(total),
            memory_narrow: config.pressure.memory_narrow.of(total),
            memory_stall_full: MEMORY_STALL_FULL,
            disk_forecast: span(config.pressure.disk_forecast),
            control_plane_latency: config
                .pressure
                .control_plane
                .as_ref()
                .map_or(Span(0), |watched| span(watched.latency)),
            hold: span(config.pressure.hold),
        }
    }

    /// How long until memory must be looked at again.
    fn next(&self, view: &PressureView) -> Duration {
        let memory = view.readings.memory;
        let span = interval(memory.map(|memory| memory.available_bytes), self.limits(memory).memory_floor);
        Duration::from_millis(u64::try_from(span.0).unwrap_or(100))
    }
}

/// Returns when the kernel says that work stalls for memory; never where it does not say so.
async fn stalled(triggers: Option<&Triggers>) -> std::io::Result<Stalled> {
    match triggers {
        Some(triggers) => triggers.fired().await,
        None => std::future::pending().await,
    }
}

fn span(duration: Duration) -> Span {
    Span(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

async fn look_on(
    mut looker: Looker,
    mut disks: DiskWatch,
    mut triggers: Option<Triggers>,
    views: watch::Sender<Arc<PressureView>>,
    stop: CancellationToken,
) {
    let mut shown = Arc::clone(&views.borrow());
    let mut wait = looker.next(&shown);
    let (mut slow_at, mut shown_at) = (Instant::now(), Instant::now());
    loop {
        let (woken, told) = tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => (false, None),
            fired = stalled(triggers.as_ref()) => {
                if let Err(error) = &fired {
                    triggers = None;
                    looker.stall_source = StallSource::Averages(error.to_string());
                }
                (true, fired.ok())
            }
        };
        let slow = woken || slow_at.elapsed() >= SLOW_EVERY;
        if slow {
            slow_at = Instant::now();
        }
        disks.turn(slow).await;
        let view = Arc::new(looker.look(&disks.disks, now(), slow, told));
        wait = looker.next(&view);
        let tell = !show::same_gate(&view.gate, &shown.gate)
            || shown_at.elapsed() >= SLOW_EVERY && show::differs(&view.readings, &shown.readings);
        if tell {
            if view.gate.state != shown.gate.state {
                log_gate(&view.gate);
            }
            (shown, shown_at) = (Arc::clone(&view), Instant::now());
        }
        // Who asks gets the last look; who waits is woken only where it is worth it.
        views.send_if_modified(|current| {
            *current = view;
            tell
        });
    }
    disks.end().await;
}

fn log_gate(gate: &Gate) {
    let why: Vec<&str> = gate.reasons.iter().map(|reason| reason.message.as_str()).collect();
    match gate.state {
        GateState::Open => tracing::info!(state = %gate.state, "gate"),
        GateState::Narrow | GateState::Shut => {
            let codes: Vec<&str> = gate.reasons.iter().map(|reason| reason.code.word()).collect();
            tracing::warn!(state = %gate.state, reasons = codes.join(","), "gate: {}", why.join("; "));
        }
    }
}
