//! `RepositoryService`.

use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use stoker_core::quantity::Span;
use stoker_core::source::Origin;
use stoker_proto::v1::{self, repository_service_server::RepositoryService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::asker::Asker;
use super::convert::{duration, reason, reasons, timestamp, wire};
use super::error::{bad, refusal};
use super::request::{page, source, url};
use super::{Rooms, patience, transfer};
use crate::access::Role;
use crate::repository::{Progress, RepositoryState, View};

/// A fill of a large repository takes longer than a call whose caller names no deadline.
const REFRESH_WITHIN: Duration = Duration::from_secs(3600);

pub(super) struct Repository(pub(super) Rooms);

type Refreshing = Pin<Box<dyn Stream<Item = Result<v1::RefreshRepositoryResponse, Status>> + Send>>;

/// Whether a text is a trust class, or nothing.
pub(super) fn trust(field: &str, text: &str) -> Result<(), Status> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match text.len() <= 63 && text.chars().all(plain) {
        true => Ok(()),
        false => Err(bad(field, "is no trust class; use at most 63 of a-z 0-9 -")),
    }
}

#[tonic::async_trait]
impl RepositoryService for Repository {
    async fn resolve_source(
        &self,
        request: Request<v1::ResolveSourceRequest>,
    ) -> Result<Response<v1::ResolveSourceResponse>, Status> {
        let patience = patience(&request);
        let asker = Asker::of(&request)?;
        let wanted = source("source", request.into_inner().source)?;
        asker.resolves(&self.0, &wanted.url)?;
        let resolved = self.0.repositories.resolve_with_fork(&wanted, patience).await;
        let (resolved, fork) = resolved.map_err(|reason| asker.unresolved(&self.0, &wanted.url, &reason))?;
        let (fork_url, fork_ref) = fork.map(|fork| (fork.url, fork.reference)).unwrap_or_default();
        let age: Span = crate::admission::now().since(resolved.as_of);
        let resolved = v1::Resolved {
            commit: resolved.commit.to_string(),
            clone_url: resolved.clone_url.clone(),
            clone_ref: resolved.clone_ref.clone(),
            as_of: Some(timestamp(resolved.as_of)),
            origin: match resolved.origin {
                Origin::Upstream => v1::Origin::Upstream,
                Origin::Cache => v1::Origin::Cache,
                Origin::Stale => v1::Origin::Stale,
            }
            .into(),
            snapshot: resolved.pin.name().to_owned(),
            subject: resolved.subject.clone(),
            other_fork: resolved.other_fork,
            fork_url,
            fork_ref,
        };
        Ok(Response::new(v1::ResolveSourceResponse { resolved: Some(resolved), age: Some(duration(age)) }))
    }

    async fn list_repositories(
        &self,
        request: Request<v1::ListRepositoriesRequest>,
    ) -> Result<Response<v1::ListRepositoriesResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let mut all = self.0.repositories.list();
        all.retain(|view| asker.caller.may_read(&view.trust));
        all.sort_by(|a, b| a.url.cmp(&b.url));
        let (views, next_page_token) =
            page(all.into_iter(), |view| view.url.key().to_owned(), request.page_size, &request.page_token)?;
        let repositories = views.iter().map(repository).collect();
        Ok(Response::new(v1::ListRepositoriesResponse { repositories, next_page_token }))
    }

    async fn get_repository(
        &self,
        request: Request<v1::GetRepositoryRequest>,
    ) -> Result<Response<v1::GetRepositoryResponse>, Status> {
        let asker = Asker::of(&request)?;
        let wanted = url("url", &request.into_inner().url)?;
        let view = self.0.repositories.get(&wanted).filter(|view| asker.caller.may_read(&view.trust));
        let view = view.ok_or_else(|| unknown(wanted.key()))?;
        let held_by = if asker.sees_all() { self.0.holders(&view) } else { Vec::new() };
        let repository = v1::Repository { held_by, ..repository(&view) };
        Ok(Response::new(v1::GetRepositoryResponse { repository: Some(repository) }))
    }

    async fn add_repository(
        &self,
        request: Request<v1::AddRepositoryRequest>,
    ) -> Result<Response<v1::AddRepositoryResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let wanted = url("url", &request.url)?;
        trust("trust", &request.trust)?;
        asker.add(&self.0, &wanted, &request)?;
        let view = match self.0.repositories.add(&wanted, request.pin, &request.trust).await {
            Ok(_) if request.submodules => self.0.repositories.follow_submodules(&wanted).await,
            added => added,
        };
        let view = view.map_err(|reason| refusal(&reason))?;
        Ok(Response::new(v1::AddRepositoryResponse { repository: Some(repository(&view)) }))
    }

    async fn remove_repository(
        &self,
        request: Request<v1::RemoveRepositoryRequest>,
    ) -> Result<Response<v1::RemoveRepositoryResponse>, Status> {
        let asker = Asker::of(&request)?;
        let wanted = url("url", &request.into_inner().url)?;
        asker.repository(&self.0, Role::Operator, &wanted)?;
        self.0.repositories.remove(&wanted).await.map_err(|reason| refusal(&reason))?;
        Ok(Response::new(v1::RemoveRepositoryResponse {}))
    }

    async fn pin_repository(
        &self,
        request: Request<v1::PinRepositoryRequest>,
    ) -> Result<Response<v1::PinRepositoryResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let wanted = url("url", &request.url)?;
        asker.repository(&self.0, Role::Operator, &wanted)?;
        let view = self.0.repositories.set_pinned(&wanted, request.pinned).await;
        let view = view.map_err(|reason| refusal(&reason))?;
        Ok(Response::new(v1::PinRepositoryResponse { repository: Some(repository(&view)) }))
    }

    async fn refresh_repository(
        &self,
        request: Request<v1::RefreshRepositoryRequest>,
    ) -> Result<Response<Refreshing>, Status> {
        let patience = patience(&request).max(REFRESH_WITHIN);
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let wanted = url("url", &request.url)?;
        asker.repository(&self.0, Role::Scheduler, &wanted)?;
        let handle = self.0.repositories.refresh(&wanted, request.only_if_empty);
        let handle = handle.map_err(|reason| refusal(&reason))?;
        let (events, stream) = mpsc::channel(8);
        let cancel = self.0.cancel.clone();
        self.0.tasks.spawn(async move {
            use v1::refresh_repository_response::Event;
            let mut seen = handle.progress();
            let ended = {
                let ended = handle.wait(patience);
                tokio::pin!(ended);
                loop {
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => break Err(Status::unavailable("the agent is stopping")),
                        () = events.closed() => return, // the fetch goes on for those who come later
                        view = &mut ended => break view.map_err(|reason| refusal(&reason)),
                        changed = seen.changed() => {
                            if changed.is_err() {
                                // The fetch is over, its result comes at once: nothing more to show.
                                break (&mut ended).await.map_err(|reason| refusal(&reason));
                            }
                            let now = progress(&seen.borrow_and_update());
                            let event = v1::RefreshRepositoryResponse { event: Some(Event::Progress(now)) };
                            let _ = events.try_send(Ok(event)); // a slow reader misses steps, not the end
                        }
                    }
                }
            };
            let last =
                ended.map(|view| v1::RefreshRepositoryResponse { event: Some(Event::Repository(repository(&view))) });
            let _ = events.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn verify_repository(
        &self,
        request: Request<v1::VerifyRepositoryRequest>,
    ) -> Result<Response<transfer::Verifying>, Status> {
        transfer::verify(&self.0, request)
    }

    async fn import_repository(
        &self,
        request: Request<Streaming<v1::ImportRepositoryRequest>>,
    ) -> Result<Response<v1::ImportRepositoryResponse>, Status> {
        let asker = Asker::of(&request)?;
        transfer::import(&self.0, &asker, request.into_inner()).await
    }

    async fn export_repository(
        &self,
        request: Request<v1::ExportRepositoryRequest>,
    ) -> Result<Response<transfer::Exporting>, Status> {
        transfer::export(&self.0, request).await
    }
}

fn unknown(key: &str) -> Status {
    Status::not_found(format!("repository {key} is not known here; add it, or declare it as a mirror"))
}

pub(super) fn progress(progress: &Progress) -> v1::Progress {
    v1::Progress {
        phase: progress.phase.to_owned(),
        done: wire(progress.done),
        total: wire(progress.total),
        bytes: wire(progress.bytes),
        subject: progress.subject.clone(),
    }
}

fn count(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

pub(super) fn repository(view: &View) -> v1::Repository {
    v1::Repository {
        url: view.url.fetch_url().to_owned(),
        state: match view.state {
            RepositoryState::Empty => v1::RepositoryState::Empty,
            RepositoryState::Filling => v1::RepositoryState::Filling,
            RepositoryState::Ready => v1::RepositoryState::Ready,
            RepositoryState::Fetching => v1::RepositoryState::Fetching,
            RepositoryState::Stale => v1::RepositoryState::Stale,
            RepositoryState::Quarantined => v1::RepositoryState::Quarantined,
        }
        .into(),
        declared: view.declared,
        pinned: view.pinned,
        trust: view.trust.clone(),
        disk_bytes: wire(view.disk_bytes),
        objects: wire(view.objects),
        refs: wire(view.refs),
        head: view.head.clone(),
        last_fetch_at: view.last_fetch_at.map(timestamp),
        next_refresh_at: view.next_refresh_at.map(timestamp),
        confirmed_at: view.confirmed_at.map(timestamp),
        snapshot: view.snapshot.clone(),
        snapshots: i32::try_from(view.snapshots).unwrap_or(i32::MAX),
        reasons: reasons(&view.reasons),
        progress: view.progress.as_ref().map(progress),
        hits: wire(view.hits),
        misses: wire(view.misses),
        folder: view.folder.clone(),
        failures: i32::try_from(view.failures).unwrap_or(i32::MAX),
        declared_by: view.declared_by.clone(),
        submodules: view.submodules,
        heals: view
            .heals
            .iter()
            .map(|(step, count)| v1::Heal { step: (*step).to_owned(), count: wire(*count) })
            .collect(),
        store: view.store.clone(),
        shares_store_with: count(view.shares_store_with),
        packs: count(view.packs),
        stale: wire(view.stale),
        last_used_at: view.last_used_at.map(timestamp),
        last_upkeep: view.last_upkeep.as_ref().map(|last| v1::Upkeep {
            at: Some(timestamp(last.at)),
            what: last.what.clone(),
            took: Some(duration(last.took)),
            packs_before: count(last.packs.0),
            packs_after: count(last.packs.1),
        }),
        upkeep_skipped: view.upkeep_skipped.as_ref().map(reason),
        evicted_at: view.evicted.map(|evicted| timestamp(evicted.at)),
        snapshots_in_use: count(view.snapshots_in_use),
        holders: count(view.holders),
        held_by: Vec::new(),
    }
}
