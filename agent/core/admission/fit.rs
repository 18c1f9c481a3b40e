//! Does a size fit: the inequality, and the reasons with the figures of both sides.
//!
//! `max(reserve, others) + held by leases + new <= capacity` for CPU and memory; on the pool, free bytes less the floor
//! less what leases hold and have not written yet.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::pressure::GateState;
use crate::quantity::{Amounts, Resource, Span, Timestamp};
use crate::reason::{Code, Reason};

use super::tenant::Cap;
use super::view::View;
use super::{Mode, Totals};

/// The soonest and the latest that a caller is told to ask again, before [`super::Facts::jitter`] adds up to a fifth.
const HINT: (i64, i64) = (5_000, 100_000);
/// The longest hint that is ever given.
pub(super) const HINT_MAX: Span = Span::seconds(120);

impl View<'_> {
    /// A pool that is not there has no size: what never fits on it cannot be said, the gate tells what it waits for.
    fn beyond_budget(&self, wanted: Amounts) -> impl Iterator<Item = Resource> {
        exceeding(wanted, self.totals.budget).filter(|r| self.facts.capacity.get(*r) > 0)
    }

    /// Caps that even the tenant's only build would cross.
    fn beyond_cap(&self, tenant: &str, wanted: Amounts) -> impl Iterator<Item = Cap> {
        self.facts.tenants.of(tenant).crossed(super::Holds::default(), wanted)
    }

    pub(super) fn never_fits(&self, tenant: &str, wanted: Amounts) -> bool {
        self.beyond_budget(wanted).next().is_some() || self.beyond_cap(tenant, wanted).next().is_some()
    }

    /// Why it can never start here.
    pub(super) fn never(&self, tenant: &str, wanted: Amounts) -> Vec<Reason> {
        let budget = self.beyond_budget(wanted).map(|r| never(r, wanted, &self.totals));
        let caps = self.beyond_cap(tenant, wanted).map(|cap| match cap {
            Cap::Leases(max) => {
                Reason::new(Code::TenantQuota, tenant, format!("tenant {tenant:?} may have {max} leases"))
            }
            Cap::Amount(resource, max) => {
                let (wants, max_shown) = (noun(resource, wanted.get(resource)), resource.show(max));
                let message = format!("{wants} wanted, tenant {tenant:?} may hold {max_shown} in all: declare less");
                Reason::new(Code::TenantQuota, tenant, message).about(resource, wanted.get(resource), max)
            }
        });
        budget.chain(caps).collect()
    }

    /// Nothing at all can start: the mode, a shut gate, the bound on leases.
    pub(super) fn nobody_starts(&self) -> bool {
        !self.is_let_in(Amounts::default(), true)
    }

    /// Whether [`Self::held_back`] is empty. `placed`: its pod is here already, and whether it may come is not asked.
    pub(super) fn is_let_in(&self, wanted: Amounts, placed: bool) -> bool {
        self.ledger.accepts(self.now)
            && self.ledger.live_count() < self.facts.leases_max
            && (placed || self.totals.scheduler.is_none_or(|room| room.pods > 0))
            && !self.gate_holds(wanted)
    }

    pub(super) fn gate_holds(&self, wanted: Amounts) -> bool {
        let small = self.facts.sizing.ladder.is_small(&wanted);
        match self.facts.gate.state {
            GateState::Open => false,
            GateState::Narrow if small => false,
            // Stalls are no floor: with nothing running they are not ours, and waiting would not end them.
            _ if self.ledger.live_count() == 0 && self.facts.gate.soft_only() => false,
            GateState::Narrow | GateState::Shut => true,
        }
    }

    /// What holds every build back: the mode, the gate, the bounds.
    pub(super) fn held_back(&self, wanted: Amounts, placed: bool) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mode = self.ledger.mode_at(self.now);
        let code = match mode.mode {
            Mode::Accepting => None,
            Mode::Maintenance => Some((Code::ModeMaintenance, "the node is in maintenance")),
            Mode::Drain => Some((Code::ModeDrain, "the node is being drained")),
        };
        if let Some((code, words)) = code {
            let note = if mode.note.is_empty() { String::new() } else { format!(": {}", mode.note) };
            reasons.push(Reason { expected_until: mode.until, ..Reason::new(code, "node", format!("{words}{note}")) });
        }
        if self.gate_holds(wanted) {
            reasons.extend(self.facts.gate.reasons.iter().cloned());
        }
        if !placed && self.totals.scheduler.is_some_and(|room| room.pods == 0) {
            let message =
                "the node takes no more pods, those of leases that wait for theirs counted: wait until some end";
            reasons.push(Reason::new(Code::NodeRequests, "node", message));
        }
        let live = self.ledger.live_count();
        if live >= self.facts.leases_max {
            let message = format!("{live} leases are live, at most {} may be", self.facts.leases_max);
            reasons.push(Reason::new(Code::LeasesFull, "node", message));
        }
        reasons
    }

    /// Of what there is not enough. Where nothing runs and no floor is crossed one build starts whatever the soft figures
    /// say: otherwise a node whose figures are a little off would wait for ever for a release that cannot come. A disk's
    /// free bytes are no soft figure.
    fn short_of(&self, wanted: Amounts, first_alone: bool, placed: bool) -> impl Iterator<Item = Resource> {
        // What the scheduler would not place would wait there for ever.
        let scheduler = self.totals.scheduler.filter(|_| !placed);
        let beyond = move |r: Resource| scheduler.is_some_and(|room| wanted.get(r) > room.free.get(r));
        let soft = move |r: &Resource| first_alone && matches!(r, Resource::Cpu | Resource::Memory) && !beyond(*r);
        exceeding(wanted, self.free_for(placed)).filter(move |r| !soft(r))
    }

    const fn free_for(&self, placed: bool) -> Amounts {
        if placed { self.totals.free_placed } else { self.totals.free }
    }

    /// Whether there is room for one that is let in.
    pub(super) fn has_room(&self, wanted: Amounts, placed: bool) -> bool {
        self.short_of(wanted, self.ledger.live_count() == 0, placed).next().is_none()
    }

    /// What others hold of what it wants.
    pub(super) fn no_room(&self, wanted: Amounts, first_alone: bool, placed: bool) -> Vec<Reason> {
        let short: Vec<Resource> = self.short_of(wanted, first_alone, placed).collect();
        if short.is_empty() {
            return Vec::new();
        }
        let until = self.reservation(wanted, None).map(|kept| kept.at);
        short.into_iter().map(|r| Reason { expected_until: until, ..self.held(r, wanted, placed) }).collect()
    }

    /// The caps of its tenant that it would cross now.
    pub(super) fn quota(&self, tenant: &str, wanted: Amounts) -> impl Iterator<Item = Cap> {
        let limits = self.facts.tenants.of(tenant);
        let none = super::Holds::default();
        let held = if limits.is_limited() { self.held_by(tenant) } else { none };
        limits.crossed(held, wanted)
    }

    pub(super) fn quota_reasons(&self, tenant: &str, wanted: Amounts) -> Vec<Reason> {
        let held = || self.held_by(tenant);
        let say = |cap: Cap| match cap {
            Cap::Leases(max) => {
                let message = format!("tenant {tenant:?} has {} leases, it may have {max}", held().leases);
                Reason::new(Code::TenantQuota, tenant, message)
            }
            Cap::Amount(resource, max) => {
                let (wants, has) = (wanted.get(resource), held().amounts.get(resource));
                let message = format!(
                    "{} wanted, tenant {tenant:?} holds {} of the {} that it may have",
                    noun(resource, wants),
                    resource.show(has),
                    resource.show(max),
                );
                Reason::new(Code::TenantQuota, tenant, message).about(resource, wants, max.saturating_sub(has))
            }
        };
        self.quota(tenant, wanted).map(say).collect()
    }

    fn held(&self, resource: Resource, wanted: Amounts, placed: bool) -> Reason {
        let totals = &self.totals;
        let (wants, free) = (wanted.get(resource), self.free_for(placed).get(resource));
        let scheduler = totals.scheduler.filter(|_| !placed && matches!(resource, Resource::Cpu | Resource::Memory));
        if let Some(room) = scheduler.filter(|room| room.free.get(resource) == free) {
            let message = format!(
                "{} wanted, the scheduler of the cluster has {} left here: pods asked for the rest, or will for leases \
                 that wait for theirs",
                noun(resource, wants),
                resource.show(room.free.get(resource)),
            );
            return Reason::new(Code::NodeRequests, "node", message).about(resource, wants, free);
        }
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
        Reason::new(code, "node", message).about(resource, wants, free)
    }
}

/// When to ask again: at the first predicted release, within 5 to 120 s, and not all at once.
pub(super) fn hint(release: Option<Timestamp>, jitter: u16, now: Timestamp) -> Span {
    let base = release.map_or(Span::seconds(30), |at| at.since(now)).0.clamp(HINT.0, HINT.1);
    Span(base.saturating_add(base.saturating_mul(i64::from(jitter)) / 5_000)).min(HINT_MAX)
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
