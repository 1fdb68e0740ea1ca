//! Tallyhouse turns a Kafka stream of email-campaign events into exact, queryable counts in ClickHouse.
//!
//! The crate `tallyhouse-core` decides and does no I/O. This crate carries out: [`service`] runs, [`commands`] look
//! and fix. Imports go one way: from [`cli`] over [`commands`] and
//! [`service`] to [`kafka`] and [`clickhouse`], then [`platform`] and [`config`]. `tests/storeys.rs` checks it.

// `println!` panics when the reader of the output has gone. `output` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod clickhouse;
pub mod commands;
pub mod config;
pub mod kafka;
pub mod platform;
pub mod service;
