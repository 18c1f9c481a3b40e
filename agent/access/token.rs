//! Service account tokens: who they name, and whether that is so.
//!
//! A token is held against its claims (time, audience, issuer), then against the cluster's keys, then the cluster is
//! asked: a `TokenReview` also knows of pods and accounts that are gone. What the cluster said holds for the configured
//! time. Where the API server does not answer, the keys that are here decide alone; without keys, and where it answers
//! nonsense, nobody is let in. What the cluster refused once stays refused there until its time is over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::UserInfo;
use kube::Client;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use stoker_core::reason::{Code, Reason};
use tokio::sync::{OnceCell, Semaphore};

use super::caller::{Identity, ServiceAccount, Way};
use super::keys::Keys;
use super::{ASK_AGAIN_AFTER, Denied, lock};
use crate::config::access::TokenRules;
use crate::kubernetes::{self, token_review};

/// The most bytes of a token: one of a service account has about a thousand.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// The most tokens that are remembered. Beyond it the one goes that would be forgotten first.
pub(super) const TOKENS_MAX: usize = 4096;
/// How long the API server may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The most reviews at a time.
const REVIEWS_MAX: usize = 8;
/// Keys are asked for again when they are so old, and no longer count when they are as old as that.
const KEYS_AGE: Duration = Duration::from_secs(3600);
const KEYS_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest time that the API server makes tokens for.
const LIFETIME_SECONDS_MAX: u64 = 1 << 32;
/// How far clocks may be apart.
const LEEWAY_SECONDS: i64 = 30;
/// The most groups of a user that are remembered.
const GROUPS_MAX: usize = 64;

/// Knows tokens.
pub(super) struct Tokens {
    cluster: OnceCell<Client>,
    known: Mutex<HashMap<[u8; 32], Known>>,
    /// What the cluster signed and then refused, until that would be over anyway.
    refused: Mutex<HashMap<[u8; 32], Known>>,
    keys: tokio::sync::Mutex<KeysSeen>,
    reviews: Semaphore,
    /// Until when the API server is not asked, and whether that was told.
    away: Mutex<Option<Instant>>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            cluster: OnceCell::new(),
            known: Mutex::default(),
            refused: Mutex::default(),
            keys: tokio::sync::Mutex::default(),
            reviews: Semaphore::new(REVIEWS_MAX),
            away: Mutex::default(),
        }
    }
}

/// Why a token does not count.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) denied: Denied,
    /// By what it says, or by its signature.
    pub(super) made_up: bool,
}

impl Failed {
    fn made_up(message: impl Into<String>) -> Self {
        Self { denied: Denied::unknown(message), made_up: true }
    }
}

impl From<Denied> for Failed {
    fn from(denied: Denied) -> Self {
        Self { denied, made_up: false }
    }
}

/// What is remembered of a token: its name is its digest.
struct Known {
    found: Remembered,
    until: Instant,
}

type Remembered = Result<Arc<Identity>, Denied>;

#[derive(Default)]
struct KeysSeen {
    keys: Option<(Arc<Keys>, Instant)>,
    tried: Option<Instant>,
}

impl Tokens {
    /// What is remembered of it.
    pub(super) fn known(&self, token: &str, rules: &TokenRules) -> Option<Result<Arc<Identity>, Denied>> {
        recall(&self.known, &digest(token, rules))
    }

    /// Whose it is.
    pub(super) async fn identity(&self, token: &str, rules: &TokenRules) -> Result<Arc<Identity>, Failed> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Failed::made_up(format!("the token has more than {TOKEN_BYTES_MAX} bytes")));
        }
        let digest = digest(token, rules);
        if let Some(found) = recall(&self.known, &digest) {
            return found.map_err(Failed::from);
        }
        let read = Read::of(token).map_err(|why| Failed::made_up(format!("the token {why}")))?;
        let now = crate::node::now().0 / 1000;
        read.claims.check(rules, now).map_err(|why| Failed::made_up(format!("the token {why}")))?;
        let client = self.cluster.get_or_try_init(kubernetes::client).await;
        let client = client.map_err(|error| unchecked(format!("tokens cannot be checked here: {error}")))?;
        let signed = self.signed(client, &read).await?;
        let unavailable = |_| unchecked("the agent is stopping");
        let _place = self.reviews.acquire().await.map_err(unavailable)?;
        // Others who showed the same one may have waited for the same answer.
        if let Some(found) = recall(&self.known, &digest) {
            return found.map_err(Failed::from);
        }
        let left = u64::try_from(read.claims.exp.saturating_sub(now)).unwrap_or_default();
        let left = Duration::from_secs(left.min(LIFETIME_SECONDS_MAX));
        let before = recall(&self.refused, &digest);
        let (found, holds) = self.decide(client, token, &read, signed.map(|()| before), rules).await?;
        match &found {
            Ok(_) => drop(lock(&self.refused).remove(&digest)),
            // Whoever cannot sign cannot fill the memory either.
            Err(_) if signed.is_none() => {}
            Err(_) => remember(&self.refused, digest, Known { found: found.clone(), until: Instant::now() + left }),
        }
        remember(&self.known, digest, Known { found: found.clone(), until: Instant::now() + holds.min(left) });
        found.map_err(|denied| Failed { denied, made_up: signed.is_none() })
    }

    /// Whether one of the cluster's keys made the token; `None` where there are no keys.
    async fn signed(&self, client: &Client, read: &Read<'_>) -> Result<Option<()>, Failed> {
        let mut seen = self.keys.lock().await;
        let now = Instant::now();
        let age = seen.keys.as_ref().map(|(_, at)| now.duration_since(*at));
        let knows = seen.keys.as_ref().is_some_and(|(keys, _)| keys.knows(&read.header.kid));
        let wanted = !knows || age.is_none_or(|age| age > KEYS_AGE);
        if wanted && seen.tried.is_none_or(|at| now.duration_since(at) > ASK_AGAIN_AFTER) {
            seen.tried = Some(now);
            let answer = token_review::keys(client, ANSWER_WITHIN).await;
            match answer.and_then(|text| Keys::read(&text)) {
                Ok(keys) => seen.keys = Some((Arc::new(keys), Instant::now())),
                Err(error) => tracing::warn!(%error, "the cluster's keys for tokens are not to be had"),
            }
        }
        let usable = seen.keys.as_ref().filter(|(_, at)| at.elapsed() < KEYS_AGE_MAX).map(|(keys, _)| Arc::clone(keys));
        drop(seen);
        let Some(keys) = usable else { return Ok(None) };
        let Header { alg, kid } = &read.header;
        match keys.verify(kid, alg, read.message.as_bytes(), &read.signature) {
            true => Ok(Some(())),
            false => Err(Failed::made_up("the token is not signed by a key of this cluster")),
        }
    }

    /// What becomes of a token, and for how long that holds. `signed`: by one of the cluster's keys; with what the cluster
    /// said of it before, where it refused it.
    async fn decide(
        &self,
        client: &Client,
        token: &str,
        read: &Read<'_>,
        signed: Option<Option<Remembered>>,
        rules: &TokenRules,
    ) -> Result<(Result<Arc<Identity>, Denied>, Duration), Denied> {
        let away = lock(&self.away).is_some_and(|until| until > Instant::now());
        let reviewed = match away {
            true => token_review::Reviewed::Away("it did not answer just now".to_owned()),
            false => token_review::review(client, token, &rules.audience, ANSWER_WITHIN).await,
        };
        match reviewed {
            token_review::Reviewed::Yes(status) => {
                *lock(&self.away) = None;
                let identity = of_user(status.user.unwrap_or_default(), &read.claims);
                let identity = identity.map_err(|why| unchecked(format!("the cluster's review of the token {why}")))?;
                Ok((Ok(Arc::new(identity)), rules.cache))
            }
            token_review::Reviewed::No(why) => {
                *lock(&self.away) = None;
                let found = Err(Denied::unknown(format!("the cluster refuses the token: {why}")));
                Ok((found, if signed.is_some() { rules.cache } else { Duration::ZERO }))
            }
            token_review::Reviewed::Away(why) => {
                if !away {
                    tracing::warn!(%why, "the API server reviews no tokens: the cluster's keys decide alone");
                    *lock(&self.away) = Some(Instant::now() + ASK_AGAIN_AFTER);
                }
                let Some(refused) = signed else {
                    let why = format!("the API server reviews no tokens ({why}), and its keys are not known here");
                    return Err(unchecked(why));
                };
                if let Some(refused) = refused {
                    return Ok((refused, rules.cache.min(ASK_AGAIN_AFTER)));
                }
                let identity = read.claims.identity().map_err(|why| Denied::unknown(format!("the token {why}")))?;
                Ok((Ok(Arc::new(identity)), rules.cache.min(ASK_AGAIN_AFTER)))
            }
            token_review::Reviewed::Nonsense(why) => {
                tracing::warn!(%why, "the API server's review of a token makes no sense");
                Err(unchecked(format!("the API server's review of the token makes no sense: {why}")))
            }
        }
    }
}

fn recall(known: &Mutex<HashMap<[u8; 32], Known>>, digest: &[u8; 32]) -> Option<Remembered> {
    let mut known = lock(known);
    let now = Instant::now();
    if known.get(digest).is_some_and(|known| known.until <= now) {
        known.remove(digest);
    }
    known.get(digest).map(|known| known.found.clone())
}

fn remember(known: &Mutex<HashMap<[u8; 32], Known>>, digest: [u8; 32], one: Known) {
    let mut known = lock(known);
    if known.len() >= TOKENS_MAX {
        let now = Instant::now();
        known.retain(|_, one| one.until > now);
    }
    if known.len() >= TOKENS_MAX {
        let first = known.iter().min_by_key(|(_, one)| one.until).map(|(digest, _)| *digest);
        first.and_then(|digest| known.remove(&digest));
    }
    known.insert(digest, one);
}

/// What the cluster said of a token holds for what was asked only.
fn digest(token: &str, rules: &TokenRules) -> [u8; 32] {
    let mut all = Sha256::new();
    for part in [rules.audience.as_str(), rules.issuer.as_deref().unwrap_or_default(), token] {
        all.update(part.as_bytes());
        all.update([0]);
    }
    all.finalize().into()
}

fn unchecked(message: impl Into<String>) -> Denied {
    Denied::Unchecked(Reason::new(Code::CredentialUnchecked, "", message))
}

/// A token as RFC 7515 writes it.
struct Read<'a> {
    header: Header,
    claims: Claims,
    message: &'a str,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// What a service account token says: RFC 7519, and `kubernetes.io`.
#[derive(Deserialize)]
struct Claims {
    exp: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(default)]
    iss: String,
    sub: String,
    aud: Audience,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: Option<Bound>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Bound {
    #[serde(default)]
    pod: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    uid: String,
}

impl<'a> Read<'a> {
    fn of(token: &'a str) -> Result<Self, String> {
        let (message, signature) = token.rsplit_once('.').ok_or("is no service account token")?;
        let (header, claims) = message.split_once('.').ok_or("is no service account token")?;
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| "is no service account token".to_owned());
        let wrong = |error: serde_json::Error| format!("does not say what a service account token says: {error}");
        Ok(Self {
            header: serde_json::from_slice(&bytes(header)?).map_err(wrong)?,
            claims: serde_json::from_slice(&bytes(claims)?).map_err(wrong)?,
            message,
            signature: bytes(signature)?,
        })
    }
}

impl Claims {
    fn check(&self, rules: &TokenRules, now: i64) -> Result<(), String> {
        if self.exp <= now {
            return Err(format!("expired {} s ago", now.saturating_sub(self.exp)));
        }
        if self.nbf.is_some_and(|from| from > now.saturating_add(LEEWAY_SECONDS)) {
            return Err("is not valid yet".to_owned());
        }
        let meant = match &self.aud {
            Audience::One(one) => *one == rules.audience,
            Audience::Many(all) => all.contains(&rules.audience),
        };
        if !meant {
            return Err(format!("is not for the audience {:?}: ask for one that is", rules.audience));
        }
        match &rules.issuer {
            Some(issuer) if *issuer != self.iss => Err(format!("is not issued by {issuer:?}")),
            _ => Ok(()),
        }
    }

    /// Who it is by the claims alone.
    fn identity(&self) -> Result<Identity, String> {
        let account = account(&self.sub).ok_or("is of no service account")?;
        let groups = vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{}", account.namespace),
            "system:authenticated".to_owned(),
        ];
        let service_account = Some(account);
        let pod = self.pod();
        Ok(Identity { way: Way::Token, groups, service_account, pod, ..Identity::nobody(self.sub.clone()) })
    }

    fn pod(&self) -> Option<(String, String)> {
        let pod = self.kubernetes.as_ref()?.pod.as_ref()?;
        Some((pod.name.clone(), pod.uid.clone()))
    }
}

/// `system:serviceaccount:NAMESPACE:NAME`.
fn account(user: &str) -> Option<ServiceAccount> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let plain = |text: &str| !text.is_empty() && !text.contains([':', '/']);
    (plain(namespace) && plain(name)).then(|| ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Who it is by the cluster's words, which must not be another than the token says.
fn of_user(user: UserInfo, claims: &Claims) -> Result<Identity, String> {
    let name = user.username.unwrap_or_default();
    if name.is_empty() || name != claims.sub {
        return Err(format!("names {name:?}, and the token {:?}", claims.sub));
    }
    let groups = user.groups.unwrap_or_default().into_iter().take(GROUPS_MAX).collect();
    let service_account = account(&name);
    Ok(Identity { way: Way::Token, groups, service_account, pod: claims.pod(), ..Identity::nobody(name) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rules() -> TokenRules {
        TokenRules { audience: "stoker.build".to_owned(), issuer: None, cache: Duration::from_secs(60) }
    }

    fn token(claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(r#"{"alg":"ES256","kid":"k"}"#), part(claims), part("signature"))
    }

    fn claims(more: &str) -> String {
        format!(r#"{{"sub":"system:serviceaccount:ci:builder","exp":1000,"aud":["stoker.build"]{more}}}"#)
    }

    #[test]
    fn claims_name_the_account_and_its_pod() {
        let text = token(&claims(r#","kubernetes.io":{"namespace":"ci","pod":{"name":"p","uid":"u"}}"#));
        let read = Read::of(&text).unwrap();
        assert_eq!(read.claims.check(&rules(), 999), Ok(()));
        let identity = read.claims.identity().unwrap();
        assert_eq!(
            identity.service_account,
            Some(ServiceAccount { namespace: "ci".to_owned(), name: "builder".to_owned() })
        );
        assert_eq!(identity.pod, Some(("p".to_owned(), "u".to_owned())));
        assert!(identity.groups.contains(&"system:serviceaccounts:ci".to_owned()));
    }

    #[test]
    fn a_token_of_another_time_audience_or_issuer_is_refused() {
        let check = |text: &str, rules: &TokenRules, now| Read::of(&token(text)).unwrap().claims.check(rules, now);
        assert!(check(&claims(""), &rules(), 1000).unwrap_err().contains("expired 0 s ago"));
        assert!(check(&claims(r#","nbf":100"#), &rules(), 50).unwrap_err().contains("not valid yet"));
        assert_eq!(check(&claims(r#","nbf":100"#), &rules(), 80), Ok(()), "clocks differ");
        let other = claims("").replace(r#"["stoker.build"]"#, r#""kubernetes""#);
        assert!(check(&other, &rules(), 1).unwrap_err().contains("audience \"stoker.build\""));
        let issued = TokenRules { issuer: Some("https://a".to_owned()), ..rules() };
        assert!(check(&claims(r#","iss":"https://b""#), &issued, 1).unwrap_err().contains("issued by"));
        assert_eq!(check(&claims(r#","iss":"https://a""#), &issued, 1), Ok(()));
    }

    #[test]
    fn what_is_no_service_account_token_is_refused() {
        let without_end = token(&claims("").replace(r#""exp":1000,"#, ""));
        let wrong_end = token(&claims("").replace("1000", "\"1000\""));
        for wrong in ["", "a.b", "a.b.c", "....", &without_end, &wrong_end] {
            assert!(Read::of(wrong).is_err(), "{wrong}");
        }
        for wrong in ["system:serviceaccount:ci", "system:serviceaccount::x", "system:serviceaccount:a:b:c", "root"] {
            assert_eq!(account(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_review_that_names_another_is_not_believed() {
        let text = token(&claims(""));
        let read = Read::of(&text).unwrap();
        let user = |name: &str| UserInfo { username: Some(name.to_owned()), ..UserInfo::default() };
        assert!(of_user(user("system:serviceaccount:ci:builder"), &read.claims).is_ok());
        assert!(of_user(user("system:admin"), &read.claims).is_err() && of_user(user(""), &read.claims).is_err());
    }

    #[test]
    fn tokens_are_remembered_within_a_bound_and_a_time() {
        let tokens = Tokens::default();
        let identity = Arc::new(Identity::nobody("x"));
        let known = |until| Known { found: Ok(Arc::clone(&identity)), until };
        let later = Instant::now() + Duration::from_secs(60);
        for i in 0..2 * TOKENS_MAX {
            remember(
                &tokens.known,
                digest(&i.to_string(), &rules()),
                known(later + Duration::from_millis(u64::try_from(i).unwrap())),
            );
        }
        assert_eq!(lock(&tokens.known).len(), TOKENS_MAX);
        let last = digest(&(2 * TOKENS_MAX - 1).to_string(), &rules());
        assert!(recall(&tokens.known, &last).is_some() && recall(&tokens.known, &digest("0", &rules())).is_none());
        remember(&tokens.known, last, known(Instant::now()));
        assert!(recall(&tokens.known, &last).is_none(), "its time is over");
        let other = TokenRules { audience: "other".to_owned(), ..rules() };
        assert_ne!(digest("a", &other), digest("a", &rules()), "an answer is for one audience");
    }
}
