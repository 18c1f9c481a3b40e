//! The HTTP face: health, metrics, and the status page for people.
//!
//! Everything here reads what the rooms publish; nothing changes anything, and nothing waits for a pool or an upstream.
//! `/livez` answers for as long as the process does. `/readyz` says that the rooms are built; what is wrong with pools
//! or mirrors stands in its body, and does not make it fail: the Service through which builds reach their own node's
//! cache would drop their packets. Answers are made in full before they are sent, at most 32 at a time; those of [`git`]
//! and `outputs` are streams, with bounds of their own.

mod asker;
pub mod git;
mod html;
mod outputs;
mod page;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderName, StatusCode, Uri, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{BoxError, Router};
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;

use crate::metrics::{self, Metrics, Own, Seen};
use crate::rpc::Rooms;

/// The most calls that are answered at a time; more are told to come again.
const CALLS_MAX: usize = 32;
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The most bytes of a body. No path reads one.
const BODY_BYTES_MAX: usize = 4096;

/// What the handlers share.
#[derive(Clone)]
struct Face {
    rooms: Rooms,
    metrics: Metrics,
}

/// All paths, for one listener.
pub fn routes(rooms: Rooms) -> Router {
    let git = git::routes(rooms.serve.clone());
    let outputs = outputs::routes(rooms.clone());
    let asked = (rooms.access.clone(), rooms.metrics.clone());
    let face = Face { metrics: rooms.metrics.clone(), rooms };
    let guard = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(overloaded))
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::new(CALLS_MAX))
        .timeout(ANSWER_WITHIN);
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(scrape))
        .route("/readyz", get(readyz))
        .layer(guard)
        .route("/livez", get(async || "ok\n"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(face)
        .merge(git)
        .merge(outputs)
        .layer(from_fn_with_state(asked, asker::identify))
        .layer(map_response(guarded))
}

/// The headers of every answer: nothing is cached, guessed, framed or loaded from elsewhere.
async fn guarded(mut response: Response) -> Response {
    let fixed: [(HeaderName, &'static str); 5] = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CONTENT_SECURITY_POLICY, page::POLICY_ELSEWHERE),
    ];
    for (name, value) in fixed {
        response.headers_mut().entry(name).or_insert(axum::http::HeaderValue::from_static(value));
    }
    response
}

async fn overloaded(error: BoxError) -> Response {
    match error.is::<tower::timeout::error::Elapsed>() {
        true => (StatusCode::GATEWAY_TIMEOUT, "this took too long; try again\n").into_response(),
        false => {
            let again = [(header::RETRY_AFTER, "1")];
            (StatusCode::SERVICE_UNAVAILABLE, again, "too many calls at once; try again\n").into_response()
        }
    }
}

async fn readyz(State(face): State<Face>, asker: asker::Asker) -> Response {
    if face.rooms.cancel.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    let mut status = face.rooms.status();
    if asker.refusal().is_some() {
        let repositories = face.rooms.repositories.list();
        let served = repositories.iter().filter(|one| face.rooms.serve.may_read(&one.trust)).map(|one| one.url.key());
        let shown = status.pools.iter().map(|pool| pool.name.clone()).chain(served.map(str::to_owned)).collect();
        without_words(&mut status, &shown);
    }
    ready_text(&status).into_response()
}

/// For whoever may not see the status: what is wrong, and with which pool or public mirror. Words name tenants, paths and
/// private mirrors, and so do other subjects.
fn without_words(status: &mut stoker_proto::v1::Status, shown: &BTreeSet<String>) {
    let mut told = BTreeSet::new();
    status.alarms.retain_mut(|alarm| {
        alarm.message = if shown.contains(&alarm.subject) { alarm.subject.clone() } else { String::new() };
        told.insert((alarm.code, alarm.message.clone())) // how many there are tells something, too
    });
}

/// `ready`, then what should be known, one a line.
fn ready_text(status: &stoker_proto::v1::Status) -> String {
    let mut text = String::from("ready\n");
    let one_line = |text: &str| text.replace(char::is_control, " ");
    for pool in &status.pools {
        let _ = writeln!(text, "pool {} {}", one_line(&pool.name), one_line(&pool.state));
    }
    for alarm in &status.alarms {
        let line = format!("{} {}", alarm.code().as_str_name(), one_line(&alarm.message));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

async fn scrape(State(face): State<Face>) -> Response {
    let (status, repositories) = (face.rooms.status(), face.rooms.repositories.list());
    // Everybody reads this: what is not for everybody is counted, and has no name here.
    let served = repositories.iter().filter(|one| face.rooms.serve.may_read(&one.trust));
    let labelled = served.map(|one| one.url.key().to_owned()).collect();
    let now = crate::admission::now();
    let (fetches, heals) = (face.rooms.repositories.fetches(), face.rooms.repositories.heals());
    let (forges, answers) = (face.rooms.repositories.forge_answers(), face.rooms.repositories.answers());
    let (evictions, used) = (face.rooms.repositories.evictions(), face.rooms.repositories.used_bytes());
    let seen = Seen {
        status: &status,
        repositories: &repositories,
        labelled: &labelled,
        repositories_bytes: (used > 0).then_some(used),
        evictions: &evictions,
        upkeep_gave_way: face.rooms.repositories.upkeep_gave_way(),
        over_limit: face.rooms.repositories.over_limit().is_some(),
        fetches: &fetches,
        answers: &answers,
        heals: &heals,
        forges: &forges,
        lfs: face.rooms.repositories.lfs_counts(),
        journal_failures: face.rooms.admission.journal_failures(),
        serve: face.rooms.serve.counts(),
        own: Own::read(),
        now,
    };
    match face.metrics.scrape(&seen) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// `/`, or `/?still` for one that does not load itself again.
async fn page(State(face): State<Face>, asker: asker::Asker, uri: Uri) -> Response {
    if let Some(denied) = asker.refusal() {
        return asker::refused(&face.metrics, &denied);
    }
    let (status, repositories) = (face.rooms.status(), face.rooms.repositories.list());
    let (leases, tickets) = face
        .rooms
        .admission
        .look(|view, ledger| (ledger.live().cloned().collect::<Vec<_>>(), view.queue().cloned().collect::<Vec<_>>()));
    let now = crate::admission::now();
    let still = uri.query() == Some("still");
    let evictions = face.rooms.repositories.last_evictions();
    let sight = page::Sight {
        status: &status,
        repositories: &repositories,
        evictions: &evictions,
        leases: &leases,
        tickets: &tickets,
        now,
        still,
    };
    ([(header::CONTENT_SECURITY_POLICY, page::policy())], Html(page::page(&sight))).into_response()
}

#[cfg(test)]
pub(crate) mod tests;
