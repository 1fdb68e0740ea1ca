//! The pure core of Tallyhouse: the meaning of an event, batches of events, and the next step of the exactly-once protocol.
//!
//! Nothing in here does I/O, reads a clock, draws a random number or logs: the same input always gives the same output. So a
//! test, a model or a replay after a crash can drive it step by step. The crate `tallyhouse` performs the actions that the core
//! requests.
//!
//! Read the modules in the order of the data flow: [`decode`] → [`window`] → [`batch`] → [`protocol`] (with [`protocol::intent`]
//! and [`protocol::marks`]). A window lies in a [`window::buffer`], which [`window::intake`] keeps within memory.

pub mod batch;
pub mod days;
pub mod decode;
pub mod guard;
pub mod protocol;
pub mod recipients;
#[cfg(test)]
mod simulation;
pub mod source;
pub mod stream;
pub mod tables;
pub mod window;
