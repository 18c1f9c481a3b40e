#![allow(clippy::unwrap_used, clippy::expect_used)]

mod evict;
mod forks;
mod paths;
mod resolve;
mod survive;
mod upkeep;
pub(super) mod world;
