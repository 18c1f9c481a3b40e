//! Who leads: a `Lease` object of the coordination API, written only over the version that was read.
//!
//! Another's hold is over when it has not been written for as long as it says, by this machine's clock: clocks of two
//! machines are not compared. Who cannot write its own in time stops at once, before another may begin.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;

use super::{MANAGER, Options};
use crate::kubernetes::{ANSWER_WITHIN, words};

/// Another may begin when nothing was written for so long.
const HOLDS_FOR: Duration = Duration::from_secs(15);
/// Who could not write for so long stops.
const RENEWED_WITHIN: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(2);

/// The right to act, for as long as it lasts.
#[derive(Debug, Clone)]
pub(super) struct Leading {
    began: Instant,
    until: Arc<std::sync::Mutex<Instant>>,
    pub(super) over: CancellationToken,
}

impl Leading {
    fn new(from: Instant) -> Self {
        Self {
            began: from,
            until: Arc::new(std::sync::Mutex::new(from + RENEWED_WITHIN)),
            over: CancellationToken::new(),
        }
    }

    fn extend(&self, from: Instant) {
        *self.until.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = from + RENEWED_WITHIN;
    }

    /// Whether it may act now. A process that was stopped meanwhile finds that it may not.
    pub(super) fn is_on(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        !self.over.is_cancelled() && Instant::now() < until
    }

    /// How long it lasts already.
    pub(super) fn lasts(&self) -> Duration {
        self.began.elapsed()
    }

    /// It has just begun: not all have been heard yet.
    pub(super) fn is_young(&self) -> bool {
        self.began.elapsed() < RENEWED_WITHIN
    }

    pub(super) fn end(&self) {
        self.over.cancel();
    }
}

/// Tries to lead, and holds on to it.
pub(super) struct Elector {
    api: Api<Lease>,
    name: String,
    namespace: String,
    identity: String,
    /// What was read last of another's hold, and when it was new.
    seen: Option<(String, Instant)>,
    /// What was written last.
    held: Option<Lease>,
}

impl Elector {
    pub(super) fn new(client: kube::Client, options: &Options) -> Self {
        let api = Api::namespaced(client, &options.lease.namespace);
        let (name, namespace) = (options.lease.name.clone(), options.lease.namespace.clone());
        Self { api, name, namespace, identity: options.identity.clone(), seen: None, held: None }
    }

    /// Leads from now on, where nobody else does.
    pub(super) async fn try_to_lead(&mut self) -> Result<Option<Leading>, String> {
        let began = Instant::now();
        let found = within(self.api.get_opt(&self.name)).await?;
        let written = match found {
            None => within(self.api.create(&PostParams::default(), &self.object(None))).await,
            Some(found) => {
                if !self.is_free(&found) {
                    return Ok(None);
                }
                let object = self.object(Some(&found));
                within(self.api.replace(&self.name, &PostParams::default(), &object)).await
            }
        };
        match written {
            Ok(held) => {
                (self.held, self.seen) = (Some(held), None);
                Ok(Some(Leading::new(began)))
            }
            // Another was quicker, or nobody answered: it is looked at again.
            Err(error) => {
                tracing::debug!(error, "did not become the leader");
                Ok(None)
            }
        }
    }

    /// Writes until it cannot: why.
    pub(super) async fn keep(&mut self, leading: &Leading) -> String {
        let mut written = Instant::now();
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            let began = Instant::now();
            if began.duration_since(written) >= RENEWED_WITHIN {
                return format!("its hold was not written for {} s", began.duration_since(written).as_secs());
            }
            let Some(held) = &self.held else { return "it holds nothing".to_owned() };
            let object = self.object(Some(held));
            let left = RENEWED_WITHIN.saturating_sub(written.elapsed());
            let params = PostParams::default();
            let write = self.api.replace(&self.name, &params, &object);
            match tokio::time::timeout(left.min(ANSWER_WITHIN), write).await {
                Ok(Ok(held)) => {
                    self.held = Some(held);
                    written = began;
                    leading.extend(began);
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => match within(self.api.get(&self.name)).await
                {
                    Ok(found) if holder(&found) == self.identity => self.held = Some(found),
                    Ok(found) => return format!("{} leads", holder(&found)),
                    Err(_) => {}
                },
                Ok(Err(error)) => tracing::warn!(error = words(&error), "its hold was not written; tried again"),
                Err(_) => tracing::warn!("its hold was not written in time; tried again"),
            }
        }
    }

    /// Lets the next one begin at once.
    pub(super) async fn give_up(&mut self) {
        let Some(held) = self.held.take() else { return };
        let mut object = self.object(Some(&held));
        if let Some(spec) = &mut object.spec {
            (spec.holder_identity, spec.lease_duration_seconds) = (Some(String::new()), Some(1));
        }
        let _ = within(self.api.replace(&self.name, &PostParams::default(), &object)).await;
    }

    fn is_free(&mut self, found: &Lease) -> bool {
        let by = holder(found);
        if by.is_empty() || by == self.identity {
            return true;
        }
        let version = found.metadata.resource_version.clone().unwrap_or_default();
        let lasts = found.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let lasts = lasts.and_then(|seconds| u64::try_from(seconds).ok()).map_or(HOLDS_FOR, Duration::from_secs);
        match &self.seen {
            Some((seen, at)) if *seen == version => at.elapsed() > lasts,
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    fn object(&self, before: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let spec = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_mine = spec.holder_identity.as_deref() == Some(&self.identity);
        let transitions = spec.lease_transitions.unwrap_or(0);
        let metadata = before.map_or_else(
            || ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                labels: Some([("app.kubernetes.io/name".to_owned(), MANAGER.to_owned())].into()),
                ..ObjectMeta::default()
            },
            |lease| lease.metadata.clone(),
        );
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(HOLDS_FOR.as_secs()).ok(),
            acquire_time: if is_mine { spec.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(if is_mine || before.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }
}

fn holder(lease: &Lease) -> String {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default()
}

/// An answer in time, or why there is none, in words.
pub(super) async fn within<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(answer) => answer.map_err(|error| words(&error)),
        Err(_) => Err(format!("no answer in {} s", ANSWER_WITHIN.as_secs())),
    }
}
