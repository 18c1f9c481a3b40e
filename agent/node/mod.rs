//! The node itself: its pools, and what the machine is.
//!
//! In come the pools of the configuration and the machine's filesystems. Out go, for other rooms, a directory to write
//! to that was guarded a moment ago ([`Pools::usable`]), deletion that returns at once ([`Pools::discard`]),
//! what lies in a directory ([`Pools::names`], [`Pools::open_beneath`]), the
//! published state of every pool ([`Pools::subscribe`]), [`facts`] of the machine, whether a [`process`] lives, and what
//! else the `host` tells: its settings, and the disks below a path.
//!
//! Two promises rule this room. While a pool that must be a mount is not mounted, nothing is created at or below its
//! path: a folder there would fill the root disk. And nothing is deleted by path: only by descriptors below the pool's
//! own, without symlinks, never across a mount. No descriptor is held between operations, for a held one keeps the
//! disk from being unmounted.

mod directory;
pub(crate) mod files;
mod filesystem;
mod guard;
pub(crate) mod host;
mod idmap;
pub(crate) mod mount;
pub(crate) mod namespace;
mod pool;
pub(crate) mod quota;
mod remove;
mod rights;
mod trash;
pub(crate) mod tree;
mod uuid;
mod view;

pub mod facts;
pub mod process;
pub(crate) mod processes;

pub(crate) use directory::TRASH;
pub use filesystem::Filesystem;
pub(crate) use pool::now;
pub use pool::{PoolTrouble, Pools};
pub use tree::{Found, Identity, Measure, Opened};
pub use view::{DirectoryView, PoolView, State};

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_attack;
#[cfg(test)]
mod tests_root;
#[cfg(test)]
mod tests_tree;

/// Give or take a fifth, so that many agents and mirrors do not ask at the same moment.
pub(crate) fn jittered(pause: std::time::Duration) -> std::time::Duration {
    use std::hash::{BuildHasher as _, RandomState};
    let random = u32::try_from(RandomState::new().hash_one(()) % 401).unwrap_or(200);
    pause.saturating_mul(800 + random) / 1000
}
