//! Mirrors and what is resolved in them.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use stoker_proto::v1;

use crate::numbers::node::{Node, check, commit_of, latencies};
use crate::numbers::report::{By, Line, Report, Samples, Target, Unit, alternate};
use crate::numbers::world::World;
use crate::support::repository::{TestRepo, git_out};
use crate::support::upstream::Upstream;

/// How many mirrors are filled at once.
const MIRRORS: usize = 20;
/// Of upstream, for each request.
const LATENCY: Duration = Duration::from_millis(50);
/// How many commits are asked for in turn.
const COMMITS: usize = 50;

/// A mirror filled and published, beside a clone of the same refs from the same upstream with the same checks.
pub(crate) fn prefill(world: &World, report: &mut Report) {
    fill(world, report, "prefill history", world.history());
    fill(world, report, "prefill large", world.large());
    let many = TestRepo::generated(20, 20_000, 2);
    many.name_often(std::iter::repeat_n(many.commit("main").as_str(), world.options.refs() - 1));
    fill(world, report, "prefill refs", &many);
}

fn fill(world: &World, report: &mut Report, what: &str, repo: &TestRepo) {
    let upstream = Upstream::start();
    let node = Node::start();
    let refs = i64::try_from(repo.refs().len()).unwrap();
    let mut round = 0;
    let ours = || {
        round += 1;
        let url = upstream.host(&format!("round/{round}.git"), repo);
        rustix::fs::sync();
        let began = Instant::now();
        let filled = node.fill(&url);
        let mut samples = Samples::default();
        samples.push_time(began.elapsed());
        assert_eq!(filled.refs, refs, "refs of the mirror");
        node.remove(&url);
        node.wait_for_trash();
        samples
    };
    let url = upstream.host("peer.git", repo);
    let place = node.beside("peer.git");
    let peer = || {
        rustix::fs::sync();
        let began = Instant::now();
        let to = place.to_str().unwrap();
        git_out(node.agent.root(), &["-c", "transfer.fsckObjects=true", "clone", "--quiet", "--mirror", &url, to]);
        let mut samples = Samples::default();
        samples.push_time(began.elapsed());
        std::fs::remove_dir_all(&place).unwrap();
        samples
    };
    let (ours, peer) = alternate(world.options.rounds(), ours, peer);
    report.line(Line {
        what: format!("{what}, {refs} refs"),
        unit: Unit::Time,
        ours,
        peer: Some(("git clone --mirror", peer)),
        target: Target::RatioMax(1.15),
    });
}

/// Twenty mirrors filled at once, and one after the other, where each answer of upstream takes a while.
pub(crate) fn parallel(world: &World, report: &mut Report) {
    let upstream = Upstream::start();
    let node = Node::start();
    // Repositories that have nothing in common: forks of one are filled one after the other.
    let repos: Vec<_> = (0..MIRRORS).map(|number| TestRepo::generated(100 + number, 200_000, 20)).collect();
    upstream.delay(LATENCY);
    let mut round = 0;
    let fill = RefCell::new(|at_once: bool| {
        round += 1;
        let host = |(number, repo): (usize, &TestRepo)| upstream.host(&format!("{round}/{number}.git"), repo);
        let urls: Vec<_> = repos.iter().enumerate().map(host).collect();
        rustix::fs::sync();
        let began = Instant::now();
        match at_once {
            true => node.fill_all(&urls),
            false => urls.iter().for_each(|url| drop(node.fill(url))),
        }
        let mut samples = Samples::default();
        samples.push_time(began.elapsed());
        urls.iter().for_each(|url| node.remove(url));
        node.wait_for_trash();
        samples
    });
    let turn = |at_once| (fill.borrow_mut())(at_once);
    let (ours, peer) = alternate(world.options.rounds(), || turn(true), || turn(false));
    report.line(Line {
        what: format!("prefill of {MIRRORS} at once, {} ms latency", LATENCY.as_millis()),
        unit: Unit::Time,
        ours,
        peer: Some(("one after the other", peer)),
        target: Target::RatioMax(0.7),
    });
}

/// Commits that are here and refs within their age, beside an empty call.
pub(crate) fn resolve(world: &World, report: &mut Report) {
    let repo = world.history();
    let (upstream, url) = Upstream::of(repo);
    let node = Node::start();
    node.fill(&url);
    let listed = git_out(&repo.path(), &["rev-list", &format!("--max-count={COMMITS}"), "main"]);
    let commits: Vec<_> = listed.lines().map(|commit| commit_of(&url, commit)).collect();
    let branch = v1::Source {
        repository_url: url,
        r#ref: Some(v1::source::Ref::Branch("main".into())),
        max_age: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Default::default()
    };
    upstream.reset();
    for (what, sources) in [("resolve a commit", commits), ("resolve a ref", vec![branch])] {
        let (rounds, calls) = (5, world.options.calls().div_ceil(5));
        let ours = || {
            let (client, sources) = (node.repositories(), sources.clone());
            node.on(latencies(calls, move |number| {
                let (mut client, source) = (client.clone(), sources[number % sources.len()].clone());
                async move {
                    let request = v1::ResolveSourceRequest { source: Some(source) };
                    let resolved = client.resolve_source(request).await.unwrap().into_inner().resolved.unwrap();
                    assert_eq!(resolved.origin(), v1::Origin::Cache);
                }
            }))
        };
        let health = || {
            let client = node.health();
            node.on(latencies(calls, move |_| check(client.clone())))
        };
        let (ours, peer) = alternate(rounds, ours, health);
        report.line(Line {
            what: what.to_owned(),
            unit: Unit::Time,
            ours,
            peer: Some(("empty call", peer)),
            target: Target::Max(By::P99, 0.001),
        });
    }
    assert_eq!(upstream.requests().total(), 0, "nothing was asked of upstream");
}
