//! What this process may use, laid down before it reads anything.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// What is asked for on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    memory_bytes: u64,
    cpu_seconds: u64,
    user: Option<(u32, u32)>,
}

impl Limits {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Option<Self> {
        let (mut memory_bytes, mut cpu_seconds, mut user) = (None, None, None);
        while let Some(arg) = args.next() {
            let value = args.next()?;
            match arg.as_str() {
                "--memory" => memory_bytes = Some(value.parse().ok()?),
                "--seconds" => cpu_seconds = Some(value.parse().ok()?),
                "--user" => {
                    let (uid, gid) = value.split_once(':')?;
                    user = Some((uid.parse().ok()?, gid.parse().ok()?));
                }
                _ => return None,
            }
        }
        Some(Self { memory_bytes: memory_bytes?, cpu_seconds: cpu_seconds?, user })
    }

    pub(crate) fn enforce(self) -> nix::Result<()> {
        if let Some((uid, gid)) = self.user {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            setgroups(&[])?;
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
        }
        // Where memory runs out it goes first, and not the agent beside it. Not everywhere may that be said.
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
        lower(Resource::RLIMIT_CORE, 0, 0)?;
        lower(Resource::RLIMIT_AS, self.memory_bytes, self.memory_bytes)?;
        // SIGXCPU at the first, which says why it ended; SIGKILL at the second.
        lower(Resource::RLIMIT_CPU, self.cpu_seconds, self.cpu_seconds.saturating_add(1))?;
        // What is open stays; nothing is opened any more, whatever it is called.
        lower(Resource::RLIMIT_NOFILE, 0, 0)
    }
}

/// Never above what holds already, which only root could do.
fn lower(resource: Resource, soft: u64, hard: u64) -> nix::Result<()> {
    let (_, most) = getrlimit(resource)?;
    setrlimit(resource, soft.min(most), hard.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Limits> {
        Limits::parse(text.split(' ').map(str::to_owned))
    }

    #[test]
    fn nothing_runs_without_limits() {
        let all = Limits { memory_bytes: 1, cpu_seconds: 2, user: Some((3, 4)) };
        assert_eq!(parse("--memory 1 --seconds 2 --user 3:4"), Some(all));
        assert_eq!(parse("--seconds 2 --memory 1"), Some(Limits { user: None, ..all }));
        for wrong in ["", "--memory 1", "--seconds 2", "--memory 1 --seconds", "--memory x --seconds 1", "--help x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
