//! The nodes and their room.
//!
//! Nodes stand in the order of their headroom (what is scarcest, then what is next), all of them and those that have a repository: the best for a pod is the
//! first on which it fits, nearly always at the front. What fits nowhere is remembered by its shape, with the state of
//! the farm for which that was found: only nodes that changed since are looked at again.
//!
//! `node`: one of them, and what fits there. `keep`: a node for a pod that others pass. `why`: why there is none.

mod keep;
mod node;
mod why;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::select::Selector;
use crate::quantity::{Amounts, Resource, Span, Timestamp};
pub use node::Room;
use node::{Asked, Fits, Headroom, Node};
pub use why::Why;

/// What a repository that is there is worth, in thousandths of what is scarcest on a node.
pub const WARM: u16 = 250;
/// A preference is worth a look at so many.
const WARM_MAX: usize = 64;
/// After a grant its node tells of it within this, or it has ended again.
const TOLD_WITHIN: Span = Span::seconds(5);
/// Shapes that fit nowhere and are remembered.
const SHAPES_MAX: usize = 256;

/// What a pod wants.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// CPU, memory, disk; parts that are 0 are not known.
    pub size: [u64; 4],
    /// The key of its repository; empty: none.
    pub mirror: String,
    /// The nodes that it may go to.
    pub selector: Arc<Selector>,
    /// Only this one: it was bound to it before.
    pub only: Option<String>,
}

impl Wanted {
    /// CPU, memory, disk bytes and inodes as its size has them.
    #[must_use]
    pub const fn size_of(amounts: Amounts) -> [u64; 4] {
        [amounts.cpu_millis, amounts.memory_bytes, amounts.disk_bytes, amounts.disk_inodes]
    }

    /// What it asks for.
    #[must_use]
    pub const fn amounts(&self) -> Amounts {
        let [cpu_millis, memory_bytes, disk_bytes, disk_inodes] = self.size;
        Amounts { cpu_millis, memory_bytes, disk_bytes, disk_inodes }
    }
}

/// The node for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its name.
    pub node: String,
    /// It has the repository.
    pub warm: bool,
}

type Ranked = BTreeSet<(Reverse<Headroom>, Arc<str>)>;

/// All nodes.
#[derive(Debug, Default)]
pub struct Farm {
    nodes: BTreeMap<Arc<str>, Node>,
    ranked: Ranked,
    warm: BTreeMap<Arc<str>, Ranked>,
    changes: BTreeSet<(u64, Arc<str>)>,
    change: u64,
    /// How many tell.
    telling: usize,
    nowhere: BTreeMap<Wanted, u64>,
}

impl Farm {
    /// A node told its room.
    pub fn told(&mut self, name: &str, room: Room, now: Timestamp) {
        let mirrors = match self.nodes.get(name).map(|node| &node.room.mirrors).filter(|known| **known == room.mirrors)
        {
            Some(known) => Arc::clone(known),
            // The name of a repository is kept once, however many nodes have it.
            None => {
                let known = |mirror: &Arc<str>| Some(Arc::clone(self.warm.get_key_value(mirror)?.0));
                room.mirrors.iter().map(|mirror| known(mirror).unwrap_or_else(|| Arc::clone(mirror))).collect()
            }
        };
        let room = Room { mirrors, ..room };
        self.with(name, |node| {
            let known = &room.grants;
            node.asked.retain(|id, asked| {
                !known.contains_key(id) && asked.granted.is_none_or(|at| now.since(at) <= TOLD_WITHIN)
            });
            (node.room, node.told, node.refused) = (room, Some(now), None);
        });
    }

    /// A node says nothing any more. What was asked of it stays asked.
    pub fn away(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|node| node.told.is_some()) {
            self.with(name, |node| node.told = None);
        }
    }

    /// A node is no longer one.
    pub fn gone(&mut self, name: &str) {
        let Some((name, node)) = self.nodes.remove_entry(name) else { return };
        self.telling = self.telling.saturating_sub(usize::from(node.told.is_some()));
        self.changes.remove(&(node.change, Arc::clone(&name)));
        let at = (Reverse(node.rank), name);
        self.ranked.remove(&at);
        self.cool(&node.room.mirrors, &at);
    }

    /// Nodes that told nothing for so long say nothing.
    pub fn expire(&mut self, now: Timestamp, after: Span) {
        let old = |node: &Node| node.told.is_some_and(|at| now.since(at) > after);
        let silent: Vec<Arc<str>> =
            self.nodes.iter().filter(|(_, node)| old(node)).map(|(name, _)| Arc::clone(name)).collect();
        silent.iter().for_each(|name| self.away(name));
    }

    /// A node is asked for so much by this name: that is not free any more.
    pub fn asked(&mut self, name: &str, request_id: &str, size: Amounts) {
        let told = self.nodes.get(name).is_some_and(|node| node.room.grants.contains_key(request_id));
        if !told {
            self.with(name, |node| {
                node.asked.insert(request_id.to_string(), Asked { size, granted: None });
            });
        }
    }

    /// It was granted; its node will tell.
    pub fn granted(&mut self, name: &str, request_id: &str, now: Timestamp) {
        if let Some(asked) = self.nodes.get_mut(name).and_then(|node| node.asked.get_mut(request_id)) {
            asked.granted = Some(now);
        }
    }

    /// It was not granted, or given back. `too_large`: nothing of that size is, until the node tells its room again.
    pub fn free(&mut self, name: &str, request_id: &str, too_large: Option<Amounts>) {
        if self.nodes.contains_key(name) {
            self.with(name, |node| {
                node.asked.remove(request_id);
                // One of nothing would be one of all.
                let too_large = too_large.filter(|size| *size != Amounts::default());
                node.refused = too_large.or(node.refused);
            });
        }
    }

    /// The lease that a node tells of by a request.
    #[must_use]
    pub fn lease(&self, name: &str, request_id: &str) -> Option<&str> {
        let node = self.nodes.get(name).filter(|node| node.told.is_some())?;
        node.room.grants.get(request_id).map(String::as_str)
    }

    /// A node's answers cannot be understood: it is chosen for nobody until they can.
    pub fn doubt(&mut self, name: &str, doubted: bool) {
        if self.nodes.get(name).is_some_and(|node| node.doubted != doubted) {
            self.with(name, |node| node.doubted = doubted);
        }
    }

    /// Whether a node can be asked now.
    #[must_use]
    pub fn hears(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| node.told.is_some())
    }

    /// How many nodes there are, and how many of them tell.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        (self.nodes.len(), self.telling)
    }

    /// The best node for a pod; it is for the caller to say that it was [`asked`](Self::asked).
    pub fn choose(&mut self, wanted: &Wanted) -> Option<Choice> {
        if let Some(only) = &wanted.only {
            let fits = self.nodes.get(only.as_str()).is_some_and(|node| node.fits(wanted) == Fits::Now);
            return fits.then(|| self.chosen(only, wanted));
        }
        // Where it is does not matter for whether it fits somewhere.
        let shape = Wanted { mirror: String::new(), ..wanted.clone() };
        let found = match self.nowhere.get(&shape) {
            Some(since) => self.changed_since(*since, wanted),
            None => self.best(wanted),
        };
        match found {
            Some(name) => {
                self.nowhere.remove(&shape);
                Some(self.chosen(&name, wanted))
            }
            None => {
                if self.nowhere.len() >= SHAPES_MAX && !self.nowhere.contains_key(&shape) {
                    self.nowhere.pop_first();
                }
                self.nowhere.insert(shape, self.change);
                None
            }
        }
    }

    fn chosen(&self, name: &str, wanted: &Wanted) -> Choice {
        let warm = self.warm.get(&*wanted.mirror).zip(self.nodes.get_key_value(name));
        let warm = warm.is_some_and(|(warm, (name, node))| warm.contains(&(Reverse(node.rank), Arc::clone(name))));
        Choice { node: name.to_string(), warm }
    }

    /// The first that fits, of the first so many.
    fn first(&self, ranked: &Ranked, wanted: &Wanted, at_most: usize) -> Option<(Headroom, Arc<str>)> {
        let fits = |name: &Arc<str>| self.nodes.get(name).is_some_and(|node| node.fits(wanted) == Fits::Now);
        ranked.iter().take(at_most).find(|(_, name)| fits(name)).map(|(rank, name)| (rank.0, Arc::clone(name)))
    }

    fn best(&self, wanted: &Wanted) -> Option<Arc<str>> {
        let warm = self.warm.get(&*wanted.mirror).and_then(|warm| self.first(warm, wanted, WARM_MAX));
        let any = self.first(&self.ranked, wanted, usize::MAX)?;
        match warm {
            Some((rank, name)) if rank.worth(true) >= any.0.worth(false) => Some(name),
            _ => Some(any.1),
        }
    }

    fn changed_since(&self, since: u64, wanted: &Wanted) -> Option<Arc<str>> {
        let warm = self.warm.get(&*wanted.mirror);
        let from = (since.saturating_add(1), Arc::from(""));
        let score = |name: &Arc<str>| {
            let node = self.nodes.get(name).filter(|node| node.fits(wanted) == Fits::Now)?;
            let here = warm.is_some_and(|warm| warm.contains(&(Reverse(node.rank), Arc::clone(name))));
            Some((node.rank.worth(here), here, node.rank, Reverse(Arc::clone(name))))
        };
        let best = self.changes.range(from..).filter_map(|(_, name)| score(name)).max()?;
        Some(best.3.0)
    }

    /// A node stands no more where its repositories are.
    fn cool(&mut self, mirrors: &[Arc<str>], at: &(Reverse<Headroom>, Arc<str>)) {
        for mirror in mirrors {
            if let Some(warm) = self.warm.get_mut(mirror) {
                warm.remove(at);
                if warm.is_empty() {
                    self.warm.remove(mirror);
                }
            }
        }
    }

    /// Changes a node, and puts it where it stands then. Its repositories are gone through where that is another place.
    fn with(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        self.change = self.change.saturating_add(1);
        let name = self.nodes.get_key_value(name).map_or_else(|| Arc::from(name), |(name, _)| Arc::clone(name));
        let node = self.nodes.entry(Arc::clone(&name)).or_default();
        let (was, changed, told) = ((Reverse(node.rank), Arc::clone(&name)), node.change, node.told.is_some());
        let before = Arc::clone(&node.room.mirrors);
        change(node);
        (node.rank, node.change) = (node.headroom(), self.change);
        let (at, tells) = ((Reverse(node.rank), Arc::clone(&name)), node.told.is_some());
        let mirrors = Arc::clone(&node.room.mirrors);
        self.telling = self.telling.saturating_add(usize::from(tells)).saturating_sub(usize::from(told));
        self.changes.remove(&(changed, Arc::clone(&name)));
        self.changes.insert((self.change, name));
        self.ranked.remove(&was);
        if was != at || !Arc::ptr_eq(&before, &mirrors) {
            self.cool(&before, &was);
            for mirror in mirrors.iter() {
                self.warm.entry(Arc::clone(mirror)).or_default().insert(at.clone());
            }
        }
        self.ranked.insert(at);
    }

    /// Whether no node has given away more than it told to be free, but for the first alone.
    #[must_use]
    pub fn is_within(&self) -> bool {
        let beyond = |asked: Amounts, limit: Amounts| {
            Resource::LEDGER.into_iter().any(|resource| asked.get(resource) > limit.get(resource))
        };
        self.nodes.values().all(|node| {
            let alone = node.room.idle && node.asked.len() <= 1;
            alone || node.asked.is_empty() || !beyond(node.asked(), node.room.free)
        })
    }
}
