//! The ledger: who holds what of this node, who waits, and what a new build is told.
//!
//! The ledger is a value. [`Ledger::decide`] takes a command, the facts of the moment and `now`, and says what to reply
//! and which [`Event`]s make it so; [`Ledger::apply`] is the only thing that changes it. An event carries the whole new
//! record, so the journal is a table of records, and reading it back is the same as having lived through it. Nothing
//! is counted up and down: what is used is added up from the leases each time.
//!
//! - [`facts`]: what is so, and what it adds up to. [`view`]: what each build is told of it. `fit`: the inequality, in
//!   words.
//! - [`order`]: whose turn it is. `reserve`: what is kept for the head of the queue, and who may pass it. [`tenant`]:
//!   shares and caps.
//! - `admit`, `advance`, `decide`, `retry`: commands to events.
//! - `usage`: what a build used, and what its end tells of the next one.
//! - [`explain`]: who holds what, who is before whom, when it may change.

mod admit;
mod advance;
mod command;
mod decide;
pub mod explain;
pub mod facts;
mod fit;
mod lease;
mod ledger;
pub mod order;
mod reserve;
mod retry;
pub mod tenant;
mod time;
mod usage;
pub mod view;

pub use command::{Answer, Command, PRIORITY_MAX, Refused, Reply, Request, Waiting};
pub use explain::Explanation;
pub(crate) use facts::Sizes;
pub use facts::{Facts, InUse, Scheduler, Totals};
pub use lease::{Holder, Lease, LeaseState, Mode, ModeState, Place, Rebind, Retry, Source, Terms, Ticket};
pub use ledger::{Event, Ledger};
pub use tenant::{Holds, Tenant, Tenants};
pub use time::BIND_WITHIN_MAX;
pub use usage::{Seen, Usage};
pub use view::{Fit, Queued, View, Wanted};

#[cfg(test)]
pub(crate) mod tests;
