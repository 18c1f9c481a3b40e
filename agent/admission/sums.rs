//! What the ledger adds up to, made once for each of its states and each look at what leases use: schedulers ask every
//! node for every build.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use stoker_core::admission::{Facts, InUse, Totals};
use stoker_core::identity::LeaseId;
use stoker_core::quantity::Amounts;

use super::writer::Published;

/// All that totals are made of: equal ones, equal totals.
#[derive(Debug)]
struct MadeOf {
    revision: u64,
    /// Compared by its place: it is kept here, so that no other comes to lie there.
    in_use: Arc<BTreeMap<LeaseId, InUse>>,
    /// Capacity, reserve, others, free disk.
    amounts: [Amounts; 4],
}

impl PartialEq for MadeOf {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision && Arc::ptr_eq(&self.in_use, &other.in_use) && self.amounts == other.amounts
    }
}

/// The totals that were made last. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct LastTotals(Arc<Mutex<Option<(MadeOf, Totals)>>>);

impl LastTotals {
    /// Those of what is published, by these facts.
    pub(super) fn of(&self, published: &Published, facts: &Facts) -> Totals {
        let amounts = [facts.capacity, facts.reserve, facts.others, facts.disk_free];
        let made_of = MadeOf { revision: published.revision, in_use: Arc::clone(&facts.in_use), amounts };
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
