//! What a killed predecessor left: removed, or taken over. The caller holds the agent's exclusive lock.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::check::{TIPS_AT_START, snapshot};
use super::contain::lend::{is_lent, take_back};
use super::disk::{Paths, StorePaths, is_leftover, names, repositories, snapshot_number, stores};
use super::meta::Meta;
use super::packs::half_packs;
use super::read::Reader;
use super::snapshot::SnapshotPin;
use super::store::name_of;

/// A repository that was found on disk.
pub(super) struct Found {
    pub(super) meta: Meta,
    /// Good ones, the newest last.
    pub(super) snapshots: Vec<SnapshotPin>,
    /// Refs in the newest.
    pub(super) refs: u64,
    /// What is wrong with one that was whole once: the store may have it too.
    pub(super) damage: Option<String>,
}

/// Finds all repositories below `root`. What cannot be used goes through `discard`. Blocks.
pub(super) fn recover(
    root: &Path,
    reader: &Reader,
    discard: &dyn Fn(PathBuf) -> io::Result<()>,
) -> io::Result<Vec<Found>> {
    let dir = repositories(root);
    let mut found = Vec::new();
    for name in names(&dir)? {
        let paths = Paths { folder: dir.join(&name) };
        // The folder of a mirror may be called as git's own leftovers are.
        if name.starts_with(".tmp-") {
            remove(&paths.folder, discard);
            continue;
        }
        match Meta::read(&paths) {
            Ok(meta) if meta.url.folder().as_str() == name => {
                found.push(recover_one(root, meta, paths, reader, discard))
            }
            Ok(meta) => {
                tracing::warn!(folder = name, url = %meta.url, "a repository in a folder of another: removed");
                remove(&paths.folder, discard);
            }
            Err(error) => {
                tracing::warn!(folder = name, %error, "a repository that nothing is known of: removed");
                remove(&paths.folder, discard);
            }
        }
    }
    recover_stores(root, &found, discard)?;
    Ok(found)
}

/// Cleans the stores, and removes those that no repository fetches into.
fn recover_stores(root: &Path, found: &[Found], discard: &dyn Fn(PathBuf) -> io::Result<()>) -> io::Result<()> {
    let used: BTreeSet<&str> = found.iter().filter_map(|found| found.meta.store.as_deref()).collect();
    for name in names(&stores(root))? {
        let folder = StorePaths::new(root, &name).folder;
        if used.contains(name.as_str()) {
            if let Err(error) = close(&StorePaths::new(root, &name).git()) {
                // The next git that works there takes it back, or says why not.
                tracing::error!(store = name, %error, "a store that was lent cannot be taken back: not cleaned");
                continue;
            }
            clean(&folder, discard);
        } else {
            remove(&folder, discard);
        }
    }
    Ok(())
}

/// Takes a store back that was lent when the agent was killed: before anything is removed there, nobody else may change it.
fn close(git: &Path) -> io::Result<()> {
    match is_lent(git) {
        Ok(true) => take_back(git),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Until stores were shared, each lay in its repository's folder.
fn move_store(root: &Path, meta: &mut Meta, paths: &Paths) -> io::Result<()> {
    let own = paths.folder.join("store.git");
    if meta.store.is_some() || !own.is_dir() {
        return Ok(());
    }
    let name = name_of(&meta.trust, &meta.url);
    let store = StorePaths::new(root, &name);
    store.make_folder()?;
    fs::rename(own, store.git())?;
    meta.store = Some(name);
    meta.write(paths, true)
}

fn recover_one(
    root: &Path,
    mut meta: Meta,
    paths: Paths,
    reader: &Reader,
    discard: &dyn Fn(PathBuf) -> io::Result<()>,
) -> Found {
    if let Err(error) = move_store(root, &mut meta, &paths) {
        tracing::warn!(repository = meta.url.key(), %error, "its store cannot be moved to the others: it is cloned anew");
    }
    for name in names(&paths.folder).unwrap_or_default() {
        if is_leftover(&name) {
            remove(&paths.folder.join(name), discard);
        }
    }
    let (mut snapshots, mut damage) = (Vec::new(), None);
    for name in names(&paths.snapshots()).unwrap_or_default() {
        let good =
            snapshot_number(&name).map(|number| SnapshotPin::new(meta.url.clone(), &paths, number)).filter(|pin| {
                match look(pin, reader) {
                    Look::Good => true,
                    Look::Unfinished => false,
                    Look::Damaged(what) => {
                        damage = Some(what);
                        false
                    }
                }
            });
        match good {
            Some(pin) => snapshots.push(pin),
            None => {
                tracing::warn!(repository = meta.url.key(), snapshot = name, "a snapshot that is not whole: removed");
                remove(&paths.snapshots().join(name), discard);
            }
        }
    }
    snapshots.sort_by_key(SnapshotPin::number);
    let refs = snapshots.last().and_then(|pin| reader.refs(pin).ok()).map_or(0, |refs| refs.len());
    Found { meta, snapshots, refs: u64::try_from(refs).unwrap_or(u64::MAX), damage }
}

/// What a look at a snapshot shows.
enum Look {
    Good,
    /// Never published as a whole.
    Unfinished,
    Damaged(String),
}

/// Whether the snapshot is whole, as far as that is seen soon.
fn look(pin: &SnapshotPin, reader: &Reader) -> Look {
    let whole = ["HEAD", "config", "packed-refs"].iter().all(|name| pin.path().join(name).is_file());
    match snapshot(pin, reader, TIPS_AT_START) {
        _ if !whole => Look::Unfinished,
        Ok(problems) => problems.first().map_or(Look::Good, |first| Look::Damaged(first.to_string())),
        Err(error) => Look::Damaged(error.to_string()),
    }
}

/// Removes what killed or failed git children left anywhere in a store. The caller has its turn.
pub(super) fn clean(dir: &Path, discard: &dyn Fn(PathBuf) -> io::Result<()>) {
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        if dir.ends_with("objects/pack") {
            half_packs(&dir).unwrap_or_default().iter().for_each(|half| remove(half, discard));
        }
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(is_leftover) {
                remove(&entry.path(), discard);
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(entry.path());
            }
        }
    }
}

fn remove(path: &Path, discard: &dyn Fn(PathBuf) -> io::Result<()>) {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => discard(path.to_owned()),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "a leftover could not be removed");
    }
}
