//! How git children are kept: as a user of their own, with bounds, and with only those files that they need.
//!
//! Git parses what strangers send, so a flaw in it must not be a way to the node. The agent starts each child through
//! its own binary or a part of it ([`child`]), which bounds itself, lays off its rights and becomes git by `exec`: the process and its
//! group stay the same, and nothing of ours runs between `fork` and `exec`. What a child wrote into a store is taken
//! from it before anything is published ([`lend`]).
//!
//! Not here: cgroups. A child's memory limit bounds what one child allocates; how much all of them and their page cache
//! may hold is for the container that they run in.

pub(crate) mod child;
mod confine;
pub(super) mod lend;

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stoker_core::reason::{Code, Reason};

use super::git::Helper;
use crate::config::git::{GitChild, GitUser, USER_DEFAULT};

/// This program, also where its file was replaced or lies where git's user cannot reach it.
const OWN_BINARY: &str = "/proc/self/exe";
/// The part of this program that becomes git, beside it.
const CHILD_BINARY: &str = "stoker-git";
/// The hidden first argument by which this program becomes git.
pub(crate) const CHILD_WORD: &str = "git-child";
/// How a child says that the agent cannot keep it.
const MISSING_RIGHTS: &str = "the agent lacks ";
/// What one thread of git gets of its memory limit, at least.
const THREAD_BYTES: u64 = 512 << 20;
/// More threads than this do not make one fetch faster.
const THREADS_MAX: u64 = 8;

/// How children of this agent are kept. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Containment {
    shared: Arc<Shared>,
}

/// The program that becomes git. It is held open: an update that exchanges the file does not mix two versions.
#[derive(Debug)]
pub(super) struct Wrapper {
    path: PathBuf,
    _file: Option<fs::File>,
}

impl Wrapper {
    /// The small one where it lies beside this program, else this program itself.
    pub(super) fn find() -> Self {
        let beside = std::env::current_exe().map(|own| own.with_file_name(CHILD_BINARY));
        match beside.and_then(fs::File::open) {
            Ok(file) => {
                // Closed by `exec`, which has found the program by then.
                let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
                Self { path, _file: Some(file) }
            }
            Err(_) => Self { path: PathBuf::from(OWN_BINARY), _file: None },
        }
    }

    pub(super) fn command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.path);
        command.arg0("stoker").arg(CHILD_WORD);
        command
    }

    /// Has a child look whether `user` can be become and reaches `path`: modes, access lists and capabilities all count,
    /// so it is tried and not computed. Gives what the child says of the kernel. Blocks.
    pub(super) fn probe(&self, user: Option<GitUser>, path: &Path) -> Result<String, String> {
        self.probe_by(user, path, |command| command.output())
    }

    /// The same, where somebody else waits for the child.
    pub(super) fn probe_by(
        &self,
        user: Option<GitUser>,
        path: &Path,
        output: impl FnOnce(&mut std::process::Command) -> std::io::Result<std::process::Output>,
    ) -> Result<String, String> {
        let mut command = self.command();
        command.args(user.iter().flat_map(|user| ["--user".to_owned(), user.to_string()])).arg("--probe").arg(path);
        command.env_clear().current_dir("/").stdin(Stdio::null());
        let output = output(&mut command).map_err(|error| format!("its program does not start: {error}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }
}

/// What a child does before it is git.
pub(super) struct Bounds<'a> {
    pub(super) memory_bytes: u64,
    /// As whom; as it was started where unset.
    pub(super) user: Option<GitUser>,
    pub(super) processes: Option<u64>,
    pub(super) plan: &'a Plan,
    /// It sees all files.
    pub(super) unconfined: bool,
    /// It ends with who started it.
    pub(super) tied: bool,
}

impl Bounds<'_> {
    /// As [`child`] reads them.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--memory".into(), self.memory_bytes.to_string().into()];
        if let Some(user) = self.user {
            args.extend(["--user".into(), user.to_string().into()]);
        }
        if let Some(processes) = self.processes {
            args.extend(["--processes".into(), processes.to_string().into()]);
        }
        let flags = [
            (self.unconfined, "--unconfined"),
            (self.plan.network, "--network"),
            (self.plan.secret, "--secret"),
            (self.tied, "--tied"),
        ];
        args.extend(flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag.into()));
        for (list, flag) in [(&self.plan.writes, "--write"), (&self.plan.reads, "--read")] {
            args.extend(list.iter().flat_map(|path| [flag.into(), path.into()]));
        }
        args.push("--".into());
        args
    }
}

#[derive(Debug)]
struct Shared {
    wrapper: Wrapper,
    /// As whom git should run; none for the agent's own user.
    user: Option<GitUser>,
    /// The configuration names the user: then git runs as no other.
    named: bool,
    memory_bytes: u64,
    processes: u64,
    personal: bool,
    /// Where git runs, where that is not below the agent.
    helper: Option<Helper>,
    reach: Mutex<Reach>,
}

/// Whether git's user gets to the pool.
#[derive(Debug, Default)]
enum Reach {
    /// Nobody looked yet.
    #[default]
    Unknown,
    /// To the repositories below this path.
    Good(PathBuf),
    /// It does not.
    Bad(Reason),
}

impl Containment {
    /// As the configuration wants it, as far as this process can.
    ///
    /// # Errors
    /// When a user is named that this process cannot become.
    pub fn of(config: &GitChild) -> Result<Self, Reason> {
        let own = nix::unistd::geteuid();
        let user = match config.user {
            _ if config.personal => None,
            Some(named) if own.is_root() => Some(named).filter(|named| named.uid != 0),
            Some(named) if named.uid == own.as_raw() => None,
            Some(named) => {
                let message = format!(
                    "`repositories.git.user` is {named}, but the agent runs as user {own}, who cannot become another: \
                     remove it, or run the agent as root"
                );
                return Err(Reason::new(Code::ContainmentReduced, "repositories.git.user", message));
            }
            None => own.is_root().then_some(USER_DEFAULT),
        };
        let helper = config.helper.clone().filter(|_| !config.personal);
        let helper = helper.map(|socket| Helper::new(socket, user.map_or(own.as_raw(), |user| user.uid)));
        let shared = Shared {
            wrapper: Wrapper::find(),
            user,
            // A helper cannot become the agent's user: there is none to fall back to.
            named: config.user.is_some() || helper.is_some(),
            helper,
            memory_bytes: config.memory_bytes,
            processes: config.processes,
            personal: config.personal,
            reach: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// As whom git runs now; none for the agent's own user.
    pub(super) fn user(&self) -> Option<GitUser> {
        match *self.reach() {
            Reach::Bad(_) if !self.shared.named => None,
            _ => self.shared.user,
        }
    }

    /// Where git runs, where that is not below the agent.
    pub(super) fn helper(&self) -> Option<&Helper> {
        self.shared.helper.as_ref()
    }

    /// Whether a person's own command is served.
    pub(super) fn is_personal(&self) -> bool {
        self.shared.personal
    }

    /// What an operator should mend.
    pub(super) fn alarm(&self) -> Option<Reason> {
        if let Some(away) = self.helper().and_then(Helper::alarm) {
            return Some(away);
        }
        match &*self.reach() {
            Reach::Bad(reason) => Some(reason.clone()),
            Reach::Unknown | Reach::Good(_) => None,
        }
    }

    /// Finds out whether git's user gets to `root`. Where it did once, nothing is done. Blocks for some milliseconds.
    ///
    /// # Errors
    /// When it does not, and the configuration names that user. Where it names none, git runs as the agent's user, and
    /// that is an alarm until the way is open.
    pub(super) fn settle(&self, root: &Path) -> Result<(), Reason> {
        let Some(user) = self.shared.user else { return Ok(()) };
        if matches!(&*self.reach(), Reach::Good(before) if before == root) {
            return Ok(());
        }
        let found = match self.probe(user, root)? {
            Ok(said) => {
                tracing::info!(%user, root = %root.display(), "git runs as a user of its own; {said}");
                Reach::Good(root.to_owned())
            }
            Err(why) => Reach::Bad(self.reduced(user, &why)),
        };
        let told = match &found {
            Reach::Bad(reason) => Some(reason.clone()),
            Reach::Unknown | Reach::Good(_) => None,
        };
        let known = matches!((&*self.reach(), &told), (Reach::Bad(before), Some(now)) if before == now);
        *self.reach() = found;
        match told {
            Some(reason) if self.shared.named => Err(reason),
            Some(reason) => {
                if !known {
                    tracing::error!(reason = reason.code.word(), "{}", reason.message);
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn reduced(&self, user: GitUser, why: &str) -> Reason {
        let remedy = match why.contains(MISSING_RIGHTS) {
            true => "give it these",
            false => "open the way with `chmod o+x` on each directory above, or choose another pool path",
        };
        let message = match self.shared.named {
            true => format!("git cannot run as `repositories.git.user`, {user}, and runs as no other: {why}; {remedy}"),
            false => format!("git runs as the agent's own user, for as {user} it cannot: {why}; {remedy}"),
        };
        Reason::new(Code::ContainmentReduced, "repositories.git.user", message)
    }

    fn reach(&self) -> MutexGuard<'_, Reach> {
        // Changes are assignments.
        self.shared.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What keeps git itself within its memory, so that it need not find the limit out. Threads share the limit, and
    /// each holds a base, a delta and the object that comes of them.
    pub(super) fn config(&self) -> Vec<(String, String)> {
        let memory = self.shared.memory_bytes;
        let cores = std::thread::available_parallelism().map_or(1, |cores| u64::try_from(cores.get()).unwrap_or(1));
        let threads = (memory / THREAD_BYTES).clamp(1, THREADS_MAX).min(cores);
        let part = memory / threads;
        let values = [
            ("pack.threads", threads),
            ("pack.windowMemory", part / 4),
            ("core.deltaBaseCacheLimit", (part / 8).min(96 << 20)),
            ("core.bigFileThreshold", (part / 8).clamp(1 << 20, 512 << 20)),
            // Packs are mapped, which counts as page cache; the windows bound how much of them one child keeps.
            ("core.packedGitLimit", memory / 2),
            ("core.packedGitWindowSize", 32 << 20),
        ];
        values.map(|(key, value)| (key.to_owned(), value.to_string())).to_vec()
    }

    /// A command that becomes the git that is named after it.
    pub(super) fn command(&self, plan: &Plan) -> std::process::Command {
        let mut command = self.shared.wrapper.command();
        command.args(self.bounds(plan).arguments());
        command
    }

    fn bounds<'a>(&self, plan: &'a Plan) -> Bounds<'a> {
        let (memory_bytes, processes) = self.limits(plan);
        let unconfined = plan.as_agent || self.shared.personal;
        Bounds { memory_bytes, user: plan.user, processes, plan, unconfined, tied: false }
    }

    /// Memory in bytes, and processes: those are counted by user, and of the agent's own others may have many.
    pub(super) fn limits(&self, plan: &Plan) -> (u64, Option<u64>) {
        (self.shared.memory_bytes, plan.user.map(|_| self.shared.processes))
    }

    /// Whether git's user may look into `path`; says where the way ends. Blocks for some milliseconds.
    pub(super) fn may_enter(&self, user: GitUser, path: &Path) -> Result<(), String> {
        self.probe(user, path).map_err(|reason| reason.message).and_then(|said| said.map(drop))
    }

    /// Has git's user look whether it reaches `path`, wherever git runs. Gives what that says of the kernel, or why not.
    fn probe(&self, user: GitUser, path: &Path) -> Result<Result<String, String>, Reason> {
        match &self.shared.helper {
            Some(helper) => child::may_lend().map_or_else(|why| Ok(Err(why)), |()| helper.look(path)),
            None => Ok(self.shared.wrapper.probe(Some(user), path)),
        }
    }
}

/// What one child may do.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// As whom; the agent's own user where unset.
    pub(super) user: Option<GitUser>,
    pub(super) writes: Vec<PathBuf>,
    pub(super) reads: Vec<PathBuf>,
    /// It speaks with others.
    pub(super) network: bool,
    /// What it reads first is a secret.
    pub(super) secret: bool,
    /// As the agent, on all of the agent's files.
    pub(super) as_agent: bool,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn kept(memory_bytes: u64) -> GitChild {
        GitChild { user: None, memory_bytes, processes: 100, helper: None, personal: false }
    }

    fn value(config: &[(String, String)], key: &str) -> u64 {
        config.iter().find(|(name, _)| name == key).unwrap().1.parse().unwrap()
    }

    #[test]
    fn what_git_may_hold_is_less_than_its_limit() {
        for memory in [256 << 20, 1 << 30, 2 << 30, 64_u64 << 30] {
            let config = Containment::of(&kept(memory)).unwrap().config();
            let threads = value(&config, "pack.threads");
            assert!((1..=THREADS_MAX).contains(&threads), "{threads}");
            let each = value(&config, "core.deltaBaseCacheLimit") + 3 * value(&config, "core.bigFileThreshold");
            assert!(threads * each <= memory, "{config:?}");
            assert!(threads * value(&config, "pack.windowMemory") <= memory / 2, "{config:?}");
        }
    }

    #[test]
    fn a_child_is_told_what_it_may_do() {
        let containment = Containment::of(&kept(1 << 30)).unwrap();
        let plan = Plan {
            user: Some(GitUser { uid: 7, gid: 8 }),
            writes: vec!["/w".into()],
            reads: vec!["/r".into()],
            network: true,
            secret: true,
            as_agent: false,
        };
        let args = |plan| containment.bounds(plan).arguments().join(std::ffi::OsStr::new(" "));
        let wanted = "--memory 1073741824 --user 7:8 --processes 100 --network --secret --write /w --read /r --";
        assert_eq!(args(&plan), wanted);
        assert_eq!(args(&Plan { as_agent: true, ..Plan::default() }), "--memory 1073741824 --unconfined --");
    }

    #[test]
    fn a_person_runs_git_as_that_person() {
        let user = Some(GitUser { uid: 1, gid: 1 });
        let containment = Containment::of(&GitChild { personal: true, user, ..kept(1 << 30) }).unwrap();
        assert_eq!(containment.user(), None);
    }
}
