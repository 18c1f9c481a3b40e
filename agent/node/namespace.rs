//! User namespaces that map one owner to another: what a mount is told to show its files by.
//!
//! The kernel takes such a mapping from a user namespace only, and a namespace has to have had a process. So this program
//! starts itself once for each owner, writes the mapping, keeps the namespace open, and lets the process go.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sched::{CloneFlags, unshare};

/// The hidden first argument by which this program becomes the process of such a namespace.
pub(crate) const WORD: &str = "user-namespace";
/// This program, also where its file was replaced.
const OWN_BINARY: &str = "/proc/self/exe";
/// Says that the namespace is there.
const READY: u8 = b'1';
/// Owners at once; builds of more users begin anew.
const NAMESPACES_MAX: usize = 64;

/// Namespaces by the owner that files of the agent are shown as.
#[derive(Debug, Clone, Default)]
pub(crate) struct Namespaces {
    open: Arc<Mutex<Open>>,
}

/// By user and group.
type Open = BTreeMap<(u32, u32), Arc<File>>;

impl Namespaces {
    /// The namespace that shows the agent's files as this user's and group's.
    ///
    /// # Errors
    /// When the kernel allows none.
    pub(crate) fn showing(&self, user: u32, group: u32) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = open.get(&(user, group)) {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(make(user, group)?);
        if open.len() >= NAMESPACES_MAX {
            open.clear();
        }
        open.insert((user, group), Arc::clone(&made));
        Ok(made)
    }
}

/// The namespace as something to hand to the kernel.
pub(super) fn descriptor(namespace: &File) -> BorrowedFd<'_> {
    namespace.as_fd()
}

fn make(user: u32, group: u32) -> io::Result<File> {
    let mut command = Command::new(OWN_BINARY);
    command.arg(WORD).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let made = map(&mut child, user, group);
    // It ends when its input does; the namespace stays for as long as it is open here.
    drop(child.stdin.take());
    child.wait()?;
    made
}

fn map(child: &mut Child, user: u32, group: u32) -> io::Result<File> {
    let mut ready = [0];
    let stdout = child.stdout.as_mut().ok_or_else(|| io::Error::other("no output"))?;
    if stdout.read_exact(&mut ready).is_err() || ready != [READY] {
        return Err(io::Error::other("this kernel allows no user namespace"));
    }
    let (agent, agents) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let of = |file: &str| format!("/proc/{}/{file}", child.id());
    // What is the agent's on the disk is shown as the user's; see user_namespaces(7).
    std::fs::write(of("uid_map"), format!("{agent} {user} 1\n"))?;
    std::fs::write(of("gid_map"), format!("{agents} {group} 1\n"))?;
    File::open(of("ns/user"))
}

/// The process of the namespace: says that it is there, and waits to be let go.
pub(crate) fn main(_: impl IntoIterator<Item = OsString>) -> u8 {
    if unshare(CloneFlags::CLONE_NEWUSER).is_err() {
        return 1;
    }
    let told = io::stdout().write_all(&[READY]).and_then(|()| io::stdout().flush());
    let _ = told.and_then(|()| io::stdin().read_to_end(&mut Vec::new()));
    0
}
