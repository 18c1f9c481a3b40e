//! The messages and services of `stoker.v1`, generated from `stoker/v1/*.proto`; and those by which a kubelet mounts
//! volumes, [`csi`] and [`plugin_registration`].
//!
//! The `.proto` files are the documentation: names, units and what each method promises stand there.

/// Version 1. Within it fields and methods are only added; `tests/compatibility.rs` holds that.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("stoker.v1");
}

/// The part of `csi.v1` that a driver of inline ephemeral volumes speaks: others' promises, see `csi/v1/csi.proto`.
#[allow(missing_docs, clippy::all)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// How a plugin makes itself known to the kubelet: others' promises, see `pluginregistration/v1/api.proto`.
#[allow(missing_docs, clippy::all)]
pub mod plugin_registration {
    tonic::include_proto!("pluginregistration");
}

/// The compiled descriptor (a `google.protobuf.FileDescriptorSet`), for reflection and the JSON mapping.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.binpb"));
