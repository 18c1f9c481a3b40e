//! What schedulers ask.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

use futures_util::future::join_all;
use stoker_proto::v1;

use crate::numbers::node::{Node, admitted, check, latencies, small_build};
use crate::numbers::report::{By, Line, Report, Samples, Target, Unit, alternate};
use crate::numbers::world::World;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

/// Mirrors that are known beside the one that is asked for, of those that an agent at rest has.
const MIRRORS_FACTOR: usize = 5;
/// Rounds into which the calls are parted.
const ROUNDS: usize = 5;
/// A sync of a disk that is none in memory, in seconds.
const SYNC_SLOW: f64 = 0.002;
/// Calls that are open at once where throughput is measured.
const OPEN: usize = 16;

/// `Evaluate` of one build while many leases are live; then many at once, beside an empty call.
pub(crate) fn evaluate(world: &World, report: &mut Report) {
    let repo = TestRepo::generated(50, 50_000, 2);
    let (upstream, url) = Upstream::of(&repo);
    let node = Node::start();
    node.fill(&url);
    let mirrors = world.options.mirrors() * MIRRORS_FACTOR;
    let known: Vec<_> = (0..mirrors).map(|number| upstream.host(&format!("mirror/{number}.git"), &repo)).collect();
    node.fill_all(&known);
    let leases = world.options.leases();
    node.hold(&url, &repo.commit("main"), leases);
    let branch = v1::source::Ref::Branch("main".into());
    let source = v1::Source { repository_url: url, r#ref: Some(branch), ..Default::default() };
    let request = v1::EvaluateRequest { builds: vec![small_build(source)] };

    let calls = world.options.calls().div_ceil(ROUNDS);
    let evaluate = || {
        let (client, request) = (node.admission(), request.clone());
        move |_| {
            let (mut client, request) = (client.clone(), request.clone());
            async move {
                let answer = client.evaluate(request).await.unwrap().into_inner();
                assert_eq!(answer.evaluations[0].verdict(), v1::Verdict::Fits, "{answer:?}");
            }
        }
    };
    let empty = || {
        let client = node.health();
        move |_| check(client.clone())
    };
    let (ours, peer) =
        alternate(ROUNDS, || node.on(latencies(calls, evaluate())), || node.on(latencies(calls, empty())));
    let what = format!("evaluate, {leases} leases, {mirrors} mirrors");
    let peer = Some(("empty call", peer));
    report.line(Line { what, unit: Unit::Time, ours, peer, target: Target::Max(By::P99, 0.001) });

    let (ours, peer) = alternate(ROUNDS, || rate(&node, calls, evaluate()), || rate(&node, calls, empty()));
    let (what, peer) = (format!("evaluate, {OPEN} at once"), Some(("empty call", peer)));
    report.line(Line { what, unit: Unit::Rate, ours, peer, target: Target::RatioMin(0.7) });
    assert_eq!(usize::try_from(node.status().counts.unwrap().leases), Ok(leases), "live leases at the end");
}

/// Calls a second, [`OPEN`] of them open at once.
fn rate<F: Future<Output = ()> + Send + 'static>(
    node: &Node,
    calls: usize,
    call: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Samples {
    let each = calls.div_ceil(OPEN);
    node.on(async move {
        let began = Instant::now();
        join_all((0..OPEN).map(|_| latencies(each, call.clone()))).await;
        let mut samples = Samples::default();
        samples.push((each * OPEN) as f64 / began.elapsed().as_secs_f64());
        samples
    })
}

/// `Admit`, durable: one caller beside writing a page and `fdatasync` on the same disk; then many callers beside one.
pub(crate) fn admit(world: &World, report: &mut Report) {
    let repo = TestRepo::generated(50, 50_000, 2);
    let (_upstream, url) = Upstream::of(&repo);
    let node = Node::start();
    node.fill(&url);
    let callers = world.options.callers();
    let calls = (world.options.calls() / 10 / ROUNDS).max(1);
    let admit = Admit { node: &node, url, commit: repo.commit("main"), round: 0.into() };
    // The journal's log grows to its length once, and is written over from then on. So is the peer's file.
    while_growing(&admit);
    let file = node.beside("state/fdatasync");
    let page = [7_u8; 4096];
    let disk = File::create(&file).unwrap();
    for number in 0..calls as u64 {
        disk.write_all_at(&page, number * 4096).unwrap();
    }
    disk.sync_all().unwrap();
    let sync = || {
        let mut samples = Samples::default();
        for number in 0..calls as u64 {
            let began = Instant::now();
            disk.write_all_at(&page, number * 4096).unwrap();
            disk.sync_data().unwrap();
            samples.push_time(began.elapsed());
        }
        samples
    };
    let mut empty = Samples::default();
    let ours = || {
        let client = node.health();
        empty.extend(node.on(latencies(calls, move |_| check(client.clone()))));
        admit.round(1, calls).0
    };
    let (ours, peer) = alternate(ROUNDS, ours, sync);
    // On a disk that syncs faster than a call goes to and fro, the call is what is measured.
    let slow_disk = peer.median() >= SYNC_SLOW;
    let target = if slow_disk { Target::RatioMax(1.5) } else { Target::Told("ratio <= 1.5 where a sync takes 2 ms") };
    let beyond = ours.less(empty.median());
    for (what, ours) in [("admit, 1 caller", ours), ("admit, 1 caller, less an empty call", beyond)] {
        let peer = Some(("4 KiB + fdatasync", peer.clone()));
        report.line(Line { what: what.to_owned(), unit: Unit::Time, ours, peer, target });
    }

    let few = (calls / 4).max(1);
    let (ours, peer) = alternate(ROUNDS, || admit.round(callers, few).1, || admit.round(1, calls).1);
    let (what, peer) = (format!("admit, {callers} callers"), Some(("1 caller", peer)));
    let target = if slow_disk { Target::RatioMin(10.0) } else { Target::Told("ratio >= 10 where a sync takes 2 ms") };
    report.line(Line { what, unit: Unit::Rate, ours, peer, target });
    std::fs::remove_file(file).unwrap();
}

/// Until SQLite's log was written back once: 1000 pages, a few of them a lease.
fn while_growing(admit: &Admit<'_>) {
    for _ in 0..2 {
        admit.round(16, 32);
    }
}

struct Admit<'a> {
    node: &'a Node,
    url: String,
    commit: String,
    round: std::cell::Cell<usize>,
}

impl Admit<'_> {
    /// `callers` at once, `calls` each: each call's latency, and calls a second of all. The leases are released after
    /// the clock was stopped.
    fn round(&self, callers: usize, calls: usize) -> (Samples, Samples) {
        let round = self.round.get();
        self.round.set(round + 1);
        let (client, url, commit) = (self.node.admission(), self.url.clone(), self.commit.clone());
        self.node.on(async move {
            let one = |caller: usize| {
                let (mut client, url, commit) = (client.clone(), url.clone(), commit.clone());
                async move {
                    let (mut samples, mut leases) = (Samples::default(), Vec::new());
                    for call in 0..calls {
                        let id = format!("admit-{round}-{caller}-{call}");
                        let began = Instant::now();
                        leases.push(admitted(&mut client, &id, &url, &commit).await);
                        samples.push_time(began.elapsed());
                    }
                    (samples, leases)
                }
            };
            let began = Instant::now();
            let all = join_all((0..callers).map(one)).await;
            let took = began.elapsed();
            let mut rate = Samples::default();
            rate.push((callers * calls) as f64 / took.as_secs_f64());
            let mut samples = Samples::default();
            let mut releases = Vec::new();
            for (some, leases) in all {
                samples.extend(some);
                releases.extend(leases.into_iter().map(|lease_id| {
                    let mut client = client.clone();
                    async move {
                        let outcome = v1::Outcome::Succeeded.into();
                        client.release(v1::ReleaseRequest { lease_id, outcome, ..Default::default() }).await.unwrap();
                    }
                }));
            }
            join_all(releases).await;
            (samples, rate)
        })
    }
}
