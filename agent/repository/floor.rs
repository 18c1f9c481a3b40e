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
const FLOOR_LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many looks in a row below it end a visit: eviction looks every two seconds.
const FLOOR_LOOKS: u32 = 6;

/// What ends a visit, and whether it brings objects now.
pub(super) struct Watched {
    pub(super) cancel: CancellationToken,
    pub(super) brings: AtomicBool,
}

/// Ends when what comes has kept the pool below its floor for longer than it takes to make room by eviction: then it takes
/// the room that builds write to.
pub(super) async fn stays_below_floor(shared: &Shared, url: &RepositoryUrl, brings: &AtomicBool) -> Reason {
    let (mut was_above, mut below) = (false, 0_u32);
    loop {
        tokio::time::sleep(FLOOR_LOOK_EVERY).await;
        if !brings.load(Ordering::SeqCst) {
            (was_above, below) = (false, 0);
            continue;
        }
        let measure = Arc::clone(&shared.pool.measure);
        let Ok(Ok(space)) = blocking(url.key(), move || measure()).await else { continue };
        let is_above = space.free_bytes >= space.floor_bytes;
        was_above |= is_above;
        below = if is_above { 0 } else { below.saturating_add(1) };
        if was_above && below >= FLOOR_LOOKS {
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
