//! Where sources come from: [`RepositoryUrl`] is the canonical name of an upstream.

use alloc::string::String;

/// The canonical URL of a repository. (To be filled.)
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryUrl(String);
