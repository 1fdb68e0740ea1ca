//! The core as it is in production, taken by its path, so that no Kafka client has to be built to fuzz a decoder, and what must hold.

#[path = "../src/core/mod.rs"]
pub mod core;

pub mod checks;
