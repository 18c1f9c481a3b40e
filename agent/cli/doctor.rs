//! `stoker doctor`: what is wrong with the node, and what to do about each. What does not fit the node the agent tells;
//! the checks here are pure, over messages.

mod show;

use stoker_core::quantity::Resource;
use stoker_proto::v1;
use stoker_proto::v1::node_finding::{Kind, Severity};
use tonic::{Code, Status};

use super::ask::{self, Ended, Failure, within};
use super::client::Client;
use super::{Common, DONE, NO, repo, screen, table};

/// A clock that is off by more makes heartbeats and time budgets lie.
const SKEW_MILLIS_MAX: i64 = 2_000;
/// The oldest git whose protocol and checks the agent relies on.
const GIT_MIN: (u32, u32) = (2, 39);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print only what to merge into which file: YAML documents, each after a comment with its file
    #[arg(long)]
    patch: bool,
}

/// One thing to mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    kind: Kind,
    severity: Severity,
    /// What is wrong.
    pub(crate) what: String,
    /// Why that matters; empty where that is plain.
    why: String,
    /// What to do.
    pub(crate) remedy: String,
}

impl Finding {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            kind: Kind::Unspecified,
            severity: Severity::Fault,
            what: what.into(),
            why: String::new(),
            remedy: remedy.into(),
        }
    }

    fn of_node(told: v1::NodeFinding) -> Self {
        let (kind, severity) = (told.kind(), told.severity());
        Self { kind, severity, what: told.what, why: told.why, remedy: told.remedy }
    }
}

/// All that is told.
struct Report {
    node: String,
    findings: Vec<Finding>,
    patches: Vec<v1::Patch>,
    unseen: Vec<String>,
}

pub(super) async fn run(common: &Common, args: &Args) -> u8 {
    ask::exit(examine(common, args).await)
}

async fn examine(common: &Common, args: &Args) -> Ended {
    let client = Client::of(common).await?;
    let asked_at = table::now();
    let status = client.node().get_status(within(ask::SOON, v1::GetStatusRequest {})).await?.into_inner().status;
    let status = ask::part(status, "status")?;
    let middle = asked_at.midpoint(table::now());
    let repositories = repo::list(&client).await?.repositories;
    let examined = client.node().examine(within(ask::SOON, v1::ExamineRequest {})).await;
    let examined = examined.map(tonic::Response::into_inner).or_else(unexamined)?;
    let mut findings = findings(&status, &repositories, middle);
    findings.extend(examined.findings.into_iter().map(Finding::of_node));
    // In the order in which each was found.
    findings.sort_by_key(|finding| finding.severity == Severity::Warning);
    let node = status.node.unwrap_or_default().name;
    let report = Report { node, findings, patches: examined.patches, unseen: examined.unseen };
    show::answer(common.output, &report, args.patch)?;
    let at_fault = report.findings.iter().any(|finding| finding.severity != Severity::Warning);
    Ok::<u8, Failure>(if at_fault { NO } else { DONE })
}

/// Whom the agent does not tell of the node still hears the rest; so does who asks an older agent.
fn unexamined(refused: Status) -> Result<v1::ExamineResponse, Failure> {
    let why = match refused.code() {
        Code::PermissionDenied => "the node itself: that is for those who see all tenants",
        Code::Unimplemented => "the node itself: the agent is too old to look at it",
        _ => return Err(refused.into()),
    };
    Ok(v1::ExamineResponse { unseen: vec![why.to_owned()], ..Default::default() })
}

/// All that is wrong. `now` is this machine's clock when the agent answered, in milliseconds.
pub(crate) fn findings(status: &v1::Status, repositories: &[v1::Repository], now: i64) -> Vec<Finding> {
    let mut all: Vec<Finding> = Vec::new();
    for alarm in &status.alarms {
        all.push(Finding::new(table::reason_line(alarm), remedy(alarm, repositories)));
    }
    let gate = status.gate.clone().unwrap_or_default();
    if matches!(gate.state(), v1::GateState::Narrow | v1::GateState::Shut) {
        for reason in &gate.reasons {
            let what = format!("the gate is {}: {}", gate_word(gate.state()), table::reason_line(reason));
            all.push(Finding::new(what, remedy(reason, repositories)));
        }
    }
    if !matches!(status.mode(), v1::Mode::Accepting | v1::Mode::Unspecified) {
        let note = if status.mode_note.is_empty() { String::new() } else { format!(": {}", status.mode_note) };
        let what = format!("the node is in {}{note}", mode_word(status.mode()));
        all.push(Finding::new(what, "when the work is done: `stoker mode accepting`"));
    }
    for pool in &status.pools {
        let told = status.alarms.iter().any(|a| a.code() == v1::reason::Code::PoolNotReady && a.subject == pool.name);
        if pool.state != "Ready" && !told {
            all.push(Finding::new(format!("pool {} is {}: {}", pool.name, pool.state, pool.message), POOL_REMEDY));
        }
        all.extend(low(pool));
    }
    for repository in repositories {
        let empty = repository.declared && repository.snapshot.is_empty();
        let told = status.alarms.iter().any(|alarm| repo::is_about(&alarm.subject, repository));
        if told {
            continue;
        }
        if empty {
            let why = repository.reasons.first().map_or_else(|| "not filled yet".to_owned(), table::reason_line);
            let what = format!("declared mirror {} is empty: {why}", repository.url);
            all.push(Finding::new(what, format!("`stoker repo refresh {}` shows where it stops", repository.url)));
        } else if matches!(repository.state(), v1::RepositoryState::Stale | v1::RepositoryState::Quarantined) {
            let why = repository
                .reasons
                .first()
                .map_or_else(String::new, |reason| format!(": {}", table::reason_line(reason)));
            let what = format!("{} is {}{why}", repository.url, repo::state_word(repository.state()));
            all.push(Finding::new(
                what,
                repository.reasons.first().map_or_else(String::new, |reason| remedy(reason, repositories)),
            ));
        }
    }
    all.extend(git(status));
    all.extend(skew(status, now));
    all
}

const POOL_REMEDY: &str =
    "mount it, or mend what is named; the agent looks again every few seconds, no restart is needed";

/// A pool that has room, but little above its floor.
fn low(pool: &v1::Pool) -> Option<Finding> {
    let disk = pool.filesystem.as_ref()?;
    let below = |free: i64, floor: i64| floor > 0 && free <= floor;
    let (free, floor) = match (below(disk.free_bytes, disk.floor_bytes), below(disk.free_inodes, disk.floor_inodes)) {
        (true, _) => (screen::bytes(disk.free_bytes), screen::bytes(disk.floor_bytes)),
        (_, true) => (screen::grouped(disk.free_inodes) + " inodes", screen::grouped(disk.floor_inodes)),
        _ => return None,
    };
    let what = format!("pool {} has {free} free, the floor is {floor}: no build is admitted", pool.name);
    Some(Finding::new(
        what,
        "delete what is not needed below it, or make the filesystem larger; `du -x` says what is large",
    ))
}

fn git(status: &v1::Status) -> Option<Finding> {
    let version = status.host.as_ref()?.git_version.as_str();
    let mut numbers = version.trim_start_matches("git version ").split(['.', '-']).map(str::parse::<u32>);
    let oldest = format!("install git {}.{} or newer where the agent runs", GIT_MIN.0, GIT_MIN.1);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= GIT_MIN => None,
        (Some(Ok(_)), Some(Ok(_))) => Some(Finding::new(format!("git {version} is too old"), oldest)),
        _ if version.is_empty() => Some(Finding::new("the agent found no git: no mirror can be filled", oldest)),
        _ => Some(Finding::new(format!("git calls itself {version:?}, which is no version"), oldest)),
    }
}

fn skew(status: &v1::Status, now: i64) -> Option<Finding> {
    let observed = table::millis(status.node.as_ref()?.observed_at.as_ref()?);
    let off = now.abs_diff(observed);
    if off <= SKEW_MILLIS_MAX.unsigned_abs() {
        return None;
    }
    let direction = if observed > now { "ahead of" } else { "behind" };
    let off = Resource::Time.show(off);
    let what = format!("the node's clock is {off} {direction} this machine's");
    Some(Finding::new(
        what,
        "synchronise both clocks (chrony or systemd-timesyncd); leases and heartbeats are told in time",
    ))
}

/// What an operator does about a reason; empty where there is nothing to do but wait.
pub(crate) fn remedy(reason: &v1::Reason, repositories: &[v1::Repository]) -> String {
    use v1::reason::Code;
    let about = repositories.iter().find(|repository| repo::is_about(&reason.subject, repository));
    let url = about.map_or("URL", |repository| &repository.url);
    let text = match reason.code() {
        Code::PoolNotReady => POOL_REMEDY,
        Code::JournalUnavailable => {
            "make room below the agent's `state`, or replace that disk; releases go on meanwhile"
        }
        Code::SensorFailed => "check that /proc and /sys of the host are mounted where `node.hostRoot` says",
        Code::MemoryFloor | Code::MemoryPressure => {
            "builds wait until memory is free; `stoker lease list` shows who holds it, a larger `node.reserve` keeps more"
        }
        Code::DiskFloor | Code::DiskInodesFloor => {
            "delete what is not needed on the pool, or make the filesystem larger"
        }
        Code::DiskForecast | Code::DiskInodesForecast => {
            "find out what writes so fast; it ends by itself when the writing does, `pressure.diskForecast` says how soon"
        }
        Code::ControlPlaneSlow | Code::ControlPlaneStalled => {
            "a larger `node.reserve` keeps more for the control plane; `pressure.controlPlane` says how slow is too slow"
        }
        Code::NodeDiskFloor | Code::NodeDiskInodesFloor => {
            "clear it: unused images and logs; `node.filesystems` says which are watched, and their floors"
        }
        Code::RootDiskFloor | Code::RootDiskInodesFloor => {
            "clear the root filesystem: logs, images, core dumps; builds write to the pools only"
        }
        Code::RepositoryEvicted => {
            return format!(
                "raise `repositories.limit`, or `stoker repo pin {url}`; `stoker repo refresh {url}` fills it now"
            );
        }
        Code::RepositoryEmpty => return format!("`stoker repo refresh {url}` shows where it stops"),
        Code::UpstreamUnreachable | Code::UpstreamTimeout => {
            "check name service, routes and proxies from this node to the upstream; it is tried again by itself"
        }
        Code::UpstreamNotFound => "check the URL, and whether this node may read it",
        Code::UpstreamUnauthorized => {
            "declare a credential for it in `repositories.credentials`, or renew the one that is there"
        }
        Code::UpstreamUntrusted => {
            "hold the upstream's key against `knownHostsFile`, or its certificate against the node's authorities"
        }
        Code::CredentialUnreadable => "mount the secret where `repositories.credentials` says; it is read at each use",
        Code::ContainmentReduced => {
            "do what the message says: git parses what strangers send, and should do so as a user of its own"
        }
        Code::GitMemoryLimit => "raise `repositories.git.memory` in the agent's configuration",
        Code::GitHelperAway => {
            "start `stoker git-helper` there; in a pod: `kubectl logs --previous -c git` and its memory limit"
        }
        Code::GitKilled => "look in the kernel's log for who was killed for memory; it is tried again by itself",
        Code::RepositoryCorrupt => {
            return format!("`stoker repo remove {url}` and add it again; check the disk below it");
        }
        Code::ModeMaintenance | Code::ModeDrain => "when the work is done: `stoker mode accepting`",
        Code::SpecUnevaluated => {
            "install stoker-nickel there, or name its place in `sizing.nickel.program`; it is looked for at each use"
        }
        Code::Orphan => {
            "look whether somebody needs it, and move it elsewhere; `stoker plan` shows what goes, and when"
        }
        Code::CertificateInvalid => {
            "put a certificate and its key there that go together; they are looked at every two seconds"
        }
        Code::CacheLimit => {
            "raise `caches.limit` or `caches.tenantLimit`, or let fewer builds of that tenant run at once"
        }
        Code::LeasesFull | Code::QueueFull => "release what has ended, or send builds to other nodes",
        _ => "",
    };
    text.to_owned()
}

pub(crate) const fn gate_word(state: v1::GateState) -> &'static str {
    match state {
        v1::GateState::Open => "open",
        v1::GateState::Narrow => "narrow",
        v1::GateState::Shut => "shut",
        v1::GateState::Unspecified => "unknown",
    }
}

pub(crate) const fn mode_word(mode: v1::Mode) -> &'static str {
    match mode {
        v1::Mode::Accepting => "accepting",
        v1::Mode::Maintenance => "maintenance",
        v1::Mode::Drain => "drain",
        v1::Mode::Unspecified => "unknown",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::status::tests::{healthy, troubled};
    use super::super::table::tests::{NOW, VIEW};
    use super::show::render;
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        Report { node: "ghost".into(), findings, patches: Vec::new(), unseen: Vec::new() }
    }

    #[test]
    fn a_healthy_node_has_no_findings() {
        let found = findings(&healthy().status, &healthy().repositories, NOW);
        assert_eq!(found, Vec::new());
        assert_eq!(render(&report(found), &VIEW), "ghost is well: nothing to mend\n");
    }

    #[test]
    fn each_trouble_is_told_once_with_what_to_do() {
        let glance = troubled();
        let found = findings(&glance.status, &glance.repositories, NOW + 90_000);
        insta::assert_snapshot!(render(&report(found), &VIEW), @r"
        ghost has 5 things to mend

        1.  pool scratch is NotMounted: /var/mnt/ghost-scratch is no mount point [POOL_NOT_READY]
            → mount it, or mend what is named; the agent looks again every few seconds, no restart is needed

        2.  declared mirror https://github.com/projectbluefin/finpilot is empty: not filled yet
            [REPOSITORY_EMPTY]
            → `stoker repo refresh https://github.com/projectbluefin/finpilot` shows where it stops

        3.  the gate is shut: 3.1 GiB of memory are available, the floor is 4 GiB [MEMORY_FLOOR]
            → builds wait until memory is free; `stoker lease list` shows who holds it, a larger
            `node.reserve` keeps more

        4.  the node is in drain: new disk
            → when the work is done: `stoker mode accepting`

        5.  the node's clock is 1 min 30 s behind this machine's
            → synchronise both clocks (chrony or systemd-timesyncd); leases and heartbeats are told in time
        ");
    }

    /// And a disk that does not answer is no node that is well.
    #[test]
    fn whom_the_agent_does_not_tell_of_the_node_hears_why() {
        let why = |refused| unexamined(refused).map(|told| told.unseen);
        let for_others = why(Status::permission_denied("the role viewer is for the tenant a")).unwrap();
        assert_eq!(for_others, ["the node itself: that is for those who see all tenants"]);
        assert_eq!(why(Status::unimplemented("")).unwrap(), ["the node itself: the agent is too old to look at it"]);
        assert!(why(Status::unavailable("files of the host did not answer")).is_err());
    }

    #[test]
    fn an_old_git_and_none_are_found() {
        let with = |version: &str| {
            let host = v1::Host { git_version: version.to_owned(), ..Default::default() };
            git(&v1::Status { host: Some(host), ..Default::default() }).map(|finding| finding.what)
        };
        assert_eq!(with("2.47.3"), None);
        assert_eq!(with("3.0.0-rc1"), None);
        assert_eq!(with("2.30.1").as_deref(), Some("git 2.30.1 is too old"));
        assert_eq!(with("").as_deref(), Some("the agent found no git: no mirror can be filled"));
    }
}
