//! Does a size fit: the inequality, and the reasons with the figures of both sides.
//!
//! `max(reserve + others, measured use) + held by leases + new <= capacity` for CPU and memory, where what leases use
//! is taken off the measured use first; on the pool, free bytes less the floor less what leases hold.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::pressure::{Gate, GateState};
use crate::quantity::{Amounts, Resource, Span, Timestamp};
use crate::reason::{Code, Reason};

use super::{LeaseState, Ledger, Mode};

/// The largest build that a narrow gate lets through: the first step of the ladder.
pub(super) const SMALL: (u64, u64) = (2_000, 4 << 30);

/// The soonest and the latest that a caller is told to ask again, before [`Facts::jitter`] adds up to a fifth.
const HINT: (i64, i64) = (5_000, 100_000);
/// The longest hint that is ever given.
pub(super) const HINT_MAX: Span = Span::seconds(120);

/// What is so at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// CPU and memory of the machine; bytes and inodes of the pool above its floor if it were empty, nothing while the
    /// pool is not there.
    pub capacity: Amounts,
    /// Kept for the control plane and the system (CPU and memory).
    pub reserve: Amounts,
    /// CPU and memory that are used now, by anyone.
    pub used: Amounts,
    /// Bytes and inodes of the pool that are free above its floor now.
    pub disk_free: Amounts,
    /// The gate.
    pub gate: Gate,
    /// The most live leases.
    pub leases_max: usize,
    /// The most tickets.
    pub tickets_max: usize,
    /// A lease ends with its time budget; else that is only reported.
    pub end_at_budget: bool,
    /// Random, 0 to 999: hints differ by it, so that callers do not return all at once.
    pub jitter: u16,
}

/// What the ledger adds up to, for people and for the gate.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// All there is.
    pub capacity: Amounts,
    /// Kept for the system.
    pub reserve: Amounts,
    /// Capacity less the reserve: what never fits is judged against it.
    pub budget: Amounts,
    /// What others use beyond the reserve.
    pub others: Amounts,
    /// What leases hold.
    pub leased: Amounts,
    /// The budget less others less leases: what must wait is judged against it.
    pub free: Amounts,
}

/// What a size is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// It may start.
    Now,
    /// Not now.
    Later {
        /// Why.
        reasons: Vec<Reason>,
        /// When to ask again.
        retry_after: Span,
    },
    /// Not on this node, ever.
    Never(Vec<Reason>),
}

impl Ledger {
    /// What is held, what is left.
    #[must_use]
    pub fn totals(&self, facts: &Facts) -> Totals {
        let (leased, measured) = self.live().fold((Amounts::default(), Amounts::default()), |(held, known), lease| {
            let size = lease.sizing.size.amounts;
            // Nobody uses a reservation yet. Where the use of a bound lease is not known, it is taken to be its size: the
            // rest is others'.
            let unknown = if lease.state == LeaseState::Reserved { Amounts::default() } else { size };
            (held.plus(lease.held()), known.plus(lease.in_use.unwrap_or(unknown)))
        });
        let others = facts.used.less(measured).less(facts.reserve);
        let budget = facts.capacity.less(facts.reserve);
        // On the pool all that lies there counts as others': what a lease has written is not told apart from it.
        let lies = budget.less(facts.disk_free);
        let others = Amounts { disk_bytes: lies.disk_bytes, disk_inodes: lies.disk_inodes, ..others };
        let free = budget.less(others).less(leased);
        let disk = facts.disk_free.less(leased);
        let free = Amounts { disk_bytes: disk.disk_bytes, disk_inodes: disk.disk_inodes, ..free };
        Totals { capacity: facts.capacity, reserve: facts.reserve, budget, others, leased, free }
    }

    /// Whether `wanted` may start now; `ahead` are the tickets before it.
    #[must_use]
    pub fn fit(&self, wanted: Amounts, ahead: usize, facts: &Facts, now: Timestamp) -> Fit {
        let totals = self.totals(facts);
        // A pool that is not there has no size: what never fits on it cannot be said, the gate tells what it waits for.
        let known = |r: &Resource| facts.capacity.get(*r) > 0;
        let never: Vec<Reason> =
            exceeding(wanted, totals.budget).filter(known).map(|r| never(r, wanted, &totals)).collect();
        if !never.is_empty() {
            return Fit::Never(never);
        }
        let idle = self.live_count() == 0;
        let mut reasons = self.held_back(wanted, idle, facts, now);
        let hard = !reasons.is_empty();
        // Nothing runs and no floor is crossed: one build starts, whatever the soft signals say. Otherwise a node whose
        // figures are a little off would wait for ever for a release that cannot come.
        if !idle || hard {
            reasons.extend(exceeding(wanted, totals.free).map(|r| self.held(r, wanted, &totals)));
        }
        if ahead > 0 {
            let message = format!("{ahead} {} before it", if ahead == 1 { "build waits" } else { "builds wait" });
            reasons.push(Reason::new(Code::QueueAhead, "queue", message));
        }
        if reasons.is_empty() { Fit::Now } else { Fit::Later { retry_after: self.hint(facts, now), reasons } }
    }

    /// What holds every build back: the mode, the gate, the bounds.
    fn held_back(&self, wanted: Amounts, idle: bool, facts: &Facts, now: Timestamp) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mode = self.mode_at(now);
        let code = match mode.mode {
            Mode::Accepting => None,
            Mode::Maintenance => Some((Code::ModeMaintenance, "the node is in maintenance")),
            Mode::Drain => Some((Code::ModeDrain, "the node is being drained")),
        };
        if let Some((code, words)) = code {
            let note = if mode.note.is_empty() { String::new() } else { format!(": {}", mode.note) };
            reasons.push(Reason { expected_until: mode.until, ..Reason::new(code, "node", format!("{words}{note}")) });
        }
        let small = wanted.cpu_millis <= SMALL.0 && wanted.memory_bytes <= SMALL.1;
        match facts.gate.state {
            GateState::Open => {}
            GateState::Narrow if small => {}
            // Stalls are no floor: with nothing running they are not ours, and waiting would not end them.
            _ if idle && facts.gate.soft_only() => {}
            GateState::Narrow | GateState::Shut => reasons.extend(facts.gate.reasons.iter().cloned()),
        }
        let live = self.live_count();
        if live >= facts.leases_max {
            let message = format!("{live} leases are live, at most {} may be", facts.leases_max);
            reasons.push(Reason::new(Code::LeasesFull, "node", message));
        }
        reasons
    }

    fn held(&self, resource: Resource, wanted: Amounts, totals: &Totals) -> Reason {
        let (wants, free) = (wanted.get(resource), totals.free.get(resource));
        let (code, rest) = match resource {
            Resource::Memory => (Code::MemoryHeld, "of the budget"),
            Resource::Cpu | Resource::Time => (Code::CpuHeld, "of the budget"),
            Resource::DiskBytes => (Code::DiskHeld, "of the pool"),
            Resource::DiskInodes => (Code::DiskInodesHeld, "of the pool"),
        };
        let message = format!(
            "{} wanted, {} free: leases hold {}, others {}, {rest} of {}",
            noun(resource, wants),
            resource.show(free),
            resource.show(totals.leased.get(resource)),
            resource.show(totals.others.get(resource)),
            resource.show(totals.budget.get(resource)),
        );
        let until = self.live().filter_map(|lease| lease.ends_at).min();
        Reason { expected_until: until, ..Reason::new(code, "node", message).about(resource, wants, free) }
    }

    /// When to ask again: at the first predicted release, within 5 to 120 s, and not all at once.
    fn hint(&self, facts: &Facts, now: Timestamp) -> Span {
        let next = self.live().map(|lease| lease.ends_at.unwrap_or(lease.bind_by)).min();
        let base = next.map_or(Span::seconds(30), |at| at.since(now)).0.clamp(HINT.0, HINT.1);
        Span(base.saturating_add(base.saturating_mul(i64::from(facts.jitter)) / 5_000)).min(HINT_MAX)
    }
}

fn exceeding(wanted: Amounts, limit: Amounts) -> impl Iterator<Item = Resource> {
    Resource::LEDGER.into_iter().filter(move |r| wanted.get(*r) > limit.get(*r))
}

/// `8 GiB of memory`, `2 CPU`.
fn noun(resource: Resource, value: u64) -> String {
    let shown = resource.show(value);
    match resource {
        Resource::Memory | Resource::DiskBytes => format!("{shown} of {}", resource.word()),
        Resource::Cpu | Resource::DiskInodes | Resource::Time => format!("{shown}"),
    }
}

fn never(resource: Resource, wanted: Amounts, totals: &Totals) -> Reason {
    let (wants, budget) = (wanted.get(resource), totals.budget.get(resource));
    let code = match resource {
        Resource::Memory => Code::MemoryBudget,
        Resource::Cpu | Resource::Time => Code::CpuBudget,
        Resource::DiskBytes => Code::DiskBudget,
        Resource::DiskInodes => Code::DiskInodesBudget,
    };
    let message = format!(
        "{} wanted, this node's whole budget is {} ({} less {} reserved): declare less, or ask a larger node",
        noun(resource, wants),
        resource.show(budget),
        resource.show(totals.capacity.get(resource)),
        resource.show(totals.reserve.get(resource)),
    );
    Reason::new(code, "node", message).about(resource, wants, budget)
}
