//! The process and its machine: clocks, memory limits, signals, standard output, the log, metrics, TLS and retries.

pub mod advice;
pub mod cgroup;
pub mod clock;
pub mod failpoint;
pub mod lock;
pub mod metrics;
pub mod output;
pub mod retry;
pub mod signals;
pub mod telemetry;
pub mod tls;
