//! Makes the driver known to the kubelet, which looks for sockets in its `plugins_registry`, asks each what it is, and
//! finds the driver by the answer.

use std::path::PathBuf;
use std::time::Duration;

use stoker_proto::plugin_registration as api;
use stoker_proto::plugin_registration::registration_server::{Registration as Service, RegistrationServer};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::listen::{self, Folder};
use super::{DRIVER, of_the_host};
use crate::config::Volume;

/// The version of the interface that the driver speaks, as the kubelet knows versions.
const VERSION: &str = "1.0.0";

/// Keeps the driver known until `closing`. A kubelet that is not there yet is waited for.
pub(crate) async fn keep_known(volume: Volume, closing: CancellationToken) {
    let socket = volume.registration();
    let service = RegistrationServer::new(Registration { endpoint: volume.socket });
    let connected = of_the_host(listen::on(None, &socket, Folder::Kubelet));
    let serve = tonic::transport::Server::builder()
        .timeout(Duration::from_secs(10))
        .max_concurrent_streams(64)
        .add_service(service)
        .serve_with_incoming_shutdown(connected, closing.cancelled_owned());
    if let Err(error) = serve.await {
        tracing::error!(%error, what = "registration of volumes", "a listener ended");
    }
    let _ = std::fs::remove_file(&socket);
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
