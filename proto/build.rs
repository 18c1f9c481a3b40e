//! Compiles `stoker/v1/*.proto` without `protoc`, and leaves the descriptor beside the generated code. What others
//! defined (the kubelet's interfaces) is compiled apart: it is no promise of ours, and not in the descriptor.

use std::error::Error;
use std::path::PathBuf;

use protox::prost::Message;

const FILES: [&str; 5] = [
    "stoker/v1/types.proto",
    "stoker/v1/admission.proto",
    "stoker/v1/repository.proto",
    "stoker/v1/workspace.proto",
    "stoker/v1/node.proto",
];

const OF_THE_KUBELET: [&str; 2] = ["csi/v1/csi.proto", "pluginregistration/v1/api.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for folder in ["stoker", "csi", "pluginregistration"] {
        println!("cargo:rerun-if-changed={folder}");
    }
    let set = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptor.binpb"), set.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure().generate_default_stubs(true).compile_fds_with_config(set, config)?;
    let set = protox::compile(OF_THE_KUBELET, ["."])?;
    tonic_prost_build::configure().generate_default_stubs(true).btree_map(".").compile_fds(set)?;
    Ok(())
}
