//! Submodules in a workspace, as `git clone --recurse-submodules` leaves them: git directories in `src/.git/modules`,
//! a file `.git` in each work tree, and the parent's configuration that knows them. Git is never told to recurse: each
//! is checked out as the top is, by its own snapshot.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use stoker_core::identity::CommitId;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::materialise::{Shape, check_out, directory, quoted, repository};
use super::{Progress, Workspace, blocking, unwritable};
use crate::repository::git::Git;
use crate::repository::{Nested, under};

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

/// Checks all of them out; the top is there already.
pub(super) async fn check_out_all(
    git: &Git,
    workspace: &Workspace,
    nested: &[Nested],
    steps: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), Reason> {
    let src = &workspace.src;
    for (at, one) in nested.iter().enumerate() {
        let Some(resolved) = one.resolved.clone() else { continue };
        let (place, top, known) = (one.clone(), src.clone(), config(nested, Some(at)));
        let snapshot = resolved.pin.clone();
        let made = blocking(move || {
            make(&top, &place, snapshot.path(), resolved.commit, known)
                .map_err(|error| io::Error::new(error.kind(), format!("submodule {:?}: {error}", place.path)))
        });
        made.await.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => {
                Reason::new(Code::SubmoduleInvalid, workspace.source.repository.clone(), error.to_string())
            }
            _ => unwritable(src, &error),
        })?;
        let (sender, seen) = watch::channel(Progress::phase("checking out"));
        let (git_dir, tree) = (git_dir(src, one), src.join(&one.path));
        let work = check_out(git, &git_dir, &tree, sender, cancel.clone());
        under(format!("submodule {}", one.path), seen, steps, work).await.map_err(|error| {
            let message = format!("submodule {:?} at {} cannot be checked out: {error}", one.path, one.says.commit);
            Reason::new(error.code(), workspace.source.repository.clone(), message)
        })?;
    }
    Ok(())
}

/// The git directories of those that are checked out.
pub(super) fn git_dirs(src: &Path, nested: &[Nested]) -> Vec<PathBuf> {
    nested.iter().filter(|one| one.resolved.is_some()).map(|one| git_dir(src, one)).collect()
}

fn git_dir(src: &Path, one: &Nested) -> PathBuf {
    src.join(below_git(one))
}

/// Its git directory, below `src`.
pub(super) fn below_git(one: &Nested) -> PathBuf {
    Path::new(".git").join(&one.git_dir)
}

/// Writes the git directory, and the file that leads from the work tree to it.
fn make(src: &Path, one: &Nested, snapshot: &Path, commit: CommitId, known: String) -> io::Result<()> {
    let tree = plain_folder(src, &one.path)?;
    let mut git_dir = src.join(".git");
    for part in one.git_dir.split('/') {
        git_dir.push(part);
        directory(&git_dir, 0o755)?;
    }
    let to_tree = relative(&git_dir, src, &one.path);
    let to_git = relative(&tree, src, &format!(".git/{}", one.git_dir));
    let shape = Shape {
        git_dir: &git_dir,
        snapshot,
        commit,
        origin: one.says.url.fetch_url(),
        branch: None,
        default_branch: true,
        core: format!("\tworktree = {}\n", quoted(&to_tree)),
        rest: known,
    };
    repository(&shape)?;
    fs::write(tree.join(".git"), format!("gitdir: {to_git}\n"))
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
