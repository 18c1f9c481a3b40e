//! `NodeService`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::PoisonError;
use std::time::Duration;

use futures_util::Stream;
use stoker_core::admission::{Mode, ModeState};
use stoker_core::pressure::{
    ControlPlane, DiskReading, GateState, Load, Probe, Readings, StallReading, WatchedReading,
};
use stoker_core::quantity::{Resource, Timestamp};
use stoker_core::reason::{Code, Reason};
use stoker_proto::v1::{self, node_service_server::NodeService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Rooms;
use super::asker::Asker;
use super::convert::{duration, mode, reasons, timestamp, totals, wire};
use super::error::bad;
use super::lease_use::{Wrote, is_unlimited, lease_use};
use crate::config::Retention;
use crate::node::{PoolView, State};
use crate::repository::RepositoryState;
use crate::workspace::Chosen;

/// Changes are told at most so often.
const EVERY: Duration = Duration::from_millis(250);
const NOTE_BYTES_MAX: usize = 512;
/// Leases that an alarm names.
const NAMED_MAX: usize = 5;

pub(super) struct Node(pub(super) Rooms);

type Statuses = Pin<Box<dyn Stream<Item = Result<v1::WatchStatusResponse, Status>> + Send>>;

#[tonic::async_trait]
impl NodeService for Node {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let status = Asker::of(&request)?.status(&self.0, self.0.status());
        Ok(Response::new(v1::GetStatusResponse { status: Some(status) }))
    }

    async fn watch_status(&self, request: Request<v1::WatchStatusRequest>) -> Result<Response<Statuses>, Status> {
        let asker = Asker::of(&request)?;
        let (statuses, stream) = mpsc::channel(2);
        let rooms = self.0.clone();
        self.0.tasks.spawn(async move {
            let mut ledger = rooms.admission.watch();
            let mut pressure = rooms.pressure.subscribe();
            let mut gate = rooms.pressure.subscribe();
            let mut pools = rooms.pools.subscribe();
            let mut repositories = rooms.repositories.watch();
            loop {
                let status = v1::WatchStatusResponse { status: Some(asker.status(&rooms, rooms.status())) };
                if statuses.send(Ok(status)).await.is_err() {
                    return;
                }
                let told = rooms.pressure.view().gate.state;
                tokio::select! {
                    () = rooms.cancel.cancelled() => return,
                    () = statuses.closed() => return,
                    () = tokio::time::sleep(EVERY) => {}
                    // Whether builds may start is worth a message of its own at once.
                    _ = gate.wait_for(|view| view.gate.state != told) => {}
                }
                let changed = tokio::select! {
                    () = rooms.cancel.cancelled() => return,
                    () = statuses.closed() => return,
                    changed = ledger.changed() => changed.is_ok(),
                    changed = pressure.changed() => changed.is_ok(),
                    changed = pools.changed() => changed.is_ok(),
                    changed = repositories.changed() => changed.is_ok(),
                };
                if !changed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn set_mode(&self, request: Request<v1::SetModeRequest>) -> Result<Response<v1::SetModeResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        asker.about("mode", request.mode().as_str_name());
        let wanted = match request.mode() {
            v1::Mode::Accepting => Mode::Accepting,
            v1::Mode::Maintenance => Mode::Maintenance,
            v1::Mode::Drain => Mode::Drain,
            v1::Mode::Unspecified => return Err(bad("mode", "is not set; give accepting, maintenance or drain")),
        };
        if request.note.len() > NOTE_BYTES_MAX || request.note.chars().any(char::is_control) {
            return Err(bad("note", format!("has control characters or more than {NOTE_BYTES_MAX} bytes")));
        }
        let now = crate::admission::now();
        let until = request.until.map(|at| Timestamp(at.seconds.saturating_mul(1000)));
        if until.is_some_and(|until| until <= now) {
            return Err(bad("until", "lies in the past; give a time to come, or leave it out"));
        }
        let deadline = request.deadline.map(|at| Timestamp(at.seconds.saturating_mul(1000)));
        if deadline.is_some() && wanted != Mode::Drain {
            return Err(bad("deadline", "is of a drain alone; leave it out"));
        }
        if deadline.is_some_and(|deadline| deadline <= now || until.is_some_and(|until| until <= deadline)) {
            return Err(bad("deadline", "lies in the past, or past the end of the drain; give a time before it"));
        }
        self.0.admission.set_mode(ModeState { mode: wanted, until, note: request.note, deadline }).await?;
        Ok(Response::new(v1::SetModeResponse { status: Some(self.0.status()) }))
    }

    async fn set_pool(&self, request: Request<v1::SetPoolRequest>) -> Result<Response<v1::SetPoolResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        asker.about("pool", &request.name);
        let known = match request.detached {
            true => self.0.pools.detach(&request.name).await,
            false => self.0.pools.attach(&request.name).await,
        };
        if request.detached {
            self.0.workspaces.let_go(&request.name).await;
        }
        let pools = self.0.pools.view();
        let found = pools.iter().find(|pool| known && pool.name == request.name);
        let found =
            found.ok_or_else(|| Status::not_found(format!("no pool {:?} is declared for this node", request.name)))?;
        Ok(Response::new(v1::SetPoolResponse { pool: Some(self.0.pool(found)) }))
    }

    async fn get_plan(&self, request: Request<v1::GetPlanRequest>) -> Result<Response<v1::GetPlanResponse>, Status> {
        super::retention::plan(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn examine(&self, _: Request<v1::ExamineRequest>) -> Result<Response<v1::ExamineResponse>, Status> {
        super::examination::examine(&self.0).await.map(Response::new)
    }
}

impl Rooms {
    /// How sources come into workspaces.
    fn made_by(&self, chosen: Chosen) -> v1::Workspaces {
        let kept = self.workspaces.checkouts();
        v1::Workspaces {
            method: super::workspace::method(chosen.method).into(),
            reason: chosen.reason,
            idmapped: chosen.idmapped,
            checkouts: i32::try_from(kept.count).unwrap_or(i32::MAX),
            checkout_layers: i32::try_from(kept.layers).unwrap_or(i32::MAX),
            checkout_bytes: wire(kept.bytes),
            checkouts_evicted: wire(kept.evicted),
            checkout_evicted_at: kept.last_evicted_at.map(timestamp),
            disk_quota: chosen.quota.works,
            disk_quota_reason: chosen.quota.reason,
        }
    }

    /// A pool, and what still holds its disk where it was detached.
    fn pool(&self, found: &PoolView) -> v1::Pool {
        let mut told = pool(found);
        if let Some(holding) = self.holding(found) {
            told.message = format!("{}; {holding}", told.message);
        }
        told
    }

    /// The node on one screen.
    #[must_use]
    pub fn status(&self) -> v1::Status {
        let now = crate::admission::now();
        let view = self.pressure.view();
        let readings = &view.readings;
        let (ledger, mode_state, leases, tickets) = self.admission.totals(|ledger, sums| {
            (totals(sums), ledger.mode_at(now), count(ledger.live_count()), count(ledger.queued()))
        });
        let (sizes, over_declared, near) = self.admission.read(|ledger| {
            let sizings = ledger.tickets().map(|ticket| &ticket.request.sizing);
            let sizings = sizings.chain(ledger.live().map(|lease| &lease.sizing));
            let over_declared = sizings.filter(|sizing| sizing.is_over_declared()).count();
            let sizes = ledger.live().map(|lease| (lease.id.clone(), lease.sizing.size.amounts));
            let near = ledger.live().filter(|lease| lease.was_told(Code::TimeBudgetNear)).count();
            (sizes.collect::<BTreeMap<_, _>>(), over_declared, near)
        });
        let uses = self.lease_meter.view();
        let written = self.workspaces.written();
        let uses = uses.leases.iter().map(|(lease, seen)| {
            let wrote = Wrote { on_disk: written.get(lease), limited: self.workspaces.is_limited(lease) };
            lease_use(lease, seen, sizes.get(lease), wrote)
        });
        let uses: Vec<v1::LeaseUse> = uses.collect();
        let repositories = self.repositories.list();
        let with =
            |wanted: &[RepositoryState]| count(repositories.iter().filter(|r| wanted.contains(&r.state)).count());
        let counts = v1::Counts {
            leases,
            tickets,
            workspaces: count(self.workspaces.list().len()),
            repositories: count(repositories.len()),
            repositories_empty: with(&[RepositoryState::Empty]),
            fetching: with(&[RepositoryState::Filling, RepositoryState::Fetching]),
            over_declared: count(over_declared),
            time_budget_near: count(near),
            unlimited: count(uses.iter().filter(|seen| is_unlimited(seen)).count()),
        };
        let machine = &self.identity.machine;
        let kept = self.retention.view();
        v1::Status {
            node: Some(self.node()),
            mode: mode(mode_state.mode).into(),
            mode_until: mode_state.until.map(timestamp),
            mode_note: mode_state.note,
            mode_deadline: mode_state.deadline.map(timestamp),
            gate: Some(v1::Gate {
                state: match view.gate.state {
                    GateState::Open => v1::GateState::Open,
                    GateState::Narrow => v1::GateState::Narrow,
                    GateState::Shut => v1::GateState::Shut,
                }
                .into(),
                reasons: reasons(&view.gate.reasons),
                since: Some(timestamp(view.gate.since)),
            }),
            memory: readings.memory.map(|memory| v1::Memory {
                total_bytes: wire(memory.total_bytes),
                available_bytes: wire(memory.available_bytes),
                stall: Some(stall(readings.memory_stall)),
                stall_source: view.stall_source.word().to_owned(),
                stall_source_why: view.stall_source.why().to_owned(),
            }),
            cpu: Some(v1::Cpu {
                total_millis: wire(machine.cpu_millis),
                used_millis: readings.cpu.map_or(0, |cpu| wire(cpu.used_millis)),
                stall: Some(stall(readings.cpu_stall)),
                load: readings.load.map(load),
            }),
            io: Some(v1::Io { stall: Some(stall(readings.io_stall)) }),
            pools: super::retention::used(
                self.pools.view().iter().map(|found| filling(self.pool(found), readings)).collect(),
                &kept,
            ),
            root: filesystem(&readings.root),
            filesystems: readings.filesystems.iter().map(watched).collect(),
            control_plane: control_plane(&readings.control_plane),
            lease_use: uses,
            ledger: Some(ledger),
            counts: Some(counts),
            alarms: reasons(&self.alarms()),
            workspaces: self.workspaces.method().map(|chosen| self.made_by(chosen)),
            host: Some(v1::Host {
                kernel: machine.kernel.clone(),
                system: machine.system.clone(),
                architecture: machine.architecture.clone(),
                boot_id: machine.boot_id.clone(),
                git_version: self.identity.git_version.clone(),
            }),
            started_at: Some(timestamp(self.identity.started_at)),
            retention: Some(super::retention::view(&kept)),
        }
    }

    /// Which leases still run although the deadline of the drain has passed.
    fn overdue(&self) -> Option<Reason> {
        let now = crate::admission::now();
        self.admission.read(|ledger| {
            let mode = ledger.mode_at(now);
            let deadline = mode.deadline.filter(|deadline| mode.mode == Mode::Drain && *deadline <= now)?;
            let named = ledger.live().take(NAMED_MAX).map(|lease| match lease.scope.tenant.as_str() {
                "" => lease.id.to_string(),
                tenant => format!("{} of tenant {tenant:?}", lease.id),
            });
            let named = named.collect::<Vec<_>>().join(", ");
            let more = match ledger.live_count().saturating_sub(NAMED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let ago = Resource::Time.show(now.since(deadline).0.unsigned_abs() / 1000 * 1000);
            let message = format!("the deadline of the drain passed {ago} ago, and still there are: {named}{more}");
            (ledger.live_count() > 0).then(|| Reason::new(Code::ModeDrain, "node", message))
        })
    }

    /// What an operator should mend.
    #[must_use]
    pub fn alarms(&self) -> Vec<Reason> {
        let pools = self.pools.view();
        let lost = pools.iter().filter(|pool| pool.state != State::Ready).map(|pool| {
            let message = format!("pool {} is {}: {}", pool.name, pool.state.word(), pool.message);
            Reason::new(Code::PoolNotReady, pool.name.clone(), message)
        });
        let directories = pools.iter().flat_map(|pool| {
            pool.directories.iter().filter(|directory| directory.state != State::Prepared).map(|directory| {
                let path = format!("{}/{}", pool.path.display(), directory.path.display());
                let message = format!("directory {path} is {}: {}", directory.state.word(), directory.message);
                Reason::new(Code::PoolNotReady, path, message)
            })
        });
        let empty = self.repositories.list().into_iter().filter(|r| r.declared && r.snapshot.is_empty()).map(|r| {
            let why = r.reasons.first().map_or_else(|| "not filled yet".to_owned(), |reason| reason.message.clone());
            let code = if r.evicted.is_some() { Code::RepositoryEvicted } else { Code::RepositoryEmpty };
            Reason::new(code, r.url.key(), format!("declared mirror {} is empty: {why}", r.url))
        });
        let journal = self.admission.journal_error().map(|error| {
            Reason::new(Code::JournalUnavailable, "journal", format!("new builds wait, releases go on: {error}"))
        });
        let config = self.config_fault.read().unwrap_or_else(PoisonError::into_inner).clone();
        let containment = self.repositories.containment_alarm();
        let limit = self.repositories.over_limit();
        let lists = self.repositories.list_faults();
        lost.chain(directories)
            .chain(empty)
            .chain(lists)
            .chain(limit)
            .chain(journal)
            .chain(config)
            .chain(containment)
            .chain(self.admission.sizing_fault())
            .chain(self.overdue())
            .chain(self.retention.view().alarms)
            .chain(self.access.alarms())
            .chain(self.kubernetes.alarms())
            .collect()
    }
}

fn control_plane(reading: &ControlPlane) -> Option<v1::ControlPlane> {
    if *reading == ControlPlane::default() {
        return None;
    }
    let (latency, message) = match &reading.probe {
        Probe::Unasked => (None, String::new()),
        Probe::Answered(took) => (Some(duration(*took)), String::new()),
        Probe::Unwell(why) | Probe::Failed(why) => (None, why.clone()),
    };
    let groups = reading.groups.iter().map(|group| v1::ControlGroup {
        path: group.path.clone(),
        memory: Some(stall(group.memory)),
        cpu: Some(stall(group.cpu)),
    });
    Some(v1::ControlPlane { latency, message, groups: groups.collect() })
}

fn load(load: Load) -> v1::Load {
    let wire = |hundredths: u32| i32::try_from(hundredths).unwrap_or(i32::MAX);
    v1::Load { avg_1m: wire(load.avg_1m), avg_5m: wire(load.avg_5m), avg_15m: wire(load.avg_15m) }
}

fn count(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn stall(reading: StallReading) -> v1::Stall {
    let share = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    reading.known().map_or_else(v1::Stall::default, |stall| v1::Stall {
        known: true,
        some_avg10: share(stall.some_avg10),
        some_avg60: share(stall.some_avg60),
        full_avg10: share(stall.full_avg10),
        full_avg60: share(stall.full_avg60),
        full_now: share(stall.full_now),
    })
}

/// The pool with how fast it fills, which the gate's last look knows.
fn filling(mut pool: v1::Pool, readings: &Readings) -> v1::Pool {
    let found = readings.pools.iter().find(|reading| reading.name == pool.name);
    let read = found.and_then(|reading| filesystem(&reading.disk));
    if let (Some(shown), Some(read)) = (pool.filesystem.as_mut(), read) {
        shown.bytes_per_minute = read.bytes_per_minute;
        shown.inodes_per_minute = read.inodes_per_minute;
        shown.floor_in = read.floor_in;
    }
    pool
}

fn watched(reading: &WatchedReading) -> v1::WatchedFilesystem {
    v1::WatchedFilesystem { path: reading.path.clone(), filesystem: filesystem(&reading.disk) }
}

fn filesystem(reading: &DiskReading) -> Option<v1::Filesystem> {
    let DiskReading::Known(disk) = reading else { return None };
    Some(v1::Filesystem {
        bytes_per_minute: wire(disk.slope.bytes_per_minute),
        inodes_per_minute: wire(disk.slope.inodes_per_minute),
        floor_in: disk.slope.floor_in(disk).map(duration),
        total_bytes: wire(disk.total_bytes),
        free_bytes: wire(disk.free_bytes),
        total_inodes: wire(disk.total_inodes),
        free_inodes: wire(disk.free_inodes),
        floor_bytes: wire(disk.floor_bytes),
        floor_inodes: wire(disk.floor_inodes),
        r#type: String::new(),
    })
}

fn pool(pool: &PoolView) -> v1::Pool {
    v1::Pool {
        name: pool.name.clone(),
        path: pool.path.to_string_lossy().into_owned(),
        state: pool.state.word().to_owned(),
        message: pool.message.clone(),
        filesystem: pool.filesystem.as_ref().map(|disk| v1::Filesystem {
            total_bytes: wire(disk.total_bytes),
            free_bytes: wire(disk.free_bytes),
            total_inodes: wire(disk.total_inodes),
            free_inodes: wire(disk.free_inodes),
            floor_bytes: wire(disk.floor_bytes),
            floor_inodes: wire(disk.floor_inodes),
            r#type: disk.type_name.clone(),
            ..Default::default()
        }),
        directories: pool
            .directories
            .iter()
            .map(|directory| v1::Directory {
                path: directory.path.to_string_lossy().into_owned(),
                state: directory.state.word().to_owned(),
                message: directory.message.clone(),
                retention: retention(directory.retention).to_owned(),
                ..Default::default()
            })
            .collect(),
        since: Some(timestamp(pool.since)),
    }
}

const fn retention(retention: Retention) -> &'static str {
    match retention {
        Retention::Scratch => "scratch",
        Retention::Cache => "cache",
        Retention::Output => "output",
        Retention::Mirror => "mirror",
    }
}
