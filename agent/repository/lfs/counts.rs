//! What came of fetching large files, for metrics.

use std::collections::BTreeMap;
use std::sync::Mutex;

use stoker_core::reason::Code;

use crate::repository::lock;

/// Since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LfsCounts {
    /// Objects that came, and were what their pointers say.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Commits whose large files could not be had, by the word of the reason.
    pub failures: BTreeMap<&'static str, u64>,
    /// Commits whose large files were not fetched for want of room: a limit, or the pool's floor.
    pub refused: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
pub(super) struct Counters(Mutex<LfsCounts>);

impl Counters {
    pub(super) fn read(&self) -> LfsCounts {
        lock(&self.0).clone()
    }

    pub(super) fn came(&self, bytes: u64) {
        let mut counts = lock(&self.0);
        counts.objects = counts.objects.saturating_add(1);
        counts.bytes = counts.bytes.saturating_add(bytes);
    }

    pub(super) fn failed(&self, code: Code) {
        let mut counts = lock(&self.0);
        let by_reason = match code {
            Code::LfsLimit | Code::DiskFloor => &mut counts.refused,
            _ => &mut counts.failures,
        };
        *by_reason.entry(code.word()).or_default() += 1;
    }
}
