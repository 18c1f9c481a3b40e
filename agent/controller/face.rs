//! `/livez`, `/readyz` and `/metrics`.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// Seconds from the beginning of a pod to its node.
const WAITED: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct By {
    what: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The API server has not said yet who leads.
    Unknown,
    Standby,
    /// Leads, but has not seen all pods.
    Reading,
    Leads,
}

/// What others see of it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Face {
    registry: Arc<Registry>,
    state: Arc<Mutex<Standing>>,
    leader: Gauge,
    pub(super) decided: Family<By, Counter>,
    waiting: Family<By, Gauge>,
    agents: Family<By, Gauge>,
    waited: Histogram,
    decide_nanos: Gauge,
}

impl Default for Face {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("stoker_controller");
        let (leader, decide_nanos) = (Gauge::default(), Gauge::default());
        let (decided, waiting, agents) = (Family::default(), Family::default(), Family::default());
        let waited = Histogram::new(WAITED);
        registry.register("leader", "1 where this copy leads", leader.clone());
        registry.register("decisions", "What came of asking a node for a pod", decided.clone());
        registry.register("waiting_pods", "Pods that wait, by what they were told last", waiting.clone());
        registry.register("agents", "Agents, by whether they tell their room", agents.clone());
        registry.register("pod_wait_seconds", "From the creation of a pod to its node", waited.clone());
        registry.register("pass_nanoseconds", "How long the last look at all who wait took", decide_nanos.clone());
        let state = Arc::new(Mutex::new(Standing::Unknown));
        let registry = Arc::new(registry);
        Self { registry, state, leader, decided, waiting, agents, waited, decide_nanos }
    }
}

impl Face {
    fn set(&self, state: Standing) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.leader.set(i64::from(matches!(state, Standing::Leads | Standing::Reading)));
    }

    /// It does not lead; `known`: the API server says who does.
    pub(super) fn standby(&self, known: bool) {
        self.set(if known { Standing::Standby } else { Standing::Unknown });
    }

    /// It leads, and knows all pods or not yet.
    pub(super) fn leads(&self, reads: bool) {
        self.set(if reads { Standing::Reading } else { Standing::Leads });
    }

    pub(super) fn count(&self, what: &'static str) {
        self.decided.get_or_create(&By { what }).inc();
    }

    pub(super) fn waited(&self, millis: i64) {
        #[allow(clippy::cast_precision_loss, reason = "a histogram is of such figures")]
        self.waited.observe(millis.max(0) as f64 / 1000.0);
    }

    pub(super) fn pass(&self, took: std::time::Duration) {
        self.decide_nanos.set(i64::try_from(took.as_nanos()).unwrap_or(i64::MAX));
    }

    pub(super) fn seen(&self, waiting: &std::collections::BTreeMap<&'static str, i64>, told: usize, silent: usize) {
        self.waiting.clear();
        for (what, count) in waiting {
            self.waiting.get_or_create(&By { what }).set(*count);
        }
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.agents.get_or_create(&By { what: "told" }).set(count(told));
        self.agents.get_or_create(&By { what: "silent" }).set(count(silent));
    }
}

/// Serves until `stop`.
pub(super) async fn serve(listener: tokio::net::TcpListener, face: Face, stop: CancellationToken) {
    let routes = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(face);
    let served = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the listener ended");
    }
}

async fn readyz(State(face): State<Face>) -> Response {
    let state = *face.state.lock().unwrap_or_else(PoisonError::into_inner);
    match state {
        Standing::Leads => (StatusCode::OK, "leads\n"),
        Standing::Standby => (StatusCode::OK, "stands by\n"),
        Standing::Reading => (StatusCode::SERVICE_UNAVAILABLE, "leads, and has not seen all pods yet\n"),
        Standing::Unknown => (StatusCode::SERVICE_UNAVAILABLE, "the API server has not said who leads\n"),
    }
    .into_response()
}

async fn scrape(State(face): State<Face>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &face.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
