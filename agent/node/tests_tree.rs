//! Looking at trees, opening what lies in them, and moving them, with any user's rights.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::Mode;

use super::tests::{declared, mode, pool};
use super::*;
use crate::config::{Directory, Retention};

fn opened(home: &Path) -> Pools {
    let keeps = |path: &str, retention| Directory { retention, ..declared(path, 0o755) };
    let directories = vec![
        keeps("out", Retention::Output),
        keeps("scratch", Retention::Scratch),
        keeps("cache", Retention::Cache),
        keeps("mine", Retention::Mirror),
    ];
    Pools::open(&[crate::config::Pool { directories, ..pool(home) }])
}

#[test]
fn only_declared_content_that_goes_in_time_is_thrown_away() {
    let home = tempfile::tempdir().unwrap();
    let pools = opened(home.path());
    for name in ["out/a", "scratch/b", "cache/c", "mine/d", "foreign", "stoker/own"] {
        fs::create_dir(home.path().join(name)).unwrap();
    }
    for name in ["out/a", "scratch/b", "stoker/own", "out/a"] {
        pools.discard(&home.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!home.path().join(name).exists(), "{name}");
    }
    for name in ["cache/c", "mine/d", "foreign", "out", "scratch", ".", "stoker", "stoker/trash", "out/../cache/c"] {
        assert_eq!(pools.discard(&home.path().join(name)).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
        assert!(home.path().join(name).exists(), "{name}");
    }
    let others = tempfile::tempdir().unwrap();
    assert_eq!(pools.discard(others.path()).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_directory_is_carried_once_and_nothing_else_is() {
    let home = tempfile::tempdir().unwrap();
    let pools = opened(home.path());
    let own = home.path().join("stoker");
    let from = own.join("workspaces/w/out");
    fs::create_dir_all(from.join("deep")).unwrap();
    fs::write(from.join("deep/file"), "content").unwrap();
    assert!(pools.holds_anything(&from).unwrap());
    assert!(pools.carry(&from, "outputs", "w").unwrap());
    assert_eq!(fs::read_to_string(own.join("outputs/w/deep/file")).unwrap(), "content");
    assert_eq!(mode(&own.join("outputs")), 0o700, "others' outputs are nobody's business");
    assert!(!pools.carry(&from, "outputs", "w").unwrap(), "it is not there any more");
    assert!(!pools.holds_anything(&own.join("workspaces/w")).unwrap(), "nothing is left");

    fs::create_dir(&from).unwrap();
    assert_eq!(pools.carry(&from, "outputs", "w").unwrap_err().kind(), ErrorKind::AlreadyExists);
    fs::remove_dir(&from).unwrap();
    for make in [&(|| symlink("/etc", &from).unwrap()) as &dyn Fn(), &|| fs::write(&from, "a file").unwrap(), &|| {
        nix::unistd::mkfifo(&from, Mode::S_IRWXU).unwrap()
    }] {
        make();
        assert!(!pools.holds_anything(&from).unwrap());
        assert!(!pools.carry(&from, "outputs", "other").unwrap());
        fs::remove_file(&from).unwrap();
    }
    fs::create_dir(home.path().join("foreign")).unwrap();
    let foreign = pools.carry(&home.path().join("foreign"), "outputs", "other").unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::InvalidInput);
    assert!(!own.join("outputs/other").exists());
}

#[test]
fn nothing_outside_of_a_directory_can_be_opened() {
    let home = tempfile::tempdir().unwrap();
    let pools = opened(home.path());
    let base = home.path().join("stoker/outputs/o");
    fs::create_dir_all(base.join("deep")).unwrap();
    fs::write(base.join("deep/file"), "content").unwrap();
    fs::write(home.path().join("stoker/secret"), "secret").unwrap();
    symlink("/etc/passwd", base.join("link")).unwrap();
    symlink("/etc", base.join("etc")).unwrap();
    symlink("..", base.join("up")).unwrap();
    symlink("deep", base.join("inside")).unwrap();
    nix::unistd::mkfifo(&base.join("pipe"), Mode::S_IRWXU).unwrap();
    let open = |within: &str| pools.open_beneath(&base, Path::new(within));
    let Opened::File(mut file, 7) = open("deep/file").unwrap() else { panic!("a file of 7 bytes") };
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");
    for directory in ["", ".", "deep"] {
        assert!(matches!(open(directory).unwrap(), Opened::Directory(_)), "{directory}");
    }
    assert!(matches!(open("link").unwrap(), Opened::Link(to) if to == "/etc/passwd"), "a link is itself");
    assert!(matches!(open("pipe").unwrap(), Opened::Other), "and it did not wait for a writer");
    for way_out in ["../secret", "..", "/etc/passwd", "etc/passwd", "up/secret", "deep/../../secret", "inside/file"] {
        let refused = open(way_out);
        assert!(refused.is_err(), "{way_out}: {refused:?}");
    }
    assert_eq!(open("missing").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(open("deep/file/more").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_tree_is_measured_within_bounds() {
    let home = tempfile::tempdir().unwrap();
    let pools = opened(home.path());
    let tree = home.path().join("out/tree");
    fs::create_dir_all(tree.join("deep")).unwrap();
    fs::write(tree.join("one"), vec![7; 5000]).unwrap();
    fs::write(tree.join("deep/two"), vec![7; 3]).unwrap();
    symlink("/", tree.join("link")).unwrap();
    let measured = pools.measure_tree(&tree, 100).unwrap();
    assert_eq!((measured.files, measured.bytes, measured.partial), (3, 5003, false));
    assert_eq!(measured.entries, 5, "directories cost as much as files");
    assert!(measured.disk_bytes >= 5003);
    assert!(pools.measure_tree(&tree, 2).unwrap().partial);
    assert_eq!(pools.measure_tree(&tree.join("link"), 100).unwrap().files, 1, "the link itself");
    assert_eq!(pools.measure_tree(&tree.join("gone"), 100).unwrap_err().kind(), ErrorKind::NotFound);

    let mut deep = tree.join("deep");
    for _ in 0..200 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    let measured = pools.measure_tree(&tree, 10_000).unwrap();
    assert!(measured.partial && measured.files == 3, "{measured:?}");
}

#[test]
fn another_thing_of_the_same_name_is_another_thing() {
    let home = tempfile::tempdir().unwrap();
    let pools = opened(home.path());
    let out = home.path().join("out");
    let one = || pools.names(&out, 10).unwrap().0.into_iter().find(|found| found.name == "x").unwrap();
    fs::create_dir(out.join("x")).unwrap();
    let first = one();
    assert!(first.is_directory);
    assert_eq!(one(), first, "it stays what it is");
    fs::write(out.join("x/more"), "").unwrap();
    assert_eq!(one().identity, first.identity, "whatever comes into it");
    fs::rename(out.join("x"), out.join("y")).unwrap();
    fs::create_dir(out.join("x")).unwrap();
    assert_ne!(one().identity, first.identity);
    let (some, all) = pools.names(&out, 1).unwrap();
    assert_eq!((some.len(), all), (1, false), "there are two");
    assert_eq!(pools.names(&out.join("gone"), 1).unwrap(), (Vec::new(), true));
    let own = home.path().join("stoker/x");
    fs::rename(out.join("y"), &own).unwrap();
    assert!(!pools.discard_only(&own, one().identity).unwrap() && own.exists());
    assert!(pools.discard_only(&own, first.identity).unwrap() && !own.exists());
    assert!(!pools.discard_only(&own, first.identity).unwrap(), "it is not there");
}
