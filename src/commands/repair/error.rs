//! Reasons why a repair was not done.

use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::schema::SchemaProblem;
use crate::commands::audit::AuditError;

/// The reason why a repair was not done.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A server could not be asked.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// ClickHouse refused a statement.
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    /// The tables are not those of this binary.
    #[error(transparent)]
    Schema(#[from] SchemaProblem),
    /// It would lose counts, or double them.
    #[error("nothing was changed: {0}")]
    Refused(String),
    /// A signal ended the repair.
    #[error("interrupted; the month at hand was not changed")]
    Interrupted,
    /// After the swap the month is not what was staged.
    #[error(
        "after the swap daily does not have the counters that the repair made: {0}. Run `tallyhouse audit`, then the repair again"
    )]
    NotVerified(String),
    /// The program has a fault.
    #[error("a fault of this program (a panic, see above) ended the repair. Run `tallyhouse audit`, and report it")]
    Panicked,
    /// The fence could not be taken down.
    #[error(
        "the constraint {fence} may still stand on daily: {error}. Members cannot count the month while it does. Run \
         `tallyhouse repair clean` as soon as ClickHouse answers{}",
        .first.as_ref().map_or(String::new(), |first| format!(". Before that: {first}"))
    )]
    FenceStands {
        /// Name of the constraint that stands.
        fence: String,
        /// The reason why it could not be taken down.
        error: String,
        /// The error that came before, if there was one.
        first: Option<Box<RepairError>>,
    },
}
