//! One JSON file beside each whole checkout.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use stoker_core::identity::CommitId;
use stoker_core::quantity::Timestamp;

use crate::node::files::{self, owners, read_record, remove_record, write_record};

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

/// Written whole or not at all, where the machine stays up.
pub(super) fn write(place: &Path, record: &Record) -> io::Result<()> {
    write_record(&files::record(place, &record.name), record, false)
}

pub(super) fn remove(place: &Path, name: &str) -> io::Result<()> {
    remove_record(&files::record(place, name))
}

/// All that can be read; a damaged one is as none, and its directory goes.
pub(super) fn read_all(place: &Path) -> Vec<Record> {
    let read = |name: &String| read_record(&files::record(place, name), RECORD_BYTES_MAX);
    let all = names(place);
    let records = all.iter().filter_map(|name| read(name).filter(|record: &Record| record.name == *name));
    records.collect()
}

/// The names that have a directory, a record or both.
pub(super) fn names(place: &Path) -> BTreeSet<String> {
    owners(place)
}
