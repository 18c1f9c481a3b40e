//! `stoker git-helper`: git for an agent under test, as another user, and in namespaces of its own where a test wants it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::stoker::BINARY;
use super::wait;

/// How long it may take to listen.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// As whom git runs where nothing else is said.
const USER: &str = "65532:65532";
/// As a pod's second container sees the node: mounts come from there and go nowhere, its own processes alone, and a root
/// that is not the agent's.
pub(crate) const CONTAINER: [&str; 11] = [
    "unshare",
    "--mount",
    "--propagation=slave",
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
    "sh",
    "-c",
    OTHER_ROOT,
    "sh",
];
/// The folders of this machine, in another root.
const OTHER_ROOT: &str = "set -e; mount -t tmpfs -o mode=755 none /mnt; \
    for at in /*; do \
        if [ -L $at ]; then cp -a $at /mnt; \
        elif [ -d $at ] && [ $at != /mnt ]; then mkdir /mnt$at; mount --rbind $at /mnt$at; fi; \
    done; \
    exec chroot /mnt \"$@\"";

/// A helper. Dropped, it is killed, with all that it started.
pub(crate) struct GitHelper {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl GitHelper {
    /// Whether every agent gets one, by a variable of the tests' own environment.
    pub(crate) fn is_for_all() -> bool {
        std::env::var_os("STOKER_TEST_GIT_HELPER").is_some_and(|value| !value.is_empty())
    }

    /// One for every agent, in namespaces of its own where this machine's root may make them.
    pub(crate) fn for_all(root: &Path, environment: &[(OsString, OsString)]) -> Self {
        let below: &[&str] = if nix::unistd::geteuid().is_root() { &CONTAINER } else { &[] };
        Self::start(root, environment, below)
    }

    /// A configuration with its socket; the same where that has it already, or no repositories.
    pub(crate) fn configured(text: &str) -> String {
        if text.contains("/git/git.sock") {
            return text.to_owned();
        }
        const HELPER: &str = "helper: $ROOT/git/git.sock";
        for (begin, end) in [("  git: {", ", "), ("repositories: {", "}, "), ("repositories:\n", "}\n")] {
            if text.contains(begin) {
                let added = match begin {
                    "  git: {" => format!("{begin}{HELPER}{end}"),
                    "repositories:\n" => format!("{begin}  git: {{{HELPER}{end}"),
                    _ => format!("{begin}git: {{{HELPER}{end}"),
                };
                return text.replacen(begin, &added, 1);
            }
        }
        text.to_owned()
    }

    /// Starts one for the agent of this folder, below another command, and waits until it listens.
    #[track_caller]
    pub(crate) fn start(root: &Path, environment: &[(OsString, OsString)], below: &[impl AsRef<OsStr>]) -> Self {
        let dir = root.join("git");
        std::fs::create_dir_all(&dir).unwrap();
        // As an emptyDir: its user makes the socket there.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        let (socket, log) = (dir.join("git.sock"), root.join("git.log"));
        let mut words: Vec<OsString> = below.iter().map(|word| word.as_ref().to_owned()).collect();
        words.extend([BINARY, "git-helper", "--listen"].map(OsString::from));
        words.push(socket.clone().into());
        if nix::unistd::geteuid().is_root() {
            words.extend(["--user".into(), named(root).unwrap_or(USER.to_owned()).into()]);
        } else {
            words.extend(["--agent".into(), nix::unistd::geteuid().to_string().into()]);
        }
        let (program, args) = words.split_first().unwrap();
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(program);
        command.args(args).current_dir("/").stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(environment.iter().cloned());
        let mut helper = Self { child: command.spawn().unwrap(), socket, log };
        let ready = wait::holds_within(READY_WITHIN, || {
            if let Some(status) = helper.child.try_wait().unwrap() {
                panic!("the helper ended: {status}\n{}", helper.log());
            }
            helper.listens()
        });
        assert!(ready, "the helper does not listen within {READY_WITHIN:?}\n{}", helper.log());
        helper
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether it can be asked; by its own command, as a probe does.
    pub(crate) fn listens(&self) -> bool {
        let mut command = Command::new(BINARY);
        let said = command.args(["git-helper", "--check", "--listen"]).arg(&self.socket).output().unwrap();
        said.status.success()
    }

    /// Kills it as the kernel does, with all below it where it has a namespace of its own.
    pub(crate) fn kill9(&mut self) {
        // What stands around it first forks, and ends with it.
        let pid = self.child.id();
        let inside = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let is_helper = |pid: &&str| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains("\0git-helper\0")
        };
        if let Some(helper) = inside.split_whitespace().find(is_helper) {
            let _ = kill(Pid::from_raw(helper.parse().unwrap()), Signal::SIGKILL);
        } else {
            let _ = self.child.kill();
        }
        self.child.wait().unwrap();
    }

    /// What it wrote so far, over all starts in this folder.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for GitHelper {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill9();
        }
        if std::thread::panicking() {
            eprintln!("--- the helper's log\n{}---", self.log());
        }
    }
}

/// The user that the agent's configuration names for git.
fn named(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join("agent.yaml")).ok()?;
    let (_, rest) = text.split_once("git: {")?;
    let (_, user) = rest.split_once('}')?.0.split_once("user: \"")?;
    Some(user.split_once('"')?.0.to_owned())
}
