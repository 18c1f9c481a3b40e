//! What to do to a store, and what goes when the disk is short. Pure: sizes, times and holders in, a plan out.
//!
//! - [`store`]: which repack a store needs, whether there is room for it, and when it no longer gives way.
//! - [`evict`]: which snapshots and mirrors go, so that the repositories are within their limit and the pool above its
//!   floor.

pub mod evict;
pub mod store;

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::unwrap_used)]
mod evict_tests;
