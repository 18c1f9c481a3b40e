//! What outlives failures, restarts and removal.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stoker_core::quantity::Span;
use stoker_core::source::{Origin, Request};

use super::world::{PATIENCE, Upstream, World, git_in, until};
use crate::config;
use crate::repository::RepositoryState;

#[tokio::test]
async fn a_snapshot_survives_whatever_happens_in_the_store() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    upstream.git(["checkout", "-q", "-b", "doomed"]);
    let doomed = upstream.commit("doomed");
    let old = world.resolve(&upstream.request("branch:doomed")).await.unwrap();
    upstream.git(["checkout", "-q", "main"]);
    upstream.git(["branch", "-D", "doomed"]);
    assert!(world.commit(&upstream.request("head")).await.is_ok());
    let store = world.store(&upstream.url());
    git_in(&store, ["-c", "gc.pruneExpire=now", "gc", "-q", "--prune=now"]);
    git_in(&store, ["repack", "-adq"]);
    assert_eq!(git_in(old.pin.path(), ["rev-parse", "doomed"]), doomed.to_string());
    git_in(old.pin.path(), ["fsck", "--connectivity-only"]);
    assert_eq!(git_in(old.pin.path(), ["show", "doomed:file.txt"]), "doomed");
}

#[tokio::test]
async fn superseded_snapshots_go_when_nothing_pins_them() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let first = world.resolve(&upstream.request("head")).await.unwrap();
    upstream.commit("third");
    let second = world.resolve(&upstream.request("head")).await.unwrap();
    let path = second.pin.path().to_owned();
    drop(second);
    upstream.commit("fourth");
    world.resolve(&upstream.request("head")).await.unwrap();
    until("the end of the second", || !path.exists()).await;
    assert!(first.pin.path().exists(), "the first is pinned");
    assert_eq!(world.repositories.pin_named(&upstream.url(), first.pin.name()).unwrap().path(), first.pin.path());
    let path = first.pin.path().to_owned();
    drop(first);
    until("the end of the first", || !path.exists()).await;
    until("the count", || world.repositories.list()[0].snapshots == 1).await;
}

#[tokio::test]
async fn an_upstream_that_is_away_is_answered_for_within_bounds() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let commit = world.commit(&upstream.request("branch:main")).await.unwrap();
    // Git reports this as a failure that says nothing of whether the repository exists.
    std::fs::write(upstream.path.join(".git/config"), "[core\n").unwrap();
    let request = upstream.request("branch:main");
    assert_eq!(world.commit(&request).await, Err("UPSTREAM_UNREACHABLE"));
    let stale = Request { allow_stale: true, ..request.clone() };
    let resolved = world.resolve(&stale).await.unwrap();
    assert_eq!((resolved.commit, resolved.origin), (commit, Origin::Stale));
    let aged = Request { max_age: Some(Span::hours(1)), ..request };
    assert_eq!(world.resolve(&aged).await.unwrap().origin, Origin::Cache);
    let resolved = world.resolve(&upstream.request(&format!("sha:{commit}"))).await.unwrap();
    assert_eq!(resolved.origin, Origin::Cache);
    let view = world.repositories.get(&upstream.url()).unwrap();
    // The second request came within the pause after the first one's failure: upstream was not asked again.
    assert_eq!((view.state, view.failures), (RepositoryState::Stale, 1));
    assert_eq!(view.reasons[0].code.word(), "UPSTREAM_UNREACHABLE");
}

/// What a killed git and a killed agent leave.
fn plant(repositories: &Path) {
    let first = |dir: &Path| std::fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    let folder = first(repositories);
    let store = first(&repositories.with_file_name("stores"));
    let in_store = [
        "store.git/packed-refs.lock",
        "store.git/refs/namespaces/x.lock",
        "store.git/objects/pack/tmp_pack_abc",
        "store.git/objects/pack/pack-abc.keep",
        "store.git/objects/tmp_objdir-incoming-x/pack/y",
        ".tmp-fill/objects/pack/tmp_pack_z",
        "../nobody-knows/store.git/HEAD",
    ];
    let in_folder =
        ["snapshots/.tmp-99/HEAD", "snapshots/77/HEAD", ".tmp-meta", "../.tmp-safe-x", "../nobody-knows/meta"];
    let in_store = in_store.map(|file| store.join(file));
    for path in in_store.into_iter().chain(in_folder.map(|file| folder.join(file))) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
}

fn leftovers(dir: &Path) -> Vec<String> {
    let output = std::process::Command::new("find").arg(dir).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let junk = ["tmp_", ".tmp-", ".lock", ".keep", "snapshots/77", "nobody-knows"];
    text.lines().filter(|line| junk.iter().any(|part| line.contains(part))).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_restart_knows_what_is_there_and_removes_junk() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let first = world.resolve(&upstream.request("head")).await.unwrap();
    upstream.commit("third");
    let before = world.resolve(&upstream.request("head")).await.unwrap();
    world.repositories.set_pinned(&upstream.url(), true).await.unwrap();
    let url = upstream.url();
    let away = upstream.path.with_extension("away");
    std::fs::rename(&upstream.path, &away).unwrap();
    let world = world.restart(plant).await;
    assert_eq!(leftovers(&world.folder()), Vec::<String>::new());
    assert_eq!(leftovers(&world.folder().with_file_name("stores")), Vec::<String>::new());
    assert!(world.repositories.pin_named(&url, first.pin.name()).is_some(), "a lease may still need it");
    let asked = world.count("ls-remote");
    let request = Request::new(url.clone(), format!("sha:{}", before.commit).parse().unwrap());
    let resolved = world.resolve(&request).await.unwrap();
    assert_eq!((resolved.commit, resolved.pin.path()), (before.commit, before.pin.path()));
    assert_eq!(world.count("ls-remote"), asked);
    let view = world.repositories.get(&url).unwrap();
    assert!(view.pinned && !view.declared && view.refs == 1 && view.head == "main", "{view:?}");
    std::fs::rename(away, &upstream.path).unwrap();
    let new = upstream.commit("after");
    assert_eq!(world.commit(&upstream.request("head")).await, Ok(new));
    let pin = world.resolve(&upstream.request("head")).await.unwrap().pin;
    git_in(pin.path(), ["fsck", "--connectivity-only"]);
}

#[tokio::test]
async fn a_damaged_store_is_cloned_anew() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let before = world.resolve(&upstream.request("head")).await.unwrap();
    let store = world.store(&upstream.url());
    // A snapshot shares the inode, so the pack is exchanged, not written to.
    for entry in std::fs::read_dir(store.join("objects/pack")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "idx" || extension == "pack") {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, "damage").unwrap();
        }
    }
    let new = upstream.commit("after");
    assert_eq!(world.commit(&upstream.request("head")).await, Ok(new));
    git_in(before.pin.path(), ["fsck", "--connectivity-only"]);
    assert_eq!(world.repositories.list()[0].state, RepositoryState::Ready);
}

#[tokio::test]
async fn a_removed_repository_keeps_only_what_is_pinned() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let resolved = world.resolve(&upstream.request("head")).await.unwrap();
    let folder = world.folder().join(upstream.url().folder().as_str());
    world.repositories.remove(&upstream.url()).await.unwrap();
    assert!(world.repositories.list().is_empty() && world.repositories.get(&upstream.url()).is_none());
    assert!(!folder.join("store.git").exists());
    git_in(resolved.pin.path(), ["fsck", "--connectivity-only"]);
    let again = world.resolve(&upstream.request("head")).await.unwrap();
    assert_ne!(again.pin.name(), resolved.pin.name());
    let path = resolved.pin.path().to_owned();
    drop(resolved);
    until("the end of the old snapshot", || !path.exists()).await;
    drop(again);
    world.repositories.remove(&upstream.url()).await.unwrap();
    until("the end of the folder", || !folder.exists()).await;
}

#[tokio::test]
async fn a_pool_that_is_away_is_not_written_to() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    world.mounted.store(false, Ordering::SeqCst);
    assert!(world.commit(&upstream.request("head")).await.is_err());
    assert!(!world.folder().exists());
    world.mounted.store(true, Ordering::SeqCst);
    world.commit(&upstream.request("head")).await.unwrap();
}

#[tokio::test]
async fn declared_mirrors_fill_by_themselves_and_stay_fresh() {
    let mut upstreams = Vec::new();
    let world = World::with(|config, dir| {
        for name in ["one", "two", "three"] {
            let upstream = Upstream::new(dir.join("declared").join(name));
            let mirror = config::Mirror {
                url: upstream.url(),
                pin: true,
                trust: "public".into(),
                fork_of: None,
                submodules: false,
                lfs: false,
            };
            config.mirrors.push(mirror);
            upstreams.push(upstream);
        }
        config.refresh = Duration::from_millis(300);
        config.add = config::Add::Declared;
    })
    .await;
    let gone = "file:///does/not/exist".parse().unwrap();
    assert!(world.repositories.refresh(&gone, false).is_err());
    assert!(world.repositories.list().iter().all(|view| view.state == RepositoryState::Empty));
    assert!(world.repositories.list()[0].reasons.iter().any(|reason| reason.code.word() == "REPOSITORY_EMPTY"));
    let mut ticks = world.repositories.watch();
    world.repositories.start_prefill();
    ticks.changed().await.unwrap();
    for upstream in &upstreams {
        let handle = world.repositories.refresh(&upstream.url(), true).unwrap();
        let view = handle.wait(PATIENCE).await.unwrap();
        assert!(view.declared && view.pinned && view.trust == "public" && !view.snapshot.is_empty(), "{view:?}");
    }
    let upstream = upstreams.remove(0);
    let (new, url) = (upstream.commit("new"), upstream.url());
    let cached = || match world.repositories.resolve_cached(&upstream.request("head")) {
        crate::repository::Cached::Commit(_, commit) => Some(commit),
        _ => None,
    };
    until("the refresh", || cached() == Some(new)).await;
    assert!(world.repositories.get(&url).unwrap().reasons.is_empty());
}

#[tokio::test]
async fn shutting_down_ends_a_fetch_and_leaves_no_child() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    let (repositories, request) = (world.repositories.clone(), upstream.request("head"));
    let caller = tokio::spawn(async move { repositories.resolve(&request, PATIENCE).await });
    until("the start of a fetch", || world.repositories.list().first().is_some_and(|view| view.progress.is_some()))
        .await;
    tokio::time::timeout(Duration::from_secs(30), world.repositories.shutdown()).await.expect("it ends");
    let ended = caller.await.unwrap();
    assert!(ended.is_ok() || ended.is_err_and(|reason| reason.code.word().starts_with("UPSTREAM")));
    assert!(leftovers(&world.folder()).is_empty() || !world.folder().exists());
}

#[tokio::test]
async fn commits_are_read_from_snapshots() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    std::fs::create_dir(upstream.path.join("src")).unwrap();
    std::fs::write(upstream.path.join("src/main.RS"), "fn main() {}").unwrap();
    std::fs::write(upstream.path.join("src/.hidden"), "x").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", upstream.path.join("link.rs")).unwrap();
    upstream.commit("files");
    let resolved = world.resolve(&upstream.request("head")).await.unwrap();
    let (reader, pin, commit) = (world.repositories.reader(), &resolved.pin, resolved.commit);
    assert_eq!(reader.blob(pin, commit, "src/main.RS", 100).unwrap().as_deref(), Some(&b"fn main() {}"[..]));
    assert!(reader.blob(pin, commit, "src/main.RS", 5).unwrap_err().to_string().contains("at most 5"));
    for none in ["none", "src", "link.rs", "src/none"] {
        assert_eq!(reader.blob(pin, commit, none, 100).unwrap(), None, "{none}");
    }
    let summary = reader.summarise(pin, commit, 100).unwrap();
    assert_eq!((summary.total.files, summary.truncated), (3, false));
    assert_eq!(summary.by_extension.keys().collect::<Vec<_>>(), ["rs", "txt"]);
    assert_eq!(summary.by_extension["rs"].bytes, 12);
    assert!(reader.summarise(pin, commit, 2).unwrap().truncated);
    let tree = upstream.rev("HEAD^{tree}");
    assert!(!reader.exists(pin, tree).unwrap() && reader.exists(pin, commit).unwrap());
}
