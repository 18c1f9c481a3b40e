//! Where sources come from, as words and as decisions.
//!
//! In come the texts that callers write (a URL, a ref) and what the agent knows of a mirror; out go their canonical
//! forms, the judgement whether this node may fetch from there, and the next step towards one commit. Nothing here
//! touches a network or a disk.
//!
//! - [`RepositoryUrl`] is the canonical name of an upstream: all spellings of one repository are equal.
//! - [`SourceRef`] is what a caller asks for there; [`RefName`] a name that git accepts.
//! - [`ForgeKind`] says what a forge is asked of a pull request; [`judge`] what of its answer holds.
//! - [`heal`] orders the steps by which a damaged store is mended.
//! - [`decide`] says what to do next to resolve a [`Request`]; [`allowed`] whether an upstream may be added.
//! - [`manifest`] reads the lists of the `repo` tool; [`submodules`] what a commit says of its submodules.

mod allow;
mod forge;
pub mod heal;
mod host;
pub mod manifest;
mod refs;
mod resolve;
pub mod submodules;
mod url;

pub use allow::{allowed, is_listed, listable};
pub use forge::{ForgeKind, Fork, PullHead, Told, judge};
pub use host::is_local;
pub use refs::{RefError, RefName, SourceRef};
pub use resolve::{Asked, Fetched, Found, LATE_REF_PAUSES, Origin, Probed, Request, Step, View, decide};
pub use url::{Protocol, RepositoryUrl, UrlError};
