//! What the machine is; read once, for it does not change while it runs.

use std::fs::File;
use std::path::{Path, PathBuf};

use procfs::process::Status;
use procfs::{FromRead as _, Meminfo};

/// What the machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The operating system, as its `os-release` names it to people.
    pub system: String,
    /// In Kubernetes' spelling: `amd64`, `arm64`.
    pub architecture: String,
    /// New at each boot.
    pub boot_id: String,
    /// Thousandths of a core that are online and, for a process of this machine, allowed to it.
    pub cpu_millis: u64,
    /// `MemTotal` less huge pages, which no build can use unasked.
    pub memory_bytes: u64,
    /// The host's name.
    pub host_name: String,
}

/// A fact without which nothing can be decided.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// A file of the kernel cannot be read.
    #[error("{path} cannot be read; is `node.hostRoot` the root of the host?")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the kernel does not say what it should.
    #[error("{path} does not say {what}")]
    Unexpected {
        /// Which.
        path: PathBuf,
        /// What is looked for.
        what: &'static str,
    },
}

impl Facts {
    /// Reads below `host_root`.
    ///
    /// # Errors
    /// Where boot id, memory or CPUs cannot be read: they decide what is admitted, and are never guessed.
    pub fn read(host_root: &Path) -> Result<Self, FactsError> {
        let own = host_root == Path::new("/");
        Ok(Self {
            kernel: text(&host_root.join("proc/sys/kernel/osrelease"))
                .ok()
                .or_else(|| sysinfo::System::kernel_version().ok())
                .unwrap_or_default(),
            system: system(host_root).or_else(|| sysinfo::System::long_os_version().ok()).unwrap_or_default(),
            architecture: architecture(std::env::consts::ARCH).to_owned(),
            boot_id: text(&host_root.join("proc/sys/kernel/random/boot_id"))?,
            cpu_millis: cpus(host_root, own)?.saturating_mul(1000),
            memory_bytes: memory(host_root)?,
            host_name: host_name(host_root, own),
        })
    }
}

/// One line, without what surrounds it.
fn text(path: &Path) -> Result<String, FactsError> {
    let unreadable = |source| FactsError::Unreadable { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    match text.trim() {
        "" => Err(FactsError::Unexpected { path: path.to_owned(), what: "anything" }),
        text => Ok(text.to_owned()),
    }
}

/// Kubernetes names architectures as Go does.
fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "x86" => "386",
        other => other,
    }
}

/// os-release(5).
fn system(host_root: &Path) -> Option<String> {
    let text = ["etc/os-release", "usr/lib/os-release"]
        .iter()
        .find_map(|path| std::fs::read_to_string(host_root.join(path)).ok())?;
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

/// CPUs that are online. A quota of our own cgroup says nothing about the node, and is not looked at; the CPUs that
/// this process may run on are, because builds of `run` are its children.
fn cpus(host_root: &Path, own: bool) -> Result<u64, FactsError> {
    let path = host_root.join("proc/stat");
    let online = text(&path)?.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    let allowed = if own { allowed_cpus() } else { None };
    match u64::try_from(allowed.unwrap_or(online).min(online)) {
        Ok(cpus) if cpus > 0 => Ok(cpus),
        _ => Err(FactsError::Unexpected { path, what: "how many CPUs are online" }),
    }
}

fn allowed_cpus() -> Option<usize> {
    let status = Status::from_read(File::open("/proc/self/status").ok()?).ok()?;
    let allowed: u32 = status.cpus_allowed?.iter().map(|word| word.count_ones()).sum();
    usize::try_from(allowed).ok().filter(|allowed| *allowed > 0)
}

fn memory(host_root: &Path) -> Result<u64, FactsError> {
    let path = host_root.join("proc/meminfo");
    let file = File::open(&path).map_err(|source| FactsError::Unreadable { path: path.clone(), source })?;
    let meminfo =
        Meminfo::from_read(file).map_err(|_| FactsError::Unexpected { path, what: "how much memory there is" })?;
    Ok(usable_memory(&meminfo))
}

/// `MemTotal` less all huge pages. `Hugetlb` counts those of every size; kernels before 4.19 only tell one size.
pub(crate) fn usable_memory(meminfo: &Meminfo) -> u64 {
    let one_size = || meminfo.hugepages_total.unwrap_or(0).saturating_mul(meminfo.hugepagesize.unwrap_or(0));
    meminfo.mem_total.saturating_sub(meminfo.hugetlb.unwrap_or_else(one_size))
}

/// In a pod the kernel tells the pod's name, so that there the host's own file is asked first.
fn host_name(host_root: &Path, own: bool) -> String {
    let of_file = if own { None } else { text(&host_root.join("etc/hostname")).ok() };
    of_file.or_else(|| nix::unistd::gethostname().ok()?.into_string().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn a_recorded_node_is_read_below_its_root() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/proc/node-32cpu-62g"));
        let facts = Facts::read(root).unwrap();
        assert_eq!(facts.cpu_millis, 32_000);
        // 62.5 GiB, of which 512 huge pages of 2 MiB are taken.
        assert_eq!(facts.memory_bytes, (65_536_000 << 10) - (1 << 30));
        assert_eq!(facts.boot_id, "6c8f1e0e-6f5b-4f0a-9d43-3a1d0c5b7e21");
        assert_eq!(facts.kernel, "6.12.40-200.fc41.x86_64");
        assert_eq!(facts.system, "Fedora Linux 41 (Forty One)");
        assert_eq!(facts.host_name, "ghost");
    }

    #[test]
    fn this_machine_can_be_read() {
        let facts = Facts::read(Path::new("/")).unwrap();
        assert!(facts.cpu_millis >= 1000 && facts.memory_bytes > 64 << 20, "{facts:?}");
        assert_eq!(facts.boot_id.len(), 36);
        assert!(!facts.host_name.is_empty() && !facts.kernel.is_empty());
    }

    #[test]
    fn a_wrong_root_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = Facts::read(root.path()).unwrap_err().to_string();
        assert!(error.contains("proc/") && error.contains("hostRoot"), "{error}");
    }

    #[test]
    fn architectures_are_spelled_as_kubernetes_does() {
        assert_eq!((architecture("x86_64"), architecture("aarch64")), ("amd64", "arm64"));
    }
}
