//! One JSON file beside each whole checkout.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stoker_core::identity::CommitId;
use stoker_core::quantity::Timestamp;

const RECORD_BYTES_MAX: u64 = 1 << 20;

/// What is remembered of a checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Of its directory.
    pub(super) name: String,
    /// Whose it is.
    pub(super) url: String,
    pub(super) commit: CommitId,
    /// How it was checked out.
    pub(super) settings: String,
    /// The full one that it is a layer over.
    pub(super) base: Option<String>,
    /// Entries of its indexes.
    pub(super) files: u64,
    /// Bytes of them, whichever layer they are in.
    pub(super) bytes: u64,
    /// Bytes that are in its own directory.
    pub(super) own_bytes: u64,
    /// The time of its own files, in seconds.
    pub(super) stamp: u32,
    /// Under which the machine ran when it was made.
    pub(super) boot: String,
    /// All of it is on the disk.
    pub(super) durable: bool,
    pub(super) created_at: Timestamp,
    pub(super) used_at: Timestamp,
    pub(super) uses: u64,
}

fn path(home: &Path, extension: &str) -> PathBuf {
    let mut name = home.as_os_str().to_owned();
    name.push(extension);
    name.into()
}

/// Written whole or not at all, where the machine stays up.
pub(super) fn write(home: &Path, record: &Record) -> io::Result<()> {
    let temporary = path(home, ".json.new");
    fs::write(&temporary, serde_json::to_vec_pretty(record)?)?;
    fs::rename(&temporary, path(home, ".json"))
}

pub(super) fn remove(home: &Path) -> io::Result<()> {
    for file in [path(home, ".json.new"), path(home, ".json")] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// All that can be read; a damaged one is as none, and its directory goes.
pub(super) fn read_all(place: &Path) -> Vec<Record> {
    let read = |name: &String| {
        let path = path(&place.join(name), ".json");
        let small = fs::metadata(&path).is_ok_and(|file| file.len() <= RECORD_BYTES_MAX);
        let record: Record = serde_json::from_slice(&small.then(|| fs::read(&path).ok())??).ok()?;
        (record.name == *name).then_some(record)
    };
    names(place).iter().filter_map(read).collect()
}

/// The names that have a directory, a record or both.
pub(super) fn names(place: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(place) else { return BTreeSet::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.map(|name| name.trim_end_matches(".new").trim_end_matches(".json").to_owned()).collect()
}
