//! The agent that stays up: killed, unmounted, cut off from upstream, out of room, and well again afterwards.

mod admission;
mod caches;
mod containment;
mod cpu;
mod credentials;
mod doctor;
mod helper;
mod holders;
mod journal;
mod kill;
mod leases;
mod lifecycle;
mod lost;
mod measured;
mod memory;
mod nickel;
mod pod_view;
mod pods;
mod pools;
mod power;
mod pressure;
mod reload;
mod restart;
mod room;
mod scratch;
mod sizing;
mod time;
mod upstream;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stoker_proto::v1;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::support::stoker::Agent;
use crate::support::wait;

/// How long anything here may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Held by tests that measure, so that none measures what another does to the machine.
static MEASURING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
const MIB: i64 = 1 << 20;
const GIB: i64 = 1 << 30;

/// A configuration in which nothing but what a test does moves the gate: no floors, no forecasts. `pool` is the rest of the pool's
/// entry, `mirrors` are declared.
fn configuration(pool: &str, mirrors: &[&str]) -> String {
    let mirrors: String = mirrors.iter().map(|url| format!("    - {{url: \"{url}\"}}\n")).collect();
    let mirrors = if mirrors.is_empty() { String::new() } else { format!("  mirrors:\n{mirrors}") };
    format!(
        "node: {{hostRoot: $ROOT/host, rootFloor: {{bytes: 0, inodes: 0}}}}\n\
         pressure: {{memoryFloor: 1MiB, memoryNarrow: 2MiB, hold: 100ms, diskForecast: 0s}}\n\
         pools:\n  - {{name: data, floor: {{bytes: 1MiB, inodes: 1}}, {pool}}}\n\
         repositories:\n  refresh: 24h\n  protocols: [http]\n  add: on-demand\n  allow: [127.0.0.1]\n{mirrors}"
    )
}

/// An agent that was not started, on a node of 32 CPU and 62.5 GiB that is calm: what else runs on the machine decides
/// nothing. Processes that hold leases are real; see [`Holder`].
fn prepared(configuration: &str) -> Agent {
    let agent = Agent::prepare(configuration);
    let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/proc/node-32cpu-62g");
    let copied = Command::new("cp").arg("-r").arg(tree).arg(agent.root().join("host")).status().unwrap();
    assert!(copied.success());
    agent
}

/// The same, started.
#[track_caller]
fn start(configuration: &str) -> Agent {
    let mut agent = prepared(configuration);
    agent.launch();
    agent.wait_ready();
    agent
}

/// A pool that needs no filesystem of its own.
const PLAIN: &str = "path: $ROOT/pool, mount: optional";

fn branch(url: &str, name: &str) -> v1::Source {
    v1::Source {
        repository_url: url.to_owned(),
        r#ref: Some(v1::source::Ref::Branch(name.to_owned())),
        ..Default::default()
    }
}

fn commit(url: &str, id: &str) -> v1::Source {
    v1::Source {
        repository_url: url.to_owned(),
        r#ref: Some(v1::source::Ref::Commit(id.to_owned())),
        ..Default::default()
    }
}

fn size(cpu_millis: i64, memory_bytes: i64) -> v1::Size {
    v1::Size {
        cpu_millis: Some(cpu_millis),
        memory_bytes: Some(memory_bytes),
        disk_bytes: Some(MIB),
        disk_inodes: Some(100),
        time_budget: Some(seconds(3600)),
    }
}

fn small() -> v1::Size {
    size(100, 64 * MIB)
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// A request for a build; it takes a ticket where it must wait.
fn order(id: &str, source: v1::Source, declared: v1::Size) -> v1::AdmitRequest {
    v1::AdmitRequest {
        request_id: id.to_owned(),
        build: Some(v1::Build { source: Some(source), declared: Some(declared), ..Default::default() }),
        take_ticket: true,
        ..Default::default()
    }
}

/// A small one whose lease nobody binds: it lives as long as the longest test.
fn unbound(id: &str, source: v1::Source) -> v1::AdmitRequest {
    v1::AdmitRequest { bind_within: Some(seconds(1800)), ..order(id, source, small()) }
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a handful of them, in tests")]
enum Answer {
    Granted(Box<v1::Lease>),
    Waiting(Box<v1::Waiting>),
    Rejected(v1::Rejection),
}

impl Answer {
    #[track_caller]
    fn granted(self) -> v1::Lease {
        match self {
            Self::Granted(lease) => *lease,
            other => panic!("not granted: {other:?}"),
        }
    }

    #[track_caller]
    fn waiting(self) -> v1::Waiting {
        match self {
            Self::Waiting(waiting) => *waiting,
            other => panic!("does not wait: {other:?}"),
        }
    }

    #[track_caller]
    fn rejected(self) -> v1::Rejection {
        match self {
            Self::Rejected(rejection) => rejection,
            other => panic!("not rejected: {other:?}"),
        }
    }
}

impl From<v1::admit_response::Decision> for Answer {
    fn from(decision: v1::admit_response::Decision) -> Self {
        use v1::admit_response::Decision;
        match decision {
            Decision::Granted(lease) => Self::Granted(Box::new(lease)),
            Decision::Waiting(waiting) => Self::Waiting(Box::new(waiting)),
            Decision::Rejected(rejection) => Self::Rejected(rejection),
        }
    }
}

impl From<v1::await_admission_response::Decision> for Answer {
    fn from(decision: v1::await_admission_response::Decision) -> Self {
        use v1::await_admission_response::Decision;
        match decision {
            Decision::Granted(lease) => Self::Granted(Box::new(lease)),
            Decision::Waiting(waiting) => Self::Waiting(Box::new(waiting)),
            Decision::Rejected(rejection) => Self::Rejected(rejection),
        }
    }
}

async fn admit(agent: &Agent, order: v1::AdmitRequest) -> Result<Answer, Status> {
    let answer = agent.admission().await.admit(within(order, LIMIT)).await?;
    Ok(answer.into_inner().decision.unwrap().into())
}

/// Answers of `AwaitAdmission`, one at a time.
struct Awaiting(tonic::Streaming<v1::AwaitAdmissionResponse>);

impl Awaiting {
    async fn begin(agent: &Agent, order: v1::AdmitRequest) -> Self {
        let request = v1::AwaitAdmissionRequest { admit: Some(order) };
        Self(agent.admission().await.await_admission(request).await.unwrap().into_inner())
    }

    async fn next(&mut self) -> Answer {
        let next = tokio::time::timeout(LIMIT, self.0.message()).await.expect("an answer in time");
        next.unwrap().expect("the stream goes on").decision.unwrap().into()
    }

    /// The lease, after whatever comes before it.
    async fn granted(&mut self) -> v1::Lease {
        loop {
            if let Answer::Granted(lease) = self.next().await {
                return *lease;
            }
        }
    }
}

async fn status(agent: &Agent) -> v1::Status {
    agent.node().await.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner().status.unwrap()
}

/// Waits until the status is as `wanted`; gives that status.
async fn status_until(agent: &Agent, what: &str, wanted: impl Fn(&v1::Status) -> bool) -> v1::Status {
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        let now = status(agent).await;
        if wanted(&now) {
            return now;
        }
        assert!(tokio::time::Instant::now() < end, "not within {LIMIT:?}: {what}; the status is {now:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn gate_is(status: &v1::Status, state: v1::GateState) -> bool {
    status.gate.as_ref().is_some_and(|gate| gate.state() == state)
}

fn codes(reasons: &[v1::Reason]) -> Vec<v1::reason::Code> {
    reasons.iter().map(v1::Reason::code).collect()
}

async fn lease(agent: &Agent, id: &str) -> v1::Lease {
    let request = v1::GetLeaseRequest { lease_id: id.to_owned() };
    agent.admission().await.get_lease(request).await.unwrap().into_inner().lease.unwrap()
}

async fn lease_until(agent: &Agent, id: &str, what: &str, wanted: impl Fn(&v1::Lease) -> bool) -> v1::Lease {
    wait::until_async(LIMIT, what, async || wanted(&lease(agent, id).await)).await;
    lease(agent, id).await
}

async fn release(agent: &Agent, id: &str) -> Result<v1::Lease, Status> {
    let request = v1::ReleaseRequest {
        lease_id: id.to_owned(),
        outcome: v1::Outcome::Succeeded.into(),
        exit_code: Some(0),
        measured: None,
    };
    Ok(agent.admission().await.release(request).await?.into_inner().lease.unwrap())
}

async fn tickets(agent: &Agent) -> Vec<v1::Ticket> {
    agent.admission().await.list_tickets(v1::ListTicketsRequest::default()).await.unwrap().into_inner().tickets
}

async fn repository(agent: &Agent, url: &str) -> v1::Repository {
    let request = v1::GetRepositoryRequest { url: url.to_owned() };
    agent.repository().await.get_repository(request).await.unwrap().into_inner().repository.unwrap()
}

/// Waits until a mirror is filled and nothing is being fetched.
async fn mirror_ready(agent: &Agent, url: &str) -> v1::Repository {
    let ready = async || repository(agent, url).await.state() == v1::RepositoryState::Ready;
    wait::until_async(LIMIT, &format!("{url} is filled"), ready).await;
    repository(agent, url).await
}

/// Fetches now, and gives the state after it.
async fn refresh(agent: &Agent, url: &str) -> Result<v1::Repository, Status> {
    let request = v1::RefreshRepositoryRequest { url: url.to_owned(), only_if_empty: false };
    let mut events = agent.repository().await.refresh_repository(request).await?.into_inner();
    loop {
        let event = tokio::time::timeout(LIMIT, events.message()).await.expect("an event in time")?;
        if let Some(v1::refresh_repository_response::Event::Repository(repository)) = event.expect("a last event").event
        {
            return Ok(repository);
        }
    }
}

async fn resolve(agent: &Agent, source: v1::Source, patience: Duration) -> Result<v1::ResolveSourceResponse, Status> {
    let request = v1::ResolveSourceRequest { source: Some(source) };
    Ok(agent.repository().await.resolve_source(within(request, patience)).await?.into_inner())
}

/// The workspace of a lease.
async fn prepare(agent: &Agent, lease: &str) -> Result<v1::Workspace, Status> {
    let request = v1::PrepareWorkspaceRequest {
        r#for: Some(v1::prepare_workspace_request::For::LeaseId(lease.to_owned())),
        ..Default::default()
    };
    let mut events = agent.workspace().await.prepare_workspace(within(request, LIMIT)).await?.into_inner();
    loop {
        let event = events.message().await?.expect("a workspace comes").event;
        if let Some(v1::prepare_workspace_response::Event::Workspace(workspace)) = event {
            return Ok(workspace);
        }
    }
}

/// A request with a deadline.
fn within<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// The reason that a refusal carries.
fn word(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// Everything below a folder, by relative path, with what kind of thing it is.
fn listing(folder: &Path) -> BTreeMap<String, &'static str> {
    let mut found = BTreeMap::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(place) = todo.pop() {
        for entry in std::fs::read_dir(&place).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                todo.push(entry.path());
            }
            let name = entry.path().strip_prefix(folder).unwrap().to_string_lossy().into_owned();
            found.insert(name, if kind.is_dir() { "directory" } else { "file" });
        }
    }
    found
}

/// Permission bits, owner and group.
fn mode_of(path: &Path) -> (u32, u32, u32) {
    let meta = std::fs::metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

/// A process that holds a lease; it ends with the test.
struct Holder(Child);

impl Holder {
    /// Starts it, and shows it to the agent among the processes of its node.
    fn start(agent: &Agent, script: &str) -> Self {
        Self::below(agent.root(), script)
    }

    /// The same for the agent of this folder.
    fn below(root: &Path, script: &str) -> Self {
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id().to_string();
        let shown = root.join("host/proc").join(&pid);
        // Of an earlier process of this number.
        let _ = std::fs::remove_file(&shown);
        symlink(Path::new("/proc").join(&pid), shown).unwrap();
        Self(child)
    }

    fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    fn process(&self) -> v1::Process {
        v1::Process { pid: self.0.id().into(), start_ticks: start_ticks(self.0.id()).unwrap() }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.end();
    }
}

/// Field 22 of `/proc/PID/stat`.
fn start_ticks(pid: u32) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

async fn bind(agent: &Agent, lease: &str, process: v1::Process) -> Result<v1::Lease, Status> {
    let to = Some(v1::bind_request::To::Process(process));
    let bound = agent.admission().await.bind(v1::BindRequest { lease_id: lease.to_owned(), to }).await?;
    Ok(bound.into_inner().lease.unwrap())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, reason: &str) -> Status {
    let status = outcome.unwrap_err();
    assert_eq!((status.code(), word(&status).as_str()), (code, reason), "{}", status.message());
    status
}
