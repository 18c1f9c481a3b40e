//! What a lease's holder is kept to, and whether that is within its size.
//!
//! The ledger promises a size to each build; only the kernel can hold a build to it. A holder whose control group, and
//! all groups above it, have no limit takes what it gets, and what it takes is missing to the others on the node.
//!
//! Limits of CPU: `cpu.max` of v2 (`Documentation/admin-guide/cgroup-v2.rst`), `cpu.cfs_quota_us` over
//! `cpu.cfs_period_us` of v1 (`Documentation/scheduler/sched-bwc.rst`). Of memory: `memory.max`, `memory.limit_in_bytes`.

use std::fs;
use std::path::{Path, PathBuf};

use stoker_core::quantity::{Amounts, Resource};
use stoker_core::reason::{Code, Reason};

/// Groups above a holder's that are looked at.
const ABOVE_MAX: usize = 32;
/// v1 writes "none" as the largest multiple of a page.
const NONE_FROM: u64 = 1 << 62;

/// What a holder's control group, or one above it, keeps it to. Unset: nothing does.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
}

impl Limits {
    /// The least of each, of these groups and all above them, up to the roots of their hierarchies.
    ///
    /// Each is the path of a group, and of its root.
    pub(super) fn of(cpu: Option<(PathBuf, PathBuf)>, memory: Option<(PathBuf, PathBuf)>) -> Self {
        let least = |group: Option<(PathBuf, PathBuf)>, limit: fn(&Path) -> Option<u64>| {
            let (path, root) = group?;
            let up = path.ancestors().take(ABOVE_MAX).take_while(|group| *group != root && group.starts_with(&root));
            up.filter_map(limit).min()
        };
        Self { cpu_millis: least(cpu, cpu_millis), memory_bytes: least(memory, memory_bytes) }
    }

    /// What of its size the holder of a lease is not kept to.
    #[must_use]
    pub fn beyond(&self, size: &Amounts) -> Vec<Reason> {
        let parts = [(Resource::Cpu, self.cpu_millis), (Resource::Memory, self.memory_bytes)];
        let told = parts.into_iter().filter(|(resource, limit)| limit.is_none_or(|limit| limit > size.get(*resource)));
        let told = told.map(|(resource, limit)| {
            let (size, word) = (size.get(resource), resource.word());
            let has = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("a limit of {}", resource.show(limit)));
            let message = format!(
                "its holder has {has} for {word}, and a size of {}: give its control group that limit, or others on this \
                 node wait for what it takes",
                resource.show(size)
            );
            Reason::new(Code::LeaseUnlimited, word, message).about(resource, limit.unwrap_or(0), size)
        });
        told.collect()
    }
}

fn cpu_millis(group: &Path) -> Option<u64> {
    let (quota, period) = match fs::read_to_string(group.join("cpu.max")) {
        Ok(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)
        }
        // -1 is none.
        Err(_) => (number(&group.join("cpu.cfs_quota_us"))?, number(&group.join("cpu.cfs_period_us"))?),
    };
    quota.saturating_mul(1000).checked_div(period)
}

fn memory_bytes(group: &Path) -> Option<u64> {
    let limit = number(&group.join("memory.max")).or_else(|| number(&group.join("memory.limit_in_bytes")));
    limit.filter(|limit| *limit < NONE_FROM)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
    }

    fn limits(root: &Path, group: &str) -> Limits {
        let group = || Some((root.join(group), root.to_owned()));
        Limits::of(group(), group())
    }

    #[test]
    fn the_least_of_a_group_and_those_above_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("cpu.max", "1 100000"),
                ("pod/cpu.max", "200000 100000"),
                ("pod/memory.max", "max"),
                ("pod/build/cpu.max", "max 100000"),
                ("pod/build/memory.max", "1073741824"),
                ("v1/cpu.cfs_quota_us", "25000"),
                ("v1/cpu.cfs_period_us", "50000"),
                ("v1/memory.limit_in_bytes", "9223372036854771712"),
                ("free/cpu.cfs_quota_us", "-1"),
                ("free/cpu.cfs_period_us", "100000"),
            ],
        );
        let of = |cpu_millis, memory_bytes| Limits { cpu_millis, memory_bytes };
        assert_eq!(limits(dir.path(), "pod/build"), of(Some(2000), Some(GIB)));
        assert_eq!(limits(dir.path(), "pod"), of(Some(2000), None));
        assert_eq!(limits(dir.path(), "v1"), of(Some(500), None));
        assert_eq!(limits(dir.path(), "free"), Limits::default());
        assert_eq!(limits(dir.path(), ""), Limits::default(), "the root has none of its own");
    }

    #[test]
    fn what_is_not_within_the_size_is_told_with_both_figures() {
        let size = Amounts { cpu_millis: 2000, memory_bytes: 4 * GIB, ..Amounts::default() };
        let kept = Limits { cpu_millis: Some(2000), memory_bytes: Some(3 * GIB) };
        assert_eq!(kept.beyond(&size), []);
        let [cpu] = Limits { cpu_millis: Some(4000), ..kept }.beyond(&size).try_into().unwrap();
        assert_eq!((cpu.code, cpu.wanted, cpu.available), (Code::LeaseUnlimited, 4000, 2000));
        assert!(
            cpu.message.starts_with("its holder has a limit of 4 CPU for CPU, and a size of 2 CPU"),
            "{}",
            cpu.message
        );
        assert_eq!(Limits::default().beyond(&size).len(), 2);
    }
}
