//! What the operator sets of sizes: the defaults of languages, the ladder, the cap, and what is called too much.

use serde::{Deserialize, Serialize};

use super::{Defaults, Ladder};
use crate::quantity::{Amounts, Resource, Span};

/// What the operator sets of sizes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What a build gets of which nothing is known but its language.
    pub defaults: Defaults,
    /// The sizes after a build ran out of memory.
    pub ladder: Ladder,
    /// The most that one build gets.
    pub cap: Cap,
    /// What declares too much.
    pub over_declared: OverDeclared,
}

impl Policy {
    /// The most that a build gets whose size is not declared, and that a retry goes up to: the node's budget, as far as
    /// the cap allows.
    #[must_use]
    pub fn room(&self, budget: &Amounts) -> Amounts {
        let cap = |resource| self.cap.of(resource).unwrap_or(u64::MAX);
        budget.min(Amounts {
            cpu_millis: cap(Resource::Cpu),
            memory_bytes: cap(Resource::Memory),
            disk_bytes: cap(Resource::DiskBytes),
            disk_inodes: cap(Resource::DiskInodes),
        })
    }
}

/// The most that one build gets, whatever the node has. Unset parts have no cap.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cap {
    /// Thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes on the pool.
    pub disk_bytes: Option<u64>,
    /// From binding to the end.
    pub time: Option<Span>,
}

impl Cap {
    /// In the unit of the resource.
    #[must_use]
    pub fn of(&self, resource: Resource) -> Option<u64> {
        match resource {
            Resource::Cpu => self.cpu_millis,
            Resource::Memory => self.memory_bytes,
            Resource::DiskBytes => self.disk_bytes,
            Resource::DiskInodes => None,
            Resource::Time => self.time.map(super::millis),
        }
    }

    /// Its name in the configuration.
    #[must_use]
    pub const fn field(resource: Resource) -> &'static str {
        match resource {
            Resource::Cpu => "sizing.cap.cpu",
            Resource::Memory => "sizing.cap.memory",
            Resource::DiskBytes | Resource::DiskInodes => "sizing.cap.disk",
            Resource::Time => "sizing.cap.time",
        }
    }
}

/// When a build declares too much: so many times what its runs lead to, after so many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverDeclared {
    /// 0: nobody is told.
    pub times: u32,
    /// Complete runs that must be known.
    pub runs: u32,
}

impl Default for OverDeclared {
    /// Twice what is needed keeps a build of the same size from starting. Five runs, so that one quick one says nothing.
    fn default() -> Self {
        Self { times: 2, runs: 5 }
    }
}

impl OverDeclared {
    /// Whether `declared` is that much more than what `runs` lead to. A little of a little is not worth a word; a time
    /// budget is a bound, and holds no room.
    #[must_use]
    pub fn holds(self, resource: Resource, declared: u64, leads_to: u64, runs: u32) -> bool {
        let worth = match resource {
            Resource::Cpu => 500,
            Resource::Memory => 512 * super::MIB,
            Resource::DiskBytes => 5 * super::GIB,
            Resource::DiskInodes | Resource::Time => return false,
        };
        let times = u64::from(self.times);
        times > 0
            && runs >= self.runs
            && declared >= leads_to.saturating_mul(times)
            && declared.saturating_sub(leads_to) >= worth
    }
}
