//! What the ledger adds up to, made once for each of its states and each look at what leases use: schedulers ask every
//! node for every build.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use stoker_core::admission::{Facts, InUse, Scheduler, Totals};
use stoker_core::cluster::Pods;
use stoker_core::identity::LeaseId;
use stoker_core::quantity::Amounts;

use super::writer::Published;

/// All that totals are made of: equal ones, equal totals.
#[derive(Debug)]
struct MadeOf {
    revision: u64,
    /// Compared by its place: it is kept here, so that no other comes to lie there.
    in_use: Arc<BTreeMap<LeaseId, InUse>>,
    /// Capacity, reserve, others, other pods, free disk.
    amounts: [Amounts; 5],
    /// Compared by its place too.
    pods: Option<Arc<Pods>>,
    scheduler: Option<Scheduler>,
    unlimited_is_node: bool,
}

impl PartialEq for MadeOf {
    fn eq(&self, other: &Self) -> bool {
        let same_pods = match (&self.pods, &other.pods) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        self.revision == other.revision
            && Arc::ptr_eq(&self.in_use, &other.in_use)
            && self.amounts == other.amounts
            && same_pods
            && self.scheduler == other.scheduler
            && self.unlimited_is_node == other.unlimited_is_node
    }
}

/// The totals that were made last. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct LastTotals(Arc<Mutex<Option<(MadeOf, Totals)>>>);

impl LastTotals {
    /// Those of what is published, by these facts.
    pub(super) fn of(&self, published: &Published, facts: &Facts) -> Totals {
        let amounts = [facts.capacity, facts.reserve, facts.others, facts.other_pods, facts.disk_free];
        let made_of = MadeOf {
            revision: published.revision,
            in_use: Arc::clone(&facts.in_use),
            amounts,
            pods: facts.pods.clone(),
            scheduler: facts.scheduler,
            unlimited_is_node: facts.unlimited_is_node,
        };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, totals)) = &*last
            && *of == made_of
        {
            return *totals;
        }
        let totals = published.ledger.totals(facts);
        *last = Some((made_of, totals));
        totals
    }
}
