//! Builds the rooms in order, binds, serves, and ends everything in order.
//!
//! An [`Agent`] is the whole agent: `stoker agent` runs one until a signal, `stoker run` one inside its own process.
//! Everything that is spawned belongs to a room or to this file, and is awaited at the end.

mod absent;
mod face;
mod facts;
mod listen;
mod views;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use stoker_core::quantity::Amounts;
use stoker_core::reason::{Code, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::access::Access;
use crate::admission::{Admission, JournalError, Measured, Survey, new_id, now};
use crate::config::reload::{self, Changes};
use crate::config::{Config, ConfigErrors};
use crate::kubernetes::{self, Face};
use crate::node::Pools;
use crate::node::facts::{Facts, FactsError};
use crate::pressure::Pressure;
use crate::pressure::lease_use::LeaseMeter;
use crate::repository::git::{Git, GitError};
use crate::repository::orphans::end_orphans;
use crate::repository::serve::Serve;
use crate::repository::{Containment, Pool, Repositories, Space};
use crate::rpc::{Identity, Rooms};
use crate::sizing::{FactsCache, Nickel};
use crate::workspace::retention::Retention;
use crate::workspace::{self, Workspaces};
pub use absent::WaitingPods;
use facts::facts_source;
use views::Views;

/// How long a state that another agent has is waited for, and how often it is looked at.
const LOCKED_WITHIN: Duration = Duration::from_secs(2);
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another agent has this state.
    #[error("{0} is in use by another agent: stop it, or choose another state directory")]
    Locked(PathBuf),
    /// A directory or a socket.
    #[error("{what}: {error}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        error: io::Error,
    },
    /// The machine does not tell what it is.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// No git, or too old a one.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Git cannot be kept as the configuration wants it.
    #[error("{0}")]
    Containment(String),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The repositories.
    #[error("repositories: {0}")]
    Repositories(String),
    /// A server.
    #[error("{0}")]
    Serve(String),
    /// Files of a listener's TLS.
    #[error("{0}")]
    Tls(String),
}

impl StartError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |error| Self::Io { what, error }
    }
}

/// A running agent.
pub struct Agent {
    config: watch::Sender<Arc<Config>>,
    rooms: Rooms,
    socket: Option<PathBuf>,
    serving: TaskTracker,
    /// Ends the servers, then the rooms.
    closing: CancellationToken,
    /// That this agent lives, for the helper that git runs in; longer than any git.
    _helper: Option<AbortOnDropHandle<()>>,
    /// Held for the agent's whole life: one agent a state.
    _lock: Flock<File>,
}

impl Agent {
    /// Locks the state, builds the rooms, binds and serves. Nothing is left running where this fails.
    ///
    /// # Errors
    /// When the state is in use, or something cannot be built or bound; see [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let lock = lock(&config.state)?;
        // Before any room looks at what its predecessor left: the dead agent's git may still write to it.
        let state = config.state.clone();
        match tokio::task::spawn_blocking(move || end_orphans(&state)).await {
            Ok(0) | Err(_) => {}
            Ok(ended) => tracing::warn!(ended, "git children of a killed agent were ended"),
        }
        let containment = Containment::of(&config.repositories.git);
        let containment = containment.map_err(|reason| StartError::Containment(reason.message))?;
        let git = Git::find().await?.of_state(&config.state).contained(containment);
        let helper = git.keep_helper().map(|keep| AbortOnDropHandle::new(tokio::spawn(keep)));
        let machine = Facts::read(&config.node.host_root)?;
        let closing = CancellationToken::new();
        let serving = TaskTracker::new();
        let config = Arc::new(config);
        let configured = watch::Sender::new(Arc::clone(&config));
        let rooms = match build(&configured, git, machine, &closing, &serving).await {
            Ok(rooms) => rooms,
            Err(error) => {
                closing.cancel();
                return Err(error);
            }
        };
        let agent = Self {
            config: configured,
            rooms,
            socket: config.listen.socket.clone(),
            serving,
            closing,
            _helper: helper,
            _lock: lock,
        };
        match agent.serve(&config).await {
            Ok(()) => Ok(agent),
            Err(error) => {
                agent.stop(Duration::ZERO).await;
                Err(error)
            }
        }
    }

    /// Takes over what of a new configuration needs no restart; says what changed and what waits for one.
    pub async fn reconfigure(&self, new: &Config) -> Changes {
        let old = Arc::clone(&self.config.borrow());
        let (merged, changes) = reload::take_over(&old, new);
        self.config.send_replace(Arc::new(merged.clone()));
        self.rooms.pools.reconfigure(&merged.pools).await;
        let fault = self.rooms.repositories.reconfigure(&merged.repositories).await.err();
        if let Some(reason) = &fault {
            tracing::error!(reason = reason.code.word(), "taken over but for this: {}", reason.message);
        }
        *self.rooms.config_fault.write().unwrap_or_else(PoisonError::into_inner) = fault;
        changes
    }

    /// The configuration file is not right: the one before goes on, and says so.
    pub fn refuse_configuration(&self, why: &ConfigErrors) {
        let first = why.problems.first().map_or_else(String::new, |problem| format!("{problem}; "));
        let message = format!("{first}the configuration before goes on: check it with `stoker config check`");
        let mut fault = self.rooms.config_fault.write().unwrap_or_else(PoisonError::into_inner);
        *fault = Some(Reason::new(Code::ConfigInvalid, why.source_name.clone(), message));
    }

    /// Where it answers on this machine.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// What it serves.
    #[must_use]
    pub const fn rooms(&self) -> &Rooms {
        &self.rooms
    }

    /// Waits until leases without a holder have ended, and what they had is really gone; at most for `limit`.
    pub async fn drained(&self, limit: Duration) {
        let host_root = self.config.borrow().node.host_root.clone();
        let drained = async {
            let mut changes = self.rooms.admission.watch();
            while self.rooms.admission.has_orphans(&host_root) {
                if changes.changed().await.is_err() {
                    break;
                }
            }
            self.rooms.workspaces.settled(&self.rooms.admission).await;
            self.rooms.pools.drained().await;
        };
        let _ = tokio::time::timeout(limit, drained).await;
    }

    /// Ends the servers, then the rooms from the last to the first. Calls under way get `limit` to end by themselves.
    pub async fn stop(self, limit: Duration) {
        self.rooms.cancel.cancel();
        self.closing.cancel();
        self.serving.close();
        self.rooms.tasks.close();
        let quiet = async {
            self.serving.wait().await;
            self.rooms.tasks.wait().await;
        };
        if tokio::time::timeout(limit.max(Duration::from_millis(100)), quiet).await.is_err() {
            tracing::warn!("calls were still open after {limit:?}; they are cut");
        }
        self.rooms.workspaces.shutdown().await;
        self.rooms.lease_meter.shutdown().await;
        self.rooms.admission.shutdown().await;
        self.rooms.pressure.shutdown().await;
        self.rooms.repositories.shutdown().await;
        self.rooms.pools.shutdown().await;
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// One agent a state: the lock is the kernel's, so it goes with the process however that ends. A child that was not yet what
/// it was to become when its agent was killed holds it for a moment longer: that is waited for.
fn lock(state: &Path) -> Result<Flock<File>, StartError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(state).map_err(StartError::io(format!("state {}", state.display())))?;
    let path = state.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(StartError::io(path.display().to_string()))?;
    let (mut file, began) = (file, Instant::now());
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((_, _)) if began.elapsed() >= LOCKED_WITHIN => return Err(StartError::Locked(state.to_owned())),
            Err((file, _)) => file,
        };
        std::thread::sleep(LOCK_AGAIN);
    }
}

async fn build(
    configured: &watch::Sender<Arc<Config>>,
    git: Git,
    machine: Facts,
    closing: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<Rooms, StartError> {
    let config = Arc::clone(&configured.borrow());
    let config = config.as_ref();
    let declared = config.pools.clone();
    let pools = tokio::task::spawn_blocking(move || Pools::open(&declared)).await;
    let pools = pools.map_err(|error| StartError::Serve(error.to_string()))?;
    pools.watch(closing);
    let views = Views::default();
    let reserved = || views.reserved.subscribe();
    let incarnation: stoker_core::identity::LeaseId = new_id();
    let face = watch::Sender::<Face>::default();
    let cluster =
        kubernetes::start(&configured.subscribe(), incarnation.to_string(), face.subscribe(), closing.child_token());
    let here = absent::without(views.waiting.subscribe(), cluster.subscribe(), tasks, closing.child_token());
    let pressure =
        Arc::new(Pressure::start(&configured.subscribe(), pools.clone(), reserved(), cluster.subscribe(), closing));
    let lease_meter = LeaseMeter::start(&config.node.host_root, views.held.subscribe(), here, closing);
    let repositories = open_repositories(config, git.clone(), pools.clone(), reserved(), closing).await?;
    let facts_cache =
        FactsCache::new(repositories.reader(), Nickel::new(configured.subscribe()), closing.child_token());
    let measured = Measured::new(lease_meter.subscribe(), views.on_disk.subscribe());
    let facts =
        facts_source(configured.subscribe(), &machine, &pools, &pressure, measured.clone(), cluster.subscribe());
    let survey = Survey::new(repositories.clone(), facts_cache, configured.subscribe(), views.caches.subscribe());
    let (state, boot_id) = (config.state.clone(), machine.boot_id.clone());
    let admission = tokio::task::spawn_blocking(move || Admission::open(&state, &boot_id, survey, facts, measured))
        .await
        .map_err(|error| StartError::Serve(error.to_string()))??;
    let child = || closing.child_token();
    admission.start_upkeep(&config.node.host_root, configured.subscribe(), cluster.clone(), child()).await;
    let beside = workspace::Rooms {
        pools: pools.clone(),
        git: git.clone(),
        repositories: repositories.clone(),
        admission: admission.clone(),
        on_disk: views.on_disk.clone(),
        shown: views.shown.subscribe(),
    };
    if config.volume.is_none() {
        views.shown.send_replace(Some(Arc::default()));
        views.mirrors_held.send_replace(true);
    }
    let workspaces = Workspaces::open(configured.subscribe(), &machine.boot_id, beside, closing.child_token()).await;
    let retention =
        Retention::open(pools.clone(), workspaces.outputs().clone(), configured.subscribe(), workspaces.holders());
    tasks.spawn(retention.clone().watch(closing.child_token()));
    let (taken_up, mut mirrors) = (workspaces.taken_up(), views.mirrors_held.subscribe());
    let holders = async move {
        taken_up.await;
        let _ = mirrors.wait_for(|held| *held).await;
    };
    repositories.start_upkeep(holders, views.needed.subscribe());
    let told = face::Rooms {
        admission: admission.clone(),
        repositories: repositories.clone(),
        pressure: Arc::clone(&pressure),
        kubernetes: cluster.clone(),
    };
    tasks.spawn(face::follow(told, face, closing.child_token()));
    let (waiting_pods, shown_caches) = (views.waiting.clone(), views.shown.clone());
    let mirrors_held = views.mirrors_held.clone();
    tasks.spawn(views.follow(admission.clone(), workspaces.clone(), closing.child_token()));
    let identity = Identity {
        name: config.node.name.clone(),
        incarnation: incarnation.to_string(),
        started_at: now(),
        machine,
        git_version: git.version().to_string(),
        host_root: config.node.host_root.clone(),
    };
    Ok(Rooms {
        access: Access::new(configured.subscribe()),
        admission,
        serve: Serve::new(repositories.clone()),
        repositories,
        workspaces,
        retention,
        pools,
        pressure,
        kubernetes: cluster,
        waiting_pods,
        shown_caches,
        mirrors_held,
        lease_meter: Arc::new(lease_meter),
        configured: configured.subscribe(),
        config_fault: Arc::default(),
        identity: Arc::new(identity),
        cancel: closing.child_token(),
        tasks: TaskTracker::new(),
        metrics: crate::metrics::Metrics::default(),
    })
}

async fn open_repositories(
    config: &Config,
    git: Git,
    pools: Pools,
    reserved: watch::Receiver<Amounts>,
    closing: &CancellationToken,
) -> Result<Repositories, StartError> {
    let pool = pool_of_repositories(config, pools, reserved);
    let opened = Repositories::open(&config.repositories, git, pool, closing.child_token()).await;
    opened.map_err(|reason| StartError::Repositories(reason.message))
}

/// The pool of the repositories: what it has, and what leases hold of it where builds write to the same.
fn pool_of_repositories(config: &Config, pools: Pools, reserved: watch::Receiver<Amounts>) -> Pool {
    let name = &config.repositories.pool;
    let is_shared = config.workspaces.pool == *name;
    let root = (name.clone(), pools.clone());
    let measured = (name.clone(), pools.clone());
    Pool {
        root: Arc::new(move || root.1.usable(&root.0)),
        measure: Arc::new(move || {
            let (name, pools) = &measured;
            pools.usable(name)?;
            let disk = pools.measure_one(name).and_then(Result::ok);
            let disk =
                disk.ok_or_else(|| Reason::new(Code::PoolNotReady, name.clone(), "the pool cannot be measured"))?;
            let reserved_bytes = if is_shared { reserved.borrow().disk_bytes } else { 0 };
            Ok(Space { free_bytes: disk.free_bytes, floor_bytes: disk.floor_bytes, reserved_bytes })
        }),
        discard: Arc::new(move |path: PathBuf| pools.discard(&path)),
    }
}
