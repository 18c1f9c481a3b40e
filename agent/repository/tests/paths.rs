//! Entries of the read-only path, and clones that borrow from them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::world::{Upstream, World, git_in, mirror, until};
use crate::config;

const HOUR: Duration = Duration::from_secs(3600);

async fn world(grace: Duration) -> World {
    World::with(|config, _| {
        config.upkeep.every = Duration::from_secs(1);
        (config.upkeep.full_every, config.upkeep.grace) = (Duration::from_secs(1), Duration::ZERO);
        config.paths = Some(config::Paths { directory: "shared/mirrors".into(), grace, trust: vec!["default".into()] });
    })
    .await
}

fn base(world: &World) -> PathBuf {
    world.dir.path().join("pool/shared/mirrors")
}

fn entry(world: &World, upstream: &Upstream) -> PathBuf {
    base(world).join("localhost").join(upstream.path.strip_prefix("/").unwrap())
}

fn is_repository(path: &Path) -> bool {
    path.join("HEAD").is_file() && path.join("packed-refs").is_file()
}

/// What `git clone --reference` makes of it, as Packit does it: nothing but what it borrows.
fn clone(world: &World, upstream: &Upstream, reference: &Path, to: &str) -> PathBuf {
    let to = world.dir.path().join(to);
    let args: [&Path; 6] = [
        Path::new("clone"),
        Path::new("-q"),
        Path::new("--reference"),
        reference,
        Path::new(upstream.path.as_path()),
        &to,
    ];
    // Over the wire, so that nothing is linked from upstream.
    let url = upstream.url();
    let mut words: Vec<&std::ffi::OsStr> = args.iter().map(|arg| arg.as_os_str()).collect();
    words[4] = std::ffi::OsStr::new(url.fetch_url());
    git_in(world.dir.path(), words);
    to
}

fn own_objects(clone: &Path) -> String {
    git_in(clone, ["count-objects", "-v"])
        .lines()
        .find_map(|line| line.strip_prefix("in-pack: ").map(str::to_owned))
        .unwrap()
}

#[tokio::test]
async fn a_clone_that_borrows_stays_whole_whatever_upstream_and_store_do() {
    let world = world(HOUR).await;
    let upstream = world.upstream("team/project");
    upstream.git(["branch", "gone", "HEAD"]);
    world.commit(&upstream.request("head")).await.unwrap();
    world.keep_up();
    let (entry, short) = (entry(&world, &upstream), base(&world).join("project"));
    until("the entry", || is_repository(&entry) && short.exists()).await;
    assert_eq!(std::fs::canonicalize(&short).unwrap(), std::fs::canonicalize(&entry).unwrap());
    assert!(std::fs::read_link(&short).unwrap().is_relative());
    git_in(&entry, ["fsck", "--strict"]);
    let borrower = clone(&world, &upstream, &short, "borrower");
    assert_eq!(own_objects(&borrower), "0", "all is borrowed");
    let alternates = std::fs::read_to_string(borrower.join(".git/objects/info/alternates")).unwrap();
    assert!(alternates.trim().ends_with("team/project/objects"), "{alternates}");
    let old = upstream.rev("HEAD");
    // A force-push, a deletion, and upkeep that drops what no ref reaches.
    upstream.git(["reset", "-q", "--hard", "HEAD~1"]);
    upstream.git(["branch", "-D", "gone"]);
    let new = upstream.commit("instead");
    assert_eq!(world.commit(&upstream.request("head")).await, Ok(new));
    let store = world.store(&upstream.url());
    let in_store = |object: &str| {
        let mut git = std::process::Command::new("git");
        git.arg("-C").arg(&store).args(["cat-file", "-e", object]).stderr(std::process::Stdio::null());
        git.status().unwrap().success()
    };
    until("the end of the objects in the store", || !in_store(&old.to_string())).await;
    let head = || std::fs::read_to_string(entry.join("packed-refs")).unwrap_or_default();
    until("the new state", || head().contains(&new.to_string())).await;
    git_in(&entry, ["fsck", "--strict"]);
    git_in(&borrower, ["fsck", "--strict"]);
    git_in(&borrower, ["checkout", "-q", "--detach", &old.to_string()]);
    // Nobody else may write there.
    let mut todo = vec![base(&world)];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let mode = meta.permissions().mode() & 0o777;
        if meta.is_dir() {
            assert_eq!(mode, 0o755, "{}", path.display());
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if meta.is_file() {
            assert_eq!(mode, 0o444, "{}", path.display());
        }
    }
    // Without a grace they go, and the entry is whole without them.
    let paths = config::Paths { grace: Duration::ZERO, ..world.config.paths.clone().unwrap() };
    let config = config::Repositories { paths: Some(paths), ..world.config.clone() };
    world.repositories.reconfigure(&config).await.unwrap();
    let in_entry = || {
        let mut git = std::process::Command::new("git");
        git.arg("-C").arg(&entry).args(["cat-file", "-e", &old.to_string()]).stderr(std::process::Stdio::null());
        git.status().unwrap().success()
    };
    until("the end of the objects in the entry", || !in_entry()).await;
    git_in(&entry, ["fsck", "--strict"]);
}

#[tokio::test]
async fn a_name_leads_there_only_where_it_is_the_only_one() {
    let world = world(HOUR).await;
    let [one, two] = ["one/same", "two/same"].map(|name| world.upstream(name));
    world.commit(&one.request("head")).await.unwrap();
    world.keep_up();
    let short = base(&world).join("same");
    until("the name", || short.join("HEAD").is_file()).await;
    world.commit(&two.request("head")).await.unwrap();
    until("the end of the name", || std::fs::symlink_metadata(&short).is_err()).await;
    assert!(is_repository(&entry(&world, &one)));
    until("the other entry", || is_repository(&entry(&world, &two))).await;
    // Removed, it stays for the grace; without one it goes, and the name is free again.
    world.repositories.remove(&two.url()).await.unwrap();
    let paths = config::Paths { grace: Duration::ZERO, ..world.config.paths.clone().unwrap() };
    let config = config::Repositories { paths: Some(paths), ..world.config.clone() };
    world.repositories.reconfigure(&config).await.unwrap();
    until("the name again", || short.join("HEAD").is_file()).await;
    assert!(
        !entry(&world, &two).exists()
            && !base(&world).join("localhost").join(two.path.parent().unwrap().strip_prefix("/").unwrap()).exists()
    );
    assert!(is_repository(&entry(&world, &one)));
}

#[tokio::test]
async fn another_trust_class_is_not_shown() {
    let world = World::with(|config, dir| {
        let secret = Upstream::new(dir.join("upstreams/secret"));
        let open = Upstream::new(dir.join("upstreams/open"));
        config.mirrors = vec![mirror(&secret, "private"), mirror(&open, "default")];
        let paths = config::Paths { directory: "shared/mirrors".into(), grace: HOUR, trust: vec!["default".into()] };
        config.paths = Some(paths);
    })
    .await;
    world.repositories.start_prefill();
    world.keep_up();
    let [secret, open] =
        ["secret", "open"].map(|name| Upstream { path: world.dir.path().join("upstreams").join(name) });
    let ready = || world.repositories.list().iter().all(|view| !view.snapshot.is_empty());
    until("the fill", || ready() && is_repository(&entry(&world, &open))).await;
    assert!(!entry(&world, &secret).exists());
    // A class that is no longer shown goes at once, whatever the grace.
    let mut config = world.config.clone();
    config.mirrors[1].trust = "private".into();
    world.repositories.reconfigure(&config).await.unwrap();
    until("the end of the entry", || !entry(&world, &open).exists()).await;
}

#[tokio::test]
async fn what_a_kill_left_is_mended() {
    let world = world(HOUR).await;
    let upstream = world.upstream("a");
    world.commit(&upstream.request("head")).await.unwrap();
    world.keep_up();
    let path = entry(&world, &upstream);
    until("the entry", || is_repository(&path)).await;
    let world = world
        .restart(|_| {
            let pack = path.join("objects/pack");
            for file in std::fs::read_dir(&pack).unwrap().flatten() {
                // Killed between a pack and its index, and while another one was removed.
                if file.path().extension().is_some_and(|extension| extension == "idx") {
                    std::fs::remove_file(file.path()).unwrap();
                }
            }
            std::fs::write(pack.join("pack-0123456789012345678901234567890123456789.pack"), "half").unwrap();
            std::fs::write(path.join(".tmp-HEAD"), "half").unwrap();
            std::fs::remove_file(path.join("HEAD")).unwrap();
            std::fs::create_dir(
                path.ancestors().find(|above| above.ends_with("pool")).unwrap().join("stoker/paths-gone-x"),
            )
            .unwrap();
        })
        .await;
    world.keep_up();
    until("the entry", || is_repository(&path)).await;
    git_in(&path, ["fsck", "--strict"]);
    until("the end of the half", || {
        !path.join("objects/pack/pack-0123456789012345678901234567890123456789.pack").exists()
    })
    .await;
    until("the end of what was on its way out", || !world.dir.path().join("pool/stoker/paths-gone-x").exists()).await;
}
