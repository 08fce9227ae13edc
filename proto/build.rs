//! Compiles the protocol files without a protoc binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["types", "control", "dispatch", "host", "images"].map(|name| format!("rswarm/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["."])?;
    tonic_prost_build::configure()
        .btree_map(".")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
