//! Who asks over HTTP: by a token (`Authorization: Bearer`, or the password of `Basic`, which is what git has), or by a
//! client's certificate. Whoever shows neither is a client without an identity: on this machine it sees what is public.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::access::{Access, Caller, Denied, Peer, Role};
use crate::metrics::{Face, Metrics};

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    /// Where it is known, and has a role.
    pub(super) caller: Option<Arc<Caller>>,
    /// Whether it is on this machine, as far as its address tells.
    pub(super) is_local: bool,
}

impl<S: Sync> FromRequestParts<S> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let caller = parts.extensions.get::<Arc<Caller>>().filter(|caller| caller.role().is_some()).cloned();
        let address = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip());
        Ok(Self { caller, is_local: address.is_some_and(|address| address.to_canonical().is_loopback()) })
    }
}

impl Asker {
    /// Why the status page, which shows the builds of all tenants, is not for this client, where it is not.
    pub(super) fn refusal(&self) -> Option<Denied> {
        match &self.caller {
            Some(caller) if caller.may_for_all(Role::Viewer) => None,
            None if self.is_local => None,
            Some(caller) => Some(caller.for_all_tenants("this page")),
            None => {
                let why =
                    "this page is for clients of this machine, and for viewers who send a token: see access.rules";
                Some(Denied::unknown(why))
            }
        }
    }
}

/// What a browser or a git asks its user for.
const CHALLENGE: &str = "Basic realm=\"stoker, with a token as password\"";

/// Says who asks, for the handlers; refuses credentials that are wrong.
pub(super) async fn identify(
    State((access, metrics)): State<(Access, Metrics)>,
    mut request: Request,
    next: Next,
) -> Response {
    let deny = |denied: &Denied| refused(&metrics, denied);
    let extensions = request.extensions_mut();
    let peer = match (extensions.get::<ConnectInfo<Peer>>(), extensions.get::<ConnectInfo<SocketAddr>>()) {
        (Some(ConnectInfo(peer)), _) => peer.clone(),
        (None, Some(ConnectInfo(address))) => Peer::Plain(*address),
        (None, None) => return next.run(request).await, // somebody of whom nothing is known
    };
    if let Peer::Tls(address, ..) = &peer {
        extensions.insert(ConnectInfo(*address));
    }
    let token = token(request.headers());
    // Plain TCP proves nothing here: unlike gRPC's it is open to all.
    let proves = token != Some(None) || matches!(&peer, Peer::Tls(_, shown, _) if !shown.is_empty());
    if !proves {
        let counted = if is_counted(&request) { access.count_unknown(&peer) } else { Ok(()) };
        return match counted {
            Ok(()) => next.run(request).await,
            Err(denied) => super::git::elsewhere(&request).unwrap_or_else(|| deny(&denied)),
        };
    }
    let known = match token {
        Some(token) => access.caller(&peer, token.as_deref()).await,
        None => Err(access.no_bearer(&peer)),
    };
    let caller = match known {
        Ok(caller) => caller,
        Err(denied) => {
            access.tell_refused(&peer, request.method().as_str(), request.uri().path(), &denied);
            return deny(&denied);
        }
    };
    if let Err(denied) = access.count(&caller, &peer) {
        return deny(&denied);
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Whether calls of somebody who shows nothing are counted: not the probes of a kubelet, and not the second half of a
/// clone, whose first was let through, and which needs a place of its own.
fn is_counted(request: &Request) -> bool {
    let path = request.uri().path();
    let is_probe = matches!(path, "/livez" | "/readyz");
    let is_second = path.starts_with("/git/") && request.method() == Method::POST;
    !(is_probe || is_second)
}

/// The token of a call, where it has one; nothing where its authorization is none.
fn token(headers: &HeaderMap) -> Option<Option<String>> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Some(None) };
    let text = value.to_str().unwrap_or_default();
    let basic = || {
        let (word, pair) = text.split_once(' ')?;
        let pair = word.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(pair.trim()).ok())??;
        let (_, password) =
            String::from_utf8(pair).ok()?.split_once(':').map(|(user, rest)| (user.to_owned(), rest.to_owned()))?;
        Some(password)
    };
    crate::access::bearer(text).map(str::to_owned).or_else(basic).map(Some)
}

/// The answer to whoever is refused.
pub(super) fn refused(metrics: &Metrics, denied: &Denied) -> Response {
    metrics.refused(Face::Http, denied);
    let reason = denied.reason();
    let text = format!("{} [{}]\n", reason.message, reason.code.word());
    let again = denied.again().unwrap_or_default().as_millis().div_ceil(1000).max(1).to_string();
    let again = [(header::RETRY_AFTER, again)];
    match denied {
        Denied::Unknown(_) => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, CHALLENGE)], text).into_response(),
        Denied::Forbidden(_) => (StatusCode::FORBIDDEN, text).into_response(),
        Denied::TooOften(..) => (StatusCode::TOO_MANY_REQUESTS, again, text).into_response(),
        Denied::Unchecked(_) => (StatusCode::SERVICE_UNAVAILABLE, again, text).into_response(),
    }
}
