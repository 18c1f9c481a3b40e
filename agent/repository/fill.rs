//! The first fill of a store: a clone beside its place, its refs rewritten into the namespace, moved into place.
//!
//! A clone works by its absolute path, whatever it is given, and so cannot be bound to its filesystem as a fetch is; it is
//! ended as soon as the pool is seen to have gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use git2::{ObjectType, Oid, Repository};
use stoker_core::identity::CommitId;

use super::disk::{GENERATION, StorePaths, make_directory, remove_unfinished};
use super::fetch::{Visit, on_disk};
use super::git::GitError;
use super::listing::{Head, Listing};
use super::local::SafeDirectory;
use super::refs::RefTable;
use super::snapshot::CONFIG;

/// From so many branches and tags on they are not listed to git once more, which takes it 6 µs and upstream as much for
/// each of them.
const MANY_REFS: usize = 5_000;
/// Tags of tags of tags are followed so far.
const NESTED_TAGS_MAX: usize = 16;

impl Visit {
    /// Fills the store with all branches and tags.
    pub(super) async fn fill(&self, listing: &Listing, safe: Option<&SafeDirectory>) -> Result<(), GitError> {
        if let Some(Head::Branch(branch)) = &listing.head
            && listing.followed >= MANY_REFS
        {
            match self.fill_by_list(listing, branch, safe).await {
                Ok(true) => return Ok(()),
                Err(error) if error.is_of_the_machine() => return Err(error),
                // Upstream changed meanwhile, or gives nothing by its name.
                Ok(false) | Err(_) => tracing::debug!(repository = self.url.key(), "the refs are listed to git again"),
            }
        }
        let detached = match listing.head {
            Some(Head::Detached(commit)) => Some(commit),
            _ => None,
        };
        self.clone_bare(&[], safe).await?;
        let (store, heads, tags, pins) =
            (self.store.clone(), self.followed("heads"), self.followed("tags"), self.pins());
        on_disk(move || adopt_clone(&store, &heads, &tags, &pins, detached)).await
    }

    /// One branch is cloned; what the other refs name and it lacks comes by name; the refs are those of the list that is
    /// here, once git has seen that all of them are whole. False where something is not to be had.
    async fn fill_by_list(
        &self,
        listing: &Listing,
        branch: &str,
        safe: Option<&SafeDirectory>,
    ) -> Result<bool, GitError> {
        self.clone_bare(&["--single-branch", "--no-tags", "--branch", branch], safe).await?;
        let dir = self.store.fill();
        let ids: BTreeSet<CommitId> = listing.all.iter().map(|(_, id)| id).collect();
        let (place, wanted) = (dir.clone(), ids.clone());
        let lacking = on_disk(move || lacking(&place, &wanted)).await?;
        let lines = |ids: &mut dyn Iterator<Item = &CommitId>| ids.map(|id| format!("{id}\n")).collect::<String>();
        if !lacking.is_empty() {
            let lines = lines(&mut lacking.iter());
            let fixed =
                ["fetch", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--progress", "--stdin"];
            let command = self.remote(fixed, safe).args(["--", self.url.fetch_url()]).stdin(lines.into_bytes());
            let command = command.git_dir(".").work_dir(&dir).progress(self.progress.clone());
            command.run_in_store(&dir).await?;
        }
        // As a fetch looks through what it brought.
        let look = self.git.command(["rev-list", "--objects", "--quiet", "--stdin", "--not", "--all"]);
        let look = look.git_dir(".").work_dir(&dir).cancel(self.cancel.clone()).time_limit(self.remaining());
        look.stdin(lines(&mut ids.iter()).into_bytes()).run_in_store(&dir).await?;
        let (store, all) = (self.store.clone(), listing.all.clone());
        let namespace = format!("refs/namespaces/{}/", self.folder).into_bytes();
        let adopt = move || {
            let place = store.fill();
            let Some(peeled) = peel(&place, &ids)? else { return Ok(false) };
            let named = |(name, id): (&[u8], CommitId)| ([&namespace, name].concat(), id, peeled.get(&id).copied());
            fs::write(place.join("packed-refs"), RefTable::of(all.iter().map(named)).to_file())?;
            finish_store(&store)?;
            Ok(true)
        };
        on_disk(adopt).await
    }

    async fn clone_bare(&self, options: &[&str], safe: Option<&SafeDirectory>) -> Result<(), GitError> {
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
        let command = self.remote(fixed, safe).args(options).args(["--", self.url.fetch_url(), &path]);
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

/// Those of these objects that are not here. Blocks.
fn lacking(repository: &Path, ids: &BTreeSet<CommitId>) -> io::Result<Vec<CommitId>> {
    let repository = open(repository)?;
    let objects = repository.odb().map_err(io::Error::other)?;
    let mut lacking = Vec::new();
    for id in ids {
        if !objects.exists(oid(*id)?) {
            lacking.push(*id);
        }
    }
    Ok(lacking)
}

/// What those of these objects that are annotated tags lead to; nothing where one is not here. Blocks.
fn peel(repository: &Path, ids: &BTreeSet<CommitId>) -> io::Result<Option<BTreeMap<CommitId, CommitId>>> {
    let repository = open(repository)?;
    let objects = repository.odb().map_err(io::Error::other)?;
    let mut peeled = BTreeMap::new();
    for id in ids {
        let mut at = oid(*id)?;
        for _ in 0..NESTED_TAGS_MAX {
            match objects.read_header(at) {
                Ok((_, ObjectType::Tag)) => at = repository.find_tag(at).map_err(io::Error::other)?.target_id(),
                Ok(_) => break,
                Err(_) => return Ok(None),
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
    fs::write(clone.join("packed-refs"), refs.to_file())?;
    finish_store(store)
}

/// Writes what every store has, and moves it into place.
fn finish_store(store: &StorePaths) -> io::Result<()> {
    let new = store.fill();
    fs::write(new.join("config"), CONFIG)?;
    fs::write(new.join("HEAD"), "ref: refs/heads/.invalid\n")?;
    fs::write(new.join(GENERATION), uuid::Uuid::now_v7().to_string())?;
    fs::rename(new, store.git())
}
