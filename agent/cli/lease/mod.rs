//! `stoker lease`: may a build start here, and what became of those that did.

mod admit;
mod evaluate;
mod give_back;
mod search;
mod show;

use stoker_proto::v1;
use tonic::Status;

use super::ask::{self, Ended, Failure, PAGE, within};
use super::client::Client;
use super::{Common, DONE, amount};

pub(crate) use show::{resource_word, state_word};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Ask whether a build fits, how big it is, and when it could start; changes nothing (exit 0: it fits now)
    Evaluate(evaluate::Args),
    /// Ask for a lease (exit 0: granted, 75: wait, 1: rejected)
    Admit(admit::Args),
    /// Tie a lease to the pod or process that uses it
    Bind(Bind),
    /// Keep a reservation alive until it is bound
    Renew {
        /// The lease
        #[arg(value_name = "LEASE")]
        id: String,
        /// How long from now; default: 5m, at most 30m
        #[arg(long = "for", value_name = "DURATION", value_parser = amount::span)]
        lasting: Option<prost_types::Duration>,
    },
    /// End a lease; prints what a retry would get
    Release(Release),
    /// The live leases
    List(List),
    /// One lease
    Show {
        /// The lease
        #[arg(value_name = "LEASE")]
        id: String,
    },
}

impl Command {
    /// Whether an answer can be sourced by a shell.
    pub(super) const fn gives_environment(&self) -> bool {
        matches!(self, Self::Admit(_))
    }

    /// Whether it is for all agents of a name.
    pub(super) const fn asks_all(&self) -> bool {
        match self {
            Self::Admit(args) => args.fleet.is_some(),
            Self::Evaluate(args) => args.fleet.is_some(),
            _ => false,
        }
    }
}

/// A build, as its options describe it.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Build {
    /// The repository: a URL or a path
    #[arg(long, value_name = "URL")]
    repo: String,
    /// head, branch:NAME, tag:NAME, pr:NUMBER or sha:COMMIT; default: the upstream's HEAD
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Cores, as 2 or 500m
    #[arg(long, value_name = "AMOUNT", value_parser = amount::cpu_millis)]
    cpu: Option<i64>,
    /// Memory, as 8GiB
    #[arg(long, value_name = "AMOUNT", value_parser = amount::bytes)]
    memory: Option<i64>,
    /// Disk, as 20GiB
    #[arg(long, value_name = "AMOUNT", value_parser = amount::bytes)]
    disk: Option<i64>,
    /// Files and directories, as 200000
    #[arg(long, value_name = "COUNT", value_parser = amount::inodes)]
    inodes: Option<i64>,
    /// Time budget, as 1h30m
    #[arg(long, value_name = "DURATION", value_parser = amount::span)]
    time: Option<prost_types::Duration>,
    /// What is built, where the repository builds several things
    #[arg(long, default_value = "", hide_default_value = true)]
    target: String,
    /// A directory of the tenant that outlives the build, seen as $STOKER_CACHE/KEY; can be repeated
    #[arg(long = "cache-key", value_name = "KEY")]
    cache_keys: Vec<String>,
    #[command(flatten)]
    scope: Scope,
}

/// Who a line of builds belongs to.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Scope {
    /// Who it is for
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Which of the tenant's projects
    #[arg(long, default_value = "", hide_default_value = true)]
    project: String,
    /// Which line of builds of the project
    #[arg(long, default_value = "", hide_default_value = true)]
    branch: String,
}

impl Scope {
    pub(super) fn message(&self) -> v1::Scope {
        let Self { tenant, project, branch } = self.clone();
        v1::Scope { tenant, project, branch }
    }
}

impl Build {
    fn message(&self) -> Result<v1::Build, Failure> {
        Ok(v1::Build {
            source: Some(amount::source(&self.repo, self.reference.as_deref()).map_err(Failure::Usage)?),
            scope: Some(self.scope.message()),
            target: self.target.clone(),
            declared: Some(v1::Size {
                cpu_millis: self.cpu,
                memory_bytes: self.memory,
                disk_bytes: self.disk,
                disk_inodes: self.inodes,
                time_budget: self.time,
            }),
            cache_keys: self.cache_keys.clone(),
            ..Default::default()
        })
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Bind {
    /// The lease
    #[arg(value_name = "LEASE")]
    id: String,
    /// A process of this machine
    #[arg(long, required_unless_present = "pod", conflicts_with = "pod")]
    pid: Option<i32>,
    /// A pod of this node
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "uid")]
    pod: Option<String>,
    /// The pod's uid
    #[arg(long, requires = "pod")]
    uid: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Release {
    /// The lease
    #[arg(value_name = "LEASE")]
    id: String,
    /// How the build ended; default: what its exit code says
    #[arg(long, value_enum, required_unless_present = "exit_code")]
    outcome: Option<Outcome>,
    /// The build's exit code
    #[arg(long, value_name = "CODE", allow_negative_numbers = true)]
    exit_code: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Outcome {
    Succeeded,
    Failed,
    /// Killed at its own memory limit
    OutOfMemoryLimit,
    /// Killed because the node ran out of memory
    OutOfMemoryNode,
    TimeBudgetExceeded,
    Evicted,
    Lost,
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// In these states; default: the live ones
    #[arg(long = "state", value_enum, value_name = "STATE")]
    states: Vec<State>,
    /// Those that have ended as well
    #[arg(long, conflicts_with = "states")]
    all: bool,
    #[command(flatten)]
    scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum State {
    Reserved,
    Bound,
    Released,
    Expired,
    Orphaned,
}

impl State {
    const ALL: [Self; 5] = [Self::Reserved, Self::Bound, Self::Released, Self::Expired, Self::Orphaned];

    const fn message(self) -> v1::LeaseState {
        match self {
            Self::Reserved => v1::LeaseState::Reserved,
            Self::Bound => v1::LeaseState::Bound,
            Self::Released => v1::LeaseState::Released,
            Self::Expired => v1::LeaseState::Expired,
            Self::Orphaned => v1::LeaseState::Orphaned,
        }
    }
}

pub(super) async fn run(common: &Common, command: &Command) -> u8 {
    let ended = match command {
        Command::Admit(args) => admit::admit(common, args).await,
        Command::Evaluate(args) => evaluate::evaluate(common, args).await,
        others => obey(common, others).await,
    };
    ask::exit(ended)
}

async fn obey(common: &Common, command: &Command) -> Ended {
    let format = common.output;
    match command {
        Command::Admit(_) | Command::Evaluate(_) => {}
        Command::Bind(bind) => {
            let request = within(ask::SOON, v1::BindRequest { lease_id: bind.id.clone(), to: Some(holder(bind)?) });
            let answer = Client::of(common).await?.admission().bind(request).await?.into_inner();
            ask::answer(format, &answer, |answer, view| show::lease(answer.lease.as_ref(), view))?;
        }
        Command::Renew { id, lasting } => {
            let request = within(ask::SOON, v1::RenewRequest { lease_id: id.clone(), reserve_for: *lasting });
            let answer = Client::of(common).await?.admission().renew(request).await?.into_inner();
            ask::answer(format, &answer, |answer, view| show::lease(answer.lease.as_ref(), view))?;
        }
        Command::Release(release) => {
            let request = within(ask::SOON, release.message());
            let answer = Client::of(common).await?.admission().release(request).await?.into_inner();
            ask::answer(format, &answer, |answer, view| show::lease(answer.lease.as_ref(), view))?;
        }
        Command::List(wanted) => {
            let states: &[State] = if wanted.all { &State::ALL } else { &wanted.states };
            let request = v1::ListLeasesRequest {
                page_size: PAGE,
                scope: Some(wanted.scope.message()),
                states: states.iter().map(|state| state.message().into()).collect(),
                ..Default::default()
            };
            let answer = list(&Client::of(common).await?, request).await?;
            ask::answer(format, &answer, |answer, view| show::list(&answer.leases, view))?;
        }
        Command::Show { id } => {
            let request = within(ask::SOON, v1::GetLeaseRequest { lease_id: id.clone() });
            let client = Client::of(common).await?;
            let answer = client.admission().get_lease(request).await?.into_inner();
            // For people, and only where it can be had.
            let status = match format {
                super::Format::Table => client.node().get_status(within(ask::SOON, v1::GetStatusRequest {})).await.ok(),
                _ => None,
            };
            let used = status.and_then(|answer| answer.into_inner().status);
            let used = used.and_then(|now| now.lease_use.into_iter().find(|seen| seen.lease_id == *id));
            ask::answer(format, &answer, |answer, view| show::used_lease(answer.lease.as_ref(), used.as_ref(), view))?;
        }
    }
    Ok::<u8, Failure>(DONE)
}

/// The leases of all pages. The token is that of the first page: a watch from there misses nothing.
pub(crate) async fn list(client: &Client, request: v1::ListLeasesRequest) -> Result<v1::ListLeasesResponse, Status> {
    let first = std::cell::RefCell::new(None);
    let page = |page_token| {
        let (first, request) = (&first, v1::ListLeasesRequest { page_token, ..request.clone() });
        async move {
            let page = client.admission().list_leases(within(ask::SOON, request)).await?.into_inner();
            first.borrow_mut().get_or_insert(page.watch_token);
            Ok((page.leases, page.next_page_token))
        }
    };
    let leases = ask::all(page).await?;
    let watch_token = first.into_inner().unwrap_or_default();
    Ok(v1::ListLeasesResponse { leases, next_page_token: String::new(), watch_token })
}

fn holder(bind: &Bind) -> Result<v1::bind_request::To, Failure> {
    if let Some(pid) = bind.pid {
        // The start time tells it from a later process with the same id.
        let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
        let stat = stat.map_err(|_| Failure::Usage(format!("--pid {pid}: no such process here")))?;
        let start_ticks = i64::try_from(stat.starttime).unwrap_or(i64::MAX);
        return Ok(v1::bind_request::To::Process(v1::Process { pid: i64::from(pid), start_ticks }));
    }
    let pod = bind.pod.as_deref().unwrap_or_default();
    match pod.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(v1::bind_request::To::Pod(v1::Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: bind.uid.clone().unwrap_or_default(),
            }))
        }
        _ => Err(Failure::Usage(format!("--pod {pod:?}: write NAMESPACE/NAME"))),
    }
}

impl Release {
    fn message(&self) -> v1::ReleaseRequest {
        let said = match self.exit_code {
            Some(0) | None => Outcome::Succeeded,
            Some(_) => Outcome::Failed,
        };
        let outcome = match self.outcome.unwrap_or(said) {
            Outcome::Succeeded => v1::Outcome::Succeeded,
            Outcome::Failed => v1::Outcome::Failed,
            Outcome::OutOfMemoryLimit => v1::Outcome::OutOfMemoryLimit,
            Outcome::OutOfMemoryNode => v1::Outcome::OutOfMemoryNode,
            Outcome::TimeBudgetExceeded => v1::Outcome::TimeBudgetExceeded,
            Outcome::Evicted => v1::Outcome::Evicted,
            Outcome::Lost => v1::Outcome::Lost,
        };
        v1::ReleaseRequest {
            lease_id: self.id.clone(),
            outcome: outcome.into(),
            exit_code: self.exit_code,
            measured: None,
        }
    }
}
