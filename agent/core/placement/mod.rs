//! Which node a pod that waits for one goes to.
//!
//! Nothing is decided here for good: the node that is chosen decides, when it is asked. What comes in is the room that
//! each node told, and what was asked of it since and is not told back yet. So the choice can be wrong by what others
//! asked, and never by what was asked in its own name.
//!
//! - [`farm`]: the nodes, in an order that finds the best without looking at all. [`select`]: what a pod demands of a
//!   node's labels and taints. [`mod@line`]: whose turn it is. [`intent`]: what is written down before a node is asked.

pub mod farm;
pub mod intent;
pub mod line;
pub mod select;
#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::type_complexity,
    reason = "the plain model that the index is held against"
)]
mod tests;

pub use farm::{Choice, Farm, Room, Wanted, Why};
pub use intent::Intent;
pub use line::Line;
pub use select::Selector;

/// What the ids of requests for pods that wait for a node begin with.
pub const GATED: &str = "gate-";
