//! Room for a checkout: looked for before it is filled, and watched while it is.
//!
//! There is room where the pool's floor stays free, and what other leases may still write. What the checkout will take is an
//! estimate; where that was wrong, the watch ends what keeps the pool below its floor.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stoker_core::identity::LeaseId;
use stoker_core::quantity::{Amounts, Resource};
use stoker_core::reason::{Code, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Checkouts, Kept, Wanted};
use crate::admission::Admission;
use crate::node::Filesystem;
use crate::repository::{Changes, FLOOR_LOOK_EVERY, FloorLooks, Progress};
use crate::workspace::disk::blocking;

/// So long what was thrown away is waited for where room is lacking.
const GOES_WITHIN: Duration = Duration::from_secs(30);
/// The last block of a file is half empty on average.
const FILE_WASTE_BYTES: u64 = 2 << 10;
/// No tree of sources is known to be larger: with so much room it is not counted, which takes ten microseconds a file.
const PLENTY: Needs = Needs { bytes: 64 << 30, inodes: 16 << 20 };
/// So many files of a tree are counted.
const COUNTED_MAX: u64 = 4 << 20;

/// Who waits for a checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::workspace) enum Asker<'a> {
    /// The build of a lease: what it may still write is room for its sources too.
    Lease(&'a LeaseId),
    /// A caller without a lease.
    Caller,
    /// Nobody yet: nothing is evicted for it.
    Nobody,
}

/// Tells what all leases but one may still write to the pool.
pub(in crate::workspace) type Promised = Arc<dyn Fn(Option<&LeaseId>) -> Amounts + Send + Sync>;

/// What leases may still write to the pool, but for one: what that may is its own.
pub(in crate::workspace) fn promised_by(admission: Admission) -> Promised {
    Arc::new(move |own| {
        admission.totals(|ledger, totals| {
            let own = own.and_then(|id| ledger.lease(id)).map(|lease| lease.sizing.size.amounts);
            totals.unwritten.less(own.unwrap_or_default())
        })
    })
}

/// What a checkout takes of the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Needs {
    bytes: u64,
    inodes: u64,
}

impl Needs {
    const fn of(files: u64, bytes: u64) -> Self {
        Self { bytes: bytes.saturating_add(files.saturating_mul(FILE_WASTE_BYTES)), inodes: files }
    }

    const fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), inodes: self.inodes.saturating_add(other.inodes) }
    }

    /// What of it a pool lacks that must keep so much.
    const fn lacking(self, disk: &Filesystem, promised: Amounts) -> Self {
        let kept = disk.floor_bytes.saturating_add(promised.disk_bytes);
        let inodes = match disk.total_inodes {
            0 => 0,
            _ => disk.floor_inodes.saturating_add(promised.disk_inodes).saturating_add(self.inodes),
        };
        Self {
            bytes: kept.saturating_add(self.bytes).saturating_sub(disk.free_bytes),
            inodes: inodes.saturating_sub(disk.free_inodes),
        }
    }

    const fn is_none(self) -> bool {
        self.bytes == 0 && self.inodes == 0
    }
}

impl Checkouts {
    /// Sees to it that the pool has room for what is wanted: for that, what was thrown away goes, and then kept checkouts
    /// that nobody holds.
    ///
    /// # Errors
    /// `DISK_FLOOR` or `DISK_INODES_FLOOR` where there is too little all the same.
    pub(in crate::workspace) async fn find_room(
        &self,
        root: &Path,
        wanted: &Wanted<'_>,
        base: Option<&(Arc<Kept>, Changes)>,
        steps: &watch::Sender<Progress>,
    ) -> Result<(), Reason> {
        let promised = (self.inner.promised)(match wanted.asker {
            Asker::Lease(lease) => Some(lease),
            Asker::Caller | Asker::Nobody => None,
        });
        let Some(mut disk) = self.disk().await else { return Ok(()) };
        if PLENTY.lacking(&disk, promised).is_none() {
            return Ok(());
        }
        let needs = match self.guess(wanted, base) {
            // What fits twice fits if the guess is half of it, too.
            Some(needs) if needs.plus(needs).lacking(&disk, promised).is_none() => return Ok(()),
            Some(needs) if base.is_some() => needs,
            _ => self.count(wanted).await,
        };
        let mut waited = false;
        loop {
            let lacking = needs.lacking(&disk, promised);
            if lacking.is_none() {
                return Ok(());
            }
            if wanted.asker == Asker::Nobody {
                return Err(self.refusal(needs, &disk, promised));
            }
            steps.send_replace(Progress::phase("making room"));
            if waited {
                let (room, root) = (self.clone(), root.to_owned());
                let gone = blocking(move || Ok(room.evict(&root, u64::MAX, lacking.bytes.max(1)))).await;
                if gone.unwrap_or(0) == 0 {
                    return Err(self.refusal(needs, &disk, promised));
                }
            }
            // First what is on its way out anyhow.
            let _ = tokio::time::timeout(GOES_WITHIN, self.inner.pools.drained()).await;
            waited = true;
            disk = match self.disk().await {
                Some(disk) => disk,
                None => return Ok(()),
            };
        }
    }

    /// Fills a checkout, and ends that where it keeps the pool below its floor though all was evicted that may be.
    ///
    /// # Errors
    /// Those of the work; `DISK_FLOOR` where it was ended, or came to the end of the disk.
    pub(in crate::workspace) async fn within_floor<T, F: Future<Output = Result<T, Reason>>>(
        &self,
        root: &Path,
        cancel: &CancellationToken,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Result<T, Reason> {
        let cancel = cancel.child_token();
        let mut work = std::pin::pin!(work(cancel.clone()));
        let result = tokio::select! {
            result = &mut work => result,
            reason = self.stays_below_floor(root) => {
                cancel.cancel();
                // What came to its end before is told as it is.
                return work.await.map_err(|_| reason);
            }
        };
        match result {
            Err(reason) if reason.code == Code::DiskFloor => Err(self.with_figures(reason).await),
            result => result,
        }
    }

    async fn stays_below_floor(&self, root: &Path) -> Reason {
        let mut looks = FloorLooks::from_above();
        loop {
            tokio::time::sleep(FLOOR_LOOK_EVERY).await;
            let Some(disk) = self.disk().await else { continue };
            let lacking = Needs::default().lacking(&disk, Amounts::default());
            if looks.stays_below(lacking.is_none()) {
                let message = format!("checking out was ended: {}", self.too_little(&disk));
                return about(lacking, Needs::default(), &disk, self.inner.pool.clone(), message);
            }
            if !lacking.is_none() {
                tracing::debug!(?lacking, "the pool is below its floor while a checkout is filled");
                self.relieve(root, u64::MAX).await;
            }
        }
    }

    /// What the pool has above its floor; nothing where it does not tell.
    pub(in crate::workspace) async fn has_spare_room(&self) -> bool {
        self.disk().await.is_some_and(|disk| disk.free_bytes > disk.floor_bytes)
    }

    /// Lets go of what is kept above a limit, and of what the pool's floor wants, bytes or inodes.
    pub(in crate::workspace) async fn relieve(&self, root: &Path, limit: u64) {
        let lacking = self.disk().await.map(|disk| Needs::default().lacking(&disk, Amounts::default()));
        // Inodes come with the bytes of whole checkouts: one after the other until there are enough.
        let bytes = lacking.map_or(0, |lacking| lacking.bytes.max(u64::from(lacking.inodes > 0)));
        let (room, root) = (self.clone(), root.to_owned());
        let evicted = blocking(move || Ok(room.evict(&root, limit, bytes))).await;
        tracing::trace!(?evicted, "looked for room");
    }

    async fn disk(&self) -> Option<Filesystem> {
        let (pools, pool) = (self.inner.pools.clone(), self.inner.pool.clone());
        blocking(move || Ok(pools.measure_one(&pool).and_then(Result::ok))).await.ok().flatten()
    }

    /// What it takes by what is known: a layer its share of the files of its base, a full one as much as the last one of
    /// its kind.
    fn guess(&self, wanted: &Wanted<'_>, base: Option<&(Arc<Kept>, Changes)>) -> Option<Needs> {
        let Some((base, changes)) = base else {
            return self.last_alike(&wanted.settings()).map(|(files, bytes)| Needs::of(files, bytes));
        };
        let (files, bytes) = base.extent();
        let written = match changes.attributes.is_empty() {
            true => u64::try_from(changes.written.len()).unwrap_or(u64::MAX),
            // Whatever is below them is written anew.
            false => files,
        };
        let share = bytes.checked_div(files).unwrap_or(0).saturating_mul(written);
        Some(Needs::of(written, share.saturating_add(large_written(wanted, changes))))
    }

    /// What git says of all its trees.
    async fn count(&self, wanted: &Wanted<'_>) -> Needs {
        let large = wanted.large.iter().fold(0_u64, |sum, one| sum.saturating_add(one.files.bytes()));
        let (reader, mut needs) = (self.inner.reader.clone(), Needs::of(0, large));
        let own = wanted.trees.iter().map(|tree| (tree.pin.clone(), tree.commit));
        let nested = wanted.nested.iter().filter_map(|one| one.resolved.as_ref());
        let all: Vec<_> = own.chain(nested.map(|one| (one.pin.clone(), one.commit))).collect();
        let counted = blocking(move || {
            for (pin, commit) in &all {
                // Who cannot be read is told by who checks it out.
                let Ok(found) = reader.summarise(pin, *commit, COUNTED_MAX) else { continue };
                needs = needs.plus(Needs::of(found.total.files, found.total.bytes));
            }
            Ok(needs)
        });
        counted.await.unwrap_or(needs)
    }

    /// Files and bytes of the checkout with these settings that was used last.
    fn last_alike(&self, settings: &str) -> Option<(u64, u64)> {
        let kept = self.kept();
        let alike = kept.values().filter_map(|one| {
            let record = one.record();
            (record.settings == settings).then_some((record.used_at, (record.files, record.bytes)))
        });
        alike.max_by_key(|(used_at, _)| *used_at).map(|(_, extent)| extent)
    }

    fn refusal(&self, needs: Needs, disk: &Filesystem, promised: Amounts) -> Reason {
        let bytes = |value: u64| Resource::DiskBytes.show(value);
        let lacking = needs.lacking(disk, promised);
        let message = if lacking.bytes > 0 {
            format!(
                "the sources take about {}; the pool has {} free, of which {} are its floor and {} what other leases may \
                 still write, and no more kept checkouts can go; free some there, or end a lease",
                bytes(needs.bytes),
                bytes(disk.free_bytes),
                bytes(disk.floor_bytes),
                bytes(promised.disk_bytes)
            )
        } else {
            format!(
                "the sources take about {} inodes; the pool has {} free, of which {} are its floor and {} what other leases \
                 may still take, and no more kept checkouts can go; remove files there, or end a lease",
                needs.inodes, disk.free_inodes, disk.floor_inodes, promised.disk_inodes
            )
        };
        about(lacking, needs, disk, self.inner.pool.clone(), message)
    }

    fn too_little(&self, disk: &Filesystem) -> String {
        let bytes = |value: u64| Resource::DiskBytes.show(value);
        format!(
            "pool {} has {} and {} inodes free, its floor is {} and {}, and no kept checkout that may go made room; free \
             some there",
            self.inner.pool,
            bytes(disk.free_bytes),
            disk.free_inodes,
            bytes(disk.floor_bytes),
            disk.floor_inodes
        )
    }

    /// What was told of a full disk, with what there is and what to do.
    async fn with_figures(&self, reason: Reason) -> Reason {
        let Some(disk) = self.disk().await else { return reason };
        let message = format!("{}; {}", reason.message, self.too_little(&disk));
        Reason { message, ..reason }.about(Resource::DiskBytes, disk.floor_bytes, disk.free_bytes)
    }
}

fn about(lacking: Needs, needs: Needs, disk: &Filesystem, pool: String, message: String) -> Reason {
    if lacking.bytes > 0 {
        let wanted = disk.floor_bytes.saturating_add(needs.bytes);
        Reason::new(Code::DiskFloor, pool, message).about(Resource::DiskBytes, wanted, disk.free_bytes)
    } else {
        let wanted = disk.floor_inodes.saturating_add(needs.inodes);
        Reason::new(Code::DiskInodesFloor, pool, message).about(Resource::DiskInodes, wanted, disk.free_inodes)
    }
}

/// Bytes of the large files that a layer gets.
fn large_written(wanted: &Wanted<'_>, changes: &Changes) -> u64 {
    let written: HashSet<&Path> = changes.written.iter().map(|path| path.as_path()).collect();
    let own = wanted.large.iter().filter(|one| one.tree.as_os_str().is_empty());
    let all = own.flat_map(|one| one.files.files()).filter(|file| written.contains(file.path.as_path()));
    all.fold(0, |sum, file| sum.saturating_add(file.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_and_what_others_may_write_are_left() {
        let disk = Filesystem {
            total_bytes: 1000,
            free_bytes: 500,
            total_inodes: 100,
            free_inodes: 50,
            floor_bytes: 100,
            floor_inodes: 10,
            type_name: "ext4".to_owned(),
        };
        let promised = Amounts { disk_bytes: 150, disk_inodes: 15, ..Amounts::default() };
        for (bytes, inodes, lacking) in [(250, 25, (0, 0)), (251, 25, (1, 0)), (250, 26, (0, 1)), (0, 0, (0, 0))] {
            let found = Needs { bytes, inodes }.lacking(&disk, promised);
            assert_eq!((found.bytes, found.inodes), lacking, "{bytes} bytes, {inodes} inodes");
        }
        // A pool that is below its floor has no room for anything, and some filesystems count no inodes.
        let low = Filesystem { free_bytes: 99, ..disk.clone() };
        assert_eq!(Needs::default().lacking(&low, Amounts::default()), Needs { bytes: 1, inodes: 0 });
        let btrfs = Filesystem { total_inodes: 0, free_inodes: 0, floor_inodes: 0, ..disk };
        assert!(Needs { bytes: 1, inodes: 1 << 40 }.lacking(&btrfs, promised).is_none());
        assert_eq!(Needs::of(3, 100), Needs { bytes: 100 + 3 * FILE_WASTE_BYTES, inodes: 3 });
    }
}
