//! How full filesystems are, and how fast they fill.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::pressure::{DiskReading, Filling, PoolReading, WatchedReading};
use stoker_core::quantity::{Amounts, Timestamp};
use tokio::task::JoinHandle;

use super::Configured;
use crate::config::WatchedFilesystem;
use crate::node::{Filesystem, PoolTrouble, Pools, now};

/// After this long without an answer, disks count as failed.
const DISKS_WITHIN: Duration = Duration::from_secs(5);

/// Asks filesystems how full they are. Apart from the sampler, for a filesystem may not answer.
#[derive(Debug, Clone)]
pub(super) struct DiskProbe {
    config: Configured,
}

impl DiskProbe {
    pub(super) const fn new(config: Configured) -> Self {
        Self { config }
    }

    /// Blocks for as long as the filesystems take to answer.
    pub(super) fn measure(&self, pools: &Pools) -> Disks {
        let config = Arc::clone(&self.config.borrow());
        let host_root = &config.node.host_root;
        let root = Filesystem::at(host_root, config.node.root_floor).ok();
        Disks { root, pools: pools.measure(), watched: watched(&config.node.filesystems, host_root), at: now() }
    }
}

/// Those that were asked for, and of the usual ones those that are a filesystem of their own.
fn watched(filesystems: &[WatchedFilesystem], host_root: &Path) -> Vec<(PathBuf, Option<Filesystem>)> {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
    let mut seen = vec![device(host_root)];
    let mut measured = Vec::new();
    for watched in filesystems {
        let path = host_root.join(watched.path.strip_prefix("/").unwrap_or(&watched.path));
        if watched.by_default {
            let device = device(&path);
            if device.is_none() || seen.contains(&device) {
                continue;
            }
            seen.push(device);
        }
        measured.push((watched.path.clone(), Filesystem::at(&path, watched.floor).ok()));
    }
    measured
}

/// How full the filesystems are.
#[derive(Debug, Clone)]
pub(super) struct Disks {
    pub(super) root: Option<Filesystem>,
    pub(super) pools: Vec<(String, Result<Filesystem, PoolTrouble>)>,
    pub(super) watched: Vec<(PathBuf, Option<Filesystem>)>,
    /// When they answered.
    pub(super) at: Timestamp,
}

impl Disks {
    /// They do not answer. A pool that was not ready still is not.
    fn fail(&mut self) {
        self.root = None;
        for (_, disk) in self.pools.iter_mut().filter(|(_, disk)| disk.is_ok()) {
            *disk = Err(PoolTrouble::Silent);
        }
        for (_, disk) in &mut self.watched {
            *disk = None;
        }
    }
}

/// What is remembered of each filesystem that answers; of one that does not, nothing.
#[derive(Debug, Default)]
pub(super) struct Fillings(BTreeMap<Place, Filling>);

/// Pools and paths can have the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Root,
    Pool(String),
    Watched(PathBuf),
}

/// What the gate is decided from.
pub(super) struct DiskReadings {
    pub(super) root: DiskReading,
    pub(super) pools: Vec<PoolReading>,
    pub(super) watched: Vec<WatchedReading>,
}

impl Fillings {
    /// The readings of these measurements. `reserved` says what leases hold of a pool, `needed` whether builds can start
    /// without it.
    pub(super) fn readings(
        &mut self,
        disks: &Disks,
        reserved: impl Fn(&str) -> Amounts,
        needed: impl Fn(&str) -> bool,
    ) -> DiskReadings {
        let mut before = std::mem::take(&mut self.0);
        let mut known = |place: Place, disk: &Filesystem, reserved: Amounts| {
            let mut filling = before.remove(&place).unwrap_or_default();
            filling.note(disk.free_bytes, disk.free_inodes, disks.at);
            let mut reading = disk.reading(reserved.disk_bytes, reserved.disk_inodes);
            reading.slope = filling.slope();
            self.0.insert(place, filling);
            DiskReading::Known(reading)
        };
        let none = Amounts::default();
        let root = disks.root.as_ref().map_or(DiskReading::Failed, |root| known(Place::Root, root, none));
        let pools = disks.pools.iter().map(|(name, disk)| {
            let disk = match disk {
                Ok(disk) => known(Place::Pool(name.clone()), disk, reserved(name)),
                Err(PoolTrouble::NotReady(message)) => DiskReading::NotReady(message.clone()),
                Err(PoolTrouble::Silent) => DiskReading::Failed,
            };
            PoolReading { name: name.clone(), needed: needed(name), disk }
        });
        let pools = pools.collect();
        let watched = disks.watched.iter().map(|(path, disk)| WatchedReading {
            path: path.display().to_string(),
            disk: match disk {
                Some(disk) => known(Place::Watched(path.clone()), disk, none),
                None => DiskReading::Failed,
            },
        });
        DiskReadings { root, pools, watched: watched.collect() }
    }
}

/// Disks, asked in a thread. Never a second thread while one hangs.
pub(super) struct DiskWatch {
    pub(super) probe: DiskProbe,
    pub(super) pools: Pools,
    pub(super) disks: Disks,
    pub(super) asked: Option<(JoinHandle<Disks>, Instant)>,
}

impl DiskWatch {
    /// Takes an answer that has come, counts one that is overdue as a failure, and asks anew where it is time.
    pub(super) async fn turn(&mut self, ask: bool) {
        match self.asked.take() {
            Some((job, since)) if !job.is_finished() => {
                if since.elapsed() >= DISKS_WITHIN {
                    self.disks.fail();
                }
                self.asked = Some((job, since));
            }
            Some((job, _)) => match job.await {
                Ok(disks) => self.disks = disks,
                Err(_) => self.disks.fail(),
            },
            None => {}
        }
        if ask && self.asked.is_none() {
            let (probe, pools) = (self.probe.clone(), self.pools.clone());
            let job = tokio::task::spawn_blocking(move || probe.measure(&pools));
            self.asked = Some((job, Instant::now()));
        }
    }

    pub(super) async fn end(self) {
        if let Some((job, _)) = self.asked {
            // A filesystem that hangs does not keep the agent from ending.
            drop(tokio::time::timeout(DISKS_WITHIN, job).await);
        }
    }
}
