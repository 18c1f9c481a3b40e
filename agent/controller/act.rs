//! What is done for one pod. What is meant is written on the pod before anybody is asked, over the version that was read:
//! whoever comes after asks the same node by the same name, and gets the same lease.

use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client as Kube};
use serde_json::{Value, json};
use stoker_core::cluster::LEASE;
use stoker_core::placement::Intent;
use stoker_core::placement::intent::BIND_WITHIN;
use stoker_proto::v1::{self, admit_response::Decision};
use tonic::{Code, Request, Status};

use super::PLACEMENT;
use super::elect::{Leading, within};
use super::patch::{freed, other_gates};
use super::pod::{Asks, Pod};
use crate::cli::client::{Client, reason_word, words};
use crate::kubernetes;

/// What asking a node may take: it may have to fetch the commit first.
const ADMIT_WITHIN: Duration = Duration::from_secs(30);
/// For what it answers from its journal.
const SOON: Duration = Duration::from_secs(10);
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
    /// Nobody knows whether the node granted it: the same node is asked again.
    Unknown(String),
    /// Others wrote on it, or it is gone; what was granted is given back.
    Changed,
    /// An operator let it go.
    Skipped(Box<Pod>),
}

/// Why a node did not take a pod.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// Which attempt it was.
    pub(super) attempt: u32,
    pub(super) reasons: Vec<v1::Reason>,
    /// In words, where there are no reasons.
    pub(super) words: String,
    /// Not before.
    pub(super) retry_after: Duration,
    /// It is about the node's room, and so about all that are as large.
    pub(super) room: bool,
    /// It is about what is asked for, not about when.
    pub(super) never: bool,
    /// The pod as it was written before the node was asked.
    pub(super) seen: Option<Box<Pod>>,
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

    /// Asks a node for a pod, and writes on it what it got.
    pub(super) async fn place(&self, pod: Pod, asks: Asks, node: String, attempt: u32, client: Client) -> Done {
        let intent = Intent { node, attempt, at: crate::node::now() };
        let note = json!({"metadata": {"annotations": {PLACEMENT: intent.to_string()}}});
        let written = match self.write(&pod, note, |found| found.intent == pod.intent).await {
            Written::Yes(written) => *written,
            Written::Other => return Done::Changed,
            Written::Failed(why) => return Done::Unknown(why),
        };
        let mut done = self.ask(&pod, &asks, &intent, written.clone(), &client).await;
        if let Done::Refused(refusal) = &mut done {
            refusal.seen = Pod::of(&written).map(Box::new);
        }
        done
    }

    /// Asks the node that the intent names.
    async fn ask(&self, pod: &Pod, asks: &Asks, intent: &Intent, written: core::Pod, client: &Client) -> Done {
        let attempt = intent.attempt;
        if !self.leading.is_on() {
            return Done::Changed;
        }
        let order = order(pod, asks, intent);
        let mut request = Request::new(order);
        request.set_timeout(ADMIT_WITHIN);
        let answer = client.admission().admit(request).await.map(|answer| answer.into_inner().decision);
        let lease = match answer {
            Ok(Some(Decision::Granted(lease))) => match lease.state() {
                v1::LeaseState::Reserved | v1::LeaseState::Bound => lease,
                state => {
                    let words = format!("its lease was {} before it came", state.as_str_name());
                    return Done::Refused(Box::new(Refusal { attempt, words, ..Refusal::default() }));
                }
            },
            Ok(Some(Decision::Waiting(waiting))) => {
                let after = waiting.retry_after.and_then(|span| u64::try_from(span.seconds).ok()).unwrap_or(5);
                return Done::Refused(Box::new(Refusal {
                    attempt,
                    room: !waiting.reasons.iter().any(of_the_tenant),
                    reasons: waiting.reasons,
                    retry_after: Duration::from_secs(after.min(30)),
                    ..Refusal::default()
                }));
            }
            Ok(Some(Decision::Rejected(rejected))) => {
                return Done::Refused(Box::new(Refusal {
                    attempt,
                    room: true,
                    never: rejected.final_everywhere,
                    reasons: rejected.reasons,
                    retry_after: Duration::from_secs(if rejected.final_everywhere { 60 } else { 5 }),
                    ..Refusal::default()
                }));
            }
            Ok(None) => return Done::Unknown("its answer is not whole; is it of another version?".to_owned()),
            Err(status) => return refused(&status, attempt),
        };
        self.let_go(pod, intent, written, &lease, client).await
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
        let until = tokio::time::Instant::now() + SOON * 6;
        loop {
            let patch = freed(&object, lease);
            let pods = self.pods(pod);
            match within_status(pods.patch(&pod.name, &params(), &Patch::Merge(&patch))).await {
                Ok(written) => match Pod::of(&written) {
                    Some(placed) => return Done::Placed(Box::new(placed)),
                    None => return Done::Changed,
                },
                Err(Failed::Conflict | Failed::Away(_))
                    if self.leading.is_on() && tokio::time::Instant::now() < until => {}
                // What it means stands on the pod: who leads next asks by the same name.
                Err(Failed::Away(why)) => return Done::Unknown(why),
                Err(Failed::Conflict) => return Done::Unknown("others write on the pod all the time".to_owned()),
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
            match within_status(pods.get(&pod.name)).await {
                Ok(found) if found.metadata.uid.as_deref() != Some(pod.uid.as_str()) => {
                    return self.give_back(client, lease).await;
                }
                Err(Failed::Gone) => return self.give_back(client, lease).await,
                Ok(found) => match Pod::of(&found) {
                    // Another leader did the same: it is the same lease.
                    Some(now) if now.lease == lease.id && !now.gated => return Done::Placed(Box::new(now)),
                    Some(now)
                        if now
                            .intent
                            .as_ref()
                            .is_some_and(|now| now.node == intent.node && now.attempt == intent.attempt) =>
                    {
                        object = found;
                    }
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
        let gates = |object: &core::Pod| json!({"spec": {"schedulingGates": other_gates(object)}});
        for _ in 0..WRITES_MAX {
            let Ok(found) = within_status(self.pods(&pod).get(&pod.name)).await else { return Done::Changed };
            let is_it = found.metadata.uid.as_deref() == Some(pod.uid.as_str());
            if !is_it || !Pod::of(&found).is_some_and(|now| now.gated && now.skip) {
                return Done::Changed;
            }
            let mut patch = gates(&found);
            patch["metadata"] = json!({"resourceVersion": found.metadata.resource_version});
            match within_status(self.pods(&pod).patch(&pod.name, &params(), &Patch::Merge(&patch))).await {
                Ok(_) => return Done::Skipped(Box::new(pod)),
                Err(Failed::Conflict) => {}
                Err(Failed::Gone) => return Done::Changed,
                Err(Failed::Away(why) | Failed::Refused(why)) => return Done::Unknown(why),
            }
        }
        Done::Changed
    }

    /// Gives the lease of a pod back, where that went without coming to its node.
    pub(super) async fn left(&self, pod: Pod, client: Client) {
        let gone = match within_status(self.pods(&pod).get(&pod.name)).await {
            Err(Failed::Gone) => true,
            Ok(found) => {
                let has_node = found.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some();
                found.metadata.uid.as_deref() != Some(pod.uid.as_str())
                    || (!has_node && found.metadata.deletion_timestamp.is_some())
            }
            Err(_) => false, // it runs out by itself
        };
        if gone {
            release(&client, &pod.lease).await;
        }
    }

    /// Deletes a pod whose node is gone, so that what controls it makes another.
    pub(super) async fn replace(&self, pod: Pod) -> Done {
        let uid = Some(pod.uid.clone());
        let preconditions = Some(Preconditions { uid, resource_version: Some(pod.version.clone()) });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        if let Err(error) = within(self.pods(&pod).delete(&pod.name, &params)).await {
            tracing::warn!(pod = pod.shown(), error, "a pod whose node is gone was not deleted");
        }
        Done::Changed
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
                Err(Failed::Gone) => return Written::Other,
                Err(Failed::Away(why) | Failed::Refused(why)) => return Written::Failed(why),
            }
            match within_status(self.pods(pod).get(&pod.name)).await {
                Ok(found) => match Pod::of(&found).filter(|now| now.uid == pod.uid) {
                    Some(now) if now.gated == pod.gated && !now.skip && still(&now) => version = now.version,
                    _ => return Written::Other,
                },
                Err(Failed::Gone) => return Written::Other,
                Err(_) => return Written::Failed("the pod was not read".to_owned()),
            }
        }
        Written::Failed("others write on the pod all the time".to_owned())
    }
}

enum Written {
    Yes(Box<core::Pod>),
    /// It is gone, or no more what it was.
    Other,
    Failed(String),
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

fn order(pod: &Pod, asks: &Asks, intent: &Intent) -> v1::AdmitRequest {
    v1::AdmitRequest {
        request_id: intent.request_id(&pod.uid),
        build: Some((*asks.build).clone()),
        priority: 0,
        bind_within: Some(prost_types::Duration { seconds: BIND_WITHIN.0 / 1000, nanos: 0 }),
        owner: Some(v1::Owner { namespace: pod.namespace.clone(), service_account: pod.service_account.clone() }),
        rebind: v1::Rebind::Never.into(),
        ..v1::AdmitRequest::default()
    }
}

fn of_the_tenant(reason: &v1::Reason) -> bool {
    matches!(reason.code(), v1::reason::Code::TenantQuota)
}

/// What a status says of the request: an agent that gives a reason did not grant it.
fn refused(status: &Status, attempt: u32) -> Done {
    let told = reason_word(status).is_some();
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal if !told => {
            Done::Unknown(words(status))
        }
        code => Done::Refused(Box::new(Refusal {
            attempt,
            words: words(status),
            retry_after: Duration::from_secs(if code == Code::AlreadyExists { 1 } else { 30 }),
            never: matches!(code, Code::InvalidArgument | Code::NotFound | Code::PermissionDenied),
            ..Refusal::default()
        })),
    }
}

/// Keeps a reservation; false: it has ended.
pub(super) async fn renew(client: &Client, lease_id: String) -> bool {
    let reserve_for = Some(prost_types::Duration { seconds: BIND_WITHIN.0 / 1000, nanos: 0 });
    let mut request = Request::new(v1::RenewRequest { lease_id, reserve_for });
    request.set_timeout(SOON);
    match client.admission().renew(request).await {
        Ok(renewed) => {
            let state = renewed.into_inner().lease.map(|lease| lease.state());
            matches!(state, Some(v1::LeaseState::Reserved | v1::LeaseState::Bound))
        }
        Err(status) => {
            reason_word(&status).is_none() && !matches!(status.code(), Code::NotFound | Code::FailedPrecondition)
        }
    }
}

async fn release(client: &Client, lease_id: &str) {
    let mut order = v1::ReleaseRequest { lease_id: lease_id.to_owned(), ..v1::ReleaseRequest::default() };
    order.set_outcome(v1::Outcome::Lost);
    let mut request = Request::new(order);
    request.set_timeout(SOON);
    if let Err(status) = client.admission().release(request).await {
        tracing::warn!(lease = lease_id, error = words(&status), "a lease was not given back; it runs out by itself");
    }
}

fn has_lease(pod: &core::Pod, lease: &str) -> bool {
    pod.metadata.annotations.as_ref().and_then(|all| all.get(LEASE)).is_some_and(|found| found == lease)
}
