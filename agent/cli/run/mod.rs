//! `stoker run`: one build through all of it, in one command.
//!
//! It talks gRPC to the node's agent where one listens, and to one inside its own process where none does: there is one
//! path. The build's own output is its own; what Stoker says goes to standard error, a line a step.

mod agent;
mod command;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use stoker_core::quantity::Resource;
use stoker_core::sizing::Outcome as CoreOutcome;
use stoker_proto::v1;
use tonic::{Code, Status};

use super::client::{self, Client};
use super::lease::resource_word;
use super::screen::{self, Steps, bytes, counted};
use super::workspace::Manifest;
use super::{Common, USAGE, amount};
use agent::Host;
use command::Ended;

/// Stoker failed, as `docker run` and timeout(1) say it.
const FAILED: u8 = 125;
/// How old an answer of upstream may be for the admission that follows it at once.
const FRESH: Duration = Duration::from_secs(600);
/// How long upstream may take to answer, and a mirror to fill.
const FILL_WITHIN: Duration = Duration::from_secs(3600);
const RESOLVE_WITHIN: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The repository: a URL or a path
    #[arg(long, value_name = "URL")]
    repo: String,
    /// branch:NAME, tag:NAME, pr:NUMBER or sha:COMMIT; default: the upstream's HEAD
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Cores, as 2 or 500m
    #[arg(long, value_parser = amount::cpu_millis)]
    cpu: Option<i64>,
    /// Memory, as 8GiB
    #[arg(long, value_parser = amount::bytes)]
    memory: Option<i64>,
    /// Disk, as 20GiB
    #[arg(long, value_parser = amount::bytes)]
    disk: Option<i64>,
    /// Time budget, as 30m
    #[arg(long, value_parser = amount::span)]
    time: Option<prost_types::Duration>,
    /// Who it is for
    #[arg(long, value_parser = amount::name, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Which of the tenant's projects
    #[arg(long, value_parser = amount::name, default_value = "", hide_default_value = true)]
    project: String,
    /// Which line of builds of the project
    #[arg(long, value_parser = amount::name, default_value = "", hide_default_value = true)]
    branch: String,
    /// Check the submodules out too, and theirs
    #[arg(long)]
    submodules: bool,
    #[command(flatten)]
    manifest: Manifest,
    /// With its large files (git-lfs) in the place of their pointers
    #[arg(long)]
    lfs: bool,
    /// Bring an agent along with its state here, even where a node's agent listens
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// What to run in the sources
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

/// Why there was no build: what to say, and the code to exit with.
struct Failure {
    step: &'static str,
    message: String,
    code: u8,
}

impl Failure {
    fn new(step: &'static str, message: impl Into<String>) -> Self {
        Self { step, message: message.into(), code: FAILED }
    }

    fn status(step: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| {
            let code = if status.code() == Code::InvalidArgument { USAGE } else { FAILED };
            Self { step, message: client::words(&status), code }
        }
    }
}

pub(super) async fn run(common: &Common, args: Args) -> u8 {
    let source = match amount::source(&args.repo, args.reference.as_deref()) {
        Ok(source) => source,
        Err(error) => {
            screen::error(&error);
            return USAGE;
        }
    };
    let mut steps = Steps::new();
    let mut host = match Host::find(common, args.state.as_deref()).await {
        Ok(host) => host,
        Err(error) => {
            screen::error(&format!("{error:#}"));
            return FAILED;
        }
    };
    let ended = Build { args: &args, source, steps: &mut steps }.through(&mut host).await;
    host.stop().await;
    match ended {
        Ok(code) => code,
        Err(failure) => {
            steps.failed(failure.step, &failure.message);
            failure.code
        }
    }
}

/// One build on its way.
struct Build<'a> {
    args: &'a Args,
    source: v1::Source,
    steps: &'a mut Steps,
}

impl Build<'_> {
    async fn through(mut self, host: &mut Host) -> Result<u8, Failure> {
        let client = host.client().clone();
        self.check(&client).await?;
        self.mirror(&client).await?;
        self.resolve(&client).await?;
        let lease = self.admit(&client).await?;
        let workspace = self.workspace(&client, &lease).await;
        let built = match workspace {
            Ok(workspace) => self.build(&lease, &workspace).await,
            Err(failure) => Err(failure),
        };
        // Whatever happened, the lease ends and the workspace goes.
        let ended = built.as_ref().ok();
        let released = release(host, &lease, ended).await;
        if let Err(failure) = &released {
            self.steps
                .note(&format!("not released: {}; the agent does so when this process has ended", failure.message));
        }
        let ended = built?;
        self.report(&ended, released.as_ref().ok());
        Ok(ended.code)
    }

    /// What can be refused without a network is refused before anything is fetched.
    async fn check(&mut self, client: &Client) -> Result<(), Failure> {
        let builds = self.request().build.into_iter().collect();
        let answer = client.admission().evaluate(v1::EvaluateRequest { builds }).await;
        let found = answer.map_err(Failure::status("size"))?.into_inner().evaluations.into_iter().next();
        match found {
            Some(found) if found.verdict() == v1::Verdict::Never => {
                self.sized(found.sizing.as_ref());
                Err(rejected(&found.reasons))
            }
            _ => Ok(()),
        }
    }

    /// The repository is known here and filled.
    async fn mirror(&mut self, client: &Client) -> Result<(), Failure> {
        let begun = Instant::now();
        let url = self.source.repository_url.clone();
        let failed = Failure::status("mirror");
        let known = client.repositories().get_repository(v1::GetRepositoryRequest { url: url.clone() }).await;
        let known = match known {
            Ok(known) => known.into_inner().repository.unwrap_or_default(),
            Err(status) if status.code() == Code::NotFound => {
                let add = v1::AddRepositoryRequest { url: url.clone(), ..Default::default() };
                let added = client.repositories().add_repository(add).await.map_err(failed)?;
                added.into_inner().repository.unwrap_or_default()
            }
            Err(status) => return Err(failed(status)),
        };
        let was_there = !known.snapshot.is_empty();
        let filled = if was_there { known } else { self.fill(client, url).await? };
        let objects = counted(filled.objects, "object", "objects");
        let state = if was_there { "there already" } else { "filled" };
        let what = format!("{} · {objects}, {}, {state}", screen::safe(&filled.url), bytes(filled.disk_bytes));
        self.steps.done("mirror", &what, Some(begun.elapsed()));
        self.uncommitted();
        Ok(())
    }

    async fn fill(&mut self, client: &Client, url: String) -> Result<v1::Repository, Failure> {
        use v1::refresh_repository_response::Event;
        let failed = |status| Failure::status("mirror")(status);
        let mut request = tonic::Request::new(v1::RefreshRepositoryRequest { url, only_if_empty: true });
        request.set_timeout(FILL_WITHIN);
        let mut events = client.repositories().refresh_repository(request).await.map_err(failed)?.into_inner();
        while let Some(event) = events.message().await.map_err(failed)? {
            match event.event {
                Some(Event::Progress(progress)) => self.progress("mirror", &progress),
                Some(Event::Repository(repository)) => return Ok(repository),
                None => {}
            }
        }
        Err(Failure::new("mirror", "the agent ended the stream before the mirror was filled"))
    }

    fn progress(&mut self, word: &str, progress: &v1::Progress) {
        let positive = |value| u64::try_from(value).unwrap_or(0);
        let what = super::repo::progress(progress);
        self.steps.under_way(word, &what, positive(progress.done), positive(progress.total));
    }

    /// A build sees what is committed: says so where the checkout beside it has more.
    fn uncommitted(&mut self) {
        let Some(path) = self.source.repository_url.strip_prefix("file://").map(PathBuf::from) else { return };
        let path = if path.is_dir() { path } else { return };
        let Ok(repository) = git2::Repository::open(&path) else { return };
        let mut options = git2::StatusOptions::new();
        options.include_untracked(true).recurse_untracked_dirs(false).exclude_submodules(true);
        let changed = match repository.statuses(Some(&mut options)) {
            Ok(statuses) => statuses.iter().filter(|entry| !entry.status().is_ignored()).count(),
            Err(_) => return,
        };
        if changed > 0 {
            let changed = i64::try_from(changed).unwrap_or(i64::MAX);
            let paths = counted(changed, "uncommitted change", "uncommitted changes");
            self.steps.note(&format!("{paths} in {} not in this build: commit first to build them", path.display()));
        }
    }

    async fn resolve(&mut self, client: &Client) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut request = tonic::Request::new(v1::ResolveSourceRequest { source: Some(self.source.clone()) });
        request.set_timeout(RESOLVE_WITHIN);
        let answer = client.repositories().resolve_source(request).await.map_err(Failure::status("source"))?;
        let resolved = answer.into_inner().resolved.unwrap_or_default();
        let origin = match resolved.origin() {
            v1::Origin::Upstream => "upstream says",
            v1::Origin::Cache => "known here",
            v1::Origin::Stale => "upstream is away: last known",
            v1::Origin::Unspecified => "",
        };
        let commit: String = resolved.commit.chars().take(12).collect();
        let subject: String = screen::safe(&resolved.subject).chars().take(60).collect();
        let name = shown_ref(&resolved.clone_ref, &self.source);
        let what = format!("{name} is {} “{subject}”, {origin}", self.steps.paint().bold(commit));
        self.steps.done("source", &what, Some(begun.elapsed()));
        Ok(())
    }

    fn request(&self) -> v1::AdmitRequest {
        let args = self.args;
        let declared = v1::Size {
            cpu_millis: args.cpu,
            memory_bytes: args.memory,
            disk_bytes: args.disk,
            disk_inodes: None,
            time_budget: args.time,
        };
        // What was resolved a moment ago is good: one build, one question to upstream.
        let fresh = prost_types::Duration::try_from(FRESH).unwrap_or_default();
        let source = v1::Source { max_age: Some(fresh), ..self.source.clone() };
        // Runs of different commands say nothing about each other, so the history keeps them apart.
        let program = PathBuf::from(args.command.first().cloned().unwrap_or_default());
        let target = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        v1::AdmitRequest {
            request_id: format!("run-{}", uuid::Uuid::now_v7()),
            build: Some(v1::Build {
                source: Some(source),
                scope: Some(v1::Scope {
                    tenant: args.tenant.clone(),
                    project: args.project.clone(),
                    branch: args.branch.clone(),
                }),
                target: target.chars().filter(|c| !c.is_control()).take(64).collect(),
                declared: Some(declared),
                ..Default::default()
            }),
            take_ticket: true,
            ..Default::default()
        }
    }

    async fn admit(&mut self, client: &Client) -> Result<v1::Lease, Failure> {
        use v1::await_admission_response::Decision;
        let begun = Instant::now();
        let failed = |status| Failure::status("admitted")(status);
        let request = v1::AwaitAdmissionRequest { admit: Some(self.request()) };
        let mut answers = client.admission().await_admission(request).await.map_err(failed)?.into_inner();
        let mut told = Vec::new();
        while let Some(answer) = answers.message().await.map_err(failed)? {
            match answer.decision {
                Some(Decision::Granted(lease)) => {
                    self.sized(lease.sizing.as_ref());
                    let node = answer.node.unwrap_or_default().name;
                    let what = format!("lease {} on {node}", self.steps.paint().bold(&lease.id));
                    self.steps.done("admitted", &what, Some(begun.elapsed()));
                    return Ok(lease);
                }
                Some(Decision::Rejected(rejection)) => {
                    self.sized(rejection.sizing.as_ref());
                    return Err(rejected(&rejection.reasons));
                }
                Some(Decision::Waiting(waiting)) => {
                    let codes: Vec<i32> = waiting.reasons.iter().map(|reason| reason.code).collect();
                    if codes != told {
                        for reason in &waiting.reasons {
                            self.steps.note(&format!("waits: {}", reason_line(reason)));
                        }
                        told = codes;
                    }
                    self.steps.under_way("waiting", "for room", 0, 0);
                }
                None => {}
            }
        }
        Err(Failure::new("admitted", "the agent ended the stream before it decided"))
    }

    fn sized(&mut self, sizing: Option<&v1::Sizing>) {
        let Some(sizing) = sizing else { return };
        let size = sizing.size.unwrap_or_default();
        let show = |resource: Resource, value: Option<i64>| {
            resource.show(u64::try_from(value.unwrap_or(0)).unwrap_or(0)).to_string()
        };
        let seconds = size.time_budget.map_or(0, |span| span.seconds.saturating_mul(1000));
        let what = format!(
            "{} · {} memory · {} disk · {}",
            show(Resource::Cpu, size.cpu_millis),
            show(Resource::Memory, size.memory_bytes),
            show(Resource::DiskBytes, size.disk_bytes),
            show(Resource::Time, Some(seconds)),
        );
        let paint = self.steps.paint();
        self.steps.done("size", &format!("{what}  {}", paint.dim(origin_of(sizing))), None);
        let clamped: Vec<&str> =
            sizing.basis.iter().filter(|basis| basis.clamped).map(|b| resource_word(b.resource())).collect();
        if !clamped.is_empty() {
            self.steps.note(&format!("{} lowered to what this machine has", clamped.join(" and ")));
        }
    }

    async fn workspace(&mut self, client: &Client, lease: &v1::Lease) -> Result<v1::Workspace, Failure> {
        use v1::prepare_workspace_response::Event;
        let begun = Instant::now();
        let failed = |status| Failure::status("workspace")(status);
        let request = v1::PrepareWorkspaceRequest {
            r#for: Some(v1::prepare_workspace_request::For::LeaseId(lease.id.clone())),
            submodules: self.args.submodules,
            manifest: self.args.manifest.message(),
            lfs: self.args.lfs,
            ..Default::default()
        };
        // Bound first: a large checkout may take longer than a reservation lives.
        command::bind(client, &lease.id).await.map_err(failed)?;
        let mut events = client.workspaces().prepare_workspace(request).await.map_err(failed)?.into_inner();
        while let Some(event) = events.message().await.map_err(failed)? {
            match event.event {
                Some(Event::Progress(progress)) => self.progress("workspace", &progress),
                Some(Event::Workspace(workspace)) => {
                    let files = counted(workspace.files, "file", "files");
                    let what = format!("{files}, {} in {}", bytes(workspace.bytes), workspace.src);
                    self.steps.done("workspace", &what, Some(begun.elapsed()));
                    return Ok(workspace);
                }
                None => {}
            }
        }
        Err(Failure::new("workspace", "the agent ended the stream before the workspace was ready"))
    }

    /// The agent watches this process: nothing needs to be told while the build runs.
    async fn build(&mut self, lease: &v1::Lease, workspace: &v1::Workspace) -> Result<Ended, Failure> {
        let budget = lease.sizing.as_ref().and_then(|sizing| sizing.size.as_ref()?.time_budget);
        let budget = budget.and_then(|span| Duration::try_from(span).ok());
        command::run(&self.args.command, workspace, budget, self.steps).await
    }

    /// `released`: what it left, where its lease and workspace went.
    fn report(&mut self, ended: &Ended, released: Option<&Option<v1::Output>>) {
        let how = match (ended.outcome, ended.code) {
            (CoreOutcome::Succeeded, _) => "succeeded".to_owned(),
            (CoreOutcome::TimeBudgetExceeded, _) => "ended at its time budget".to_owned(),
            (_, 126 | 127) if ended.not_started => format!("not started, exit {}", ended.code),
            (_, code) if ended.signalled => format!("ended by signal {}", code.saturating_sub(128)),
            (_, code) => format!("failed with exit {code}"),
        };
        let peaks = &ended.peaks;
        let memory = Resource::Memory.show(peaks.memory_bytes_peak);
        let cpu = Resource::Cpu.show(peaks.cpu_millis_peak);
        let rest = match released {
            None => "not all removed".to_owned(),
            Some(None) => "all removed".to_owned(),
            Some(Some(output)) => {
                self.steps.note(&format!("what it left is in {}", screen::safe(&output.path)));
                format!("all removed but output {}", screen::safe(&output.id))
            }
        };
        // A command of a few milliseconds ends before anyone could look.
        let seen = peaks.memory_bytes_peak > 0;
        let used = if seen { format!(" · peak {memory}, {cpu}") } else { String::new() };
        let what = format!("{how}{used} · {rest}");
        if ended.code == 0 {
            self.steps.done("done", &what, Some(ended.elapsed));
        } else {
            self.steps.failed("done", &format!("{what}  {}", screen::elapsed(ended.elapsed)));
        }
    }
}

/// The lease ends with what was used, and the workspace with it. Where the agent went away meanwhile, another is found
/// or brought along: what is written in the journal must not wait for somebody.
async fn release(host: &mut Host, lease: &v1::Lease, ended: Option<&Ended>) -> Result<Option<v1::Output>, Failure> {
    let request = v1::ReleaseRequest {
        lease_id: lease.id.clone(),
        outcome: ended.map_or(v1::Outcome::Lost, Ended::wire_outcome).into(),
        exit_code: ended.map(|ended| i32::from(ended.code)),
        measured: ended.filter(|ended| !ended.not_started).map(Ended::usage),
    };
    let (mut tried, mut left) = (0, None);
    loop {
        let client = host.client().clone();
        let answer = async {
            let delete = v1::DeleteWorkspaceRequest { id: lease.id.clone() };
            match client.workspaces().delete_workspace(delete).await {
                Ok(deleted) => left = deleted.into_inner().output,
                Err(status) if status.code() != Code::NotFound => return Err(status),
                Err(_) => {}
            }
            client.admission().release(request.clone()).await.map(|_| ())
        };
        match answer.await {
            Ok(()) => return Ok(left),
            Err(status) if status.code() == Code::Unavailable && tried < 3 => {
                tried += 1;
                host.again().await.map_err(|error| Failure::new("done", format!("{error:#}")))?;
            }
            Err(status) => return Err(Failure::status("done")(status)),
        }
    }
}

fn rejected(reasons: &[v1::Reason]) -> Failure {
    let why: Vec<String> = reasons.iter().map(reason_line).collect();
    Failure::new("rejected", why.join("\n             "))
}

fn reason_line(reason: &v1::Reason) -> String {
    let code = reason.code().as_str_name();
    format!("{} [{code}]", screen::safe(&reason.message))
}

/// `main`, `v1.0`, `pull request 152` or `the commit`.
fn shown_ref(clone_ref: &str, source: &v1::Source) -> String {
    match &source.r#ref {
        Some(v1::source::Ref::PullRequest(number)) => format!("pull request {number}"),
        Some(v1::source::Ref::Commit(_)) => "the commit".to_owned(),
        _ => {
            let name = clone_ref.strip_prefix("refs/heads/").or_else(|| clone_ref.strip_prefix("refs/tags/"));
            screen::safe(name.unwrap_or(clone_ref))
        }
    }
}

/// Where the numbers came from, in a few words.
fn origin_of(sizing: &v1::Sizing) -> String {
    let mut parts: Vec<String> = Vec::new();
    for basis in sizing.basis.iter().filter(|b| b.resource() != v1::Resource::DiskInodes) {
        let from = match basis.tier() {
            v1::Tier::Request => "declared".to_owned(),
            v1::Tier::Spec => format!("{}:{}", screen::safe(&basis.file), basis.line),
            v1::Tier::History => counted(i64::from(basis.runs), "run before", "runs before"),
            v1::Tier::LanguageDefault if basis.language == "other" => "default".to_owned(),
            v1::Tier::LanguageDefault => format!("default for {}", basis.language),
            v1::Tier::Ladder => "one step up".to_owned(),
            v1::Tier::Unspecified => continue,
        };
        if !parts.contains(&from) {
            parts.push(from);
        }
    }
    parts.join(", ")
}
