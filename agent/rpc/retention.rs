//! Retention in messages.

use stoker_core::quantity::Timestamp;
use stoker_core::reason::{Code, Reason};
use stoker_proto::v1;
use tonic::Status;

use super::Rooms;
use super::convert::{reason, reasons, timestamp, wire};
use super::error::{bad, refusal};
use crate::workspace::retention::{Going, View};

/// The most removals of one list.
const REMOVALS_MAX: i32 = 1000;

pub(super) async fn plan(rooms: &Rooms, request: v1::GetPlanRequest) -> Result<v1::GetPlanResponse, Status> {
    let max = match request.removals_max {
        0 => REMOVALS_MAX,
        max @ 1..=REMOVALS_MAX => max,
        other => return Err(bad("removals_max", format!("is {other}; give 1 to {REMOVALS_MAX}, or leave it out"))),
    };
    let max = usize::try_from(max).unwrap_or_default();
    let (room, now) = (rooms.retention.clone(), crate::admission::now());
    let planned = tokio::task::spawn_blocking(move || room.plan(now)).await;
    let planned = planned
        .unwrap_or_else(|error| {
            Err(Reason::new(Code::PoolNotReady, rooms.home(), format!("the look ended early: {error}")))
        })
        .map_err(|reason| refusal(&reason))?;
    let count = |going: &[Going]| wire(u64::try_from(going.len()).unwrap_or(u64::MAX));
    Ok(v1::GetPlanResponse {
        now_count: count(&planned.now),
        next_count: count(&planned.next),
        now: planned.now.iter().take(max).map(removal).collect(),
        next: planned.next.iter().take(max).map(removal).collect(),
        over: reasons(&planned.over),
        as_of: Some(timestamp(now)),
    })
}

fn removal(going: &Going) -> v1::Removal {
    v1::Removal {
        kind: going.kind.word().to_owned(),
        pool: going.pool.clone(),
        path: going.path.to_string_lossy().into_owned(),
        id: going.id.clone(),
        bytes: wire(going.bytes),
        at: Some(timestamp(going.at)),
        reason: Some(reason(&going.reason)),
    }
}

/// What it did, and what it keeps.
pub(super) fn view(seen: &View) -> v1::Retention {
    let at = |at: Option<Timestamp>| at.map(timestamp);
    v1::Retention {
        looked_at: at(seen.looked_at),
        last_removed_at: at(seen.last.as_ref().map(|last| last.at)),
        last_removed: seen.last.as_ref().map_or(0, |last| wire(last.count)),
        last_removed_bytes: seen.last.as_ref().map_or(0, |last| wire(last.bytes)),
        removed: wire(seen.removed),
        removed_bytes: wire(seen.removed_bytes),
        next_at: at(seen.next_at),
        outputs: wire(seen.outputs.0),
        outputs_bytes: wire(seen.outputs.1),
        outputs_released: wire(seen.released),
        caches: wire(seen.caches.0),
        caches_bytes: wire(seen.caches.1),
        orphans: wire(seen.orphans.0),
        orphans_bytes: wire(seen.orphans.1),
    }
}

/// Adds what declared directories take.
pub(super) fn used(mut pools: Vec<v1::Pool>, seen: &View) -> Vec<v1::Pool> {
    for used in &seen.directories {
        let pool = pools.iter_mut().find(|pool| pool.name == used.pool);
        let path = used.path.to_string_lossy();
        let directory = pool.and_then(|pool| pool.directories.iter_mut().find(|directory| directory.path == path));
        if let Some(directory) = directory {
            let counted = used.retention != crate::config::Retention::Mirror;
            directory.used_bytes = counted.then(|| wire(used.bytes));
            directory.limit_bytes = used.limit.map(wire);
        }
    }
    pools
}
