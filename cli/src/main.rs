//! The rswarm command line.
fn main() {}
