//! Large files (git-lfs), on request: kept once a trust class by what they contain, checked as they come.
//!
//! In comes a commit; its pointers are found in its own tree and attributes. What is not here is asked of the LFS server
//! of its repository, in the agent's own HTTP; out go the paths of read-only files, which a build gets copies of. Nothing
//! is half done: one object that is not to be had is a reason, and no answer.

mod attributes;
mod batch;
mod counts;
mod download;
mod endpoint;
mod pointer;
mod prefill;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use stoker_core::identity::CommitId;
use stoker_core::quantity::Resource;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use tokio::sync::{Mutex as AsyncMutex, OnceCell, OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::credentials::Credentials;
use super::disk::io_reason;
use super::fetch::blocking;
use super::git::GitError;
use super::places::Places;
use super::progress::Progress;
use super::snapshot::SnapshotPin;
use super::upstream_http::{Http, has_proxy};
use super::{Repositories, Shared, lock};
use crate::config;
use counts::Counters;
use download::Session;
use endpoint::{Endpoint, Policy};
use pointer::{Named, Pointer, ScanError, as_path, scan};
use store::ObjectStore;

pub use counts::LfsCounts;
pub use pointer::LfsOid;
pub(super) use prefill::prefill_always;

/// How long reading a commit's `.lfsconfig` may take.
const CONFIG_WITHIN: Duration = Duration::from_secs(30);

/// A large file of a commit, and where its content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LfsFile {
    /// In the commit.
    pub path: PathBuf,
    /// The content's name.
    pub oid: LfsOid,
    /// Its length.
    pub bytes: u64,
    /// A read-only file that is never changed, there for as long as [`LfsFiles`] lives.
    pub object: PathBuf,
}

/// The large files of a commit; none of them is evicted while this lives.
#[derive(Debug, Default)]
pub struct LfsFiles {
    files: Vec<LfsFile>,
    _needed: Option<Needed>,
}

impl LfsFiles {
    /// All of them.
    #[must_use]
    pub fn files(&self) -> &[LfsFile] {
        &self.files
    }

    /// Their bytes, each path counted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

/// What the room remembers of large files.
pub(super) struct Lfs {
    http: Http,
    /// Of mirrors whose large files are fetched ahead.
    pub(super) places: Places,
    counters: Counters,
    needed: Arc<Mutex<HashMap<PathBuf, usize>>>,
    /// Of objects that are on their way: who wants the same waits for it.
    locks: Mutex<HashMap<PathBuf, Weak<AsyncMutex<()>>>>,
    /// Bytes that are on their way and not on the disk yet.
    coming: Arc<AtomicU64>,
    /// Held by who looks whether there is room.
    making_room: Arc<Mutex<()>>,
    /// Done once the pool was there.
    cleared: OnceCell<()>,
    /// Why the large files of a mirror are not here, by key.
    faults: Mutex<BTreeMap<String, Reason>>,
}

impl Lfs {
    pub(super) fn new(http: Http, config: &config::Repositories) -> Self {
        Self {
            http,
            places: Places::new(config.parallel, config.parallel_per_host),
            counters: Counters::default(),
            needed: Arc::default(),
            locks: Mutex::default(),
            coming: Arc::default(),
            making_room: Arc::default(),
            cleared: OnceCell::new(),
            faults: Mutex::default(),
        }
    }

    /// Why the large files of a mirror are not here, where they should be.
    pub(super) fn fault(&self, url: &RepositoryUrl) -> Option<Reason> {
        lock(&self.faults).get(url.key()).cloned()
    }

    /// Waits until nobody else brings one of these. Always in the same order, so that no two wait for each other.
    async fn turns(&self, paths: &BTreeSet<PathBuf>) -> Vec<OwnedMutexGuard<()>> {
        let of_all: Vec<Arc<AsyncMutex<()>>> = {
            let mut locks = lock(&self.locks);
            locks.retain(|_, turn| turn.strong_count() > 0);
            let of = |path: &PathBuf| match locks.get(path).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    locks.insert(path.clone(), Arc::downgrade(&turn));
                    turn
                }
            };
            paths.iter().map(of).collect()
        };
        let mut turns = Vec::with_capacity(of_all.len());
        for turn in of_all {
            turns.push(turn.lock_owned().await);
        }
        turns
    }
}

/// Keeps objects from being evicted.
#[derive(Debug)]
struct Needed {
    all: Arc<Mutex<HashMap<PathBuf, usize>>>,
    paths: BTreeSet<PathBuf>,
}

impl Needed {
    fn new(all: &Arc<Mutex<HashMap<PathBuf, usize>>>, paths: BTreeSet<PathBuf>) -> Self {
        let mut held = lock(all);
        for path in &paths {
            *held.entry(path.clone()).or_default() += 1;
        }
        drop(held);
        Self { all: Arc::clone(all), paths }
    }
}

impl Drop for Needed {
    fn drop(&mut self) {
        let mut held = lock(&self.all);
        for path in &self.paths {
            if let Some(count) = held.get_mut(path) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    held.remove(path);
                }
            }
        }
    }
}

/// Bytes that are on their way.
#[derive(Debug)]
struct Coming {
    all: Arc<AtomicU64>,
    bytes: AtomicU64,
}

impl Coming {
    /// An object of so many is here, and on the disk.
    fn landed(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.all.fetch_sub(bytes, Ordering::SeqCst);
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

impl Repositories {
    /// Whether the configuration wants this repository with its large files.
    #[must_use]
    pub fn wants_lfs(&self, url: &RepositoryUrl) -> bool {
        self.shared.config().mirrors.iter().any(|mirror| mirror.lfs && mirror.url == *url)
    }

    /// All large files of a commit, here. Those that are not are fetched, within the time that a fetch may take.
    ///
    /// # Errors
    /// The reason why one of them is not to be had; then none is given.
    pub async fn lfs_files(
        &self,
        pin: &SnapshotPin,
        commit: CommitId,
        trust: &str,
        steps: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<LfsFiles, Reason> {
        fetch_within(&self.shared, pin, commit, trust, steps, cancel).await
    }

    /// What came of fetching large files since the start.
    #[must_use]
    pub fn lfs_counts(&self) -> LfsCounts {
        self.shared.lfs.counters.read()
    }
}

impl Shared {
    /// Removes the least recently used large files until `bytes` became free, but none that is needed for a workspace that
    /// is being made; finished ones have copies. Gives what became free. Blocks on the disk.
    ///
    /// # Errors
    /// When the pool is not there or something cannot be removed.
    pub(super) fn evict_large_files(&self, bytes: u64) -> Result<u64, Reason> {
        let store = ObjectStore::new(&(self.pool.root)()?);
        let _turn = lock(&self.lfs.making_room);
        evict(&self.lfs.needed, &store, bytes)
    }
}

fn evict(needed: &Mutex<HashMap<PathBuf, usize>>, store: &ObjectStore, bytes: u64) -> Result<u64, Reason> {
    // Held for one file at a time: what is found to be needed by nobody must not become needed before it is gone.
    let freed = store.evict(bytes, |path| {
        let needed = lock(needed);
        if needed.contains_key(path) {
            return Ok(false);
        }
        match std::fs::remove_file(path) {
            // Somebody else made room meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true),
        }
    });
    let freed = freed.map_err(|error| io_reason("lfs", "removing large files", &error))?;
    if freed > 0 {
        tracing::info!(bytes = freed, "large files that were not used for longest were removed");
    }
    Ok(freed)
}

async fn fetch_within(
    shared: &Shared,
    pin: &SnapshotPin,
    commit: CommitId,
    trust: &str,
    steps: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<LfsFiles, Reason> {
    let within = shared.config().fetch_within;
    let root = (shared.pool.root)()?;
    let lost = shared.presence.token();
    let key = pin.url().key();
    let stopped = || Reason::new(Code::UpstreamUnreachable, key, "fetching large files was ended");
    let fetched = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(stopped()),
        () = shared.cancel.cancelled() => Err(stopped()),
        () = lost.cancelled() => Err((shared.pool.root)().err().unwrap_or_else(stopped)),
        done = tokio::time::timeout(within, fetch(shared, &root, pin, commit, trust, steps)) => {
            done.unwrap_or_else(|_| {
                let message = format!("large files of {} did not come within {} s", pin.url(), within.as_secs());
                Err(Reason::new(Code::UpstreamTimeout, key, message))
            })
        }
    };
    // Who was told to stop did not fail.
    if let Err(reason) = fetched.as_ref()
        && !cancel.is_cancelled()
        && !shared.cancel.is_cancelled()
    {
        shared.lfs.counters.failed(reason.code);
    }
    fetched
}

async fn fetch(
    shared: &Shared,
    root: &Path,
    pin: &SnapshotPin,
    commit: CommitId,
    trust: &str,
    steps: &watch::Sender<Progress>,
) -> Result<LfsFiles, Reason> {
    let (lfs, key) = (&shared.lfs, pin.url().key());
    let store = ObjectStore::new(root);
    lfs.cleared
        .get_or_try_init(async || {
            let store = store.clone();
            let cleared = blocking(key, move || store.clear()).await?;
            cleared.map_err(|error| io_reason(key, "clearing what a killed agent left", &error))
        })
        .await?;
    let (files, configured) = find(shared, &store, pin, commit).await?;
    check_sizes(shared, pin.url(), &files)?;
    let wanted: BTreeSet<Pointer> = files.iter().map(|file| file.pointer).collect();
    let paths = wanted.iter().map(|pointer| store.path(trust, pointer.oid)).collect();
    let needed = Needed::new(&lfs.needed, paths);
    let missing = look(&store, trust, wanted.iter().copied().collect(), key).await?;
    if !missing.is_empty() {
        let _turns = lfs.turns(&missing.iter().map(|pointer| store.path(trust, pointer.oid)).collect()).await;
        let missing = look(&store, trust, missing, key).await?;
        if !missing.is_empty() {
            let coming = make_room(shared, &store, &missing, key).await?;
            let total = u64::try_from(missing.len()).unwrap_or(u64::MAX);
            steps.send_replace(Progress { phase: "large files", total, ..Progress::default() });
            let policy = Policy::new(pin.url(), &shared.config());
            let from = if configured { lfsconfig(shared, pin, commit).await? } else { None };
            let http = lfs.http.guarded(policy.local_hosts());
            let done = AtomicU64::new(0);
            let names = files.iter().map(|file| (file.pointer.oid, shown(file))).collect();
            let authorization = Credentials::of(&shared.config(), trust).header_for(pin.url()).await?;
            let (policy, store, paths) = (&policy, &store, &names);
            let counters = &lfs.counters;
            let session =
                Session { http, policy, authorization, store, trust, paths, steps, done, total, counters, coming };
            match policy.endpoint(from.as_deref())? {
                Endpoint::Local(dirs) => session.copy(&dirs, &missing).await?,
                Endpoint::Server(_) if has_proxy() => {
                    let message = "large files are not fetched through a proxy; unset the proxy's variables";
                    return Err(Reason::new(Code::UpstreamUnreachable, key, message));
                }
                Endpoint::Server(server) => session.bring(&server, &missing).await?,
            }
        }
    }
    let files = files.into_iter().map(|file| LfsFile {
        object: store.path(trust, file.pointer.oid),
        path: as_path(&file.path).to_owned(),
        oid: file.pointer.oid,
        bytes: file.pointer.bytes,
    });
    Ok(LfsFiles { files: files.collect(), _needed: Some(needed) })
}

/// The large files of a commit, and whether it has a `.lfsconfig`.
async fn find(
    shared: &Shared,
    store: &ObjectStore,
    pin: &SnapshotPin,
    commit: CommitId,
) -> Result<(Vec<Named>, bool), Reason> {
    let key = pin.url().key();
    let (snapshot, beside) = (pin.path().to_owned(), store.clone());
    let scanned = blocking(key, move || scan(&snapshot, commit)).await?.map_err(|error| {
        let code = if matches!(error, ScanError::Git(_)) { Code::RepositoryCorrupt } else { Code::LfsLimit };
        Reason::new(code, key, format!("looking for large files in {commit}: {error}"))
    })?;
    let configured = scanned.configured;
    if scanned.files.is_empty() {
        return Ok((Vec::new(), configured));
    }
    let file = blocking(key, move || beside.temporary("attributes")).await?;
    let file = file.map_err(|error| io_reason(key, "looking for large files", &error))?;
    let files = attributes::filtered(&shared.git, pin.path(), file, scanned).await;
    let files = files.map_err(|error| error.reason(key, &format!("reading the attributes of {commit}")))?;
    Ok((files, configured))
}

/// A path for people.
fn shown(file: &Named) -> String {
    batch::brief(&String::from_utf8_lossy(&file.path))
}

fn check_sizes(shared: &Shared, url: &RepositoryUrl, files: &[Named]) -> Result<(), Reason> {
    let limit = shared.config().lfs.object_limit;
    let Some(file) = files.iter().find(|file| file.pointer.bytes > limit) else { return Ok(()) };
    let bytes = file.pointer.bytes;
    let message = format!(
        "{} of {url} has {bytes} bytes, `repositories.lfs.objectLimit` is {limit}; raise it to serve this repository",
        shown(file)
    );
    Err(Reason::new(Code::LfsLimit, file.pointer.oid.to_string(), message).about(Resource::DiskBytes, bytes, limit))
}

/// Those that are not here.
async fn look(store: &ObjectStore, trust: &str, wanted: Vec<Pointer>, key: &str) -> Result<Vec<Pointer>, Reason> {
    let (store, trust) = (store.clone(), trust.to_owned());
    let looked = blocking(key, move || {
        let mut missing = Vec::new();
        for pointer in wanted {
            if !store.has(&trust, pointer)? {
                missing.push(pointer);
            }
        }
        Ok::<_, io::Error>(missing)
    });
    looked.await?.map_err(|error| io_reason(key, "looking for large files", &error))
}

/// Makes room within the limit and above the pool's floor, by what was not used for longest.
async fn make_room(shared: &Shared, store: &ObjectStore, missing: &[Pointer], key: &str) -> Result<Coming, Reason> {
    let bytes = missing.iter().fold(0_u64, |sum, pointer| sum.saturating_add(pointer.bytes));
    let config = shared.config();
    let measure = Arc::clone(&shared.pool.measure);
    let (store, all, needed) = (store.clone(), Arc::clone(&shared.lfs.coming), Arc::clone(&shared.lfs.needed));
    let turn = Arc::clone(&shared.lfs.making_room);
    let made = blocking(key, move || {
        let _turn = lock(&turn);
        let wanted = all.load(Ordering::SeqCst).saturating_add(bytes);
        let refuse = |code, available: u64, what: &str| {
            let message = format!("large files of {bytes} bytes are wanted, and {what}");
            Err(Reason::new(code, "lfs", message).about(Resource::DiskBytes, bytes, available))
        };
        if let Some(limit) = config.lfs.limit {
            let held = store.held().map_err(|error| io_reason("lfs", "looking for large files", &error))?;
            let held = held.iter().fold(0_u64, |sum, held| sum.saturating_add(held.bytes));
            let over = held.saturating_add(wanted).saturating_sub(limit);
            if over > 0 && evict(&needed, &store, over)? < over {
                return refuse(Code::LfsLimit, limit, &format!("`repositories.lfs.limit` is {limit}; raise it"));
            }
        }
        let free = measure()?.spare();
        if wanted > free && evict(&needed, &store, wanted - free)? < wanted - free {
            return refuse(Code::DiskFloor, free, &format!("the pool has {free} above its floor; free some"));
        }
        all.fetch_add(bytes, Ordering::SeqCst);
        Ok(Coming { all, bytes: AtomicU64::new(bytes) })
    });
    made.await?
}

/// The server that the commit's `.lfsconfig` names. Git reads it: it has the format of its own configuration.
async fn lfsconfig(shared: &Shared, pin: &SnapshotPin, commit: CommitId) -> Result<Option<String>, Reason> {
    let blob = format!("{commit}:.lfsconfig");
    let keys = r"^(lfs\.url|remote\.origin\.lfsurl)$";
    let command = shared
        .git
        .command(["config", "--no-includes", "--null", "--blob", &blob, "--get-regexp", keys])
        .git_dir(pin.path())
        .reads(pin.path())
        .time_limit(CONFIG_WITHIN)
        .cancel(shared.cancel.child_token());
    let output = match command.run().await {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        // It names no such key.
        Err(GitError::Failed { status, .. }) if status.code() == Some(1) => return Ok(None),
        Err(error) => return Err(error.reason(pin.url().key(), &format!("reading .lfsconfig of {}", pin.url()))),
    };
    let values = || output.split('\0').filter_map(|entry| entry.split_once('\n'));
    // As git: the last of a key holds; as git-lfs: the first of these keys.
    let last = |key: &str| values().filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).next_back();
    Ok(last("lfs.url").or_else(|| last("remote.origin.lfsurl")))
}
