//! Control groups of a test's own, with a limit of memory: whichever of v1 and v2 the machine has.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait;

/// A group. Dropped, all in it are killed and it is removed.
pub(crate) struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Makes one; nothing where this machine lets us make none.
    pub(crate) fn new(limit: u64) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("stoker-test-{}", uuid::Uuid::now_v7().simple());
        let (path, file) = match root.join("memory/memory.limit_in_bytes").exists() {
            true => (root.join("memory").join(name), "memory.limit_in_bytes"),
            false => {
                // Where the controller cannot be handed down the group has no such file.
                let _ = std::fs::write(root.join("cgroup.subtree_control"), "+memory");
                (root.join(name), "memory.max")
            }
        };
        std::fs::create_dir(&path).ok()?;
        let group = Self(path);
        std::fs::write(group.0.join(file), limit.to_string()).ok().map(|()| group)
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A command of a shell after which it is in the group.
    pub(crate) fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0.display())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        wait::holds_within(Duration::from_secs(10), || {
            let members = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines().filter_map(|line| line.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}
