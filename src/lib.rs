//! Tallyhouse turns a Kafka stream of email-campaign events into exact, queryable counts in ClickHouse.
//!
//! Must stay in two halves: [`core`] decides and does no I/O, everything else carries out.

// `println!` panics when the reader of the output has gone: `output` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod admin;
pub mod audit;
mod cgroup;
pub mod check;
pub mod cli;
pub mod clickhouse;
mod clock;
pub mod config;
pub mod core;
pub mod erase;
pub mod explain;
pub mod failpoint;
pub mod health;
pub mod kafka;
pub mod metrics;
pub mod output;
pub mod rejects;
pub mod repair;
pub mod report;
pub mod retry;
pub mod service;
pub mod signals;
pub mod status;
mod table;
pub mod telemetry;
pub mod tls;
