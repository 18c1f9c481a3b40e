//! The cluster's own hands: what a scheduler and the kubelets do with a pod once its gate is gone. It goes to the node that
//! its affinity names, its volume binds its lease there, it builds for a while, ends, and is deleted.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stoker_core::admission::Refused;

use super::agent::Simulated;
use super::objects::{is_gated, lease_of, node_of, text};
use crate::support::api_server::ApiServer;
use crate::support::chance::Chance;

/// Until what could not be done is tried again.
const AGAIN: Duration = Duration::from_millis(300);

/// What befell one pod.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) created: Instant,
    pub(crate) ungated: Option<Instant>,
    /// The node that its affinity named when its gate went.
    pub(crate) node: String,
    pub(crate) bound: Option<String>,
    pub(crate) over: bool,
}

/// What must not be, and was seen.
pub(crate) type Wrongs = Arc<Mutex<Vec<String>>>;

/// What is to be done with a pod at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Schedule,
    Bind,
    End,
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// A build, at least and at most.
    pub(crate) builds: (Duration, Duration),
    /// One pod in so many is scheduled only after so long: as when its image or its node keeps it waiting.
    pub(crate) late: (u64, Duration),
}

pub(crate) struct Hands {
    pub(crate) agents: HashMap<String, Arc<Simulated>>,
    pub(crate) pace: Pace,
    pub(crate) wrongs: Wrongs,
    lives: Mutex<HashMap<String, Life>>,
    chance: Mutex<Chance>,
}

impl Hands {
    pub(crate) fn new(agents: &[Arc<Simulated>], pace: Pace, wrongs: &Wrongs, chance: Chance) -> Arc<Self> {
        Arc::new(Self {
            agents: agents.iter().map(|agent| (agent.name.clone(), Arc::clone(agent))).collect(),
            pace,
            wrongs: Arc::clone(wrongs),
            lives: Mutex::default(),
            chance: Mutex::new(chance),
        })
    }

    pub(crate) fn lives(&self) -> MutexGuard<'_, HashMap<String, Life>> {
        self.lives.lock().unwrap()
    }

    fn wrong(&self, what: String) {
        self.wrongs.lock().unwrap().push(what);
    }

    /// Follows the pods for as long as the runtime lives.
    pub(crate) async fn follow(self: Arc<Self>, api: Arc<ApiServer>) {
        let (mut versions, mut seen) = (api.versions(), 0);
        let mut jobs: BTreeMap<(tokio::time::Instant, u64), (String, Job)> = BTreeMap::new();
        let mut serial = 0;
        loop {
            let (changes, until) = api.since("pods", seen);
            seen = until;
            let due = tokio::time::Instant::now();
            let mut next: Vec<_> = changes
                .iter()
                .filter_map(|(kind, pod)| self.seen(kind, pod))
                .map(|(uid, after)| (uid, Job::Schedule, after))
                .collect();
            let later = jobs.split_off(&(due, u64::MAX));
            for (uid, job) in std::mem::replace(&mut jobs, later).into_values() {
                next.extend(self.work(&api, &uid, job).map(|(job, after)| (uid, job, after)));
            }
            for (uid, job, after) in next {
                serial += 1;
                jobs.insert((due + after, serial), (uid, job));
            }
            let wake = jobs.first_key_value().map_or(due + Duration::from_secs(3600), |((at, _), _)| *at);
            tokio::select! {
                () = tokio::time::sleep_until(wake) => {}
                changed = versions.changed() => if changed.is_err() { return },
            }
        }
    }

    /// What is new of a pod: that it is there, that its gate is gone.
    fn seen(&self, kind: &str, pod: &Value) -> Option<(String, Duration)> {
        let uid = text(pod, "/metadata/uid").to_owned();
        let mut lives = self.lives();
        if kind == "DELETED" {
            if let Some(life) = lives.get_mut(&uid) {
                life.over = true;
            }
            return None;
        }
        let life = lives.entry(uid.clone()).or_insert_with(|| Life {
            name: text(pod, "/metadata/name").to_owned(),
            namespace: text(pod, "/metadata/namespace").to_owned(),
            created: Instant::now(),
            ungated: None,
            node: String::new(),
            bound: None,
            over: false,
        });
        if is_gated(pod) {
            if life.ungated.is_some() {
                self.wrong(format!("the gate of {} came back", life.name));
            }
            return None;
        }
        let named = node_of(pod).unwrap_or_default();
        if life.ungated.is_some() {
            if named != life.node {
                self.wrong(format!("{} was placed on {} and then on {named:?}", life.name, life.node));
            }
            return None;
        }
        life.ungated = Some(Instant::now());
        life.node = named;
        if !self.agents.contains_key(&life.node) || lease_of(pod).is_empty() {
            self.wrong(format!("{} goes nowhere: {}", life.name, pod["metadata"]["annotations"]));
            return None;
        }
        let (one_in, late) = self.pace.late;
        let is_late = one_in > 0 && self.chance.lock().unwrap().below(one_in) == 0;
        Some((uid, if is_late { late } else { Duration::ZERO }))
    }

    /// One thing for one pod; what is next, and when.
    fn work(&self, api: &ApiServer, uid: &str, job: Job) -> Option<(Job, Duration)> {
        let life = self.lives().get(uid).cloned()?;
        let agent = &self.agents[&life.node];
        if life.over {
            if let (Some(lease), Job::End) = (&life.bound, job) {
                agent.end(lease);
            }
            return None;
        }
        let pod = api.get("pods", &life.namespace, &life.name)?;
        match job {
            // A node that is away takes no pods.
            Job::Schedule if !agent.answers() => Some((Job::Schedule, AGAIN)),
            Job::Schedule => {
                api.change("pods", &life.namespace, &life.name, |pod| pod["spec"]["nodeName"] = json!(life.node));
                Some((Job::Bind, Duration::ZERO))
            }
            Job::Bind if !agent.answers() => Some((Job::Bind, AGAIN)),
            Job::Bind => {
                let lease = lease_of(&pod).to_owned();
                let whose = agent.request_of(&lease);
                if whose.as_ref().is_some_and(|request| !request.starts_with(&format!("gate-{uid}-"))) {
                    self.wrong(format!("{} was given {lease}, which is {whose:?}", life.name));
                }
                let bound = match agent.bind(&lease, (&life.namespace, &life.name, uid)) {
                    Ok(()) => Some(lease),
                    Err(Refused::BoundToAnother(_)) => {
                        self.wrong(format!("lease {lease} of {} is another pod's", life.name));
                        None
                    }
                    // It ran out, or was lost with the journal: the volume asks for one itself, as without a gate.
                    Err(_) => agent.own(&pod),
                };
                let Some(bound) = bound else { return Some((Job::Bind, AGAIN)) };
                if let Some(life) = self.lives().get_mut(uid) {
                    life.bound = Some(bound);
                }
                let (least, most) = self.pace.builds;
                let more = (most - least).as_millis() as u64;
                Some((Job::End, least + Duration::from_millis(self.chance.lock().unwrap().below(more.max(1)))))
            }
            Job::End if !agent.runs() => Some((Job::End, AGAIN)),
            Job::End => {
                agent.end(life.bound.as_deref().unwrap_or_default());
                api.delete("pods", &life.namespace, &life.name);
                None
            }
        }
    }
}
