//! The Stoker agent: it prepares a build node's data disk, keeps git repositories there, throttles the admission of
//! builds, and hands each build its sources.
//!
//! `main` reads the arguments and calls [`cli`]. [`supervise`] builds the rooms in order, serves [`rpc`] and [`http`],
//! and ends everything in order. The rooms, each of which calls only those before it:
//!
//! - [`node`]: pools, directories, safe deletion, facts of the machine.
//! - [`pressure`]: samples memory, disk and stalls; publishes the gate.
//! - [`repository`]: fetches into stores, publishes snapshots, resolves sources, reads commits.
//! - [`sizing`]: what a commit says of its build; the history.
//! - [`admission`]: the ledger's single writer, its journal, the queue.
//! - [`workspace`]: what one build gets, and its removal.
//!
//! `volume` mounts sources into pods, as the kubelet asks for it. `controller` chooses nodes for pods that wait for one: it
//! runs once for a cluster, and is a client of the agents.
//!
//! [`access`] knows who asks, and what that one may: [`rpc`] and [`http`] hold each call against it.
//!
//! Every room with effects has one shape: observe, decide (in `stoker_core`, which is pure), act, publish. [`config`]
//! is read by all. `stoker run` speaks gRPC to an agent inside its own process: there is one path.

pub mod access;
pub mod admission;
pub mod cli;
pub mod config;
mod controller;
pub mod http;
pub mod kubernetes;
pub mod metrics;
pub mod node;
pub mod pressure;
pub mod repository;
pub mod rpc;
pub mod sizing;
pub mod supervise;
pub mod telemetry;
mod volume;
pub mod workspace;
