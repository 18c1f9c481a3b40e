//! How long things are kept on a pool: what goes now, what goes next and when, and why. Pure.
//!
//! In come [`Facts`]: things with the times that the agent recorded (never those of files, which a build sets as it
//! likes), the leases that live, the limits, and `now`. Out goes a [`Plan`], in the order in which it is to be carried
//! out. What is held, released or known never goes.
//!
//! - [`rules`]: how long the output of a line of builds is kept.
//! - [`decide`](decide()): what goes.

mod decide;
pub mod glob;
pub mod rules;

pub use decide::{Facts, Limits, Over, Plan, Removal, Thing, What, Why, decide};
pub use glob::Glob;
pub use rules::{KEEP, Kept, Rule, Rules};

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::unwrap_used)]
mod tests;
