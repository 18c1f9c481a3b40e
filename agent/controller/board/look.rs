//! A look at all pods: what can be done for each is begun, or it is told why not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stoker_core::placement::{Intent, Wanted};
use stoker_core::quantity::Resource;

use super::done::NOT_DELETED;
use super::{Board, Memory};
use crate::controller::answer;
use crate::controller::pod::{Asks, Pod};
use crate::controller::tell::{self, Told};
use crate::node::now;

/// Pods that are acted for at a time.
const ACTS_MAX: usize = 64;
/// Of these in any case so many of each tenant.
const ACTS_EACH: usize = 2;
/// And so many more of those that have their node, or that an operator lets go.
const ACTS_MORE: usize = 32;
/// Reservations that are renewed at a time.
const RENEWALS_MAX: usize = 256;
/// Pods for which a node to keep is looked for, in one look.
const KEEPS_MAX: usize = 4;
/// Reasons that are found by a look at all nodes, in one look at the pods.
const WHYS_MAX: usize = 64;
/// Who begins to lead waits so long for agents that have said nothing yet.
const HEAR_FIRST: Duration = Duration::from_secs(3);
/// A reservation is kept for a pod that the scheduler has not placed.
const RENEW_EVERY: Duration = Duration::from_secs(40);
/// A pod that was not deleted although it should be is deleted again after this.
const DELETED_AGAIN: Duration = Duration::from_secs(60);
/// A look at many pods stops after this, and the next goes on from there.
const LOOK_MAX: Duration = Duration::from_millis(100);
/// Acts that ask one node again whose answer was not understood, at a time: the others are free for other nodes.
const AGAIN_MAX: usize = 4;

fn shown(time: Duration) -> String {
    Resource::Time.show(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).to_string()
}

impl Board {
    /// Looks at all who wait, in turn, and begins what can be done.
    pub(super) fn look(&mut self) {
        let began = Instant::now();
        if began < self.next {
            return; // it is due still
        }
        self.is_due = false;
        if !self.actor.leading.is_on() || self.whole.len() < self.watches() {
            return;
        }
        // Who begins hears all agents first, as far as they speak: the best is not among the first alone.
        let (_, told) = self.farm.count();
        if told < self.agents.count() && self.actor.leading.lasts() < HEAR_FIRST {
            return;
        }
        // Those that have their node first: what is kept for them runs out, whoever else waits.
        let others = self.pods.values().filter(|pod| pod.skip || !pod.gated);
        let others: Vec<String> = others.map(|pod| pod.uid.clone()).filter(|uid| self.is_free(uid)).collect();
        others.iter().for_each(|uid| self.keep(uid));
        self.keeps = KEEPS_MAX;
        let order: Vec<String> = self.line.in_turn().map(str::to_owned).collect();
        let mut whys: BTreeMap<Wanted, Told> = BTreeMap::new();
        let begin = self.from.take().and_then(|from| order.iter().position(|uid| *uid == from)).unwrap_or(0);
        for uid in order.iter().skip(begin) {
            if self.acts.len() >= ACTS_MAX {
                break;
            }
            if began.elapsed() > LOOK_MAX {
                (self.from, self.is_due) = (Some(uid.clone()), true);
                break;
            }
            self.place(uid, &mut whys);
        }
        // However many wait, it does other things most of the time.
        let took = began.elapsed();
        self.next = began + took * 5;
        self.face.pass(took);
    }

    /// Whether somebody acts already for as many pods of a tenant as is fair: one whose repositories are slow does not keep
    /// all others waiting.
    fn has_its_share(&self, tenant: &str) -> bool {
        let share = (ACTS_MAX / self.line.tenants().max(2)).max(ACTS_EACH);
        self.acting.values().filter(|of| *of == tenant).count() >= share
    }

    fn is_free(&self, uid: &str) -> bool {
        let later = |memory: &Memory| memory.not_before.is_some_and(|at| at > Instant::now());
        !self.acting.contains_key(uid) && !self.memory.get(uid).is_some_and(later)
    }

    fn place(&mut self, uid: &str, whys: &mut BTreeMap<Wanted, Told>) {
        let Some(pod) = self.pods.get(uid) else { return };
        if let Err(why) = &pod.asks {
            self.teller.tell(pod, Told { reason: "BuildInvalid", note: why.clone(), bad: true });
            return;
        }
        if !self.is_free(uid) {
            if let Some(told) = self.memory.get(uid).and_then(|memory| memory.said.clone()) {
                self.teller.tell(pod, told);
            }
            return;
        }
        if self.has_its_share(&pod.namespace) {
            return;
        }
        let sized = self.memory.get(uid).and_then(|memory| memory.sized);
        let Ok(asks) = pod.asks.as_ref().map(|asks| asks.sized(sized)) else { return };
        let settled = self.memory.get(uid).map_or(0, |memory| memory.settled);
        // What was meant by whoever was before: that node is asked first, by the same name.
        let open = pod.intent.clone().filter(|intent| intent.attempt > settled);
        if let Some(intent) = open {
            let is_over = intent.is_over(now());
            if is_over {
                // Whatever that node gave has run out, but what it gave when it was asked again: it holds the pod no longer.
                self.take_back(uid, &intent);
                let memory = self.memory.entry(uid.to_owned()).or_default();
                memory.settled = memory.settled.max(intent.attempt);
            } else if self.farm.hears(&intent.node) {
                if self.asking.get(&intent.node).is_none_or(|count| *count < AGAIN_MAX) {
                    self.begin(uid, asks, intent);
                }
                return;
            } else {
                let note = format!(
                    "{} was asked for it and does not answer: another is asked when its grant has run out",
                    intent.node
                );
                self.teller.tell(pod, Told { reason: "NodeSilent", note, bad: false });
                return;
            }
        }
        let Some(pod) = self.pods.get(uid) else { return };
        let attempt = pod.intent.as_ref().map_or(0, |intent| intent.attempt).max(settled).saturating_add(1);
        // What others decide of it may be where it goes: room that is kept before that may be the wrong one.
        if !pod.other_gates.is_empty() {
            let note = format!("it is placed when the other gates are gone: {}", pod.other_gates.join(", "));
            self.teller.tell(pod, Told { reason: "GatedByOthers", note, bad: false });
            return;
        }
        match self.choose(uid, &asks.wanted) {
            Some(choice) => {
                self.face.count(if choice.warm { "warm" } else { "cold" });
                self.begin(uid, asks, Intent { node: choice.node, attempt, at: now() });
            }
            None => self.explain(uid, &asks.wanted, whys),
        }
    }

    fn explain(&mut self, uid: &str, wanted: &Wanted, whys: &mut BTreeMap<Wanted, Told>) {
        let Some(pod) = self.pods.get(uid) else { return };
        if !self.teller.is_due(uid) || (whys.len() >= WHYS_MAX && !whys.contains_key(wanted)) {
            return;
        }
        // Agents that were just found have not said anything yet.
        let (known, told) = self.farm.count();
        if told == 0 && known == 0 && self.actor.leading.is_young() {
            return;
        }
        let told = whys.entry(wanted.clone()).or_insert_with(|| tell::why(wanted, &self.farm.why(wanted)));
        self.teller.tell(pod, told.clone());
    }

    fn request_of(&self, uid: &str, attempt: u32) -> String {
        self.pods.get(uid).map(|pod| pod.request_id(attempt)).unwrap_or_default()
    }

    fn begin(&mut self, uid: &str, asks: Asks, intent: Intent) {
        let (Some(pod), Some((_, client))) = (self.pods.get(uid), self.clients.get(&intent.node)) else { return };
        let (pod, client, actor) = (pod.clone(), client.clone(), self.actor.clone());
        let request = pod.request_id(intent.attempt);
        let held = self.farm.lease(&intent.node, &request).map(str::to_owned);
        self.farm.asked(&intent.node, &request, asks.wanted.amounts());
        self.acting.insert(uid.to_owned(), pod.namespace.clone());
        *self.asking.entry(intent.node.clone()).or_default() += 1;
        let (uid, asked) = (uid.to_owned(), Some((intent.node.clone(), request)));
        self.acts.spawn(async move { (uid, asked, actor.place(pod, asks, intent, held, client).await) });
    }

    /// A pod that an operator lets go, or that has its node and is not there yet.
    fn keep(&mut self, uid: &str) {
        let Some(pod) = self.pods.get(uid) else { return };
        let may_act = self.acts.len() < ACTS_MAX + ACTS_MORE;
        if pod.gated {
            if !may_act {
                return;
            }
            let (actor, uid, pod) = (self.actor.clone(), uid.to_owned(), pod.clone());
            self.acting.insert(uid.clone(), pod.namespace.clone());
            self.acts.spawn(async move { (uid, None, actor.skip(pod).await) });
            return;
        }
        let Some(intent) = pod.intent.clone() else { return };
        // Whoever took its gate away, it was not let go with a lease: it is none of ours.
        if pod.skip || pod.lease.is_empty() {
            return;
        }
        let kept = Duration::from_millis(u64::try_from(now().since(intent.at).0).unwrap_or(0));
        let memory = self.memory.entry(uid.to_owned()).or_default();
        let renewed = memory.renewed.is_some_and(|at| at.elapsed() <= RENEW_EVERY);
        let hears = self.farm.hears(&intent.node);
        if memory.foreign {
            if self.teller.is_due(uid) {
                self.foreign(uid);
            }
            return;
        }
        if hears && renewed && !memory.ended && kept < self.options.keep_for {
            return; // there is nothing to be done for it
        }
        let pod = pod.clone();
        let Some((_, client)) = self.clients.get(&intent.node).filter(|_| self.farm.hears(&intent.node)) else {
            let since = *self.silent.entry(intent.node.clone()).or_insert_with(Instant::now);
            if since.elapsed() > self.options.gone_after && pod.pinned && may_act {
                let note = format!("node {} is silent for {}", intent.node, shown(self.options.gone_after));
                self.stuck(&pod, "NodeAway", &note);
            }
            return;
        };
        if kept >= self.options.keep_for {
            if pod.pinned && may_act {
                let note = format!(
                    "node {} was kept for it for {}, and the scheduler did not place it there (its own events say why); it is \
                     kept no longer",
                    intent.node,
                    shown(self.options.keep_for)
                );
                self.stuck(&pod, "NotScheduled", &note);
            }
            return;
        }
        if memory.ended {
            // Where its own words let it go elsewhere, another lease there would be for nobody.
            if let Some(asks) = pod.asks.as_ref().ok().filter(|_| pod.pinned && may_act).cloned() {
                self.regrant(uid, asks, intent);
            }
            return;
        }
        if !renewed && self.renewals.len() < RENEWALS_MAX {
            memory.renewed = Some(Instant::now());
            let (client, uid) = (client.clone(), uid.to_owned());
            self.renewals.spawn(async move {
                let kept = answer::renew(&client, &pod.uid, pod.lease.clone()).await;
                (uid, pod.lease, kept)
            });
        }
    }

    /// Asks the same node for another lease, or again for the one that it may have given.
    fn regrant(&mut self, uid: &str, asks: Asks, intent: Intent) {
        let settled = self.memory.get(uid).map_or(0, |memory| memory.settled);
        if intent.attempt > settled && !intent.is_over(now()) {
            self.begin(uid, asks, intent);
            return;
        }
        self.farm.free(&intent.node, &self.request_of(uid, intent.attempt), None);
        match self.farm.choose(&asks.wanted) {
            Some(_) => {
                let attempt = intent.attempt.max(settled).saturating_add(1);
                self.begin(uid, asks, Intent { attempt, at: now(), ..intent });
            }
            None => self.explain(uid, &asks.wanted, &mut BTreeMap::new()),
        }
    }

    /// A pod that does not come to its node. Where it may go cannot be changed any more: only another pod goes elsewhere.
    fn stuck(&mut self, pod: &Pod, reason: &'static str, why: &str) {
        let replace = self.options.replace && pod.replaceable;
        let remedy = match (replace, pod.replaceable) {
            (true, _) => "it is deleted, so that what controls it makes another",
            (false, true) => "delete it, and what controls it makes another (--replace does that by itself)",
            (false, false) => "delete it and make it again: where a pod may go cannot be changed any more",
        };
        // Where it may not be deleted, that is what it is told.
        let said = self.memory.get(&pod.uid).and_then(|memory| memory.said.clone());
        let told = Told { reason, note: format!("{why}: {remedy}"), bad: true };
        self.teller.tell(pod, said.filter(|said| replace && said.reason == NOT_DELETED).unwrap_or(told));
        if replace {
            let (actor, uid, pod) = (self.actor.clone(), pod.uid.clone(), pod.clone());
            self.acting.insert(uid.clone(), pod.namespace.clone());
            self.memory.entry(uid.clone()).or_default().not_before = Some(Instant::now() + DELETED_AGAIN);
            self.acts.spawn(async move { (uid, None, actor.replace(pod).await) });
        }
    }
}
