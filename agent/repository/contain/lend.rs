//! A store belongs to git's user while a child of it works there, and to nobody but the agent in between.
//!
//! What a snapshot publishes are hard links to a store's files, and a hard link shares its inode: an owner could rewrite
//! what builds read. So when the child is gone, its new files go over to the agent's user, read-only. The store's top
//! directory closes at the same time, which keeps later children of the same user, who work on other stores, out of it.
//!
//! Everything goes by descriptors and follows no symlink: whoever may write in a store could place one.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, fstat, openat, statat, unlinkat,
};

use crate::config::git::GitUser;

/// The top of a store while it is lent, and directories in it.
const LENT: Mode = Mode::from_raw_mode(0o755);
/// The top of a store in between.
const CLOSED: Mode = Mode::from_raw_mode(0o700);
/// Objects never change.
const OBJECT: Mode = Mode::from_raw_mode(0o444);
/// `packed-refs`, `config`, `HEAD`.
const TOP_FILE: Mode = Mode::from_raw_mode(0o644);
/// How deep directories may lie in each other. Git leaves no deeper ones: refs are packed after each fetch.
const DEPTH_MAX: usize = 64;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// `NONBLOCK`: a pipe in a file's place does not hold us.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Gives the store at `dir` to git's user, and opens the way to it through the agent's own directories.
pub(in crate::repository) fn lend(dir: &Path, user: GitUser) -> io::Result<()> {
    for above in dir.ancestors().skip(1).take(2) {
        open_way(above)?;
    }
    let top = rustix::fs::open(dir, DIRECTORY, Mode::empty())?;
    // What was lent before is git's inside, but for the objects; only one that the agent filled itself is not.
    let filled_by_agent = match statat(&top, c"refs", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(refs) => refs.st_uid != user.uid,
        Err(rustix::io::Errno::NOENT) => true,
        Err(error) => return Err(error.into()),
    };
    each(top.as_fd(), &mut |parent, name, stat| match filled_by_agent || name == c"objects" {
        true => give(parent, name, stat, user, 0),
        false => Ok(()),
    })?;
    own(&top, user.uid, user.gid, LENT)
}

/// Before the agent's own user works in the store at `dir`: what git's user has is not lent any more, and the next loan
/// looks at all of it. Nothing to do where the agent is not root, for then nothing was ever lent.
pub(in crate::repository) fn keep(dir: &Path) -> io::Result<()> {
    let own_uid = rustix::process::geteuid();
    if !own_uid.is_root() {
        return Ok(());
    }
    for part in [dir.to_owned(), dir.join("refs")] {
        match rustix::fs::open(&part, DIRECTORY, Mode::empty()) {
            Ok(opened) if fstat(&opened)?.st_uid != own_uid.as_raw() => fchown(&opened, Some(own_uid), None)?,
            _ => {}
        }
    }
    Ok(())
}

/// Lets others pass through a directory of the agent's own.
pub(in crate::repository) fn open_way(dir: &Path) -> io::Result<()> {
    let opened = rustix::fs::open(dir, DIRECTORY, Mode::empty())?;
    let mode = Mode::from_raw_mode(fstat(&opened)?.st_mode & 0o7777);
    let open = mode | Mode::XGRP | Mode::XOTH;
    if open != mode { Ok(fchmod(&opened, open)?) } else { Ok(()) }
}

/// Whether the store at `dir` was lent, and not taken back: who had it was killed.
pub(in crate::repository) fn is_lent(dir: &Path) -> io::Result<bool> {
    let own_uid = rustix::process::geteuid();
    let top = rustix::fs::open(dir, DIRECTORY, Mode::empty())?;
    Ok(own_uid.is_root() && fstat(&top)?.st_uid != own_uid.as_raw())
}

/// Closes the store at `dir`, and takes what is published or read from it, with the directories that it lies in: whoever
/// still holds one of them open changes nothing there. What is no plain file there is removed.
pub(in crate::repository) fn take_back(dir: &Path) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let top = rustix::fs::open(dir, DIRECTORY, Mode::empty())?;
    own(&top, uid, gid, CLOSED)?;
    each(top.as_fd(), &mut |parent, name, stat| match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if name == c"objects" => take_object(parent, name, stat, uid, gid, 0),
        FileType::Directory => Ok(()),
        _ => take(parent, name, stat, uid, gid, TOP_FILE),
    })
}

fn take_object(parent: BorrowedFd<'_>, name: &CStr, stat: &Stat, uid: u32, gid: u32, depth: usize) -> io::Result<()> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return take(parent, name, stat, uid, gid, OBJECT);
    }
    if depth >= DEPTH_MAX {
        return Err(too_deep(name));
    }
    let dir = openat(parent, name, DIRECTORY, Mode::empty())?;
    // Before what lies in it is looked at: from then on nobody else exchanges that.
    own(&dir, uid, gid, LENT)?;
    each(dir.as_fd(), &mut |parent, name, stat| take_object(parent, name, stat, uid, gid, depth + 1))
}

/// Takes one file; nothing is done for one that was taken before.
fn take(parent: BorrowedFd<'_>, name: &CStr, stat: &Stat, uid: u32, gid: u32, mode: Mode) -> io::Result<()> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        tracing::error!(name = %shown(name), "git left what is no plain file in a store: removed");
        return Ok(unlinkat(parent, name, AtFlags::empty())?);
    }
    if stat.st_uid == uid && stat.st_mode & 0o7777 == mode.as_raw_mode() {
        return Ok(());
    }
    let file = openat(parent, name, FILE, Mode::empty())?;
    // What was looked at may have been exchanged since.
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other(format!("{} changes while it is taken over", shown(name))));
    }
    own(&file, uid, gid, mode)
}

/// Gives everything that git changes in place: directories, and files that are no objects.
fn give(parent: BorrowedFd<'_>, name: &CStr, stat: &Stat, user: GitUser, depth: usize) -> io::Result<()> {
    if depth >= DEPTH_MAX {
        return Err(too_deep(name));
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(());
    }
    let dir = openat(parent, name, DIRECTORY, Mode::empty())?;
    each(dir.as_fd(), &mut |parent, name, stat| give(parent, name, stat, user, depth + 1))?;
    own(&dir, user.uid, user.gid, LENT)
}

/// Owner before mode: a change of owner takes set-id bits away.
fn own(file: &OwnedFd, uid: u32, gid: u32, mode: Mode) -> io::Result<()> {
    fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(fchmod(file, mode)?)
}

/// Calls for each entry of a directory. One that is gone meanwhile (a lock) is passed over.
fn each(dir: BorrowedFd<'_>, call: &mut dyn FnMut(BorrowedFd<'_>, &CStr, &Stat) -> io::Result<()>) -> io::Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let done = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => call(dir.as_fd(), name, &stat),
            Err(error) => Err(error.into()),
        };
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn too_deep(name: &CStr) -> io::Error {
    io::Error::other(format!("directories lie too deep in a store: {}", shown(name)))
}

fn shown(name: &CStr) -> std::path::Display<'_> {
    Path::new(OsStr::from_bytes(name.to_bytes())).display()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    const GIT: GitUser = GitUser { uid: 65532, gid: 65532 };

    fn owner(path: &Path) -> (u32, u32) {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.uid(), meta.mode() & 0o7777)
    }

    #[test]
    fn a_store_is_gits_while_it_is_lent_and_the_agents_in_between() {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root, and CI skips nothing");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        let store = folder.join("store.git");
        fs::create_dir_all(store.join("objects/pack")).unwrap();
        fs::create_dir_all(store.join("refs/namespaces/x")).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        let (pack, packed) = (store.join("objects/pack/pack-1.pack"), store.join("packed-refs"));
        fs::write(&pack, "pack").unwrap();
        fs::write(&packed, "refs").unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "s").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();

        lend(&store, GIT).unwrap();
        for part in ["", "objects", "objects/pack", "refs", "refs/namespaces/x"] {
            assert_eq!(owner(&store.join(part)), (65532, 0o755), "{part}");
        }
        assert_eq!(owner(&folder), (0, 0o711));
        // As a child leaves it, and one that means harm.
        std::os::unix::fs::chown(&pack, Some(65532), Some(65532)).unwrap();
        fs::set_permissions(&pack, fs::Permissions::from_mode(0o4666)).unwrap();
        symlink(&secret, store.join("objects/pack/pack-2.pack")).unwrap();
        symlink(&secret, store.join("HEAD")).unwrap();
        symlink(dir.path(), store.join("objects/info")).unwrap();
        nix::unistd::mkfifo(&store.join("objects/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();

        take_back(&store).unwrap();
        assert_eq!(owner(&store), (0, 0o700));
        assert_eq!(owner(&pack), (0, 0o444));
        assert_eq!(owner(&packed), (0, 0o644));
        for part in ["objects", "objects/pack"] {
            assert_eq!(owner(&store.join(part)), (0, 0o755), "{part}: nobody adds to it by a descriptor that is left");
        }
        assert_eq!(owner(&store.join("refs/namespaces/x")), (65532, 0o755), "cheap the next time");
        assert!(!is_lent(&store).unwrap());
        for gone in ["objects/pack/pack-2.pack", "HEAD", "objects/info", "objects/pipe"] {
            assert!(fs::symlink_metadata(store.join(gone)).is_err(), "{gone}");
        }
        assert_eq!(owner(&secret), (0, 0o600));
        lend(&store, GIT).unwrap();
        assert!(is_lent(&store).unwrap());
        for part in ["", "objects", "objects/pack"] {
            assert_eq!(owner(&store.join(part)), (65532, 0o755), "{part}");
        }
        assert_eq!(owner(&pack), (0, 0o444));
    }
}
