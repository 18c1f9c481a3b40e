//! The repositories of a workspace whose git directories lie in their folders: the source, in `src` itself; or, with a
//! manifest, each of its projects at its path, and the source beside them where `repo` has it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use serde::{Deserialize, Serialize};
use stoker_core::identity::CommitId;
use stoker_core::source::manifest::Placed;

use super::disk::directory;
use super::{Order, Submodule};
use crate::repository::{Project, SnapshotPin};

/// Where the source lies when its manifest is checked out, below `src`.
pub(super) const MANIFESTS: &str = ".repo/manifests";

/// Which manifest of the source is checked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// In the source's commit.
    pub file: String,
    /// Which of its projects; none: its default.
    pub groups: Vec<String>,
}

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    /// Its folder below `src`; empty: `src` itself.
    pub(super) path: PathBuf,
    pub(super) pin: SnapshotPin,
    pub(super) commit: CommitId,
    /// Upstream's URL.
    pub(super) origin: String,
    /// The branch that is checked out; none: the commit is.
    pub(super) branch: Option<String>,
    /// The project's name; none: it is the source.
    pub(super) project: Option<String>,
    /// What of it is seen elsewhere below `src` too.
    files: Vec<Placed>,
}

impl Tree {
    /// Its git directory, below `src`.
    pub(super) fn git_dir(&self) -> PathBuf {
        self.path.join(".git")
    }

    /// What people call it.
    pub(super) fn subject(&self) -> Option<String> {
        self.project.as_ref().map(|name| format!("project {name}"))
    }

    /// What is said of it begins so.
    pub(super) fn prefix(&self) -> String {
        self.project.as_ref().map_or_else(String::new, |name| format!("project {name:?}: "))
    }

    /// Whether any of it is seen elsewhere too.
    pub(super) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// What decides which files it has.
    pub(super) fn identity(&self) -> String {
        format!("{:?} {} {} {:?}", self.path, self.pin.url().key(), self.commit, self.files)
    }
}

/// All of an order, parents first.
pub(super) fn trees(order: &Order, projects: &[Project]) -> Vec<Tree> {
    let source = &order.source;
    let mut trees = vec![Tree {
        path: PathBuf::from(if order.manifest.is_some() { MANIFESTS } else { "" }),
        pin: order.pin.clone(),
        commit: source.commit,
        origin: source.clone_url.clone(),
        branch: source.clone_ref.strip_prefix("refs/heads/").map(str::to_owned),
        project: None,
        files: Vec::new(),
    }];
    trees.extend(projects.iter().map(|one| Tree {
        path: PathBuf::from(&one.path),
        pin: one.resolved.pin.clone(),
        commit: one.resolved.commit,
        origin: one.url.fetch_url().to_owned(),
        branch: one.branch.clone(),
        project: Some(one.name.clone()),
        files: one.files.clone(),
    }));
    trees.sort_by(|one, other| one.path.cmp(&other.path));
    trees
}

/// What is remembered of projects, so that their snapshots are pinned again after a restart.
pub(super) fn remembered(projects: &[Project]) -> Vec<Submodule> {
    let one = |one: &Project| Submodule {
        path: one.path.clone(),
        url: one.url.clone(),
        commit: one.resolved.commit,
        snapshot: one.resolved.pin.name().to_owned(),
    };
    projects.iter().map(one).collect()
}

/// The git directory of a checked-out folder: in it, or where its file `.git` leads.
pub(super) fn git_dir_of(tree: &Path) -> io::Result<PathBuf> {
    let git_dir = tree.join(".git");
    if git_dir.is_dir() {
        return Ok(git_dir);
    }
    let text = fs::read_to_string(git_dir)?;
    Ok(tree.join(text.trim_start_matches("gitdir:").trim()))
}

/// What `info/exclude` of each tree says: what lies in its folder and is not its own. By the tree's path.
pub(super) fn excludes(trees: &[Tree]) -> BTreeMap<&Path, String> {
    let mut excludes: BTreeMap<&Path, String> = trees.iter().map(|tree| (tree.path.as_path(), String::new())).collect();
    let projects = trees.iter().map(|tree| (tree.path.as_path(), "/"));
    let files = trees.iter().flat_map(|tree| &tree.files).map(|file| (Path::new(&file.dest), ""));
    for (path, end) in projects.chain(files) {
        let above = path.ancestors().skip(1).find(|above| excludes.contains_key(above));
        let below = above.and_then(|above| path.strip_prefix(above).ok()?.to_str());
        if let (Some(above), Some(below)) = (above, below)
            && let Some(text) = excludes.get_mut(above)
        {
            let _ = writeln!(text, "/{}{end}", as_pattern(below));
        }
    }
    excludes
}

/// A path as a pattern of gitignore(5) that matches nothing else.
fn as_pattern(path: &str) -> String {
    let mut pattern = String::new();
    for c in path.chars() {
        if matches!(c, '*' | '?' | '[' | ' ' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// The folder of a tree, made where its parents left none. A link in the way would lead out of the workspace.
pub(super) fn make_folder(src: &Path, path: &Path) -> io::Result<PathBuf> {
    let folder = walk(src, path, "of its path")?;
    let mut left = fs::read_dir(&folder)?;
    match left.next() {
        None => Ok(folder),
        Some(_) if path.as_os_str().is_empty() => Ok(folder),
        Some(_) => Err(wrong("its folder has files of another; give one of them another path")),
    }
}

/// The folder of this path, made where it is missing.
fn walk(src: &Path, path: &Path, what: &str) -> io::Result<PathBuf> {
    let mut folder = src.to_owned();
    for part in path.components() {
        let Component::Normal(part) = part else { return Err(wrong(&format!("a part {what} leads out"))) };
        folder.push(part);
        directory(&folder, 0o755)?;
        if !fs::symlink_metadata(&folder)?.is_dir() {
            return Err(wrong(&format!("something that is no folder is in the way {what}; give it another path")));
        }
    }
    Ok(folder)
}

/// Makes the copies and links that the manifest wants of each project, with the time that all files have.
pub(super) fn place_files(src: &Path, trees: &[Tree], stamp: u32) -> io::Result<()> {
    let all = trees.iter().flat_map(|tree| tree.files.iter().map(move |file| (tree, file)));
    for (tree, file) in all {
        place_file(src, tree, file, stamp).map_err(|error| {
            let message = format!("{}{}: {:?} to {:?}: {error}", tree.prefix(), file.at, file.src, file.dest);
            io::Error::new(error.kind(), message)
        })?;
    }
    Ok(())
}

fn place_file(src: &Path, tree: &Tree, file: &Placed, stamp: u32) -> io::Result<()> {
    let dest = Path::new(&file.dest);
    let target = walk(src, dest.parent().unwrap_or(Path::new("")), "of its dest")?;
    let target = target.join(dest.file_name().ok_or_else(|| wrong("its dest names nothing"))?);
    if fs::symlink_metadata(&target).is_ok() {
        return Err(wrong("something is there already; give it another dest"));
    }
    if file.link {
        let up = dest.components().count().saturating_sub(1);
        let from: PathBuf = std::iter::repeat_n("..", up).collect::<PathBuf>().join(&tree.path).join(&file.src);
        let from: PathBuf = from.components().filter(|part| *part != Component::CurDir).collect();
        let from = if from.as_os_str().is_empty() { PathBuf::from(".") } else { from };
        std::os::unix::fs::symlink(from, &target)?;
    } else {
        let mut from = src.to_owned();
        for part in tree.path.join(&file.src).components() {
            // No link is followed: it could lead anywhere.
            if !from.symlink_metadata()?.is_dir() {
                return Err(wrong("its src lies in no folder; name a file of the project"));
            }
            from.push(part);
        }
        match from.symlink_metadata() {
            Ok(meta) if meta.is_file() => fs::copy(&from, &target).map(drop)?,
            Ok(_) => return Err(wrong("its src is no file; name a file of the project")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(wrong("its src is not there; name a file of the project"));
            }
            Err(error) => return Err(error),
        }
    }
    let moment = Timespec { tv_sec: stamp.into(), tv_nsec: 0 };
    let times = Timestamps { last_access: moment, last_modification: moment };
    Ok(utimensat(CWD, &target, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_way_of_a_project_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let (src, outside) = (place.path().join("src"), place.path().join("outside"));
        fs::create_dir_all(src.join("plain/empty")).unwrap();
        fs::create_dir_all(src.join("full")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(src.join("full/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, src.join("link")).unwrap();
        for path in ["plain/empty", "plain/new/er", ".repo/manifests"] {
            assert_eq!(make_folder(&src, Path::new(path)).unwrap(), src.join(path));
        }
        for path in ["link/lib", "link", "full", "full/file", "../outside/lib", "plain/../../outside"] {
            let refused = make_folder(&src, Path::new(path)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{path}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_path_is_a_pattern_that_matches_it_alone() {
        assert_eq!(as_pattern("a b/[c]*"), "a\\ b/\\[c]\\*");
    }
}
