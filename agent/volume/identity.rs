//! Who the driver is: `csi.v1.Identity`.

use stoker_proto::csi;
use stoker_proto::csi::identity_server::Identity as Service;
use tonic::{Request, Response, Status};

use super::{DRIVER, Volumes};

pub(super) struct Identity(pub(super) Volumes);

#[tonic::async_trait]
impl Service for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(csi::GetPluginInfoResponse { name: DRIVER.to_owned(), vendor_version, ..Default::default() }))
    }

    /// None: neither a controller nor a topology.
    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(csi::GetPluginCapabilitiesResponse::default()))
    }

    /// Ready once what an earlier agent left on the pool was taken up.
    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        Ok(Response::new(csi::ProbeResponse { ready: Some(self.0.inner.rooms.workspaces.are_taken_up()) }))
    }
}
