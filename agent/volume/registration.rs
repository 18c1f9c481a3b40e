//! Makes the driver known to the kubelet, which looks for sockets in its `plugins_registry`, asks each what it is, and
//! finds the driver by the answer.
//!
//! A kubelet that starts anew may empty that folder: so the socket is looked at, and made again where it is gone.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_proto::plugin_registration as api;
use stoker_proto::plugin_registration::registration_server::{Registration as Service, RegistrationServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{DRIVER, of_the_host};
use crate::config::Volume;

/// How often the socket is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The version of the interface that the driver speaks, as the kubelet knows versions.
const VERSION: &str = "1.0.0";

/// Keeps the driver known until `closing`. A kubelet that is not there yet is waited for.
pub(crate) async fn keep_known(volume: Volume, closing: CancellationToken) {
    let socket = volume.registration();
    let mut told = None;
    while !closing.is_cancelled() {
        match bind(&socket) {
            Ok((listener, identity)) => {
                told = None;
                tracing::info!(socket = %socket.display(), "the kubelet may find the driver of volumes here");
                serve(&volume, listener, replaced(&socket, identity, &closing)).await;
            }
            Err(error) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    let socket = socket.display();
                    tracing::warn!(%socket, error, "the kubelet cannot find the driver of volumes; tried again");
                    told = Some(error);
                }
                closing.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await;
            }
        }
    }
    let _ = std::fs::remove_file(&socket);
}

/// Over what an agent left that was killed: the agent's socket is bound, so there is no other agent.
pub(super) fn bind(socket: &Path) -> io::Result<(UnixListener, Identity)> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok((listener, identity(socket)?))
}

/// Device and inode.
pub(super) type Identity = (u64, u64);

/// Which socket lies at a path.
pub(super) fn identity(socket: &Path) -> io::Result<Identity> {
    std::fs::symlink_metadata(socket).map(|meta| (meta.dev(), meta.ino()))
}

async fn serve(volume: &Volume, listener: UnixListener, until: impl Future<Output = ()>) {
    let service = RegistrationServer::new(Registration { endpoint: volume.socket.clone() });
    let serve = tonic::transport::Server::builder()
        .timeout(Duration::from_secs(10))
        .max_concurrent_streams(64)
        .add_service(service)
        .serve_with_incoming_shutdown(of_the_host(UnixListenerStream::new(listener)), until);
    if let Err(error) = serve.await {
        tracing::error!(%error, what = "registration of volumes", "a listener ended");
    }
}

/// Ends when the socket is not the one that was bound any more.
async fn replaced(socket: &Path, bound: Identity, closing: &CancellationToken) {
    loop {
        if closing.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
        if identity(socket).ok() != Some(bound) {
            tracing::info!(socket = %socket.display(), "the kubelet cleared it away: made again");
            return;
        }
    }
}

struct Registration {
    endpoint: PathBuf,
}

#[tonic::async_trait]
impl Service for Registration {
    async fn get_info(&self, _: Request<api::InfoRequest>) -> Result<Response<api::PluginInfo>, Status> {
        Ok(Response::new(api::PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: vec![VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<api::RegistrationStatus>,
    ) -> Result<Response<api::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        match status.plugin_registered {
            true => tracing::info!("the kubelet knows the driver of volumes"),
            false => tracing::error!(why = status.error, "the kubelet does not take the driver of volumes"),
        }
        Ok(Response::new(api::RegistrationStatusResponse {}))
    }
}
