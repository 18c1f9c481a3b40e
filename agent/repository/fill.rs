//! The first fill of a store: a clone beside its place, its refs rewritten into the namespace, moved into place.
//!
//! A clone works by its absolute path, whatever it is given, and so cannot be bound to its filesystem as a fetch is; it is
//! ended as soon as the pool is seen to have gone.
//!
//! Of very many refs git is told the objects alone, and the refs are written from the list that is here: to list and to
//! write each of them takes git longer than to fetch what they name, above all into a store that exists, where each is a
//! file of its own that is synced.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use git2::{ObjectType, Oid, Repository};
use stoker_core::identity::CommitId;

use super::disk::{GENERATION, StorePaths, make_directory, remove_unfinished, replace, sync_directory};
use super::fetch::{Visit, on_disk};
use super::git::GitError;
use super::listing::{Head, Listing};
use super::local::SafeDirectory;
use super::refs::{RefTable, is_followed, is_ref_name};
use super::snapshot::CONFIG;

/// From so many branches and tags on a clone is told objects.
const CLONED_BY_LIST: usize = 5_000;
/// From so many on a fetch of all of them is.
const FETCHED_BY_LIST: usize = 100;
/// How many objects one fetch is told: what git does with them grows with their square.
const OBJECTS_MAX: usize = 16_384;
/// Tags of tags of tags are followed so far.
const NESTED_TAGS_MAX: usize = 64;

impl Visit {
    /// Fills the store with all branches and tags.
    pub(super) async fn fill(&self, listing: &Listing, safe: Option<&SafeDirectory>) -> Result<(), GitError> {
        if listing.followed >= CLONED_BY_LIST && safe.is_none() && can_be_written(listing) {
            match self.clone_by_list(listing).await {
                Ok(true) => return Ok(()),
                Err(error) if error.is_of_the_machine() => return Err(error),
                // Upstream changed meanwhile, or gives nothing by its name.
                Ok(false) | Err(_) => tracing::debug!(repository = self.url.key(), "the refs are listed to git again"),
            }
        }
        self.clone_bare(&[], safe.map(SafeDirectory::path)).await?;
        let (store, heads, tags, pins) =
            (self.store.clone(), self.followed("heads"), self.followed("tags"), self.pins());
        let detached = detached(listing);
        on_disk(move || adopt_clone(&store, &heads, &tags, &pins, detached)).await
    }

    /// One clone that is told what all refs name, beside one branch; then the refs are those of the list. False where
    /// something of it is not to be had.
    ///
    /// A clone looks whether what came is whole in itself, but not whether all came that was asked for: that is looked at
    /// here.
    async fn clone_by_list(&self, listing: &Listing) -> Result<bool, GitError> {
        let branch = match &listing.head {
            Some(Head::Branch(name)) => Some(name.clone()),
            _ => listing.all.iter().find_map(|(name, _)| branch_of(name)),
        };
        let Some(branch) = branch else { return Ok(false) };
        let ids = ids(listing);
        let (store, wanted) = (self.store.clone(), ids.clone());
        let list = on_disk(move || write_wanted(&store, &wanted)).await?;
        let told = ["--single-branch", "--no-tags", "--branch", &branch];
        self.clone_bare(&told, Some(list.path())).await?;
        drop(list);
        let (store, refs) = (self.store.clone(), self.listed(listing));
        let adopt = move || {
            let place = store.fill();
            let Some(peeled) = peel(&place, &ids)? else { return Ok(false) };
            replace(&place.join("packed-refs"), &table(refs, &peeled).to_file(), true)?;
            finish_store(&store)?;
            Ok(true)
        };
        on_disk(adopt).await
    }

    /// Fetches what all branches and tags name into a store that has not this repository's refs, and writes them. False
    /// where that is not worth it, or something is not to be had.
    pub(super) async fn fetch_by_list(
        &self,
        listing: &Listing,
        safe: Option<&SafeDirectory>,
    ) -> Result<bool, GitError> {
        if listing.followed < FETCHED_BY_LIST || !can_be_written(listing) {
            return Ok(false);
        }
        let ids = ids(listing);
        let all: Vec<CommitId> = ids.iter().copied().collect();
        // Also what is here: what lies in a store and no ref reaches is not known to be whole.
        for some in all.chunks(OBJECTS_MAX) {
            match self.fetch_objects(some, safe).await {
                Ok(()) => {}
                Err(error) if error.is_of_the_machine() || error.is_store_damage() => return Err(error),
                Err(_) => return Ok(false),
            }
        }
        self.pack_refs().await?;
        let (store, refs, namespace) = (self.store.git(), self.listed(listing), self.namespace());
        let write = move || {
            let Some(peeled) = peel(&store, &ids)? else { return Ok(false) };
            let packed = store.join("packed-refs");
            let others = RefTable::read(&packed)?.rename(|name| {
                let own = name.strip_prefix(&*namespace).is_some_and(is_followed);
                (!own).then(|| name.to_vec())
            });
            // Where both have a name the first holds.
            replace(&packed, &table(refs, &peeled).join(&others).to_file(), true)?;
            Ok(true)
        };
        on_disk(write).await
    }

    /// The refs of a list as the store has them.
    fn listed(&self, listing: &Listing) -> Vec<(Vec<u8>, CommitId)> {
        let namespace = self.namespace();
        let mut refs: Vec<_> = listing.all.iter().map(|(name, id)| ([&namespace, name].concat(), id)).collect();
        refs.extend(detached(listing).map(|id| (format!("{}detached", self.pins()).into_bytes(), id)));
        refs
    }

    async fn clone_bare(&self, options: &[&str], config: Option<&Path>) -> Result<(), GitError> {
        let (store, dir) = (self.store.clone(), self.store.fill());
        let clear = move || {
            remove_unfinished(&store.fill())?;
            store.make_folder()?;
            // Git's user may not make it where it lies.
            make_directory(&store.fill())
        };
        on_disk(clear).await?;
        let path = dir.to_string_lossy().into_owned();
        let fixed = ["clone", "--bare", "--no-local", "--reject-shallow", "--template=", "--progress"];
        let command = self.remote(fixed, None).global_config(config.map(Path::to_owned));
        let command = command.args(options).args(["--", self.url.fetch_url(), &path]);
        match command.progress(self.progress.clone()).run_in_store(&dir).await {
            Ok(_) => Ok(()),
            Err(error) => {
                // Git removes what it made, unless it was killed.
                let _ = on_disk(move || remove_unfinished(&dir)).await;
                Err(error)
            }
        }
    }

    /// An empty store, for a fill that begins with what somebody waits for.
    pub(super) async fn begin_store(&self) -> Result<(), GitError> {
        let store = self.store.clone();
        let make = move || {
            store.make_folder()?;
            remove_unfinished(&store.fill())?;
            let new = store.fill();
            for dir in ["", "objects", "objects/info", "objects/pack", "refs"] {
                fs::create_dir(new.join(dir))?;
            }
            finish_store(&store)
        };
        on_disk(make).await
    }
}

fn open(repository: &Path) -> io::Result<Repository> {
    Repository::open_bare(repository).map_err(io::Error::other)
}

fn oid(id: CommitId) -> io::Result<Oid> {
    Oid::from_bytes(id.bytes()).map_err(io::Error::other)
}

/// All that the refs of a list name, each once.
fn ids(listing: &Listing) -> BTreeSet<CommitId> {
    listing.all.iter().map(|(_, id)| id).chain(detached(listing)).collect()
}

const fn detached(listing: &Listing) -> Option<CommitId> {
    match listing.head {
        Some(Head::Detached(commit)) => Some(commit),
        _ => None,
    }
}

fn branch_of(name: &[u8]) -> Option<String> {
    std::str::from_utf8(name.strip_prefix(b"refs/heads/")?).ok().map(str::to_owned)
}

/// Whether git would take all of these names, and all of them together: they come from upstream, and git believes its
/// file of refs.
fn can_be_written(listing: &Listing) -> bool {
    let names: HashSet<&[u8]> = listing.all.iter().map(|(name, _)| name).collect();
    let is_no_folder = |name: &[u8]| {
        let ends = name.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        !ends.filter_map(|end| name.get(..end)).any(|folder| names.contains(folder))
    };
    let short = |name: &[u8]| name.split(|byte| *byte == b'/').all(|part| part.len() <= 255);
    names.len() == listing.followed
        && listing.all.iter().all(|(name, _)| is_ref_name(name) && short(name) && is_no_folder(name))
}

/// A file that git reads what is wanted from; it goes with this.
struct Wanted(PathBuf);

impl Wanted {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        // One that stays is removed with what else a killed agent leaves.
        let _ = fs::remove_file(&self.0);
    }
}

fn write_wanted(store: &StorePaths, ids: &BTreeSet<CommitId>) -> io::Result<Wanted> {
    let mut text = String::from("[remote \"origin\"]\n");
    for id in ids {
        text.push_str("\tfetch = ");
        text.push_str(&id.to_string());
        text.push('\n');
    }
    store.make_folder()?;
    let file = Wanted(store.folder.join(".tmp-wanted"));
    fs::write(&file.0, text)?;
    // Git may be another user; it has only names of objects.
    fs::set_permissions(&file.0, PermissionsExt::from_mode(0o644))?;
    Ok(file)
}

fn table(refs: Vec<(Vec<u8>, CommitId)>, peeled: &BTreeMap<CommitId, CommitId>) -> RefTable {
    RefTable::of(refs.into_iter().map(|(name, id)| (name, id, peeled.get(&id).copied())))
}

/// What those of these objects that are annotated tags lead to; nothing where one is not here. Upstream is not asked for it:
/// forks read this store too. Blocks.
fn peel(repository: &Path, ids: &BTreeSet<CommitId>) -> io::Result<Option<BTreeMap<CommitId, CommitId>>> {
    let repository = open(repository)?;
    let objects = repository.odb().map_err(io::Error::other)?;
    let mut peeled = BTreeMap::new();
    for id in ids {
        let mut at = oid(*id)?;
        let mut nested = 0;
        loop {
            match objects.read_header(at) {
                Ok((_, ObjectType::Tag)) if nested < NESTED_TAGS_MAX => {
                    // Its first line alone: of the rest old history has more forms than the library takes.
                    let target = objects.read(at).ok().and_then(|tag| {
                        let first = tag.data().split(|byte| *byte == b'\n').next()?.strip_prefix(b"object ")?;
                        Oid::from_str(std::str::from_utf8(first).ok()?).ok()
                    });
                    let Some(target) = target else { return Ok(None) };
                    at = target;
                    nested += 1;
                }
                Ok((_, ObjectType::Tag)) | Err(_) => return Ok(None),
                Ok(_) => break,
            }
        }
        if at != oid(*id)? {
            let Ok(target) = at.to_string().parse() else { return Ok(None) };
            peeled.insert(*id, target);
        }
    }
    Ok(Some(peeled))
}

/// Makes a fresh clone the store. Branches and tags go into the namespace; nothing of upstream's address stays.
fn adopt_clone(store: &StorePaths, heads: &str, tags: &str, pins: &str, detached: Option<CommitId>) -> io::Result<()> {
    let clone = store.fill();
    let renamed = |name: &[u8]| {
        let (prefix, rest) = match name.strip_prefix(b"refs/heads/") {
            Some(rest) => (heads, rest),
            None => (tags, name.strip_prefix(b"refs/tags/")?),
        };
        Some([prefix.as_bytes(), rest].concat())
    };
    let mut refs = RefTable::read(&clone.join("packed-refs"))?.rename(renamed);
    if let Some(commit) = detached {
        refs = refs.with(format!("{pins}detached").as_bytes(), commit);
    }
    replace(&clone.join("packed-refs"), &refs.to_file(), true)?;
    finish_store(store)
}

/// Writes what every store has, so that it survives a loss of power, and moves it into place.
pub(super) fn finish_store(store: &StorePaths) -> io::Result<()> {
    let new = store.fill();
    replace(&new.join("config"), CONFIG.as_bytes(), true)?;
    replace(&new.join(GENERATION), uuid::Uuid::now_v7().to_string().as_bytes(), true)?;
    // Last: by it a store is known.
    replace(&new.join("HEAD"), b"ref: refs/heads/.invalid\n", true)?;
    // What stands there is no store any more: the power took its head.
    remove_unfinished(&store.git())?;
    fs::rename(new, store.git())?;
    sync_directory(&store.folder)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::listing::Wanted as Asked;
    use super::*;

    #[test]
    fn only_names_that_git_would_take_are_written_for_it() {
        let id = "a".repeat(40);
        let listing = |names: &[&str]| {
            let lines: String = names.iter().map(|name| format!("{id}\trefs/heads/{name}\n")).collect();
            Listing::parse(lines.as_bytes(), &Asked::default(), "x").unwrap()
        };
        assert!(can_be_written(&listing(&["main", "a/b", "a/c", "a-b", "\u{fc}"])));
        let long = "x".repeat(256);
        for wrong in
            ["a..b", "x.lock", "../../../config", "a b", "a~", ".x", "x/", "a//b", "@{", "a\\b", "main", "a", &long]
        {
            assert!(!can_be_written(&listing(&["main", "a/b", wrong])), "{wrong}");
        }
    }
}
