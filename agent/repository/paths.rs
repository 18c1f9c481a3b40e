//! A read-only folder for those who take paths: one bare repository a project, for `git clone --reference`.
//!
//! Git resolves what it is given there and writes the real path into `objects/info/alternates`; so an entry cannot lead
//! to a snapshot, which goes. It is a repository of its own at a place that stays: the packs of each newest snapshot are
//! linked into it, and leave only when they have been out of the newest one for a grace. Whatever a borrower took an
//! object from is there for that long, whether upstream, the store or the snapshots still have it. A mirror that was
//! removed or evicted keeps its entry for the grace too; one that is of another trust class now loses it at once, for
//! everybody can read the folder.
//!
//! One task writes here, from the newest snapshot towards the entry, each step of which may be the last: objects come
//! before the refs that name them, an index after its pack, `HEAD`, without which git sees no repository, at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stoker_core::quantity::{Span, Timestamp};
use stoker_core::reason::Reason;

use super::Shared;
use super::disk::{io_reason, names, sync_directory};
use super::fetch::blocking;
use super::snapshot::{CONFIG, SnapshotPin};

/// How often it looks for new snapshots.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it looks for what is due to go, where nothing is new.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// Says that a directory is an entry, and what has been out of use since when.
const MARKER: &str = "stoker-path";
/// Host, groups, name; forges nest groups twenty deep.
const DEPTH_MAX: usize = 24;
/// The most bytes of a component.
const COMPONENT_BYTES_MAX: usize = 200;
/// The parts of a pack, in the order in which they come. Bitmaps stay out: git takes one of a repository only.
const PARTS: [&str; 4] = ["pack", "rev", "mtimes", "idx"];

/// The marker's content, JSON.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    /// Whose entry it is.
    key: String,
    /// Packs and loose objects that are not in the newest snapshot, and since when.
    #[serde(default)]
    gone: BTreeMap<String, Timestamp>,
}

/// What should be shown.
struct Wanted {
    /// Below the folder.
    place: PathBuf,
    key: String,
    /// None where it is known, but empty.
    pin: Option<SnapshotPin>,
}

/// One pass over the folder.
struct Pass {
    base: PathBuf,
    /// Where a rename makes something vanish at once.
    trash_from: PathBuf,
    grace: Span,
    now: Timestamp,
    wanted: BTreeMap<PathBuf, Wanted>,
    /// Entries of these are of a class that is not shown.
    hidden: BTreeSet<String>,
}

/// Keeps the folder until the agent stops.
pub(super) async fn keep_always(shared: Arc<Shared>) {
    let (mut seen, mut passed) = (None, tokio::time::Instant::now());
    loop {
        if let Some(config) = shared.config().paths.clone() {
            let print = fingerprint(&shared);
            let expire = (config.grace / 4).clamp(LOOK_EVERY, EXPIRE_EVERY);
            if seen.as_ref() != Some(&print) || passed.elapsed() >= expire {
                match pass(&shared, &config).await {
                    Ok(()) => seen = Some(print),
                    Err(reason) => {
                        tracing::warn!(reason = reason.code.word(), "the read-only path: {}", reason.message);
                    }
                }
                passed = tokio::time::Instant::now();
            }
        }
        if shared.cancel.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

/// What the folder depends on.
fn fingerprint(shared: &Shared) -> Vec<(String, String, String)> {
    let one = |entry: &Arc<super::entry::Entry>| {
        let state = entry.state();
        let newest = state.current.as_ref().map(|pin| pin.name().to_owned()).unwrap_or_default();
        (entry.folder.clone(), state.meta.trust.clone(), newest)
    };
    let config = shared.config().paths.as_ref().map(|paths| format!("{paths:?}")).unwrap_or_default();
    shared.all().iter().map(one).chain([(config, String::new(), String::new())]).collect()
}

async fn pass(shared: &Arc<Shared>, config: &crate::config::Paths) -> Result<(), Reason> {
    shared.recovered().await?;
    let root = (shared.pool.root)()?;
    let pool = root.parent().unwrap_or(&root).to_owned();
    let mut pass = Pass {
        base: pool.join(&config.directory),
        trash_from: root.join("paths-gone"),
        grace: Span(i64::try_from(config.grace.as_millis()).unwrap_or(i64::MAX)),
        now: shared.now(),
        wanted: BTreeMap::new(),
        hidden: BTreeSet::new(),
    };
    for entry in shared.all() {
        let (trust, pin, removed) = {
            let state = entry.state();
            (state.meta.trust.clone(), state.current.clone(), state.meta.removed)
        };
        let key = entry.url.key().to_owned();
        if !config.trust.contains(&trust) {
            pass.hidden.insert(key);
        } else if let Some(place) = place(&key) {
            let wanted = Wanted { place: place.clone(), key, pin: pin.filter(|_| !removed) };
            pass.wanted.insert(place, wanted);
        }
    }
    pass.part_nested();
    let (discard, relative) = (Arc::clone(&shared.pool.discard), config.directory.clone());
    let subject = pass.base.display().to_string();
    let done = blocking(&subject, move || {
        make_public(&pool, &relative)?;
        pass.run(&*discard)
    });
    done.await?.map_err(|error| io_reason(&subject, "keeping the read-only path", &error))
}

/// Where the entry of a repository stands: `github.com/owner/name`, `localhost/abs/path`. None where its name makes no
/// plain path.
fn place(key: &str) -> Option<PathBuf> {
    let local = key.strip_prefix("file:///").map(|path| format!("localhost/{path}"));
    let parts: Vec<&str> = local.as_deref().unwrap_or(key).split('/').collect();
    let plain = |part: &&str| {
        !part.is_empty()
            && *part != "."
            && *part != ".."
            && part.len() <= COMPONENT_BYTES_MAX
            && !part.contains(char::is_control)
    };
    let good = (2..=DEPTH_MAX).contains(&parts.len()) && parts.iter().all(plain);
    good.then(|| parts.iter().collect())
}

impl Pass {
    /// A repository in the path of another is no entry: git would find the outer one.
    fn part_nested(&mut self) {
        let places: BTreeSet<PathBuf> = self.wanted.keys().cloned().collect();
        self.wanted.retain(|place, _| {
            let inner = place.ancestors().skip(1).any(|above| places.contains(above));
            if inner {
                tracing::debug!(path = %place.display(), "lies in the path of another repository: it is not shown");
            }
            !inner
        });
    }

    fn run(&self, discard: &dyn Fn(PathBuf) -> io::Result<()>) -> io::Result<()> {
        // A kill may have come between the rename and the trash.
        for name in names(self.trash_from.parent().unwrap_or(Path::new("/")))? {
            if name.starts_with("paths-gone") {
                discard(self.trash_from.with_file_name(name))?;
            }
        }
        let mut first = Ok(());
        let mut note = |done: io::Result<()>| {
            if let Err(error) = done
                && first.is_ok()
            {
                first = Err(error);
            }
        };
        for wanted in self.wanted.values() {
            if let Some(pin) = &wanted.pin {
                note(self.fill(wanted, pin));
            }
        }
        for (place, marker) in entries(&self.base)? {
            let shown = self.wanted.get(&place).is_some_and(|wanted| wanted.key == marker.key);
            let filled = shown && self.wanted.get(&place).is_some_and(|wanted| wanted.pin.is_some());
            if !filled {
                note(self.expire(&place, marker, shown, discard));
            }
        }
        note(self.link_names());
        first
    }

    /// Brings an entry to the newest snapshot.
    fn fill(&self, wanted: &Wanted, pin: &SnapshotPin) -> io::Result<()> {
        make_public(&self.base, wanted.place.as_path())?;
        let top = self.base.join(&wanted.place);
        for dir in ["objects", "objects/pack", "objects/info", "refs", "refs/heads"] {
            make_public(&top, Path::new(dir))?;
        }
        let marker = Marker::read(&top).unwrap_or_default();
        let mut marker = Marker { key: wanted.key.clone(), ..marker };
        if !top.join(MARKER).exists() {
            marker.write(&top)?;
        }
        let (from, to) = (pin.path().join("objects"), top.join("objects"));
        let current = items(&from)?;
        link_items(&from, &to, &current)?;
        put(&top.join("packed-refs"), &fs::read(pin.path().join("packed-refs"))?)?;
        put(&top.join("config"), CONFIG.as_bytes())?;
        put(&top.join("HEAD"), &fs::read(pin.path().join("HEAD"))?)?;
        let before = marker.clone();
        self.drop_items(&to, &current, &mut marker)?;
        if marker == before { Ok(()) } else { marker.write(&top) }
    }

    /// Takes away what has been out of use for the grace.
    fn drop_items(&self, objects: &Path, current: &BTreeSet<String>, marker: &mut Marker) -> io::Result<()> {
        let here = items(objects)?;
        marker.gone.retain(|item, _| here.contains(item) && !current.contains(item));
        for item in here.difference(current) {
            let since = *marker.gone.entry(item.clone()).or_insert(self.now);
            // Nobody reads a pack without its index: it is what a kill left.
            let half = item.starts_with("pack/") && !objects.join(format!("{item}.idx")).exists();
            if half || self.now.since(since) >= self.grace {
                remove_item(objects, item)?;
                marker.gone.remove(item);
            }
        }
        Ok(())
    }

    /// An entry without a mirror behind it: its objects age, and with the last of them it goes.
    fn expire(
        &self,
        place: &Path,
        mut marker: Marker,
        shown: bool,
        discard: &dyn Fn(PathBuf) -> io::Result<()>,
    ) -> io::Result<()> {
        let top = self.base.join(place);
        let before = marker.clone();
        let here = items(&top.join("objects"))?;
        for item in &here {
            marker.gone.entry(item.clone()).or_insert(self.now);
        }
        // All at once: refs that name what has gone would be worse than none.
        let last = marker.gone.iter().filter(|(item, _)| here.contains(*item)).map(|(_, since)| *since).max();
        let over = last.is_none_or(|since| self.now.since(since) >= self.grace);
        let hidden = !shown && self.hidden.contains(&marker.key);
        if !over && !hidden {
            return if marker == before { Ok(()) } else { marker.write(&top) };
        }
        // Out of the pool's directory of the agent nothing can be thrown away: it is moved in first.
        let gone = self.trash_from.with_file_name(format!("paths-gone-{}", uuid::Uuid::now_v7().simple()));
        fs::rename(&top, &gone)?;
        let mut above = place.parent();
        while let Some(dir) = above.filter(|dir| !dir.as_os_str().is_empty()) {
            // One that is not empty stays.
            if fs::remove_dir(self.base.join(dir)).is_err() {
                break;
            }
            above = dir.parent();
        }
        discard(gone)
    }

    /// `<name>` leads to the entry where it is the only one of that name.
    fn link_names(&self) -> io::Result<()> {
        let all = entries(&self.base)?;
        let mut by_name: BTreeMap<&str, Vec<&Path>> = BTreeMap::new();
        for (place, _) in &all {
            if let Some(name) = place.file_name().and_then(|name| name.to_str()) {
                by_name.entry(name).or_default().push(place);
            }
        }
        let wanted: BTreeMap<&str, &Path> = by_name
            .into_iter()
            .filter_map(|(name, places)| <[&Path; 1]>::try_from(places).ok().map(|[one]| (name, one)))
            .collect();
        for name in names(&self.base)? {
            let path = self.base.join(&name);
            let Ok(target) = fs::read_link(&path) else { continue };
            if wanted.get(name.as_str()).is_none_or(|place| **place != target) {
                fs::remove_file(&path)?;
            }
        }
        for (name, place) in wanted {
            let path = self.base.join(name);
            // A host may have that name.
            if fs::symlink_metadata(&path).is_err() {
                symlink(place, &path)?;
            }
        }
        Ok(())
    }
}

impl Marker {
    fn read(top: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(top.join(MARKER)).ok()?).ok()
    }

    fn write(&self, top: &Path) -> io::Result<()> {
        put(&top.join(MARKER), &serde_json::to_vec(self).map_err(io::Error::other)?)
    }
}

/// All entries that are there, relative to the folder.
fn entries(base: &Path) -> io::Result<Vec<(PathBuf, Marker)>> {
    let (mut found, mut todo) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(place) = todo.pop() {
        let dir = base.join(&place);
        if dir.join(MARKER).exists() {
            // One whose marker is damaged begins its grace anew.
            found.push((place, Marker::read(&dir).unwrap_or_default()));
        } else if place.components().count() <= DEPTH_MAX {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    todo.push(place.join(entry.file_name()));
                }
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Packs (`pack/pack-<hash>`) and loose objects (`ab/cdef...`) of an object store.
fn items(objects: &Path) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for dir in names(objects)? {
        match dir.as_str() {
            "pack" => {
                for name in names(&objects.join("pack"))? {
                    let part = name.split_once('.').filter(|(_, part)| PARTS.contains(part));
                    found.extend(
                        part.filter(|(stem, _)| stem.starts_with("pack-")).map(|(stem, _)| format!("pack/{stem}")),
                    );
                }
            }
            _ if dir.len() == 2 => {
                found.extend(names(&objects.join(&dir))?.into_iter().map(|name| format!("{dir}/{name}")))
            }
            _ => {}
        }
    }
    Ok(found)
}

fn link_items(from: &Path, to: &Path, items: &BTreeSet<String>) -> io::Result<()> {
    let mut linked = BTreeSet::new();
    for item in items {
        let files = match item.strip_prefix("pack/") {
            Some(_) => PARTS.iter().map(|part| format!("{item}.{part}")).collect(),
            None => vec![item.clone()],
        };
        for file in files {
            let (source, target) = (from.join(&file), to.join(&file));
            if target.exists() || !source.exists() {
                continue;
            }
            if let Some((dir, _)) = file.split_once('/') {
                make_public(to, Path::new(dir))?;
                linked.insert(to.join(dir));
            }
            fs::hard_link(&source, &target)?;
            if fs::metadata(&target)?.permissions().mode() & 0o777 != 0o444 {
                fs::set_permissions(&target, Permissions::from_mode(0o444))?;
            }
        }
    }
    linked.iter().try_for_each(|dir| sync_directory(dir))
}

/// An index goes before its pack.
fn remove_item(objects: &Path, item: &str) -> io::Result<()> {
    let files: Vec<PathBuf> = match item.starts_with("pack/") {
        true => PARTS.iter().rev().map(|part| objects.join(format!("{item}.{part}"))).collect(),
        false => vec![objects.join(item)],
    };
    for file in files {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Makes the directories of a relative path, which everybody may read and nobody else may write.
fn make_public(base: &Path, relative: &Path) -> io::Result<()> {
    let mut dir = base.to_owned();
    for part in relative.components() {
        dir.push(part);
        match fs::create_dir(&dir) {
            Ok(()) => fs::set_permissions(&dir, Permissions::from_mode(0o755))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes the whole file, for all to read, or leaves the old one; nothing where it is the same.
fn put(file: &Path, content: &[u8]) -> io::Result<()> {
    if fs::read(file).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    let temporary = file.with_file_name(format!(".tmp-{name}"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut writer = File::create_new(&temporary)?;
    writer.write_all(content)?;
    writer.set_permissions(Permissions::from_mode(0o444))?;
    writer.sync_all()?;
    fs::rename(&temporary, file)?;
    file.parent().map_or(Ok(()), sync_directory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn places_are_plain_paths() {
        let table = [
            ("github.com/a/b", Some("github.com/a/b")),
            ("host:8443/group/sub/name", Some("host:8443/group/sub/name")),
            ("file:///srv/git/a", Some("localhost/srv/git/a")),
            ("github.com", None),
            ("github.com/../etc", None),
            ("github.com//a", None),
            ("github.com/a\nb/c", None),
        ];
        for (key, expected) in table {
            assert_eq!(place(key), expected.map(PathBuf::from), "{key}");
        }
        assert_eq!(place(&format!("h/{}", "x".repeat(300))), None);
        assert_eq!(place(&["a"; 40].join("/")), None);
    }

    #[test]
    fn a_repository_in_the_path_of_another_is_not_shown() {
        let wanted = ["h/a", "h/a/b", "h/ab"]
            .map(|place| (PathBuf::from(place), Wanted { place: place.into(), key: place.into(), pin: None }));
        let mut pass = Pass {
            base: PathBuf::new(),
            trash_from: PathBuf::new(),
            grace: Span(0),
            now: Timestamp(0),
            wanted: wanted.into(),
            hidden: BTreeSet::new(),
        };
        pass.part_nested();
        assert_eq!(pass.wanted.keys().collect::<Vec<_>>(), [Path::new("h/a"), Path::new("h/ab")]);
    }
}
