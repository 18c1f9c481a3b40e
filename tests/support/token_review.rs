//! What an API server says of tokens: its keys, and reviews of what it signed; with faults that can be switched on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde_json::{Value, json};

/// What agents take tokens for.
pub(crate) const AUDIENCE: &str = "stoker.build";
const KEY: &str = "key-1";

/// How the API server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// As it should.
    Well,
    /// Not at all: 503, also for its keys.
    Away,
    /// After longer than anybody waits.
    Slow,
    /// 429.
    Throttling,
    /// Something that is no review.
    Nonsense,
    /// A yes for another audience, as of one that does not know audiences.
    Deaf,
    /// A yes that names somebody else.
    Confused,
    /// Nothing but this status.
    Says(u16),
}

struct Shared {
    mood: Mood,
    ended_pods: BTreeSet<String>,
    reviews: usize,
}

/// An API server that knows the tokens that it signed.
pub(crate) struct Cluster {
    address: SocketAddr,
    keys: Arc<EcdsaKeyPair>,
    shared: Arc<Mutex<Shared>>,
    /// Dropped, it ends.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// What a token says.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    pub(crate) namespace: &'static str,
    pub(crate) account: &'static str,
    pub(crate) audience: &'static str,
    /// From now; negative where it is over.
    pub(crate) ends_in_seconds: i64,
    pub(crate) pod_uid: Option<&'static str>,
}

/// A good token of an account.
pub(crate) fn of(namespace: &'static str, account: &'static str) -> Claims {
    Claims { namespace, account, audience: AUDIENCE, ends_in_seconds: 3600, pod_uid: None }
}

fn key_pair() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap()
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let keys = Arc::new(key_pair());
        let shared = Arc::new(Mutex::new(Shared { mood: Mood::Well, ended_pods: BTreeSet::new(), reviews: 0 }));
        let state = (Arc::clone(&shared), Arc::clone(&keys));
        let routes = axum::Router::new()
            .route("/openid/v1/jwks", get(jwks))
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
            .with_state(state);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        // On a thread of its own: tests with a runtime and tests without one use it.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    _ = axum::serve(listener, routes) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, keys, shared, _stop: stop }
    }

    /// A kubeconfig that leads here.
    pub(crate) fn kubeconfig(&self) -> String {
        super::api_server::kubeconfig(self.address)
    }

    pub(crate) fn is(&self, mood: Mood) {
        self.shared.lock().unwrap().mood = mood;
    }

    /// Its tokens are good no more.
    pub(crate) fn end_pod(&self, uid: &str) {
        self.shared.lock().unwrap().ended_pods.insert(uid.to_owned());
    }

    /// How many tokens it was asked for.
    pub(crate) fn reviews(&self) -> usize {
        self.shared.lock().unwrap().reviews
    }

    /// A token that it signed.
    pub(crate) fn token(&self, claims: &Claims) -> String {
        signed(&self.keys, claims)
    }

    /// One that says the same, signed by somebody else under the same name.
    pub(crate) fn forged(&self, claims: &Claims) -> String {
        signed(&key_pair(), claims)
    }
}

fn signed(keys: &EcdsaKeyPair, claims: &Claims) -> String {
    let Claims { namespace, account, audience, ends_in_seconds, pod_uid } = claims;
    let now = i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let mut bound = json!({"namespace": namespace, "serviceaccount": {"name": account, "uid": "1"}});
    if let Some(uid) = pod_uid {
        bound["pod"] = json!({"name": format!("pod-{uid}"), "uid": uid});
    }
    let claims = json!({
        "iss": "https://kubernetes.default.svc", "aud": [audience], "iat": now - 10, "nbf": now - 10,
        "sub": format!("system:serviceaccount:{namespace}:{account}"), "exp": now + ends_in_seconds,
        "jti": format!("{namespace}/{account}/{ends_in_seconds}"), "kubernetes.io": bound,
    });
    let header = json!({"alg": "ES256", "kid": KEY});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&header), part(&claims));
    let signature = keys.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

type Shares = State<(Arc<Mutex<Shared>>, Arc<EcdsaKeyPair>)>;

async fn jwks(State((shared, keys)): Shares) -> Response {
    if shared.lock().unwrap().mood == Mood::Away {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let point = keys.public_key().as_ref();
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
    let keys =
        json!({"keys": [{"kty": "EC", "use": "sig", "alg": "ES256", "crv": "P-256", "kid": KEY, "x": x, "y": y}]});
    ([(header::CONTENT_TYPE, "application/jwk-set+json")], keys.to_string()).into_response()
}

async fn review(State((shared, keys)): Shares, body: String) -> Response {
    let mood = {
        let mut shared = shared.lock().unwrap();
        shared.reviews += 1;
        shared.mood
    };
    match mood {
        Mood::Away => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Mood::Throttling => return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "60")]).into_response(),
        Mood::Slow => tokio::time::sleep(Duration::from_secs(30)).await,
        Mood::Nonsense => return "<html>a proxy says hello</html>".into_response(),
        Mood::Says(code) => return StatusCode::from_u16(code).unwrap().into_response(),
        Mood::Well | Mood::Deaf | Mood::Confused => {}
    }
    let asked: Value = serde_json::from_str(&body).unwrap();
    let token = asked["spec"]["token"].as_str().unwrap();
    let (message, signature) = token.rsplit_once('.').unwrap();
    let claims = message.split_once('.').unwrap().1;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, keys.public_key().as_ref());
    let pod = claims["kubernetes.io"]["pod"]["uid"].as_str().unwrap_or_default();
    let ended = shared.lock().unwrap().ended_pods.contains(pod);
    let good = public.verify(message.as_bytes(), &signature).is_ok() && !ended;
    let status = match good {
        false => json!({"authenticated": false, "error": "[invalid bearer token]"}),
        true => {
            let name = if mood == Mood::Confused { json!("system:admin") } else { claims["sub"].clone() };
            let audiences = if mood == Mood::Deaf { json!(["https://other"]) } else { claims["aud"].clone() };
            let user = json!({"username": name, "uid": "1", "groups": ["system:serviceaccounts", "builders"]});
            json!({"authenticated": true, "user": user, "audiences": audiences})
        }
    };
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {},
                        "status": status});
    (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], review.to_string()).into_response()
}
