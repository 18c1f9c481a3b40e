//! A node for a pod that others pass. Small ones always find some room: a large one would wait for ever beside them.

use std::time::{Duration, Instant};

use stoker_core::placement::{Choice, Wanted};

use super::Board;
use crate::controller::tell::Told;

/// Of so many nodes one is kept; one in any case.
const ONE_OF: usize = 20;
/// For longer a node is kept for nobody: what runs there does not end.
const KEPT_MAX: Duration = Duration::from_secs(2 * 3600);

impl Board {
    /// The node for a pod: the one that is kept for it, or any. `place`: how many are to be asked for before it.
    pub(super) fn choose(&mut self, uid: &str, wanted: &Wanted, place: usize) -> Option<Choice> {
        let kept = self.kept.get(uid).map(|(node, _)| node.clone());
        if let Some(node) = kept.filter(|node| self.farm.takes(node, wanted)) {
            self.let_go(uid);
            return Some(Choice { node, warm: false });
        }
        let found = self.farm.choose(wanted);
        if found.is_some() {
            self.let_go(uid);
            return found;
        }
        let memory = self.memory.entry(uid.to_owned()).or_default();
        let (since, placed) = *memory.waits.get_or_insert_with(|| (Instant::now(), self.placed));
        let is_passed = self.placed > placed && since.elapsed() >= self.options.keep_after;
        let may_keep = (self.farm.count().1 / ONE_OF).max(1);
        if is_passed && place < may_keep && self.kept.len() < may_keep && !self.kept.contains_key(uid) {
            self.keep_for(uid, wanted);
        }
        None
    }

    fn keep_for(&mut self, uid: &str, wanted: &Wanted) {
        let (Some(pod), Some(node)) = (self.pods.get(uid), self.farm.keep(wanted)) else { return };
        tracing::info!(pod = pod.shown(), node, "others pass it: a node is kept for it");
        let note =
            format!("others were placed while it found no room: nothing else goes to {node} until it fits there");
        self.teller.tell(pod, Told { reason: "NodeKept", note, bad: false });
        self.kept.insert(uid.to_owned(), (node, Instant::now()));
    }

    /// Nothing is kept for a pod any more.
    pub(super) fn let_go(&mut self, uid: &str) {
        if let Some((node, _)) = self.kept.remove(uid) {
            self.farm.let_go(&node);
        }
    }

    /// What was kept in vain is for all again.
    pub(super) fn let_go_old(&mut self) {
        let over = |uid: &str, since: Instant| {
            since.elapsed() > KEPT_MAX || !self.pods.get(uid).is_some_and(|pod| pod.gated && !pod.skip)
        };
        let old: Vec<String> =
            self.kept.iter().filter(|(uid, (_, since))| over(uid, *since)).map(|(uid, _)| uid.clone()).collect();
        for uid in old {
            self.let_go(&uid);
            // It waits for a turn of this anew.
            self.memory.entry(uid).or_default().waits = None;
        }
    }
}
