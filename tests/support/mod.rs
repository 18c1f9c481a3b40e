//! What the black-box tests stand on: nothing here is a stand-in for something real.
//!
//! - [`upstream`]: git repositories served over HTTP by git's own `http-backend`, with faults that can be switched on.
//! - [`repository`]: real repositories, built by `git fast-import`.
//! - [`stoker`]: the binary, run with a deadline in a home of its own; an agent with its logs and its clients.
//! - [`loopdev`]: filesystems of their own on loop devices.
//! - [`wait`]: conditions with a limit, instead of sleeps.

#![allow(dead_code, reason = "a test takes what it needs, and not every helper is needed in every state of the tests")]

pub(crate) mod cgi;
pub(crate) mod loopdev;
pub(crate) mod repository;
pub(crate) mod stoker;
pub(crate) mod upstream;
pub(crate) mod wait;

/// A TCP port of the loopback address that was free just now. Whoever binds it soon gets it: the kernel hands ephemeral
/// ports out in another order than it frees them.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
