//! Streams of admission: who waits for a lease, and who watches all of them.

use std::time::Duration;

use stoker_core::admission::Answer;
use stoker_core::identity::RequestId;
use stoker_core::reason::{Code, Reason};
use stoker_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Rooms;
use super::asker::Asker;
use super::convert::awaited;
use super::error::bad;
use crate::admission::{Order, TokenError};

/// Messages of a watch that wait for a slow client; beyond it the watch waits, and may fall too far behind.
const UNSENT_MAX: usize = 64;

/// Takes a place, then tells each change until it is granted or rejected. While it runs, the ticket lives.
pub(super) async fn wait_for(
    rooms: &Rooms,
    asker: &Asker,
    order: Order,
    patience: Duration,
    answers: &mpsc::Sender<Result<v1::AwaitAdmissionResponse, Status>>,
) -> Result<(), Status> {
    let mut waiter = rooms.admission.wait_for(order.request_id.clone());
    let request_id = order.request_id.clone();
    let mut answer = asker.admit(rooms, order.clone(), patience).await?;
    let mut told: Option<v1::await_admission_response::Decision> = None;
    loop {
        if told.is_none() || !matches!(answer, Answer::Waiting(_)) {
            rooms.metrics.answered(&answer); // the first answer and the last, not every change of a hint
        }
        let decision = awaited(&answer, rooms.name());
        if told.as_ref() != Some(&decision) {
            let message = v1::AwaitAdmissionResponse { node: Some(rooms.node()), decision: Some(decision.clone()) };
            if answers.send(Ok(message)).await.is_err() {
                return Ok(()); // the caller went; the ticket runs out by itself
            }
            told = Some(decision);
        }
        let Answer::Waiting(waiting) = answer else { return Ok(()) };
        let hint = Duration::from_millis(u64::try_from(waiting.retry_after.0).unwrap_or(30_000));
        // Woken when this very request is granted or loses its place; otherwise it says in time that it still waits.
        tokio::select! {
            () = tokio::time::sleep(hint) => {}
            () = waiter.woken() => {}
        }
        answer = match rooms.admission.still_waiting(request_id.clone()).await? {
            Some(answer) => answer,
            None if waiter.is_cancelled() => {
                Answer::Rejected(vec![cancelled(&request_id)], Some(waiting.sizing.into()))
            }
            // It ran out, as where the clock was set: take a place anew.
            None => asker.admit(rooms, order.clone(), patience).await?,
        };
    }
}

fn cancelled(request: &RequestId) -> Reason {
    let message = "somebody gave its place in the queue up: ask again to take a new one";
    Reason::new(Code::TicketCancelled, request.as_str(), message)
}

/// The live leases where there is no token, then changes, until the client goes or falls behind what is kept.
pub(super) fn watch(
    rooms: &Rooms,
    asker: Asker,
    token: String,
) -> Result<ReceiverStream<Result<v1::WatchLeasesResponse, Status>>, Status> {
    // Before anything is looked at, so that no change falls between.
    let mut ticks = rooms.admission.watch();
    let (state, mut token) = match token.is_empty() {
        true => {
            let (live, token) = rooms.admission.leases();
            (Some(live), token)
        }
        false => {
            rooms.admission.changes(&token).map_err(refused)?;
            (None, token)
        }
    };
    let (messages, stream) = mpsc::channel(UNSENT_MAX);
    let rooms = rooms.clone();
    rooms.tasks.clone().spawn(async move {
        let tell = |held: Option<&stoker_core::admission::Lease>, token: &str| v1::WatchLeasesResponse {
            lease: held.map(|held| asker.shown(&rooms, held)),
            watch_token: token.to_owned(),
        };
        if let Some(live) = state {
            for held in live.iter().filter(|held| asker.sees(&held.scope.tenant)) {
                if messages.send(Ok(tell(Some(held), ""))).await.is_err() {
                    return;
                }
            }
            if messages.send(Ok(tell(None, &token))).await.is_err() {
                return;
            }
        }
        loop {
            let changes = match rooms.admission.changes(&token) {
                Ok(changes) => changes,
                Err(error) => return drop(messages.send(Err(refused(error))).await),
            };
            for (held, at) in changes {
                let sees = asker.sees(&held.scope.tenant);
                if sees && messages.send(Ok(tell(Some(&held), &at))).await.is_err() {
                    return;
                }
                token = at;
            }
            let ended = tokio::select! {
                () = rooms.cancel.cancelled() => true,
                () = messages.closed() => return,
                changed = ticks.changed() => changed.is_err(),
            };
            if ended {
                return drop(messages.send(Err(Status::unavailable("the agent is stopping"))).await);
            }
        }
    });
    Ok(ReceiverStream::new(stream))
}

fn refused(error: TokenError) -> Status {
    match error {
        TokenError::Foreign => bad("watch_token", error.to_string()),
        TokenError::TooOld => Status::out_of_range(format!("watch_token: {error}")),
    }
}
