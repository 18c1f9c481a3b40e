//! A node that is kept for a pod that others pass: smaller ones always fit somewhere, and a large one would wait for ever.

use alloc::string::{String, ToString};

use super::node::{Fits, Node};
use super::{Farm, Wanted};
use crate::quantity::Resource;

impl Farm {
    /// Keeps the full node that lacks least for a pod: nothing else is placed there until it is let go. Looks at all.
    pub fn keep(&mut self, wanted: &Wanted) -> Option<String> {
        let full = self.nodes.iter().filter(|(_, node)| !node.kept && node.takes(wanted) == Fits::Full);
        let best = full.max_by_key(|(_, node)| part_free(node, wanted))?.0.to_string();
        self.with(&best, |node| node.kept = true);
        Some(best)
    }

    /// A node is kept no longer.
    pub fn let_go(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|node| node.kept) {
            self.with(name, |node| node.kept = false);
        }
    }

    /// Whether it is worth while to keep a node for a pod any longer: it tells, and is full or has room by now.
    #[must_use]
    pub fn may_take(&self, name: &str, wanted: &Wanted) -> bool {
        self.nodes.get(name).is_some_and(|node| matches!(node.takes(wanted), Fits::Now | Fits::Full))
    }

    /// Whether the node that is kept for a pod has room for it now.
    #[must_use]
    pub fn takes(&self, name: &str, wanted: &Wanted) -> bool {
        self.nodes.get(name).is_some_and(|node| node.takes(wanted) == Fits::Now)
    }
}

/// Of what is wanted so much is free, in thousandths, by what is scarcest.
fn part_free(node: &Node, wanted: &Wanted) -> u128 {
    let (free, size) = (node.free(), wanted.amounts());
    let part = |resource: Resource| {
        (u128::from(free.get(resource)) * 1000).checked_div(u128::from(size.get(resource))).unwrap_or(1000).min(1000)
    };
    Resource::LEDGER.into_iter().map(part).min().unwrap_or(0)
}
