//! The pure core: what an event means, how events become batches, and which step of the exactly-once
//! protocol comes next.
//!
//! Nothing in here does I/O, reads a clock, draws a random number or logs: the same input always gives the same
//! output, so a test, a model or a replay after a crash can drive it step by step. The shell ([`crate::service`],
//! [`crate::kafka`], [`crate::clickhouse`]) performs what the core asks for.
//!
//! Read in the order data flows: [`decode`] → [`window`] in a [`buffer`], which [`intake`] keeps within memory → [`batch`] →
//! [`protocol`] (with [`intent`] and [`marks`]).

pub mod batch;
pub mod buffer;
pub mod columns;
pub mod decode;
pub mod event;
pub mod event_time;
pub mod guard;
pub mod intake;
pub mod intent;
pub mod lease;
pub mod marks;
mod packaging;
mod plain_event;
pub mod protocol;
pub mod reject;
#[cfg(test)]
mod simulation;
pub mod source;
pub mod stop;
pub mod window;
