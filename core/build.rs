//! Compiles the messages of `proto/barid/v1` with protox: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new("../proto");
    let files = ["bulletin", "feed", "exchange", "focal_point", "audit", "operator", "store"]
        .map(|name| root.join(format!("barid/v1/{name}.proto")));
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, [root])?;
    let encoded = protox::prost::Message::encode_to_vec(&descriptors);
    prost_build::Config::new()
        .bytes(["."])
        .enable_type_names()
        .compile_well_known_types()
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new().register_descriptors(&encoded)?.build(&[".barid.v1"])?;
    Ok(())
}
