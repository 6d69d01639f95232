//! Compiles the gRPC services; their messages are those of `barid-core`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["exchange", "focal_point", "audit", "operator"].map(|name| format!("proto/barid/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["proto"])?;
    // Descriptors that reflection serves to a member's own clients: no messages between nodes or on the disk.
    let api = protox::compile(files.iter().filter(|file| !file.ends_with("exchange.proto")), ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("api.descriptors.bin"), protox::prost::Message::encode_to_vec(&api))?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::BoundedCodec")
        .extern_path(".barid.v1", "::barid_core::proto")
        .extern_path(".google.protobuf", "::prost_types")
        .compile_well_known_types(true)
        .compile_fds(descriptors)?;
    Ok(())
}
