//! Pools on real filesystems of their own: loop devices, mounted in a mount namespace of the test alone, which the
//! kernel takes apart when the test's process ends, however it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::guard::READ;
use super::remove::Sweep;
use super::tests::{becomes, check_hostile_tree, declared, mode, names, pool, sweep, trash_empties};
use super::trash::Pace;
use super::*;
use crate::config::Pool;

const INSIDE: &str = "STOKER_TEST_INSIDE";
const UUID: &str = "0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0";

/// Runs `body` in a process and mount namespace of its own. `name` is the test's own name. Without root the test has
/// nothing to show, which CI does not accept.
fn in_private_mounts(name: &str, body: impl FnOnce()) {
    in_private_mounts_of(&format!("node::tests_root::{name}"), body);
}

/// The same for a test of any room, by its path.
pub(super) fn in_private_mounts_of(path: &str, body: impl FnOnce()) {
    if std::env::var(INSIDE).as_deref() == Ok(path) {
        return body();
    }
    if !rustix::process::geteuid().is_root() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "this test needs root");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    again(command, path);
}

/// Runs one test of this binary again, inside.
fn again(mut command: Command, path: &str) {
    let output =
        command.args(["--exact", path, "--nocapture", "--include-ignored"]).env(INSIDE, path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    // What it tells of its rounds.
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
}

pub(super) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A disk of 64 MiB with ext4, and a place to mount it.
struct Disk {
    home: tempfile::TempDir,
    image: PathBuf,
    point: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (image, point) = (home.path().join("image"), home.path().join("data"));
        fs::create_dir(&point).unwrap();
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-U", UUID, text(&image)]);
        Self { home, image, point }
    }

    fn mount(&self, options: &str) {
        run("mount", &["-o", options, text(&self.image), text(&self.point)]);
    }

    fn unmount(&self) {
        run("umount", &[text(&self.point)]);
    }

    fn required(&self) -> Pool {
        Pool { mount_required: true, directories: vec![declared("bst-cache", 0o755)], ..pool(&self.point) }
    }
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn needs_root_a_pool_follows_its_disk() {
    in_private_mounts("needs_root_a_pool_follows_its_disk", || {
        runtime().block_on(async {
            let disk = Disk::new();
            let pools = Pools::open(&[disk.required()]);
            assert_eq!(pools.view()[0].state, State::NotMounted);
            pools.watch(&CancellationToken::new());
            disk.mount("loop");
            becomes(&pools, State::Ready).await;
            assert_eq!(pools.usable("data").unwrap(), disk.point.join("stoker"));
            let view = pools.view();
            assert_eq!(view[0].filesystem.as_ref().unwrap().type_name, "ext4");
            assert_eq!(view[0].directories[0].state, State::Prepared);
            assert!(disk.point.join("bst-cache").is_dir());
            // Nothing is held: the disk can be taken out while the agent watches it. Only a look of that moment is in
            // the way.
            let unmounted = || Command::new("umount").arg(&disk.point).status().unwrap().success();
            assert!((0..50).any(|_| unmounted()));
            assert!(pools.usable("data").is_err(), "the guard is asked on every use");
            assert!(pools.discard(&disk.point.join("stoker/x")).is_err());
            becomes(&pools, State::NotMounted).await;
            assert!(names(&disk.point).is_empty(), "nothing was created on the disk below");
            disk.mount("loop");
            becomes(&pools, State::Ready).await;
            pools.shutdown().await;
        });
    });
}

#[test]
fn needs_root_only_a_filesystem_of_its_own_is_a_mount() {
    in_private_mounts("needs_root_only_a_filesystem_of_its_own_is_a_mount", || {
        let disk = Disk::new();
        let elsewhere = disk.home.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        run("mount", &["--bind", text(&elsewhere), text(&disk.point)]);
        let view = Pools::open(&[disk.required()]).view();
        assert_eq!(view[0].state, State::NotMounted);
        assert!(view[0].message.contains("bind mount"), "{}", view[0].message);
        assert!(names(&elsewhere).is_empty());
        disk.unmount();
        // A bind mount of another disk is one.
        disk.mount("loop");
        run("mount", &["--bind", text(&disk.point), text(&elsewhere)]);
        assert_eq!(Pools::open(&[Pool { path: elsewhere, ..disk.required() }]).view()[0].state, State::Ready);
    });
}

#[test]
fn needs_root_another_disk_than_the_declared_one_is_refused() {
    in_private_mounts("needs_root_another_disk_than_the_declared_one_is_refused", || {
        let disk = Disk::new();
        disk.mount("loop");
        let uuid = *::uuid::Uuid::parse_str(UUID).unwrap().as_bytes();
        let other = Pool { uuid: Some([7; 16]), ..disk.required() };
        let view = Pools::open(&[other]).view();
        assert_eq!(view[0].state, State::WrongFilesystem);
        assert!(view[0].message.contains(UUID) && view[0].message.contains("07070707-"), "{}", view[0].message);
        assert!(!disk.point.join("stoker").exists());
        let right = Pools::open(&[Pool { uuid: Some(uuid), ..disk.required() }]);
        assert_eq!(right.view()[0].state, State::Ready);
    });
}

#[test]
fn needs_root_a_read_only_disk_is_refused() {
    in_private_mounts("needs_root_a_read_only_disk_is_refused", || {
        let disk = Disk::new();
        disk.mount("loop,ro");
        assert_eq!(Pools::open(&[disk.required()]).view()[0].state, State::ReadOnly);
    });
}

/// Takes the immutable flag away again, also when the test fails.
struct Unseal<'a>(&'a Path);

impl Drop for Unseal<'_> {
    fn drop(&mut self) {
        drop(Command::new("chattr").arg("-i").arg(self.0).status());
    }
}

#[test]
fn needs_root_a_sealed_mount_point_takes_nothing_but_its_disk() {
    in_private_mounts("needs_root_a_sealed_mount_point_takes_nothing_but_its_disk", || {
        let disk = Disk::new();
        let sealing = Pool { seal: true, ..disk.required() };
        // What is not empty, or need not be a mount, is left alone.
        fs::write(disk.point.join("file"), "").unwrap();
        let view = Pools::open(std::slice::from_ref(&sealing)).view();
        assert!(view[0].message.contains("not empty"), "{}", view[0].message);
        fs::remove_file(disk.point.join("file")).unwrap();
        let _unseal = Unseal(&disk.point);
        let pools = Pools::open(&[sealing]);
        assert!(pools.view()[0].message.ends_with("the mount point is sealed"), "{}", pools.view()[0].message);
        assert!(fs::create_dir(disk.point.join("by-a-runtime")).is_err());
        disk.mount("loop");
        runtime().block_on(pools.check_now());
        assert_eq!(pools.view()[0].state, State::Ready);
        fs::write(disk.point.join("stoker/file"), "").unwrap();
        disk.unmount();
        assert!(fs::create_dir(disk.point.join("by-a-runtime")).is_err(), "it stays sealed below");
    });
}

#[test]
fn needs_root_a_tree_with_a_mount_in_it_is_not_removed() {
    in_private_mounts("needs_root_a_tree_with_a_mount_in_it_is_not_removed", || {
        let home = tempfile::tempdir().unwrap();
        let pools = Pools::open(&[pool(home.path())]);
        let tree = pools.usable("data").unwrap().join("tree");
        let inner = tree.join("with space/inner");
        fs::create_dir_all(&inner).unwrap();
        run("mount", &["-t", "tmpfs", "tmpfs", text(&inner)]);
        fs::write(inner.join("kept"), "").unwrap();
        for path in [&tree, &inner] {
            let error = pools.discard(path).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy, "{error}");
        }
        assert!(inner.join("kept").exists());
        // Mounted after it was thrown away: what is mounted is kept all the same.
        let outcome = sweep(&tree);
        assert!(outcome.refused.values().any(|why| why.contains("mounted")), "{:?}", outcome.refused);
        assert!(inner.join("kept").exists());
        run("umount", &[text(&inner)]);
        // A bind mount of the same filesystem is on the same device, and a mount nevertheless.
        let beside = home.path().join("beside");
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("kept"), "").unwrap();
        run("mount", &["--bind", text(&beside), text(&inner)]);
        assert!(pools.discard(&tree).is_err());
        assert!(!sweep(&tree).refused.is_empty());
        assert!(beside.join("kept").exists());
        run("umount", &[text(&inner)]);
        pools.discard(&tree).unwrap();
        assert!(sweep(&home.path().join("stoker/trash")).refused.is_empty());
        assert!(names(&home.path().join("stoker/trash")).is_empty());
    });
}

#[test]
fn needs_root_what_cannot_be_removed_is_told_and_keeps_nothing_else() {
    in_private_mounts("needs_root_what_cannot_be_removed_is_told_and_keeps_nothing_else", || {
        runtime().block_on(async {
            let home = tempfile::tempdir().unwrap();
            let pools = Pools::open(&[pool(home.path())]);
            let tree = pools.usable("data").unwrap().join("trash/tree");
            let inner = tree.join("a/inner");
            fs::create_dir_all(&inner).unwrap();
            for name in ["before", "a/beside", "z/after"] {
                fs::create_dir_all(tree.join(name)).unwrap();
                fs::write(tree.join(name).join("file"), "").unwrap();
            }
            run("mount", &["-t", "tmpfs", "tmpfs", text(&inner)]);
            fs::write(inner.join("kept"), "").unwrap();
            pools.watch(&CancellationToken::new());
            let mut views = pools.subscribe();
            let told =
                views.wait_for(|views| views[0].message.contains("trash/tree cannot be removed: something is mounted"));
            tokio::time::timeout(Duration::from_secs(30), told).await.expect("it is told").unwrap();
            assert_eq!((names(&tree), names(&tree.join("a"))), (vec![tree.join("a")], vec![inner.clone()]));
            assert!(inner.join("kept").exists());
            run("umount", &[text(&inner)]);
            pools.discard(&home.path().join("stoker/nothing-but-a-reason-to-look")).unwrap();
            trash_empties(home.path()).await;
            pools.check_now().await;
            assert_eq!(pools.view()[0].message, "");
            pools.shutdown().await;
        });
    });
}

#[test]
fn needs_root_who_has_a_directory_open_can_do_nothing_more_in_it() {
    in_private_mounts("needs_root_who_has_a_directory_open_can_do_nothing_more_in_it", || {
        let trash = tempfile::tempdir().unwrap();
        let tree = trash.path().join("tree");
        fs::create_dir_all(tree.join("inner")).unwrap();
        (0..100).for_each(|file| fs::write(tree.join("inner").join(file.to_string()), "").unwrap());
        for path in [&tree, &tree.join("inner")] {
            std::os::unix::fs::chown(path, Some(1234), Some(1234)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        // It is interrupted in the middle.
        let directory = rustix::fs::open(trash.path(), READ, rustix::fs::Mode::empty()).unwrap();
        let pace = Pace { entries: 10, slice: Duration::ZERO, ..Pace::default() };
        assert!(Sweep::new(directory.as_fd(), pace, &|| false).run(None).more.is_some());
        for path in [&tree, &tree.join("inner")] {
            assert_eq!((mode(path), fs::metadata(path).unwrap().uid()), (0o700, 0));
        }
    });
}

#[test]
fn needs_root_immutable_files_are_removed_and_their_other_names_stay_so() {
    in_private_mounts("needs_root_immutable_files_are_removed_and_their_other_names_stay_so", || {
        let disk = Disk::new();
        disk.mount("loop");
        let pools = Pools::open(&[disk.required()]);
        let tree = pools.usable("data").unwrap().join("tree");
        let object = disk.point.join("object");
        fs::create_dir_all(tree.join("point")).unwrap();
        fs::write(&object, "").unwrap();
        fs::hard_link(&object, tree.join("object")).unwrap();
        fs::write(tree.join("file"), "").unwrap();
        for path in ["object", "file", "point", ""] {
            run("chattr", &["+i", text(&tree.join(path))]);
        }
        pools.discard(&tree).unwrap();
        let outcome = sweep(&disk.point.join("stoker/trash"));
        assert!(outcome.refused.is_empty(), "{:?}", outcome.refused);
        assert!(names(&disk.point.join("stoker/trash")).is_empty());
        assert_eq!(fs::metadata(&object).unwrap().nlink(), 1);
        assert!(fs::write(&object, "changed").is_err(), "it is immutable as before");
    });
}

#[test]
fn needs_root_a_directory_gets_its_owner() {
    in_private_mounts("needs_root_a_directory_gets_its_owner", || {
        let home = tempfile::tempdir().unwrap();
        let mut cache = declared("a/cache", 0o2770);
        (cache.owner, cache.group) = (Some(1234), Some(2345));
        let view = Pools::open(&[Pool { directories: vec![cache], ..pool(home.path()) }]).view();
        assert_eq!(view[0].directories[0].state, State::Prepared, "{view:?}");
        let (made, above) = (home.path().join("a/cache"), home.path().join("a"));
        let owner = |path: &Path| fs::metadata(path).map(|of| (of.uid(), of.gid())).unwrap();
        assert_eq!((mode(&made), owner(&made)), (0o2770, (1234, 2345)));
        assert_eq!((mode(&above), owner(&above)), (0o755, (0, 0)));
    });
}

/// The rights of root hide what modes forbid.
#[test]
fn needs_root_a_hostile_tree_is_removed_by_any_user() {
    let path = "node::tests_root::needs_root_a_hostile_tree_is_removed_by_any_user";
    if std::env::var(INSIDE).as_deref() == Ok(path) {
        assert!(!rustix::process::geteuid().is_root());
        return check_hostile_tree();
    }
    if !rustix::process::geteuid().is_root() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "this test needs root");
        return;
    }
    // Another user may not be able to reach the build's directory: give it a copy of this binary.
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let binary = home.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    let mut command = Command::new(&binary);
    command.uid(65534).gid(65534).current_dir(home.path()).env("TMPDIR", home.path());
    again(command, path);
}
