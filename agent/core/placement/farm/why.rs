//! Why no node is for a pod.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::node::Fits;
use super::{Farm, Wanted};
use crate::quantity::Amounts;
use crate::reason::Code;

/// Why there is none.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Why {
    /// All that are known.
    pub nodes: usize,
    /// Those that say nothing.
    pub away: usize,
    /// Those that it may not go to.
    pub others: usize,
    /// Those whose whole budget is too small.
    pub too_small: usize,
    /// Those that take nothing now, or nothing so large.
    pub closed: usize,
    /// Those that are full.
    pub full: usize,
    /// What the largest has, part by part, of those that it may go to.
    pub largest: Amounts,
    /// What is free at most, part by part.
    pub free: Amounts,
    /// Why those that are closed are, most often first.
    pub reasons: Vec<Code>,
}

impl Why {
    /// It can never start as it is: every node that it may go to is known, and too small.
    #[must_use]
    pub const fn never(&self) -> bool {
        self.too_small > 0 && self.away == 0 && self.closed == 0 && self.full == 0
    }
}

impl Farm {
    /// Why no node is for a pod. Looks at all.
    #[must_use]
    pub fn why(&self, wanted: &Wanted) -> Why {
        let mut why = Why { nodes: self.nodes.len(), ..Why::default() };
        let mut reasons: BTreeMap<Code, usize> = BTreeMap::new();
        for (name, node) in &self.nodes {
            if wanted.only.as_ref().is_some_and(|only| **only != **name) {
                why.others = why.others.saturating_add(1);
                continue;
            }
            let fits = match node.fits(wanted) {
                Fits::Other if node.is_shut_by_its_state(wanted) => Fits::Closed,
                fits => fits,
            };
            let count = match fits {
                Fits::Now | Fits::Full => &mut why.full,
                Fits::Closed => {
                    for code in &node.room.reasons {
                        let count = reasons.entry(*code).or_default();
                        *count = count.saturating_add(1);
                    }
                    &mut why.closed
                }
                Fits::TooSmall => &mut why.too_small,
                Fits::Other => {
                    why.others = why.others.saturating_add(1);
                    continue;
                }
                Fits::Away => {
                    why.away = why.away.saturating_add(1);
                    continue;
                }
            };
            *count = count.saturating_add(1);
            why.largest = why.largest.max(node.room.budget);
            why.free = why.free.max(node.free());
        }
        let mut reasons: Vec<(usize, Code)> = reasons.into_iter().map(|(code, count)| (count, code)).collect();
        reasons.sort_by(|a, b| b.cmp(a));
        why.reasons = reasons.into_iter().take(4).map(|(_, code)| code).collect();
        why
    }
}
