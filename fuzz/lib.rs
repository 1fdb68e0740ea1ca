//! The targets' checks of the core crate, so that no Kafka client has to be built to fuzz a decoder.

pub mod checks;
