//! How `src` comes to be: a repository that reads the snapshot's objects, then git's own checkout with parallel workers.
//!
//! The repository is written here, file by file, rather than cloned: one small `packed-refs` instead of a negotiation,
//! and what a plain clone would have (`origin`, its branches, the tags, the branch that was asked for). Git runs in it
//! once, before it is handed over, and never after.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_core::identity::CommitId;
use stoker_core::reason::Reason;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::large_files::Large;
use super::{Progress, Workspace, blocking, large_files, submodules, unwritable};
use crate::repository::git::{Git, GitError};
use crate::repository::{Nested, SnapshotPin};

const CHECKOUT_WITHIN: Duration = Duration::from_secs(3600);

/// What goes into a workspace.
pub(super) struct Content<'a> {
    /// Holds the commit.
    pub(super) pin: &'a SnapshotPin,
    /// The submodules.
    pub(super) nested: &'a [Nested],
    /// The large files, which take the place of their pointers, one entry a work tree.
    pub(super) large: Vec<Large>,
}

/// Makes the directories, `src/.git` and the files.
pub(super) async fn checkout(
    git: &Git,
    content: Content<'_>,
    workspace: Workspace,
    cache_keys: &[String],
    steps: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<Workspace, Reason> {
    let Content { pin, nested, large } = content;
    let home = workspace.src.parent().unwrap_or(&workspace.src).to_owned();
    let (given, pinned, keys) = (workspace.clone(), pin.clone(), cache_keys.to_vec());
    let known = submodules::config(nested, None);
    let made = blocking(move || {
        directories(&given, &keys)?;
        repository(&Shape {
            git_dir: &given.src.join(".git"),
            snapshot: pinned.path(),
            commit: given.source.commit,
            origin: &given.source.clone_url,
            branch: given.source.clone_ref.strip_prefix("refs/heads/"),
            default_branch: false,
            core: String::new(),
            rest: known,
        })
    });
    made.await.map_err(|error| unwritable(&home, &error))?;
    let git_dir = workspace.src.join(".git");
    check_out(git, &git_dir, &workspace.src, steps.clone(), cancel.clone()).await.map_err(|error| {
        let message = format!("{} cannot be checked out: {error}", workspace.source.commit);
        Reason::new(error.code(), workspace.source.repository.clone(), message)
    })?;
    submodules::check_out_all(git, &workspace, nested, &steps, &cancel).await?;
    let done = workspace;
    let git_dirs: Vec<PathBuf> = [git_dir].into_iter().chain(submodules::git_dirs(&done.src, nested)).collect();
    blocking(move || {
        large.iter().try_for_each(|one| large_files::place(&done.src, one))?;
        if let Some((user, group)) = done.owner {
            hand_over(&done, user, group)?;
        }
        large.iter().try_for_each(|one| large_files::refresh_index(&done.src, one))?;
        let (mut files, mut bytes) = (0_u64, 0_u64);
        for git_dir in &git_dirs {
            let (more_files, more_bytes) = measure(git_dir)?;
            (files, bytes) = (files.saturating_add(more_files), bytes.saturating_add(more_bytes));
        }
        Ok(Workspace { files, bytes, ..done })
    })
    .await
    .map_err(|error| unwritable(&home, &error))
}

/// Fills a work tree with the files of its HEAD.
pub(super) async fn check_out(
    git: &Git,
    git_dir: &Path,
    work_tree: &Path,
    steps: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<(), GitError> {
    let command = git
        .command(["read-tree", "-v", "--reset", "-u", "HEAD"])
        .git_dir(git_dir)
        .env("GIT_WORK_TREE", work_tree)
        .work_dir(work_tree)
        // It writes the workspace, which is the agent's until it is handed over, from a snapshot of the agent's.
        .as_agent()
        .config("checkout.workers", "0") // as many as there are cores
        .config("core.protectNTFS", "true")
        .config("core.protectHFS", "true")
        .progress(steps)
        .cancel(cancel)
        .time_limit(CHECKOUT_WITHIN);
    command.run().await.map(drop)
}

/// Makes a directory, but never what it lies in: where the pool has gone since it was looked at, its own directory is
/// missing, and nothing is made on the disk below.
pub(super) fn directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Asks ext4 to give each workspace a part of the disk of its own. Otherwise the next one is made where the last one was
/// removed, and ext4 makes files some ten times slower next to recently deleted ones. Others do not have the flag.
fn spread(workspaces: &Path) {
    let Ok(directory) = fs::File::open(workspaces) else { return };
    if let Ok(flags) = rustix::fs::ioctl_getflags(&directory)
        && !flags.contains(rustix::fs::IFlags::TOPDIR)
    {
        let _ = rustix::fs::ioctl_setflags(&directory, flags | rustix::fs::IFlags::TOPDIR);
    }
}

fn directories(workspace: &Workspace, cache_keys: &[String]) -> io::Result<()> {
    let home = workspace.src.parent().unwrap_or(&workspace.src);
    let all = home.parent().unwrap_or(home);
    directory(all, 0o755)?;
    spread(all);
    // A directory that is there already is not ours to fill: a workspace begins empty.
    fs::DirBuilder::new().mode(0o755).create(home)?;
    for path in [&workspace.src, &workspace.tmp, &workspace.out] {
        directory(path, 0o755)?;
    }
    directory(workspace.cache.parent().unwrap_or(home), 0o755)?;
    directory(&workspace.cache, 0o755)?;
    for key in cache_keys {
        let path = workspace.cache.join(key);
        directory(&path, 0o777)?;
        // The builds of a tenant may run as different users; the directory is the tenant's.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Ok(()),
            _ => Err(error),
        })?;
    }
    Ok(())
}

/// One line of `packed-refs`: the object, and the commit that a tag leads to.
type Packed = (Vec<u8>, Option<Vec<u8>>);

/// Reads a snapshot's `packed-refs`; see git-pack-refs(1).
fn packed_refs(snapshot: &Path) -> io::Result<BTreeMap<Vec<u8>, Packed>> {
    let text = fs::read(snapshot.join("packed-refs"))?;
    let mut refs: BTreeMap<Vec<u8>, Packed> = BTreeMap::new();
    let mut last: Option<Vec<u8>> = None;
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && line[0] != b'#') {
        if let Some(peeled) = line.strip_prefix(b"^") {
            if let Some((_, slot)) = last.as_ref().and_then(|name| refs.get_mut(name)) {
                *slot = Some(peeled.to_vec());
            }
        } else if let Some((id, name)) =
            line.split_at_checked(40).and_then(|(id, rest)| Some((id, rest.strip_prefix(b" ")?)))
        {
            refs.insert(name.to_vec(), (id.to_vec(), None));
            last = Some(name.to_vec());
        }
    }
    Ok(refs)
}

/// What a git directory is to be.
pub(super) struct Shape<'a> {
    pub(super) git_dir: &'a Path,
    pub(super) snapshot: &'a Path,
    pub(super) commit: CommitId,
    /// The upstream's URL.
    pub(super) origin: &'a str,
    /// The branch that is checked out; none: the commit is.
    pub(super) branch: Option<&'a str>,
    /// It has a branch as upstream's HEAD, though another commit is checked out: so a submodule is left.
    pub(super) default_branch: bool,
    /// Further lines of the section `core`.
    pub(super) core: String,
    /// Further sections.
    pub(super) rest: String,
}

/// Writes a git directory as a clone of `origin` would have it.
pub(super) fn repository(shape: &Shape<'_>) -> io::Result<()> {
    let (git_dir, snapshot) = (shape.git_dir, shape.snapshot);
    directory(git_dir, 0o755)?;
    for path in [
        "objects",
        "objects/info",
        "objects/pack",
        "refs",
        "refs/heads",
        "refs/tags",
        "refs/remotes",
        "refs/remotes/origin",
        "info",
    ] {
        directory(&git_dir.join(path), 0o755)?;
    }
    let mut alternates = snapshot.join("objects").as_os_str().as_bytes().to_vec();
    alternates.push(b'\n');
    fs::write(git_dir.join("objects/info/alternates"), alternates)?;

    let upstream = packed_refs(snapshot)?;
    let mut refs = BTreeMap::new();
    for (name, packed) in &upstream {
        if let Some(branch) = name.strip_prefix(b"refs/heads/") {
            refs.insert([b"refs/remotes/origin/", branch].concat(), packed.clone());
        } else if name.starts_with(b"refs/tags/") {
            refs.insert(name.clone(), packed.clone());
        }
    }
    let default = fs::read(snapshot.join("HEAD")).ok().and_then(|head| {
        let name = head.strip_prefix(b"ref: refs/heads/")?.trim_ascii_end().to_vec();
        upstream.contains_key(&[b"refs/heads/", name.as_slice()].concat()).then_some(name)
    });
    if let Some(default) = &default {
        let head = [b"ref: refs/remotes/origin/", default.as_slice(), b"\n"].concat();
        fs::write(git_dir.join("refs/remotes/origin/HEAD"), head)?;
    }
    let commit = shape.commit.to_string();
    let head = match shape.branch {
        Some(branch) => {
            refs.insert(format!("refs/heads/{branch}").into_bytes(), (commit.clone().into_bytes(), None));
            format!("ref: refs/heads/{branch}\n")
        }
        None => format!("{commit}\n"),
    };
    let mut tracked = shape.branch.map(str::to_owned);
    if let Some(default) = default.filter(|_| shape.default_branch) {
        let name = [b"refs/heads/", default.as_slice()].concat();
        if let Some(packed) = upstream.get(&name) {
            refs.insert(name, packed.clone());
        }
        tracked = String::from_utf8(default).ok();
    }
    let mut text = b"# pack-refs with: peeled fully-peeled sorted \n".to_vec();
    for (name, (id, peeled)) in refs {
        text.extend([id.as_slice(), b" ", &name, b"\n"].concat());
        text.extend(peeled.map(|peeled| [b"^", peeled.as_slice(), b"\n"].concat()).unwrap_or_default());
    }
    fs::write(git_dir.join("packed-refs"), text)?;
    let config = config(shape.origin, tracked.as_deref(), &shape.core) + &shape.rest;
    fs::write(git_dir.join("config"), config)?;
    fs::write(git_dir.join("HEAD"), head)
}

/// As a clone has it; and no upkeep of its own, for the objects are the node's.
fn config(url: &str, branch: Option<&str>, core: &str) -> String {
    let mut text = format!(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n{core}\
         [gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n",
    );
    let _ =
        writeln!(text, "[remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*", quoted(url));
    if let Some(branch) = branch {
        let merge = quoted(&format!("refs/heads/{branch}"));
        let _ = writeln!(text, "[branch {}]\n\tremote = origin\n\tmerge = {merge}", quoted(branch));
    }
    text
}

/// A quoted value or subsection; see git-config(1) "Syntax". Control characters are refused before a name comes here.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Entries and bytes as git's index has them: no second walk over the files.
fn measure(git_dir: &Path) -> io::Result<(u64, u64)> {
    let index = git2::Index::open(&git_dir.join("index")).map_err(io::Error::other)?;
    let bytes = index.iter().map(|entry| u64::from(entry.file_size)).sum();
    Ok((u64::try_from(index.len()).unwrap_or(u64::MAX), bytes))
}

/// Gives everything to the build's user. Nothing runs in it yet, so a walk by path is safe.
fn hand_over(workspace: &Workspace, user: u32, group: u32) -> io::Result<()> {
    let home = workspace.src.parent().unwrap_or(&workspace.src);
    let mut pending = vec![home.to_owned()];
    while let Some(path) = pending.pop() {
        std::os::unix::fs::lchown(&path, Some(user), Some(group))?;
        if fs::symlink_metadata(&path)?.is_dir() {
            for entry in fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_quotes_stay_one_value() {
        let text = config("https://example.org/a\\b", Some("it\"s"), "");
        assert!(text.contains("url = \"https://example.org/a\\\\b\""), "{text}");
        assert!(text.contains("[branch \"it\\\"s\"]"), "{text}");
    }
}
