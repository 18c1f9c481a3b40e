//! The packs of a store: what upkeep looks at, and what killed git children leave among them.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use stoker_core::quantity::Timestamp;
use stoker_core::upkeep::store::{Facts, Graph, Pack};

use super::disk::{is_leftover, names, remove_unfinished};
use super::read::count_index;
use super::upkeep::Record;

/// The names of the packs that git may repack, without their extension: not the kept ones, and not those of unreachable
/// objects.
pub(super) fn packs_of(git: &Path) -> io::Result<Vec<String>> {
    let all: BTreeSet<String> = names(&git.join("objects/pack"))?.into_iter().collect();
    let stems = all.iter().filter_map(|name| name.strip_suffix(".idx"));
    let has = |stem: &str, extension: &str| all.contains(&format!("{stem}.{extension}"));
    let ordinary =
        stems.filter(|stem| has(stem, "pack") && !["keep", "mtimes", "promisor"].iter().any(|ext| has(stem, ext)));
    Ok(ordinary.map(str::to_owned).collect())
}

fn millis(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn changed_at(path: &Path) -> Option<Timestamp> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok().map(millis)
}

/// Looks at a store. Blocks.
pub(super) fn observe(git: &Path, record: &Record) -> io::Result<Facts> {
    let dir = git.join("objects/pack");
    let bytes = |path: PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    let indexed_at = changed_at(&dir.join("multi-pack-index"));
    let (mut packs, mut newest, mut unindexed) = (Vec::new(), None, 0);
    for stem in packs_of(git)? {
        let (pack, idx) = (dir.join(format!("{stem}.pack")), dir.join(format!("{stem}.idx")));
        let came = changed_at(&idx);
        newest = newest.max(came);
        if indexed_at.is_none() || came > indexed_at {
            unindexed += 1;
        }
        let objects = count_index(&idx).unwrap_or(0).into();
        packs.push(Pack { objects, bytes: bytes(pack).saturating_add(bytes(idx)) });
    }
    let all = names(&dir)?;
    let cruft = || all.iter().filter_map(|name| name.strip_suffix(".mtimes"));
    let graphs = git.join("objects/info/commit-graphs/commit-graph-chain");
    let graph = match (changed_at(&graphs), newest) {
        // Packs under protection are packs too.
        (None, _) if all.iter().any(|name| name.ends_with(".idx")) => Graph::Missing,
        (Some(written), Some(newest)) if newest > record.graph_at.unwrap_or(written).max(written) => Graph::Behind,
        _ => Graph::Current,
    };
    let loose = names(&git.join("objects"))?.into_iter().filter(|name| name.len() == 2);
    let loose = loose.map(|name| names(&git.join("objects").join(name)).map_or(0, |names| names.len())).sum::<usize>();
    let refs_changed = changed_at(&git.join("packed-refs"));
    Ok(Facts {
        cruft_packs: u64::try_from(cruft().count()).unwrap_or(u64::MAX),
        cruft_bytes: cruft().map(|stem| bytes(dir.join(format!("{stem}.pack")))).fold(0, u64::saturating_add),
        loose: u64::try_from(loose).unwrap_or(u64::MAX),
        unindexed,
        bitmap: all.iter().any(|name| name.ends_with(".bitmap")),
        graph,
        created_at: changed_at(&git.join(super::disk::GENERATION)).unwrap_or_default(),
        changed_at: newest.max(refs_changed).unwrap_or_default(),
        repacked_at: record.repacked_at,
        full_at: record.full_at,
        packs,
    })
}

/// Unreachable objects get the time of their pack when they are set apart, and their grace must begin then, not when
/// the pack came. What was set apart before has times of its own.
pub(super) fn touch_packs(git: &Path) -> io::Result<()> {
    let times = FileTimes::new().set_modified(SystemTime::now());
    for stem in packs_of(git)? {
        File::open(git.join("objects/pack").join(format!("{stem}.pack")))?.set_times(times)?;
    }
    Ok(())
}

/// Removes temporary files and locks, and halves of packs, of which nobody knows.
pub(super) fn clean(git: &Path) -> io::Result<()> {
    let mut todo = vec![git.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let is_dir = entry.file_type()?.is_dir();
            match name.to_str() {
                // Somebody may have put a pack under protection; git's own names what made it.
                Some(name) if name.ends_with(".keep") && !is_of_git(&path) => {}
                Some(name) if is_leftover(name) && is_dir => remove_unfinished(&path)?,
                Some(name) if is_leftover(name) => remove_file(&path)?,
                _ if is_dir => todo.push(path),
                _ => {}
            }
        }
    }
    half_packs(&git.join("objects/pack"))?.into_iter().try_for_each(|path| remove_file(&path))
}

fn is_of_git(keep: &Path) -> bool {
    fs::read_to_string(keep).is_ok_and(|text| text.starts_with("fetch-pack "))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Files of packs without an index: git reads none of them, and never removes them.
pub(super) fn half_packs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let all: BTreeSet<String> = names(dir)?.into_iter().collect();
    let half = |name: &&String| {
        let stem = name.split_once('.').map_or(name.as_str(), |(stem, _)| stem);
        name.starts_with("pack-") && !all.contains(&format!("{stem}.idx"))
    };
    Ok(all.iter().filter(half).map(|name| dir.join(name)).collect())
}
