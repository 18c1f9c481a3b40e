//! Processes on the unix socket.
//!
//! The kernel tells who connected (`SO_PEERCRED`, see unix(7)), in the agent's own terms: a process of another pod shows
//! as pid 0 there, and, without a user namespace of its own, as uid 0. An agent that sees all processes of the machine
//! sees those of pods too, with their pids. So a user id counts only where the process is in the agent's own pid namespace:
//! on the host for an agent of the host, and in the agent's own container for one in a pod.

use std::path::Path;

use tokio::net::UnixStream;

/// A process that is known to be no other pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// When it connected.
    pub(super) pid: i32,
    /// Its user.
    pub(super) uid: u32,
}

/// Who connected, where it is a process of this machine, and what others are counted under: the process where its pid is
/// seen, else its user. Asked at once: later its pid may be another's.
pub(super) fn process(stream: &UnixStream) -> (Option<Process>, String) {
    let Ok(credentials) = stream.peer_cred() else { return (None, "the socket".to_owned()) };
    let uid = credentials.uid();
    match credentials.pid().filter(|pid| *pid > 0) {
        Some(pid) => {
            (shares_pids(Path::new("/proc"), pid).then_some(Process { pid, uid }), format!("the socket, pid {pid}"))
        }
        None => (None, format!("the socket, uid {uid}")),
    }
}

/// Whether whoever connected may be the kubelet: root, or this process's own user, and no process that is seen to be in a
/// pod. An agent in a pod sees no process of the host; there the socket's folder keeps others out.
#[must_use]
pub fn is_of_the_host(stream: &UnixStream) -> bool {
    let Ok(credentials) = stream.peer_cred() else { return false };
    let is_here = |pid: i32| shares_pids(Path::new("/proc"), pid);
    may_do_everything(credentials.uid()) && credentials.pid().filter(|pid| *pid > 0).is_none_or(is_here)
}

/// Whether a process is in the same pid namespace as this one, as far as that can be told.
fn shares_pids(proc: &Path, pid: i32) -> bool {
    let namespace = |process: &str| std::fs::read_link(proc.join(process).join("ns/pid")).ok();
    let own = namespace("self");
    own.is_some() && namespace(&pid.to_string()) == own
}

/// Root, and the agent's own user: they could change the agent itself.
pub(super) fn may_do_everything(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_of_the_same_pid_namespace_counts() {
        let tree = tempfile::tempdir().unwrap();
        for (process, namespace) in [("self", "pid:[1]"), ("7", "pid:[1]"), ("8", "pid:[2]")] {
            let folder = tree.path().join(process).join("ns");
            std::fs::create_dir_all(&folder).unwrap();
            std::os::unix::fs::symlink(namespace, folder.join("pid")).unwrap();
        }
        assert!(shares_pids(tree.path(), 7));
        assert!(!shares_pids(tree.path(), 8) && !shares_pids(tree.path(), 9), "another's, and one that is gone");
        std::fs::remove_file(tree.path().join("self/ns/pid")).unwrap();
        assert!(!shares_pids(tree.path(), 9), "two that cannot be told are not the same");
    }

    #[tokio::test]
    async fn this_process_is_one_of_this_machine() {
        let (ours, _other) = UnixStream::pair().unwrap();
        let (process, key) = process(&ours);
        let process = process.unwrap();
        assert_eq!(key, format!("the socket, pid {}", process.pid));
        assert_eq!(u32::try_from(process.pid).unwrap(), std::process::id());
        assert!(may_do_everything(process.uid));
    }
}
