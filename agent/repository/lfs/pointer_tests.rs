#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::repository::git::Git;
use crate::repository::lfs::attributes::filtered;
use crate::repository::tests::world::git_in;

const OID: &str = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";

fn text(oid: &str, size: &str) -> String {
    format!("{VERSION}\noid sha256:{oid}\nsize {size}\n")
}

#[test]
fn a_pointer_is_what_git_lfs_writes() {
    let pointer = Pointer::parse(text(OID, "12345").as_bytes()).unwrap();
    assert_eq!((pointer.oid.to_string().as_str(), pointer.bytes), (OID, 12345));
    assert_eq!(pointer.oid.path(), Path::new("4d").join("7a").join(OID));
    let good = text(OID, "12345");
    for bad in [
        String::new(),
        good.replace("v1", "v2"),
        good.replace("sha256", "sha512"),
        good.trim_end().to_owned(),
        good.replace('\n', "\r\n"),
        format!("{good}x 1\n"),
        good.replace("oid", "ext-0-x sha256:1\noid"),
        text(&OID.to_uppercase(), "1"),
        text(&OID[1..], "1"),
        text(&format!("{OID}0"), "1"),
        text("../../../../../../../../../../../../../../../../../../../../../etc/p", "1"),
        text(OID, ""),
        text(OID, "-1"),
        text(OID, "+1"),
        text(OID, "1e3"),
        text(OID, "18446744073709551616"),
        text(OID, "9223372036854775808"),
        format!("{good}{}", "\n".repeat(2000)),
    ] {
        assert_eq!(Pointer::parse(bad.as_bytes()), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
        let _ = Pointer::parse(&bytes);
    }

    #[test]
    fn near_pointers_are_no_panic(at in 0..130_usize, byte in any::<u8>()) {
        let mut bytes = text(OID, "12345").into_bytes();
        if let Some(there) = bytes.get_mut(at) {
            *there = byte;
        }
        let _ = Pointer::parse(&bytes);
    }
}

/// What git itself says of the attribute, file by file, is the judge.
#[tokio::test]
async fn attributes_mean_what_they_mean_to_git() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    git_in(at, ["init", "-q", "-b", "main"]);
    let pointer = text(OID, "7");
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for path in [
        "a.bin",
        "b.txt",
        "deep/a.bin",
        "deep/er/a.bin",
        "deep/er/not.bin",
        "other/x.dat",
        "other/y.dat",
        "macro/z.img",
        "with space/a.bin",
        "quoted file.raw",
        "negated/a.bin",
        "A.BIN",
        "neg.bin.txt",
        "caf\u{e9}.bin",
    ] {
        files.insert(path, pointer.clone());
    }
    files.insert("plain.bin", "no pointer\n".to_owned());
    files.insert(
        ".gitattributes",
        "[attr]large filter=lfs diff=lfs -text\n*.bin filter=lfs\n*.img large\n\"quoted file.raw\" filter=lfs\n\
         negated/** -filter\n/other/*.dat filter=other\n"
            .to_owned(),
    );
    files.insert("deep/er/.gitattributes", "not.bin !filter\n".to_owned());
    files.insert("other/.gitattributes", "x.dat filter=lfs\n".to_owned());
    for (path, content) in &files {
        let file = at.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }
    git_in(at, ["add", "."]);
    git_in(at, ["commit", "-q", "-m", "x"]);
    let commit = git_in(at, ["rev-parse", "HEAD"]).parse().unwrap();
    let output =
        Command::new("git").arg("-C").arg(at).args(["check-attr", "-z", "filter", "--"]).args(files.keys()).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let said: Vec<&str> = output.split('\0').collect();
    let is_pointer = |path: &str| Pointer::parse(files[path].as_bytes()).is_some();
    let expected: Vec<&str> =
        said.chunks_exact(3).filter(|said| said[2] == "lfs" && is_pointer(said[0])).map(|said| said[0]).collect();
    assert!(expected.len() >= 7, "{expected:?}");
    // A bare repository, as snapshots are.
    git_in(at, ["clone", "-q", "--bare", ".", ".git/bare.git"]);
    let bare = at.join(".git/bare.git");
    let scan = scan(&bare, commit).unwrap();
    assert!(!scan.configured && scan.files.len() == files.len() - 4);
    let (git, index) = (Git::find().await.unwrap(), at.join("index"));
    let filtered = filtered(&git, &bare, index.clone(), scan).await.unwrap();
    assert!(!index.exists());
    let mut found: Vec<_> = filtered.iter().map(|file| std::str::from_utf8(&file.path).unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, expected);
}
