//! The messages and services of `stoker.v1`, generated from `stoker/v1/*.proto`.
//!
//! The `.proto` files are the documentation: names, units and what each method promises stand there.

/// Version 1. Within it fields and methods are only added; `tests/compatibility.rs` holds that.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("stoker.v1");
}

/// The compiled descriptor (a `google.protobuf.FileDescriptorSet`), for reflection and the JSON mapping.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.binpb"));
