//! Git over HTTP: beside `git http-backend` over the same objects, and many who ask the same at once.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use procfs::process::Process;

use crate::numbers::node::Node;
use crate::numbers::report::{Line, Report, Samples, Target, Unit, alternate};
use crate::numbers::rest::cpu_seconds;
use crate::numbers::world::World;
use crate::support::repository::{TestRepo, git_out};
use crate::support::upstream::Upstream;

/// How many clone at once.
const AT_ONCE: usize = 8;
/// At least 0.95 of the speed is at most so much of the time.
const TIME_MAX: f64 = 1.0 / 0.95;

pub(crate) fn serve(world: &World, report: &mut Report) {
    clones(world, report, "history", world.history());
    clones(world, report, "large", world.large());
}

fn clones(world: &World, report: &mut Report, what: &str, repo: &TestRepo) {
    let (upstream, url) = Upstream::of(repo);
    let node = Node::start();
    node.fill(&url);
    symlink(snapshot(&node), upstream.root().join("peer.git")).unwrap();
    let from_node = format!("http://127.0.0.1:{}/git/{}", node.agent.http_port(), url.strip_prefix("http://").unwrap());
    let from_peer = upstream.url("peer.git");
    let timed = |from: &str| {
        let began = Instant::now();
        let place = clone(&node, from, 0);
        let mut samples = Samples::default();
        samples.push_time(began.elapsed());
        std::fs::remove_dir_all(place).unwrap();
        samples
    };
    let (ours, peer) = alternate(world.options.rounds(), || timed(&from_node), || timed(&from_peer));
    let peer = Some(("git http-backend", peer));
    let target = Target::RatioMax(TIME_MAX);
    report.line(Line { what: format!("clone {what}"), unit: Unit::Time, ours, peer, target });

    let agent = Process::new(node.agent.pid().cast_signed()).unwrap();
    let cpu = |count: usize| {
        let before = cpu_seconds(&agent);
        std::thread::scope(|scope| {
            for number in 0..count {
                let (node, from) = (&node, &from_node);
                scope.spawn(move || std::fs::remove_dir_all(clone(node, from, number)).unwrap());
            }
        });
        let mut samples = Samples::default();
        samples.push(cpu_seconds(&agent) - before);
        samples
    };
    let (ours, peer) = alternate(world.options.rounds(), || cpu(AT_ONCE), || cpu(1));
    let what = format!("server's CPU, {AT_ONCE} clone {what}");
    report.line(Line { what, unit: Unit::Time, ours, peer: Some(("1 clones", peer)), target: Target::RatioMax(2.0) });
}

/// A whole clone by git itself.
fn clone(node: &Node, from: &str, number: usize) -> PathBuf {
    let place = node.beside(&format!("clone-{number}"));
    git_out(node.agent.root(), &["clone", "--quiet", "--bare", from, place.to_str().unwrap()]);
    place
}

/// The one snapshot of the one repository.
fn snapshot(node: &Node) -> PathBuf {
    let only = |dir: &Path| std::fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    only(&only(&node.agent.root().join("data/stoker/repositories")).join("snapshots"))
}
