//! Git directories, as a clone of `origin` would have them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use stoker_core::identity::CommitId;

use super::disk::directory;

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

/// Writes a git directory as a clone of `origin` would have it, but for the objects.
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

/// As a clone has it; but files are known by length and time alone, for owner and inode may be shown otherwise than they
/// were written down, and there is no upkeep of its own, for the objects are the node's.
fn config(url: &str, branch: Option<&str>, core: &str) -> String {
    let mut text = format!(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\
         \tcheckStat = minimal\n\ttrustctime = false\n{core}\
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

/// Lets a git directory read a snapshot's objects where they are. They must be seen at the same path.
pub(super) fn borrow_objects(git_dir: &Path, snapshot: &Path) -> io::Result<()> {
    let mut alternates = snapshot.join("objects").as_os_str().as_bytes().to_vec();
    alternates.push(b'\n');
    fs::write(git_dir.join("objects/info/alternates"), alternates)
}

/// How a git directory gets objects of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Objects {
    /// The same files: for a layer that nobody writes to.
    Link,
    /// Files that share their blocks until one is written to.
    Reflink,
    /// Files of its own.
    Copy,
}

/// Gives a git directory the objects of a snapshot. What is linked is marked as kept, for a `git gc` would copy it all into
/// a pack of its own.
pub(super) fn own_objects(git_dir: &Path, snapshot: &Path, how: Objects) -> io::Result<()> {
    let mut pending = vec![(snapshot.join("objects"), git_dir.join("objects"))];
    while let Some((from, to)) = pending.pop() {
        directory(&to, 0o755)?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push((entry.path(), target));
                continue;
            }
            let shared = match how {
                Objects::Link => fs::hard_link(entry.path(), &target),
                Objects::Reflink => reflink(&entry.path(), &target),
                Objects::Copy => Err(io::ErrorKind::CrossesDevices.into()),
            };
            match shared {
                // The repositories lie on another pool.
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    fs::copy(entry.path(), &target).map(drop)?
                }
                shared => shared?,
            }
            if how == Objects::Link && target.extension().is_some_and(|extension| extension == "pack") {
                fs::File::create(target.with_extension("keep"))?;
            }
        }
    }
    Ok(())
}

/// A file that shares its blocks with another.
fn reflink(from: &Path, to: &Path) -> io::Result<()> {
    let source = fs::File::open(from)?;
    let target = fs::OpenOptions::new().write(true).create_new(true).mode(0o444).open(to)?;
    rustix::fs::ioctl_ficlone(&target, &source).map_err(|error| {
        let _ = fs::remove_file(to);
        error.into()
    })
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
