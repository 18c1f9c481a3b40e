//! Caches of leases that live at once.

use super::*;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

const SPEC: &[u8] = br#"{"schema_version": 1, "cpu": 1, "memory_gb": 1, "disk_gb": 0.01, "time_budget_min": 10,
                         "cache_keys": ["target"]}"#;

/// Two commits at once on one cache: each would take the other's outputs for its own.
#[tokio::test(flavor = "multi_thread")]
async fn commits_that_build_at_once_do_not_share_a_cache() {
    let repo = TestRepo::standard();
    let commits = [repo.commit_file("main", ".build-spec.json", SPEC), repo.commit_file("main", "word", b"B\n")];
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let begin = async |agent: &Agent, id: &str, which: usize| {
        let source = Some(commit(&url, &commits[which]));
        let build = Some(v1::Build { source, ..Default::default() });
        let request = v1::AdmitRequest { request_id: id.to_owned(), build, ..Default::default() };
        let lease = admit(agent, request).await.unwrap().granted();
        let workspace = prepare(agent, &lease.id).await.unwrap();
        let place = workspace.environment["STOKER_CACHE"].clone();
        assert!(Path::new(&place).join("target").is_dir(), "{place}");
        assert!(place.starts_with(&workspace.cache), "what must be mounted has it");
        (lease.id, place)
    };
    let first = begin(&agent, "first", 0).await;
    let other = begin(&agent, "other", 1).await;
    assert_ne!(first.1, other.1);
    assert_eq!(begin(&agent, "same", 0).await.1, first.1, "one commit, one place");
    agent.restart();
    assert_eq!(begin(&agent, "same-again", 0).await.1, first.1, "known after a restart");
    assert_eq!(begin(&agent, "other-again", 1).await.1, other.1);
}

/// A build as root can put anything in the place of a shared directory. The agent follows nothing there.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_place_of_a_cache_is_refused_and_leads_nowhere() {
    let repo = TestRepo::standard();
    let at = repo.commit_file("main", ".build-spec.json", SPEC);
    let (_upstream, url) = Upstream::of(&repo);
    let agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let begin = async |id: &str| {
        let build = Some(v1::Build { source: Some(commit(&url, &at)), ..Default::default() });
        let request = v1::AdmitRequest { request_id: id.to_owned(), build, ..Default::default() };
        let lease = admit(&agent, request).await.unwrap().granted();
        (prepare(&agent, &lease.id).await, lease.id)
    };
    let (first, lease) = begin("first").await;
    let cache = Path::new(&first.unwrap().environment["STOKER_CACHE"]).join("target");
    release(&agent, &lease).await.unwrap();
    let outside = agent.root().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let before = mode_of(&outside);
    std::fs::remove_dir(&cache).unwrap();
    symlink(&outside, &cache).unwrap();
    let refused = begin("second").await.0.unwrap_err();
    assert!(refused.message().contains("target is no directory; remove"), "{refused:?}");
    assert_eq!(mode_of(&outside), before);
    std::fs::remove_file(&cache).unwrap();
    assert!(begin("third").await.0.is_ok());
}
