//! `tallyhouse explain` on the command line.

use super::{CliError, Done};
use crate::commands::explain;
use clap::Args;

pub(super) const HELP: &str = "\
Examples:
  tallyhouse explain                        lists all codes
  tallyhouse explain retention_gap          a reason why a partition stopped
  tallyhouse explain bad_uuid               a reason why a record was rejected
  tallyhouse explain TallyhouseNotReady     an alert

The pages are inside the program. The command connects to nothing and needs no configuration.

Exit status: 0 the page was printed, 64 no page explains the code.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Code of a stop, a rejected record, an alert, a finding or a check, or the name of a page. Without it all are listed.
    code: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Done, CliError> {
    match &arguments.code {
        None => Ok(explain::list().into()),
        Some(code) => Ok(explain::explain(code)?.into()),
    }
}
