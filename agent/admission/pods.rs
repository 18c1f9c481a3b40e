//! What pods do to leases: they bind them, and end them.
//!
//! The core decides from the published view of the cluster and from the pods' control groups; here its acts are done. A
//! pod whose time budget is used up is evicted: no signal of ours reaches it, and the kubelet gives it the grace that it
//! asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::admission::{Command, Holder, Lease, LeaseState};
use stoker_core::cluster::Ended;
use stoker_core::cluster::bind::{self, Act, Group, Seen};
use stoker_core::identity::LeaseId;
use stoker_core::quantity::{Resource, Span};
use stoker_core::reason::Code;
use stoker_core::sizing::{Outcome, PodEnd};
use tokio::task::JoinSet;
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

/// So many at once.
const EVICTIONS_MAX: usize = 8;

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
    let mut groups = Groups { meter: PodGroups::new(&host_root), seen: BTreeMap::new(), at: None };
    let mut evictions = Evictions::default();
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
        let Some(looked) = groups.look(&leases).await else { return };
        groups = looked;
        let (rebind_within, ends) = {
            let config = config.borrow();
            (config.kubernetes.rebind_within, config.admission.time_budget == TimeBudget::End)
        };
        let decide = |groups: &Groups| {
            bind::decide(
                &leases,
                &Seen {
                    cluster: &cluster,
                    group: &|uid| groups.seen.get(uid).copied().unwrap_or(Group::Unseen),
                    held_before: &|lease, uid| admission.held_before(lease, uid),
                    grace: Span(i64::try_from(rebind_within.as_millis()).unwrap_or(i64::MAX)),
                    now: now(),
                },
            )
        };
        let mut acts = decide(&groups);
        if acts.iter().any(|act| matches!(act, Act::End { .. } | Act::Wait(_))) {
            // By what is there now: it may have begun to run since the last look.
            groups.at = None;
            let Some(looked) = groups.look(&leases).await else { return };
            groups = looked;
            acts = decide(&groups);
        }
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
        if ends && cluster.away_since.is_none() {
            evictions.ask(&leases, &kubernetes);
        }
        if cancel.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            return;
        }
    }
}

/// What there was of the pods' groups at the last look.
struct Groups {
    meter: PodGroups,
    seen: BTreeMap<String, Group>,
    at: Option<Instant>,
}

impl Groups {
    /// Looks where that is due: pods may change a hundred times a second, and a look is some files for each.
    async fn look(mut self, leases: &[Arc<Lease>]) -> Option<Self> {
        if self.at.is_some_and(|at| at.elapsed() < EVERY) {
            return Some(self);
        }
        let uids: Vec<String> = leases.iter().filter_map(|lease| Some(pod_of(lease)?.2.to_owned())).collect();
        let looked = tokio::task::spawn_blocking(move || {
            self.seen = self.meter.look(uids);
            self.at = Some(Instant::now());
            self
        });
        looked.await.ok()
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

/// Evictions that were asked for.
#[derive(Default)]
struct Evictions {
    /// When last, and whether that was heard.
    asked: BTreeMap<LeaseId, (Instant, bool)>,
    running: JoinSet<(LeaseId, bool)>,
}

impl Evictions {
    /// Asks for those of pods whose time is over: once, and again where that was refused.
    fn ask(&mut self, leases: &[Arc<Lease>], kubernetes: &Kubernetes) {
        while let Some(done) = self.running.try_join_next() {
            if let Ok((lease, was_heard)) = done {
                self.asked.insert(lease, (Instant::now(), was_heard));
            }
        }
        self.asked.retain(|id, _| leases.iter().any(|lease| lease.id == *id));
        let overdue = |lease: &&Arc<Lease>| lease.ends_at.is_some_and(|at| at < now()) && lease.unheld_since.is_none();
        for lease in leases.iter().filter(overdue) {
            let is_due = self.asked.get(&lease.id).is_none_or(|(at, heard)| !heard && at.elapsed() >= EVICT_AGAIN);
            if is_due && self.running.len() < EVICTIONS_MAX && pod_of(lease).is_some() {
                self.asked.insert(lease.id.clone(), (Instant::now(), false));
                self.running.spawn(evict(Arc::clone(lease), kubernetes.clone()));
            }
        }
    }
}

async fn evict(lease: Arc<Lease>, kubernetes: Kubernetes) -> (LeaseId, bool) {
    let id = lease.id.clone();
    let Some((namespace, name, uid)) = pod_of(&lease) else { return (id, true) };
    let drained = lease.was_told(Code::ModeDrain);
    let reason = if drained { Code::ModeDrain } else { Code::TimeBudgetExceeded }.word();
    let evicted = kubernetes.evict(namespace, name, uid).await;
    match &evicted {
        Ok(()) => {
            tracing::warn!(lease = %id, namespace, name, reason, "its pod is evicted");
            let had = Resource::Time.show(u64::try_from(lease.sizing.size.time_budget.0).unwrap_or(0));
            let note = match drained {
                true => format!("the time of lease {id} is over: {reason}: the node is drained"),
                false => format!("the time of lease {id} is over: {reason}: it had {had}; declare more `time`"),
            };
            kubernetes.tell(told(&format!("{namespace}/{name}"), uid, "TimeOver", &note));
        }
        Err(error) => {
            tracing::warn!(lease = %id, namespace, name, reason, error, "its pod is not evicted; tried again");
        }
    }
    (id, evicted.is_ok())
}

impl Admission {
    async fn act(&self, act: Act) {
        match act {
            Act::Bind { lease, holder, controller } => {
                tracing::info!(%lease, ?holder, "bound to its pod");
                self.tell(Command::Bind { lease, holder, controller }).await;
            }
            Act::Wait(lease) => self.tell(Command::Unheld(lease)).await,
            // Somebody may have bound it to the next one meanwhile.
            Act::End { lease, pod, .. } if !self.is_held_by(&lease, &pod) => {
                tracing::debug!(%lease, pod, "its pod ended, and another has it");
            }
            Act::End { lease, ended: None, .. } => self.gone(vec![lease]).await,
            Act::End { lease, ended: Some(ended), .. } => {
                if let Err(error) = self.ended_in_pod(lease, ended).await {
                    tracing::warn!(%error, "the ledger did not take the end of a build; tried again soon");
                }
            }
            Act::Refuse { .. } => {}
        }
    }

    /// Whether a live lease is held by the pod of this uid.
    fn is_held_by(&self, lease: &LeaseId, uid: &str) -> bool {
        let is = |lease: &Lease| lease.live() && pod_of(lease).is_some_and(|(_, _, of)| of == uid);
        self.read(|ledger| ledger.lease(lease).is_some_and(|lease| is(lease)))
    }

    /// Whether a lease was held by it, and released by whom it was for.
    fn held_before(&self, lease: &str, uid: &str) -> bool {
        let is =
            |lease: &Lease| lease.state == LeaseState::Released && pod_of(lease).is_some_and(|(_, _, of)| of == uid);
        let Ok(lease) = LeaseId::try_from(lease.to_owned()) else { return false };
        self.read(|ledger| ledger.lease(&lease).is_some_and(|lease| is(lease)))
    }

    /// Ends a lease as its pod did.
    async fn ended_in_pod(&self, id: LeaseId, ended: Ended) -> Result<Lease, super::WriterError> {
        let over =
            self.read(|ledger| ledger.lease(&id).is_some_and(|lease| lease.ends_at.is_some_and(|at| at < now())));
        let outcome = match ended.end {
            _ if ended.succeeded => Outcome::Succeeded,
            // Evicted by us at its budget: the ledger says so.
            PodEnd::Evicted if !over => Outcome::Evicted,
            _ => Outcome::Failed,
        };
        // What was deleted did not end by itself, whatever its processes made of the signal.
        if ended.end == PodEnd::Deleted || (over && !ended.succeeded) {
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
