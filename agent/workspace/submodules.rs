//! Submodules in a workspace, as `git clone --recurse-submodules` leaves them: git directories in `src/.git/modules`,
//! a file `.git` in each work tree, and the parent's configuration that knows them. Git is never told to recurse: each
//! is checked out as the top is, by its own snapshot.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use stoker_core::identity::CommitId;
use stoker_core::source::RepositoryUrl;

use super::disk::directories;
use super::gitdir::{Shape, quoted, repository};
use crate::repository::Nested;

/// What is remembered of a submodule, so that its snapshot is pinned again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submodule {
    /// Below `src`.
    pub path: String,
    /// Where it comes from.
    pub url: RepositoryUrl,
    /// What is checked out.
    pub commit: CommitId,
    /// The snapshot that `.git` reads.
    pub snapshot: String,
}

/// What is remembered of those that are checked out.
pub(super) fn remembered(nested: &[Nested]) -> Vec<Submodule> {
    let one = |one: &Nested| {
        let resolved = one.resolved.as_ref()?;
        let (path, url, snapshot) = (one.path.clone(), one.says.url.clone(), resolved.pin.name().to_owned());
        Some(Submodule { path, url, commit: resolved.commit, snapshot })
    };
    nested.iter().filter_map(one).collect()
}

/// What a repository's configuration says of its submodules; `at`: which of `nested` it is, none for the top.
pub(super) fn config(nested: &[Nested], at: Option<usize>) -> String {
    let own: Vec<&Nested> = nested.iter().filter(|one| one.parent == at).collect();
    let mut text = String::new();
    if at.is_none() && !own.is_empty() {
        text.push_str("[submodule]\n\tactive = .\n");
    }
    for one in own {
        let _ = writeln!(text, "[submodule {}]", quoted(&one.says.name));
        if at.is_some() {
            text.push_str("\tactive = true\n");
        }
        let _ = writeln!(text, "\turl = {}", quoted(one.says.url.fetch_url()));
        if let Some(word) = one.says.update.word() {
            let _ = writeln!(text, "\tupdate = {word}");
        }
    }
    text
}

/// The folders and git directories of those that are checked out, below `src`.
pub(super) fn trees(src: &Path, nested: &[Nested]) -> Vec<(PathBuf, PathBuf)> {
    let there = nested.iter().filter(|one| one.resolved.is_some());
    there.map(|one| (src.join(&one.path), src.join(below_git(one)))).collect()
}

/// Its git directory, below `src`.
pub(super) fn below_git(one: &Nested) -> PathBuf {
    Path::new(".git").join(&one.git_dir)
}

/// Makes the git directory of one, empty, and the file that leads from its folder to it.
pub(super) fn lead_to_git(src: &Path, one: &Nested) -> io::Result<PathBuf> {
    let tree = plain_folder(src, &one.path)?;
    let git_dir = src.join(below_git(one));
    directories(src, &git_dir)?;
    let to_git = relative(&tree, src, &format!(".git/{}", one.git_dir));
    fs::write(tree.join(".git"), format!("gitdir: {to_git}\n"))?;
    Ok(git_dir)
}

/// Writes what each git directory says, below the top's.
pub(super) fn write_heads(top: &Path, nested: &[Nested]) -> io::Result<()> {
    for (at, one) in nested.iter().enumerate() {
        let Some(resolved) = &one.resolved else { continue };
        let git_dir = top.join(&one.git_dir);
        directories(top, &git_dir)?;
        // Its git directory lies in the top's `.git`, and its folder beside that.
        let up = one.git_dir.split('/').count().saturating_add(1);
        repository(&Shape {
            git_dir: &git_dir,
            snapshot: resolved.pin.path(),
            commit: resolved.commit,
            origin: one.says.url.fetch_url(),
            branch: None,
            default_branch: true,
            core: format!("\tworktree = {}\n", quoted(&format!("{}{}", "../".repeat(up), one.path))),
            rest: config(nested, Some(at)),
        })?;
    }
    Ok(())
}

/// The folder that the checkout of the parent left for a submodule. A link in the way would lead out of the workspace.
fn plain_folder(src: &Path, path: &str) -> io::Result<PathBuf> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut folder = src.to_owned();
    for part in Path::new(path).components() {
        let Component::Normal(part) = part else { return Err(wrong("its path leads out of the workspace")) };
        folder.push(part);
        match fs::symlink_metadata(&folder) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(wrong("something that is no folder is in the way of its path")),
            Err(error) => return Err(error),
        }
    }
    match fs::read_dir(&folder)?.next() {
        None => Ok(folder),
        Some(_) => Err(wrong("its folder has files of its parent")),
    }
}

/// From a folder below `top` to `target` below `top`.
fn relative(from: &Path, top: &Path, target: &str) -> String {
    let depth = from.strip_prefix(top).map_or(0, |below| below.components().count());
    format!("{}{target}", "../".repeat(depth))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_way_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let (src, outside) = (place.path().join("src"), place.path().join("outside"));
        fs::create_dir_all(outside.join("lib")).unwrap();
        fs::create_dir_all(src.join("plain/lib")).unwrap();
        fs::create_dir_all(src.join("full")).unwrap();
        fs::write(src.join("full/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, src.join("link")).unwrap();
        assert_eq!(plain_folder(&src, "plain/lib").unwrap(), src.join("plain/lib"));
        for path in ["link/lib", "link", "full", "full/file", "../outside/lib", "plain/../../outside"] {
            assert_eq!(plain_folder(&src, path).unwrap_err().kind(), io::ErrorKind::InvalidData, "{path}");
        }
    }

    #[test]
    fn ways_between_folders_are_relative() {
        let top = Path::new("/w/src");
        assert_eq!(relative(Path::new("/w/src/.git/modules/a/b"), top, "vendor/a"), "../../../../vendor/a");
        assert_eq!(relative(Path::new("/w/src/vendor/a"), top, ".git/modules/a"), "../../.git/modules/a");
    }
}
