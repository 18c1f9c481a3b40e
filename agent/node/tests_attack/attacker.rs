//! One who attacks: a process of its own that works in trees while they are thrown away and removed.
//!
//! It holds directories of the trees open, so that it goes on in the trash, where it could not come by path.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, FileType, IFlags, Mode, OFlags, RenameFlags, chmodat, fchmod, ioctl_getflags, ioctl_setflags, linkat,
    mkdirat, mknodat, open, openat, openat2, renameat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use super::dice::Dice;
use crate::node::guard::BENEATH;

/// As which files of builds are, and who attacks without root.
pub(super) const USER: u32 = 64_321;
/// So many directories are held open at once, and so many mounts.
const HELD_MAX: usize = 24;
const MOUNTS_MAX: usize = 8;
/// Between two deeds: two cores are shared with who is attacked.
const BETWEEN: Duration = Duration::from_micros(100);

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The build's user.
    User,
    /// Root, with the agent's own rights to everything, also to the trash.
    Root,
    /// Root that mounts, where the agent sees it.
    Mounter,
    /// Root that mounts where nobody else sees it.
    HiddenMounter,
}

pub(super) const ROLES: [Role; 4] = [Role::User, Role::Root, Role::Mounter, Role::HiddenMounter];

impl Role {
    pub(super) fn word(self) -> String {
        format!("{self:?}")
    }
}

/// Where all is.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    /// The pool.
    pub(super) pool: PathBuf,
    /// What must not be touched, on another filesystem.
    pub(super) elsewhere: PathBuf,
}

impl Ground {
    pub(super) fn own(&self) -> PathBuf {
        self.pool.join("stoker")
    }

    pub(super) fn workspaces(&self) -> PathBuf {
        self.own().join("workspaces")
    }

    /// What must not be touched, on the pool's own filesystem.
    pub(super) fn canary(&self) -> PathBuf {
        self.pool.join("canary")
    }

    /// The user's own, outside all trees.
    pub(super) fn free(&self) -> PathBuf {
        self.pool.join("free")
    }
}

/// What was done how often, with success.
pub(super) type Deeds = BTreeMap<&'static str, u64>;

pub(super) struct Attacker {
    role: Role,
    ground: Ground,
    dice: Dice,
    held: Vec<OwnedFd>,
    mounts: Vec<OwnedFd>,
    pub(super) deeds: Deeds,
}

type Deed = fn(&mut Attacker) -> Result<(), Errno>;

const BY_ANYBODY: [(&str, Deed); 11] = [
    ("enter", Attacker::enter),
    ("descend", Attacker::descend),
    ("make a directory", Attacker::make_directory),
    ("make files", Attacker::make_files),
    ("make a special file", Attacker::make_special),
    ("link out", Attacker::link_out),
    ("hardlink", Attacker::hardlink),
    ("swap", Attacker::swap),
    ("move", Attacker::move_directory),
    ("move out", Attacker::move_out),
    ("close", Attacker::change_mode),
];
const BY_ROOT: [(&str, Deed); 4] = [
    ("lock", Attacker::lock),
    ("swap a workspace", Attacker::swap_workspace),
    ("swap a parent", Attacker::swap_parent),
    ("swap in the trash", Attacker::swap_in_trash),
];
const BY_MOUNTER: [(&str, Deed); 2] = [("mount", Attacker::mount), ("unmount", Attacker::unmount)];

impl Attacker {
    pub(super) fn new(role: Role, ground: Ground, seed: u64) -> Self {
        let dice = Dice::new(seed);
        Self { role, ground, dice, held: Vec::new(), mounts: Vec::new(), deeds: Deeds::new() }
    }

    /// Attacks until it is told to stop; then everything that it renamed bears its name again, and nothing is mounted.
    pub(super) fn attack(&mut self, stop: impl Fn() -> bool) {
        let mut able: Vec<(&'static str, Deed)> = BY_ANYBODY.to_vec();
        match self.role {
            Role::User => {}
            Role::Root => able.extend(BY_ROOT),
            Role::Mounter | Role::HiddenMounter => able.extend(BY_MOUNTER.repeat(3)),
        }
        while !stop() {
            let (name, deed) = able[self.dice.at(able.len())];
            if deed(self).is_ok() {
                let count = self.deeds.entry(name).or_default();
                *count = count.saturating_add(1);
            }
            std::thread::sleep(BETWEEN);
        }
        while !self.mounts.is_empty() {
            let _ = self.unmount();
        }
        let never =
            able.iter().map(|(name, _)| *name).filter(|name| !self.deeds.contains_key(name)).collect::<Vec<_>>();
        assert!(never.is_empty(), "{:?} never did {never:?}: {:?}", self.role, self.deeds);
    }

    /// One of the directories that it has open.
    fn here(&mut self) -> Result<BorrowedFd<'_>, Errno> {
        let at = self.dice.at(self.held.len());
        self.held.get(at).map(|held| held.as_fd()).ok_or(Errno::NOENT)
    }

    fn here_and(&mut self, kind: char) -> Result<(BorrowedFd<'_>, String), Errno> {
        let name = self.dice.name(kind);
        Ok((self.here()?, name))
    }

    fn hold(&mut self, directory: OwnedFd) {
        if self.held.len() >= HELD_MAX {
            let at = self.dice.at(self.held.len());
            self.held.swap_remove(at);
        }
        self.held.push(directory);
    }

    /// Somewhere that must not be touched.
    fn target(&mut self) -> PathBuf {
        let all = [self.ground.canary(), self.ground.canary().join("plain"), self.ground.elsewhere.clone()];
        all[self.dice.at(all.len())].clone()
    }

    fn workspace(&mut self) -> Result<PathBuf, Errno> {
        let names: Vec<PathBuf> = std::fs::read_dir(self.ground.workspaces())
            .map_err(|_| Errno::NOENT)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('w')))
            .collect();
        names.get(self.dice.at(names.len())).cloned().ok_or(Errno::NOENT)
    }

    fn enter(&mut self) -> Result<(), Errno> {
        let workspace = self.workspace()?;
        let opened = below(&workspace, "src")?;
        self.hold(opened);
        Ok(())
    }

    fn descend(&mut self) -> Result<(), Errno> {
        let (here, name) = self.here_and('d')?;
        let opened = openat2(here, &name, DIRECTORY, Mode::empty(), BENEATH)?;
        self.hold(opened);
        Ok(())
    }

    fn make_directory(&mut self) -> Result<(), Errno> {
        let (here, name) = self.here_and('d')?;
        mkdirat(here, &name, Mode::RWXU)
    }

    fn make_files(&mut self) -> Result<(), Errno> {
        for _ in 0..1 + self.dice.at(20) {
            let (here, name) = self.here_and('f')?;
            openat(here, &name, OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW, Mode::RUSR | Mode::WUSR)?;
        }
        Ok(())
    }

    fn make_special(&mut self) -> Result<(), Errno> {
        let kind = if self.dice.one_in(2) { FileType::Fifo } else { FileType::Socket };
        let (here, name) = self.here_and('p')?;
        mknodat(here, &name, kind, Mode::RUSR, 0)
    }

    fn link_out(&mut self) -> Result<(), Errno> {
        let target = self.target();
        let (here, name) = self.here_and('s')?;
        symlinkat(target, here, &name)
    }

    fn hardlink(&mut self) -> Result<(), Errno> {
        let file = self.ground.canary().join("linked").join(self.dice.at(4).to_string());
        let (here, name) = self.here_and('l')?;
        linkat(CWD, file, here, &name, AtFlags::empty())
    }

    /// A directory and a link to what must not be touched take each other's place, and go back.
    fn swap(&mut self) -> Result<(), Errno> {
        let (link, target) = (self.dice.name('s'), self.target());
        let (here, directory) = self.here_and('d')?;
        let _ = symlinkat(target, here, &link);
        renameat_with(here, &directory, here, &link, RenameFlags::EXCHANGE)?;
        std::thread::yield_now();
        renameat_with(here, &directory, here, &link, RenameFlags::EXCHANGE)
    }

    fn move_directory(&mut self) -> Result<(), Errno> {
        let (from, to) = (self.dice.name('d'), self.dice.name('d'));
        let (a, b) = (self.dice.at(self.held.len()), self.dice.at(self.held.len()));
        let (Some(a), Some(b)) = (self.held.get(a), self.held.get(b)) else { return Err(Errno::NOENT) };
        renameat(a, &from, b, &to)
    }

    /// What is in a tree now is outside a moment later.
    fn move_out(&mut self) -> Result<(), Errno> {
        let to = self.ground.free().join(format!("{}-{}", self.role.word(), self.dice.at(64)));
        let (here, name) = self.here_and('d')?;
        match renameat_with(here, &name, CWD, &to, RenameFlags::EXCHANGE) {
            Err(Errno::NOENT) => renameat(here, &name, CWD, to),
            moved => moved,
        }
    }

    fn change_mode(&mut self) -> Result<(), Errno> {
        let mode = [Mode::empty(), Mode::RUSR, Mode::RWXU | Mode::RWXG | Mode::RWXO][self.dice.at(3)];
        let of_itself = self.dice.one_in(3);
        let (here, name) = self.here_and('d')?;
        match of_itself {
            true => fchmod(here, mode),
            // Not through links: `fchmodat` follows them.
            false => {
                let child = openat2(here, &name, PLACE, Mode::empty(), BENEATH)?;
                chmodat(CWD, format!("/proc/self/fd/{}", child.as_raw_fd()), mode, AtFlags::empty())
            }
        }
    }

    /// Makes something immutable, or open to additions only.
    fn lock(&mut self) -> Result<(), Errno> {
        let flag = if self.dice.one_in(2) { IFlags::IMMUTABLE } else { IFlags::APPEND };
        let kind = if self.dice.one_in(2) { 'd' } else { 'f' };
        let (here, name) = self.here_and(kind)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat2(here, &name, flags, Mode::empty(), BENEATH)?;
        let before = ioctl_getflags(&file)?;
        ioctl_setflags(&file, before | flag)
    }

    fn swap_workspace(&mut self) -> Result<(), Errno> {
        let workspace = self.workspace()?;
        self.replace_for_a_moment(&workspace)
    }

    fn swap_parent(&mut self) -> Result<(), Errno> {
        let parents = [self.ground.workspaces(), self.ground.own().join("trash"), self.ground.own()];
        let parent = parents[self.dice.at(parents.len())].clone();
        self.replace_for_a_moment(&parent)
    }

    fn swap_in_trash(&mut self) -> Result<(), Errno> {
        let trash = self.ground.own().join("trash");
        let all: Vec<_> = std::fs::read_dir(&trash).map_err(|_| Errno::NOENT)?.flatten().take(64).collect();
        let one = all.get(self.dice.at(all.len())).ok_or(Errno::NOENT)?;
        if let Ok(opened) = below(&trash, &one.file_name().to_string_lossy()) {
            self.hold(opened);
        }
        self.replace_for_a_moment(&one.path())
    }

    /// A link takes the place of a directory, which comes back whatever happens meanwhile.
    fn replace_for_a_moment(&mut self, path: &Path) -> Result<(), Errno> {
        let target = self.target();
        let link = self.ground.pool.join("link");
        let _ = std::fs::remove_file(&link);
        symlinkat(&target, CWD, &link)?;
        renameat_with(CWD, path, CWD, &link, RenameFlags::EXCHANGE)?;
        std::thread::yield_now();
        match renameat_with(CWD, path, CWD, &link, RenameFlags::EXCHANGE) {
            // The link was removed as what it took the place of.
            Err(Errno::NOENT) => renameat(CWD, &link, CWD, path)?,
            back => back?,
        }
        let _ = unlinkat(CWD, &link, AtFlags::empty());
        Ok(())
    }

    fn mount(&mut self) -> Result<(), Errno> {
        if self.mounts.len() >= MOUNTS_MAX {
            return Err(Errno::BUSY);
        }
        let target = self.target();
        let (here, name) = self.here_and('d')?;
        let point = openat2(here, &name, PLACE, Mode::empty(), BENEATH)?;
        let tree = open_tree(CWD, &target, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        let exactly = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, c"", &point, c"", exactly)?;
        self.mounts.push(tree);
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), Errno> {
        let at = self.dice.at(self.mounts.len());
        if at >= self.mounts.len() {
            return Err(Errno::NOENT);
        }
        let mount = self.mounts.swap_remove(at);
        unmount(format!("/proc/self/fd/{}", mount.as_raw_fd()), UnmountFlags::DETACH)
    }
}

/// A directory in one that is given by path, over no mount: an attacker that works in what it mounted itself would touch
/// what the agent must not.
fn below(place: &Path, name: &str) -> Result<OwnedFd, Errno> {
    let place = open(place, PLACE, Mode::empty())?;
    openat2(&place, name, DIRECTORY, Mode::empty(), BENEATH)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
