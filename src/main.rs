//! Tallyhouse.
fn main() {}
