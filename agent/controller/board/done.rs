//! What came of what was begun.

use std::time::{Duration, Instant};

use stoker_core::placement::Intent;

use super::{Asked, Board};
use crate::controller::act::Done;
use crate::controller::answer::{self, Kept, Refusal};
use crate::controller::tell::Told;
use crate::node::now;

/// After others wrote on a pod, the watch tells it within this.
const CHANGED: Duration = Duration::from_millis(250);
/// After an answer that nobody heard the same node is asked again.
const AGAIN: Duration = Duration::from_secs(3);
/// A pod that was refused so often is asked for at once; then less and less often.
const AT_ONCE: u32 = 3;
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A node that gave so many answers that say nothing, one after the other, is not chosen for a while.
const DOUBTED_AT: u32 = 2;
/// For how long, the first time and at most.
const DOUBT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// The reason by which a pod is told that it was to be deleted and is not.
pub(super) const NOT_DELETED: &str = "NotDeleted";

/// What is not understood of a node.
#[derive(Debug)]
pub(super) struct Doubt {
    /// How often one after the other.
    count: u32,
    pub(super) until: Instant,
}

impl Board {
    pub(super) fn done(&mut self, uid: &str, asked: Option<Asked>, done: Done) {
        self.acting.remove(uid);
        if let Some((node, _)) = &asked {
            self.asking.entry(node.clone()).and_modify(|count| *count = count.saturating_sub(1));
            self.asking.retain(|_, count| *count > 0);
        }
        let memory = self.memory.entry(uid.to_owned()).or_default();
        memory.said = None;
        let node = asked.as_ref().map(|(node, _)| node.clone()).unwrap_or_default();
        match done {
            Done::Placed(pod) => {
                self.face.count("placed");
                self.placed = self.placed.saturating_add(1);
                // The watch may have told already that its gate is gone.
                let is_first = !memory.ours;
                (memory.renewed, memory.refusals, memory.sized) = (Some(Instant::now()), 0, None);
                memory.waits = None;
                (memory.ours, memory.foreign, memory.ended) = (true, false, false);
                if let Some((node, request)) = &asked {
                    self.farm.granted(node, request, now());
                    tracing::info!(pod = pod.shown(), node, lease = pod.lease, "placed");
                    if is_first {
                        self.face.waited(now().since(pod.created).0);
                    }
                    let note = format!("placed on {node} with lease {}", pod.lease);
                    self.teller.tell(&pod, Told { reason: "Placed", note, bad: false });
                }
                self.trust(&node);
                self.line.served(uid, &pod.namespace);
                // Or it is on its node already.
                if self.pods.contains_key(uid) {
                    self.see(*pod);
                }
                return;
            }
            Done::Refused(refusal) => return self.refused(uid, asked, *refusal),
            Done::Unknown { why, doubt } => {
                self.face.count("unknown");
                tracing::warn!(pod = uid, node, why, "what became of a pod is not known; asked again");
                memory.not_before = Some(Instant::now() + AGAIN);
                let note = format!("{node} was asked for it, and says neither yes nor no: {why}; it is asked again");
                memory.said = Some(Told { reason: "NodeUnsure", note, bad: false });
                if doubt {
                    self.doubt(&node, 1);
                }
                // It may be granted: so much of the node's room stays taken.
                if self.pods.contains_key(uid) {
                    return;
                }
            }
            Done::Held(why) => {
                self.face.count("unknown");
                tracing::warn!(pod = uid, node, why, "a grant could not be written on its pod; tried again");
                memory.not_before = Some(Instant::now() + AGAIN);
                self.trust(&node);
                if self.pods.contains_key(uid) {
                    return;
                }
            }
            Done::Unwritten(why) => {
                self.face.count("unknown");
                tracing::warn!(pod = uid, why, "the API server did not take what is meant for a pod; tried again");
                memory.not_before = Some(Instant::now() + AGAIN);
            }
            Done::Forbidden(why) => {
                self.face.count("unknown");
                memory.not_before = Some(Instant::now() + REFUSED_PAUSE_MAX);
                let note = format!(
                    "the API server does not let the controller write on it: {why}; its role needs `patch` on pods, and no \
                     policy may be against that"
                );
                self.cannot(uid, Told { reason: "NotWritten", note, bad: true });
            }
            Done::Undeleted(why) => {
                self.face.count("unknown");
                let note = format!(
                    "its node is not for it any more, and the API server does not let the controller delete it: {why}; give \
                     its role `delete` on pods, or delete it yourself"
                );
                self.cannot(uid, Told { reason: NOT_DELETED, note, bad: true });
            }
            Done::Changed => {
                self.face.count("changed");
                memory.not_before = Some(Instant::now() + CHANGED); // until the watch tells it
            }
            Done::Skipped(pod) => {
                self.face.count("skipped");
                let note = "an operator lets it go: no node was asked, and no lease is kept for it".to_owned();
                self.teller.tell(&pod, Told { reason: "Skipped", note, bad: false });
                self.line.leave(uid);
                self.give_back(uid);
                return;
            }
        }
        if let Some((node, request)) = asked {
            self.farm.free(&node, &request, None);
        }
    }

    /// Tells what the API server forbids, now and while it is so.
    fn cannot(&mut self, uid: &str, told: Told) {
        self.memory.entry(uid.to_owned()).or_default().said = Some(told.clone());
        if let Some(pod) = self.pods.get(uid) {
            self.teller.tell(pod, told);
        }
    }

    fn refused(&mut self, uid: &str, asked: Option<Asked>, mut refusal: Refusal) {
        self.face.count("refused");
        let node = asked.as_ref().map(|(node, _)| node.clone()).unwrap_or_default();
        let said = refusal_told(&refusal, &node);
        tracing::debug!(pod = uid, why = said.note, "refused");
        let memory = self.memory.entry(uid.to_owned()).or_default();
        memory.settled = memory.settled.max(refusal.attempt);
        memory.refusals = memory.refusals.saturating_add(1);
        let own = if refusal.room && !refusal.never { Duration::ZERO } else { refusal.retry_after };
        memory.not_before = Some(Instant::now() + own.max(pause(memory.refusals)));
        if refusal.never || !refusal.room {
            memory.said = Some(said);
        }
        let known = self.pods.get(uid).and_then(|pod| pod.asks.as_ref().ok()).map(|asks| asks.wanted.amounts());
        let told = refusal.size.filter(|size| *size != stoker_core::quantity::Amounts::default());
        memory.sized = told.or(memory.sized);
        if let Some((node, request)) = &asked {
            self.farm.free(node, request, told.or(known).filter(|_| refusal.room));
        }
        match refusal.faulty {
            true => self.doubt(&node, DOUBTED_AT),
            false => self.trust(&node),
        }
        if let Some(seen) = refusal.seen.take().filter(|_| self.pods.contains_key(uid)) {
            self.see(*seen);
        }
    }

    /// Gives back what a node tells to have granted for a pod that goes without.
    fn give_back(&mut self, uid: &str) {
        if let Some(intent) = self.pods.get(uid).and_then(|pod| pod.intent.clone()) {
            self.take_back(uid, &intent);
        }
    }

    /// Gives back what a node tells to have granted in an attempt that is over.
    pub(super) fn take_back(&mut self, uid: &str, intent: &Intent) {
        let Some(pod) = self.pods.get(uid) else { return };
        let request = pod.request_id(intent.attempt);
        let lease = self.farm.lease(&intent.node, &request).map(str::to_owned);
        if let (Some(lease), Some((_, client))) = (lease, self.clients.get(&intent.node)) {
            let client = client.clone();
            self.releases.spawn(async move {
                answer::release(&client, &lease).await;
                None
            });
        }
        self.farm.free(&intent.node, &request, None);
    }

    /// A node's answers say something.
    fn trust(&mut self, node: &str) {
        if self.doubts.remove(node).is_some() {
            self.farm.doubt(node, false);
        }
    }

    fn doubt(&mut self, node: &str, by: u32) {
        let now = Instant::now();
        let doubt = self.doubts.entry(node.to_owned()).or_insert(Doubt { count: 0, until: now });
        if doubt.until > now {
            return; // it was asked before that was known
        }
        doubt.count = doubt.count.saturating_add(by);
        if doubt.count >= DOUBTED_AT {
            let doubled = (doubt.count - DOUBTED_AT).min(6);
            doubt.until = now + (DOUBT.0 * 2_u32.pow(doubled)).min(DOUBT.1);
            tracing::warn!(node, times = doubt.count, "its answers say nothing; no other pod goes there for a while");
            self.farm.doubt(node, true);
        }
    }

    /// Who was doubted for long enough may be tried again.
    pub(super) fn try_again(&mut self) {
        let now = Instant::now();
        let over = self.doubts.iter().filter(|(_, doubt)| doubt.count >= DOUBTED_AT && doubt.until <= now);
        for node in over.map(|(node, _)| node.clone()).collect::<Vec<_>>() {
            self.farm.doubt(&node, false);
        }
        // That a node is not heard ends no doubt before its time: it may be heard again in a second.
        self.doubts.retain(|node, doubt| doubt.until > now || self.nodes.values().any(|known| known == node));
    }

    pub(super) fn renewed(&mut self, uid: &str, lease: &str, kept: Kept) {
        let Some(pod) = self.pods.get(uid).filter(|pod| pod.lease == lease) else { return };
        let memory = self.memory.entry(uid.to_owned()).or_default();
        match (kept, &pod.intent) {
            (Kept::Lives, _) => memory.ours = true,
            (Kept::Unknown, _) | (_, None) => {}
            (Kept::Foreign, _) => self.foreign(uid),
            (Kept::NotThere, _) if !memory.ours => self.foreign(uid),
            // It ran out: the same node is asked for another.
            (Kept::Ended(attempt), Some(_)) => {
                (memory.settled, memory.ended, memory.ours) = (memory.settled.max(attempt), true, true);
            }
            (Kept::NotThere, Some(intent)) => {
                (memory.settled, memory.ended) = (memory.settled.max(intent.attempt), true);
            }
        }
    }

    pub(super) fn foreign(&mut self, uid: &str) {
        let Some(pod) = self.pods.get(uid).cloned() else { return };
        let note = format!("lease {} was not given for this pod: it is neither kept nor given back for it", pod.lease);
        self.teller.tell(&pod, Told { reason: "LeaseForeign", note, bad: true });
        self.memory.entry(uid.to_owned()).or_default().foreign = true;
    }
}

/// How long a pod that was refused so often waits.
fn pause(refusals: u32) -> Duration {
    match refusals.checked_sub(AT_ONCE + 1) {
        None => Duration::ZERO,
        Some(more) => Duration::from_secs(1 << more.min(5)).min(REFUSED_PAUSE_MAX),
    }
}

fn refusal_told(refusal: &Refusal, node: &str) -> Told {
    let reasons: Vec<String> =
        refusal.reasons.iter().map(|one| format!("{}: {}", one.code().as_str_name(), one.message)).collect();
    let why = if reasons.is_empty() { refusal.words.clone() } else { reasons.join("; ") };
    Told { reason: "Refused", note: format!("{node} says: {why}"), bad: refusal.never }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_often_waits_longer_and_never_for_long() {
        let pauses: Vec<u64> = [0, 1, 3, 4, 5, 8, 9, 100, u32::MAX].map(|count| pause(count).as_secs()).to_vec();
        assert_eq!(pauses, [0, 0, 0, 1, 2, 16, 30, 30, 30]);
    }
}
