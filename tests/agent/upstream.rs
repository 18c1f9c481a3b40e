//! Upstream is away.

use std::path::Path;
use std::time::Instant;

use stoker_proto::v1;
use stoker_proto::v1::reason::Code as Why;
use tonic::Code;

use super::*;
use crate::support::repository::TestRepo;
use crate::support::upstream::{Fault, Upstream};

/// The caller's deadline.
const PATIENCE: Duration = Duration::from_secs(3);

/// What still works, and what fails in time, without upstream.
async fn without_upstream(silence: impl Fn(&Upstream), refusals: &[&str]) {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    silence(&upstream);
    upstream.reset();

    // A commit that is here needs nobody.
    let known = repo.commit("main");
    let found = resolve(&agent, commit(&url, &known), PATIENCE).await.unwrap();
    assert_eq!(found.resolved.as_ref().unwrap().origin(), v1::Origin::Cache);
    assert_eq!(upstream.requests().total(), 0);
    let granted = admit(&agent, order("cached", commit(&url, &known), small())).await.unwrap().granted();
    let workspace = prepare(&agent, &granted.id).await.unwrap();
    assert!(Path::new(&workspace.src).join("README.md").is_file());

    // A branch: where its caller takes it old, within the deadline, with its age.
    let stale = v1::Source { allow_stale: true, ..branch(&url, "main") };
    let begin = Instant::now();
    let found = resolve(&agent, stale.clone(), PATIENCE).await.unwrap();
    assert!(begin.elapsed() < PATIENCE);
    let resolved = found.resolved.unwrap();
    assert_eq!((resolved.origin(), &resolved.commit), (v1::Origin::Stale, &known));
    let (age, as_of) = (found.age.unwrap(), resolved.as_of.unwrap());
    let since = jiff::Timestamp::now().as_second() - as_of.seconds;
    assert!((age.seconds - since).abs() <= 1 && since >= 0, "{age:?}, confirmed {since} s ago");
    let mut request = within(order("stale", stale, small()), PATIENCE);
    request.set_timeout(PATIENCE);
    let answer = agent.admission().await.admit(request).await.unwrap().into_inner().decision.unwrap();
    let granted = Answer::from(answer).granted();
    assert!(Path::new(&prepare(&agent, &granted.id).await.unwrap().src).join("README.md").is_file());

    // Not where it wants to know, and not what we never had: an error in time that says what was tried.
    let unknown = v1::Source { allow_stale: true, ..branch(&url, "never-seen") };
    for source in [branch(&url, "main"), unknown, commit(&url, &"5".repeat(40))] {
        let begin = Instant::now();
        let status = resolve(&agent, source.clone(), PATIENCE).await.unwrap_err();
        assert!(begin.elapsed() < PATIENCE + Duration::from_secs(1), "{:?}", begin.elapsed());
        assert!(refusals.contains(&word(&status).as_str()), "{source:?}: {status:?}");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let named = url.trim_start_matches("http://");
        assert!(status.message().contains(named), "what was tried is named: {}", status.message());
        assert!(status.get_details_retry_info().is_some());
    }

    // It comes back: so does all the rest.
    upstream.fault(Fault::None);
    upstream.resume();
    let new = repo.commit_file("main", "new", b"new\n");
    let fresh = async || {
        let found = resolve(&agent, branch(&url, "main"), LIMIT).await;
        found.is_ok_and(|found| found.resolved.unwrap().commit == new)
    };
    wait::until_async(LIMIT, "upstream is asked again", fresh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_sources_build_while_upstream_refuses() {
    without_upstream(Upstream::stop, &["UPSTREAM_UNREACHABLE"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_sources_build_while_upstream_hangs() {
    let hang = |upstream: &Upstream| upstream.fault(Fault::Hang);
    without_upstream(hang, &["UPSTREAM_TIMEOUT", "UPSTREAM_UNREACHABLE"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_sources_build_while_upstream_fails() {
    let fail = |upstream: &Upstream| upstream.fault(Fault::Status(503));
    without_upstream(fail, &["UPSTREAM_UNREACHABLE"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_mirror_that_never_filled_is_an_alarm() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let other = upstream.host("team/other.git", &TestRepo::standard());
    upstream.stop();
    let http = "listen: {socket: $ROOT/run/stoker.sock, http: {address: \"127.0.0.1:$PORT\"}}";
    let agent = start(&format!("{http}\n{}", configuration(PLAIN, &[&url, &other])));
    let tried = |now: &v1::Status| {
        let empty = now.alarms.iter().filter(|alarm| alarm.code() == Why::RepositoryEmpty);
        empty.filter(|alarm| !alarm.message.contains("filled")).count() == 2
            && now.counts.as_ref().unwrap().repositories_empty == 2
    };
    let now = status_until(&agent, "both are alarms, with why", tried).await;
    let about = |alarm: &v1::Reason| url.contains(&alarm.subject) || alarm.message.contains(&url);
    assert!(now.alarms.iter().any(about), "{:?}", now.alarms);
    // Readiness does not depend on upstreams; what is wrong is told there all the same.
    let (code, body) = agent.http_get("/readyz").unwrap();
    assert_eq!(code, 200);
    assert!(body.lines().any(|line| line.starts_with("REPOSITORY_EMPTY ") && line.contains(&url)), "{body}");
    let (_, metrics) = agent.http_get("/metrics").unwrap();
    assert!(metrics.lines().any(|line| line.contains("REPOSITORY_EMPTY") && !line.ends_with(" 0")), "{metrics}");
    let mirror = repository(&agent, &url).await;
    assert_eq!(mirror.state(), v1::RepositoryState::Empty);
    assert!(codes(&mirror.reasons).contains(&Why::UpstreamUnreachable), "{:?}", mirror.reasons);
    assert!(mirror.failures > 0 && mirror.next_refresh_at.is_some());
    let status = resolve(&agent, branch(&url, "main"), PATIENCE).await.unwrap_err();
    assert_eq!(word(&status), "UPSTREAM_UNREACHABLE");
    assert!(gate_is(&now, v1::GateState::Open), "the node is well");
    // It fills by itself once upstream is there, and the alarm ends.
    upstream.resume();
    let filled = |now: &v1::Status| now.alarms.iter().all(|alarm| !alarm.message.contains(&url));
    status_until(&agent, "the alarm ends", filled).await;
    mirror_ready(&agent, &url).await;
}

/// Half of them name the branch, half the commit.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_callers_of_a_new_commit_are_one_fetch() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let mut fetches = Vec::new();
    for callers in [1, 50] {
        let new = repo.commit_file("main", &format!("for-{callers}"), b"new\n");
        upstream.reset();
        // So that they all come while the first visit is under way.
        upstream.delay(Duration::from_millis(100));
        let calls = (0..callers).map(|caller| {
            let source = if caller % 2 == 0 { branch(&url, "main") } else { commit(&url, &new) };
            resolve(&agent, source, LIMIT)
        });
        for answer in futures_util::future::join_all(calls).await {
            assert_eq!(answer.unwrap().resolved.unwrap().commit, new);
        }
        fetches.push(upstream.requests().fetches);
    }
    // Git may take more than one request for a fetch: as many for all of them as for one.
    assert_eq!(fetches[0], fetches[1], "{fetches:?}");
}
