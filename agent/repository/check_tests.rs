#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::repository::tests::world::{Upstream, git_in};

/// A bare repository with two packs.
fn packed() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Upstream::new(dir.path().join("a"));
    git_in(&upstream.path, ["repack", "-dq"]);
    upstream.commit("third");
    git_in(&upstream.path, ["repack", "-dq"]);
    let objects = upstream.path.join(".git/objects");
    assert_eq!(packs(&objects).unwrap(), []);
    (dir, objects)
}

fn file(objects: &Path, ending: &str) -> std::path::PathBuf {
    let all = names(&objects.join("pack")).unwrap();
    let mut found: Vec<_> = all.into_iter().filter(|name| name.ends_with(ending)).collect();
    found.sort();
    objects.join("pack").join(&found[0])
}

/// Files of git are read-only: what is damaged is another file in their place.
fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[track_caller]
fn one(objects: &Path, word: &str) {
    let found = packs(objects).unwrap();
    assert!(found.len() == 1 && found[0].to_string().contains(word), "{word}: {found:?}");
}

#[test]
fn a_pack_that_is_cut_off_is_seen() {
    let (_dir, objects) = packed();
    change(&file(&objects, ".pack"), |bytes| bytes.truncate(bytes.len() - 7));
    one(&objects, "cut off");
    change(&file(&objects, ".pack"), |bytes| bytes.truncate(9));
    one(&objects, "is no pack");
}

#[test]
fn a_pack_and_an_index_that_lack_each_other_are_seen() {
    let (_dir, objects) = packed();
    let (pack, index) = (file(&objects, ".pack"), file(&objects, ".idx"));
    let kept = fs::read(&index).unwrap();
    fs::remove_file(&index).unwrap();
    one(&objects, "has no index");
    fs::write(&index, kept).unwrap();
    fs::remove_file(&pack).unwrap();
    one(&objects, "has no pack");
}

#[test]
fn an_index_of_another_length_or_pack_is_seen() {
    let (_dir, objects) = packed();
    let (first, whole) = (file(&objects, ".idx"), fs::read(file(&objects, ".idx")).unwrap());
    change(&first, |bytes| bytes.truncate(bytes.len() - 1));
    one(&objects, "length");
    let other = names(&objects.join("pack")).unwrap().into_iter().filter(|name| name.ends_with(".idx")).max().unwrap();
    let other = fs::read(objects.join("pack").join(other)).unwrap();
    change(&first, |bytes| *bytes = other);
    one(&objects, "cut off or changed");
    change(&first, |bytes| *bytes = whole);
    assert_eq!(packs(&objects).unwrap(), []);
}

#[test]
fn a_multi_pack_index_of_a_pack_that_is_gone_is_seen() {
    let (_dir, objects) = packed();
    git_in(&objects.join(".."), ["multi-pack-index", "write"]);
    assert_eq!(packs(&objects).unwrap(), []);
    for ending in [".pack", ".idx"] {
        fs::remove_file(file(&objects, ending)).unwrap();
    }
    one(&objects, "multi-pack-index");
    drop_derived(&objects).unwrap();
    assert_eq!(packs(&objects).unwrap(), []);
}
