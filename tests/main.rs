//! Black-box tests: the real binary, real git over real HTTP, real filesystems. One binary, so that it links once.
//!
//! [`support`] has what they stand on; every other module is one subject, named for what holds.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking, and shows what it saw"
)]

mod access;
mod admission;
mod agent;
mod campaign;
mod commands;
mod controller;
mod examples;
mod faces;
mod faults;
mod fleet;
mod forges;
mod git_http;
mod harness;
mod https;
mod image;
mod isolation;
mod kubernetes;
mod large_files;
mod manifest;
mod manifests;
mod old_git;
mod outputs;
mod queue;
mod readme;
mod refresh;
mod refused;
mod resolve;
mod run;
mod simulation;
mod submodules;
mod support;
mod transfer;
mod upkeep;
mod volume;
mod workspaces;
