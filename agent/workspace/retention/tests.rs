//! Real files and the real executor on a clock that is a value.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration as StdDuration, SystemTime};

use stoker_core::quantity::Span;

use super::*;
use crate::config::{Config, Directory};
use crate::workspace::Workspace;
use crate::workspace::outputs::Ending;
use crate::workspace::outputs::tests::{NOW, World};

fn day(days: i64) -> Timestamp {
    NOW.plus(Span::hours(24 * days))
}

/// What is held, as a test wants it.
type Held = Arc<Mutex<Known>>;

fn room(world: &World, outputs: &Outputs, held: &Held) -> Retention {
    let (known, pools) = (Arc::clone(held), world.pools.clone());
    let own = world.own();
    let (of_workspace, of_cache) = (pools.clone(), Arc::clone(held));
    let holders = Holders {
        known: Arc::new(move || Some(known.lock().unwrap().clone())),
        used: Arc::new(BTreeSet::new),
        ending: Arc::new(|_| Ending::default()),
        remove_cache: Arc::new(move |path, tenant| {
            let known = of_cache.lock().unwrap();
            match known.caches.contains(tenant) || known.shown.contains(path) {
                true => Ok(false),
                false => pools.discard(path).map(|()| true),
            }
        }),
        remove_workspace: Arc::new(move |id| of_workspace.discard(&own.join("workspaces").join(id)).map(|()| true)),
    };
    Retention::open(world.pools.clone(), outputs.clone(), world.config.subscribe(), holders)
}

fn declared(path: &str, retention: Word, limit: Option<u64>) -> Directory {
    Directory { path: path.into(), mode: 0o755, owner: None, group: None, retention, limit }
}

fn with_directories(config: &mut Config) {
    config.pools[0].directories = vec![
        declared("images", Word::Output, None),
        declared("scratch", Word::Scratch, None),
        declared("cas", Word::Cache, None),
        declared("mine", Word::Mirror, None),
    ];
}

fn pass(room: &Retention, now: Timestamp) {
    room.pass(now, &|| false).unwrap();
}

/// A directory with a file, both as old as the epoch.
fn ancient(path: &Path) {
    fs::create_dir_all(path).unwrap();
    let file = fs::File::create(path.join("file")).unwrap();
    let old = SystemTime::UNIX_EPOCH + StdDuration::from_secs(1);
    file.set_times(fs::FileTimes::new().set_accessed(old).set_modified(old)).unwrap();
    fs::File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(old)).unwrap();
}

fn output_of(world: &World, outputs: &Outputs, id: &str, now: Timestamp) -> Workspace {
    let workspace = world.workspace(id, now);
    ancient(&workspace.out.join("deep"));
    outputs.keep(&workspace, Ending::default(), now).unwrap().unwrap();
    world.pools.discard(workspace.out.parent().unwrap()).unwrap();
    workspace
}

#[test]
fn sixty_days_take_what_is_over_and_nothing_that_is_needed() {
    let world = World::new(with_directories);
    let (outputs, held) = (world.outputs(), Held::default());
    let mut retention = room(&world, &outputs, &held);
    let (pool, own) = (world.dir.path().join("pool"), world.own());
    let kept = [
        "stoker/repositories/r",
        "stoker/stores/s",
        "stoker/checkouts/c",
        "stoker/overlays/o",
        "stoker/times/t",
        "cas/x",
        "mine/x",
        "foreign",
    ];
    for place in kept {
        ancient(&pool.join(place));
    }
    for id in ["dropped", "released"] {
        output_of(&world, &outputs, id, day(0));
    }
    let long = world.workspace("long", day(0));
    ancient(&long.src);
    *held.lock().unwrap() = Known { leases: vec![day(0)], workspaces: ["long".to_owned()].into(), ..Known::default() };

    // When each thing is there, from the first day to the last.
    let there = |now: i64| -> Vec<(&'static str, bool)> {
        vec![
            ("stoker/outputs/dropped", now < 14),
            ("stoker/outputs/dropped.json", now < 14),
            ("stoker/outputs/released/deep/file", true),
            ("stoker/workspaces/long/src/file", now < 20),
            ("stoker/outputs/long/file", (20..34).contains(&now)),
            ("images/nightly", (5..19).contains(&now)),
            ("scratch/leftover", (2..20).contains(&now)),
            ("stoker/unknown", (10..11).contains(&now)),
        ]
    };
    for now in 0..=60 {
        match now {
            2 => ancient(&pool.join("scratch/leftover")),
            3 => drop(outputs.release("released", day(3)).unwrap().unwrap()),
            5 => ancient(&pool.join("images/nightly")),
            // Another agent: what was seen is remembered.
            7 => retention = room(&world, &world.outputs(), &held),
            10 => ancient(&own.join("unknown")),
            20 => {
                fs::write(long.out.join("file"), "after 20 days").unwrap();
                outputs.look().unwrap();
                outputs.keep(&long, Ending::default(), day(20)).unwrap().unwrap();
                world.pools.discard(&own.join("workspaces/long")).unwrap();
                *held.lock().unwrap() = Known::default();
            }
            _ => {}
        }
        pass(&retention, day(now));
        for (place, expected) in there(now) {
            assert_eq!(pool.join(place).exists(), expected, "{place} on day {now}");
        }
        for place in kept {
            assert!(pool.join(place).join("file").exists(), "{place} on day {now}");
        }
    }
    let view = retention.view();
    assert_eq!((view.outputs.0, view.released, view.removed), (1, 1, 5), "{view:?}");
    assert_eq!(view.last.map(|last| last.at), Some(day(34)), "the last that really was removed");
}

#[test]
fn a_plan_says_what_goes_now_and_next_and_touches_nothing() {
    let world = World::new(with_directories);
    let (outputs, held) = (world.outputs(), Held::default());
    let retention = room(&world, &outputs, &held);
    output_of(&world, &outputs, "old", day(0));
    output_of(&world, &outputs, "young", day(10));
    ancient(&world.own().join("unknown"));
    let before = retention.plan(day(0)).unwrap();
    assert_eq!(before.now, []);
    let kinds = |going: &[Going]| going.iter().map(|one| (one.kind.word(), one.at)).collect::<Vec<_>>();
    assert_eq!(kinds(&before.next), [("orphan", day(1)), ("output", day(14)), ("output", day(24))]);
    assert!(!world.dir.path().join("retention.json").exists(), "a plan is no sight");
    pass(&retention, day(0));
    let plan = retention.plan(day(15)).unwrap();
    assert_eq!(kinds(&plan.now), [("orphan", day(1)), ("output", day(14))]);
    assert_eq!(plan.now[1].id, "old");
    assert_eq!(plan.now[1].reason.code, Code::RetentionOver);
    assert!(plan.now[1].reason.message.contains("outputs.retention (14 d)"), "{:?}", plan.now[1].reason);
    assert!(plan.now[0].reason.message.contains("1 d after it was first seen"), "{:?}", plan.now[0].reason);
    assert!(world.own().join("unknown").exists() && world.own().join("outputs/old").exists());
    assert_eq!(plan, retention.plan(day(15)).unwrap(), "and says the same again");
    pass(&retention, day(15));
    assert!(!world.own().join("unknown").exists() && !world.own().join("outputs/old").exists());
    assert!(world.own().join("outputs/young").exists());
}

#[test]
fn caches_are_kept_within_their_limit_but_not_from_builds_that_have_them() {
    let world = World::new(|config| config.keeping.caches_limit = Some(300 << 10));
    let (outputs, held) = (world.outputs(), Held::default());
    let retention = room(&world, &outputs, &held);
    let cache = |key: &str| world.own().join("caches").join(key);
    for key in ["red/a", "red/~2/b", "blue/c"] {
        fs::create_dir_all(cache(key)).unwrap();
        fs::write(cache(key).join("file"), vec![7; 200 << 10]).unwrap();
    }
    held.lock().unwrap().caches = ["red".to_owned(), "blue".to_owned()].into();
    pass(&retention, day(0));
    assert!(["red/a", "red/~2/b", "blue/c"].iter().all(|key| cache(key).exists()), "builds have them");
    assert_eq!(retention.view().alarms.iter().map(|alarm| alarm.code).collect::<Vec<_>>(), [Code::CacheLimit]);
    held.lock().unwrap().caches = ["blue".to_owned()].into();
    pass(&retention, day(1));
    assert!(cache("blue/c").exists(), "its tenant builds");
    assert!(!cache("red/a").exists() && !cache("red/~2/b").exists(), "200 KiB of 300 are left to others");
    let view = retention.view();
    assert_eq!((view.caches.0, view.last.unwrap().count, view.alarms.len()), (1, 2, 0));
}

#[test]
fn a_volume_keeps_the_cache_that_it_shows_and_no_other_of_its_tenant() {
    let world = World::new(|config| config.keeping.caches_limit = Some(300 << 10));
    let (outputs, held) = (world.outputs(), Held::default());
    let retention = room(&world, &outputs, &held);
    let cache = |key: &str| world.own().join("caches").join(key);
    for key in ["red/a", "red/~2/a", "red/b"] {
        fs::create_dir_all(cache(key)).unwrap();
        fs::write(cache(key).join("file"), vec![7; 200 << 10]).unwrap();
    }
    held.lock().unwrap().shown = [cache("red/~2/a")].into();
    pass(&retention, day(1));
    let left = ["red/a", "red/~2/a", "red/b"].map(|key| cache(key).exists());
    assert_eq!(left, [false, true, false]);
}

#[test]
fn what_nobody_knows_is_told_and_goes_after_its_grace_but_never_what_is_foreign() {
    let world = World::new(with_directories);
    let (outputs, held) = (world.outputs(), Held::default());
    let retention = room(&world, &outputs, &held);
    let own = world.own();
    held.lock().unwrap().workspaces = ["w.1".to_owned(), "z".to_owned()].into();
    ancient(&own.join("workspaces/w.1"));
    fs::write(own.join("workspaces/w.1.json"), "{}").unwrap();
    output_of(&world, &outputs, "known", day(0));
    ancient(&own.join("caches/red/key"));
    let known =
        ["workspaces/w.1", "workspaces/w.1.json", "outputs/known", "outputs/known.json", "caches/red/key", "trash"];
    let orphans = [
        "workspaces/x",
        "workspaces/y.json",
        "outputs/without-record",
        "caches/red/Not a key",
        "caches/red/.hidden",
        "something",
    ];
    for orphan in orphans {
        ancient(&own.join(orphan));
    }
    fs::write(own.join("caches/a-file"), "").unwrap();
    symlink("/etc", own.join("link")).unwrap();
    ancient(&world.dir.path().join("pool/foreign"));
    pass(&retention, day(0));
    let view = retention.view();
    assert_eq!(view.orphans.0, 8, "{view:?}");
    let [alarm] = view.alarms.as_slice() else { panic!("{:?}", view.alarms) };
    assert_eq!(alarm.code, Code::Orphan);
    assert!(alarm.message.contains("and 7 more"), "{}", alarm.message);
    pass(&retention, day(1));
    for orphan in orphans.into_iter().chain(["caches/a-file", "link"]) {
        assert!(own.join(orphan).symlink_metadata().is_err(), "{orphan}");
    }
    for place in known {
        assert!(own.join(place).exists(), "{place}");
    }
    assert!(world.dir.path().join("pool/foreign/file").exists() && Path::new("/etc/passwd").exists());
    assert_eq!((retention.view().orphans.0, retention.view().alarms.len()), (0, 0));
}

#[test]
fn the_grace_of_what_was_known_begins_when_nobody_knows_it_any_more() {
    let world = World::new(|_| {});
    let (outputs, held) = (world.outputs(), Held::default());
    let retention = room(&world, &outputs, &held);
    let place = world.own().join("workspaces/w");
    ancient(&place);
    // Seen just before the room that makes it said so.
    pass(&retention, day(0));
    held.lock().unwrap().workspaces = ["w".to_owned()].into();
    pass(&retention, day(1));
    held.lock().unwrap().workspaces.clear();
    pass(&retention, day(20));
    assert!(place.exists());
    pass(&retention, day(21));
    assert!(!place.exists());
}

#[test]
fn nothing_is_touched_while_it_is_not_known_what_is_held() {
    let world = World::new(|_| {});
    let outputs = world.outputs();
    let room = room(&world, &outputs, &Held::default());
    let never = |_: &Path, _: &str| -> io::Result<bool> { panic!("nothing is known") };
    let holders = Holders { known: Arc::new(|| None), remove_cache: Arc::new(never), ..room.inner.holders.clone() };
    let blind = Retention::open(world.pools.clone(), outputs.clone(), world.config.subscribe(), holders);
    output_of(&world, &outputs, "old", day(0));
    assert_eq!(blind.pass(day(99), &|| false).unwrap_err().code, Code::PoolNotReady);
    assert_eq!(blind.plan(day(99)).unwrap_err().code, Code::PoolNotReady);
    assert!(world.own().join("outputs/old").exists());
}

#[test]
fn a_disk_that_takes_no_record_still_gets_room() {
    let world = World::new(|_| {});
    let (outputs, held) = (world.outputs(), Held::default());
    let retention = room(&world, &outputs, &held);
    output_of(&world, &outputs, "old", day(0));
    pass(&retention, day(0));
    for id in ["full", "young"] {
        output_of(&world, &outputs, id, day(10));
    }
    // Where its record would be written first.
    fs::create_dir(world.own().join("outputs/.tmp-full.json")).unwrap();
    pass(&retention, day(14));
    assert!(!world.own().join("outputs/old").exists());
    let is_counted = |id: &str| outputs.get(id).unwrap().size.is_some();
    assert_eq!((is_counted("full"), is_counted("young")), (false, true));
}

#[test]
fn a_look_costs_no_more_than_it_may_and_what_is_cut_is_not_taken_for_less() {
    let world = World::new(|config| {
        config.pools[0].directories =
            ["first", "second"].map(|path| declared(path, Word::Cache, Some(1 << 30))).to_vec();
    });
    let pool = world.dir.path().join("pool");
    for number in 0..10 {
        fs::create_dir(pool.join(format!("first/{number}"))).unwrap();
    }
    for name in ["a", "b", "c"] {
        fs::write(pool.join("second").join(name), vec![7; 100_000]).unwrap();
    }
    let (mut journal, mut sizes, known) = (Journal::default(), Sizes::new(), Known::default());
    let mut second = |now| {
        let config = Arc::clone(&world.config.borrow());
        let look = Look::new(&world.pools, &config, &known, &mut journal, &mut sizes, now).with_budget(12);
        let used = look.run(&[]).directories.remove(1);
        (used.bytes, used.partial)
    };
    let cut = second(day(0));
    assert!(cut.0 < 300_000 && cut.1, "directories were counted before: {cut:?}");
    let whole = second(day(0));
    assert!(whole.0 >= 300_000 && !whole.1, "with the next look it has room: {whole:?}");
    assert_eq!(second(day(1)), whole, "its count is over, and again there is no room");
    fs::remove_file(pool.join("second/a")).unwrap();
    assert!(second(day(1)).0 < whole.0, "now there is");
}

#[test]
fn a_declared_cache_is_counted_and_not_emptied() {
    let world = World::new(|config| {
        config.pools[0].directories =
            vec![declared("cas", Word::Cache, Some(1000)), declared("old", Word::Output, Some(300 << 10))];
    });
    let (outputs, held) = (world.outputs(), Held::default());
    let retention = room(&world, &outputs, &held);
    let pool = world.dir.path().join("pool");
    fs::write(pool.join("cas/blob"), vec![7; 100_000]).unwrap();
    fs::create_dir(pool.join("old/first")).unwrap();
    fs::write(pool.join("old/first/file"), vec![7; 200 << 10]).unwrap();
    pass(&retention, day(0));
    let view = retention.view();
    let [cas, old] = view.directories.as_slice() else { panic!("{:?}", view.directories) };
    assert!(cas.bytes >= 100_000 && !cas.partial && old.entries == 1, "{view:?}");
    assert_eq!(view.alarms.iter().map(|alarm| alarm.code).collect::<Vec<_>>(), [Code::DirectoryLimit]);
    fs::create_dir(pool.join("old/second")).unwrap();
    fs::write(pool.join("old/second/file"), vec![7; 200 << 10]).unwrap();
    pass(&retention, day(1));
    assert!(pool.join("cas/blob").exists());
    assert!(!pool.join("old/first").exists() && pool.join("old/second").exists(), "the first is there for longest");
}
