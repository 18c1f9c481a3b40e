//! One node: what it told, what was asked of it since, and whether a pod fits there.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{WARM, Wanted};
use crate::cluster::Taint;
use crate::quantity::{Amounts, Resource, Timestamp};
use crate::reason::Code;

/// What a node has room for, as it told.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Room {
    /// Something may start now.
    pub accepts: bool,
    /// CPU and memory of the largest build while only small ones start.
    pub small_only: Option<Amounts>,
    /// For one more build.
    pub free: Amounts,
    /// What never fits is judged against it; parts that are 0 are not known.
    pub budget: Amounts,
    /// Nothing runs there: one build within the budget starts whatever CPU and memory are free.
    pub idle: bool,
    /// So many pods more; unset: no matter.
    pub pods_free: Option<u64>,
    /// The keys of the repositories that are there.
    pub mirrors: Arc<[Arc<str>]>,
    /// The requests whose leases live there, and which they are.
    pub grants: BTreeMap<String, String>,
    /// What the scheduler goes by; unset: not known.
    pub facts: Option<(BTreeMap<String, String>, Vec<Taint>)>,
    /// Why nothing may start.
    pub reasons: Vec<Code>,
}

/// What was asked of a node in our name and is not told back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) size: Amounts,
    /// When it was granted; unset: it may be.
    pub(super) granted: Option<Timestamp>,
}

/// What is free of each part in thousandths of the budget, the scarcest first. Of two whose scarcest is the same, as the
/// free room of a disk that all nodes share, the next scarcer decides.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Headroom([u16; 4]);

impl Headroom {
    /// What it is worth where the repository is, or is not.
    pub(super) fn worth(self, warm: bool) -> u16 {
        let [scarcest, ..] = self.0;
        scarcest.saturating_add(if warm { WARM } else { 0 })
    }
}

#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) room: Room,
    /// When it was told; unset: it is away.
    pub(super) told: Option<Timestamp>,
    pub(super) asked: BTreeMap<String, Asked>,
    /// Sizes from this one on were refused since the room was told.
    pub(super) refused: Option<Amounts>,
    /// Its answers cannot be understood.
    pub(super) doubted: bool,
    /// For one that others passed: nothing else goes there.
    pub(super) kept: bool,
    /// Where it stands.
    pub(super) rank: Headroom,
    pub(super) change: u64,
}

impl Node {
    pub(super) fn asked(&self) -> Amounts {
        self.asked.values().fold(Amounts::default(), |sum, asked| sum.plus(asked.size))
    }

    pub(super) fn free(&self) -> Amounts {
        self.room.free.less(self.asked())
    }

    /// Nothing where nothing is taken.
    pub(super) fn headroom(&self) -> Headroom {
        if !self.room.accepts || self.doubted || self.told.is_none() {
            return Headroom::default();
        }
        let (free, budget) = (self.free(), self.room.budget);
        let mut parts = Resource::LEDGER.map(|resource| {
            let budget = u128::from(budget.get(resource));
            let part = (u128::from(free.get(resource)) * 1000).checked_div(budget).unwrap_or(1000).min(1000);
            u16::try_from(part).unwrap_or(1000)
        });
        parts.sort_unstable();
        Headroom(parts)
    }

    /// Whether nothing speaks against a pod but the taints that the cluster gives a node for its state (cordoned, not
    /// ready), of which it says itself that it takes nothing.
    pub(super) fn is_shut_by_its_state(&self, wanted: &Wanted) -> bool {
        let Some((labels, taints)) = self.room.facts.as_ref().filter(|_| !self.room.accepts) else { return false };
        let is_lasting = |taint: &&Taint| !taint.key.starts_with("node.kubernetes.io/");
        let lasting: Vec<Taint> = taints.iter().filter(is_lasting).cloned().collect();
        wanted.selector.holds(labels, &lasting)
    }

    /// What it is to a pod for which it is not kept.
    pub(super) fn fits(&self, wanted: &Wanted) -> Fits {
        match self.takes(wanted) {
            Fits::Now if self.kept => Fits::Full,
            fits => fits,
        }
    }

    /// What it is to a pod for which it may be kept.
    pub(super) fn takes(&self, wanted: &Wanted) -> Fits {
        let size = wanted.amounts();
        if self.told.is_none() {
            return Fits::Away;
        }
        if self.room.facts.as_ref().is_some_and(|(labels, taints)| !wanted.selector.holds(labels, taints)) {
            return Fits::Other;
        }
        let beyond = |limit: Amounts, resource: Resource| size.get(resource) > limit.get(resource);
        let budget = self.room.budget;
        if Resource::LEDGER.into_iter().any(|resource| budget.get(resource) > 0 && beyond(budget, resource)) {
            return Fits::TooSmall;
        }
        let small = self.room.small_only;
        let too_large = small.is_some_and(|small| beyond(small, Resource::Cpu) || beyond(small, Resource::Memory));
        let asked = u64::try_from(self.asked.len()).unwrap_or(u64::MAX);
        if !self.room.accepts || self.doubted || too_large || self.room.pods_free.is_some_and(|pods| pods <= asked) {
            return Fits::Closed;
        }
        let refused = |refused: Amounts| Resource::LEDGER.into_iter().all(|part| size.get(part) >= refused.get(part));
        let free = self.free();
        // The first alone: the node itself lets it in whatever its soft figures say.
        let alone = self.room.idle && self.asked.is_empty();
        let soft = |resource: Resource| alone && matches!(resource, Resource::Cpu | Resource::Memory);
        let full = Resource::LEDGER.into_iter().any(|resource| !soft(resource) && beyond(free, resource));
        if full || self.refused.is_some_and(refused) { Fits::Full } else { Fits::Now }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fits {
    Now,
    Full,
    Closed,
    TooSmall,
    Other,
    Away,
}
