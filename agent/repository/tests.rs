#![allow(clippy::unwrap_used, clippy::expect_used)]

mod resolve;
mod survive;
mod world;
