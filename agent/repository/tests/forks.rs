//! Forks of one repository, of one trust class, share a store, and nothing else.

use std::path::Path;

use stoker_core::source::RepositoryUrl;

use super::world::{Upstream, World, git_in, mirror, until};
use crate::config;
use crate::repository::RepositoryState;
use crate::repository::disk::used_bytes;

/// A repository with some history that does not compress.
fn grown(world: &World, name: &str) -> Upstream {
    let upstream = world.upstream(name);
    let mut state = 1_u64;
    for n in 0..20 {
        let mut noise = Vec::new();
        while noise.len() < 1 << 20 {
            // Of xorshift generators this is the one of 64 bits; see Marsaglia, "Xorshift RNGs".
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            noise.extend_from_slice(&state.to_le_bytes());
        }
        std::fs::write(upstream.path.join(format!("noise-{n}")), noise).unwrap();
        upstream.commit(&format!("commit {n}"));
        upstream.git(["tag", &format!("v{n}")]);
    }
    upstream
}

/// A fork of `of` with a branch of its own.
fn fork(world: &World, of: &Upstream, name: &str) -> Upstream {
    let path = of.path.with_file_name(name);
    git_in(world.dir.path(), [Path::new("clone"), Path::new("-q"), &of.path, &path].map(Path::as_os_str));
    let fork = Upstream { path };
    fork.git(["checkout", "-q", "-b", &format!("work-{name}")]);
    fork.commit(&format!("of {name}"));
    fork
}

fn refs(dir: &Path) -> String {
    let all = git_in(dir, ["for-each-ref", "--format=%(objectname) %(refname)"]);
    all.lines().filter(|line| !line.contains(" refs/remotes/")).collect::<Vec<_>>().join("\n")
}

fn store_of(world: &World, url: &RepositoryUrl) -> String {
    world.repositories.get(url).unwrap().store
}

async fn all_ready(world: &World) {
    until("all mirrors", || world.repositories.list().iter().all(|view| view.state == RepositoryState::Ready)).await;
}

#[tokio::test]
async fn twenty_forks_take_the_disk_of_one() {
    let world = World::new().await;
    let root = grown(&world, "root");
    world.commit(&root.request("head")).await.unwrap();
    let pool = world.folder().parent().unwrap().to_owned();
    let trees = [pool.join("repositories"), pool.join("stores")];
    let one = used_bytes(&trees);
    let forks: Vec<Upstream> = (0..20).map(|n| fork(&world, &root, &format!("fork{n}"))).collect();
    // All at once, as when a farm starts.
    let filled = forks.iter().map(|fork| {
        let request = fork.request(&format!("branch:work-{}", fork.path.file_name().unwrap().to_string_lossy()));
        let world = &world;
        async move { world.resolve(&request).await.unwrap() }
    });
    let resolved = futures_util::future::join_all(filled).await;
    for (fork, resolved) in forks.iter().zip(&resolved) {
        assert_eq!(resolved.commit, fork.rev("HEAD"));
        assert_eq!(refs(resolved.pin.path()), refs(&fork.path), "a fork's refs are its own");
        git_in(resolved.pin.path(), ["fsck", "--connectivity-only", "--no-dangling"]);
        assert_eq!(store_of(&world, &fork.url()), store_of(&world, &root.url()));
    }
    assert_eq!(std::fs::read_dir(&trees[1]).unwrap().count(), 1, "one store");
    let all = used_bytes(&trees);
    println!("disk of 20 forks and their root: {all} bytes, of the root alone: {one}");
    assert!(all * 10 <= one * 11, "{all} of {one}");
}

#[tokio::test]
async fn forks_that_are_filled_at_once_find_each_other() {
    let world = World::new().await;
    let root = grown(&world, "root");
    let forks: Vec<Upstream> = (0..3).map(|n| fork(&world, &root, &format!("fork{n}"))).collect();
    let all = forks.iter().chain([&root]);
    let requests: Vec<_> = all.clone().map(|upstream| upstream.request("head")).collect();
    for resolved in futures_util::future::join_all(requests.iter().map(|request| world.resolve(request))).await {
        resolved.unwrap();
    }
    let stores: std::collections::BTreeSet<String> = all.map(|upstream| store_of(&world, &upstream.url())).collect();
    assert_eq!(stores.len(), 1, "{stores:?}");
}

#[tokio::test]
async fn strangers_and_other_classes_share_nothing() {
    let dir = tempfile::tempdir().unwrap();
    drop(dir);
    let world = World::with(|config, dir| {
        let root = Upstream::new(dir.join("upstreams/a/linux"));
        for n in 0..5 {
            root.commit(&format!("c{n}"));
        }
        let private = dir.join("upstreams/a/private");
        git_in(dir, [Path::new("clone"), Path::new("-q"), &root.path, &private].map(Path::as_os_str));
        let other = Upstream::new(dir.join("upstreams/b/linux"));
        other.commit("of another world");
        let private = Upstream { path: private };
        config.mirrors = vec![mirror(&root, "public"), mirror(&private, "private"), mirror(&other, "public")];
    })
    .await;
    world.repositories.start_prefill();
    all_ready(&world).await;
    let stores: std::collections::BTreeSet<String> =
        world.repositories.list().into_iter().map(|view| view.store).collect();
    assert_eq!(stores.len(), 3, "{stores:?}");
    let at = |name: &str| Upstream { path: world.dir.path().join("upstreams").join(name) };
    for name in ["a/linux", "b/linux"] {
        let head = world.resolve(&at(name).request("head")).await.unwrap();
        assert_eq!(head.commit, at(name).rev("HEAD"));
    }
}

#[tokio::test]
async fn a_declared_fork_may_come_first_and_outlives_its_root() {
    let world = World::with(|config, dir| {
        let root = Upstream::new(dir.join("upstreams/root"));
        let fork = Upstream::new(dir.join("upstreams/fork"));
        config.mirrors = vec![config::Mirror { fork_of: Some(root.url()), ..mirror(&fork, "default") }];
    })
    .await;
    let (root, fork) = (world.dir.path().join("upstreams/root"), world.dir.path().join("upstreams/fork"));
    let (root, fork) = (Upstream { path: root }, Upstream { path: fork });
    world.repositories.start_prefill();
    all_ready(&world).await;
    world.commit(&root.request("head")).await.unwrap();
    assert_eq!(store_of(&world, &root.url()), store_of(&world, &fork.url()));
    let store = world.store(&fork.url());
    assert!(refs(&store).contains(root.url().folder().as_str()));
    world.repositories.remove(&root.url()).await.unwrap();
    assert!(!refs(&store).contains(root.url().folder().as_str()), "its refs went");
    let new = fork.commit("after");
    assert_eq!(world.commit(&fork.request("head")).await, Ok(new));
    world.repositories.remove(&fork.url()).await.unwrap();
    assert!(!store.exists(), "with the last one the store goes");
}

#[tokio::test]
async fn a_store_that_was_lost_comes_back_for_all_of_its_repositories() {
    let world = World::new().await;
    let root = grown(&world, "root");
    world.commit(&root.request("head")).await.unwrap();
    let fork = fork(&world, &root, "fork");
    world.commit(&fork.request("head")).await.unwrap();
    let store = world.store(&root.url());
    #[expect(clippy::disallowed_methods, reason = "nothing but this test writes there")]
    std::fs::remove_dir_all(&store).unwrap();
    fork.git(["update-ref", "refs/pull/7/head", "HEAD"]);
    let pull = world.resolve(&fork.request("pr:7")).await.unwrap();
    assert!(refs(pull.pin.path()).contains("refs/heads/work-fork"), "{}", refs(pull.pin.path()));
    let new = root.commit("after");
    let head = world.resolve(&root.request("head")).await.unwrap();
    assert_eq!(head.commit, new);
    for pin in [&pull.pin, &head.pin] {
        git_in(pin.path(), ["fsck", "--connectivity-only", "--no-dangling"]);
    }
    assert_eq!(refs(head.pin.path()), refs(&root.path));
}

#[tokio::test]
async fn another_trust_class_gets_a_store_and_snapshots_of_its_own() {
    let world = World::with(|config, dir| {
        let root = Upstream::new(dir.join("upstreams/root"));
        config.mirrors = vec![mirror(&root, "public")];
    })
    .await;
    let root = Upstream { path: world.dir.path().join("upstreams/root") };
    world.repositories.start_prefill();
    all_ready(&world).await;
    let fork = fork(&world, &root, "fork");
    let mut config = world.config.clone();
    config.mirrors.push(mirror(&fork, "public"));
    world.repositories.reconfigure(&config).await.unwrap();
    all_ready(&world).await;
    assert_eq!(store_of(&world, &fork.url()), store_of(&world, &root.url()));
    let before = world.repositories.get(&fork.url()).unwrap().snapshot;
    config.mirrors[1].trust = "private".into();
    world.repositories.reconfigure(&config).await.unwrap();
    until("the fork alone", || {
        let view = world.repositories.get(&fork.url()).unwrap();
        view.state == RepositoryState::Ready && view.trust == "private"
    })
    .await;
    assert_ne!(store_of(&world, &fork.url()), store_of(&world, &root.url()));
    let view = world.repositories.get(&fork.url()).unwrap();
    assert!(view.snapshot.parse::<u64>().unwrap() > before.parse::<u64>().unwrap(), "{view:?}");
    let store = world.store(&root.url());
    assert!(!refs(&store).contains(fork.url().folder().as_str()));
}
