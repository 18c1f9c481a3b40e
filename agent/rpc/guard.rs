//! Before every call: who asks, how often, and whether the method is for that one. After every change: a line of the
//! audit log, when the whole answer is there.

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tonic::{Code, Status};

use super::asker::{Asker, Subject};
use super::lasting::{Revoked, lasting};
use crate::access::methods::{self, Method};
use crate::access::{Access, Caller, Denied, Peer};
use crate::metrics::{Face, Metrics};

/// By which a caller finds its change in the audit log, and which comes back to it.
const REQUEST_ID: &str = "x-request-id";
/// The most characters of one; others are named by the agent.
const REQUEST_ID_MAX: usize = 128;

/// Lets a call through to its service, or refuses it.
pub(super) async fn guard(
    State((access, metrics)): State<(Access, Metrics)>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(method) = methods::of(request.uri().path()) else {
        return refused(Status::unimplemented("no such method: another version of the agent may have it"));
    };
    let Some(role) = method.role else { return next.run(request).await };
    let Some(peer) = request.extensions().get::<Peer>().cloned() else {
        return refused(Status::internal("nobody knows where this call comes from"));
    };
    let deny = |denied: Denied| {
        metrics.refused(Face::Grpc, &denied);
        refused(denied.into())
    };
    let token = match bearer(request.headers()) {
        Some(token) => Ok(token.map(str::to_owned)),
        None => Err(access.no_bearer(&peer)),
    };
    let known = match &token {
        Ok(token) => access.caller(&peer, token.as_deref()).await,
        Err(denied) => Err(denied.clone()),
    };
    let caller = match known {
        Ok(caller) => caller,
        Err(denied) => {
            access.tell_refused(&peer, name(method), "", &denied);
            return deny(denied);
        }
    };
    let subject = Subject::default();
    let audit = method.changes.then(|| Audit {
        caller: Arc::clone(&caller),
        method,
        subject: Arc::clone(&subject),
        request_id: request_id(request.headers()),
        began: Instant::now(),
    });
    if let Err(denied) = access.count(&caller, &peer) {
        let audit = audit.filter(|_| access.tells(&denied, &caller.key(&peer)));
        return audited(audit, deny(denied));
    }
    let may = caller.at_least(role, name(method)).and_then(|()| match method.whole_node {
        true if !caller.may_for_all(role) => Err(caller.for_all_tenants(name(method))),
        _ => Ok(()),
    });
    let response = match may {
        Ok(()) => {
            let asker = Asker { caller: Arc::clone(&caller), subject, metrics: metrics.clone(), inside: false };
            request.extensions_mut().insert(asker);
            let response = next.run(request).await;
            if caller.can_be_revoked() {
                let token = token.ok().flatten();
                let look = move || -> Revoked {
                    Box::pin(async move { access.revoked(&peer, token.as_deref(), &caller).await })
                };
                lasting(response, look)
            } else {
                response
            }
        }
        Err(denied) => deny(denied),
    };
    audited(audit, response)
}

fn audited(audit: Option<Audit>, response: Response) -> Response {
    match audit {
        Some(audit) => audit.follow(response),
        None => response,
    }
}

fn refused(status: Status) -> Response {
    status.into_http()
}

/// `SetMode`.
fn name(method: Method) -> &'static str {
    method.path.rsplit('/').next().unwrap_or(method.path)
}

/// The token of a call, where it has one; nothing where its authorization is none.
fn bearer(headers: &HeaderMap) -> Option<Option<&str>> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Some(None) };
    value.to_str().ok().and_then(crate::access::bearer).map(Some)
}

fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let plain = |id: &&str| (1..=REQUEST_ID_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    given.filter(plain).map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

/// One line of the audit log, to be.
struct Audit {
    caller: Arc<Caller>,
    method: Method,
    subject: Subject,
    request_id: String,
    began: Instant,
}

impl Audit {
    /// Writes the line when the answer has ended: refusals say how in their headers, others after their last message.
    fn follow(self, mut response: Response) -> Response {
        if let Ok(id) = HeaderValue::from_str(&self.request_id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        if let Some(code) = code(response.headers()) {
            self.write(outcome(code));
            return response;
        }
        response.map(|body| Body::new(Followed { body, audit: Some(self) }))
    }

    fn write(&self, outcome: &str) {
        let identity = &self.caller.identity;
        let subject = self.subject.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (pod, pod_uid) = identity.pod.as_ref().map_or(("", ""), |(name, uid)| (name.as_str(), uid.as_str()));
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(target: "audit", who = identity.name, way = identity.way.word(), pod, pod_uid,
            method = name(self.method), on = subject, outcome, request_id = self.request_id, millis, "audit");
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

pub(super) const fn outcome(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::Unknown => "UNKNOWN",
    }
}

/// An answer whose end is told. Dropped before it, its caller has gone.
struct Followed {
    body: Body,
    audit: Option<Audit>,
}

impl hyper::body::Body for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let ended = match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                frame.trailers_ref().map(|trailers| code(trailers).unwrap_or(Code::Unknown))
            }
            Poll::Ready(None) => Some(Code::Ok),
            Poll::Ready(Some(Err(_))) => Some(Code::Unknown),
            Poll::Pending => None,
        };
        if let Some(audit) = ended.and_then(|code| Some((code, self.audit.take()?))) {
            audit.1.write(outcome(audit.0));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some(audit) = self.audit.take() {
            audit.write("CANCELLED");
        }
    }
}
