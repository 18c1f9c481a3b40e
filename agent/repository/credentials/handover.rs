//! How a secret gets from the agent to the git child that needs it, and to nobody else.
//!
//! The agent writes it into the child's standard input, ahead of what git reads. The child, still this program, puts it
//! into memory that has a file descriptor and no name (memfd_create(2)), sealed, and git and its helpers inherit that.
//! Ways that were not taken: a variable of the environment or an argument shows in `/proc` to all of the same user; a
//! file of ours survives a kill; the mounted secret itself is often readable by root alone, and git's user shall not be
//! able to read more than the one that is its own; a pipe can be read once, and git may ask twice.
//!
//! Git asks this program back by `credential.helper` ([`super::helper`]), through a descriptor too, so that it need not
//! be reachable by a path. ssh closes all descriptors when it starts: it opens them through the `/proc` of the git that
//! started it, which is of its own user, and in its own landlock domain where there is one.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::process::Command;

use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, memfd_create};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use super::{Secret, helper};

/// Before the secret stands its length, in this many hexadecimal digits.
pub(crate) const LENGTH_DIGITS: usize = 8;
/// More than any secret with its wrapping.
const LENGTH_MAX: usize = 1 << 20;
/// Descriptors that programs do not expect to be theirs begin here.
const DESCRIPTOR_MIN: i32 = 20;

/// What to write into the child's standard input.
pub(crate) fn frame(secret: &Secret) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(secret).map_err(io::Error::other)?;
    if bytes.len() > LENGTH_MAX {
        return Err(io::Error::other("the secret is too long"));
    }
    Ok([format!("{:08x}", bytes.len()).as_bytes(), &bytes].concat())
}

/// How many bytes follow.
pub(crate) fn length(digits: &[u8; LENGTH_DIGITS]) -> Option<usize> {
    let length = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    (length <= LENGTH_MAX).then_some(length)
}

/// What git inherits.
pub(crate) enum Held {
    /// The secret, and this program.
    Basic { secret: OwnedFd, binary: OwnedFd },
    /// The key, and the hosts that may see it.
    Ssh { key: OwnedFd, known_hosts: OwnedFd, user: String },
}

/// Puts what came through the pipe where git can inherit it.
pub(crate) fn hold(bytes: &[u8], binary: BorrowedFd<'_>) -> io::Result<Held> {
    match serde_json::from_slice(bytes).map_err(|_| io::ErrorKind::InvalidData)? {
        Secret::Basic { .. } => Ok(Held::Basic { secret: memory(bytes)?, binary: inherited(binary)? }),
        Secret::Ssh { key, known_hosts, user } => {
            Ok(Held::Ssh { key: memory(key.as_bytes())?, known_hosts: memory(known_hosts.as_bytes())?, user })
        }
    }
}

impl Held {
    /// Says to git where it is.
    pub(crate) fn tell(&self, git: &mut Command) {
        match self {
            Self::Basic { secret, binary } => {
                let helper = format!("!/proc/self/fd/{} {} {}", binary.as_raw_fd(), helper::WORD, secret.as_raw_fd());
                add_config(git, "credential.helper", &helper);
            }
            Self::Ssh { key, known_hosts, user } => {
                // The process stays the same when it becomes git.
                let open = |file: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
                git.env("GIT_SSH_COMMAND", ssh_with(&open(key), &open(known_hosts), user));
            }
        }
    }
}

/// One more value for `GIT_CONFIG_COUNT`; see git(1).
fn add_config(git: &mut Command, key: &str, value: &str) {
    let count: usize = std::env::var("GIT_CONFIG_COUNT").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    git.env(format!("GIT_CONFIG_KEY_{count}"), key).env(format!("GIT_CONFIG_VALUE_{count}"), value);
    git.env("GIT_CONFIG_COUNT", (count + 1).to_string());
}

/// Memory with a descriptor that children inherit, readable by this user alone, and never changed again.
fn memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("credential", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    // ssh refuses a key that others could read.
    fchmod(&file, Mode::RUSR)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    inherited(file.as_fd())
}

/// The same, with a descriptor that `exec` does not close.
fn inherited(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fcntl_dupfd_cloexec(file, DESCRIPTOR_MIN)?;
    fcntl_setfd(&copy, FdFlags::empty())?;
    Ok(copy)
}

/// Nothing of this machine's or user's configuration, no agent, no forwarding, no question.
const SSH: &str = "-F /dev/null -oBatchMode=yes -oConnectTimeout=15 -oClearAllForwardings=yes -oIdentityAgent=none \
                   -oIdentitiesOnly=yes -oStrictHostKeyChecking=yes -oUpdateHostKeys=no -oPermitLocalCommand=no";

/// ssh without any key: some servers take everybody. Their host keys are those of the machine.
pub(crate) fn ssh_without() -> String {
    format!("ssh -oIdentityFile=none -oUserKnownHostsFile=/dev/null {SSH}")
}

/// ssh for a person, with that person's keys and configuration.
pub(crate) fn ssh_personal() -> String {
    "ssh -oBatchMode=yes -oConnectTimeout=15 -oClearAllForwardings=yes".to_owned()
}

/// The user holds where the address names none: ssh takes the first that it is told, and the address comes before.
fn ssh_with(key: &str, known_hosts: &str, user: &str) -> String {
    let user = if user.is_empty() { String::new() } else { format!(" -oUser={user}") };
    format!("ssh -i {key} -oUserKnownHostsFile={known_hosts} -oGlobalKnownHostsFile=/dev/null{user} {SSH}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_framed_is_read_back() {
        let secret = Secret::Ssh { key: "k".into(), known_hosts: "h".into(), user: "u".into() };
        let frame = frame(&secret).unwrap();
        let (digits, rest) = frame.split_at(LENGTH_DIGITS);
        assert_eq!(length(digits.try_into().unwrap()), Some(rest.len()));
        assert!(matches!(serde_json::from_slice(rest).unwrap(), Secret::Ssh { key, .. } if key == "k"));
        for wrong in [b"zzzzzzzz", b"ffffffff", b"        "] {
            assert_eq!(length(wrong), None);
        }
    }

    #[test]
    fn memory_is_read_again_and_again_and_never_written() {
        let held = memory(b"hidden").unwrap();
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        for _ in 0..2 {
            let mut text = String::new();
            File::open(&path).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "hidden");
        }
        assert!(File::from(held.try_clone().unwrap()).write_all(b"x").is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o400);
    }
}
