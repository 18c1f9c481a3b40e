//! An agent on a node that has room: a recorded machine of 32 CPUs and 62.5 GiB, a pool in a folder of its own. All that
//! is asked of it goes over its unix socket.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stoker_proto::v1;
use stoker_proto::v1::admission_service_client::AdmissionServiceClient;
use stoker_proto::v1::node_service_client::NodeServiceClient;
use stoker_proto::v1::repository_service_client::RepositoryServiceClient;
use stoker_proto::v1::workspace_service_client::WorkspaceServiceClient;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::numbers::report::Samples;
use crate::support::stoker::Agent;
use crate::support::wait;

/// How long one thing may take before it counts as broken: a large repository, in a debug build, on a busy machine.
const LIMIT: Duration = Duration::from_secs(900);
/// A process of the recorded machine, to which leases are bound.
const HOLDER: v1::Process = v1::Process { pid: 4242, start_ticks: 1_234_567 };

/// What the recorded machine shows as available, in bytes.
pub(crate) const ROOMY_BYTES: u64 = 51_380_224 << 10;

/// A copy of the recorded machine whose memory can change.
pub(crate) struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let place = tempfile::Builder::new().prefix("host-").tempdir().unwrap();
        let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/proc/node-32cpu-62g");
        copy(Path::new(recorded), place.path());
        Self(place)
    }

    /// Changes `MemAvailable`. The file is replaced whole, as the kernel gives it.
    pub(crate) fn set_available(&self, bytes: u64) {
        let path = self.0.path().join("proc/meminfo");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| match line.starts_with("MemAvailable:") {
            true => format!("MemAvailable: {} kB\n", bytes >> 10),
            false => format!("{line}\n"),
        });
        let new = path.with_extension("new");
        std::fs::write(&new, lines.collect::<String>()).unwrap();
        std::fs::rename(new, path).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// An agent, and what is asked of it.
pub(crate) struct Node {
    pub(crate) agent: Agent,
    pub(crate) host: Host,
    channel: Channel,
    /// Drives the connection also while a peer runs: a server that hears nothing for long closes it.
    runtime: Runtime,
}

impl Node {
    pub(crate) fn start() -> Self {
        let host = Host::new();
        let mut agent = Agent::prepare(&format!(
            "node: {{name: bench, hostRoot: {}, rootFloor: {{bytes: 0, inodes: 0}}}}\n\
             pools: [{{name: data, path: $ROOT/data, mount: optional, floor: {{bytes: 1MiB, inodes: 1}}}}]\n\
             repositories: {{refresh: 1h, add: on-demand, allow: [127.0.0.1], protocols: [http]}}\n\
             pressure: {{hold: 100ms}}\n\
             listen: {{socket: $ROOT/run/stoker.sock, http: {{address: \"127.0.0.1:$PORT\"}}}}\n\
             admission: {{leasesMax: 4096, timeBudget: report}}\n",
            host.0.path().display(),
        ));
        std::fs::create_dir(agent.root().join("data")).unwrap();
        agent.launch();
        agent.wait_ready();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let channel = runtime.block_on(agent.channel());
        Self { agent, host, channel, runtime }
    }

    /// Runs to its end on the thread that drives the connection, so that no time goes into waking another.
    pub(crate) fn on<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.block_on(self.runtime.spawn(work)).unwrap()
    }

    /// A folder on the pool's filesystem, for what peers make.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.agent.root().join(name)
    }

    pub(crate) fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }

    pub(crate) fn status_client(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    pub(crate) fn admission(&self) -> AdmissionServiceClient<Channel> {
        AdmissionServiceClient::new(self.channel.clone())
    }

    pub(crate) fn repositories(&self) -> RepositoryServiceClient<Channel> {
        RepositoryServiceClient::new(self.channel.clone())
    }

    pub(crate) fn workspaces(&self) -> WorkspaceServiceClient<Channel> {
        WorkspaceServiceClient::new(self.channel.clone())
    }

    pub(crate) fn status(&self) -> v1::Status {
        let mut client = self.status_client();
        self.on(async move { client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner().status.unwrap() })
    }

    /// Adds a repository and waits until its snapshot is there.
    pub(crate) fn fill(&self, url: &str) -> v1::Repository {
        let (client, url) = (self.repositories(), url.to_owned());
        self.on(async move {
            let add = v1::AddRepositoryRequest { url: url.clone(), ..Default::default() };
            client.clone().add_repository(add).await.unwrap();
            wait::until_async(LIMIT, "the mirror is filled", || ready(client.clone(), url.clone())).await;
            let get = v1::GetRepositoryRequest { url };
            client.clone().get_repository(get).await.unwrap().into_inner().repository.unwrap()
        })
    }

    /// As [`fill`](Self::fill), all at once.
    pub(crate) fn fill_all(&self, urls: &[String]) {
        let (client, urls) = (self.repositories(), urls.to_vec());
        self.on(async move {
            for url in &urls {
                let add = v1::AddRepositoryRequest { url: url.clone(), ..Default::default() };
                client.clone().add_repository(add).await.unwrap();
            }
            for url in urls {
                wait::until_async(LIMIT, "the mirror is filled", || ready(client.clone(), url.clone())).await;
            }
        });
    }

    pub(crate) fn remove(&self, url: &str) {
        let (mut client, url) = (self.repositories(), url.to_owned());
        self.on(async move { client.remove_repository(v1::RemoveRepositoryRequest { url }).await.unwrap() });
    }

    /// A workspace of its own of this commit.
    pub(crate) fn prepare(&self, url: &str, commit: &str, request_id: &str) -> v1::Workspace {
        let unleased = v1::Unleased {
            source: Some(commit_of(url, commit)),
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let request = v1::PrepareWorkspaceRequest {
            r#for: Some(v1::prepare_workspace_request::For::Unleased(unleased)),
            ..Default::default()
        };
        let mut client = self.workspaces();
        self.on(async move {
            let mut events = client.prepare_workspace(request).await.unwrap().into_inner();
            loop {
                match events.message().await.unwrap().expect("the stream ends with the workspace").event {
                    Some(v1::prepare_workspace_response::Event::Workspace(workspace)) => return workspace,
                    _ => continue,
                }
            }
        })
    }

    /// Takes a workspace away; how long the call took.
    pub(crate) fn delete(&self, id: &str) -> Duration {
        let (mut client, id) = (self.workspaces(), id.to_owned());
        self.on(async move {
            let began = Instant::now();
            client.delete_workspace(v1::DeleteWorkspaceRequest { id }).await.unwrap();
            began.elapsed()
        })
    }

    /// Waits until what was thrown away is really gone, so that its removal slows nothing that is measured.
    pub(crate) fn wait_for_trash(&self) {
        let trash = self.agent.root().join("data/stoker/trash");
        let empty = || std::fs::read_dir(&trash).is_ok_and(|mut entries| entries.next().is_none());
        wait::until(LIMIT, "the trash is empty", empty);
    }

    /// Admits builds of this commit, and binds them to a process of the recorded machine.
    pub(crate) fn hold(&self, url: &str, commit: &str, count: usize) {
        let (mut client, url, commit) = (self.admission(), url.to_owned(), commit.to_owned());
        self.on(async move {
            for number in 0..count {
                let id = admitted(&mut client, &format!("held-{number}"), &url, &commit).await;
                let to = Some(v1::bind_request::To::Process(HOLDER));
                client.bind(v1::BindRequest { lease_id: id, to }).await.unwrap();
            }
        });
        assert_eq!(usize::try_from(self.status().counts.unwrap().leases), Ok(count), "live leases");
    }

    /// Kills the agent and starts it again; how long until it answers with this many leases and repositories.
    pub(crate) fn kill_and_start(&mut self, leases: usize, repositories: usize) -> Duration {
        self.agent.kill9();
        let began = Instant::now();
        self.agent.launch();
        let address = format!("unix://{}", self.agent.socket().display());
        let endpoint = tonic::transport::Endpoint::try_from(address).unwrap();
        let agent = &mut self.agent;
        let connected = async {
            loop {
                if let Ok(channel) = endpoint.connect().await {
                    return channel;
                }
                assert!(agent.ended().is_none(), "the agent ended");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let connected = async { tokio::time::timeout(LIMIT, connected).await };
        self.channel = self.runtime.block_on(connected).expect("the agent answers");
        let counts = self.status().counts.unwrap();
        let took = began.elapsed();
        let got = (usize::try_from(counts.leases), usize::try_from(counts.repositories - counts.repositories_empty));
        assert_eq!(got, (Ok(leases), Ok(repositories)), "leases and filled repositories after the start");
        took
    }
}

async fn ready(mut client: RepositoryServiceClient<Channel>, url: String) -> bool {
    let found = client.get_repository(v1::GetRepositoryRequest { url }).await.unwrap().into_inner().repository.unwrap();
    assert!(found.reasons.is_empty(), "{:?}", found.reasons);
    found.state() == v1::RepositoryState::Ready
}

/// A commit by its name.
pub(crate) fn commit_of(url: &str, commit: &str) -> v1::Source {
    v1::Source {
        repository_url: url.to_owned(),
        r#ref: Some(v1::source::Ref::Commit(commit.to_owned())),
        ..Default::default()
    }
}

/// A build so small that thousands of it fit.
pub(crate) fn small_build(source: v1::Source) -> v1::Build {
    let declared = v1::Size {
        cpu_millis: Some(1),
        memory_bytes: Some(1 << 20),
        disk_bytes: Some(1 << 10),
        disk_inodes: Some(1),
        time_budget: None,
    };
    v1::Build {
        source: Some(source),
        scope: Some(v1::Scope { tenant: "bench".into(), project: "numbers".into(), branch: "main".into() }),
        declared: Some(declared),
        ..Default::default()
    }
}

/// Admits one small build; the lease's id.
pub(crate) async fn admitted(
    client: &mut AdmissionServiceClient<Channel>,
    request_id: &str,
    url: &str,
    commit: &str,
) -> String {
    let request = v1::AdmitRequest {
        request_id: request_id.to_owned(),
        build: Some(small_build(commit_of(url, commit))),
        bind_within: Some(prost_types::Duration { seconds: 1800, nanos: 0 }),
        ..Default::default()
    };
    match client.admit(request).await.unwrap().into_inner().decision {
        Some(v1::admit_response::Decision::Granted(lease)) => lease.id,
        other => panic!("not granted: {other:?}"),
    }
}

/// How long each of these calls takes, one after the other.
pub(crate) async fn latencies<F: Future<Output = ()>>(calls: usize, mut call: impl FnMut(usize) -> F) -> Samples {
    let mut samples = Samples::default();
    for number in 0..calls {
        let began = Instant::now();
        call(number).await;
        samples.push_time(began.elapsed());
    }
    samples
}

/// The empty unary call of the same stack.
pub(crate) async fn check(mut client: HealthClient<Channel>) {
    client.check(HealthCheckRequest::default()).await.unwrap();
}
