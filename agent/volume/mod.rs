//! Sources as volumes: the CSI node driver `stoker.build`, for inline ephemeral volumes.
//!
//! In come the kubelet's calls on a socket of their own, with the identity of the pod whose volume is to be mounted, and
//! its attributes. Out go mounts of workspaces where the kubelet wants them. The pod proves itself by its own token;
//! what it asks for is asked for in its name, of the same services that schedulers ask ([`crate::rpc`]): its lease is
//! held by it, and ends with it.
//!
//! Nothing is remembered here that would be missed: which lease is a volume's stands in the journal,
//! under a request id made of the volume's, and what is mounted in the kernel's table. So a restart finds all of it.
//!
//! `attributes` reads what is asked for, `carried` finds the lease that a pod has already, `coming`
//! knows the volumes that pods wait for, `made` looks at what was made before,
//! `publish` and `unpublish` do it,
//! `together` gives the volumes of a pod one lease where the pod's own has ended,
//! `target` mounts, by descriptors only, `waiting` keeps places in the queue between the kubelet's attempts, `registration`
//! makes the driver known to the kubelet, `listen` has the sockets of both made again where they are gone. `shown` serves the volumes that are no build's: caches of tenants (`cache`), and
//! mirrors.

mod attributes;
mod cache;
mod carried;
mod coming;
mod identity;
mod listen;
mod made;
mod node;
mod publish;
mod registration;
mod shown;
mod target;
mod together;
mod unpublish;
mod waiting;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use stoker_core::admission::Lease;
use stoker_core::cluster::DRIVER;
use stoker_core::identity::RequestId;
use stoker_proto::csi::identity_server::IdentityServer;
use stoker_proto::csi::node_server::NodeServer;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::access::is_of_the_host;
use crate::config::Volume;
use crate::node::mount;
use crate::rpc::Rooms;
pub(crate) use attributes::{Behind, behind};
use cache::Refused;
use coming::Coming;
pub(crate) use registration::keep_known;
use shown::{Shelves, WantedShelves};
use target::{OwnPlaces, Target};
use waiting::Places;

/// What the ids of requests for volumes begin with.
pub(crate) const REQUESTS: &str = "csi-";
/// The largest message that is read.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// How long a call may take: longer than any part of it waits, and less than the kubelet does (two minutes).
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// So long a call that is asked to give up a volume may take for that.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(1);
/// Calls at a time; more wait.
const CALLS_MAX: usize = 256;

/// The driver. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Volumes {
    inner: Arc<Inner>,
}

struct Inner {
    rooms: Rooms,
    /// The kubelet's directory.
    kubelet: PathBuf,
    /// The volumes that are being published or unpublished.
    served: Mutex<BTreeMap<String, Served>>,
    places: Mutex<Places>,
    /// The volumes that are not there yet.
    coming: Mutex<BTreeMap<String, Coming>>,
    /// One at a time looks at which caches are shown and changes it, so that nothing goes that is about to be mounted.
    shown: tokio::sync::Mutex<()>,
    /// The same of directories of mirrors. That takes long where they are large, so nobody who ends a volume needs it.
    shelves: Arc<tokio::sync::Mutex<Shelves>>,
    /// The directories of mirrors that volumes on their way are to show.
    wanted: Mutex<WantedShelves>,
    /// Volumes of caches that wait for builds to leave their place.
    refused: Mutex<Refused>,
}

impl Volumes {
    /// A driver for this kubelet. Builds that waited for the kubelet to come again when an earlier agent ended wait on.
    pub(crate) fn new(rooms: Rooms, volume: &Volume) -> Self {
        let kubelet = volume.kubelet.clone();
        let inner = Inner {
            rooms,
            kubelet,
            served: Mutex::default(),
            places: Mutex::default(),
            coming: Mutex::default(),
            shown: tokio::sync::Mutex::default(),
            shelves: Arc::default(),
            wanted: Mutex::default(),
            refused: Mutex::default(),
        };
        let volumes = Self { inner: Arc::new(inner) };
        volumes.keep_all_places();
        if let Err(status) = seen_by_pods(&volume.kubelet) {
            tracing::error!("no volume can be served: {}", status.message());
        }
        volumes.inner.rooms.tasks.spawn(volumes.clone().keep_shown());
        volumes
    }

    /// Serves until `closing`; then nobody finds the socket any more.
    pub(crate) async fn serve(self, listener: UnixListener, socket: &Path, closing: CancellationToken) {
        let identity = IdentityServer::new(identity::Identity(self.clone()));
        let node = NodeServer::new(node::Node(self)).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let serve = tonic::transport::Server::builder()
            .timeout(ANSWER_WITHIN)
            .concurrency_limit_per_connection(CALLS_MAX)
            .max_concurrent_streams(1024)
            .add_service(identity)
            .add_service(node)
            .serve_with_incoming_shutdown(
                of_the_host(listen::on(Some(listener), socket, listen::Folder::Own)),
                closing.cancelled_owned(),
            );
        if let Err(error) = serve.await {
            tracing::error!(%error, what = "volumes", "a listener ended");
        }
    }

    /// The right to work on a volume, until it is dropped. The kubelet calls again where it is told that another call has it.
    fn turn(&self, volume: &str) -> Result<Turn, Status> {
        let mut served = lock(&self.inner.served);
        if served.contains_key(volume) {
            return Err(Status::aborted(format!("another call works on volume {volume}: ask again")));
        }
        let mine = Served::default();
        served.insert(volume.to_owned(), mine.clone());
        Ok(Turn { volumes: self.clone(), volume: volume.to_owned(), mine })
    }

    /// The same for who ends the volume: a call that waits for what takes long is asked to give it up.
    async fn turn_to_end(&self, volume: &str) -> Result<Turn, Status> {
        let other = lock(&self.inner.served).get(volume).cloned();
        if let Some(other) = other {
            other.given_up.cancel();
            let _ = tokio::time::timeout(GIVEN_UP_WITHIN, other.over.cancelled()).await;
        }
        self.turn(volume)
    }

    /// A call to its end, also where the kubelet hangs up: what works on a disk then would go on, and no longer have its turn.
    async fn whole(&self, call: impl Future<Output = Result<(), Status>> + Send + 'static) -> Result<(), Status> {
        let ended = self.inner.rooms.tasks.spawn(call).await;
        ended.unwrap_or_else(|error| Err(Status::unavailable(format!("the call did not come to its end: {error}"))))
    }

    /// Refuses to mount where no pod would see it.
    async fn is_seen_by_pods(&self) -> Result<(), Status> {
        let kubelet = self.inner.kubelet.clone();
        publish::blocking(move || seen_by_pods(&kubelet)).await
    }

    /// What the kubelet names; see [`Target::read`].
    fn target(&self, path: &str, pod: Option<&str>) -> Result<Target, Status> {
        let rooms = &self.inner.rooms;
        let (workspaces, repositories) = (rooms.workspaces.clone(), rooms.repositories.clone());
        let own = OwnPlaces::new(move |folder| [workspaces.place_in(folder).ok(), repositories.place_in(folder).ok()]);
        Target::read(&self.inner.kubelet, path, pod, own)
    }

    /// The live lease that was admitted for a volume.
    fn lease_of(&self, volume: &str) -> Option<Arc<Lease>> {
        let prefix = prefix(volume);
        self.inner
            .rooms
            .admission
            .read(|ledger| ledger.live().find(|lease| lease.request_id.as_str().starts_with(&prefix)).cloned())
    }

    /// The request of a volume that waits in the queue.
    fn request_of(&self, volume: &str) -> Option<RequestId> {
        let prefix = prefix(volume);
        let waits = |request: &&RequestId| request.as_str().starts_with(&prefix);
        self.inner.rooms.admission.read(|ledger| ledger.tickets().map(|held| &held.request.id).find(waits).cloned())
    }
}

/// What is mounted below the kubelet's directory of pods reaches the kubelet only where that propagates.
fn seen_by_pods(kubelet: &Path) -> Result<(), Status> {
    let pods = kubelet.join("pods");
    if mount::propagates(&pods) {
        return Ok(());
    }
    let what = "is not shared, so that no pod would see what is mounted there: give the agent's container the directory \
                of volume.kubelet with `mountPropagation: Bidirectional` (outside of a container: `mount --make-rshared`)";
    Err(Status::failed_precondition(format!("volume.kubelet: {} {what}", pods.display())))
}

/// What ids of requests for a volume begin with. Its lease may end before it does (as by a reboot): then a request with
/// another end of its id is the next one.
fn prefix(volume: &str) -> String {
    let digest: String = Sha256::digest(volume.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{REQUESTS}{digest}-")
}

/// A call that works on a volume.
#[derive(Debug, Default, Clone)]
struct Served {
    /// The volume is to end: what takes long is not waited for any more.
    given_up: CancellationToken,
    /// It has returned.
    over: CancellationToken,
}

struct Turn {
    volumes: Volumes,
    volume: String,
    mine: Served,
}

impl Turn {
    /// Until somebody wants the volume to end.
    async fn given_up(&self) {
        self.mine.given_up.cancelled().await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.volumes.inner.served).remove(&self.volume);
        self.mine.over.cancel();
    }
}

/// Those who connected, without processes of pods and of other users.
fn of_the_host(
    connected: impl futures_util::Stream<Item = std::io::Result<UnixStream>> + Send + 'static,
) -> impl futures_util::Stream<Item = std::io::Result<UnixStream>> + Send + 'static {
    connected.filter(|stream| {
        let is_let_in = stream.as_ref().map_or(true, |stream| {
            let is_let_in = is_of_the_host(stream);
            if !is_let_in {
                tracing::warn!("somebody who is no process of the host connected to a socket for the kubelet, in vain");
            }
            is_let_in
        });
        std::future::ready(is_let_in)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_of_one_volume() {
        assert!(prefix("csi-a").starts_with(REQUESTS) && prefix("csi-a").len() < 64);
        assert_ne!(prefix("csi-a"), prefix("csi-b"));
        assert!(!prefix("a").starts_with(&prefix("b")));
    }
}
