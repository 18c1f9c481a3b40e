//! Room is made by what is worth least, and never by what is pinned, in use or young.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::world::{FLOOR, Upstream, World, until};
use crate::config;
use crate::repository::{RepositoryState, View};

/// Bytes of noise in each upstream.
const NOISE: usize = 4 << 20;

/// An upstream whose objects take about [`NOISE`] bytes.
fn noisy(world: &World, name: &str, seed: u64) -> Upstream {
    let upstream = world.upstream(name);
    let mut state = seed | 1;
    let mut noise = Vec::with_capacity(NOISE + 8);
    while noise.len() < NOISE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    std::fs::write(upstream.path.join("noise"), noise).unwrap();
    upstream.commit("noise");
    upstream
}

async fn world(limit: u64, change: impl FnOnce(&mut config::Repositories)) -> World {
    World::with(|config, _| {
        (config.limit, config.min_age) = (Some(limit), Duration::ZERO);
        change(config);
    })
    .await
}

fn view(world: &World, upstream: &Upstream) -> View {
    world.repositories.get(&upstream.url()).unwrap()
}

fn is_evicted(world: &World, upstream: &Upstream) -> bool {
    view(world, upstream).evicted.is_some()
}

#[tokio::test]
async fn the_least_worth_goes_and_comes_back_when_asked_for() {
    let world = world(10 << 20, |_| {}).await;
    let [pinned, used, idle] = [("pinned", 3), ("used", 5), ("idle", 7)].map(|(name, seed)| noisy(&world, name, seed));
    world.commit(&pinned.request("head")).await.unwrap();
    world.repositories.set_pinned(&pinned.url(), true).await.unwrap();
    world.commit(&idle.request("head")).await.unwrap();
    let held = world.resolve(&used.request("head")).await.unwrap();
    world.keep_up();
    until("an eviction", || is_evicted(&world, &idle)).await;
    until("the end of its snapshot", || view(&world, &idle).snapshots == 0).await;
    let gone = view(&world, &idle);
    assert_eq!((gone.state, gone.snapshots, gone.store.as_str()), (RepositoryState::Empty, 0, ""));
    assert!(gone.reasons.iter().any(|reason| reason.code.word() == "REPOSITORY_EVICTED"), "{:?}", gone.reasons);
    until("the count", || world.repositories.evictions().get("REPOSITORIES_LIMIT") == Some(&1)).await;
    let events = world.repositories.last_evictions();
    assert_eq!((events.len(), events[0].repository.as_str()), (1, idle.url().key()));
    assert!(!is_evicted(&world, &pinned) && !is_evicted(&world, &used));
    until("the disk within its limit", || world.repositories.used_bytes() <= 10 << 20).await;
    assert!(world.repositories.over_limit().is_none());
    // It is fetched again when asked for; now the one that nobody holds any more may go.
    drop(held);
    assert_eq!(world.commit(&idle.request("head")).await, Ok(idle.rev("HEAD")));
    assert!(!is_evicted(&world, &idle));
    until("another eviction", || is_evicted(&world, &used) || is_evicted(&world, &idle)).await;
    assert!(!is_evicted(&world, &pinned));
}

#[tokio::test]
async fn where_nothing_may_go_nothing_more_is_filled() {
    let world = world(6 << 20, |_| {}).await;
    let [one, two, three] = [("one", 3), ("two", 5), ("three", 7)].map(|(name, seed)| noisy(&world, name, seed));
    for upstream in [&one, &two] {
        world.commit(&upstream.request("head")).await.unwrap();
        world.repositories.set_pinned(&upstream.url(), true).await.unwrap();
    }
    world.keep_up();
    until("the lack", || world.repositories.over_limit().is_some()).await;
    let reason = world.repositories.over_limit().unwrap();
    assert_eq!((reason.code.word(), reason.available), ("REPOSITORIES_LIMIT", 6 << 20));
    assert_eq!(world.commit(&three.request("head")).await, Err("REPOSITORIES_LIMIT"));
    let new = one.commit("what is here is still fetched");
    assert_eq!(world.commit(&one.request("head")).await, Ok(new));
    world.repositories.set_pinned(&two.url(), false).await.unwrap();
    until("room", || is_evicted(&world, &two) && world.repositories.over_limit().is_none()).await;
    assert!(!is_evicted(&world, &one));
}

#[tokio::test]
async fn the_young_stay_and_a_declared_mirror_is_not_filled_unasked() {
    let mut declared = None;
    let world = World::with(|config, dir| {
        let upstream = Upstream::new(dir.join("upstreams/declared"));
        std::fs::write(upstream.path.join("zeros"), vec![0; 64]).unwrap();
        let mirror = config::Mirror {
            url: upstream.url(),
            pin: false,
            trust: "default".into(),
            fork_of: None,
            submodules: false,
            lfs: false,
        };
        (config.mirrors, config.limit) = (vec![mirror], Some(4096));
        config.refresh = Duration::from_millis(200);
        declared = Some(upstream);
    })
    .await;
    let upstream = declared.unwrap();
    world.repositories.start_prefill();
    until("the fill", || view(&world, &upstream).state == RepositoryState::Ready).await;
    world.keep_up();
    until("the lack", || world.repositories.over_limit().is_some()).await;
    assert!(!is_evicted(&world, &upstream), "an hour is the default");
    let config = config::Repositories { min_age: Duration::ZERO, ..world.config.clone() };
    world.repositories.reconfigure(&config).await.unwrap();
    until("the eviction", || is_evicted(&world, &upstream)).await;
    let asked = world.count("ls-remote");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(world.count("ls-remote") <= asked + 1, "what was under way may end, nothing more is asked");
    let config = config::Repositories { limit: None, ..config };
    world.repositories.reconfigure(&config).await.unwrap();
    assert_eq!(world.commit(&upstream.request("head")).await, Ok(upstream.rev("HEAD")));
    assert!(view(&world, &upstream).reasons.is_empty());
}

#[tokio::test]
async fn below_the_floor_a_mirror_goes_once_nobody_uses_it() {
    let world = World::with(|config, _| config.min_age = Duration::ZERO).await;
    let upstream = world.upstream("a");
    let held = world.resolve(&upstream.request("head")).await.unwrap();
    let free = world.keep_up();
    free.store(FLOOR / 2, Ordering::SeqCst);
    until("the lack", || world.repositories.over_limit().is_some()).await;
    assert_eq!(world.repositories.over_limit().unwrap().code.word(), "DISK_FLOOR");
    assert!(!is_evicted(&world, &upstream));
    super::world::git_in(held.pin.path(), ["fsck", "--strict"]);
    drop(held);
    until("the eviction", || is_evicted(&world, &upstream)).await;
    until("the count", || world.repositories.evictions().get("DISK_FLOOR") == Some(&1)).await;
}

#[tokio::test]
async fn a_mirror_makes_room_for_what_builds_were_promised_and_nothing_is_refused_for_want_of_it() {
    let world = World::with(|config, _| config.min_age = Duration::ZERO).await;
    let [one, two] = ["a", "b"].map(|name| world.upstream(name));
    let held = world.resolve(&one.request("head")).await.unwrap();
    let free = world.keep_up();
    free.store(FLOOR * 2, Ordering::SeqCst);
    world.reserved.store(FLOOR * 2, Ordering::SeqCst);
    assert_eq!(world.commit(&two.request("head")).await, Ok(two.rev("HEAD")));
    until("the eviction", || is_evicted(&world, &two)).await;
    assert_eq!(world.repositories.over_limit(), None, "the floor itself holds");
    assert!(!is_evicted(&world, &one));
    drop(held);
    until("the eviction of the other", || is_evicted(&world, &one)).await;
}

#[tokio::test]
async fn a_fetch_that_keeps_the_pool_below_its_floor_is_ended_and_comes_again() {
    let world = World::new().await;
    let upstream = world.upstream("a");
    world.commit(&upstream.request("head")).await.unwrap();
    let hold = world.dir.path().join("hold");
    std::fs::write(&hold, "").unwrap();
    let (new, looks) = (upstream.commit("new"), || world.measured.load(Ordering::SeqCst));
    let before = looks();
    let request = upstream.request("head");
    let fetched = async { world.commit(&request).await };
    let fills = async {
        // Seen above the floor while it fetches: what was below it before is no fault of the fetch.
        until("the first looks", || looks() > before + 1).await;
        world.free.store(FLOOR / 2, Ordering::SeqCst);
    };
    assert_eq!(tokio::join!(fetched, fills).0, Err("DISK_FLOOR"));
    std::fs::remove_file(&hold).unwrap();
    world.free.store(FLOOR * 2, Ordering::SeqCst);
    assert_eq!(world.commit(&request).await, Ok(new));
}

#[tokio::test]
async fn what_was_evicted_is_so_after_a_restart() {
    let world = world(2 << 20, |_| {}).await;
    let upstream = noisy(&world, "a", 3);
    world.commit(&upstream.request("head")).await.unwrap();
    world.keep_up();
    until("the eviction", || is_evicted(&world, &upstream)).await;
    let world = world.restart(|_| {}).await;
    assert!(is_evicted(&world, &upstream));
    world.repositories.start_prefill();
    assert_eq!(world.commit(&upstream.request("head")).await, Ok(upstream.rev("HEAD")));
}
