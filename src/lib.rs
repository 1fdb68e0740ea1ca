//! Tallyhouse.

pub mod core;
