//! Rounds of losses: agents that fall silent, die and come back with or without their journal, a leader that is killed or
//! stopped, an API server that is away, slow or written to by others, pods that are deleted while they wait. After each
//! round all is well again, and what must be so is looked at.

use std::time::{Duration, Instant};

use serde_json::json;

use super::objects::{is_gated, text};
use super::{Farm, holds};
use crate::support::api_server::Health;
use crate::support::wait;

/// How the rounds go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rounds {
    pub(crate) pods: usize,
    /// Leaders are killed and stopped too, which lasts until another may lead; else they are told to end.
    pub(crate) kills: bool,
    /// How long things go wrong.
    pub(crate) window: Duration,
    /// As in the plan.
    pub(crate) bind_within: Duration,
    /// By when all pods have been placed and have ended, once all is well.
    pub(crate) settled_within: Duration,
}

/// One thing at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Pods(usize),
    Silence(usize),
    Kill(usize),
    KillLeader,
    StopLeader,
    EndLeader,
    GoOn,
    Api(Health),
    ApiAway,
    ApiBack,
    CutWatches,
    ForgetHistory,
    /// Somebody else writes to pods that wait.
    Touch,
    Delete,
}

/// What a round was like.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) words: Vec<String>,
    pub(crate) placed: usize,
    pub(crate) settled: Duration,
}

impl Farm {
    fn deeds(&mut self, rounds: &Rounds) -> Vec<(Duration, Deed)> {
        let window = rounds.window.as_millis() as u64;
        let agents = self.agents.len();
        let mut all = Vec::new();
        let mut at = |farm: &mut Self, deed| {
            let when = farm.chance.below(window);
            all.push((Duration::from_millis(when), deed));
        };
        for _ in 0..3 {
            at(self, Deed::Pods(rounds.pods / 3));
        }
        let lost = 1 + self.chance.below((agents / 5) as u64);
        for _ in 0..lost {
            let victim = self.chance.below(agents as u64) as usize;
            let deed = if self.chance.below(3) == 0 { Deed::Silence(victim) } else { Deed::Kill(victim) };
            at(self, deed);
        }
        match if rounds.kills { self.chance.below(8) } else { 4 + self.chance.below(2) } {
            0 | 1 => at(self, Deed::KillLeader),
            2 | 3 => {
                at(self, Deed::StopLeader);
                at(self, Deed::GoOn);
            }
            4 => at(self, Deed::EndLeader),
            _ => {}
        }
        match self.chance.below(10) {
            0 => at(self, Deed::Api(Health::Hangs)),
            1 => at(self, Deed::Api(Health::Status(500))),
            2 => at(self, Deed::Api(Health::Status(429))),
            3 => {
                at(self, Deed::ApiAway);
                at(self, Deed::ApiBack);
            }
            4 => at(self, Deed::CutWatches),
            5 => {
                at(self, Deed::ForgetHistory);
                at(self, Deed::CutWatches);
            }
            _ => {}
        }
        for _ in 0..self.chance.below(6) {
            at(self, Deed::Touch);
        }
        at(self, Deed::Delete);
        all.sort_by_key(|(when, _)| *when);
        all
    }

    fn do_deed(&mut self, deed: Deed) -> Option<String> {
        match deed {
            Deed::Pods(count) => {
                for _ in 0..count {
                    let cpu = 1 + self.chance.below(4);
                    self.add_pods(1, cpu);
                }
                None
            }
            Deed::Silence(victim) => {
                self.agents[victim].silence(true);
                None
            }
            Deed::Kill(victim) => {
                self.agents[victim].kill();
                None
            }
            Deed::KillLeader | Deed::StopLeader | Deed::EndLeader => {
                let leader = self.leader()?;
                let controller = &mut self.controllers[leader];
                if controller.is_stopped() || !controller.runs() {
                    return None;
                }
                match deed {
                    Deed::KillLeader => controller.kill(),
                    Deed::StopLeader => controller.stop(),
                    _ => controller.terminate(),
                }
                Some(format!("{deed:?} {}", controller.identity))
            }
            Deed::GoOn => {
                let stopped = self.controllers.iter_mut().find(|controller| controller.is_stopped())?;
                stopped.go_on();
                None
            }
            Deed::Api(health) => {
                self.api.set_health(health);
                Some(format!("API {health:?}"))
            }
            Deed::ApiAway => {
                self.api.go_away();
                Some("API away".to_owned())
            }
            Deed::ApiBack => {
                self.back();
                None
            }
            Deed::CutWatches => {
                self.api.cut_watches();
                Some("watches cut".to_owned())
            }
            Deed::ForgetHistory => {
                self.api.forget_history();
                Some("history forgotten".to_owned())
            }
            Deed::Touch | Deed::Delete => {
                let waiting: Vec<_> = self.pods().into_iter().filter(is_gated).collect();
                if waiting.is_empty() {
                    return None;
                }
                let pod = self.chance.pick(&waiting).clone();
                let (namespace, name) = (text(&pod, "/metadata/namespace"), text(&pod, "/metadata/name"));
                if deed == Deed::Delete {
                    self.api.delete("pods", namespace, name);
                } else if self.api.get("pods", namespace, name).is_some_and(|pod| is_gated(&pod)) {
                    let number = self.chance.below(1_000_000);
                    self.api.change("pods", namespace, name, |pod| {
                        pod["metadata"]["annotations"]["example.org/touched"] = json!(number.to_string());
                    });
                }
                None
            }
        }
    }

    fn back(&self) {
        if !self.api.listens() {
            self.api.come_back();
        }
        self.api.set_health(Health::Well);
    }

    /// All that was lost comes back.
    fn heal(&mut self, told: &mut Told) {
        self.back();
        let (mut silent, mut with, mut without) = (0, 0, 0);
        let on = self.runtime.as_ref().unwrap().handle().clone();
        for agent in &self.agents {
            if !agent.runs() {
                let with_journal = self.chance.below(3) != 0;
                agent.start(&on, with_journal);
                if with_journal { with += 1 } else { without += 1 }
            } else if !agent.answers() {
                agent.silence(false);
                silent += 1;
            }
        }
        for controller in &mut self.controllers {
            if controller.is_stopped() {
                controller.go_on();
            } else if !controller.runs() {
                let by_itself = controller.ended_by_itself();
                told.words.extend(by_itself.then(|| format!("{} ended by itself", controller.identity)));
                controller.kill();
                controller.start();
            }
        }
        told.words.push(format!("{silent} silent, {with} dead, {without} without their journal"));
    }

    /// When the time of all grants is over, nobody holds anything.
    #[track_caller]
    pub(crate) fn nothing_is_left(&self, rounds: &Rounds) {
        let gone = wait::holds_within(rounds.bind_within * 2, || holds::by_pod(&self.agents).is_empty());
        assert!(gone, "leases are left: {:#?}", self.left_over(Duration::ZERO));
    }

    /// One round, and what must be so after it.
    #[track_caller]
    pub(crate) fn round(&mut self, rounds: &Rounds) -> Told {
        let (began, mut told) = (Instant::now(), Told::default());
        let before = self.hands.lives().values().filter(|life| life.ungated.is_some()).count();
        for (when, deed) in self.deeds(rounds) {
            // Not a wait for something: when it happens is what was chosen.
            std::thread::sleep(when.saturating_sub(began.elapsed()));
            told.words.extend(self.do_deed(deed));
        }
        self.heal(&mut told);
        let healed = Instant::now();
        let over = wait::holds_within(rounds.settled_within, || self.pods().is_empty());
        let left = self.pods();
        assert!(
            over,
            "{} pods are left, as {:#}\nof {:?}\nleader {:?}\n{:?}",
            left.len(),
            left[0],
            left.iter().map(|pod| text(pod, "/metadata/name")).collect::<Vec<_>>(),
            self.leader(),
            told
        );
        told.settled = healed.elapsed();
        let left = self.left_over(rounds.bind_within);
        assert!(left.is_empty(), "{left:#?}");
        let wrongs = std::mem::take(&mut *self.wrongs.lock().unwrap());
        assert!(wrongs.is_empty(), "{wrongs:#?}\n{told:?}");
        told.placed = self.hands.lives().values().filter(|life| life.ungated.is_some()).count() - before;
        for event in self.api.all("events") {
            self.api.delete("events", text(&event, "/metadata/namespace"), text(&event, "/metadata/name"));
        }
        told
    }
}
