//! A copy of a checkout that shares its blocks until one side is written to.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, fchown, futimens, utimensat};
use rustix::fs::{Gid, Uid};

use super::disk::{directory, in_parallel};

/// What layers show together.
#[derive(Debug, Default)]
struct Merged {
    /// Below the top, parents first.
    directories: Vec<PathBuf>,
    /// Files and links: where one lies, and where it is seen.
    files: Vec<(PathBuf, PathBuf)>,
}

/// Copies what `layers`, from the top down, show together into an empty directory; all of it belongs to `owner`.
pub(super) fn copy(layers: &[PathBuf], to: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let merged = merge(layers)?;
    for path in &merged.directories {
        let path = to.join(path);
        directory(&path, 0o755)?;
        super::disk::give(&path, owner)?;
    }
    in_parallel(&merged.files, |(from, path)| {
        copy_one(from, &to.join(path), owner)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    })
}

fn copy_one(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    let moment = Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    let times = Timestamps { last_access: moment, last_modification: moment };
    if meta.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        if let Some((user, group)) = owner {
            std::os::unix::fs::lchown(to, Some(user), Some(group))?;
        }
        utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        return Ok(());
    }
    let target = OpenOptions::new().write(true).create_new(true).mode(meta.permissions().mode() & 0o777).open(to)?;
    if meta.len() > 0 {
        rustix::fs::ioctl_ficlone(&target, &File::open(from)?)?;
    }
    if let Some((user, group)) = owner {
        fchown(&target, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    // Last, for each of the others is a change.
    futimens(&target, &times)?;
    Ok(())
}

/// One name in a directory, as the layers so far show it.
enum Seen {
    /// Nothing below it is looked at.
    Done,
    /// A directory, in these.
    In(Vec<PathBuf>),
    /// A directory that hides what further layers have.
    Closed(Vec<PathBuf>),
}

fn merge(layers: &[PathBuf]) -> io::Result<Merged> {
    let mut merged = Merged::default();
    let mut pending = vec![(PathBuf::new(), layers.to_vec())];
    while let Some((path, parts)) = pending.pop() {
        let mut names: BTreeMap<OsString, Seen> = BTreeMap::new();
        for part in &parts {
            for entry in fs::read_dir(part)? {
                let entry = entry?;
                let (kind, name) = (entry.file_type()?, entry.file_name());
                match (names.remove(&name), kind.is_dir()) {
                    (None, true) => names.insert(name, Seen::In(vec![entry.path()])),
                    (None, false) => {
                        // A whiteout is a character device 0/0; a checkout has no other.
                        if !kind.is_char_device() {
                            merged.files.push((entry.path(), path.join(&name)));
                        }
                        names.insert(name, Seen::Done)
                    }
                    (Some(Seen::In(mut parts)), true) => {
                        parts.push(entry.path());
                        names.insert(name, Seen::In(parts))
                    }
                    (Some(Seen::In(parts)), false) => names.insert(name, Seen::Closed(parts)),
                    (Some(seen), _) => names.insert(name, seen),
                };
            }
        }
        for (name, seen) in names {
            if let Seen::In(parts) | Seen::Closed(parts) = seen {
                let below = path.join(name);
                merged.directories.push(below.clone());
                pending.push((below, parts));
            }
        }
    }
    // A parent is shorter than what is in it.
    merged.directories.sort_by_key(|path| path.components().count());
    Ok(merged)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rustix::fs::{FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn layers_are_seen_as_an_overlay_would_show_them() {
        let place = tempfile::tempdir().unwrap();
        let (upper, lower) = (place.path().join("upper"), place.path().join("lower"));
        for path in ["lower/both/deep", "lower/gone/deep", "lower/file-now", "upper/both", "upper/was-file"] {
            fs::create_dir_all(place.path().join(path)).unwrap();
        }
        let files = ["lower/both/a", "lower/both/deep/b", "lower/gone/deep/c", "lower/file-now/d", "lower/was-file"];
        for path in files.into_iter().chain(["upper/both/a", "upper/file-now", "upper/was-file/e"]) {
            fs::write(place.path().join(path), path).unwrap();
        }
        for path in ["upper/gone", "upper/both/deep"] {
            mknodat(CWD, place.path().join(path), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        }
        let merged = merge(&[upper.clone(), lower]).unwrap();
        let mut seen: Vec<&Path> = merged.files.iter().map(|(_, path)| path.as_path()).collect();
        seen.sort();
        assert_eq!(seen, ["both/a", "file-now", "was-file/e"].map(Path::new));
        assert!(merged.files.iter().all(|(from, _)| from.starts_with(&upper)), "{merged:?}");
        assert_eq!(merged.directories, ["both", "was-file"].map(PathBuf::from));
    }
}
