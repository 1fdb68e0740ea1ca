//! All code that talks to ClickHouse: the HTTP client, its errors and the schema.
//!
//! Must never decide what to write: batches, tokens and recovery decisions come from the pure core.

pub mod client;
pub mod condition;
pub mod dedup;
pub mod error;
mod exchange;
pub mod identity;
pub mod recipients;
pub mod replica;
pub mod retention;
pub mod schema;
pub mod servers;
pub mod settings;
pub mod sight;
pub mod sink;
