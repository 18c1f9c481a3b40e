//! Repositories for unmodified git clients: what `git http-backend` does, over snapshots, with the agent's judgement.
//!
//! In come requests of the smart protocol (a URL, a version, a body), out go streams of bytes; [`crate::http`] is the
//! HTTP around it. A `git upload-pack` runs on a snapshot, which stays pinned meanwhile; it ends when nobody is left who
//! reads. Before it starts, the agent has looked whether the client may have what it wants (`mirror`, and
//! [`Reader::judge`](super::Reader::judge)), has fetched what is missing, and has asked upstream where the mirror is older
//! than its configured age. Clients that ask the same at the same time share one answer (`spool`).
//!
//! Everything is bounded: requests, children, bodies, shared answers.

mod body;
mod child;
mod environment;
mod mirror;
mod pkt;
mod request;
mod spool;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::fetch::blocking;
use super::git::Command;
use super::snapshot::SnapshotPin;
use super::{Repositories, lock};
pub use child::Broken;
use child::{Job, Sink, Source};
use request::{Fetch, Request};
use spool::Spools;

pub use body::{Body, BodyError, Inflow};
pub use environment::{Base, OR_UPSTREAM};
pub use request::Version;

/// The most `git upload-pack` at a time.
const CHILDREN_MAX: usize = 32;
/// Where shared answers lie, below `<pool>/stoker`.
pub(crate) const SPOOL: &str = "spool";

/// Serves repositories. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Serve {
    inner: Arc<Inner>,
    reads: Option<Reads>,
}

/// Which trust classes a caller may read.
type Reads = Arc<dyn Fn(&str) -> bool + Send + Sync>;

struct Inner {
    repositories: Repositories,
    spools: Spools,
    /// Done once what a killed agent left was removed.
    cleaned: OnceCell<()>,
    failed: Mutex<mirror::Failed>,
    children: Arc<Semaphore>,
    blocks: Arc<Semaphore>,
    clients: AtomicUsize,
    outcomes: Mutex<BTreeMap<&'static str, u64>>,
    bytes_sent: AtomicU64,
    shared: AtomicU64,
    base: OnceLock<Base>,
    /// What version 2 says before anything is asked: the same for all repositories.
    capabilities: OnceCell<Bytes>,
}

impl std::fmt::Debug for Serve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serve").finish_non_exhaustive()
    }
}

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such repository, or not for this caller.
    Unknown(Reason),
    /// Not now.
    Unavailable(Reason),
    /// As much is served as may be.
    Full,
    /// The request is not what the protocol has.
    Invalid(&'static str),
}

impl Refusal {
    fn of(reason: Reason) -> Self {
        match reason.code {
            Code::RepositoryNotDeclared
            | Code::RepositoryNotAllowed
            | Code::RepositoryEmpty
            | Code::UpstreamNotFound
            | Code::ObjectFormatUnsupported => Self::Unknown(reason),
            _ => Self::Unavailable(reason),
        }
    }
}

/// How a list of refs stands to upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// `hit`: young enough; `miss`: upstream was asked; `stale`: it could not be asked.
    pub word: &'static str,
    /// When upstream last confirmed it.
    pub age_seconds: Option<i64>,
    /// Why it could not be asked.
    pub reason: Option<Code>,
}

/// What a client gets.
#[derive(Debug)]
pub struct Answer {
    /// Of lists of refs.
    pub freshness: Option<Freshness>,
    /// What is sent.
    pub stream: Stream,
}

/// What was counted since the start, and what is so now.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Requests by how they ended.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Bytes of answers.
    pub bytes_sent: u64,
    /// Answers that another request had made already.
    pub shared: u64,
    /// Requests now.
    pub clients: usize,
    /// Children now.
    pub children: usize,
}

/// One request's place among those that are served. Dropped without an outcome, its client has gone.
#[derive(Debug)]
pub struct Client {
    serve: Serve,
    outcome: &'static str,
}

impl Client {
    /// How it ended.
    pub fn ended(&mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.serve.inner.clients.fetch_sub(1, Ordering::SeqCst);
        self.serve.count(self.outcome);
    }
}

impl Serve {
    /// Serves what `repositories` keeps.
    #[must_use]
    pub fn new(repositories: Repositories) -> Self {
        let inner = Inner {
            repositories,
            spools: Spools::default(),
            cleaned: OnceCell::new(),
            failed: Mutex::default(),
            children: Arc::new(Semaphore::new(CHILDREN_MAX)),
            blocks: Arc::new(Semaphore::new(body::BLOCKS_MAX)),
            clients: AtomicUsize::new(0),
            outcomes: Mutex::default(),
            bytes_sent: AtomicU64::new(0),
            shared: AtomicU64::new(0),
            base: OnceLock::new(),
            capabilities: OnceCell::new(),
        };
        Self { inner: Arc::new(inner), reads: None }
    }

    /// The same for one caller, who may read what `reads` says of a trust class.
    #[must_use]
    pub fn reading(&self, reads: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self { inner: Arc::clone(&self.inner), reads: Some(Arc::new(reads)) }
    }

    /// A place among those that are served.
    ///
    /// # Errors
    /// When all are taken.
    pub fn enter(&self) -> Result<Client, Refusal> {
        let max = self.inner.repositories.shared.config().serve.clients;
        let one_more = |count: usize| (count < max).then_some(count.saturating_add(1));
        match self.inner.clients.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more) {
            Ok(_) => Ok(Client { serve: self.clone(), outcome: "abandoned" }),
            Err(_) => {
                self.count("full");
                Err(Refusal::Full)
            }
        }
    }

    /// Whether clients without an identity are served that are not on this machine.
    #[must_use]
    pub fn serves_everyone(&self) -> bool {
        !self.inner.repositories.shared.config().serve.loopback_only
    }

    /// The scheme of a URL that names none: https, or http where that is the only of the two that may be spoken.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        let config = self.inner.repositories.shared.config();
        let speaks = |word: &str| config.protocols.iter().any(|protocol| protocol == word);
        if speaks("http") && !speaks("https") { "http" } else { "https" }
    }

    /// Counts a request that never had a place.
    pub fn count(&self, outcome: &'static str) {
        let mut outcomes = lock(&self.inner.outcomes);
        let count = outcomes.entry(outcome).or_default();
        *count = count.saturating_add(1);
    }

    /// What was counted, and what is so now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let inner = &self.inner;
        Counts {
            outcomes: lock(&inner.outcomes).clone(),
            bytes_sent: inner.bytes_sent.load(Ordering::SeqCst),
            shared: inner.shared.load(Ordering::SeqCst),
            clients: inner.clients.load(Ordering::SeqCst),
            children: CHILDREN_MAX.saturating_sub(inner.children.available_permits()),
        }
    }

    /// Takes a body in.
    #[must_use]
    pub fn inflow(&self, gzip: bool) -> Inflow {
        Inflow::new(gzip, &self.inner.blocks)
    }

    /// Answers `GET info/refs?service=git-upload-pack`: the refs, or under version 2 the capabilities alone.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn advertise(&self, url: &RepositoryUrl, version: Version) -> Result<Answer, Refusal> {
        let entry = self.find(url).await?;
        if version == Version::V2 {
            if self.still_shown(&entry).is_err() {
                self.refresh(&entry).await?;
            }
            let pin = self.newest(&entry)?;
            let capabilities = self.inner.capabilities.get_or_try_init(|| self.capabilities(pin)).await?;
            return Ok(Answer { freshness: None, stream: self.fixed(capabilities.clone()) });
        }
        let freshness = Some(self.refresh(&entry).await?);
        let pin = self.newest(&entry)?;
        let command = self.command(&pin, version, &["--http-backend-info-refs"], &[]);
        let mut stream = self.run_alone(command, Body::empty(), pin).await?;
        // What http-backend writes before it: gitprotocol-http(5).
        stream.before.push([pkt::line("# service=git-upload-pack\n"), pkt::FLUSH.to_vec()].concat().into());
        Ok(Answer { freshness, stream })
    }

    /// Asks git once: a child for each clone would cost a tenth of what a small clone costs.
    async fn capabilities(&self, pin: SnapshotPin) -> Result<Bytes, Refusal> {
        let command = self.command(&pin, Version::V2, &["--http-backend-info-refs"], &[]);
        let mut stream = self.run_alone(command, Body::empty(), pin).await?;
        let mut all = Vec::new();
        while let Some(part) = stream.next().await {
            all.extend_from_slice(&part.map_err(failed)?);
        }
        Ok(all.into())
    }

    /// Answers `POST git-upload-pack`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn upload_pack(&self, url: &RepositoryUrl, version: Version, body: Body) -> Result<Answer, Refusal> {
        let request = request::parse(version, body.bytes()).map_err(Refusal::Invalid)?;
        let entry = self.find(url).await?;
        match request {
            Request::Empty => Ok(Answer { freshness: None, stream: self.fixed(Bytes::new()) }),
            Request::LsRefs { pulls } => {
                let freshness = self.refresh(&entry).await?;
                self.bring_pulls(&entry, &pulls).await;
                let pin = self.newest(&entry)?;
                let command = self.command(&pin, version, &[], &pulls);
                let stream = self.run_alone(command, body, pin).await?;
                Ok(Answer { freshness: Some(freshness), stream })
            }
            Request::Fetch(Fetch { wants, sends_pack, digest }) => {
                self.still_shown(&entry)?;
                let pin = match self.snapshot_with(&entry, wants).await? {
                    Ok(pin) => pin,
                    Err(refused) => {
                        let mut stream =
                            self.fixed(pkt::line(&format!("ERR upload-pack: not our ref {refused}")).into());
                        stream.outcome = "refused";
                        return Ok(Answer { freshness: None, stream });
                    }
                };
                let command = self.command(&pin, version, &[], &[]);
                let stream = match sends_pack {
                    true => self.run_shared(command, body, pin, digest).await?,
                    false => self.run_alone(command, body, pin).await?,
                };
                Ok(Answer { freshness: None, stream })
            }
        }
    }

    /// `git upload-pack` on a snapshot. It may give out what it is asked for: the agent has looked.
    fn command(&self, pin: &SnapshotPin, version: Version, args: &[&str], pulls: &[u64]) -> Command {
        let shared = &self.inner.repositories.shared;
        let command = shared.git.command(["upload-pack", "--strict", "--stateless-rpc"]).args(args).args(["."]);
        let command = command.work_dir(pin.path()).reads(pin.path()).env("GIT_PROTOCOL", version.word());
        // Snapshots are the agent's, and git may be another user. Older ones (2.39) take the place by the name that it was
        // given.
        let command = command.config("safe.directory", pin.path().to_string_lossy());
        let mut command = command.config("safe.directory", ".");
        // Not `allowRefInWant`: where it is advertised, git's own clients (2.47) use it with `--depth` too, and then fail on
        // the order of what git's own server answers ("expected 'packfile', received 'shallow-info'").
        for key in ["allowFilter", "allowAnySHA1InWant"] {
            command = command.config(format!("uploadpack.{key}"), "true");
        }
        // No refresh follows them, so they are not shown as if one did; but to who asks for one by its name.
        for kind in ["refs/pull", "refs/merge-requests"] {
            command = command.config("uploadpack.hideRefs", kind);
            for number in pulls {
                command = command.config("uploadpack.hideRefs", format!("!{kind}/{number}/head"));
            }
        }
        command
    }

    async fn run_alone(&self, command: Command, body: Body, pin: SnapshotPin) -> Result<Stream, Refusal> {
        let place = self.place().await?;
        let (sink, source) = child::own();
        self.start(command, body, pin, place, sink);
        self.open(source, "sent").await
    }

    /// Joins the answer to the same question where one is under way, else begins one that others may join. What could not
    /// fit into the bound of all shared answers is made for this client alone.
    async fn run_shared(
        &self,
        command: Command,
        body: Body,
        pin: SnapshotPin,
        digest: [u8; 32],
    ) -> Result<Stream, Refusal> {
        let max = self.inner.repositories.shared.config().serve.spool;
        if max == 0 {
            return self.run_alone(command, body, pin).await;
        }
        let mut key = Sha256::new_with_prefix(digest);
        key.update(pin.path().as_os_str().as_encoded_bytes());
        let key = key.finalize().into();
        if let Some(follower) = self.inner.spools.join(&key) {
            return self.join(follower).await;
        }
        let place = self.place().await?;
        let root = (self.inner.repositories.shared.pool.root)().map_err(Refusal::of)?;
        let dir = root.join(SPOOL);
        let cleaning = dir.clone();
        let clean = async || drop(blocking(SPOOL, move || spool::clean(&cleaning)).await);
        self.inner.cleaned.get_or_init(clean).await;
        let (spools, path) = (self.inner.spools.clone(), pin.path().to_owned());
        let begun = blocking(SPOOL, move || spools.join_or_begin(key, &dir, mirror::bytes_expected(&path), max));
        match begun.await.map_err(Refusal::of)? {
            Some((Some(writer), follower)) => {
                self.start(command, body, pin, place, Sink::Shared(writer));
                self.open(Source::Shared(follower), "sent").await
            }
            Some((None, follower)) => {
                drop(place);
                self.join(follower).await
            }
            None => {
                let (sink, source) = child::own();
                self.start(command, body, pin, place, sink);
                self.open(source, "sent").await
            }
        }
    }

    async fn join(&self, follower: spool::Follower) -> Result<Stream, Refusal> {
        self.inner.shared.fetch_add(1, Ordering::SeqCst);
        self.open(Source::Shared(follower), "shared").await
    }

    /// A child's place; waits for one.
    async fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let patience = self.inner.repositories.shared.config().serve.patience;
        match tokio::time::timeout(patience, Arc::clone(&self.inner.children).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Refusal::Full),
        }
    }

    fn start(&self, command: Command, body: Body, pin: SnapshotPin, place: OwnedSemaphorePermit, sink: Sink) {
        let shared = Arc::clone(&self.inner.repositories.shared);
        let tasks = shared.tasks.clone();
        tasks.spawn(Job { shared, command, body, pin, place }.run(sink));
    }

    /// Waits for the first bytes: a child that fails before it says anything is an error, and not an answer that breaks.
    async fn open(&self, source: Source, outcome: &'static str) -> Result<Stream, Refusal> {
        let lost = self.inner.repositories.shared.presence.token();
        let mut stream = Stream { serve: self.clone(), before: Vec::new(), source: Some(source), lost, outcome };
        match stream.next().await {
            None => Ok(stream),
            Some(Ok(first)) => {
                // Counted when it is sent.
                self.inner.bytes_sent.fetch_sub(u64::try_from(first.len()).unwrap_or(0), Ordering::SeqCst);
                stream.before.push(first);
                Ok(stream)
            }
            Some(Err(broken)) => Err(failed(broken)),
        }
    }

    fn fixed(&self, bytes: Bytes) -> Stream {
        let lost = CancellationToken::new();
        Stream { serve: self.clone(), before: vec![bytes], source: None, lost, outcome: "sent" }
    }
}

fn failed(Broken(code): Broken) -> Refusal {
    let message = "git upload-pack did not answer; the agent's log says why";
    Refusal::Unavailable(Reason::new(code, "git upload-pack", message))
}

/// An answer on its way to one client. Dropped, it is no longer read.
pub struct Stream {
    serve: Serve,
    /// Parts that come first, the first last.
    before: Vec<Bytes>,
    source: Option<Source>,
    /// The pool goes: what is open there must be let go of.
    lost: CancellationToken,
    outcome: &'static str,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl Stream {
    /// How a request ends whose answer is sent whole.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        self.outcome
    }

    /// The next part; nothing at the end. After an error there is no more.
    pub async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        let part = match (self.before.pop(), &mut self.source) {
            (Some(part), _) => Ok(Some(part)),
            (None, Some(source)) => match self.lost.run_until_cancelled(source.next()).await {
                Some(part) => part,
                None => Err(Broken::LOST),
            },
            (None, None) => Ok(None),
        };
        if let Ok(Some(part)) = &part {
            let bytes = u64::try_from(part.len()).unwrap_or(u64::MAX);
            self.serve.inner.bytes_sent.fetch_add(bytes, Ordering::SeqCst);
        } else {
            self.source = None;
        }
        part.transpose()
    }
}

/// How long a client that sends or reads nothing is waited for.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
