//! Every decision Stoker takes, and nothing else.
//!
//! This crate has no clock, no files, no network and no hash order: the compiler refuses them (`no_std`). What a
//! decision needs comes in as facts, `now` among them; what it wants done goes out as data. The rooms of the agent
//! observe, ask here, act, and publish. So every decision can be tested without a machine, and replayed.
//!
//! - [`quantity`], [`identity`], [`reason`]: the words that all rooms share.
//! - [`source`]: URLs and refs; what to do to resolve one.
//! - [`sizing`]: how big a build is, and where each number came from.
//! - [`pressure`]: the gate.
//! - [`admission`]: the ledger of leases and tickets.
//! - [`placement`]: which node a pod that waits for one goes to.
//! - [`upkeep`]: what stores need, and what goes when the disk is short.
//! - [`retention`]: how long things are kept on a pool, what goes, and why.
//! - [`examination`]: what of a node does not fit what is kept for it, and the patch.
//! - [`invariants`]: what always holds, as named predicates.
#![no_std]

extern crate alloc;

pub mod admission;
pub mod cluster;
pub mod examination;
pub mod identity;
pub mod invariants;
pub mod placement;
pub mod pressure;
pub mod quantity;
pub mod reason;
pub mod retention;
pub mod sizing;
pub mod source;
pub mod upkeep;
