//! What a commit says of the size of its build.
//!
//! In: a plain listing of the commit (a [`Tree`], which the repository room reads) and a way to read a file of it. Out:
//! [`Facts`]: the build spec, valid or refused with file, field and line, and the language. The decision itself, and
//! what earlier runs have to say in it, is `stoker_core::sizing`; samples of runs are kept in the journal.

mod cache;
pub mod facts;
mod nickel;
pub mod spec;

pub use cache::FactsCache;
pub use facts::{Facts, Tree};
pub use nickel::Nickel;
pub use spec::{SpecError, SpecFile, is_cache_key};
