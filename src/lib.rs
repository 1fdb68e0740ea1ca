//! Tallyhouse.
