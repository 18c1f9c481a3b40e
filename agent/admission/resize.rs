//! Those who wait are sized anew where their runs, or the operator, taught better: what is granted next has the size that
//! it would get if it asked now. A few with each batch, for ten thousand may wait and each is written to the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use stoker_core::admission::{Command, Event, Facts, Tenants, Ticket};
use stoker_core::identity::TicketId;
use stoker_core::quantity::{Amounts, Timestamp};
use stoker_core::sizing::{HistorySummary, Policy, Sample, summary};

use super::journal::Entry;
use super::writer::Writer;

/// Tickets that are sized anew with one batch; the next batch goes on.
const AT_ONCE: usize = 512;

/// What sizes follow from, beside the runs.
#[derive(Debug, PartialEq)]
struct SizedBy {
    policy: Arc<Policy>,
    tenants: Arc<Tenants>,
    /// Of the budget, the disk in whole hundredths: what a pool has follows from how full it is, on some filesystems.
    budget: Amounts,
}

impl SizedBy {
    fn of(facts: &Facts) -> Self {
        let budget = facts.capacity.less(facts.reserve);
        let rough = |amount: u64| {
            amount.checked_ilog2().map_or(0, |bits| amount >> bits.saturating_sub(6) << bits.saturating_sub(6))
        };
        let budget = Amounts { disk_bytes: rough(budget.disk_bytes), disk_inodes: rough(budget.disk_inodes), ..budget };
        Self { policy: Arc::clone(&facts.sizing), tenants: Arc::clone(&facts.tenants), budget }
    }
}

/// How far it is. A new one sizes all anew.
#[derive(Debug, Default)]
pub(super) struct Resizing {
    by: Option<SizedBy>,
    /// Those whose turn comes yet.
    due: BTreeSet<TicketId>,
}

impl Resizing {
    /// Whether all that wait have the size that they would get now.
    pub(super) fn is_done(&self) -> bool {
        self.due.is_empty()
    }
}

impl Writer {
    /// Sizes some of those anew that wait: whose runs taught something, or all where the operator's table, the cap or the
    /// budget changed.
    pub(super) fn resize(&mut self, facts: &Facts, now: Timestamp, entries: &mut Vec<Entry>) {
        let by = SizedBy::of(facts);
        let all = self.resizing.by.as_ref() != Some(&by);
        let taught: BTreeSet<&str> = entries.iter().filter_map(Entry::taught).collect();
        if all || !taught.is_empty() {
            let is_due = |ticket: &&Arc<Ticket>| {
                let asked = ticket.request.asked.as_ref();
                asked.is_some_and(|asked| all || taught.contains(asked.history_key.as_str()))
            };
            self.resizing.due.extend(self.working.tickets().filter(is_due).map(|ticket| ticket.id.clone()));
        }
        self.resizing.by = Some(by);
        let some = std::iter::from_fn(|| self.resizing.due.pop_first()).take(AT_ONCE).collect();
        self.size(some, facts, now, entries);
    }

    /// Who asks is not granted a size of before, whenever its turn comes.
    pub(super) fn resize_for(&mut self, command: &Command, facts: &Facts, now: Timestamp, entries: &mut Vec<Entry>) {
        let request = match command {
            Command::Admit { request, .. } => &request.id,
            Command::Await(request) => request,
            _ => return,
        };
        if self.resizing.is_done() {
            return;
        }
        let ticket = self.working.ticket_of(request).map(|ticket| ticket.id.clone());
        if let Some(ticket) = ticket.filter(|ticket| self.resizing.due.remove(ticket)) {
            self.size(vec![ticket], facts, now, entries);
        }
    }

    fn size(&mut self, tickets: Vec<TicketId>, facts: &Facts, now: Timestamp, entries: &mut Vec<Entry>) {
        if tickets.is_empty() {
            return;
        }
        let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
        let mut histories: BTreeMap<&str, Option<HistorySummary>> = BTreeMap::new();
        let sized = tickets.iter().filter_map(|id| {
            let ticket = self.working.ticket(id)?;
            let asked = ticket.request.asked.as_ref()?;
            let key = asked.history_key.as_str();
            let history = *histories.entry(key).or_insert_with(|| {
                let known = published.history.of(key);
                let new = entries.iter().filter_map(|entry| match entry {
                    Entry::Sample(of, sample) if of == key => Some(*sample),
                    _ => None,
                });
                let samples: Vec<Sample> = known.chain(new).collect();
                (!samples.is_empty()).then(|| summary(&samples))
            });
            let room = super::room_of(facts, &ticket.request.scope.tenant);
            Some((ticket.id.clone(), asked.size(history.as_ref(), &facts.sizing, &room)))
        });
        let sized = sized.collect();
        drop(published);
        let (_, events) = self.working.decide(&Command::Resize(sized), facts, now);
        entries.extend(events.iter().cloned().map(Entry::Ledger));
        events.into_iter().for_each(|event: Event| self.working.apply(event));
    }
}
