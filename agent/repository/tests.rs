#![allow(clippy::unwrap_used, clippy::expect_used)]

mod forks;
mod resolve;
mod submodules;
mod survive;
pub(super) mod world;
