//! What builds are seen to use: how they ended, what they leave for the next one, and what is left for others.

use std::path::PathBuf;

use super::*;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

const UID: &str = "0c7e4a52-91d3-4b6f-8e15-3a9f2d7c6b08";

/// An agent of a calm node, on which there is one pod; its control group is the test's.
struct Pods {
    agent: Agent,
    url: String,
    group: PathBuf,
    _upstream: Upstream,
    _repo: TestRepo,
}

impl Pods {
    async fn start() -> Self {
        let repo = TestRepo::standard();
        let (upstream, url) = Upstream::of(&repo);
        let mut agent = prepared(&configuration(PLAIN, &[&url]));
        let host = agent.root().join("host");
        let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cgroup/v2-cgroupfs-crio/sys");
        assert!(Command::new("cp").args(["-r", tree]).arg(&host).status().unwrap().success());
        let group = host.join(format!("sys/fs/cgroup/kubepods/pod{UID}"));
        let pods = {
            agent.launch();
            agent.wait_ready();
            Self { agent, url, group, _upstream: upstream, _repo: repo }
        };
        pods.events("oom 0\noom_kill 0\n");
        mirror_ready(&pods.agent, &pods.url).await;
        pods
    }

    fn events(&self, text: &str) {
        std::fs::write(self.group.join("memory.events"), text).unwrap();
    }

    /// A build of this target in the pod, seen at least so many times.
    async fn seen(&self, id: &str, target: &str, looks: usize) -> v1::Lease {
        let mut wanted = order(id, branch(&self.url, "main"), size(2000, 8 * GIB));
        wanted.build.as_mut().unwrap().target = target.to_owned();
        let lease = admit(&self.agent, wanted).await.unwrap().granted();
        let pod = v1::Pod { namespace: "builds".to_owned(), name: "build".to_owned(), uid: UID.to_owned() };
        let to = Some(v1::bind_request::To::Pod(pod));
        self.agent.admission().await.bind(v1::BindRequest { lease_id: lease.id.clone(), to }).await.unwrap();
        let mut at = Vec::new();
        status_until(&self.agent, "the pod is looked at", |_| true).await;
        while at.len() < looks {
            let now = use_of(&self.agent, &lease.id, |seen| {
                seen.source == "cgroup" && seen.observed_at != at.last().copied().flatten()
            });
            at.push(now.await.observed_at);
        }
        lease
    }

    async fn ends(&self, lease: &str, outcome: v1::Outcome, measured: Option<v1::Usage>) -> v1::Lease {
        let exit_code = Some(if outcome == v1::Outcome::Succeeded { 0 } else { 137 });
        let end = v1::ReleaseRequest { lease_id: lease.to_owned(), outcome: outcome.into(), exit_code, measured };
        self.agent.admission().await.release(end).await.unwrap().into_inner().lease.unwrap()
    }
}

async fn use_of(agent: &Agent, lease: &str, wanted: impl Fn(&v1::LeaseUse) -> bool) -> v1::LeaseUse {
    let of = |now: &v1::Status| now.lease_use.iter().find(|seen| seen.lease_id == lease).cloned();
    let now = status_until(agent, "the use is as it was made", |now| of(now).is_some_and(|seen| wanted(&seen))).await;
    of(&now).unwrap()
}

/// As the recorded group has it: without inactive file pages, with what was swapped out.
const RECORDED: i64 = 5 * GIB + 64 * MIB - 1536 * MIB + 128 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_whose_own_limit_killed_it_is_told_so_with_its_peak_and_the_next_step() {
    let pods = Pods::start().await;
    let lease = pods.seen("one", "", 1).await;
    pods.events("oom 1\noom_kill 1\n");
    use_of(&pods.agent, &lease.id, |seen| seen.oom_kills == Some(1)).await;
    let ended = pods.ends(&lease.id, v1::Outcome::Failed, None).await;
    assert_eq!(ended.outcome(), v1::Outcome::OutOfMemoryLimit);
    assert_eq!(ended.peak.unwrap().memory_bytes_peak, RECORDED);
    let advice = ended.retry.unwrap();
    assert!(advice.allowed && advice.size.unwrap().memory_bytes.unwrap() > 8 * GIB, "{advice:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_released_right_after_it_was_killed_is_told_so_too() {
    let pods = Pods::start().await;
    for (number, (events, outcome)) in
        [("oom 1\noom_kill 1\n", v1::Outcome::OutOfMemoryLimit), ("oom 0\noom_kill 1\n", v1::Outcome::OutOfMemoryNode)]
            .into_iter()
            .enumerate()
    {
        pods.events("oom 0\noom_kill 0\n");
        let lease = pods.seen(&format!("build-{number}"), "", 1).await;
        // Nobody looks in between.
        pods.events(events);
        assert_eq!(pods.ends(&lease.id, v1::Outcome::Failed, None).await.outcome(), outcome);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_caller_measured_wins_and_the_rest_was_seen() {
    let pods = Pods::start().await;
    let lease = pods.seen("one", "", 1).await;
    let measured = Some(v1::Usage { memory_bytes_peak: 6 * GIB, ..Default::default() });
    let peak = pods.ends(&lease.id, v1::Outcome::Succeeded, measured).await.peak.unwrap();
    assert_eq!((peak.memory_bytes_peak, peak.processes_peak), (6 * GIB, 37));
    let other = Some(v1::Usage { memory_bytes_peak: 7 * GIB, ..Default::default() });
    let again = pods.ends(&lease.id, v1::Outcome::Succeeded, other).await;
    assert_eq!(again.peak, Some(peak), "released once");
    let kept = crate::support::disk::rows(&pods.agent.root().join("state"), "history");
    assert_eq!(kept, 1, "one build, one run of the history");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_of_builds_decides_how_large_the_next_one_is() {
    let pods = Pods::start().await;
    // Looked at for nearly all of its life, and for a moment of it only.
    for (target, looks, complete) in [("whole", 5, 1), ("part", 1, 0)] {
        let lease = pods.seen(target, target, looks).await;
        pods.ends(&lease.id, v1::Outcome::Succeeded, None).await;
        let source = Some(branch(&pods.url, "main"));
        let build = v1::Build { source, target: target.to_owned(), ..Default::default() };
        let evaluate = v1::EvaluateRequest { builds: vec![build] };
        let told = pods.agent.admission().await.evaluate(evaluate).await.unwrap().into_inner();
        let sizing = told.evaluations[0].sizing.clone().unwrap();
        let basis = sizing.basis.iter().find(|basis| basis.resource() == v1::Resource::Memory).unwrap();
        let learnt = sizing.size.unwrap().memory_bytes.unwrap();
        match complete {
            // A fifth more than its peak, which is less than what nobody knows anything of gets.
            1 => assert_eq!((basis.tier(), learnt), (v1::Tier::History, (RECORDED * 6 + 4) / 5)),
            _ => assert!(learnt >= RECORDED + RECORDED / 5, "at least: {sizing:?}"),
        }
    }
    let state = pods.agent.root().join("state");
    let connection = rusqlite::Connection::open(state.join("journal.sqlite")).unwrap();
    let mut select = connection.prepare("SELECT record ->> 'censored' FROM history ORDER BY number").unwrap();
    let censored: Vec<bool> = select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(censored, [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_went_leaves_what_was_seen_of_its_build() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let lease = admit(&agent, order("one", branch(&url, "main"), small())).await.unwrap().granted();
    let mut holder = Holder::start(&agent, "exec sleep 1000");
    bind(&agent, &lease.id, holder.process()).await.unwrap();
    use_of(&agent, &lease.id, |seen| seen.source == "processes").await;
    holder.end();
    let ended = lease_until(&agent, &lease.id, "the lease ends", |lease| lease.ended_at.is_some()).await;
    assert_eq!((ended.state(), ended.outcome()), (v1::LeaseState::Orphaned, v1::Outcome::Lost));
    assert!(ended.peak.is_some_and(|peak| peak.memory_bytes_peak > 0 && peak.processes_peak == 1), "{ended:?}");
    assert_eq!(crate::support::disk::rows(&agent.root().join("state"), "history"), 1);
}

/// 12.5 GiB of the recorded node are used, and nothing of that is a lease's.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_use_stands_whoever_binds_or_ends_and_after_a_start() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let alone = others(&agent).await;
    assert!(alone > 11 * GIB, "{alone}");
    let stand = async |agent: &Agent, when: &str| {
        // At once, and also when it was looked at.
        for _ in 0..3 {
            let now = others(agent).await;
            // The holder is a shell of some hundred KiB.
            assert!(alone - now < 16 * MIB && now <= alone, "{when}: {now} of {alone}");
        }
    };
    let holder = Holder::start(&agent, "exec sleep 1000");
    let wanted = order("one", branch(&url, "main"), size(1000, 20 * GIB));
    let lease = admit(&agent, wanted).await.unwrap().granted();
    stand(&agent, "granted").await;
    bind(&agent, &lease.id, holder.process()).await.unwrap();
    stand(&agent, "bound").await;
    use_of(&agent, &lease.id, |seen| seen.source == "processes").await;
    stand(&agent, "seen").await;
    agent.restart();
    stand(&agent, "started").await;
    use_of(&agent, &lease.id, |seen| seen.source == "processes").await;
    stand(&agent, "started and seen").await;
    release(&agent, &lease.id).await.unwrap();
    stand(&agent, "released").await;
}

async fn others(agent: &Agent) -> i64 {
    status(agent).await.ledger.unwrap().others.unwrap().memory_bytes.unwrap()
}
