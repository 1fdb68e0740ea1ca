//! The checks of the fuzz targets on the core crate. Fuzzing a decoder so needs no build of a Kafka client.

pub mod checks;
