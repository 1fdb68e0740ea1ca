//! Real servers for tests and demos, from the package registries, without Docker.
//!
//! Developers only: must never be linked into the service. Every process it starts ends with the process that started it,
//! however that ends, and listens on 127.0.0.1 only.

pub mod cache;
pub mod clickhouse;
pub mod process;

use thiserror::Error;

/// Why a server is not there.
#[derive(Debug, Error)]
pub enum DevstackError {
    /// A program that fetches or runs the servers is missing.
    #[error("`{program}` is not installed; install it ({hint}), or give a server's address in {variable}")]
    MissingProgram {
        /// The program.
        program: &'static str,
        /// What to install.
        hint: &'static str,
        /// The variable that names a server to use instead.
        variable: &'static str,
    },
    /// A program ran and failed.
    #[error("`{program}` failed: {output}")]
    Failed {
        /// The program.
        program: &'static str,
        /// The end of what it printed.
        output: String,
    },
    /// A server did not become healthy in time or died.
    #[error("{server} is not healthy: {reason}; the end of its log:\n{log}")]
    Unhealthy {
        /// Which server.
        server: &'static str,
        /// What was seen.
        reason: String,
        /// The last lines of its log.
        log: String,
    },
    /// A file or process operation failed.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        error: std::io::Error,
    },
}

/// For `map_err`: names what was tried.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> DevstackError {
    move |error| DevstackError::Io { what: what.into(), error }
}

/// Must be the first call in `main` of every binary that starts a ClickHouse: where this process was started to host one, it
/// does so and never returns.
pub fn init() {
    clickhouse::host_if_asked();
}
