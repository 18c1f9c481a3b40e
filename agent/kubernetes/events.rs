//! Events: what befell the node and its pods, for `kubectl describe`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::ANSWER_WITHIN;
use super::publish::cut;
use super::rights::{Missing, Refusals, Right};

/// Texts that are counted where they come again.
const RECORDERS_MAX: usize = 64;

/// What befell something, for its events.
#[derive(Debug, Clone)]
pub struct Told {
    /// Namespace, name and uid of a pod; unset: it befell the node.
    pub pod: Option<(String, String, String)>,
    /// In one word, in capitals at each beginning.
    pub reason: String,
    /// In words.
    pub note: String,
    /// Somebody should look.
    pub bad: bool,
}

/// Tells.
pub(super) struct Events {
    client: Client,
    reporter: Reporter,
    node: String,
    missing: Missing,
    /// One for each text: a recorder takes what has the same reason for the same event, and tells the first one's words
    /// again.
    recorders: BTreeMap<(String, String), Recorder>,
    /// The last that was refused, and when it is told again.
    unsaid: Option<(Told, Instant)>,
    refusals: Refusals,
}

impl Events {
    pub(super) fn new(client: Client, node: &str, missing: Missing) -> Self {
        let reporter = Reporter { controller: "stoker.build/agent".to_owned(), instance: Some(node.to_owned()) };
        let (recorders, refusals) = (BTreeMap::new(), Refusals::default());
        Self { client, reporter, node: node.to_owned(), missing, recorders, unsaid: None, refusals }
    }

    /// After how long [`Self::again`] has something to do.
    pub(super) fn due(&self) -> Option<Duration> {
        self.unsaid.as_ref().map(|(_, at)| at.saturating_duration_since(Instant::now()))
    }

    /// Tells again what was refused: the right may have come.
    pub(super) async fn again(&mut self) {
        if let Some((told, _)) = self.unsaid.take_if(|(_, at)| *at <= Instant::now()) {
            self.tell(told).await;
        }
    }

    pub(super) async fn tell(&mut self, told: Told) {
        let about = self.about(&told);
        let event = Event {
            type_: if told.bad { EventType::Warning } else { EventType::Normal },
            reason: told.reason.clone(),
            note: Some(cut(told.note.clone())),
            action: "Admission".to_owned(),
            secondary: None,
        };
        let recorder = self.recorder(&told);
        match tokio::time::timeout(ANSWER_WITHIN, recorder.publish(&event, &about)).await {
            Ok(Ok(())) => {
                self.missing.note(Right::Events, false);
                self.refusals.end();
            }
            Ok(Err(error)) => {
                if self.missing.note_error(Right::Events, &error) {
                    self.unsaid = Some((told, Instant::now() + self.refusals.pause()));
                }
                tracing::debug!(error = super::watch::words(&error), "an event is not written");
            }
            Err(_) => tracing::debug!("an event is not written: no answer"),
        }
    }

    fn recorder(&mut self, told: &Told) -> Recorder {
        if self.recorders.len() >= RECORDERS_MAX {
            self.recorders.clear();
        }
        let new = || Recorder::new(self.client.clone(), self.reporter.clone());
        self.recorders.entry((told.reason.clone(), told.note.clone())).or_insert_with(new).clone()
    }

    fn about(&self, told: &Told) -> ObjectReference {
        let of = |kind: &str, namespace: Option<&str>, name: &str, uid: &str| ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        match &told.pod {
            Some((namespace, name, uid)) => of("Pod", Some(namespace), name, uid),
            // By convention the uid of a node in its events is its name: so `kubectl describe` finds them.
            None => of("Node", None, &self.node, &self.node),
        }
    }
}
