//! What the kubelet asks of the node: `csi.v1.Node`. What is not here answers `UNIMPLEMENTED`, which is what the generated
//! trait does.

use std::time::Instant;

use stoker_proto::csi;
use stoker_proto::csi::node_server::Node as Service;
use stoker_proto::csi::volume_capability::AccessType;
use tonic::{Request, Response, Status};

use super::Volumes;
use crate::rpc::error::bad;

/// The longest id of a volume, in bytes; the kubelet's have 68.
const VOLUME_BYTES_MAX: usize = 256;

pub(super) struct Node(pub(super) Volumes);

#[tonic::async_trait]
impl Service for Node {
    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        named(&request.volume_id, &request.target_path)?;
        capable(request.volume_capability.as_ref())?;
        let (began, volume) = (Instant::now(), request.volume_id.clone());
        let volumes = self.0.clone();
        let call = async move {
            let published = volumes.publish(request).await;
            told("NodePublishVolume", &volume, began, &published);
            published
        };
        self.0.whole(call).await.map(|()| Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let csi::NodeUnpublishVolumeRequest { volume_id, target_path } = request.into_inner();
        named(&volume_id, &target_path)?;
        let began = Instant::now();
        let volumes = self.0.clone();
        let call = async move {
            let unpublished = volumes.unpublish(&volume_id, &target_path).await;
            told("NodeUnpublishVolume", &volume_id, began, &unpublished);
            unpublished
        };
        self.0.whole(call).await.map(|()| Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    /// None: nothing is staged, nothing grows, and `fsGroup` is not applied.
    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(csi::NodeGetCapabilitiesResponse::default()))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let node_id = self.0.inner.rooms.identity.name.clone();
        // How many fit is the ledger's to say.
        Ok(Response::new(csi::NodeGetInfoResponse { node_id, max_volumes_per_node: 0 }))
    }
}

fn named(volume_id: &str, target_path: &str) -> Result<(), Status> {
    if volume_id.is_empty() {
        return Err(bad("volume_id", "is missing; name the volume"));
    }
    if volume_id.len() > VOLUME_BYTES_MAX || volume_id.chars().any(char::is_control) {
        return Err(bad("volume_id", format!("has control characters or more than {VOLUME_BYTES_MAX} bytes")));
    }
    match target_path {
        "" => Err(bad("target_path", "is missing; say where the volume is to be")),
        _ => Ok(()),
    }
}

fn capable(capability: Option<&csi::VolumeCapability>) -> Result<(), Status> {
    let field = "volume_capability";
    let capability = capability.ok_or_else(|| bad(field, "is missing; say how the volume is used"))?;
    match &capability.access_type {
        None => Err(bad(field, "says neither block nor mount; give mount")),
        Some(AccessType::Block(_)) => Err(bad(field, "is a block device, and sources are files; give mount")),
        Some(AccessType::Mount(mount)) if !mount.mount_flags.is_empty() => {
            Err(bad("volume_capability.mount.mount_flags", "are not for sources; leave them out"))
        }
        Some(AccessType::Mount(_)) => Ok(()),
    }
}

fn told(method: &str, volume: &str, began: Instant, ended: &Result<(), Status>) {
    let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match ended {
        Ok(()) => tracing::info!(method, volume, millis, "volume"),
        Err(status) => tracing::warn!(method, volume, millis, code = ?status.code(), why = status.message(), "volume"),
    }
}
