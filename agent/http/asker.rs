//! Who asks over HTTP: by a token (`Authorization: Bearer`, or the password of `Basic`, which is what git has), or by a
//! client's certificate. Whoever shows neither is a client without an identity: on this machine it sees what is public.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::access::{Access, Caller, Denied, Peer, Role};

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    /// Where it is known, and has a role.
    pub(super) caller: Option<Arc<Caller>>,
    is_local: bool,
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
    pub(super) fn refusal(&self) -> Option<Response> {
        match &self.caller {
            Some(caller) if caller.may_for_all(Role::Viewer) => None,
            None if self.is_local => None,
            Some(caller) => Some(refused(&caller.for_all_tenants("this page"))),
            None => {
                let why =
                    "this page is for clients of this machine, and for viewers who send a token: see access.rules\n";
                Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, CHALLENGE)], why).into_response())
            }
        }
    }
}

/// What a browser or a git asks its user for.
const CHALLENGE: &str = "Basic realm=\"stoker, with a token as password\"";

/// Says who asks, for the handlers; refuses credentials that are wrong.
pub(super) async fn identify(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let extensions = request.extensions_mut();
    let peer = match (extensions.get::<ConnectInfo<Peer>>(), extensions.get::<ConnectInfo<SocketAddr>>()) {
        (Some(ConnectInfo(peer)), _) => peer.clone(),
        (None, Some(ConnectInfo(address))) => Peer::Plain(*address),
        (None, None) => return next.run(request).await, // somebody of whom nothing is known
    };
    if let Peer::Tls(address, ..) = &peer {
        extensions.insert(ConnectInfo(*address));
    }
    let token = match token(request.headers()) {
        Ok(token) => token,
        Err(denied) => return refused(&denied),
    };
    // Plain TCP proves nothing here: unlike gRPC's it is open to all.
    let proves = token.is_some() || matches!(&peer, Peer::Tls(_, shown, _) if !shown.is_empty());
    if proves {
        let known = access.caller(&peer, token.as_deref()).await;
        match known.and_then(|caller| access.count(&caller).map(|()| caller)) {
            Ok(caller) => drop(request.extensions_mut().insert(caller)),
            Err(denied) => return refused(&denied),
        }
    }
    next.run(request).await
}

fn token(headers: &HeaderMap) -> Result<Option<String>, Denied> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let basic = || {
        let (word, pair) = text.split_once(' ')?;
        let pair = word.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(pair.trim()).ok())??;
        let (_, password) =
            String::from_utf8(pair).ok()?.split_once(':').map(|(user, rest)| (user.to_owned(), rest.to_owned()))?;
        Some(password)
    };
    let token = crate::access::bearer(text).map(str::to_owned).or_else(basic);
    token.map(Some).ok_or_else(Denied::no_bearer)
}

fn refused(denied: &Denied) -> Response {
    let reason = denied.reason();
    let text = format!("{} [{}]\n", reason.message, reason.code.word());
    match denied {
        Denied::Unknown(_) => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, CHALLENGE)], text).into_response(),
        Denied::Forbidden(_) => (StatusCode::FORBIDDEN, text).into_response(),
        Denied::TooOften(_, after) => {
            let seconds = after.as_secs().saturating_add(1).to_string();
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds)], text).into_response()
        }
        Denied::Unchecked(_) => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], text).into_response(),
    }
}
