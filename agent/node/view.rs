//! What people see of pools.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use stoker_core::quantity::Timestamp;

use super::Filesystem;
use crate::config::Retention;

/// How a pool or a declared directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// A pool that can be written to.
    Ready,
    /// A directory that is there as declared.
    Prepared,
    /// The path is there, but no filesystem of its own.
    NotMounted,
    /// The path is not there, and must not be made.
    Absent,
    /// It, or something above it, is a file.
    NotADirectory,
    /// Mounted, but not for writing.
    ReadOnly,
    /// Another filesystem than the declared one is mounted.
    WrongFilesystem,
    /// It, or below a pool something above it, is a symbolic link.
    Symlink,
    /// Anything else; the message says what.
    Failed,
    /// The operator took the pool away.
    Detached,
}

impl State {
    /// The word, as `NotMounted`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Prepared => "Prepared",
            Self::NotMounted => "NotMounted",
            Self::Absent => "Absent",
            Self::NotADirectory => "NotADirectory",
            Self::ReadOnly => "ReadOnly",
            Self::WrongFilesystem => "WrongFilesystem",
            Self::Symlink => "Symlink",
            Self::Failed => "Failed",
            Self::Detached => "Detached",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A pool, as it was when it was last looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// How it is.
    pub state: State,
    /// A sentence, where it is not ready or something about it should be known; else empty.
    pub message: String,
    /// When it came into this state.
    pub since: Timestamp,
    /// Its filesystem, where it is ready.
    pub filesystem: Option<Filesystem>,
    /// Its declared directories, in the order of the configuration.
    pub directories: Vec<DirectoryView>,
}

/// A declared directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryView {
    /// Relative to the pool.
    pub path: PathBuf,
    /// [`State::Prepared`], what is wrong with it, or the state of its pool where that is not ready.
    pub state: State,
    /// A sentence, where it is not prepared; else empty.
    pub message: String,
    /// How long its content is kept.
    pub retention: Retention,
}

/// All pools, in the order of the configuration.
pub(super) type Views = Arc<Vec<PoolView>>;

/// Why a pool or directory cannot be used.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) state: State,
    pub(super) message: String,
}

impl Trouble {
    pub(super) fn new(state: State, message: impl Into<String>) -> Self {
        Self { state, message: message.into() }
    }

    /// An error of the system at `what`, with the state that it means.
    pub(super) fn system(what: impl fmt::Display, error: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        let state = match error {
            Errno::NOENT => State::Absent,
            Errno::NOTDIR => State::NotADirectory,
            Errno::LOOP => State::Symlink,
            Errno::ROFS => State::ReadOnly,
            _ => State::Failed,
        };
        let remedy = match error {
            Errno::NOENT => "is not there",
            Errno::NOTDIR => "is not a directory, or lies below a file; move that file away",
            Errno::LOOP => "is a symbolic link, or lies below one; name the real directory instead",
            Errno::XDEV => "is the mount point of another filesystem; declare a pool of its own for that",
            _ => return Self::new(state, format!("{what}: {}", std::io::Error::from(error))),
        };
        Self::new(state, format!("{what} {remedy}"))
    }
}
