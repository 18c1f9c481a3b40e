//! What is on a disk: whole trees to compare, and an agent's journal as SQLite has it.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Larger files are compared by their size.
const HASHED_BYTES_MAX: u64 = 1 << 20;

/// Everything below `root`: kind, mode, size, and what is in it. Empty where there is nothing; what goes meanwhile (of the
/// trash) is not in it.
pub(crate) fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let Some(meta) = unless_gone(std::fs::symlink_metadata(&path)) else { continue };
            let kind = meta.file_type();
            let content = if kind.is_symlink() {
                let Some(target) = unless_gone(std::fs::read_link(&path)) else { continue };
                format!("link to {}", target.display())
            } else if kind.is_dir() {
                pending.push(path.clone());
                "folder".to_owned()
            } else if kind.is_file() && meta.size() <= HASHED_BYTES_MAX {
                let Some(bytes) = unless_gone(std::fs::read(&path)) else { continue };
                let hash = Sha256::digest(bytes);
                format!("{} bytes {}", meta.size(), hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            } else {
                format!("{} bytes", meta.size())
            };
            let mode = meta.permissions().mode();
            found.insert(path.strip_prefix(root).unwrap().to_owned(), format!("{mode:o} {content}"));
        }
    }
    found
}

#[track_caller]
fn unless_gone<T>(read: std::io::Result<T>) -> Option<T> {
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        read => Some(read.unwrap()),
    }
}

/// What a killed git or agent leaves below `root`, and nobody would ever use.
pub(crate) fn leftovers(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if is_leftover(&path) {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path);
            }
        }
    }
    found
}

/// The same of all repositories of a pool; what was discarded is not of them.
pub(crate) fn leftovers_of_repositories(pool: &Path) -> Vec<PathBuf> {
    ["repositories", "stores"].iter().flat_map(|part| leftovers(&pool.join("stoker").join(part))).collect()
}

fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    // A pack without its index is one that no git reads: dead weight for ever.
    (name.ends_with(".pack") && !path.with_extension("idx").exists())
        || [".lock", ".new"].iter().any(|end| name.ends_with(end))
        || ["tmp_", ".tmp-", "incoming-"].iter().any(|begin| name.starts_with(begin))
        || (name.starts_with("pack-") && name.ends_with(".keep"))
}

/// The names in a folder; none where it is not there.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A lease as the journal has it.
#[derive(Debug)]
pub(crate) struct LeaseRow {
    pub(crate) id: String,
    pub(crate) state: String,
    /// The whole record.
    pub(crate) record: Value,
}

impl LeaseRow {
    /// The most memory that the build was seen to use, in bytes.
    pub(crate) fn memory_peak(&self) -> Option<u64> {
        self.record["peak"]["memory_bytes_peak"].as_u64()
    }
}

/// The leases in the journal of a state directory, the oldest first. An agent may be using it.
pub(crate) fn leases(state: &Path) -> Vec<LeaseRow> {
    let connection = journal(state);
    let mut select = connection.prepare("SELECT id, state, record FROM lease ORDER BY created_ms, id").unwrap();
    let rows = select.query_map([], |row| {
        Ok(LeaseRow { id: row.get(0)?, state: row.get(1)?, record: row.get::<_, String>(2)?.parse().unwrap() })
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// How many rows a table of the journal has.
pub(crate) fn rows(state: &Path, table: &str) -> i64 {
    journal(state).query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

fn journal(state: &Path) -> Connection {
    let path = state.join("journal.sqlite");
    assert!(path.is_file(), "no journal in {}: {:?}", state.display(), names(state));
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    connection
}

/// That no workspace, no mount and nothing thrown away is left in a pool. Kept checkouts stay.
#[track_caller]
pub(crate) fn assert_no_workspace(pool: &Path) {
    assert!(pool.join("stoker").is_dir(), "no pool in {}", pool.display());
    for folder in ["workspaces", "overlays", "trash"] {
        assert_eq!(names(&pool.join("stoker").join(folder)), Vec::<String>::new(), "left in {folder}");
    }
    assert_eq!(mounts_below(pool), Vec::<PathBuf>::new(), "mounted in {}", pool.display());
    let left: Vec<_> = listing(pool)
        .into_keys()
        .filter(|path| !path.starts_with("stoker/checkouts"))
        .filter(|path| path.iter().any(|part| ["src", "tmp", "out"].iter().any(|name| part == *name)))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "left in {}", pool.display());
}

/// What is mounted below a path.
pub(crate) fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
    points.filter(|point| point.starts_with(path) && point != path).collect()
}

/// Unmounts what an agent that was killed left mounted below a path, and lets go of the sealed mount points: a folder with
/// those cannot be removed.
pub(crate) fn take_overlays_away(path: &Path) {
    for point in mounts_below(path).iter().rev() {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(point).status();
    }
    let names = ["(", "-name", "src", "-o", "-name", "tmp", ")"];
    let sealed = ["-maxdepth", "8", "-type", "d"].into_iter().chain(names);
    let sealed = sealed.chain(["-empty", "-exec", "chattr", "-i", "{}", "+"]);
    let _ = std::process::Command::new("find").arg(path).args(sealed).output();
}
