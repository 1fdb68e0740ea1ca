//! The errors of fetching, starting and handling servers, in words that say what to do next.
//!
//! Must never lose the cause: a process that failed brings the end of its own output along.

use std::{io, path::Path, process::ExitStatus, time::Duration};

/// Result of this crate, with [`Error`] as its error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

const DOCKER: &str = "or use other servers instead, such as the repository's docker-compose.yml, and name them in \
                      TALLYHOUSE_TEST_KAFKA (host:port) and TALLYHOUSE_TEST_CLICKHOUSE (URL)";

/// A failure. The text of each says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program that fetching or running a server needs is not on the `PATH`.
    #[error("`{tool}` is needed {purpose} and was not found: `apt-get install {package}`, {DOCKER}")]
    ToolMissing {
        /// Name of the program.
        tool: &'static str,
        /// The purpose for which it is needed.
        purpose: &'static str,
        /// The Debian package that holds it.
        package: &'static str,
    },
    /// The `java` on the `PATH` is too old for Kafka.
    #[error(
        "Kafka needs Java {needed} or newer and `java -version` says {found:?}: `apt-get install {package}`, {DOCKER}"
    )]
    JavaTooOld {
        /// The first line of `java -version`.
        found: String,
        /// The oldest major version that is accepted.
        needed: u32,
        /// The Debian package that holds one.
        package: &'static str,
    },
    /// The servers are not published for this machine.
    #[error("no ClickHouse library is published for {os} on {arch}: use Linux on x86_64 or aarch64, {DOCKER}")]
    UnsupportedPlatform {
        /// The operating system of this machine.
        os: &'static str,
        /// The processor architecture of this machine.
        arch: &'static str,
    },
    /// This machine cannot run replicas of ClickHouse.
    #[error("{reason}")]
    NoReplicas {
        /// The reason, and the way round.
        reason: String,
    },
    /// A command that devstack ran ended badly.
    #[error("`{command}` failed ({status}): run it by hand to see more. It said:\n{output}")]
    CommandFailed {
        /// The command line of the command.
        command: String,
        /// Exit status of the command.
        status: ExitStatus,
        /// Output of the command.
        output: String,
    },
    /// The program under test could not be built.
    #[error("building tallyhouse failed ({arguments})")]
    Build {
        /// The arguments of cargo.
        arguments: String,
    },
    /// A file, folder or process could not be handled.
    #[error("cannot {action}: {cause}")]
    Io {
        /// The action that was tried.
        action: String,
        /// The cause of the failure.
        cause: io::Error,
    },
    /// A process ended although it was still needed.
    #[error("{name} ended by itself ({status}). The end of its log:\n{log_tail}")]
    Died {
        /// Name of the process.
        name: String,
        /// Exit status of the process.
        status: ExitStatus,
        /// The end of its output.
        log_tail: String,
    },
    /// A server did not become healthy in time.
    #[error("{name} is not healthy after {within:?}: {last}. The end of its log:\n{log_tail}")]
    NotHealthy {
        /// Name of the server.
        name: String,
        /// The time limit that has passed.
        within: Duration,
        /// The message of the last health check.
        last: String,
        /// The end of its output.
        log_tail: String,
    },
    /// A process did not end in time.
    #[error("{name} is still running {within:?} after it should have ended. The end of its log:\n{log_tail}")]
    StillRunning {
        /// Name of the process.
        name: String,
        /// The time limit that has passed.
        within: Duration,
        /// The end of its output.
        log_tail: String,
    },
    /// A signal or a measurement was asked of a process that has ended.
    #[error("{name} is not running: restart it first")]
    NotRunning {
        /// Name of the process.
        name: String,
    },
    /// The server belongs to somebody else, so it must not be killed, stopped or restarted.
    #[error("{name} was not started by this process: unset {variable} to test against a server that may be killed")]
    NotOurs {
        /// Name of the server.
        name: &'static str,
        /// The environment variable that named it.
        variable: &'static str,
    },
    /// There is no such node in the cluster.
    #[error("there is no Kafka node {index}: the cluster has {nodes}, counted from 0")]
    NoSuchNode {
        /// The node asked for.
        index: usize,
        /// The number of nodes.
        nodes: usize,
    },
    /// [`crate::init`] was not called, so this executable cannot host ClickHouse.
    #[error("call devstack::init() first in main: ClickHouse runs in this executable, started again")]
    InitNotCalled,
    /// No block of free ports was found.
    #[error("no {count} free ports in a row on 127.0.0.1: end servers that are no longer needed")]
    NoFreePorts {
        /// The number of ports wanted, in a row.
        count: u16,
    },
    /// Prometheus refused an expression.
    #[error("Prometheus refused `{expression}`: {message}")]
    Expression {
        /// The expression that Prometheus refused.
        expression: String,
        /// Prometheus' own text, or the reason why there was none.
        message: String,
    },
    /// The browser refused a command, or did not answer in time.
    #[error("the browser failed at {method}: {message}")]
    Browser {
        /// The command's name in the DevTools protocol.
        method: String,
        /// The browser's own text, or the reason why there was none.
        message: String,
    },
    /// OpenSSL could not make a certificate.
    #[error("a certificate could not be made: {message}")]
    Certificate {
        /// Message of OpenSSL about the cause.
        message: String,
    },
    /// ClickHouse refused a query.
    #[error("ClickHouse refused `{sql}`: {message}")]
    Query {
        /// The query that ClickHouse refused.
        sql: String,
        /// ClickHouse's own text, or the reason why there was none.
        message: String,
    },
}

/// Adds the action that was tried when an I/O call fails.
pub(crate) trait Context<T> {
    /// Turns an I/O error into [`Error::Io`] for `action` on `path`.
    fn context(self, action: &str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: &str, path: &Path) -> Result<T> {
        self.map_err(|cause| Error::Io { action: format!("{action} {}", path.display()), cause })
    }
}
