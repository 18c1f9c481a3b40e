//! What this program does in the moment before it is git: bound itself, lay off its rights, and `exec`.
//!
//! It runs once for every git that starts, so it comes before everything else that a start does. Whatever does not work
//! ends it with a line that begins like git's own: a git with more rights than it should have never starts.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{Signal, set_parent_process_death_signal, umask};
use rustix::thread::{CapabilitySet, capabilities};

use super::confine::{self, Files};
use crate::config::git::GitUser;
use crate::repository::credentials::handover;

/// What git never has.
const FAILED: u8 = 125;
/// Open files: packs, and what a transport needs.
const FILES_MAX: u64 = 4096;
/// Where the kernel begins when memory runs out: git can be started again, a build can not.
const OOM_SCORE_MIN: i32 = 500;
/// How much more than the agent's, at least.
const OOM_SCORE_STEP: i32 = 100;
/// The highest that there is; see proc_pid_oom_score_adj(5).
const OOM_SCORE_MAX: i32 = 1000;
/// What others see of what git makes: the agent reads it where it is not root.
const UMASK: u32 = 0o022;

/// What is asked of this process.
#[derive(Debug, Default)]
struct Asked {
    user: Option<GitUser>,
    memory_bytes: Option<u64>,
    processes: Option<u64>,
    writes: Vec<PathBuf>,
    reads: Vec<PathBuf>,
    network: bool,
    unconfined: bool,
    tied: bool,
    secret: bool,
    probe: Option<PathBuf>,
    program: Vec<OsString>,
}

impl Asked {
    fn parse(args: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut asked = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.to_str()? {
                "--user" => asked.user = Some(args.next()?.to_str()?.parse().ok()?),
                "--memory" => asked.memory_bytes = Some(args.next()?.to_str()?.parse().ok()?),
                "--processes" => asked.processes = Some(args.next()?.to_str()?.parse().ok()?),
                "--write" => asked.writes.push(args.next()?.into()),
                "--read" => asked.reads.push(args.next()?.into()),
                "--probe" => asked.probe = Some(args.next()?.into()),
                "--network" => asked.network = true,
                "--unconfined" => asked.unconfined = true,
                "--tied" => asked.tied = true,
                "--secret" => asked.secret = true,
                "--" => asked.program = args.by_ref().collect(),
                _ => return None,
            }
        }
        (asked.probe.is_some() || !asked.program.is_empty()).then_some(asked)
    }
}

/// Becomes git. `args` are those after the hidden word. Returns only where that fails, or for a probe.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let Some(asked) = Asked::parse(args) else {
        complain("git cannot be contained: wrong arguments");
        return FAILED;
    };
    let done = match &asked.probe {
        Some(path) => probe(&asked, path),
        None => become_git(&asked),
    };
    match done {
        Ok(()) => 0,
        Err(why) => {
            complain(&why);
            FAILED
        }
    }
}

/// Read by a person only where git did not start.
fn complain(why: &str) {
    let _ = writeln!(io::stderr(), "fatal: {why}");
}

fn become_git(asked: &Asked) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("git cannot be contained: {what}: {error}")
    };
    // A pipe is read no further than the secret goes: what follows is git's.
    let secret = if asked.secret { Some(read_secret().map_err(failed("reading its secret"))?) } else { None };
    let binary = match &secret {
        Some(_) => Some(fs::File::open(super::OWN_BINARY).map(OwnedFd::from).map_err(failed("opening itself"))?),
        None => None,
    };
    // Before the user changes: afterwards the file belongs to another.
    raise_oom_score().map_err(failed("raising its oom_score_adj"))?;
    limit(asked).map_err(failed("setting its limits"))?;
    if let Some(user) = asked.user {
        change_user(user)?;
    }
    if asked.tied {
        // After the user changes, which takes it back.
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| failed("being tied")(error.into()))?;
    }
    umask(rustix::fs::Mode::from_raw_mode(UMASK));
    // After the user changes: what holds the secret belongs to who reads it.
    let held = match (&secret, &binary) {
        (Some(bytes), Some(binary)) => {
            Some(handover::hold(bytes, binary.as_fd()).map_err(failed("handing its secret over"))?)
        }
        _ => None,
    };
    let [program, rest @ ..] = asked.program.as_slice() else { return Err("no program is named".to_owned()) };
    if asked.unconfined {
        rustix::thread::set_no_new_privs(true).map_err(|error| failed("giving up new rights")(error.into()))?;
    } else {
        let files = Files { writes: &asked.writes, reads: &asked.reads, program, binary: binary.as_ref() };
        confine::enforce(&files, asked.network)
            .map_err(|error| format!("git cannot be contained: landlock: {error}"))?;
    }
    let mut command = Command::new(program);
    command.args(rest);
    if let Some(held) = &held {
        held.tell(&mut command);
    }
    let error = command.exec();
    Err(format!("git does not start: {}: {error}", Path::new(program).display()))
}

/// Eight hexadecimal digits, and as many bytes.
fn read_secret() -> io::Result<Vec<u8>> {
    let mut pipe = fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut length = [0; handover::LENGTH_DIGITS];
    pipe.read_exact(&mut length)?;
    let length = handover::length(&length).ok_or(io::ErrorKind::InvalidData)?;
    let mut bytes = vec![0; length];
    pipe.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn raise_oom_score() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now: i32 = fs::read_to_string(FILE)?.trim().parse().map_err(io::Error::other)?;
    let raised = now.saturating_add(OOM_SCORE_STEP).clamp(OOM_SCORE_MIN, OOM_SCORE_MAX);
    fs::write(FILE, raised.to_string())
}

fn limit(asked: &Asked) -> io::Result<()> {
    let set = |resource, value| lower(resource, value);
    set(Resource::RLIMIT_CORE, 0)?;
    set(Resource::RLIMIT_NOFILE, FILES_MAX)?;
    // Not the address space: packs are mapped, and may be larger than memory.
    asked.memory_bytes.map_or(Ok(()), |bytes| set(Resource::RLIMIT_DATA, bytes))?;
    asked.processes.map_or(Ok(()), |count| set(Resource::RLIMIT_NPROC, count))
}

/// Never above what holds already, which only root could do.
fn lower(resource: Resource, value: u64) -> io::Result<()> {
    let (_, hard) = nix::sys::resource::getrlimit(resource)?;
    let value = value.min(hard);
    Ok(setrlimit(resource, value, value)?)
}

/// Groups first: a user may not change them.
pub(in crate::repository) fn change_user(user: GitUser) -> Result<(), String> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let changed = setgroups(&[]).and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid));
    changed.map_err(|error| format!("git cannot be contained: becoming user {user}: {error}"))
}

/// What the agent needs to keep children of another user: to give and take its files, to become it, and to end it.
const RIGHTS: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::CHOWN, "CAP_CHOWN"),
    (CapabilitySet::FOWNER, "CAP_FOWNER"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    (CapabilitySet::KILL, "CAP_KILL"),
];
/// The first of them are all that it needs where a helper has the children.
const RIGHTS_TO_LEND: usize = 3;

/// Whether this process may give files to git's user, and take them back.
pub(super) fn may_lend() -> Result<(), String> {
    has_rights(RIGHTS_TO_LEND)
}

/// Whether it has so many of the rights.
fn has_rights(count: usize) -> Result<(), String> {
    let held = capabilities(None).map_err(|error| format!("the agent's rights are not known: {error}"))?.effective;
    let needed = RIGHTS.iter().take(count);
    let missing: Vec<&str> = needed.filter(|(right, _)| !held.contains(*right)).map(|(_, name)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("{}{}", super::MISSING_RIGHTS, missing.join(", "))) }
}

/// Whether git's user gets to `path`, with the first directory that is closed.
fn probe(asked: &Asked, path: &Path) -> Result<(), String> {
    use nix::unistd::{AccessFlags, access};
    if let Some(user) = asked.user {
        has_rights(RIGHTS.len())?;
        change_user(user).map_err(|why| why.trim_start_matches("git cannot be contained: ").to_owned())?;
    }
    let mut above: Vec<&Path> = path.ancestors().collect();
    above.reverse();
    for dir in above {
        access(dir, AccessFlags::X_OK).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    access(path, AccessFlags::R_OK | AccessFlags::X_OK).map_err(|error| format!("{}: {error}", path.display()))?;
    let files = Files { writes: &[], reads: &[], program: OsStr::new("git"), binary: None };
    let kernel = confine::enforce(&files, false).map_err(|error| format!("landlock: {error}"))?;
    let _ = writeln!(io::stdout(), "{kernel}");
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Asked> {
        Asked::parse(text.split(' ').map(OsString::from))
    }

    #[test]
    fn arguments_are_read_up_to_gits_own() {
        let asked =
            parse("--user 1:2 --memory 3 --processes 4 --write /w --read /r --network -- git -c --user x").unwrap();
        assert_eq!(
            (asked.user, asked.memory_bytes, asked.processes),
            (Some(GitUser { uid: 1, gid: 2 }), Some(3), Some(4))
        );
        assert_eq!(asked.program, ["git", "-c", "--user", "x"]);
        assert!(asked.network && !asked.unconfined && !asked.secret);
        for wrong in ["", "--", "--user", "--user git -- git", "--memory -1 -- git", "--what -- git", "git"] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
