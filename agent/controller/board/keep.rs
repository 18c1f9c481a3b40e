//! A node for a pod that others pass. Small ones always find some room: a large one would wait for ever beside them.

use std::time::{Duration, Instant};

use stoker_core::placement::{Choice, Wanted};

use super::Board;
use crate::controller::tell::Told;

/// Of so many nodes one is kept; one in any case, where there are several.
const ONE_OF: usize = 20;
/// For longer a node is kept for nobody: what runs there does not end.
const KEPT_MAX: Duration = Duration::from_secs(3600);
/// For whom none was found, or was kept in vain, none is looked for until then.
const AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1800));

impl Board {
    /// The node for a pod: the one that is kept for it, or any.
    pub(super) fn choose(&mut self, uid: &str, wanted: &Wanted) -> Option<Choice> {
        let kept = self.kept.get(uid).map(|(node, _)| node.clone());
        if let Some(node) = kept.filter(|node| self.farm.takes(node, wanted)) {
            self.let_go(uid);
            return Some(Choice { node, warm: false });
        }
        let found = self.farm.choose(wanted);
        match found {
            Some(_) => self.let_go(uid),
            None => self.pass(uid, wanted),
        }
        found
    }

    /// It finds no room. In turn, so that the first of those whom others pass has the first node.
    fn pass(&mut self, uid: &str, wanted: &Wanted) {
        let memory = self.memory.entry(uid.to_owned()).or_default();
        let (since, placed) = *memory.waits.get_or_insert_with(|| (Instant::now(), self.placed));
        let is_passed = self.placed > placed && since.elapsed() >= self.options.keep_after;
        let may = memory.no_keep_before.is_none_or(|at| at <= Instant::now());
        let nodes = self.farm.count().1;
        let full = nodes < 2 || self.kept.len() >= (nodes / ONE_OF).max(1);
        if !is_passed || !may || full || self.keeps == 0 || self.kept.contains_key(uid) {
            return;
        }
        self.keeps -= 1;
        memory.no_keep_before = Some(Instant::now() + AGAIN.0);
        let (Some(pod), Some(node)) = (self.pods.get(uid), self.farm.keep(wanted)) else { return };
        tracing::info!(pod = pod.shown(), node, "others pass it: a node is kept for it");
        let note =
            format!("others were placed while it found no room: nothing else goes to {node} until it fits there");
        self.teller.tell(pod, Told { reason: "NodeKept", note, bad: false });
        self.kept.insert(uid.to_owned(), (node, Instant::now()));
    }

    /// Nothing is kept for a pod any more.
    fn let_go(&mut self, uid: &str) {
        if let Some((node, _)) = self.kept.remove(uid) {
            self.farm.let_go(&node);
        }
    }

    /// What is kept in vain is for all again.
    pub(super) fn let_go_old(&mut self) {
        let still = |uid: &str, node: &str, since: Instant| {
            let pod = self.pods.get(uid).filter(|pod| pod.gated && !pod.skip)?;
            let sized = self.memory.get(uid).and_then(|memory| memory.sized);
            let wanted = pod.asks.as_ref().ok()?.sized(sized).wanted;
            (since.elapsed() <= KEPT_MAX && self.farm.may_take(node, &wanted)).then_some(())
        };
        let old = self.kept.iter().filter(|(uid, (node, since))| still(uid, node, *since).is_none());
        for (uid, since) in old.map(|(uid, (_, since))| (uid.clone(), *since)).collect::<Vec<_>>() {
            self.let_go(&uid);
            let pause = if since.elapsed() > KEPT_MAX { AGAIN.1 } else { AGAIN.0 };
            self.memory.entry(uid).or_default().no_keep_before = Some(Instant::now() + pause);
        }
    }
}
