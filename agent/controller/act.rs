//! What is done for one pod. What is meant is written on the pod before anybody is asked, over the version that was read:
//! whoever comes after asks the same node by the same name, and gets the same lease.

use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client as Kube};
use serde_json::{Value, json};
use stoker_core::cluster::LEASE;
use stoker_core::placement::Intent;
use stoker_proto::v1;
use tonic::Request;

use super::PLACEMENT;
use super::answer::{self, Kept, Refusal, Said, release};
use super::elect::Leading;
use super::patch::{freed, other_gates};
use super::pod::{Asks, Pod};
use crate::cli::client::Client;
use crate::kubernetes;

/// What asking a node may take: it may have to fetch the commit first.
const ADMIT_WITHIN: Duration = Duration::from_secs(30);
/// To let a pod go, where others write on it or the API server does not answer.
const LET_GO_WITHIN: Duration = Duration::from_secs(60);
/// Attempts to write on a pod that others write on.
const WRITES_MAX: usize = 6;
const AGAIN: Duration = Duration::from_millis(500);

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    /// It has its lease, and may go.
    Placed(Box<Pod>),
    /// The node said no, or not now.
    Refused(Box<Refusal>),
    /// Nobody knows whether the node granted it: the same node is asked again. `doubt`: that is about the node.
    Unknown { why: String, doubt: bool },
    /// The node granted it, and that could not be written: the same node is asked again.
    Held(String),
    /// Nobody was asked: that could not be written.
    Unwritten(String),
    /// The API server does not let it be written, and will not the next time.
    Forbidden(String),
    /// It is not deleted, and will not be the next time.
    Undeleted(String),
    /// Others wrote on it, or it is gone; what was granted is given back.
    Changed,
    /// An operator let it go.
    Skipped(Box<Pod>),
}

/// Who acts.
#[derive(Clone)]
pub(super) struct Actor {
    pub(super) kube: Kube,
    pub(super) leading: Leading,
}

impl Actor {
    fn pods(&self, pod: &Pod) -> Api<core::Pod> {
        Api::namespaced(self.kube.clone(), &pod.namespace)
    }

    /// Asks a node for a pod, and writes on it what it got. `held`: the lease by this name, where the node told of one.
    pub(super) async fn place(
        &self,
        pod: Pod,
        asks: Asks,
        asked: Intent,
        held: Option<String>,
        client: Client,
    ) -> Done {
        let first = !pod.intent.as_ref().is_some_and(|known| known.is(&asked));
        let written = if first {
            let note = json!({"metadata": {"annotations": {PLACEMENT: asked.to_string()}}});
            self.write(&pod, note, |found| same(found.intent.as_ref(), pod.intent.as_ref())).await
        } else {
            // What was written then stands, with the time of then.
            self.read(&pod, &asked).await
        };
        let written = match written {
            Written::Yes(written) => *written,
            Written::Other => return Done::Changed,
            Written::Failed(why) => return Done::Unwritten(why),
            Written::Refused(why) => return Done::Forbidden(why),
        };
        if !self.leading.is_on() {
            return Done::Changed;
        }
        let mut request = Request::new(answer::order(&pod, &asks, &asked));
        request.set_timeout(ADMIT_WITHIN);
        let said = client.admission().admit(request).await.map(tonic::Response::into_inner);
        let mut refusal = match (answer::said(said, asked.attempt, first), held) {
            (Said::Granted(lease), _) if answer::is_by(&lease, &asked.request_id(&pod.uid)) => {
                return self.let_go(&pod, &asked, written, &lease, &client).await;
            }
            (Said::Granted(_), _) => {
                let words = "its lease is by another request's name".to_owned();
                Box::new(Refusal { attempt: asked.attempt, words, faulty: true, ..Refusal::default() })
            }
            (Said::Refused(refusal), _) => refusal,
            (Said::Unknown { why, doubt }, _) => return Done::Unknown { why, doubt },
            // In which words a pod asks is what its author writes: that says nothing of the node.
            (Said::Conflict(why), None) => return Done::Unknown { why, doubt: false },
            (Said::Conflict(why), Some(lease)) => {
                if !release(&client, &lease).await {
                    return Done::Unknown { why, doubt: false };
                }
                let words = "it was asked for in other words before: that lease is given back".to_owned();
                Box::new(Refusal { attempt: asked.attempt, words, ..Refusal::default() })
            }
        };
        refusal.seen = Pod::of(&written).map(Box::new);
        Done::Refused(refusal)
    }

    /// Writes the lease on the pod and takes the gate away; gives the lease back where that cannot be.
    async fn let_go(
        &self,
        pod: &Pod,
        intent: &Intent,
        mut object: core::Pod,
        lease: &v1::Lease,
        client: &Client,
    ) -> Done {
        let until = tokio::time::Instant::now() + LET_GO_WITHIN;
        loop {
            let patch = freed(&object, lease, &intent.node);
            let pods = self.pods(pod);
            match within_status(pods.patch(&pod.name, &params(), &Patch::Merge(&patch))).await {
                Ok(written) => match Pod::of(&written) {
                    Some(placed) => return Done::Placed(Box::new(placed)),
                    None => return Done::Changed,
                },
                Err(Failed::Conflict | Failed::Away(_))
                    if self.leading.is_on() && tokio::time::Instant::now() < until => {}
                // What it means stands on the pod: who leads next asks by the same name.
                Err(Failed::Away(why)) => return Done::Held(why),
                Err(Failed::Conflict) => return Done::Held("others write on the pod all the time".to_owned()),
                Err(Failed::Gone) => return self.give_back(client, lease).await,
                Err(Failed::Refused(why)) => {
                    tracing::warn!(pod = pod.shown(), error = why, "the API server does not let the pod go");
                    self.give_back(client, lease).await;
                    let words = format!("the API server does not let it go: {why}");
                    let retry_after = Duration::from_secs(30);
                    let refusal = Refusal { attempt: intent.attempt, words, retry_after, ..Refusal::default() };
                    return Done::Refused(Box::new(refusal));
                }
            }
            match self.found(pod).await {
                Err(Failed::Gone) => return self.give_back(client, lease).await,
                Ok(found) => match Pod::of(&found) {
                    // Another leader did the same: it is the same lease.
                    Some(now) if now.lease == lease.id && !now.gated => return Done::Placed(Box::new(now)),
                    // Others took the gate away, or let it go: it goes where they say, with no lease.
                    Some(now) if now.skip || (pod.gated && !now.gated) => return self.give_back(client, lease).await,
                    Some(now) if same(now.intent.as_ref(), Some(intent)) => object = found,
                    Some(_) => return self.give_back(client, lease).await,
                    // On its node already, or ending.
                    None if has_lease(&found, &lease.id) && found.metadata.deletion_timestamp.is_none() => {
                        return Done::Changed;
                    }
                    None => return self.give_back(client, lease).await,
                },
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    async fn give_back(&self, client: &Client, lease: &v1::Lease) -> Done {
        release(client, &lease.id).await;
        Done::Changed
    }

    /// Takes the gate away, as an operator said.
    pub(super) async fn skip(&self, pod: Pod) -> Done {
        for _ in 0..WRITES_MAX {
            let Ok(found) = self.found(&pod).await else { return Done::Changed };
            if !Pod::of(&found).is_some_and(|now| now.gated && now.skip) {
                return Done::Changed;
            }
            // A lease that it may have had is not its any more: nobody keeps that.
            let notes = json!({PLACEMENT: null, LEASE: null});
            let patch = json!({
                "metadata": {"resourceVersion": found.metadata.resource_version, "annotations": notes},
                "spec": {"schedulingGates": other_gates(&found)},
            });
            match within_status(self.pods(&pod).patch(&pod.name, &params(), &Patch::Merge(&patch))).await {
                Ok(_) => return Done::Skipped(Box::new(pod)),
                Err(Failed::Conflict) => {}
                Err(Failed::Gone) => return Done::Changed,
                Err(Failed::Away(why)) => return Done::Unwritten(why),
                Err(Failed::Refused(why)) => return Done::Forbidden(why),
            }
        }
        Done::Changed
    }

    /// Gives the lease of a pod back, where that went without coming to its node: whether its node took it.
    pub(super) async fn left(&self, pod: Pod, client: Client) -> bool {
        let gone = match self.found(&pod).await {
            Err(Failed::Gone) => true,
            Ok(found) => {
                let has_node = found.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some();
                !has_node && found.metadata.deletion_timestamp.is_some()
            }
            Err(_) => false, // it runs out by itself
        };
        // What stands on a pod may be another's lease.
        gone && answer::whose(&client, &pod.uid, &pod.lease).await == Kept::Lives && release(&client, &pod.lease).await
    }

    /// Deletes a pod whose node is gone, so that what controls it makes another.
    pub(super) async fn replace(&self, pod: Pod) -> Done {
        let uid = Some(pod.uid.clone());
        let preconditions = Some(Preconditions { uid, resource_version: Some(pod.version.clone()) });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match within_status(self.pods(&pod).delete(&pod.name, &params)).await {
            Err(Failed::Refused(why)) => Done::Undeleted(why),
            Err(Failed::Away(why)) => {
                tracing::warn!(pod = pod.shown(), error = why, "a pod whose node is gone was not deleted; tried again");
                Done::Changed
            }
            Ok(_) | Err(Failed::Gone | Failed::Conflict) => Done::Changed,
        }
    }

    /// A pod as it is, where the same node is meant still.
    async fn read(&self, pod: &Pod, asked: &Intent) -> Written {
        let found = match self.found(pod).await {
            Ok(found) => found,
            Err(failed) => return failed.into(),
        };
        match still_meant(pod, &found) {
            Some(now) if same(now.intent.as_ref(), Some(asked)) => Written::Yes(Box::new(found)),
            _ => Written::Other,
        }
    }

    /// Writes on a pod as it was seen, or as it is where `still` says that nothing that matters has changed.
    async fn write(&self, pod: &Pod, patch: Value, still: impl Fn(&Pod) -> bool) -> Written {
        let mut version = pod.version.clone();
        for _ in 0..WRITES_MAX {
            let mut patch = patch.clone();
            patch["metadata"]["resourceVersion"] = json!(version);
            match within_status(self.pods(pod).patch(&pod.name, &params(), &Patch::Merge(&patch))).await {
                Ok(written) => return Written::Yes(Box::new(written)),
                Err(Failed::Conflict) => {}
                Err(failed) => return failed.into(),
            }
            let found = match self.found(pod).await {
                Ok(found) => found,
                Err(failed) => return failed.into(),
            };
            match still_meant(pod, &found).filter(|now| still(now)) {
                Some(now) => version = now.version,
                None => return Written::Other,
            }
        }
        Failed::Conflict.into()
    }

    /// A pod as it is now. Gone is also one whose name another has.
    async fn found(&self, pod: &Pod) -> Result<core::Pod, Failed> {
        let found = within_status(self.pods(pod).get(&pod.name)).await?;
        let is_it = found.metadata.uid.as_deref() == Some(pod.uid.as_str());
        if is_it { Ok(found) } else { Err(Failed::Gone) }
    }
}

enum Written {
    Yes(Box<core::Pod>),
    /// It is gone, or no more what it was.
    Other,
    Failed(String),
    Refused(String),
}

impl From<Failed> for Written {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Gone => Self::Other,
            Failed::Away(why) => Self::Failed(why),
            Failed::Refused(why) => Self::Refused(why),
            Failed::Conflict => Self::Failed("others write on the pod all the time".to_owned()),
        }
    }
}

enum Failed {
    Conflict,
    Gone,
    Refused(String),
    Away(String),
}

async fn within_status<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failed> {
    match tokio::time::timeout(kubernetes::ANSWER_WITHIN, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(match status.code {
            404 | 410 => Failed::Gone,
            409 => Failed::Conflict,
            429 | 500..=599 | 401 => Failed::Away(status.message.clone()),
            _ => Failed::Refused(status.message.clone()),
        }),
        Ok(Err(error)) => Err(Failed::Away(kubernetes::words(&error))),
        Err(_) => Err(Failed::Away("the API server does not answer".to_owned())),
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(super::MANAGER.to_owned()), ..PatchParams::default() }
}

/// Whether the same node's same attempt is meant.
fn same(one: Option<&Intent>, other: Option<&Intent>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.is(other),
        (None, None) => true,
        _ => false,
    }
}

/// A pod as it is now, where it still waits or goes as it was seen to, and nobody lets it go.
fn still_meant(pod: &Pod, found: &core::Pod) -> Option<Pod> {
    Pod::of(found).filter(|now| now.gated == pod.gated && !now.skip)
}

fn has_lease(pod: &core::Pod, lease: &str) -> bool {
    pod.metadata.annotations.as_ref().and_then(|all| all.get(LEASE)).is_some_and(|found| found == lease)
}
