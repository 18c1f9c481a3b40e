//! The ledger: who holds what of this node, who waits, and what a new build is told.
//!
//! The ledger is a value. [`Ledger::decide`] takes a command, the facts of the moment and `now`, and says what to reply
//! and which [`Event`]s make it so; [`Ledger::apply`] is the only thing that changes it. An event carries the whole new
//! record, so the journal is a table of records, and reading it back is the same as having lived through it. Nothing
//! is counted up and down: what is used is added up from the leases each time.

mod decide;
mod fit;
mod lease;
mod ledger;
mod time;

pub use decide::{Answer, Command, Refused, Reply, Request, Waiting};
pub use fit::{Facts, Fit, Totals};
pub use lease::{Holder, Lease, LeaseState, Mode, ModeState, Source, Ticket, Usage};
pub use ledger::{Event, Ledger};
pub use time::BIND_WITHIN_MAX;

#[cfg(test)]
mod tests;
