//! What pods do to leases: they bind them, and end them.
//!
//! The core decides from the published view of the cluster and from the pods' control groups; here its acts are done. A
//! pod whose time budget is used up is evicted: no signal of ours reaches it, and the kubelet gives it the grace that it
//! asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::admission::{Command, Holder, Lease};
use stoker_core::cluster::Ended;
use stoker_core::cluster::bind::{self, Act, Group};
use stoker_core::identity::LeaseId;
use stoker_core::quantity::Span;
use stoker_core::reason::Code;
use stoker_core::sizing::Outcome;
use tokio_util::sync::CancellationToken;

use super::{Admission, now};
use crate::config::TimeBudget;
use crate::kubernetes::{Kubernetes, Told};
use crate::pressure::Configured;
use crate::pressure::lease_use::PodGroups;

/// Groups come and go without a word.
const EVERY: Duration = Duration::from_millis(500);
/// Changes that come one after the other are looked at together.
const PAUSE: Duration = Duration::from_millis(50);
/// An eviction that was refused (by a disruption budget, say) is asked for again so soon.
const EVICT_AGAIN: Duration = Duration::from_secs(10);

/// Looks until cancelled.
pub(super) async fn run(
    admission: Admission,
    host_root: PathBuf,
    config: Configured,
    kubernetes: Kubernetes,
    cancel: CancellationToken,
) {
    let mut view = kubernetes.subscribe();
    if !view.borrow().asked {
        return;
    }
    let mut groups = PodGroups::new(&host_root);
    let mut asked: BTreeMap<LeaseId, Instant> = BTreeMap::new();
    let mut refused: BTreeSet<(String, String)> = BTreeSet::new();
    loop {
        let changed = async {
            if view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = changed => {}
            () = tokio::time::sleep(EVERY) => {}
        }
        let cluster = Arc::clone(&view.borrow_and_update());
        let leases: Vec<Arc<Lease>> = admission.read(|ledger| ledger.live().cloned().collect());
        let uids: Vec<String> = leases.iter().filter_map(|lease| Some(pod_of(lease)?.2.to_owned())).collect();
        let looked = tokio::task::spawn_blocking(move || {
            let seen = groups.look(uids);
            (groups, seen)
        });
        let Ok((back, seen)) = looked.await else { return };
        groups = back;
        let grace = Span(i64::try_from(config.borrow().kubernetes.rebind_within.as_millis()).unwrap_or(i64::MAX));
        let group = |uid: &str| seen.get(uid).copied().unwrap_or(Group::Unseen);
        let acts = bind::decide(&leases, &cluster, group, grace, now());
        let mut refusals = BTreeSet::new();
        for act in acts {
            if let Act::Refuse { pod, reason } = &act {
                let key = (pod.clone(), reason.message.clone());
                if !refused.contains(&key) {
                    tracing::warn!(pod = reason.subject, reason = reason.code.word(), "{}", reason.message);
                    kubernetes.tell(told(&reason.subject, pod, "LeaseNotBound", &reason.message));
                }
                refusals.insert(key);
            } else {
                admission.act(act).await;
            }
        }
        refused = refusals;
        if config.borrow().admission.time_budget == TimeBudget::End {
            evict_overdue(&leases, &kubernetes, &mut asked).await;
        }
        if cancel.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            return;
        }
    }
}

/// An event for a pod that is called `NAMESPACE/NAME`.
fn told(pod: &str, uid: &str, reason: &str, note: &str) -> Told {
    let (namespace, name) = pod.split_once('/').unwrap_or(("", pod));
    let pod = Some((namespace.to_owned(), name.to_owned(), uid.to_owned()));
    Told { pod, reason: reason.to_owned(), note: note.to_owned(), bad: true }
}

fn pod_of(lease: &Lease) -> Option<(&str, &str, &str)> {
    match &lease.holder {
        Some(Holder::Pod { namespace, name, uid }) => Some((namespace, name, uid)),
        _ => None,
    }
}

/// Asks for the eviction of pods whose time is over, once, and again where that was refused.
async fn evict_overdue(leases: &[Arc<Lease>], kubernetes: &Kubernetes, asked: &mut BTreeMap<LeaseId, Instant>) {
    let overdue = |lease: &&Arc<Lease>| lease.ends_at.is_some_and(|at| at < now()) && lease.unheld_since.is_none();
    asked.retain(|id, _| leases.iter().any(|lease| lease.id == *id));
    for lease in leases.iter().filter(overdue) {
        let Some((namespace, name, uid)) = pod_of(lease) else { continue };
        if asked.get(&lease.id).is_some_and(|at| at.elapsed() < EVICT_AGAIN) {
            continue;
        }
        let drained = lease.was_told(Code::ModeDrain);
        let reason = if drained { Code::ModeDrain } else { Code::TimeBudgetExceeded }.word();
        match kubernetes.evict(namespace, name, uid).await {
            Ok(()) => {
                tracing::warn!(lease = %lease.id, namespace, name, reason, "its pod is evicted");
                let note = format!("the time of lease {} is over: {reason}", lease.id);
                kubernetes.tell(told(&format!("{namespace}/{name}"), uid, "TimeOver", &note));
            }
            Err(error) => {
                tracing::warn!(lease = %lease.id, namespace, name, reason, error, "its pod is not evicted; tried again");
            }
        }
        asked.insert(lease.id.clone(), Instant::now());
    }
}

impl Admission {
    async fn act(&self, act: Act) {
        match act {
            Act::Bind { lease, holder, controller } => {
                tracing::info!(%lease, ?holder, "bound to its pod");
                self.tell(Command::BindPod { lease, holder, controller }).await;
            }
            Act::Wait(lease) => self.tell(Command::Unheld(lease)).await,
            Act::End(lease, None) => self.gone(vec![lease]).await,
            Act::End(lease, Some(ended)) => {
                if let Err(error) = self.ended_in_pod(lease, ended).await {
                    tracing::warn!(%error, "the ledger did not take the end of a build; tried again soon");
                }
            }
            Act::Refuse { .. } => {}
        }
    }

    /// Ends a lease as its pod did.
    async fn ended_in_pod(&self, id: LeaseId, ended: Ended) -> Result<Lease, super::WriterError> {
        let over =
            self.read(|ledger| ledger.lease(&id).is_some_and(|lease| lease.ends_at.is_some_and(|at| at < now())));
        let outcome = match ended.end {
            _ if ended.succeeded => Outcome::Succeeded,
            // Evicted by us at its budget: the ledger says so.
            stoker_core::sizing::PodEnd::Evicted if !over => Outcome::Evicted,
            _ => Outcome::Failed,
        };
        if over && !ended.succeeded {
            self.gone(vec![id.clone()]).await;
            return self.lease_now(&id);
        }
        let told = super::Told { outcome, exit_code: ended.exit_code, usage: None, pod: ended.end };
        let outcome = self.outcome(&id, &told).await;
        self.lease_reply(Command::Release { lease: id, outcome, exit_code: ended.exit_code, usage: None }).await
    }

    fn lease_now(&self, id: &LeaseId) -> Result<Lease, super::WriterError> {
        let found = self.read(|ledger| ledger.lease(id).map(|lease| Lease::clone(lease)));
        found.ok_or_else(|| super::WriterError::Refused(stoker_core::admission::Refused::NoLease(id.clone())))
    }
}
