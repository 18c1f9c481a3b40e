//! Of `RepositoryService` what moves or reads a whole repository: verify, import, export.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use stoker_proto::v1::{self, import_repository_request::Part, verify_repository_response::Event};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Rooms;
use super::asker::Asker;
use super::convert::wire;
use super::error::{bad, refusal};
use super::repository::{progress, repository, trust};
use super::request::url;
use crate::access::Role;
use crate::repository::{Finding, ImportTarget, VerifyHandle};

/// How long an import waits for the next message: longer than a reader of a slow disk or link pauses.
const NEXT_CHUNK_WITHIN: Duration = Duration::from_secs(120);
/// How many chunks wait for the disk.
const CHUNKS_WAITING: usize = 4;

pub(super) type Verifying = Pin<Box<dyn Stream<Item = Result<v1::VerifyRepositoryResponse, Status>> + Send>>;
pub(super) type Exporting = Pin<Box<dyn Stream<Item = Result<v1::ExportRepositoryResponse, Status>> + Send>>;

/// Begins a thorough check, and shows it.
pub(super) fn verify(
    rooms: &Rooms,
    request: Request<v1::VerifyRepositoryRequest>,
) -> Result<Response<Verifying>, Status> {
    let asker = Asker::of(&request)?;
    let request = request.into_inner();
    let wanted = url("url", &request.url)?;
    asker.repository(rooms, Role::Operator, &wanted)?;
    let handle = rooms.repositories.verify(&wanted, request.full).map_err(|reason| refusal(&reason))?;
    let (events, stream) = mpsc::channel(8);
    let cancel = rooms.cancel.clone();
    rooms.tasks.spawn(async move {
        let VerifyHandle { progress: mut seen, mut done } = handle;
        let mut shows = true;
        let ended = loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break Err(Status::unavailable("the agent is stopping")),
                () = events.closed() => return, // the check goes on
                verified = &mut done => break match verified {
                    Ok(verified) => verified.map_err(|reason| refusal(&reason)),
                    Err(_) => Err(Status::unavailable("the agent is stopping")),
                },
                changed = seen.changed(), if shows => {
                    shows = changed.is_ok();
                    let now = progress(&seen.borrow_and_update());
                    let event = v1::VerifyRepositoryResponse { event: Some(Event::Progress(now)), findings: Vec::new() };
                    let _ = events.try_send(Ok(event)); // a slow reader misses steps, not the end
                }
            }
        };
        let last = ended.map(|(view, findings)| v1::VerifyRepositoryResponse {
            event: Some(Event::Repository(repository(&view))),
            findings: findings.into_iter().map(finding).collect(),
        });
        let _ = events.send(last).await;
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
}

fn finding(finding: Finding) -> v1::Finding {
    v1::Finding { subject: finding.subject, problem: finding.problem, action: finding.action }
}

/// Takes the stream into the cache.
pub(super) async fn import(
    rooms: &Rooms,
    asker: &Asker,
    mut stream: Streaming<v1::ImportRepositoryRequest>,
) -> Result<Response<v1::ImportRepositoryResponse>, Status> {
    let first = stream.message().await?.and_then(|message| message.part);
    let target = match first {
        Some(Part::Url(text)) => ImportTarget { url: Some(url("url", &text)?), pin: false, trust: String::new() },
        Some(Part::Target(target)) => {
            trust("target.trust", &target.trust)?;
            let named = (!target.url.is_empty()).then(|| url("target.url", &target.url)).transpose()?;
            ImportTarget { url: named, pin: target.pin, trust: target.trust }
        }
        Some(Part::Chunk(_)) | None => {
            return Err(bad("target", "is missing; the first message says where the import goes"));
        }
    };
    asker.import(rooms, target.url.as_ref(), &target.trust)?;
    let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
    let cancel = rooms.cancel.clone();
    // Beside the import, which reads as fast as its disk takes: it ends with the stream, or with its reader.
    let pump = async move {
        let (mut bytes, mut failed) = (0_u64, None);
        loop {
            let next = tokio::select! {
                () = cancel.cancelled() => Err(Status::unavailable("the agent is stopping")),
                // Who read it says why it reads no more.
                () = sender.closed() => break,
                next = tokio::time::timeout(NEXT_CHUNK_WITHIN, stream.message()) => {
                    next.unwrap_or_else(|_| Err(Status::deadline_exceeded("nothing came for two minutes")))
                }
            };
            let chunk = match next.map(|message| message.map(|message| message.part)) {
                Ok(None) => break,
                Ok(Some(Some(Part::Chunk(chunk)))) => Ok(chunk),
                Ok(Some(_)) => Err(bad("chunk", "is missing; only the first message says where the import goes")),
                Err(status) => Err(status),
            };
            let end = chunk.is_err();
            let passed = match chunk {
                Ok(chunk) => {
                    bytes = bytes.saturating_add(u64::try_from(chunk.len()).unwrap_or(0));
                    Ok(chunk)
                }
                Err(status) => {
                    let error = io::Error::other(format!("the stream broke: {}", status.message()));
                    failed = Some(status);
                    Err(error)
                }
            };
            if sender.send(passed).await.is_err() || end {
                break;
            }
        }
        (bytes, failed)
    };
    let (imported, (bytes, failed)) = tokio::join!(rooms.repositories.import(target, chunks), pump);
    match (imported, failed) {
        (Ok(view), _) => {
            Ok(Response::new(v1::ImportRepositoryResponse { repository: Some(repository(&view)), bytes: wire(bytes) }))
        }
        (Err(_), Some(status)) => Err(status),
        (Err(reason), None) => Err(refusal(&reason)),
    }
}

/// Gives the newest snapshot.
pub(super) async fn export(
    rooms: &Rooms,
    request: Request<v1::ExportRepositoryRequest>,
) -> Result<Response<Exporting>, Status> {
    let asker = Asker::of(&request)?;
    let wanted = url("url", &request.into_inner().url)?;
    asker.repository(rooms, Role::Operator, &wanted)?;
    let mut export = rooms.repositories.export(&wanted).await.map_err(|reason| refusal(&reason))?;
    let (events, stream) = mpsc::channel(1);
    let cancel = rooms.cancel.clone();
    rooms.tasks.spawn(async move {
        let mut total_bytes = wire(export.total_bytes);
        loop {
            let next = tokio::select! {
                () = cancel.cancelled() => Some(Err(Status::unavailable("the agent is stopping"))),
                next = export.chunks.recv() => {
                    next.map(|chunk| chunk.map_err(|error| Status::data_loss(format!("reading the snapshot: {error}"))))
                }
            };
            let Some(next) = next else { return };
            let end = next.is_err();
            let message = next.map(|chunk| v1::ExportRepositoryResponse { chunk, total_bytes });
            total_bytes = 0;
            if events.send(message).await.is_err() || end {
                return;
            }
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
}
