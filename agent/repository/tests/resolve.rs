//! What is resolved, and what is not.

use stoker_core::identity::CommitId;
use stoker_core::quantity::Span;
use stoker_core::source::{Origin, Request};

use super::world::{World, git_in, odd_ref, until};
use crate::config;
use crate::repository::{Cached, RepositoryState};

#[tokio::test]
async fn every_kind_of_ref_is_resolved() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    upstream.git(["tag", "light"]);
    upstream.git(["tag", "-a", "-m", "x", "heavy"]);
    upstream.git(["branch", "feature/x", "HEAD~1"]);
    let pull = upstream.loose_commit("pull");
    upstream.git(["update-ref", "refs/pull/152/head", &pull.to_string()]);
    let merge = upstream.loose_commit("merge request");
    upstream.git(["update-ref", "refs/merge-requests/3/head", &merge.to_string()]);
    let (main, first) = (upstream.rev("main"), upstream.rev("main~1"));
    for (reference, commit, clone_ref) in [
        ("head", main, "refs/heads/main"),
        ("branch:main", main, "refs/heads/main"),
        ("branch:feature/x", first, "refs/heads/feature/x"),
        ("tag:light", main, "refs/tags/light"),
        ("tag:heavy", main, "refs/tags/heavy"),
        ("pr:152", pull, "refs/pull/152/head"),
        ("pr:3", merge, "refs/merge-requests/3/head"),
    ] {
        let resolved = world.resolve(&upstream.request(reference)).await.unwrap();
        assert_eq!((resolved.commit, resolved.clone_ref.as_str()), (commit, clone_ref), "{reference}");
        assert_eq!(resolved.origin, Origin::Upstream);
        assert_eq!(resolved.clone_url, upstream.url().fetch_url());
        assert_eq!(resolved.pin.reference(clone_ref).unwrap(), Some(commit));
    }
    let resolved = world.resolve(&upstream.request(&format!("sha:{first}"))).await.unwrap();
    assert_eq!((resolved.commit, resolved.origin), (first, Origin::Cache));
    assert_eq!(resolved.subject, "first");
    git_in(resolved.pin.path(), ["fsck", "--strict"]);
    assert_eq!(git_in(resolved.pin.path(), ["rev-parse", "HEAD", "heavy^{}"]), format!("{main}\n{main}"));
    for missing in ["branch:none", "tag:none", "pr:9"] {
        assert_eq!(world.commit(&upstream.request(missing)).await, Err("REF_NOT_FOUND"), "{missing}");
    }
    let view = world.repositories.get(&upstream.url()).unwrap();
    assert_eq!((view.state, view.head.as_str(), view.failures), (RepositoryState::Ready, "main", 0));
    assert_eq!(view.refs, 6, "main, feature/x, light, heavy and two requests");
    assert!(view.objects >= 8 && view.disk_bytes > 0 && view.misses >= 10 && view.hits >= 1, "{view:?}");
}

#[tokio::test]
async fn an_answer_within_its_age_needs_no_upstream() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let old = upstream.rev("main");
    assert_eq!(world.commit(&upstream.request("branch:main")).await, Ok(old));
    let new = upstream.commit("third");
    let asked = world.count("ls-remote");
    let aged = Request { max_age: Some(Span::hours(1)), ..upstream.request("branch:main") };
    let resolved = world.resolve(&aged).await.unwrap();
    assert_eq!((resolved.commit, resolved.origin), (old, Origin::Cache));
    assert_eq!(world.count("ls-remote"), asked);
    let expecting = Request { expected_commit: Some(new), ..aged };
    assert_eq!(world.commit(&expecting).await, Ok(new));
    let wrong = Request { expected_commit: Some(old), ..upstream.request("branch:main") };
    assert_eq!(world.commit(&wrong).await, Err("COMMIT_UNEXPECTED"));
}

#[tokio::test]
async fn a_commit_is_served_only_where_this_repository_reaches_it() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let (main, off) = (upstream.rev("main"), upstream.loose_commit("of another fork"));
    let request = |commit: CommitId| upstream.request(&format!("sha:{commit}"));
    assert_eq!(world.commit(&request(off)).await, Err("COMMIT_UNREACHABLE"));
    assert_eq!(world.commit(&request(off)).await, Err("COMMIT_UNREACHABLE"), "though it is here now");
    let allowing = Request { allow_other_fork: true, ..request(off) };
    assert_eq!(world.commit(&allowing).await, Ok(off));
    let other = upstream.loose_commit("another");
    let allowing = Request { allow_other_fork: true, ..request(other) };
    let resolved = world.resolve(&allowing).await.unwrap();
    assert_eq!((resolved.clone_ref, resolved.other_fork), (other.to_string(), true));
    let nowhere = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
    assert_eq!(world.commit(&request(nowhere)).await, Err("COMMIT_NOT_FOUND"));
    // A commit of a branch that came after the last fetch, and the tip of a pull request.
    upstream.git(["checkout", "-q", "-b", "later"]);
    let later = upstream.commit("later");
    assert_eq!(world.commit(&request(later)).await, Ok(later));
    let tip = upstream.loose_commit("tip");
    upstream.git(["update-ref", "refs/pull/7/head", &tip.to_string()]);
    assert_eq!(world.commit(&request(tip)).await, Ok(tip));
    assert_eq!(world.commit(&request(main)).await, Ok(main));
}

#[tokio::test]
async fn refs_follow_upstream() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    upstream.git(["branch", "gone"]);
    upstream.git(["branch", "a"]);
    upstream.git(["tag", "moves", "HEAD~1"]);
    let before = world.resolve(&upstream.request("branch:gone")).await.unwrap();
    // Force-pushed, deleted, a branch that becomes a directory of branches, a tag that moves, a HEAD that changes.
    upstream.git(["branch", "-D", "a"]);
    upstream.git(["branch", "a/b"]);
    upstream.git(["branch", "-D", "gone"]);
    upstream.git(["tag", "-f", "moves", "HEAD"]);
    upstream.git(["checkout", "-q", "-b", "next", "HEAD~1"]);
    let next = upstream.commit("next");
    upstream.git(["branch", "-f", "main", "next"]);
    assert_eq!(world.commit(&upstream.request("head")).await, Ok(next));
    assert_eq!(world.repositories.get(&upstream.url()).unwrap().head, "next");
    assert_eq!(world.commit(&upstream.request("branch:main")).await, Ok(next));
    assert_eq!(world.commit(&upstream.request("branch:gone")).await, Err("REF_NOT_FOUND"));
    assert_eq!(world.commit(&upstream.request("branch:a")).await, Err("REF_NOT_FOUND"));
    assert_eq!(world.commit(&upstream.request("branch:a/b")).await, Ok(before.commit));
    assert_eq!(world.commit(&upstream.request("tag:moves")).await, Ok(before.commit));
    // And back.
    upstream.git(["branch", "-D", "a/b"]);
    upstream.git(["branch", "a"]);
    assert!(world.commit(&upstream.request("branch:a")).await.is_ok());
    assert_eq!(before.pin.reference("refs/heads/gone").unwrap(), Some(before.commit), "a snapshot never changes");
}

#[tokio::test]
async fn a_pull_request_is_followed_and_forgotten() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    for message in ["one", "two"] {
        let tip = upstream.loose_commit(message);
        upstream.git(["update-ref", "refs/pull/1/head", &tip.to_string()]);
        assert_eq!(world.commit(&upstream.request("pr:1")).await, Ok(tip));
    }
    let clones_and_fetches = world.count("clone") + world.count("fetch");
    assert!(world.commit(&upstream.request("pr:1")).await.is_ok());
    assert_eq!(world.count("clone") + world.count("fetch"), clones_and_fetches, "nothing changed");
    upstream.git(["update-ref", "-d", "refs/pull/1/head"]);
    assert_eq!(world.commit(&upstream.request("pr:1")).await, Err("REF_NOT_FOUND"));
}

#[tokio::test]
async fn a_detached_head_and_a_linked_worktree_are_upstreams() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    upstream.git(["checkout", "-q", "--detach"]);
    let detached = upstream.commit("detached");
    let resolved = world.resolve(&upstream.request("head")).await.unwrap();
    assert_eq!((resolved.commit, resolved.clone_ref), (detached, detached.to_string()));
    let further = upstream.commit("further");
    assert_eq!(world.commit(&upstream.request("head")).await, Ok(further));
    assert_eq!(world.commit(&upstream.request(&format!("sha:{further}"))).await, Ok(further));
    let linked = world.dir.path().join("linked");
    upstream.git(["worktree", "add", "-q", "-b", "side", linked.to_str().unwrap()]);
    let request = Request::new(format!("file://{}", linked.display()).parse().unwrap(), "head".parse().unwrap());
    let resolved = world.resolve(&request).await.unwrap();
    assert_eq!(resolved.clone_ref, "refs/heads/side");
}

#[tokio::test]
async fn names_that_are_not_utf8_are_kept() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    upstream.git(["update-ref".as_ref(), odd_ref(), "HEAD".as_ref()]);
    upstream.git(["branch", "gr\u{fc}n"]);
    let resolved = world.resolve(&upstream.request("branch:gr\u{fc}n")).await.unwrap();
    let refs = resolved.pin.refs().unwrap();
    assert_eq!(refs.get(b"refs/heads/caf\xe9").unwrap().id, resolved.commit);
    git_in(resolved.pin.path(), ["fsck"]);
}

#[tokio::test]
async fn what_is_no_upstream_is_refused_and_leaves_no_trace() {
    let world = World::with(|config, _| config.protocols.push("ssh".into())).await;
    let empty = world.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    git_in(&empty, ["init", "-q"]);
    let plain = world.dir.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    let sha256 = world.dir.path().join("sha256");
    std::fs::create_dir(&sha256).unwrap();
    git_in(&sha256, ["init", "-q", "--object-format=sha256"]);
    git_in(&sha256, ["commit", "-q", "--allow-empty", "-m", "x"]);
    let upstream = world.upstream("a");
    let shallow = world.dir.path().join("shallow");
    let clone = ["clone", "-q", "--depth=1", upstream.url().fetch_url(), shallow.to_str().unwrap()].map(str::to_owned);
    git_in(world.dir.path(), clone);
    for (path, word) in [
        (&empty, "REPOSITORY_EMPTY"),
        (&plain, "UPSTREAM_NOT_FOUND"),
        (&world.dir.path().join("none"), "UPSTREAM_NOT_FOUND"),
        (&sha256, "OBJECT_FORMAT_UNSUPPORTED"),
        (&shallow, "REPOSITORY_SHALLOW"),
    ] {
        let request = Request::new(path.to_str().unwrap().parse().unwrap(), "head".parse().unwrap());
        let reason = world.resolve(&request).await.unwrap_err();
        assert_eq!(reason.code.word(), word, "{}", reason.message);
        assert!(reason.message.contains(path.to_str().unwrap()), "{}", reason.message);
    }
    for (url, word) in
        [("https://example.org/a", "REPOSITORY_NOT_ALLOWED"), ("ssh://git@127.0.0.1/a", "REPOSITORY_NOT_ALLOWED")]
    {
        let request = Request::new(url.parse().unwrap(), "head".parse().unwrap());
        assert_eq!(world.commit(&request).await, Err(word));
    }
    assert!(world.repositories.list().is_empty());
    assert!(!world.folder().exists() || std::fs::read_dir(world.folder()).unwrap().next().is_none());
}

#[tokio::test]
async fn only_declared_repositories_are_served_where_it_is_said_so() {
    let world = World::with(|config, _| config.add = config::Add::Declared).await;
    let upstream = world.upstream("a");
    assert_eq!(world.commit(&upstream.request("head")).await, Err("REPOSITORY_NOT_DECLARED"));
    assert!(world.repositories.add(&upstream.url(), false, "").await.is_err());
    assert_eq!(world.count("ls-remote"), 0);
}

#[tokio::test]
async fn a_foreign_owner_is_no_obstacle() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    assert!(nix::unistd::geteuid().is_root(), "giving files away needs root");
    git_in(&upstream.path, ["worktree", "list"]);
    let status = std::process::Command::new("chown").args(["-R", "12345"]).arg(&upstream.path).status().unwrap();
    assert!(status.success());
    world.resolve(&upstream.request("head")).await.unwrap();
    until("the end of the visit", || std::fs::read_dir(world.folder()).unwrap().count() == 1).await;
}

#[tokio::test]
async fn many_callers_share_few_visits() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let main = upstream.rev("main");
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (repositories, request) = (world.repositories.clone(), upstream.request("branch:main"));
        let patience = if n == 0 { std::time::Duration::from_millis(1) } else { super::world::PATIENCE };
        callers.spawn(async move { (n, repositories.resolve(&request, patience).await) });
    }
    while let Some(done) = callers.join_next().await {
        let (n, resolved) = done.unwrap();
        if n == 0 {
            assert_eq!(resolved.unwrap_err().code.word(), "UPSTREAM_TIMEOUT", "the impatient one");
        } else {
            assert_eq!(resolved.unwrap().commit, main);
        }
    }
    assert!(world.count("ls-remote") <= 3 && world.count("clone") == 1 && world.count("fetch") == 0);
}

#[tokio::test]
async fn what_is_cached_is_known_at_once() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let request = upstream.request("branch:main");
    assert!(matches!(world.repositories.resolve_cached(&request), Cached::None));
    let commit = world.commit(&request).await.unwrap();
    let asked = world.count("ls-remote");
    for request in [request, upstream.request(&format!("sha:{commit}")), upstream.request("head")] {
        let Cached::Commit(_, found) = world.repositories.resolve_cached(&request) else { panic!("{request:?}") };
        assert_eq!(found, commit);
    }
    assert!(matches!(world.repositories.resolve_cached(&upstream.request("pr:1")), Cached::Mirror));
    assert_eq!(world.count("ls-remote"), asked);
}

#[tokio::test]
async fn a_large_fill_begins_with_what_somebody_waits_for() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let wanted = upstream.loose_commit("wanted");
    upstream.git(["branch", "wanted", &wanted.to_string()]);
    for n in 0..120 {
        let commit = upstream.loose_commit(&format!("other {n}"));
        upstream.git(["branch", &format!("other/{n}"), &commit.to_string()]);
    }
    let hold = world.dir.path().join("hold");
    std::fs::write(&hold, "").unwrap();
    let first = world.resolve(&upstream.request("branch:wanted")).await.unwrap();
    assert_eq!((first.commit, first.origin), (wanted, Origin::Upstream));
    assert!(Span::minutes(1) > crate::node::now().since(first.as_of));
    assert_eq!(git_in(first.pin.path(), ["for-each-ref", "--format=%(refname)"]), "refs/heads/wanted");
    git_in(first.pin.path(), ["fsck", "--strict"]);
    let view = world.repositories.get(&upstream.url()).unwrap();
    assert_eq!((view.filled, view.state), (false, RepositoryState::Filling));
    // Who wants another ref waits for the rest, and is not told that it does not exist.
    let request = upstream.request("branch:other/7");
    let other = world.resolve(&request);
    tokio::pin!(other);
    let still = tokio::time::timeout(std::time::Duration::from_millis(300), &mut other).await;
    assert!(still.is_err(), "the rest is held back: {still:?}");
    std::fs::remove_file(&hold).unwrap();
    assert_eq!(other.await.unwrap().commit, upstream.rev("other/7"));
    until("the rest", || world.repositories.get(&upstream.url()).unwrap().filled).await;
    assert_eq!(world.repositories.get(&upstream.url()).unwrap().refs, 122);
    git_in(first.pin.path(), ["fsck", "--strict"]);
}
