//! What it costs to ask upstream what it has, where nothing changed.

use std::process::Command;

use procfs::process::Process;
use stoker_proto::v1;

use crate::numbers::node::Node;
use crate::numbers::report::{By, Line, Report, Samples, Target, Unit, alternate};
use crate::numbers::rest::cpu_seconds;
use crate::numbers::world::World;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

/// Branches and tags.
const REFS: usize = 1000;
/// So many of ours, and of the peer's, make one round: processes tell their time in hundredths of a second.
const REFRESHES: usize = 100;
const LISTINGS: usize = 20;

/// Refreshes that find nothing: round trips as upstream counts them, and CPU of the agent with all that it starts, beside
/// that of `git ls-remote`, which makes two.
pub(crate) fn refresh(world: &World, report: &mut Report) {
    let repo = with_refs();
    let (upstream, url) = Upstream::of(&repo);
    let node = Node::start();
    node.fill(&url);
    let process = Process::new(node.agent.pid().cast_signed()).unwrap();
    let mut trips = Samples::default();
    let ours = || {
        upstream.reset();
        let before = cpu_seconds(&process);
        refresh_often(&node, &url);
        let mut samples = Samples::default();
        samples.push((cpu_seconds(&process) - before) / REFRESHES as f64);
        trips.push(upstream.requests().total() as f64 / REFRESHES as f64);
        samples
    };
    let peer = || {
        let mut samples = Samples::default();
        samples.push(listing_seconds(&url));
        samples
    };
    let (cpu, peer) = alternate(world.options.rounds(), ours, peer);
    let what = format!("refresh, {REFS} refs, round trips");
    report.line(Line { what, unit: Unit::Count, ours: trips, peer: None, target: Target::Max(By::Max, 1.0) });
    let what = format!("refresh, {REFS} refs, CPU");
    let peer = Some(("git ls-remote", peer));
    report.line(Line { what, unit: Unit::Time, ours: cpu, peer, target: Target::Max(By::Median, 0.010) });
}

fn with_refs() -> TestRepo {
    let repo = TestRepo::generated(20, 20_000, 2);
    let commit = repo.commit("main");
    repo.name_often(std::iter::repeat_n(commit.as_str(), REFS - 1));
    assert_eq!(repo.refs().len(), REFS);
    repo
}

fn refresh_often(node: &Node, url: &str) {
    let (client, url) = (node.repositories(), url.to_owned());
    node.on(async move {
        for _ in 0..REFRESHES {
            let request = v1::RefreshRepositoryRequest { url: url.clone(), only_if_empty: false };
            let mut events = client.clone().refresh_repository(request).await.unwrap().into_inner();
            while events.message().await.unwrap().is_some() {}
        }
    });
}

/// CPU of one `git ls-remote` with its children, as the shell that waits for them is told (proc_pid_stat(5), fields 16
/// and 17).
fn listing_seconds(url: &str) -> f64 {
    let script =
        "for i in $(seq \"$2\"); do git ls-remote --symref \"$1\" > /dev/null || exit 1; done; cat /proc/$$/stat";
    let output = Command::new("sh").args(["-c", script, "sh", url, &LISTINGS.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stat = String::from_utf8(output.stdout).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    // The first field after the name is the third.
    let ticks: u64 = fields.split(' ').skip(16 - 3).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    ticks as f64 / procfs::ticks_per_second() as f64 / LISTINGS as f64
}
