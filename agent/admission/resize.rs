//! Those who wait are sized anew where their runs, or the operator, taught better: what is granted next has the size that
//! it would get if it asked now. A few with each batch, for ten thousand may wait and each is written to the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use stoker_core::admission::{Command, Event, Facts, Tenants, Ticket, Totals};
use stoker_core::identity::TicketId;
use stoker_core::quantity::{Amounts, Timestamp};
use stoker_core::sizing::{HistorySummary, Policy, Sample, summary};

use super::journal::Entry;
use super::room_of;
use super::writer::Writer;

/// Tickets that are sized anew with one batch; the next batch goes on.
const AT_ONCE: usize = 512;

/// How far what others leave of the pool moves until sizes are made anew: one part in so many. Less than the part that
/// derived sizes leave of it, so that none waits in vain meanwhile.
const POOL_STEP_PARTS: u64 = 64;

/// What sizes follow from, beside the runs.
#[derive(Debug)]
struct SizedBy {
    policy: Arc<Policy>,
    tenants: Arc<Tenants>,
    /// CPU and memory.
    budget: Amounts,
    /// Bytes and inodes that others leave of the pool.
    pool: Amounts,
}

impl SizedBy {
    fn of(facts: &Facts, totals: &Totals) -> Self {
        let (policy, tenants) = (Arc::clone(&facts.sizing), Arc::clone(&facts.tenants));
        let (budget, pool) = (facts.capacity.less(facts.reserve), totals.derivable());
        Self {
            policy,
            tenants,
            budget: Amounts { disk_bytes: 0, disk_inodes: 0, ..budget },
            pool: Amounts { cpu_millis: 0, memory_bytes: 0, ..pool },
        }
    }

    /// Whether all sizes may differ by it.
    fn is_other(&self, now: &Self) -> bool {
        self.policy != now.policy || self.tenants != now.tenants || self.budget != now.budget
    }

    /// Whether so much of the pool came or went that those of its size differ.
    fn pool_moved(&self, now: &Self) -> bool {
        let moved = |was: u64, is: u64| was.abs_diff(is) > was / POOL_STEP_PARTS;
        moved(self.pool.disk_bytes, now.pool.disk_bytes) || moved(self.pool.disk_inodes, now.pool.disk_inodes)
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
    /// Sizes some of those anew that wait: whose runs taught something, whose size follows what others leave of the pool
    /// where that changed, or all where the operator's table, the cap or the budget did.
    pub(super) fn resize(&mut self, facts: &Facts, now: Timestamp, entries: &mut Vec<Entry>) {
        let totals = self.working.totals(facts);
        let by = SizedBy::of(facts, &totals);
        let before = self.resizing.by.as_ref();
        let all = before.is_none_or(|before| before.is_other(&by));
        let pool = before.is_none_or(|before| before.pool_moved(&by));
        let taught: BTreeSet<&str> = entries.iter().filter_map(Entry::taught).collect();
        if all || pool || !taught.is_empty() {
            let is_due = |ticket: &&Arc<Ticket>| {
                let request = &ticket.request;
                let follows =
                    || pool && request.sizing.follows_the_pool(&room_of(&totals, facts, &request.scope.tenant));
                request
                    .asked
                    .as_ref()
                    .is_some_and(|asked| all || taught.contains(asked.history_key.as_str()) || follows())
            };
            self.resizing.due.extend(self.working.tickets().filter(is_due).map(|ticket| ticket.id.clone()));
        }
        if all || pool {
            self.resizing.by = Some(by);
        }
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
        let totals = self.working.totals(facts);
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
            let room = room_of(&totals, facts, &ticket.request.scope.tenant);
            Some((ticket.id.clone(), asked.size(history.as_ref(), &facts.sizing, &room)))
        });
        let sized = sized.collect();
        drop(published);
        let (_, events) = self.working.decide(&Command::Resize(sized), facts, now);
        entries.extend(events.iter().cloned().map(Entry::Ledger));
        events.into_iter().for_each(|event: Event| self.working.apply(event));
    }
}
