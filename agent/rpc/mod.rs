//! The gRPC face: messages in, the rooms' words, messages out. The only place where both are known.
//!
//! `guard` stands before all of them: who asks, and whether the method is for that one; `asker` says whose things a call
//! may see and change. `request` checks each field once and refuses it by name; `convert` writes answers; `error` gives refusals their
//! status and details. Methods that nothing fills yet answer `UNIMPLEMENTED`, which is what the generated traits do.

mod admission;
mod asker;
pub(crate) mod behalf;
mod binding;
pub mod convert;
mod detached;
pub(crate) mod error;
mod examination;
mod explain;
mod guard;
mod holders;
mod lasting;
mod lease_use;
mod node;
mod output;
mod repository;
mod request;
mod retention;
mod room;
mod transfer;
mod waiting;
mod workspace;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use stoker_core::reason::Reason;
use stoker_proto::v1;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::RoutesBuilder;

use crate::admission::Admission;
use crate::kubernetes::Kubernetes;
use crate::node::Pools;
use crate::node::process::{self, ProcessId};
use crate::pressure::Pressure;
use crate::pressure::lease_use::LeaseMeter;
use crate::repository::Repositories;
use crate::repository::serve::Serve;
use crate::supervise::WaitingPods;
use crate::workspace::retention::Retention;
use crate::workspace::{ShownCaches, Workspaces};

/// The largest message that is read.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How long a call may wait for upstreams where its caller names no deadline.
const PATIENCE: Duration = Duration::from_secs(60);
/// And where it does.
const PATIENCE_MAX: Duration = Duration::from_secs(3600);
/// What is left of a caller's deadline for the answer, at least: a busy machine may not have 5% of a short one. Never more
/// than a quarter of it.
const ANSWER_MIN: Duration = Duration::from_millis(500);

/// What the services serve. Cheap to clone.
#[derive(Clone)]
pub struct Rooms {
    /// Who asks, and what that one may.
    pub access: crate::access::Access,
    /// The ledger.
    pub admission: Admission,
    /// The repositories.
    pub repositories: Repositories,
    /// Git over HTTP.
    pub serve: Serve,
    /// The workspaces.
    pub workspaces: Workspaces,
    /// What goes when.
    pub retention: Retention,
    /// The pools.
    pub pools: Pools,
    /// Memory, disk, stalls, the gate.
    pub pressure: Arc<Pressure>,
    /// What the cluster says.
    pub kubernetes: Kubernetes,
    /// Pods that wait for their volume, as the driver tells it.
    pub waiting_pods: watch::Sender<WaitingPods>,
    /// Caches that volumes show, as the driver tells it.
    pub shown_caches: watch::Sender<ShownCaches>,
    /// Whether the mirrors that volumes show are held, as the driver tells it.
    pub mirrors_held: watch::Sender<bool>,
    /// What each lease uses.
    pub lease_meter: Arc<LeaseMeter>,
    /// The configuration of now.
    pub configured: crate::config::Configured,
    /// Why the configuration file as it is now was not taken over, where it was not.
    pub config_fault: Arc<RwLock<Option<Reason>>>,
    /// Who answers.
    pub identity: Arc<Identity>,
    /// Ends streams when the agent stops.
    pub cancel: CancellationToken,
    /// Owns what streams spawn.
    pub tasks: TaskTracker,
    /// What is counted.
    pub metrics: crate::metrics::Metrics,
}

/// Who answers.
#[derive(Debug)]
pub struct Identity {
    /// The node's name.
    pub name: String,
    /// New at each start.
    pub incarnation: String,
    /// When that was.
    pub started_at: stoker_core::quantity::Timestamp,
    /// What the machine says of itself.
    pub machine: crate::node::facts::Facts,
    /// `git version`'s word.
    pub git_version: String,
    /// Where `/proc` and `/sys` are.
    pub host_root: std::path::PathBuf,
}

impl Rooms {
    fn name(&self) -> &str {
        &self.identity.name
    }

    fn node(&self) -> v1::Node {
        v1::Node {
            name: self.identity.name.clone(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            incarnation: self.identity.incarnation.clone(),
            observed_at: Some(convert::timestamp(crate::admission::now())),
        }
    }

    fn process_lives(&self, given: &v1::Process) -> bool {
        let (Ok(pid), Ok(start_ticks)) = (i32::try_from(given.pid), u64::try_from(given.start_ticks)) else {
            return false;
        };
        process::alive(&self.identity.host_root, ProcessId { pid, start_ticks })
    }

    /// All services, for one listener.
    ///
    /// # Errors
    /// When the descriptor cannot be served for reflection.
    pub fn routes(&self) -> Result<tonic::service::Routes, tonic_reflection::server::Error> {
        use v1::admission_service_server::AdmissionServiceServer;
        use v1::node_service_server::NodeServiceServer;
        use v1::repository_service_server::RepositoryServiceServer;
        use v1::workspace_service_server::WorkspaceServiceServer;

        let (health, health_service) = tonic_health::server::health_reporter();
        self.tasks.spawn(async move {
            for service in [
                v1::node_service_server::SERVICE_NAME,
                v1::admission_service_server::SERVICE_NAME,
                v1::repository_service_server::SERVICE_NAME,
                v1::workspace_service_server::SERVICE_NAME,
            ] {
                health.set_service_status(service, tonic_health::ServingStatus::Serving).await;
            }
        });
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(stoker_proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let mut routes = RoutesBuilder::default();
        routes
            .add_service(health_service)
            .add_service(reflection)
            .add_service(NodeServiceServer::new(node::Node(self.clone())).max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(
                AdmissionServiceServer::new(admission::Admission(self.clone()))
                    .max_decoding_message_size(MESSAGE_BYTES_MAX),
            )
            .add_service(
                RepositoryServiceServer::new(repository::Repository(self.clone()))
                    .max_decoding_message_size(MESSAGE_BYTES_MAX),
            )
            .add_service(
                WorkspaceServiceServer::new(workspace::Workspace(self.clone()))
                    .max_decoding_message_size(MESSAGE_BYTES_MAX),
            );
        let guarded = axum::middleware::from_fn_with_state((self.access.clone(), self.metrics.clone()), guard::guard);
        Ok(routes.routes().into_axum_router().layer(guarded).into())
    }
}

/// How long this call may wait for upstreams: its own deadline, a little less so that the answer arrives.
fn patience<T>(request: &tonic::Request<T>) -> Duration {
    let given = request.metadata().get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    given.map_or(PATIENCE, |given| before(given.min(PATIENCE_MAX)))
}

/// How long before a deadline that is so far away.
fn before(deadline: Duration) -> Duration {
    deadline - (deadline / 20).max(ANSWER_MIN).min(deadline / 4)
}

/// `grpc-timeout`, as the gRPC over HTTP/2 protocol writes it: at most eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = (digits.len() <= 8).then(|| digits.parse().ok())??;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("1H"), Some(Duration::from_secs(3600)));
        for wrong in ["", "m", "12", "123456789S", "é", "-1S"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn of_each_deadline_enough_is_left_for_the_answer() {
        let patience = |text: &str| {
            let mut request = tonic::Request::new(());
            request.metadata_mut().insert("grpc-timeout", text.parse().unwrap());
            patience(&request).as_millis()
        };
        assert_eq!(super::patience(&tonic::Request::new(())), PATIENCE);
        for (given, waits) in [
            ("0S", 0),
            ("4m", 3),
            ("1000m", 750),
            ("2S", 1_500),
            ("3S", 2_500),
            ("10S", 9_500),
            ("60S", 57_000),
            ("1H", 3_420_000),
            ("2H", 3_420_000),
        ] {
            assert_eq!(patience(given), waits, "{given}");
        }
    }
}
