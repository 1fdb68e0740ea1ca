//! The commands that look at a deployment and fix it. `tallyhouse run` is [`crate::service`].

pub mod audit;
pub mod check;
pub mod decode;
pub mod erase;
pub mod explain;
pub mod rejects;
pub mod repair;
pub mod report;
pub mod resume;
pub mod status;
mod table;
