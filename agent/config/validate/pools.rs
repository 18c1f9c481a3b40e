//! Pools and their directories: names, paths, and what may lie in what.
//!
//! Pools of all nodes are checked, those of this node are given. Two pools clash only where some node can have both: so
//! one file serves nodes whose disks differ, each with a pool of the same name.

use std::path::{Path, PathBuf};

use super::{limit, some, text};
use crate::config::file::{DirectorySection, FloorSection, Mount, NodesSection, PoolSection, RetentionWord};
use crate::config::problem::{Fault, Place, Problems, shown};
use crate::config::{Directory, Floor, NodeIdentity, Pool, Retention};

/// The most pools of a file.
const POOLS_MAX: usize = 64;
/// The most directories of a pool.
const DIRECTORIES_MAX: usize = 256;
/// What the agent calls its own directory in each pool.
pub(super) const OWN_DIRECTORY: &str = "stoker";

/// The pools of `node`.
pub(super) fn validate(
    sections: &[PoolSection],
    node: &NodeIdentity,
    state: &Path,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<Pool> {
    if sections.is_empty() {
        problems.add(place, Fault::new("is empty", "declare a pool: `- {name: data, path: /var/mnt/data}`"));
    }
    if sections.len() > POOLS_MAX {
        let remedy = format!("declare at most {POOLS_MAX}");
        problems.add(place, Fault::new(format!("has {} pools", sections.len()), remedy));
        return Vec::new();
    }
    let mut pools: Vec<Pool> = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let here = place.entry(index);
        let pool = pool(section, &here, problems);
        selector(section.nodes.as_ref(), &here.field("nodes"), problems);
        apart_from_state(&pool.path, state, &here.field("path"), problems);
        for (earlier, (other, known)) in sections.iter().zip(&pools).enumerate() {
            if !never_together(section.nodes.as_ref(), other.nodes.as_ref()) {
                clash(&pool, known, &here, &place.entry(earlier), problems);
            }
        }
        pools.push(pool);
    }
    let on_this_node = sections.iter().zip(pools).filter(|(section, _)| selects(section.nodes.as_ref(), node));
    on_this_node.map(|(_, pool)| pool).collect()
}

/// The name, where a pool of the file has it: on this node or on another.
pub(super) fn named(sections: &[PoolSection], name: &str) -> Result<String, Fault> {
    if sections.iter().any(|section| section.name == name) {
        return Ok(name.to_owned());
    }
    let mut known: Vec<&str> = sections.iter().map(|section| section.name.as_str()).collect();
    known.dedup();
    let remedy = format!("write the name of a declared pool: {}", known.join(", "));
    Err(Fault::new(format!("{} is not a declared pool", shown(name)), remedy))
}

fn pool(section: &PoolSection, place: &Place<'_>, problems: &mut Problems) -> Pool {
    let uuid = section.uuid.as_deref().map(|written| {
        let parsed = uuid::Uuid::try_parse(written).map(uuid::Uuid::into_bytes).map_err(|_| {
            let remedy = "write it as `blkid` prints it: 32 hexadecimal digits with hyphens";
            Fault::new(format!("{} is not the UUID of a filesystem", shown(written)), remedy)
        });
        problems.take(&place.field("uuid"), parsed)
    });
    Pool {
        name: problems.take(&place.field("name"), text::name(&section.name)),
        path: problems.take(&place.field("path"), text::absolute(&section.path)),
        mount_required: section.mount == Mount::Required,
        uuid,
        seal: section.seal,
        floor: floor(&section.floor, &place.field("floor"), false, problems),
        directories: directories(&section.directories, &place.field("directories"), problems),
    }
}

/// A floor. No inodes may be kept free anywhere (some filesystems count none); no bytes only where `zero_bytes`.
pub(super) fn floor(section: &FloorSection, place: &Place<'_>, zero_bytes: bool, problems: &mut Problems) -> Floor {
    let bytes = section.bytes.share();
    let bytes = if zero_bytes { bytes } else { bytes.and_then(some) };
    Floor {
        bytes: problems.take(&place.field("bytes"), bytes),
        inodes: problems.take(&place.field("inodes"), section.inodes.share()),
    }
}

fn directories(sections: &[DirectorySection], place: &Place<'_>, problems: &mut Problems) -> Vec<Directory> {
    if sections.len() > DIRECTORIES_MAX {
        let remedy = format!("declare at most {DIRECTORIES_MAX} in a pool");
        problems.add(place, Fault::new(format!("has {} directories", sections.len()), remedy));
        return Vec::new();
    }
    let mut directories: Vec<Directory> = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let here = place.entry(index);
        let directory = directory(section, &here, problems);
        for (earlier, other) in directories.iter().enumerate() {
            nested(&directory, other, &here, &place.entry(earlier), problems);
        }
        directories.push(directory);
    }
    directories
}

fn directory(section: &DirectorySection, place: &Place<'_>, problems: &mut Problems) -> Directory {
    let path = text::relative(&section.path).and_then(|path| {
        if path.starts_with(OWN_DIRECTORY) {
            let message = format!("{} lies in `{OWN_DIRECTORY}`, which is the agent's own", shown(&section.path));
            return Err(Fault::new(message, "choose another name"));
        }
        Ok(path)
    });
    let mut id = |field: &str, id: Option<u64>| {
        let id = id?;
        // The last one means "leave it as it is" to chown(2).
        let known = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let fault = || Fault::new(format!("{id} is not an id"), "write a number from 0 to 4294967294");
        Some(problems.take(&place.field(field), known.ok_or_else(fault)))
    };
    let (owner, group) = (id("owner", section.owner), id("group", section.group));
    Directory {
        path: problems.take(&place.field("path"), path),
        mode: problems.take(&place.field("mode"), section.mode.bits()),
        owner,
        group,
        retention: match section.retention {
            RetentionWord::Scratch => Retention::Scratch,
            RetentionWord::Cache => Retention::Cache,
            RetentionWord::Output => Retention::Output,
            RetentionWord::Mirror => Retention::Mirror,
        },
        limit: section.limit.as_ref().map(|bytes| problems.take(&place.field("limit"), limit(bytes.bytes()))),
    }
}

/// Directories may lie in one another only where nobody deletes the outer one's content by age or use: the inner one
/// would go with it.
fn nested(one: &Directory, other: &Directory, here: &Place<'_>, there: &Place<'_>, problems: &mut Problems) {
    let path = here.field("path");
    // A path that was refused is empty.
    if one.path == PathBuf::new() || other.path == PathBuf::new() {
        return;
    }
    let line = there.line();
    if one.path == other.path {
        let message = format!("{} is declared twice, first in line {line}", shown(&one.path.to_string_lossy()));
        problems.add(&path, Fault::new(message, "keep one of them"));
        return;
    }
    let outer = if one.path.starts_with(&other.path) {
        other
    } else if other.path.starts_with(&one.path) {
        one
    } else {
        return;
    };
    if outer.retention != Retention::Mirror {
        let outer = shown(&outer.path.to_string_lossy());
        let message = format!("overlaps the directory of line {line}, and content of {outer} is deleted in time");
        problems.add(&path, Fault::new(message, "put them side by side, or keep the outer one as `mirror`"));
    }
}

/// The state is written while a pool is absent or full: it lies elsewhere, and no pool lies in it.
fn apart_from_state(pool: &Path, state: &Path, place: &Place<'_>, problems: &mut Problems) {
    if pool == Path::new("") || state == Path::new("") {
        return;
    }
    let (pool_shown, state_shown) = (shown(&pool.to_string_lossy()), shown(&state.to_string_lossy()));
    if state.starts_with(pool) {
        let message = format!("{pool_shown} contains the agent's state, {state_shown}");
        problems.add(place, Fault::new(message, "set `state` to a path that is on no pool"));
    } else if pool.starts_with(state) {
        let message = format!("{pool_shown} lies in the agent's state, {state_shown}");
        problems.add(place, Fault::new(message, "choose a path outside `state`"));
    }
}

fn clash(pool: &Pool, other: &Pool, here: &Place<'_>, there: &Place<'_>, problems: &mut Problems) {
    let line = there.line();
    if !pool.name.is_empty() && pool.name == other.name {
        let message = format!("{} is the name of the pool in line {line} too", shown(&pool.name));
        let remedy = "choose another name, or other `nodes` for each: no node can have both";
        problems.add(&here.field("name"), Fault::new(message, remedy));
    }
    if pool.path == PathBuf::new() || other.path == PathBuf::new() {
        return;
    }
    if pool.path.starts_with(&other.path) || other.path.starts_with(&pool.path) {
        let (one, two) = (shown(&pool.path.to_string_lossy()), shown(&other.path.to_string_lossy()));
        let message = format!("{one} overlaps {two}, the pool in line {line}");
        let remedy = "choose a path that neither contains another pool nor lies in one";
        problems.add(&here.field("path"), Fault::new(message, remedy));
    }
}

fn selector(nodes: Option<&NodesSection>, place: &Place<'_>, problems: &mut Problems) {
    let Some(nodes) = nodes else { return };
    if nodes.names.is_empty() && nodes.labels.is_empty() {
        problems.add(place, Fault::new("selects no node", "give `names` or `labels`, or remove it for all nodes"));
    }
    for (index, name) in nodes.names.iter().enumerate() {
        problems.take(&place.field("names").entry(index), text::node_name(name));
    }
    for (key, value) in &nodes.labels {
        problems.take(&place.field("labels").field(key), text::label(key, value));
    }
}

fn selects(nodes: Option<&NodesSection>, node: &NodeIdentity) -> bool {
    nodes.is_none_or(|nodes| {
        (nodes.names.is_empty() || nodes.names.contains(&node.name))
            && nodes.labels.iter().all(|(key, value)| node.labels.get(key) == Some(value))
    })
}

/// No node can be selected by both: their names differ, or they want different values of one label.
fn never_together(one: Option<&NodesSection>, other: Option<&NodesSection>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return false };
    let named = !one.names.is_empty() && !other.names.is_empty();
    (named && !one.names.iter().any(|name| other.names.contains(name)))
        || one.labels.iter().any(|(key, value)| other.labels.get(key).is_some_and(|theirs| theirs != value))
}
