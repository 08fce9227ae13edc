//! Compiles the protocol files without a protoc binary, and reads from them who may call what.

use std::fmt::Write as _;

use protox::prost_reflect::{DescriptorPool, Value};

/// The option that names who may call an rpc, see `rswarm/roles.proto`.
const ALLOW: &str = "rswarm.roles.allow";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "types", "roles", "control", "dispatch", "host", "images", "ca", "raft",
    ]
    .map(|name| format!("rswarm/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).open_files(&files)?;
    let table = roles(&compiler.descriptor_pool())?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(std::path::Path::new(&out).join("authz_table.rs"), table)?;
    tonic_prost_build::configure()
        .btree_map(".")
        .build_transport(false)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The table of `src/authz.rs`: every rpc, with those who may call it.
fn roles(pool: &DescriptorPool) -> Result<String, Box<dyn std::error::Error>> {
    let allow = pool
        .get_extension_by_name(ALLOW)
        .ok_or("the option is not defined")?;
    let mut text = String::from("&[\n");
    for service in pool.services() {
        for method in service.methods() {
            let options = method.options();
            let value = options.get_extension(&allow);
            let callers = value.as_list().unwrap_or_default().iter();
            let callers: Vec<i32> = callers.filter_map(Value::as_enum_number).collect();
            writeln!(
                text,
                "    (\"/{}/{}\", &{callers:?}),",
                service.full_name(),
                method.name()
            )?;
        }
    }
    text.push(']');
    Ok(text)
}
