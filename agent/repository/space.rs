//! What the room is given of its pool.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use stoker_core::reason::Reason;

/// Gives `<pool>/stoker`, after a look whether the pool is there as declared; asked before every use.
pub type Root = Arc<dyn Fn() -> Result<PathBuf, Reason> + Send + Sync>;
/// Moves a tree into the pool's trash and returns; it may block on the disk for a moment.
pub type Discard = Arc<dyn Fn(PathBuf) -> io::Result<()> + Send + Sync>;
/// Tells how much room there is; it may block on the disk for a moment.
pub type Measure = Arc<dyn Fn() -> Result<Space, Reason> + Send + Sync>;

/// The pool, as this room sees it.
#[derive(Clone)]
pub struct Pool {
    /// Where it is.
    pub root: Root,
    /// How what is not needed any more goes.
    pub discard: Discard,
    /// How full it is.
    pub measure: Measure,
}

/// The room that a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free bytes.
    pub free_bytes: u64,
    /// What must stay free.
    pub floor_bytes: u64,
    /// What leases may still write.
    pub reserved_bytes: u64,
}

impl Space {
    /// What must be free that builds have what they were promised, and the floor holds.
    #[must_use]
    pub const fn needed_bytes(self) -> u64 {
        self.floor_bytes.saturating_add(self.reserved_bytes)
    }

    /// What the cache may take: neither the floor nor what a build was promised.
    #[must_use]
    pub const fn spare(self) -> u64 {
        self.free_bytes.saturating_sub(self.needed_bytes())
    }
}
