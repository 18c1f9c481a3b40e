//! What a tenant may have, and what share of its turns it gets.

use alloc::collections::BTreeMap;
use alloc::string::String;

use crate::quantity::{Amounts, Resource};

/// What one tenant may have on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    /// Its share where several wait: one of weight 2 gets twice as much as one of weight 1.
    pub weight: u32,
    /// The most live leases.
    pub leases_max: Option<usize>,
    /// Thousandths of a core that its leases may hold together.
    pub cpu_millis_max: Option<u64>,
    /// Bytes of memory that its leases may hold together.
    pub memory_bytes_max: Option<u64>,
    /// The most tickets.
    pub tickets_max: Option<usize>,
}

impl Default for Tenant {
    /// An equal share, and no limit but the node's own.
    fn default() -> Self {
        Self { weight: 1, leases_max: None, cpu_millis_max: None, memory_bytes_max: None, tickets_max: None }
    }
}

/// All tenants: those with a name here, and what holds for each of the others.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tenants {
    /// By name.
    pub named: BTreeMap<String, Tenant>,
    /// Each one that has no name here.
    pub other: Tenant,
}

impl Tenants {
    /// What holds for the tenant of that name.
    #[must_use]
    pub fn of(&self, name: &str) -> &Tenant {
        self.named.get(name).unwrap_or(&self.other)
    }
}

/// What a tenant holds at this moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Holds {
    /// Live leases.
    pub leases: usize,
    /// What they hold.
    pub amounts: Amounts,
}

impl Holds {
    pub(super) fn and(self, amounts: Amounts) -> Self {
        Self { leases: self.leases.saturating_add(1), amounts: self.amounts.plus(amounts) }
    }
}

/// Why a tenant gets no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cap {
    Leases(usize),
    Amount(Resource, u64),
}

impl Tenant {
    /// Whether anything but the node holds it back.
    pub(super) const fn is_limited(&self) -> bool {
        self.leases_max.is_some() || self.cpu_millis_max.is_some() || self.memory_bytes_max.is_some()
    }

    /// As much of it as one build of the tenant may have.
    #[must_use]
    pub fn at_most(&self, budget: Amounts) -> Amounts {
        let within = |amount: u64, max: Option<u64>| max.map_or(amount, |max| amount.min(max));
        Amounts {
            cpu_millis: within(budget.cpu_millis, self.cpu_millis_max),
            memory_bytes: within(budget.memory_bytes, self.memory_bytes_max),
            ..budget
        }
    }

    const fn limits(&self) -> [(Resource, Option<u64>); 2] {
        [(Resource::Memory, self.memory_bytes_max), (Resource::Cpu, self.cpu_millis_max)]
    }

    /// The caps that `wanted` beside `held` would cross.
    pub(super) fn crossed(&self, held: Holds, wanted: Amounts) -> impl Iterator<Item = Cap> {
        let after = held.and(wanted);
        let leases = self.leases_max.filter(|max| after.leases > *max).map(Cap::Leases);
        let over = move |(resource, max): (Resource, Option<u64>)| {
            max.filter(|max| after.amounts.get(resource) > *max).map(|max| Cap::Amount(resource, max))
        };
        leases.into_iter().chain(self.limits().into_iter().filter_map(over))
    }
}
