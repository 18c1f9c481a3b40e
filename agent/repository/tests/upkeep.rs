//! Stores stay in order, and no snapshot and no fetch notices.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use stoker_core::identity::CommitId;
use stoker_core::source::Request;

use super::world::{FLOOR, Upstream, World, git_in, until};
use crate::config;

/// The least that may be configured: stores are looked at ten times a second.
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

async fn world(change: impl FnOnce(&mut config::Upkeep)) -> World {
    World::with(|config, _| {
        config.upkeep.every = SECOND;
        change(&mut config.upkeep);
    })
    .await
}

fn files(dir: &Path, extension: &str) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|found| found == extension)).count()
}

fn has(repository: &Path, object: impl ToString) -> bool {
    let object = object.to_string();
    let mut git = std::process::Command::new("git");
    git.arg("-C").arg(repository).args(["cat-file", "-e", &object]).stderr(std::process::Stdio::null());
    git.status().unwrap().success()
}

fn upkept(world: &World, upstream: &Upstream) -> Option<crate::repository::LastUpkeep> {
    world.repositories.get(&upstream.url()).unwrap().last_upkeep
}

async fn until_full(world: &World, upstream: &Upstream) {
    until("a full repack", || upkept(world, upstream).is_some_and(|last| last.what.contains("full"))).await;
}

#[tokio::test]
async fn many_small_fetches_leave_few_packs() {
    let world = world(|_| {}).await;
    let upstream = world.upstream("a");
    world.commit(&upstream.request("head")).await.unwrap();
    for n in 0..14 {
        let new = upstream.commit(&format!("commit {n}"));
        assert_eq!(world.commit(&upstream.request("head")).await, Ok(new));
    }
    assert_eq!(world.repositories.get(&upstream.url()).unwrap().packs, 15, "one a fetch");
    let old = world.resolve(&upstream.request("head")).await.unwrap();
    world.keep_up();
    until("few packs", || world.repositories.get(&upstream.url()).unwrap().packs <= 5).await;
    until("the record", || upkept(&world, &upstream).is_some()).await;
    let new = world.resolve(&upstream.request("head")).await.unwrap();
    assert!(new.pin.name() != old.pin.name() && new.commit == old.commit);
    for pin in [&old.pin, &new.pin] {
        git_in(pin.path(), ["fsck", "--strict"]);
    }
    let objects = new.pin.path().join("objects");
    assert!(objects.join("pack/multi-pack-index").is_file());
    assert_eq!(files(&objects.join("pack"), "bitmap"), 1);
    assert!(objects.join("info/commit-graphs/commit-graph-chain").is_file());
    git_in(new.pin.path(), ["commit-graph", "verify"]);
    git_in(new.pin.path(), ["multi-pack-index", "verify"]);
    let last = upkept(&world, &upstream).unwrap();
    assert!(last.packs.0 == 15 && last.packs.1 <= 5 && last.what.contains("geometric"), "{last:?}");
    let repacks = world.count("repack");
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(world.count("repack"), repacks, "what needs nothing is left alone");
    let snapshot = world.repositories.get(&upstream.url()).unwrap().snapshot;
    assert_eq!(snapshot, new.pin.name(), "and is not published again");
}

#[tokio::test]
async fn what_was_force_pushed_goes_from_the_store_and_stays_where_it_is_pinned() {
    let world = world(|upkeep| (upkeep.full_every, upkeep.grace) = (SECOND, Duration::ZERO)).await;
    let upstream = world.upstream("a");
    let before = world.resolve(&upstream.request("head")).await.unwrap();
    upstream.git(["reset", "-q", "--hard", "HEAD~1"]);
    let after = upstream.commit("instead");
    assert_eq!(world.commit(&upstream.request("head")).await, Ok(after));
    let store = world.store(&upstream.url());
    assert!(has(&store, before.commit));
    world.keep_up();
    until("the end of the objects", || !has(&store, before.commit)).await;
    until("a new snapshot", || {
        let view = world.repositories.get(&upstream.url()).unwrap();
        view.packs == 1 && view.last_upkeep.is_some()
    })
    .await;
    git_in(before.pin.path(), ["fsck", "--strict"]);
    assert_eq!(before.pin.reference("refs/heads/main").unwrap(), Some(before.commit));
    let now = world.resolve(&upstream.request("head")).await.unwrap();
    git_in(now.pin.path(), ["fsck", "--strict"]);
    assert!(now.commit == after && !has(now.pin.path(), before.commit));
}

/// The commits that the store keeps by a ref of its own.
fn kept(store: &Path) -> Vec<String> {
    let all = git_in(store, ["for-each-ref", "--format=%(refname:lstrip=-1)", "refs/pins"]);
    all.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_commit_that_was_asked_for_by_name_stays_until_nobody_needs_it() {
    let world = World::with(|config, _| {
        (config.upkeep.every, config.upkeep.full_every, config.upkeep.grace) = (SECOND, SECOND, Duration::ZERO);
        config.min_age = Duration::ZERO;
    })
    .await;
    let upstream = world.upstream("a");
    let off = upstream.loose_commit("of another fork");
    let request = Request { allow_other_fork: true, ..upstream.request(&format!("sha:{off}")) };
    let before = world.resolve(&request).await.unwrap();
    let store = world.store(&upstream.url());
    let need =
        |commits: &[CommitId]| drop(world.needed.send_replace(Some(Arc::new(commits.iter().copied().collect()))));
    need(&[off]);
    world.keep_up();
    until_full(&world, &upstream).await;
    assert_eq!(kept(&store), [off.to_string()]);
    assert!(has(&store, off));

    need(&[]);
    until("the end of the ref", || kept(&store).is_empty()).await;
    upstream.commit("more");
    world.resolve(&upstream.request("head")).await.unwrap();
    until("the end of the objects", || !has(&store, off)).await;
    let newest = || before.pin.path().with_file_name(world.repositories.get(&upstream.url()).unwrap().snapshot);
    until("a snapshot without it", || !has(&newest(), off)).await;
    // Who holds a snapshot has it still; who asks again gets it again.
    git_in(before.pin.path(), ["fsck", "--strict"]);
    assert!(has(before.pin.path(), off));
    need(&[off]);
    assert_eq!(world.commit(&request).await, Ok(off));
    assert_eq!(kept(&store), [off.to_string()]);
}

#[tokio::test]
async fn a_commit_that_was_asked_for_lately_is_not_forgotten() {
    let world = world(|upkeep| (upkeep.full_every, upkeep.grace) = (SECOND, Duration::ZERO)).await;
    let upstream = world.upstream("a");
    let off = upstream.loose_commit("of another fork");
    let request = Request { allow_other_fork: true, ..upstream.request(&format!("sha:{off}")) };
    world.resolve(&request).await.unwrap();
    world.needed.send_replace(Some(Arc::default()));
    world.keep_up();
    until_full(&world, &upstream).await;
    let store = world.store(&upstream.url());
    assert!(has(&store, off));
    assert_eq!(kept(&store), [off.to_string()]);
}

#[tokio::test]
async fn the_grace_begins_when_an_object_is_found_unreachable() {
    let world = world(|upkeep| (upkeep.full_every, upkeep.grace) = (SECOND, HOUR)).await;
    let upstream = world.upstream("a");
    let before = world.commit(&upstream.request("head")).await.unwrap();
    upstream.git(["reset", "-q", "--hard", "HEAD~1"]);
    world.commit(&upstream.request("head")).await.unwrap();
    let store = world.store(&upstream.url());
    // Packs that came long ago: what is in them was of use until now all the same.
    let long_ago = std::fs::FileTimes::new().set_modified(SystemTime::now() - 10_000 * HOUR);
    for entry in std::fs::read_dir(store.join("objects/pack")).unwrap() {
        std::fs::File::open(entry.unwrap().path()).unwrap().set_times(long_ago).unwrap();
    }
    world.keep_up();
    until_full(&world, &upstream).await;
    assert!(has(&store, before));
    assert_eq!(files(&store.join("objects/pack"), "mtimes"), 1, "it lies apart");
}

#[tokio::test]
async fn upkeep_gives_way_to_a_fetch_and_comes_back() {
    let world = world(|upkeep| upkeep.full_every = SECOND).await;
    let upstream = world.upstream("a");
    world.commit(&upstream.request("head")).await.unwrap();
    let slow = world.dir.path().join("slow");
    std::fs::write(&slow, "").unwrap();
    world.keep_up();
    until("a repack under way", || world.count("repack") > 0).await;
    let new = upstream.commit("new");
    let begun = Instant::now();
    assert_eq!(world.commit(&upstream.request("head")).await, Ok(new));
    let took = begun.elapsed();
    println!("a fetch that came during a repack of a minute took {took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(world.repositories.upkeep_gave_way() > 0);
    std::fs::remove_file(&slow).unwrap();
    // One that is under way still sleeps: another fetch ends it.
    world.commit(&upstream.request("head")).await.unwrap();
    let another = upstream.commit("another");
    assert_eq!(world.commit(&upstream.request("head")).await, Ok(another));
    until_full(&world, &upstream).await;
}

#[tokio::test]
async fn without_room_nothing_is_repacked_and_it_is_said() {
    let world = world(|upkeep| upkeep.full_every = SECOND).await;
    let upstream = world.upstream("a");
    world.commit(&upstream.request("head")).await.unwrap();
    let free = world.keep_up();
    free.store(FLOOR + 100, Ordering::SeqCst);
    let skipped = || world.repositories.get(&upstream.url()).unwrap().upkeep_skipped;
    until("the lack", || skipped().is_some()).await;
    let reason = skipped().unwrap();
    assert!(reason.code.word() == "DISK_FLOOR" && reason.available == 100 && reason.wanted > 100, "{reason:?}");
    assert_eq!(world.count("repack"), 0);
    free.store(1 << 30, Ordering::SeqCst);
    until_full(&world, &upstream).await;
    until("the lack is over", || skipped().is_none()).await;
}

#[tokio::test]
async fn refs_that_were_never_published_take_nothing_along() {
    let world = world(|upkeep| (upkeep.full_every, upkeep.grace) = (SECOND, Duration::ZERO)).await;
    let upstream = world.upstream("a");
    let commit = world.commit(&upstream.request("head")).await.unwrap();
    let store = world.store(&upstream.url());
    // A fetch that moved a branch and was killed before its snapshot was published.
    let name = format!("refs/namespaces/{}/refs/heads/main", upstream.url().folder());
    git_in(&store, ["update-ref", &name, &format!("{name}~1")]);
    world.keep_up();
    until_full(&world, &upstream).await;
    until("a new snapshot", || world.repositories.get(&upstream.url()).unwrap().snapshot != "1").await;
    let now = world.resolve(&upstream.request("head")).await.unwrap();
    assert_eq!(now.commit, commit);
    git_in(now.pin.path(), ["fsck", "--strict"]);
    assert!(has(&store, commit));
}

#[tokio::test]
async fn leftovers_go_and_a_pack_under_protection_stays() {
    let world = world(|_| {}).await;
    let upstream = world.upstream("a");
    world.commit(&upstream.request("head")).await.unwrap();
    let pack = world.store(&upstream.url()).join("objects/pack");
    let stem = std::fs::read_dir(&pack)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "pack"))
        .unwrap();
    let kept = stem.with_extension("keep");
    std::fs::write(&kept, "kept by an operator").unwrap();
    for name in ["tmp_pack_abc", ".tmp-1-pack-x.pack", "pack-0123456789012345678901234567890123456789.pack"] {
        std::fs::write(pack.join(name), "half").unwrap();
    }
    world.keep_up();
    until("the end of leftovers", || {
        std::fs::read_dir(&pack).unwrap().flatten().all(|entry| {
            let name = entry.file_name().into_string().unwrap();
            !name.contains("tmp") && !name.contains("0123456789")
        })
    })
    .await;
    until("upkeep", || upkept(&world, &upstream).is_some()).await;
    assert!(kept.is_file() && stem.is_file());
}
