//! What this node has room for, told to those who choose between nodes: whole, at most once a second, from what is
//! published. Nothing is looked up for it that is not at hand.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use stoker_core::admission::{LeaseState, View};
use stoker_core::cluster::NodeState;
use stoker_core::placement::GATED;
use stoker_core::pressure::GateState;
use stoker_core::reason::{Code, Reason};
use stoker_proto::v1;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Rooms;
use super::asker::Asker;
use super::convert::{amounts, mode, reasons, state, timestamp};

/// Changes are told at most so often.
const EVERY: Duration = Duration::from_secs(1);
/// Who hears nothing for much longer knows nothing.
const AT_LEAST_EVERY: Duration = Duration::from_secs(15);
/// A change of what is free of less than such a part of the budget waits for the next message.
const SMALL_PART: u64 = 64;
const MIRRORS_MAX: usize = 1000;
const GRANTS_MAX: usize = 4096;
const LABELS_MAX: usize = 512;
const TAINTS_MAX: usize = 64;
const REASONS_MAX: usize = 16;

pub(super) type Rooming = Pin<Box<dyn Stream<Item = Result<v1::WatchRoomResponse, Status>> + Send>>;

/// The room, then its changes, until the caller goes. `mirrors_on_change`: without mirrors where they are as told before.
pub(super) fn watch(rooms: &Rooms, asker: Asker, mirrors_on_change: bool) -> Rooming {
    let (messages, stream) = mpsc::channel(1);
    let rooms = rooms.clone();
    rooms.tasks.clone().spawn(async move {
        let mut ledger = rooms.admission.watch();
        let mut pressure = rooms.pressure.subscribe();
        let mut repositories = rooms.repositories.watch();
        let mut cluster = rooms.kubernetes.subscribe();
        let mut told: Option<v1::Room> = None;
        let mut due = Instant::now();
        loop {
            ledger.mark_unchanged();
            pressure.mark_unchanged();
            repositories.mark_unchanged();
            cluster.mark_unchanged();
            let room = room_of(&rooms, &asker);
            if Instant::now() >= due || told.as_ref().is_none_or(|told| differs(told, &room)) {
                due = Instant::now() + AT_LEAST_EVERY;
                let same = |told: &v1::Room| mirrors_on_change && told.mirrors == room.mirrors;
                let mut message = room.clone();
                if told.as_ref().is_some_and(same) {
                    (message.mirrors, message.mirrors_unchanged) = (Vec::new(), true);
                }
                told = Some(room);
                let message = v1::WatchRoomResponse { node: Some(rooms.node()), room: Some(message) };
                if messages.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            let stopping = tokio::select! {
                () = rooms.cancel.cancelled() => true,
                () = messages.closed() => return,
                () = tokio::time::sleep(EVERY) => false,
            };
            let ended = stopping
                || tokio::select! {
                    () = rooms.cancel.cancelled() => true,
                    () = messages.closed() => return,
                    () = tokio::time::sleep_until(due) => false,
                    changed = ledger.changed() => changed.is_err(),
                    changed = pressure.changed() => changed.is_err(),
                    changed = repositories.changed() => changed.is_err(),
                    Ok(()) = cluster.changed() => false,
                };
            if ended {
                return drop(messages.send(Err(Status::unavailable("the agent is stopping"))).await);
            }
        }
    });
    Box::pin(ReceiverStream::new(stream))
}

fn room_of(rooms: &Rooms, asker: &Asker) -> v1::Room {
    let now = crate::admission::now();
    let mut room = rooms.admission.look(|view, ledger| {
        let gated = ledger.live().filter(|lease| lease.request_id.as_str().starts_with(GATED));
        let seen = gated.filter(|lease| asker.sees(&lease.scope.tenant));
        let grants = seen.take(GRANTS_MAX).map(|lease| v1::Grant {
            request_id: lease.request_id.to_string(),
            lease_id: lease.id.to_string(),
            state: state(lease.state).into(),
            size: Some(super::convert::size(&lease.sizing.size)),
            bind_by: (lease.state == LeaseState::Reserved).then(|| timestamp(lease.bind_by)),
        });
        v1::Room {
            mode: mode(ledger.mode_at(now).mode).into(),
            idle: ledger.live_count() == 0,
            tickets: i32::try_from(ledger.queued()).unwrap_or(i32::MAX),
            grants: grants.collect(),
            ..open(view)
        }
    });
    if let Some(error) = rooms.admission.journal_error() {
        let why = Reason::new(Code::JournalUnavailable, "journal", format!("new builds wait: {error}"));
        room.reasons.insert(0, super::convert::reason(&why));
        room.accepts = false;
    }
    room.mirrors = mirrors(rooms, asker);
    room.facts = facts(rooms);
    room
}

fn open(view: &View<'_>) -> v1::Room {
    let (totals, gate) = (view.totals(), &view.facts().gate);
    let closed = view.closed();
    let accepts = closed.is_empty();
    let why = if accepts { gate.reasons.iter() } else { closed.iter() };
    let why: Vec<Reason> = why.take(REASONS_MAX).cloned().collect();
    v1::Room {
        gate: match gate.state {
            GateState::Open => v1::GateState::Open,
            GateState::Narrow => v1::GateState::Narrow,
            GateState::Shut => v1::GateState::Shut,
        }
        .into(),
        accepts,
        free: Some(amounts(&totals.free)),
        budget: Some(amounts(&totals.budget)),
        narrow_max: view.small_only().map(|small| v1::Size { disk_bytes: None, disk_inodes: None, ..amounts(&small) }),
        pods_free: totals.scheduler.map(|room| i32::try_from(room.pods).unwrap_or(i32::MAX)),
        reasons: reasons(&why),
        ..v1::Room::default()
    }
}

fn mirrors(rooms: &Rooms, asker: &Asker) -> Vec<String> {
    let here = rooms.repositories.list().into_iter().filter(|view| !view.snapshot.is_empty());
    let mut keys: Vec<String> =
        here.filter(|view| asker.caller.may_read(&view.trust)).map(|view| view.url.key().to_owned()).collect();
    keys.sort_unstable();
    keys.truncate(MIRRORS_MAX);
    keys
}

fn facts(rooms: &Rooms) -> Option<v1::NodeFacts> {
    let cluster = rooms.kubernetes.view();
    let NodeState::Here(node) = &cluster.node else { return None };
    let labels = node.labels.iter().take(LABELS_MAX).map(|(key, value)| (key.clone(), value.clone()));
    let taints = node.taints.iter().take(TAINTS_MAX).map(|taint| v1::NodeTaint {
        key: taint.key.clone(),
        value: taint.value.clone(),
        effect: taint.effect.clone(),
    });
    Some(v1::NodeFacts { labels: labels.collect::<HashMap<_, _>>(), taints: taints.collect() })
}

/// Whether a room is another than was told: figures that moved a little, and the words of reasons, make no other one.
fn differs(told: &v1::Room, room: &v1::Room) -> bool {
    let moved = |told: Option<i64>, is: Option<i64>, budget: Option<i64>| {
        let (told, is) = (told.unwrap_or_default(), is.unwrap_or_default());
        let part = budget.unwrap_or_default().unsigned_abs() / SMALL_PART;
        told.abs_diff(is) > part || (is == 0) != (told == 0)
    };
    let (was, free, budget) =
        (told.free.unwrap_or_default(), room.free.unwrap_or_default(), room.budget.unwrap_or_default());
    let codes = |room: &v1::Room| room.reasons.iter().map(|reason| reason.code).collect::<Vec<_>>();
    let rest = |room: &v1::Room| v1::Room { free: None, reasons: Vec::new(), ..room.clone() };
    moved(was.cpu_millis, free.cpu_millis, budget.cpu_millis)
        || moved(was.memory_bytes, free.memory_bytes, budget.memory_bytes)
        || moved(was.disk_bytes, free.disk_bytes, budget.disk_bytes)
        || moved(was.disk_inodes, free.disk_inodes, budget.disk_inodes)
        || codes(told) != codes(room)
        || rest(told) != rest(room)
}

#[cfg(test)]
mod tests {
    use stoker_core::quantity::Amounts;

    use super::*;

    fn room(free_millis: u64) -> v1::Room {
        let of = |cpu_millis| Some(amounts(&Amounts { cpu_millis, ..Amounts::default() }));
        v1::Room { free: of(free_millis), budget: of(6400), accepts: true, ..v1::Room::default() }
    }

    #[test]
    fn a_small_change_of_what_is_free_is_no_other_room() {
        assert!(!differs(&room(1000), &room(1100)));
        assert!(differs(&room(1000), &room(1101)));
        assert!(differs(&room(50), &room(0)), "nothing is not little");
        assert!(differs(&room(1000), &v1::Room { accepts: false, ..room(1000) }));
        let said = |message: &str| v1::Room {
            reasons: vec![v1::Reason { code: 1, message: message.to_owned(), ..v1::Reason::default() }],
            ..room(1000)
        };
        assert!(!differs(&said("3 GiB are free"), &said("2.9 GiB are free")));
        assert!(differs(&room(1000), &said("3 GiB are free")));
    }
}
