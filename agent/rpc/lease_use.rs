//! What the builds of leases use, on the wire, and where that is not within their sizes.

use stoker_core::identity::LeaseId;
use stoker_core::quantity::{Amounts, Resource, Timestamp};
use stoker_core::reason::{Code, Reason};
use stoker_proto::v1;

use super::convert::{reasons, timestamp, usage, wire};
use crate::pressure::lease_use::{LeaseUse, UseSource};

/// XFS reserves room for so much of one write at once: what does not fit fails as a whole.
const WRITE_BYTES_MAX: u64 = 4 << 20;

/// `size` is that of the lease while it holds anything.
pub(super) fn lease_use(lease: &LeaseId, seen: &LeaseUse, size: Option<&Amounts>, wrote: Wrote<'_>) -> v1::LeaseUse {
    let beyond = size.map(|size| beyond_its_size(seen, size, wrote)).unwrap_or_default();
    let written = wrote.on_disk;
    let (source, cgroup) = match &seen.source {
        UseSource::None => ("", ""),
        UseSource::Cgroup(path) => ("cgroup", path.as_str()),
        UseSource::Processes => ("processes", ""),
    };
    v1::LeaseUse {
        lease_id: lease.to_string(),
        source: source.to_owned(),
        cgroup: cgroup.to_owned(),
        cpu_millis: wire(seen.now.cpu_millis),
        memory_bytes: wire(seen.now.memory_bytes),
        peak: Some(usage(&seen.peak)),
        io_read_bytes: wire(seen.io_read_bytes),
        io_written_bytes: wire(seen.io_written_bytes),
        oom_kills: seen.oom.map(|oom| wire(oom.kills)),
        oom_at_limit: seen.oom.map(|oom| wire(oom.at_limit)),
        memory_bytes_limit: seen.memory_bytes_limit.map(wire),
        ended: seen.ended,
        cpu_millis_kept: seen.limits.cpu_millis.map(wire),
        memory_bytes_kept: seen.limits.memory_bytes.map(wire),
        reasons: reasons(&beyond),
        disk_bytes: written.map(|(now, _)| wire(now.disk_bytes)),
        disk_inodes: written.map(|(now, _)| wire(now.disk_inodes)),
        observed_at: (seen.at > Timestamp::default()).then(|| timestamp(seen.at)),
    }
}

/// What the build of a lease wrote, now and at most; and whether its filesystem lets it write no more than its size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wrote<'a> {
    pub(super) on_disk: Option<&'a (Amounts, Amounts)>,
    pub(super) limited: bool,
}

/// What of a lease of this size is not kept to it.
pub(super) fn beyond_its_size(seen: &LeaseUse, size: &Amounts, wrote: Wrote<'_>) -> Vec<Reason> {
    let over = wrote.on_disk.and_then(|(now, _)| over_disk(size, now, wrote.limited));
    seen.unlimited(size).into_iter().chain(over).collect()
}

/// Why a build that writes more than its size is told. One that is limited can come near it alone: where as much as one
/// write may bring does not fit any more, the next one may have failed.
fn over_disk(size: &Amounts, written: &Amounts, limited: bool) -> Option<Reason> {
    let near = |asked: u64| if limited { WRITE_BYTES_MAX.min(asked / 8) } else { 0 };
    let figures = [
        (Resource::DiskBytes, written.disk_bytes, size.disk_bytes, near(size.disk_bytes)),
        (Resource::DiskInodes, written.disk_inodes, size.disk_inodes, 0),
    ];
    let reaches = |held: u64, asked: u64, near: u64| {
        if limited { asked > 0 && held.saturating_add(near) >= asked } else { held > asked }
    };
    let (resource, held, asked, _) =
        figures.into_iter().find(|(_, held, asked, near)| reaches(*held, *asked, *near))?;
    let (held_in_words, asked_in_words) = (resource.show(held), resource.show(asked));
    let message = match limited {
        false => format!("its build holds {held_in_words}, its size is {asked_in_words}"),
        true => format!(
            "its build holds {held_in_words} of its size, {asked_in_words}: beyond that its writes fail; admit it with more"
        ),
    };
    Some(Reason::new(Code::LeaseOverDisk, resource.word(), message).about(resource, held, asked))
}

pub(super) fn is_unlimited(seen: &v1::LeaseUse) -> bool {
    seen.reasons.iter().any(|reason| reason.code() == v1::reason::Code::LeaseUnlimited)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_limited_build_is_told_where_its_next_write_may_fail() {
        let size = Amounts { disk_bytes: 64 << 20, disk_inodes: 100, ..Amounts::default() };
        let held = |disk_bytes: u64, disk_inodes: u64| Amounts { disk_bytes, disk_inodes, ..Amounts::default() };
        for (wrote, watched, limited) in [
            (held(0, 0), false, false),
            (held(59 << 20, 99), false, false),
            (held(60 << 20, 99), false, true),
            (held(64 << 20, 1), false, true),
            (held(1, 100), false, true),
            (held((64 << 20) + 1, 1), true, true),
            (held(1, 101), true, true),
        ] {
            assert_eq!(over_disk(&size, &wrote, false).is_some(), watched, "{wrote:?}");
            assert_eq!(over_disk(&size, &wrote, true).is_some(), limited, "{wrote:?}");
        }
        let message = over_disk(&size, &held(64 << 20, 0), true).unwrap().message;
        assert!(message.contains("64 MiB of its size") && message.contains("admit it with more"), "{message}");
    }
}
