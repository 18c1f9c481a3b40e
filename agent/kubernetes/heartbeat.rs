//! The agent's heartbeat: a `Lease` object of the coordination API, which others watch at the cost of a few bytes. A
//! node object that is written as often is sent to all who watch nodes.
//!
//! It also tells whether the API server answers at all: a watch can be silent for minutes, dead or not.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tokio::sync::watch;

use super::ANSWER_WITHIN;
use super::rights::{Missing, Refusals, Right};
use crate::config::Configured;

/// After a failure it is tried again so soon.
const AGAIN: Duration = Duration::from_secs(2);
/// Who writes the fields, for server-side apply.
pub(super) const MANAGER: &str = "stoker";

/// Who beats.
pub(super) struct Heart {
    pub(super) client: Client,
    pub(super) node: String,
    /// This start of the agent.
    pub(super) incarnation: String,
    pub(super) namespace: String,
    pub(super) config: Configured,
    pub(super) missing: Missing,
}

/// Writes until cancelled by being dropped, or nobody listens.
pub(super) async fn beat(heart: Heart, told: watch::Sender<Result<(), String>>) {
    let leases = Api::<Lease>::namespaced(heart.client.clone(), &heart.namespace);
    // While it is refused the server's version is asked for.
    let (mut refusals, mut write_at) = (Refusals::default(), None::<Instant>);
    while !told.is_closed() {
        let every = heart.config.borrow().kubernetes.heartbeat;
        let may_write = write_at.is_none_or(|at| at <= Instant::now());
        let asked = async {
            if may_write {
                let object = heart.object(every);
                let apply = PatchParams::apply(MANAGER).force();
                leases.patch(&heart.name(), &apply, &Patch::Apply(&object)).await.map(drop)
            } else {
                heart.client.apiserver_version().await.map(drop)
            }
        };
        let answer = match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(())) => {
                if may_write {
                    refusals.end();
                    write_at = None;
                }
                heart.missing.note(Right::Heartbeat, write_at.is_some());
                Ok(())
            }
            Ok(Err(kube::Error::Api(status))) if may_write && matches!(status.code, 403 | 404) => {
                write_at = Some(Instant::now() + refusals.pause());
                heart.missing.note(Right::Heartbeat, true);
                let (name, namespace) = (heart.name(), &heart.namespace);
                tracing::warn!(error = status.message, name, namespace, "no heartbeat: the agent may not write it");
                continue;
            }
            // It answers, whatever it says.
            Ok(Err(kube::Error::Api(status)))
                if matches!(status.code, 400..=499) && !matches!(status.code, 401 | 429) =>
            {
                Ok(())
            }
            Ok(Err(error)) => Err(super::watch::words(&error)),
            Err(_) => Err(format!("no answer in {} s", ANSWER_WITHIN.as_secs())),
        };
        let pause = if answer.is_ok() { every } else { every.min(AGAIN) };
        told.send_if_modified(|before| {
            let differs = *before != answer;
            *before = answer;
            differs
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = told.closed() => return,
        }
    }
}

impl Heart {
    /// Of this node alone, however long its name is: names of objects are as long as those of nodes.
    fn name(&self) -> String {
        self.node.clone()
    }

    fn object(&self, every: Duration) -> Lease {
        // Who reads it takes an agent for gone that missed three.
        let seconds = i32::try_from(every.as_secs().saturating_mul(3).max(1)).unwrap_or(i32::MAX);
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name()),
                namespace: Some(self.namespace.clone()),
                labels: Some([("app.kubernetes.io/name".to_owned(), "stoker".to_owned())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.incarnation.clone()),
                lease_duration_seconds: Some(seconds),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        }
    }
}
