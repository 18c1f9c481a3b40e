//! To be filled.

pub(crate) mod measure;
