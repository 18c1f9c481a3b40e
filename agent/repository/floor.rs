//! A fetch beside builds that write to the same pool: it may not keep that below its floor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stoker_core::quantity::Resource;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::fetch::blocking;

/// How often it is looked whether what comes leaves the pool its floor.
pub(crate) const FLOOR_LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many looks in a row below it end the work: eviction looks every two seconds.
const FLOOR_LOOKS: u32 = 6;

/// Looks at a pool while something fills it.
#[derive(Debug, Default)]
pub(crate) struct FloorLooks {
    was_above: bool,
    below: u32,
}

impl FloorLooks {
    /// Of a pool that was above its floor when the work began.
    pub(crate) const fn from_above() -> Self {
        Self { was_above: true, below: 0 }
    }

    /// Whether the pool has been below its floor for longer than it takes to make room by eviction, and was above before.
    pub(crate) const fn stays_below(&mut self, is_above: bool) -> bool {
        self.was_above |= is_above;
        self.below = if is_above { 0 } else { self.below.saturating_add(1) };
        self.was_above && self.below >= FLOOR_LOOKS
    }
}

/// What ends a visit, and whether it brings objects now.
pub(super) struct Watched {
    pub(super) cancel: CancellationToken,
    pub(super) brings: AtomicBool,
}

/// Ends when what comes has kept the pool below its floor for longer than it takes to make room by eviction: then it takes
/// the room that builds write to.
pub(super) async fn stays_below_floor(shared: &Shared, url: &RepositoryUrl, brings: &AtomicBool) -> Reason {
    let mut looks = FloorLooks::default();
    loop {
        tokio::time::sleep(FLOOR_LOOK_EVERY).await;
        if !brings.load(Ordering::SeqCst) {
            looks = FloorLooks::default();
            continue;
        }
        let measure = Arc::clone(&shared.pool.measure);
        let Ok(Ok(space)) = blocking(url.key(), move || measure()).await else { continue };
        if looks.stays_below(space.free_bytes >= space.floor_bytes) {
            let message = format!(
                "fetching {url} was ended: the pool has {} bytes free, its floor is {}, and nothing that may be evicted \
                 made room; free some",
                space.free_bytes, space.floor_bytes
            );
            let reason = Reason::new(Code::DiskFloor, url.key(), message);
            return reason.about(Resource::DiskBytes, space.floor_bytes, space.free_bytes);
        }
    }
}
