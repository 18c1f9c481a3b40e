//! Pools, directories and the trash on the filesystem that temporary files are on, with any user's rights.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use stoker_core::reason::Code;
use tokio_util::sync::CancellationToken;

use super::guard::READ;
use super::remove::{Outcome, Sweep};
use super::trash::Pace;
use super::*;
use crate::config::{Directory, Floor, Pool, Retention, Share};

/// How long a test waits for what happens in the background.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn pool(path: &Path) -> Pool {
    Pool {
        name: "data".to_owned(),
        path: path.to_owned(),
        mount_required: false,
        uuid: None,
        seal: false,
        floor: Floor { bytes: Share::Basis(1000), inodes: Share::Absolute(7) },
        directories: Vec::new(),
    }
}

pub(super) fn declared(path: &str, mode: u32) -> Directory {
    Directory { path: path.into(), mode, owner: None, group: None, retention: Retention::Cache, limit: None }
}

pub(super) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

pub(super) fn names(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Waits until the pool is in this state.
pub(super) async fn becomes(pools: &Pools, state: State) {
    let mut views = pools.subscribe();
    let reached = views.wait_for(|views| views[0].state == state);
    let reached = tokio::time::timeout(LIMIT, reached).await.map(drop);
    assert!(reached.is_ok(), "never {state}: {:?}", pools.view());
}

/// Waits until the pool's trash is empty.
pub(super) async fn trash_empties(pool: &Path) {
    let began = Instant::now();
    while !names(&pool.join("stoker/trash")).is_empty() {
        assert!(began.elapsed() < LIMIT, "still in the trash: {:?}", names(&pool.join("stoker/trash")));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sweeps a directory in this thread until nothing more can be done.
pub(super) fn sweep(trash: &Path) -> Outcome {
    let trash = rustix::fs::open(trash, READ, Mode::empty()).unwrap();
    let mut after = None;
    loop {
        let outcome = Sweep::new(trash.as_fd(), Pace::default(), &|| false).run(after.as_deref());
        if outcome.more.is_none() {
            return outcome;
        }
        after = outcome.more;
    }
}

#[test]
fn an_optional_pool_is_made_with_its_directories() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a/b/pool");
    let directories = vec![declared("cache/deep", 0o1777), declared("src", 0o750)];
    let pools = Pools::open(&[Pool { directories, ..pool(&path) }]);
    let view = pools.view();
    assert_eq!((view[0].state, view[0].message.as_str()), (State::Ready, ""));
    assert!(view[0].directories.iter().all(|directory| directory.state == State::Prepared), "{view:?}");
    assert_eq!([mode(&path), mode(&path.join("stoker")), mode(&path.join("cache"))], [0o755; 3]);
    assert_eq!([mode(&path.join("cache/deep")), mode(&path.join("src"))], [0o1777, 0o750]);
    let filesystem = view[0].filesystem.as_ref().unwrap();
    assert_eq!(filesystem.floor_bytes, filesystem.total_bytes / 10);
    assert!(filesystem.free_bytes > 0 && filesystem.free_bytes <= filesystem.total_bytes);
    assert_eq!(pools.usable("data").unwrap(), path.join("stoker"));
}

#[tokio::test]
async fn a_directory_is_corrected_alone_and_only_where_it_differs() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("cache/inner")).unwrap();
    for (path, mode) in [("cache", 0o700), ("cache/inner", 0o711)] {
        fs::set_permissions(home.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let pools = Pools::open(&[Pool { directories: vec![declared("cache", 0o755)], ..pool(home.path()) }]);
    assert_eq!([mode(&home.path().join("cache")), mode(&home.path().join("cache/inner"))], [0o755, 0o711]);
    let changed = fs::metadata(home.path().join("cache")).unwrap();
    pools.check_now().await;
    let again = fs::metadata(home.path().join("cache")).unwrap();
    assert_eq!((changed.ctime(), changed.ctime_nsec()), (again.ctime(), again.ctime_nsec()));
}

#[test]
fn one_bad_directory_fails_alone() {
    let home = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(home.path().join("file"), "").unwrap();
    symlink(outside.path(), home.path().join("link")).unwrap();
    let declared =
        ["good", "file/below", "file", "link", "link/below", "../out", "also/good"].map(|path| declared(path, 0o755));
    let pools = Pools::open(&[Pool { directories: declared.to_vec(), ..pool(home.path()) }]);
    let view = pools.view();
    assert_eq!(view[0].state, State::Ready);
    let states: Vec<_> = view[0].directories.iter().map(|directory| directory.state).collect();
    use State::{Failed, NotADirectory, Prepared, Symlink};
    assert_eq!(states, [Prepared, NotADirectory, NotADirectory, Symlink, Symlink, Failed, Prepared]);
    assert!(view[0].directories[1].message.contains("file/below"), "{:?}", view[0].directories[1]);
    assert!(names(outside.path()).is_empty() && !home.path().parent().unwrap().join("out").exists());
}

#[test]
fn one_bad_pool_fails_alone() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("file"), "").unwrap();
    fs::create_dir(home.path().join("real")).unwrap();
    symlink(home.path().join("real"), home.path().join("link")).unwrap();
    let at = |name: &str, path: &str| Pool { name: name.to_owned(), ..pool(&home.path().join(path)) };
    let pools = Pools::open(&[at("a", "file"), at("b", "file/below"), at("c", "link"), at("d", "good")]);
    let states: Vec<_> = pools.view().iter().map(|view| view.state).collect();
    assert_eq!(states, [State::NotADirectory, State::NotADirectory, State::Symlink, State::Ready]);
    assert!(names(&home.path().join("real")).is_empty());
    for name in ["a", "b", "c"] {
        let reason = pools.usable(name).unwrap_err();
        assert_eq!((reason.code, reason.subject.as_str()), (Code::PoolNotReady, name));
    }
    assert!(pools.usable("d").is_ok());
    assert!(pools.usable("e").unwrap_err().message.contains("no pool \"e\" is declared"));
}

#[test]
fn a_link_above_a_pool_is_the_systems_and_is_followed() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("var/mnt/pool")).unwrap();
    symlink("var/mnt", home.path().join("mnt")).unwrap();
    let pools = Pools::open(&[pool(&home.path().join("mnt/pool"))]);
    assert_eq!(pools.view()[0].state, State::Ready);
    assert!(home.path().join("var/mnt/pool/stoker").is_dir());
}

#[test]
fn an_unmounted_pool_creates_nothing() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("there");
    fs::create_dir(&path).unwrap();
    let required =
        |path: &Path| Pool { mount_required: true, directories: vec![declared("cache", 0o755)], ..pool(path) };
    let absent = home.path().join("deep/absent");
    let pools = Pools::open(&[required(&path), Pool { name: "absent".to_owned(), ..required(&absent) }]);
    let view = pools.view();
    assert_eq!([view[0].state, view[1].state], [State::NotMounted, State::Absent]);
    assert_eq!([view[0].directories[0].state, view[1].directories[0].state], [State::NotMounted, State::Absent]);
    let reason = pools.usable("data").unwrap_err();
    assert!(reason.message.contains("is not a mounted filesystem"), "{}", reason.message);
    assert!(pools.usable("absent").is_err() && pools.discard(&path.join("stoker/x")).is_err());
    assert_eq!(names(home.path()), std::slice::from_ref(&path));
    assert!(names(&path).is_empty());
}

#[tokio::test]
async fn a_pool_that_comes_back_is_prepared_without_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("pool");
    fs::write(&path, "").unwrap();
    let pools = Pools::open(&[Pool { directories: vec![declared("cache", 0o755)], ..pool(&path) }]);
    assert_eq!(pools.view()[0].state, State::NotADirectory);
    let since = pools.view()[0].since;
    pools.watch(&CancellationToken::new());
    fs::remove_file(&path).unwrap();
    becomes(&pools, State::Ready).await;
    assert!(path.join("cache").is_dir() && pools.view()[0].since > since);
    pools.shutdown().await;
}

#[tokio::test]
async fn a_detached_pool_is_left_alone_until_it_is_attached() {
    let home = tempfile::tempdir().unwrap();
    let pools = Pools::open(&[pool(home.path())]);
    assert!(pools.detach("data").await && !pools.detach("other").await);
    assert_eq!(pools.view()[0].state, State::Detached);
    assert!(pools.usable("data").unwrap_err().message.contains("detached"));
    assert!(pools.attach("data").await && pools.usable("data").is_ok());
}

#[tokio::test]
async fn the_background_ends_with_its_token() {
    let home = tempfile::tempdir().unwrap();
    let pools = Pools::open(&[pool(home.path())]);
    let cancel = CancellationToken::new();
    pools.watch(&cancel);
    cancel.cancel();
    tokio::time::timeout(LIMIT, pools.shutdown()).await.unwrap();
}

#[tokio::test]
async fn fresh_figures_alone_wake_nobody() {
    let home = tempfile::tempdir().unwrap();
    let pools = Pools::open(&[pool(home.path())]);
    let views = pools.subscribe();
    fs::write(home.path().join("file"), vec![7; 1 << 20]).unwrap();
    pools.check_now().await;
    assert!(!views.has_changed().unwrap());
    fs::remove_dir(home.path().join("stoker")).unwrap();
    fs::write(home.path().join("stoker"), "").unwrap();
    pools.check_now().await;
    assert!(views.has_changed().unwrap());
    assert_eq!(pools.view()[0].state, State::NotADirectory);
}

#[test]
fn others_cannot_write_to_the_agents_directory() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("stoker")).unwrap();
    fs::set_permissions(home.path().join("stoker"), fs::Permissions::from_mode(0o777)).unwrap();
    let pools = Pools::open(&[pool(home.path())]);
    assert_eq!(pools.view()[0].state, State::Ready);
    assert_eq!(mode(&home.path().join("stoker")), 0o755);
}

#[test]
fn only_what_is_the_agents_can_be_discarded() {
    let home = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let pools = Pools::open(&[Pool { directories: vec![declared("cache", 0o755)], ..pool(home.path()) }]);
    let own = home.path().join("stoker");
    fs::create_dir(own.join("trash")).unwrap();
    symlink(outside.path(), own.join("link")).unwrap();
    fs::create_dir(outside.path().join("kept")).unwrap();
    let refused = ["", "../cache", "stoker/../cache", "stoker", "stoker/trash", "stoker/link/kept", "cache"];
    for path in refused {
        let path = home.path().join(path);
        assert!(pools.discard(&path).is_err(), "{}", path.display());
    }
    assert!(pools.discard(outside.path()).is_err());
    assert!(home.path().join("cache").is_dir() && outside.path().join("kept").is_dir() && own.join("trash").is_dir());
    // A link is taken away itself, and what is not there is gone already.
    pools.discard(&own.join("link")).unwrap();
    pools.discard(&own.join("link")).unwrap();
    pools.discard(&own.join("never/was")).unwrap();
    assert!(!own.join("link").is_symlink() && outside.path().join("kept").is_dir());
    assert_eq!(mode(&own.join("trash")), 0o700);
}

#[tokio::test]
async fn discarding_returns_before_the_removal_and_what_was_left_goes_too() {
    let home = tempfile::tempdir().unwrap();
    let pools = Pools::open(&[pool(home.path())]);
    let own = pools.usable("data").unwrap();
    fs::create_dir_all(own.join("trash/left/by/an/earlier/agent")).unwrap();
    let tree = own.join("tree");
    for directory in 0..20 {
        let directory = tree.join(directory.to_string());
        fs::create_dir_all(&directory).unwrap();
        (0..1000).for_each(|file| fs::write(directory.join(file.to_string()), "").unwrap());
    }
    // The best of twenty: a machine that is busy for a moment says nothing of the call.
    let discard = |directory: i32| {
        let began = Instant::now();
        pools.discard(&tree.join(directory.to_string())).unwrap();
        began.elapsed()
    };
    let best = (0..20).map(discard).min().unwrap();
    assert!(best < Duration::from_millis(10), "{best:?}");
    assert!(names(&tree).is_empty());
    pools.watch(&CancellationToken::new());
    trash_empties(home.path()).await;
    pools.shutdown().await;
}

/// 10,000 levels with names of 255 bytes, links to `outside`, directories without rights, hard links to a file of
/// `outside`; on every thousandth level.
pub(super) fn plant(top: &Path, outside: &Path) {
    let name = "d".repeat(255);
    fs::create_dir(top).unwrap();
    let mut here = rustix::fs::open(top, READ, Mode::empty()).unwrap();
    for level in 0..10_000 {
        if level % 1000 == 0 {
            let at = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&here)));
            symlink(outside, at.join("to-directory")).unwrap();
            symlink(outside.join("kept"), at.join("to-file")).unwrap();
            symlink("nowhere", at.join("dangling")).unwrap();
            fs::hard_link(outside.join("kept"), at.join("hard")).unwrap();
            fs::create_dir_all(at.join("closed/inner")).unwrap();
            fs::write(at.join("closed/inner/file"), "x").unwrap();
            for closed in ["closed/inner", "closed"] {
                fs::set_permissions(at.join(closed), fs::Permissions::from_mode(0o0)).unwrap();
            }
        }
        mkdirat(&here, name.as_str(), Mode::RWXU).unwrap();
        // A directory that cannot be written to cannot be lifted either.
        let next = openat(&here, name.as_str(), READ | OFlags::NOFOLLOW, Mode::empty()).unwrap();
        here = next;
    }
}

pub(super) fn check_hostile_tree() {
    let home = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir_in(home.path()).unwrap();
    let kept = outside.path().join("kept");
    fs::write(&kept, "kept").unwrap();
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o640)).unwrap();
    let pool = tempfile::tempdir_in(home.path()).unwrap();
    let pools = Pools::open(&[self::pool(pool.path())]);
    let tree = pools.usable("data").unwrap().join("tree");
    plant(&tree, outside.path());
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o0)).unwrap();
    pools.discard(&tree).unwrap();
    let outcome = sweep(&pool.path().join("stoker/trash"));
    assert!(outcome.refused.is_empty(), "{:?}", outcome.refused);
    assert!(outcome.removed > 0 && names(&pool.path().join("stoker/trash")).is_empty());
    let kept = fs::metadata(&kept).unwrap();
    assert_eq!((kept.len(), kept.mode() & 0o7777, kept.nlink()), (4, 0o640, 1));
}

#[test]
fn a_hostile_tree_is_removed_and_nothing_outside_is_touched() {
    check_hostile_tree();
}

#[test]
fn a_sweep_stops_when_it_is_told_and_goes_on_later() {
    let trash = tempfile::tempdir().unwrap();
    (0..50).for_each(|file| fs::write(trash.path().join(file.to_string()), "").unwrap());
    let directory = rustix::fs::open(trash.path(), READ, Mode::empty()).unwrap();
    let pace = Pace { entries: 10, pause: Duration::ZERO, ..Pace::default() };
    let outcome = Sweep::new(directory.as_fd(), pace, &|| true).run(None);
    assert_eq!((outcome.removed, outcome.more.is_some()), (9, true));
    assert_eq!(names(trash.path()).len(), 41);
    assert_eq!(sweep(trash.path()).removed, 41);
}

#[test]
fn who_makes_files_without_end_keeps_no_other_tree() {
    let trash = tempfile::tempdir().unwrap();
    for tree in ["a", "b", "c"] {
        fs::create_dir(trash.path().join(tree)).unwrap();
        fs::write(trash.path().join(tree).join("file"), "").unwrap();
    }
    let directory = rustix::fs::open(trash.path(), READ, Mode::empty()).unwrap();
    // A slice is over after some entries of the first tree, in which there are always more.
    let pace = Pace { entries: 10, pause: Duration::ZERO, slice: Duration::ZERO };
    let mut after: Option<std::ffi::CString> = None;
    for _ in 0..2 {
        (0..50).for_each(|file| fs::write(trash.path().join("a").join(file.to_string()), "").unwrap());
        let outcome = Sweep::new(directory.as_fd(), pace, &|| false).run(after.as_deref());
        assert_eq!(outcome.more.as_deref(), Some(c"a"));
        after = outcome.more;
    }
    assert_eq!(names(trash.path()), [trash.path().join("a")]);
}

#[test]
fn trash_is_removed_without_pauses_while_the_pool_is_below_its_floor() {
    let home = tempfile::tempdir().unwrap();
    let with = |floor: Floor| Pace::of(&Filesystem::at(home.path(), floor).unwrap()).pause;
    let none = Floor { bytes: Share::Absolute(0), inodes: Share::Absolute(0) };
    assert_eq!(with(none), Pace::default().pause);
    assert_eq!(with(Floor { bytes: Share::Absolute(u64::MAX), ..none }), Duration::ZERO);
}
