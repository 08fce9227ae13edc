//! Compiles the protocol files without a protoc binary.
fn main() {}
