//! Who asks, and what that one may.
//!
//! In come connections ([`Peer`]: a process on the socket, a TCP peer, a client's certificate) and credentials (a bearer
//! token); out go a [`Caller`] with its grants, or a [`Denied`]. What rules say is configuration, and holds from the next
//! call on. [`methods`] is the table of what each gRPC method needs; [`crate::rpc`] holds each call against it, and
//! [`Caller`] is the one place that says whose things somebody may see and change. Everything that is remembered has a
//! bound, and what cannot be checked is refused.
//!
//! [`tls`] makes listeners of certificates that change under way, `token` and `keys` check service account tokens,
//! [`limit`] counts calls.

mod audit;
mod caller;
mod certificate;
mod connection;
mod judged;
mod keys;
pub mod limit;
mod local;
pub mod methods;
pub mod tls;
mod token;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use stoker_core::reason::{Code, Reason};
use tokio::sync::watch;

pub use audit::cut;
pub use caller::{Caller, Identity, ServiceAccount, Way};
pub use connection::Connection;
use judged::Judged;
use limit::Limits;
pub use local::is_of_the_host;
use tls::Tls;
use token::Tokens;

use crate::config::Config;
use crate::config::access::{RoleWord, TokenRules};

/// An API server that did not answer is not asked for so long: callers do not wait for it one by one, and are told when it
/// is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// While an answer lasts its caller is looked at as often as tokens are, within these.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What somebody may do; each may what those before it may.
pub type Role = RoleWord;

/// Who is at the other end of a connection, as far as the connection tells.
#[derive(Debug, Clone)]
pub enum Peer {
    /// A process on the unix socket; none where it may be one of a pod. And what it is counted under.
    Local(Option<Arc<Identity>>, String),
    /// Plain TCP. gRPC is served so on loopback only, where the configuration says so.
    Plain(SocketAddr),
    /// TLS, with the client's certificates where it showed any, and what its listener holds them against.
    Tls(SocketAddr, Arc<Vec<CertificateDer<'static>>>, Arc<Tls>),
}

impl Peer {
    /// What it is counted under as long as nobody knows who it is.
    fn key(&self) -> String {
        match self {
            Self::Local(_, from) => from.clone(),
            Self::Plain(address) | Self::Tls(address, ..) => limit::key_of(address.ip().to_canonical()),
        }
    }

    /// For people.
    fn name(&self) -> String {
        match self {
            Self::Local(Some(process), _) => process.name.clone(),
            Self::Local(None, from) => from.clone(),
            Self::Plain(address) | Self::Tls(address, ..) => address.ip().to_canonical().to_string(),
        }
    }
}

/// Why a call is refused.
#[derive(Debug, Clone)]
pub enum Denied {
    /// Nobody knows who asks.
    Unknown(Reason),
    /// It is known, and may not.
    Forbidden(Reason),
    /// It asks too often, or too much is asked; again after this time.
    TooOften(Reason, Duration),
    /// Who asks cannot be checked now.
    Unchecked(Reason),
}

impl Denied {
    /// The reason.
    #[must_use]
    pub const fn reason(&self) -> &Reason {
        let (Self::Unknown(reason) | Self::Forbidden(reason) | Self::TooOften(reason, _) | Self::Unchecked(reason)) =
            self;
        reason
    }

    /// After how long it may be better.
    #[must_use]
    pub const fn again(&self) -> Option<Duration> {
        match self {
            Self::TooOften(_, after) => Some(*after),
            Self::Unchecked(_) => Some(ASK_AGAIN_AFTER),
            Self::Unknown(_) | Self::Forbidden(_) => None,
        }
    }

    pub(crate) fn unknown(message: impl Into<String>) -> Self {
        Self::Unknown(Reason::new(Code::CredentialInvalid, "", message))
    }

    pub(crate) fn forbidden(subject: &str, message: impl Into<String>) -> Self {
        Self::Forbidden(Reason::new(Code::AccessDenied, subject, message))
    }
}

/// Knows callers. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    configured: watch::Receiver<Arc<Config>>,
    tokens: Tokens,
    limits: Mutex<Limits>,
    judged: Mutex<Judged>,
    /// TLS of each listener that has it, by the field of its section.
    listeners: Mutex<Vec<Arc<Tls>>>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

impl Access {
    /// By what the configuration says, also later.
    #[must_use]
    pub fn new(configured: watch::Receiver<Arc<Config>>) -> Self {
        let inner = Inner {
            configured,
            tokens: Tokens::default(),
            limits: Mutex::new(Limits::default()),
            judged: Mutex::default(),
            listeners: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The caller behind a connection and what it sent. A token counts before the connection does.
    ///
    /// # Errors
    /// When what proves it is wrong, or cannot be checked now. A connection that proves nothing is a caller without a
    /// name, and without rights.
    pub async fn caller(&self, peer: &Peer, token: Option<&str>) -> Result<Arc<Caller>, Denied> {
        let identity = match (token, peer) {
            (Some(token), _) => {
                let rules = self.inner.configured.borrow().access.tokens.clone();
                match self.inner.tokens.known(token, &rules) {
                    Some(Ok(known)) => known,
                    _ => self.look_at(token, &rules, peer).await?,
                }
            }
            (None, Peer::Local(None, _)) => Arc::new(Identity::nobody("a process that may be in a pod")),
            (None, Peer::Local(Some(process), _)) => Arc::clone(process),
            (None, Peer::Plain(_)) => Arc::new(Identity::loopback()),
            (None, Peer::Tls(address, certificates, _)) if certificates.is_empty() => {
                Arc::new(Identity::nobody(address.ip().to_canonical().to_string()))
            }
            // Held against the authorities of now, not of when the connection began; never against another listener's.
            (None, Peer::Tls(_, certificates, tls)) => tls.identity(certificates).map_err(Denied::unknown)?,
        };
        let rules = Arc::clone(&self.inner.configured.borrow().access.rules);
        Ok(match identity.way {
            // Nothing is to be judged, and nothing keeps these.
            Way::None | Way::Loopback => Arc::new(Caller::new(identity, &rules)),
            Way::Process | Way::Certificate | Way::Token => lock(&self.inner.judged).caller(identity, &rules),
        })
    }

    /// Waits until a caller is no longer who it was, or may no longer what it could. One that cannot be checked now keeps
    /// what it has: what runs goes on.
    pub async fn revoked(&self, peer: &Peer, token: Option<&str>, before: &Caller) -> Denied {
        let mut configured = self.inner.configured.clone();
        loop {
            let every = configured.borrow_and_update().access.tokens.cache.clamp(LOOK_AGAIN.0, LOOK_AGAIN.1);
            tokio::select! {
                changed = configured.changed() => if changed.is_err() { return std::future::pending().await },
                () = tokio::time::sleep(every) => {}
            }
            match self.caller(peer, token).await {
                Ok(now) if now.may_as(before) => {}
                Ok(_) => return Denied::forbidden("", "what you may has changed meanwhile: ask again"),
                Err(denied @ (Denied::Unknown(_) | Denied::Forbidden(_))) => return denied,
                Err(Denied::TooOften(..) | Denied::Unchecked(_)) => {}
            }
        }
    }

    /// One call of a caller; refuses it where it asks too often. Processes of this machine that may do everything are
    /// not counted.
    ///
    /// # Errors
    /// When it asks too often.
    pub fn count(&self, caller: &Caller, peer: &Peer) -> Result<(), Denied> {
        match caller.identity.way {
            Way::Process | Way::Loopback => Ok(()),
            Way::Certificate | Way::Token | Way::None => self.take(caller.key(peer)),
        }
    }

    /// One call of somebody who shows nothing; refuses it where too many come from there.
    ///
    /// # Errors
    /// When too many do.
    pub fn count_unknown(&self, peer: &Peer) -> Result<(), Denied> {
        self.take(peer.key())
    }

    /// Why credentials that are no token are refused; they are counted as tokens that fail.
    #[must_use]
    pub fn no_bearer(&self, peer: &Peer) -> Denied {
        let (rate, from, now) = (self.inner.configured.borrow().access.rate, peer.key(), Instant::now());
        let mut limits = lock(&self.inner.limits);
        if let Err(after) = limits.may_try(&from, rate, now) {
            return too_often(after);
        }
        limits.failed(from, rate, now);
        Denied::unknown("the authorization is no token: send `authorization: Bearer TOKEN`")
    }

    fn take(&self, key: String) -> Result<(), Denied> {
        let rate = self.inner.configured.borrow().access.rate;
        lock(&self.inner.limits).take(key, rate, Instant::now()).map_err(too_often)
    }

    /// Checks a token that is not known as a good one. Those that somebody made up are counted by where they come from;
    /// those that the cluster signed, and those that cannot be checked now, are no failure of who shows them.
    async fn look_at(&self, token: &str, rules: &TokenRules, peer: &Peer) -> Result<Arc<Identity>, Denied> {
        let rate = self.inner.configured.borrow().access.rate;
        let from = peer.key();
        lock(&self.inner.limits).may_try(&from, rate, Instant::now()).map_err(too_often)?;
        self.inner.tokens.identity(token, rules).await.map_err(|failed| {
            if failed.made_up {
                lock(&self.inner.limits).failed(from, rate, Instant::now());
            }
            failed.denied
        })
    }

    /// The audience that tokens must be for.
    #[must_use]
    pub fn audience(&self) -> String {
        self.inner.configured.borrow().access.tokens.audience.clone()
    }

    /// Remembers the TLS of a listener: what is wrong with its files is told.
    pub fn listens(&self, tls: Arc<Tls>) {
        lock(&self.inner.listeners).push(tls);
    }

    /// What operators should mend: files of certificates that cannot be taken over.
    #[must_use]
    pub fn alarms(&self) -> Vec<Reason> {
        lock(&self.inner.listeners).iter().filter_map(|tls| tls.fault()).collect()
    }
}

/// The token of an `authorization`: RFC 6750, whose word is written in any case.
#[must_use]
pub fn bearer(authorization: &str) -> Option<&str> {
    let (word, token) = authorization.split_once(' ')?;
    word.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
}

fn too_often(after: Duration) -> Denied {
    let message = format!("too many calls: ask again in {} ms, or have access.rate raised", after.as_millis());
    Denied::TooOften(Reason::new(Code::RateLimited, "", message), after)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
