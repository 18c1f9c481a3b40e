//! Every kind of ref, resolved over gRPC against an upstream over HTTP; what that costs upstream; and what is refused.

use std::path::Path;
use std::time::Duration;

use stoker_proto::v1::{self, Origin};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::repository::{TestRepo, git, git_out};
use crate::support::stoker::Agent;
use crate::support::upstream::{Counts, Fault, Upstream};
use crate::support::wait::until_async;
use crate::support::wire::{reason, seconds, source};

/// An agent that may fetch over HTTP from this machine. What else runs on it, and how full its disk is, decides nothing.
pub(crate) const LOOPBACK: &str = "
node: {rootFloor: {bytes: 0, inodes: 0}}
pressure: {memoryFloor: 1MiB, memoryNarrow: 2MiB, hold: 100ms, diskForecast: 0s}
pools: [{name: data, path: $ROOT/pool, mount: optional, floor: {bytes: 1MiB, inodes: 10}}]
repositories: {add: on-demand, allow: [127.0.0.1], protocols: [http]}
";
/// What a question that brings nothing new costs: one round trip.
const ASKED: Counts = Counts { info_refs: 0, ls_refs: 1, fetches: 0, others: 0 };

async fn resolve(agent: &Agent, source: v1::Source) -> Result<v1::ResolveSourceResponse, Status> {
    let request = v1::ResolveSourceRequest { source: Some(source) };
    agent.repository().await.resolve_source(request).await.map(tonic::Response::into_inner)
}

/// Every kind of ref with its commit, and the ref that any git client can clone.
fn kinds(repo: &TestRepo) -> Vec<(String, String, String)> {
    let old = repo.commit("develop~1");
    let named = |reference: &str, full: &str| (reference.to_owned(), repo.commit(full), full.to_owned());
    vec![
        named("head", "refs/heads/main"),
        named("branch:main", "refs/heads/main"),
        named("branch:develop", "refs/heads/develop"),
        named("branch:feature/with-slash", "refs/heads/feature/with-slash"),
        named("tag:v1.0", "refs/tags/v1.0"),
        named("tag:v1.1-rc1", "refs/tags/v1.1-rc1"),
        named("pr:152", "refs/pull/152/head"),
        (format!("sha:{old}"), old.clone(), old),
    ]
}

#[tokio::test]
async fn every_kind_of_ref_is_one_commit_that_git_can_clone() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(LOOPBACK);
    for (reference, commit, clone_ref) in kinds(&repo) {
        let answer = resolve(&agent, source(&url, &reference)).await.unwrap();
        let age = answer.age.unwrap();
        let resolved = answer.resolved.unwrap();
        assert_eq!(resolved.commit, commit, "{reference}");
        assert_eq!(resolved.clone_url, url, "{reference}");
        assert_eq!(resolved.clone_ref, clone_ref, "{reference}");
        let subject = git_out(&repo.path(), &["log", "-1", "--format=%s", &commit]);
        assert_eq!(resolved.subject, subject, "{reference}");
        assert!(!resolved.snapshot.is_empty(), "{reference}");
        // A commit that is here needs nobody's word.
        let origin = if reference.starts_with("sha:") { Origin::Cache } else { Origin::Upstream };
        assert_eq!(resolved.origin(), origin, "{reference}");
        assert!((0..60).contains(&age.seconds) && resolved.as_of.is_some(), "{reference}: {age:?}");
        assert_eq!(fetched(&resolved.clone_url, &resolved.clone_ref), commit, "{reference}");
    }
}

/// What plain git gets for a URL and a ref.
fn fetched(url: &str, name: &str) -> String {
    let place = tempfile::tempdir().unwrap();
    git_out(place.path(), &["init", "--quiet"]);
    let status = git(place.path()).args(["fetch", "--quiet", url, name]).status().unwrap();
    assert!(status.success(), "git fetch {url} {name}");
    git_out(place.path(), &["rev-parse", "FETCH_HEAD^{commit}"])
}

#[tokio::test]
async fn what_is_here_is_not_fetched_again() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(LOOPBACK);
    for (reference, ..) in kinds(&repo) {
        resolve(&agent, source(&url, &reference)).await.unwrap();
    }
    for (reference, commit, _) in kinds(&repo) {
        upstream.reset();
        let answer = resolve(&agent, source(&url, &reference)).await.unwrap();
        assert_eq!(answer.resolved.unwrap().commit, commit);
        let expected = if reference.starts_with("sha:") { Counts::default() } else { ASKED };
        assert_eq!(upstream.requests(), expected, "{reference}: asked for now");

        upstream.reset();
        let within_the_hour = v1::Source { max_age: seconds(3600), ..source(&url, &reference) };
        let resolved = resolve(&agent, within_the_hour).await.unwrap().resolved.unwrap();
        assert_eq!((resolved.commit.as_str(), resolved.origin()), (commit.as_str(), Origin::Cache), "{reference}");
        assert_eq!(upstream.requests(), Counts::default(), "{reference}: an answer may be an hour old");
    }
    upstream.reset();
    let new = repo.commit_file("develop", "new", b"new\n");
    let resolved = resolve(&agent, source(&url, "branch:develop")).await.unwrap().resolved.unwrap();
    assert_eq!((resolved.commit.as_str(), resolved.origin()), (new.as_str(), Origin::Upstream));
    assert_eq!(upstream.requests().fetches, 1);
}

#[tokio::test]
async fn callers_at_once_share_one_fetch() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(LOOPBACK);
    let asked = (0..16).map(|_| resolve(&agent, source(&url, "head")));
    let commit = repo.commit("main");
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(answer.unwrap().resolved.unwrap().commit, commit);
    }
    assert_eq!(upstream.requests().fetches, 1);
}

#[tokio::test]
async fn an_answer_may_be_stale_only_where_the_caller_says_so() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(LOOPBACK);
    resolve(&agent, source(&url, "branch:main")).await.unwrap();
    upstream.stop();
    let refused = resolve(&agent, source(&url, "branch:main")).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "UPSTREAM_UNREACHABLE"));
    assert!(refused.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()), "{refused:?}");
    let any_age = v1::Source { allow_stale: true, ..source(&url, "branch:main") };
    let resolved = resolve(&agent, any_age).await.unwrap().resolved.unwrap();
    assert_eq!((resolved.commit.as_str(), resolved.origin()), (repo.commit("main").as_str(), Origin::Stale));
    let commit = source(&url, &format!("sha:{}", repo.commit("develop~1")));
    assert_eq!(resolve(&agent, commit).await.unwrap().resolved.unwrap().origin(), Origin::Cache);
}

#[tokio::test]
async fn requests_do_not_hammer_an_upstream_in_trouble() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let never_asked = TestRepo::standard();
    let unseen = upstream.host("team/unseen.git", &never_asked);
    let agent = Agent::start(LOOPBACK);
    resolve(&agent, source(&url, "branch:main")).await.unwrap();
    upstream.fault(Fault::Status(503));
    // One that is here, and one that never was: the first request asks, and no other within the pause.
    for url in [&url, &unseen] {
        upstream.reset();
        resolve(&agent, source(url, "branch:main")).await.unwrap_err();
        let asked = upstream.requests();
        assert!(asked.total() > 0);
        for reference in ["branch:main", "branch:develop", "head", "pr:152"].into_iter().cycle().take(20) {
            let refused = resolve(&agent, source(url, reference)).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "UPSTREAM_UNREACHABLE"));
            assert!(refused.message().contains("is asked again in "), "{refused:?}");
            let delay = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
            assert!((1..=7).contains(&delay.as_secs()), "{delay:?}");
        }
        assert_eq!(upstream.requests(), asked, "{url}");
    }
    upstream.reset();
    let any_age = v1::Source { allow_stale: true, ..source(&url, "branch:main") };
    assert_eq!(resolve(&agent, any_age).await.unwrap().resolved.unwrap().origin(), Origin::Stale);
    let commit = source(&url, &format!("sha:{}", repo.commit("develop~1")));
    assert_eq!(resolve(&agent, commit).await.unwrap().resolved.unwrap().origin(), Origin::Cache);
    assert_eq!(upstream.requests().total(), 0);

    // An operator is not held back, and who asks after that is not either.
    agent.stoker().run(["repo", "refresh", &url]).expect_code(2);
    assert!(upstream.requests().total() > 0);
    upstream.fault(Fault::None);
    resolve(&agent, source(&url, "branch:main")).await.unwrap_err();
    agent.stoker().run(["repo", "refresh", &url]).expect_code(0);
    upstream.reset();
    assert_eq!(
        resolve(&agent, source(&url, "branch:main")).await.unwrap().resolved.unwrap().origin(),
        Origin::Upstream
    );
    assert_eq!(upstream.requests(), ASKED);
    // By itself the pause ends too.
    let again = async || resolve(&agent, source(&unseen, "branch:main")).await.is_ok();
    until_async(Duration::from_secs(30), "the pause after the failure is over", again).await;
}

#[tokio::test]
async fn what_upstream_does_not_have_is_refused_with_its_reason() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let nothing = TestRepo::empty();
    let empty = upstream.host("team/empty.git", &nothing);
    let agent = Agent::start(LOOPBACK);
    resolve(&agent, source(&url, "head")).await.unwrap();
    let expected = v1::Source { expected_commit: repo.commit("develop"), ..source(&url, "branch:main") };
    let nowhere = format!("sha:{}", "0123456789".repeat(4));
    let unreferenced = format!("sha:{}", repo.unreferenced());
    for (source, code, word) in [
        (source(&url, "branch:none"), Code::NotFound, "REF_NOT_FOUND"),
        (source(&url, "tag:none"), Code::NotFound, "REF_NOT_FOUND"),
        (source(&url, "pr:153"), Code::NotFound, "REF_NOT_FOUND"),
        (source(&url, &nowhere), Code::NotFound, "COMMIT_NOT_FOUND"),
        (source(&url, &unreferenced), Code::FailedPrecondition, "COMMIT_UNREACHABLE"),
        (expected, Code::FailedPrecondition, "COMMIT_UNEXPECTED"),
        (source(&upstream.url("team/none.git"), "head"), Code::NotFound, "UPSTREAM_NOT_FOUND"),
        (source(&empty, "head"), Code::Unavailable, "REPOSITORY_EMPTY"),
    ] {
        let refused = resolve(&agent, source.clone()).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (code, word), "{source:?}\n{refused:?}");
    }
    let other_fork = v1::Source { allow_other_fork: true, ..source(&url, &unreferenced) };
    assert_eq!(resolve(&agent, other_fork).await.unwrap().resolved.unwrap().commit, repo.unreferenced());
    // Nothing stays of upstreams that are not there.
    let listed = agent.repository().await.list_repositories(v1::ListRepositoriesRequest::default()).await.unwrap();
    let urls: Vec<_> = listed.into_inner().repositories.into_iter().map(|repository| repository.url).collect();
    assert!(!urls.iter().any(|url| url.contains("none")), "{urls:?}");
    assert!(Path::new(&agent.root().join("pool/stoker/repositories")).is_dir());
}
