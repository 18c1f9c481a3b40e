//! What was brought and checked becomes a store, or joins one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use git2::{ObjectType, Oid, Repository, RepositoryOpenFlags};
use stoker_core::identity::CommitId;

use super::super::refs::is_ref_name;
use crate::repository::disk::{self, StorePaths, remove_unfinished, replace};
use crate::repository::fill::finish_store;
use crate::repository::refs::{RefTable, is_followed};

/// How many branches that differ from ours are compared by their history; beyond that upstream's word stays.
const COMPARED_MAX: usize = 1000;

fn open(dir: &Path) -> Result<Repository, git2::Error> {
    let flags = RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE | RepositoryOpenFlags::NO_DOTGIT;
    Repository::open_ext(dir, flags, std::iter::empty::<&Path>())
}

fn oid(id: CommitId) -> Oid {
    Oid::from_bytes(id.bytes()).unwrap_or(Oid::ZERO_SHA1)
}

/// Branches, tags and pull requests of what was brought. What tags peel to is looked up: it is not for the archive to say.
pub(super) fn read_refs(staging: &Path, file: &str) -> Result<RefTable, String> {
    let listed = RefTable::read(&staging.join(file)).map_err(|error| format!("its refs cannot be read: {error}"))?;
    let repository = open(staging).map_err(|error| error.to_string())?;
    let shown = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let mut refs: BTreeMap<Vec<u8>, (CommitId, Option<CommitId>)> = BTreeMap::new();
    for line in listed.iter() {
        if !is_ref_name(line.name) {
            return Err(format!("{:?} is no name of a ref", shown(line.name)));
        }
        let branch = line.name.starts_with(b"refs/heads/");
        let pull = line.name.starts_with(b"refs/pull/") || line.name.starts_with(b"refs/merge-requests/");
        if !is_followed(line.name) && !pull {
            continue;
        }
        let object = repository.find_object(oid(line.id), None);
        let object = object.map_err(|_| format!("{} names {}, which is not there", shown(line.name), line.id))?;
        if branch && object.kind() != Some(ObjectType::Commit) {
            return Err(format!("{} names {}, which is no commit", shown(line.name), line.id));
        }
        let peeled = match object.kind() {
            Some(ObjectType::Tag) => {
                let target = object.peel(ObjectType::Any).map_err(|error| format!("{}: {error}", shown(line.name)))?;
                CommitId::try_from(target.id().to_string()).ok()
            }
            _ => None,
        };
        refs.insert(line.name.to_vec(), (line.id, peeled));
    }
    if let Some(name) = refs.keys().find(|name| conflicts(name, &|other| refs.contains_key(other))) {
        return Err(format!("{:?} lies below the name of another ref", shown(name)));
    }
    match refs.is_empty() {
        true => Err("it has no branches and no tags".to_owned()),
        false => Ok(RefTable::of(refs.into_iter().map(|(name, (id, peeled))| (name, id, peeled)))),
    }
}

/// Whether a part of the name is the whole name of a ref: git cannot have both.
fn conflicts(name: &[u8], has: &dyn Fn(&[u8]) -> bool) -> bool {
    let ends = name.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    ends.filter_map(|at| name.get(..at)).any(has)
}

/// Where refs of one repository lie in its store.
pub(super) struct Names {
    pub(super) heads: String,
    pub(super) tags: String,
    pub(super) pins: String,
}

impl Names {
    fn in_store(&self, name: &[u8]) -> Vec<u8> {
        let placed = |space: &str, rest: &[u8]| [space.as_bytes(), rest].concat();
        match (name.strip_prefix(b"refs/heads/"), name.strip_prefix(b"refs/tags/")) {
            (Some(rest), _) => placed(&self.heads, rest),
            (None, Some(rest)) => placed(&self.tags, rest),
            (None, None) => placed(&self.pins, name),
        }
    }
}

/// What was brought is the store from now on.
pub(super) fn become_store(staging: &Path, store: &StorePaths, refs: &RefTable, names: &Names) -> io::Result<()> {
    store.make_folder()?;
    let fill = store.fill();
    remove_unfinished(&fill)?;
    fs::rename(staging, &fill)?;
    for left in ["incoming-refs", "FETCH_HEAD"] {
        match fs::remove_file(fill.join(left)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let placed = RefTable::of(refs.iter().map(|line| (names.in_store(line.name), line.id, line.peeled)));
    replace(&fill.join("packed-refs"), &placed.to_file(), true)?;
    finish_store(store)
}

/// Its packs come into the store, and those of its refs that say more than the store's. The caller has the turn, and all
/// refs of the store are packed.
pub(super) fn join_store(
    staging: &Path,
    store: &StorePaths,
    refs: &RefTable,
    names: &Names,
    confirmed: bool,
) -> io::Result<()> {
    let (from, to) = (staging.join("objects/pack"), store.git().join("objects/pack"));
    let files = disk::names(&from)?;
    // As git itself: a pack is there once its index is.
    for ending in [".pack", ".rev", ".idx"] {
        for name in files.iter().filter(|name| name.ends_with(ending)) {
            let stem = name.strip_suffix(ending).unwrap_or(name);
            if !to.join(format!("{stem}.idx")).exists() {
                fs::rename(from.join(name), to.join(name))?;
            }
        }
    }
    let packed = store.git().join("packed-refs");
    let before = RefTable::read(&packed)?;
    let repository = open(&store.git()).map_err(io::Error::other)?;
    let mut merged: BTreeMap<Vec<u8>, (CommitId, Option<CommitId>)> =
        before.iter().map(|line| (line.name.to_vec(), (line.id, line.peeled))).collect();
    let mut compared = 0;
    for line in refs.iter() {
        let name = names.in_store(line.name);
        let stays = match merged.get(&name) {
            Some((id, _)) if *id == line.id => true,
            Some(_) if !confirmed => false,
            Some((id, _)) if line.name.starts_with(b"refs/heads/") && compared < COMPARED_MAX => {
                compared += 1;
                // What upstream said last stays, unless what was brought goes on from there.
                !repository.graph_descendant_of(oid(line.id), oid(*id)).unwrap_or(false)
            }
            Some(_) => true,
            None => {
                let below = [&name[..], b"/"].concat();
                let above = merged.range(below.clone()..).next().is_some_and(|(other, _)| other.starts_with(&below));
                above || conflicts(&name, &|other| merged.contains_key(other))
            }
        };
        if !stays {
            merged.insert(name, (line.id, line.peeled));
        }
    }
    let merged = RefTable::of(merged.into_iter().map(|(name, (id, peeled))| (name, id, peeled)));
    replace(&packed, &merged.to_file(), true)
}
