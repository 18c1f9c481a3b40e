//! Mirrors as a directory: one bare repository a mirror, by a path that people can read (`HOST/PATH.git`), for pods that
//! read the node's cache from a volume.
//!
//! There is one such directory for each set of trust classes that somebody may read. It shares the files of the newest
//! snapshots by hard links, which are never written to: whatever becomes of a snapshot, who reads here reads on. When a
//! mirror has a newer snapshot, its link is turned to that at once; what it led to stays for [`KEPT_FOR`], for git that
//! works in it. What a directory shows is pinned for as long as somebody keeps its [`Shelved`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Component as Part, Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stoker_core::identity::Component;
use stoker_core::reason::Reason;

use super::disk::{io_reason, remove_unfinished};
use super::space::Discard;
use super::{Repositories, SnapshotPin};
use crate::node::files;
use crate::node::mount::{self, Place};

/// Where such directories are, below the agent's directory of the pool.
pub(crate) const SHELVES: &str = "mirrors";
/// Where the repositories themselves are in one; no host is called so.
const AT: &str = ".at";
/// A copy that is being made, beside those that are there.
const UNFINISHED: &str = ".tmp";
/// A link that is being made, in whatever directory.
const UNFINISHED_LINK: &str = ".tmp-link";
/// So long what a mirror had before stays beside what it has.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// A directory is laid out anew after so long where nothing changed.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// The trust classes whose mirrors a directory has; unset: all there are and will be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Classes(pub Option<BTreeSet<String>>);

impl Classes {
    /// The name of the directory.
    #[must_use]
    pub fn name(&self) -> String {
        let names: Vec<&str> = match &self.0 {
            None => vec!["every"],
            Some(classes) => std::iter::once("of").chain(classes.iter().map(String::as_str)).collect(),
        };
        Component::of(&names).as_str().to_owned()
    }

    fn has(&self, trust: &str) -> bool {
        self.0.as_ref().is_none_or(|classes| classes.contains(trust))
    }
}

/// What a directory shows, held.
#[derive(Debug, Default)]
pub struct Shelved {
    pins: BTreeMap<PathBuf, SnapshotPin>,
    /// When it was laid out, where it was.
    at: Option<Instant>,
}

impl Repositories {
    /// Makes the directory of these classes as the mirrors are now, or brings it up to date. Blocks on the disk.
    ///
    /// # Errors
    /// When the pool is not there, or cannot be written to. What is there stays, and is brought further the next time.
    pub fn shelve(&self, classes: &Classes) -> Result<(PathBuf, Shelved), Reason> {
        let root = (self.shared.pool.root)()?;
        let shelf = root.join(SHELVES).join(classes.name());
        let failed = |error: io::Error| io_reason(&classes.name(), "laying mirrors out", &error);
        let wanted = self.newest_of(classes);
        let made = prepare(&root, &shelf, classes).and_then(|()| lay_out(&shelf, &wanted, &self.shared.pool.discard));
        made.map_err(failed)?;
        Ok((shelf, Shelved { pins: wanted, at: Some(Instant::now()) }))
    }

    /// Whether a directory of these classes was laid out with what is newest now, and that not too long ago: what could not
    /// be made or taken away then is tried again.
    #[must_use]
    pub fn is_laid_out(&self, classes: &Classes, shelved: &Shelved) -> bool {
        let names = |pins: &BTreeMap<PathBuf, SnapshotPin>| {
            pins.iter().map(|(place, pin)| (place.clone(), pin.number())).collect::<Vec<_>>()
        };
        shelved.at.is_some_and(|at| at.elapsed() < AGAIN_AFTER)
            && names(&self.newest_of(classes)) == names(&shelved.pins)
    }

    /// What the directory of these classes would show now, held.
    #[must_use]
    pub fn hold(&self, classes: &Classes) -> Shelved {
        Shelved { pins: self.newest_of(classes), at: None }
    }

    /// Where a folder of the agent's directory of the pool lies, through whatever mounts and links.
    ///
    /// # Errors
    /// When the pool is not there.
    pub(crate) fn place_in(&self, folder: &str) -> Result<Place, Reason> {
        let root = (self.shared.pool.root)()?;
        mount::place_in(&root, folder).map_err(|error| io_reason("mirrors", "looking at the pool", &error))
    }

    /// The directories that there are, by their names, with what they are of. One that does not say so is of nothing.
    ///
    /// # Errors
    /// When the pool is not there.
    pub fn shelves(&self) -> Result<BTreeMap<String, Classes>, Reason> {
        let folder = (self.shared.pool.root)()?.join(SHELVES);
        let names = fs::read_dir(&folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
        let classes = |name: &str| {
            let read = files::read_record(&files::record(&folder, name), RECORD_BYTES_MAX);
            read.unwrap_or_else(|| Classes(Some(BTreeSet::new())))
        };
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.map(|name| (name.clone(), classes(&name))).collect())
    }

    /// Throws such a directory away; nobody may show it any more.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn unshelve(&self, name: &str) -> Result<(), Reason> {
        let folder = (self.shared.pool.root)()?.join(SHELVES);
        let gone = (self.shared.pool.discard)(folder.join(name));
        let gone = gone.and_then(|()| files::remove_record(&files::record(&folder, name)));
        gone.map_err(|error| io_reason(name, "throwing mirrors away", &error))
    }

    /// The newest snapshots of what is of these classes, by the path that each has.
    fn newest_of(&self, classes: &Classes) -> BTreeMap<PathBuf, SnapshotPin> {
        let newest = |entry: &std::sync::Arc<super::Entry>| {
            let state = entry.state();
            let shown = !(state.meta.removed || state.meta.denied || state.removing) && classes.has(&state.meta.trust);
            let current = state.current.as_ref().filter(|pin| shown && pin.number() >= state.meta.first_snapshot);
            Some((place(entry.url.key())?, current?.clone()))
        };
        self.shared.all().iter().filter_map(newest).collect()
    }
}

/// Where a repository is in such a directory; nothing for one whose name is no plain path, or one of the directory's own.
fn place(key: &str) -> Option<PathBuf> {
    let key = match key.strip_prefix("file://") {
        Some(path) => format!("localhost{path}.git"),
        None => format!("{key}.git"),
    };
    let is_plain = |part: Part<'_>| matches!(part, Part::Normal(name) if name != UNFINISHED_LINK);
    let path = PathBuf::from(key);
    (path.components().all(is_plain) && !path.starts_with(AT)).then_some(path)
}

fn directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn prepare(root: &Path, shelf: &Path, classes: &Classes) -> io::Result<()> {
    let folder = root.join(SHELVES);
    directory(&folder)?;
    let record = files::record(&folder, &classes.name());
    if files::read_record::<Classes>(&record, RECORD_BYTES_MAX).as_ref() != Some(classes) {
        files::write_record(&record, classes, false)?;
    }
    directory(shelf)?;
    directory(&shelf.join(AT))
}

/// Brings a directory up to date: first what was taken away goes, at once, then what is new comes, each mirror by itself, and
/// at last what is old goes. What cannot be made is tried again the next time; what cannot be taken away is an error.
fn lay_out(shelf: &Path, wanted: &BTreeMap<PathBuf, SnapshotPin>, discard: &Discard) -> io::Result<()> {
    let named: BTreeMap<String, &str> =
        wanted.values().map(|pin| (pin.url().folder().as_str().to_owned(), pin.name())).collect();
    let taken_away = take_away(shelf, wanted, &named, discard);
    for (place, pin) in wanted {
        if let Err(error) = show(shelf, place, pin) {
            tracing::warn!(%error, mirror = %place.display(), "a mirror cannot be shown as it is; tried again");
        }
    }
    for (folder, current) in &named {
        if let Err(error) = clear(&shelf.join(AT).join(folder), current, KEPT_FOR, discard) {
            tracing::warn!(%error, folder, "old copies of a mirror are still there; tried again");
        }
    }
    taken_away
}

/// Removes all that is not wanted. The first error is told, and keeps nothing else.
fn take_away(
    shelf: &Path,
    wanted: &BTreeMap<PathBuf, SnapshotPin>,
    named: &BTreeMap<String, &str>,
    discard: &Discard,
) -> io::Result<()> {
    let mut ended = Ok(());
    for link in links(shelf)?.into_iter().filter(|link| !wanted.contains_key(link)) {
        ended = ended.and(fs::remove_file(shelf.join(&link)));
        // What it lay in, as far as nothing else does.
        for above in link.ancestors().skip(1).take_while(|above| !above.as_os_str().is_empty()) {
            if fs::remove_dir(shelf.join(above)).is_err() {
                break;
            }
        }
    }
    for folder in fs::read_dir(shelf.join(AT))? {
        let folder = folder?;
        if folder.file_name().to_str().is_none_or(|name| !named.contains_key(name)) {
            ended = ended.and(discard(folder.path()));
        }
    }
    ended
}

/// Lets a name lead to the copy of a snapshot, which is made where it is not there yet.
fn show(shelf: &Path, place: &Path, pin: &SnapshotPin) -> io::Result<()> {
    let at = PathBuf::from(AT).join(pin.url().folder().as_str());
    directory(&shelf.join(&at))?;
    let copy = at.join(pin.name());
    if !shelf.join(&copy).exists() {
        let unfinished = shelf.join(&at).join(UNFINISHED);
        remove_unfinished(&unfinished)?;
        share(pin.path(), &unfinished)?;
        fs::rename(&unfinished, shelf.join(&copy))?;
    }
    // Where it fails: a repository within what is another's name.
    turn(shelf, place, &copy)
}

/// Removes older copies of a mirror, each once nobody has found it for so long: since the next one is there.
fn clear(folder: &Path, current: &str, kept_for: Duration, discard: &Discard) -> io::Result<()> {
    let names: Vec<String> = fs::read_dir(folder)?
        .map(|copy| Ok(copy?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    let mut older: Vec<(u64, &str)> = Vec::new();
    for name in names.iter().map(String::as_str).filter(|name| *name != current) {
        match name.parse() {
            Ok(number) => older.push((number, name)),
            // What is made anew by whoever makes a copy the next time.
            Err(_) if name == UNFINISHED => {}
            Err(_) => discard(folder.join(name))?,
        }
    }
    older.sort_unstable();
    let next = older.iter().skip(1).map(|(_, name)| *name).chain([current]);
    for ((_, copy), next) in older.iter().zip(next) {
        if age(&folder.join(next)) >= kept_for {
            discard(folder.join(copy))?;
        }
    }
    Ok(())
}

/// Since something came into a directory or went.
fn age(directory: &Path) -> Duration {
    let changed = fs::metadata(directory).and_then(|meta| meta.modified());
    changed.ok().and_then(|at| at.elapsed().ok()).unwrap_or_default()
}

/// Lets a name lead to a copy, from one moment to the next.
fn turn(shelf: &Path, place: &Path, copy: &Path) -> io::Result<()> {
    let link = shelf.join(place);
    let mut target = PathBuf::new();
    place.parent().into_iter().flat_map(Path::components).for_each(|_| target.push(".."));
    target.push(copy);
    if fs::read_link(&link).is_ok_and(|now| now == target) {
        return Ok(());
    }
    let mut above = shelf.to_owned();
    for part in place.parent().into_iter().flat_map(Path::components) {
        above.push(part);
        directory(&above)?;
        if above.is_symlink() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "another mirror has a part of its name"));
        }
    }
    let unfinished = above.join(UNFINISHED_LINK);
    let _ = fs::remove_file(&unfinished);
    symlink(&target, &unfinished)?;
    fs::rename(&unfinished, &link)
}

/// The names that a directory has, relative to it.
fn links(shelf: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut pending) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(shelf.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            match entry.file_type()? {
                kind if kind.is_symlink() => found.push(path),
                kind if kind.is_dir() && path != Path::new(AT) => pending.push(path),
                _ => {}
            }
        }
    }
    Ok(found)
}

/// A repository with the files of another: its objects are linked, what is small is written anew, for all to read.
fn share(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type()? {
            kind if kind.is_dir() && entry.file_name() == "objects" => link_all(&source, &target)?,
            kind if kind.is_dir() => share(&source, &target)?,
            kind if kind.is_file() => {
                fs::copy(&source, &target)?;
                fs::set_permissions(&target, fs::Permissions::from_mode(0o644))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            link_all(&source, &target)?;
        } else {
            fs::hard_link(&source, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mirror_is_found_by_the_name_of_its_upstream() {
        let found = |key: &str| place(key).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(found("github.com/a/b").as_deref(), Some("github.com/a/b.git"));
        assert_eq!(found("127.0.0.1:80/x").as_deref(), Some("127.0.0.1:80/x.git"));
        assert_eq!(found("file:///srv/git/x").as_deref(), Some("localhost/srv/git/x.git"));
        assert_eq!(found("github.com/a/.github").as_deref(), Some("github.com/a/.github.git"));
        assert_eq!(found("h/.at/.tmp").as_deref(), Some("h/.at/.tmp.git"));
        for none in ["h/../x", ".at/x", "h/.tmp-link/x"] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn a_copy_goes_when_its_successor_has_been_there_for_long() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let folder = tempfile::tempdir().unwrap();
        let now = std::time::SystemTime::now();
        // A mirror that changes every four minutes: the current copy is never old.
        for (name, age) in [("8", 16), ("9", 12), ("10", 8), ("11", 4), ("12", 0), (UNFINISHED, 30), ("odd", 0)] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::File::open(folder.path().join(name)).unwrap().set_modified(now - minutes(age)).unwrap();
        }
        let discard: Discard = std::sync::Arc::new(fs::remove_dir::<PathBuf>);
        let left = |kept_for| {
            clear(folder.path(), "12", kept_for, &discard).unwrap();
            let all =
                fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            all.collect::<BTreeSet<String>>()
        };
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        assert_eq!(
            left(minutes(10)),
            set(&["9", "10", "11", "12", UNFINISHED]),
            "9 was found until 10 came, 8 minutes ago"
        );
        assert_eq!(left(minutes(6)), set(&["10", "11", "12", UNFINISHED]));
        assert_eq!(left(Duration::ZERO), set(&["12", UNFINISHED]));
    }

    #[test]
    fn each_set_of_classes_has_a_directory_of_its_own() {
        let of = |classes: &[&str]| Classes(Some(classes.iter().map(|class| (*class).to_owned()).collect())).name();
        let all = [Classes(None).name(), of(&[]), of(&["every"]), of(&["a"]), of(&["a", "b"]), of(&["a-b"])];
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    }
}
