//! File times in a work tree and in git's index of it, changed together.
//!
//! A kept checkout has one time for all its files, so that they look the same to every build and lie well before its index:
//! of files that are as young as the index git reads the content to know whether they changed. The index is changed in
//! place, for libgit2 would lose its record of trees, which makes `git status` and `git commit` fast. The format is that of
//! gitformat-index(5), version 2 and 3.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Timespec, Timestamps, utimensat};
use sha1::{Digest as _, Sha1};

use super::disk::in_parallel;

const HEADER_BYTES: usize = 12;
/// An entry up to its flags.
const FIXED_BYTES: usize = 62;
const MTIME_AT: usize = 8;
const MODE_AT: usize = 24;
const SIZE_AT: usize = 36;
const FLAGS_AT: usize = 60;
const EXTENDED: u16 = 0x4000;
const SUM_BYTES: usize = 20;
const KIND: u32 = 0o170_000;
const GITLINK: u32 = 0o160_000;

/// One entry, where it lies in the file.
struct Entry<'a> {
    at: usize,
    mode: u32,
    size: u32,
    mtime: u32,
    path: &'a Path,
}

/// Gives every file of the index this time, in whole seconds, but those that have the time `keep` already. The bytes of those
/// that it was given to.
pub(super) fn stamp(tree: &Path, index: &Path, keep: Option<u32>, time: u32) -> io::Result<u64> {
    let mut bytes = fs::read(index)?;
    let entries = entries(&bytes)?;
    let mut held = 0_u64;
    let mut fresh: Vec<(usize, &Path)> = Vec::new();
    for entry in &entries {
        if entry.mode & KIND == GITLINK || Some(entry.mtime) == keep {
            continue;
        }
        held = held.saturating_add(entry.size.into());
        fresh.push((entry.at, entry.path));
    }
    let directory = File::open(tree)?;
    let moment = Timespec { tv_sec: time.into(), tv_nsec: 0 };
    let times = Timestamps { last_access: moment, last_modification: moment };
    in_parallel(&fresh, |(_, path)| {
        utimensat(&directory, *path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| named(path, &error.into()))
    })?;
    let places: Vec<usize> = fresh.into_iter().map(|(at, _)| at).collect();
    for at in places {
        put(&mut bytes, at, [time.to_be_bytes(), [0; 4]])?;
    }
    write(index, bytes)?;
    Ok(held)
}

/// Gives files of a work tree, and their entries in its index, the time that `time` tells in nanoseconds since 1970; nothing
/// leaves a file as it is.
pub(super) fn touch(tree: &Path, index: &Path, time: impl Fn(&Path) -> Option<u64> + Sync) -> io::Result<()> {
    const SECOND: u64 = 1_000_000_000;
    let mut bytes = fs::read(index)?;
    let entries = entries(&bytes)?;
    let files = entries.iter().filter(|entry| entry.mode & KIND != GITLINK);
    let changed: Vec<(usize, &Path, u64)> =
        files.filter_map(|entry| Some((entry.at, entry.path, time(entry.path)?))).collect();
    let directory = File::open(tree)?;
    in_parallel(&changed, |(_, path, time)| {
        let part = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let moment = Timespec { tv_sec: part(time / SECOND), tv_nsec: part(time % SECOND) };
        let times = Timestamps { last_access: moment, last_modification: moment };
        utimensat(&directory, *path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| named(path, &error.into()))
    })?;
    let places: Vec<(usize, u64)> = changed.into_iter().map(|(at, _, time)| (at, time)).collect();
    for (at, time) in places {
        let part = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes();
        put(&mut bytes, at, [part(time / SECOND), part(time % SECOND)])?;
    }
    write(index, bytes)
}

/// Seconds, then nanoseconds.
fn put(bytes: &mut [u8], at: usize, time: [[u8; 4]; 2]) -> io::Result<()> {
    let from = at.saturating_add(MTIME_AT);
    let place = bytes.get_mut(from..from.saturating_add(8)).ok_or_else(damaged)?;
    place.copy_from_slice(time.as_flattened());
    Ok(())
}

/// With the sum over its content at its end.
fn write(index: &Path, mut bytes: Vec<u8>) -> io::Result<()> {
    let content = bytes.len().saturating_sub(SUM_BYTES);
    let (content, sum) = bytes.split_at_mut(content);
    sum.copy_from_slice(&Sha1::digest(&*content));
    fs::write(index, &bytes)
}

/// How many entries an index has, and their bytes on the disk.
pub(super) fn measure(index: &Path) -> io::Result<(u64, u64)> {
    let bytes = fs::read(index)?;
    let entries = entries(&bytes)?;
    let held = entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size.into()));
    Ok((u64::try_from(entries.len()).unwrap_or(u64::MAX), held))
}

fn entries(bytes: &[u8]) -> io::Result<Vec<Entry<'_>>> {
    let version = number(bytes, 4)?;
    if bytes.get(..4) != Some(b"DIRC") || !matches!(version, 2 | 3) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no index of version 2 or 3, but {version}")));
    }
    let count = number(bytes, 8)?;
    let mut entries = Vec::new();
    let mut at = HEADER_BYTES;
    for _ in 0..count {
        let field = |offset: usize| number(bytes, at.saturating_add(offset));
        let flags_at = at.saturating_add(FLAGS_AT);
        let flags = bytes.get(flags_at..flags_at.saturating_add(2)).ok_or_else(damaged)?;
        let extended = u16::from_be_bytes([flags[0], flags[1]]) & EXTENDED != 0;
        let name_at = at.saturating_add(FIXED_BYTES).saturating_add(if extended { 2 } else { 0 });
        let rest = bytes.get(name_at..).ok_or_else(damaged)?;
        let length = rest.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
        let path = Path::new(OsStr::from_bytes(rest.get(..length).ok_or_else(damaged)?));
        entries.push(Entry { at, mode: field(MODE_AT)?, size: field(SIZE_AT)?, mtime: field(MTIME_AT)?, path });
        // One to eight zeros, so that the entry's length is a multiple of eight.
        let used = name_at.saturating_add(length).saturating_sub(at);
        at = at.saturating_add((used / 8).saturating_add(1).saturating_mul(8));
    }
    Ok(entries)
}

fn number(bytes: &[u8], at: usize) -> io::Result<u32> {
    let field = bytes.get(at..at.saturating_add(4)).and_then(|field| field.try_into().ok());
    field.map(u32::from_be_bytes).ok_or_else(damaged)
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the index ends early")
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt as _;
    use std::process::Command;

    use super::*;

    fn git(place: &Path, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command.current_dir(place).args(["-c", "user.name=x", "-c", "user.email=x@y"]).args(args);
        let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn files_and_index_get_one_time_and_git_reads_nothing_again() {
        let place = tempfile::tempdir().unwrap();
        git(place.path(), &["init", "-q", "."]);
        for (name, text) in [("a", "1"), ("b-longer-name", "22"), ("c", "333")] {
            fs::write(place.path().join(name), text).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", place.path().join("link")).unwrap();
        git(place.path(), &["add", "-A"]);
        git(place.path(), &["commit", "-qm", "x"]);
        let index = place.path().join(".git/index");
        assert_eq!(stamp(place.path(), &index, None, 1_000_000_000).unwrap(), 13);
        assert_eq!(measure(&index).unwrap(), (4, 13));
        assert_eq!(fs::symlink_metadata(place.path().join("link")).unwrap().mtime(), 1_000_000_000);
        for config in ["core.checkStat=minimal", "core.trustctime=false"] {
            let (key, value) = config.split_once('=').unwrap();
            git(place.path(), &["config", key, value]);
        }
        // A file whose time and length are the index's is not read: its other content is not seen.
        fs::write(place.path().join("c"), "444").unwrap();
        let status = |place: &Path| git(place, &["status", "--porcelain"]);
        assert_eq!(status(place.path()), " M c\n", "it has another time");
        stamp(place.path(), &index, None, 1_000_000_000).unwrap();
        assert_eq!(status(place.path()), "");
        git(place.path(), &["fsck"]);
        // Those that have the time to keep are left.
        assert_eq!(stamp(place.path(), &index, Some(1_000_000_000), 1_100_000_000).unwrap(), 0);
    }

    #[test]
    fn a_damaged_index_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let index = place.path().join("index");
        for bytes in [&b""[..], b"DIRC", b"DIRC\0\0\0\x04\0\0\0\0", b"DIRC\0\0\0\x02\0\0\0\x01"] {
            fs::write(&index, bytes).unwrap();
            let stamped = stamp(place.path(), &index, None, 1);
            assert_eq!(stamped.unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
