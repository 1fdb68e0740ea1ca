//! `tallyhouse check` on the command line.

use super::{CliError, Done, EXIT_WRONG, short_timeout_options};
use crate::clickhouse::servers::Servers;
use crate::commands::audit::AuditError;
use crate::commands::check;
use crate::config::Config;
use crate::kafka::observer::{ANSWER_TIMEOUT, Observer};
use clap::Args;

pub(super) const HELP: &str = "\
Examples:
  tallyhouse check                          before the first `tallyhouse run`, and after each change of the configuration
  tallyhouse check --set clickhouse.url=https://new:8443
  tallyhouse check --json | jq '.checks[] | select(.status == \"failed\")'

Every failed check names its fix. A server that is away fails its own checks within seconds, and the checks of the other server still
run. The command changes nothing and never joins the group. `tallyhouse explain CODE` describes a check.

Exit status: 0 no check failed (there may be warnings), 1 a check failed, 64 wrong usage or configuration.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print JSON; its field names are stable.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<Done, CliError> {
    let clients = Servers::clients(&short_timeout_options(config))?;
    let observer = Observer::with_timeout(config, ANSWER_TIMEOUT).map_err(AuditError::Consumer)?;
    let report = check::run(config, observer, &clients).await;
    let output = if arguments.json { report.json()? } else { report.table() };
    Ok(Done { output, status: if report.failed() > 0 { EXIT_WRONG } else { 0 } })
}
