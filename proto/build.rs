//! Compiles `stoker/v1/*.proto` without `protoc`, and leaves the descriptor beside the generated code.

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

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=stoker");
    let set = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptor.binpb"), set.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure().generate_default_stubs(true).compile_fds_with_config(set, config)?;
    Ok(())
}
