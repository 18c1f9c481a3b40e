//! Control groups of a test's own, with a limit of memory or a share of CPU: whichever of v1 and v2 the machine has.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait;

/// A group that was made, or the end of the test where this machine lets us make none.
macro_rules! made {
    ($group:expr) => {
        match $group {
            Some(group) => group,
            None => {
                assert!(std::env::var_os("CI").is_none(), "this test needs a control group, and CI skips nothing");
                eprintln!("not run: no control group can be made");
                return;
            }
        }
    };
}
pub(crate) use made;

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
        remove(&self.0);
    }
}

/// How long a pod's group is tried to be made.
const MADE_WITHIN: Duration = Duration::from_secs(2);

/// A pod's group, where a kubelet would make it, with a process in it. Dropped, all in it are killed and it is removed.
pub(crate) struct PodGroup {
    path: PathBuf,
    process: std::process::Child,
}

impl PodGroup {
    /// Runs a shell's script in the group of a pod of this uid; nothing where this machine lets us make none.
    pub(crate) fn run(uid: &str, memory_limit: Option<u64>, script: &str) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let v1 = root.join("memory/memory.limit_in_bytes").exists();
        let (home, file) =
            if v1 { (root.join("memory"), "memory.limit_in_bytes") } else { (root.to_owned(), "memory.max") };
        let class = home.join("kubepods/burstable");
        let path = class.join(format!("pod{uid}"));
        // The end of another's pod may take the folders above it away before it is there.
        let made = wait::holds_within(MADE_WITHIN, || {
            let make = |folder: &Path| {
                if !v1 {
                    let _ = std::fs::write(folder.with_file_name("cgroup.subtree_control"), "+memory");
                }
                std::fs::create_dir(folder).is_ok()
            };
            make(&home.join("kubepods"));
            make(&class);
            make(&path)
        });
        if !made {
            return None;
        }
        let enter = format!("echo $$ > {}/cgroup.procs && {script}", path.display());
        if let Some(limit) = memory_limit {
            std::fs::write(path.join(file), limit.to_string()).ok()?;
        }
        let process = std::process::Command::new("sh").args(["-c", &enter]).spawn().unwrap();
        let group = Self { path, process };
        wait::until(Duration::from_secs(10), "the process is in the group of its pod", || group.runs());
        Some(group)
    }

    fn runs(&self) -> bool {
        std::fs::read_to_string(self.path.join("cgroup.procs")).is_ok_and(|text| !text.trim().is_empty())
    }

    /// Ends what runs in it, as the kubelet does with a pod, and takes the group away.
    pub(crate) fn end(self) {}
}

impl Drop for PodGroup {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        remove(&self.path);
        // Those of other pods may be in them.
        for parent in self.path.ancestors().skip(1).take(2) {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

/// Shares of one that comes before and after what has the usual 1024.
const FIRST: u64 = 262_144;
const LAST: u64 = 2;

/// A group with a share of CPU. Dropped, all in it are killed and it is removed; groups in it go first.
pub(crate) struct CpuGroup {
    path: PathBuf,
    unified: bool,
}

impl CpuGroup {
    /// One for groups in it, which comes after all else on the machine; nothing where this machine lets us make none.
    pub(crate) fn last_of_all() -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let v1 = ["cpu,cpuacct", "cpu"]
            .map(|name| root.join(name))
            .into_iter()
            .find(|home| home.join("cpu.shares").exists());
        let (home, unified) = match v1 {
            Some(home) => (home, false),
            None => {
                let _ = std::fs::write(root.join("cgroup.subtree_control"), "+cpu");
                (root.to_owned(), true)
            }
        };
        let path = home.join(format!("stoker-test-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir(&path).ok()?;
        let group = Self { path, unified };
        group.share(LAST).ok()?;
        if unified {
            std::fs::write(group.path.join("cgroup.subtree_control"), "+cpu").ok()?;
        }
        Some(group)
    }

    /// One in it, with the share that a kubelet gives to a request of so much, and a limit where there is one.
    pub(crate) fn inside(&self, name: &str, cpu_millis: u64, limit_millis: Option<u64>) -> Self {
        let group = Self { path: self.path.join(name), unified: self.unified };
        std::fs::create_dir(&group.path).unwrap();
        group.share(cpu_millis * 1024 / 1000).unwrap();
        if let Some(millis) = limit_millis {
            let quota = millis * 100;
            let (file, text) = match group.unified {
                true => ("cpu.max", format!("{quota} 100000")),
                false => ("cpu.cfs_quota_us", quota.to_string()),
            };
            std::fs::write(group.path.join(file), text).unwrap();
        }
        group
    }

    /// What is measured comes before all else, and so measures the same on a busy machine; what is not measured leaves the
    /// machine to the others.
    pub(crate) fn before_all_else<T>(&self, measured: impl FnOnce() -> T) -> T {
        self.share(FIRST).unwrap();
        let found = measured();
        self.share(LAST).unwrap();
        found
    }

    /// In the unit of v1; v2 has another, and a kubelet goes from one to the other like this.
    fn share(&self, shares: u64) -> std::io::Result<()> {
        match self.unified {
            true => std::fs::write(self.path.join("cpu.weight"), (1 + (shares - 2) * 9999 / 262_142).to_string()),
            false => std::fs::write(self.path.join("cpu.shares"), shares.to_string()),
        }
    }

    /// A command of a shell after which it is in the group.
    pub(crate) fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.path.display())
    }

    /// Whether a process is in it.
    pub(crate) fn has(&self, pid: u32) -> bool {
        let members = std::fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        members.lines().any(|line| line.parse() == Ok(pid))
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    wait::holds_within(Duration::from_secs(10), || {
        let members = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines().filter_map(|line| line.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::fs::remove_dir(path).is_ok() || !path.exists()
    });
}
