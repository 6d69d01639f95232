//! Compiles the messages of `proto/barid/v1` with protox, so that no protoc is needed. Also stores
//! their descriptors and names for `src/json.rs`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new("../proto");
    let files = ["bulletin", "feed", "exchange", "focal_point", "audit", "operator", "store"]
        .map(|name| root.join(format!("barid/v1/{name}.proto")));
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, [root])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("messages.descriptors.bin"), protox::prost::Message::encode_to_vec(&descriptors))?;
    let ours = descriptors.file.iter().filter(|file| file.package() == "barid.v1");
    let names: Vec<&str> =
        ours.flat_map(|file| &file.message_type).filter_map(|message| message.name.as_deref()).collect();
    std::fs::write(out.join("messages.json.rs"), format!("json!({});\n", names.join(", ")))?;
    prost_build::Config::new()
        .bytes(["."])
        .enable_type_names()
        .compile_well_known_types()
        .extern_path(".google.protobuf", "::prost_types")
        .compile_fds(descriptors)?;
    Ok(())
}
