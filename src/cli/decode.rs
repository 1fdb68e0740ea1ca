//! `tallyhouse decode` on the command line.

use super::{CliError, Done, EXIT_WRONG};
use crate::commands::decode;
use crate::config::Config;
use clap::Args;
use std::fs::File;
use std::io::{BufReader, stdin};
use std::path::PathBuf;

pub(super) const HELP: &str = "\
Examples:
  tallyhouse decode events.ndjson
  tallyhouse decode events.ndjson --set mapping.preset=sendgrid
  kcat -C -e -t campaign.event_tracking -o -100 | tallyhouse decode - --json

A line is the value of one record. The line has no Kafka timestamp, so decode.past_days_max and decode.future_days_max are not applied.
The exit status is 1 if a line would be rejected. `tallyhouse explain mapping` has mappings of other producers.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// File with one record's value on each line, or - for standard input.
    file: PathBuf,
    /// Print one JSON object for each line.
    #[arg(long)]
    json: bool,
    /// Maximum number of lines to read.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
}

pub(super) fn run(config: &Config, arguments: &Arguments) -> Result<Done, CliError> {
    let failed = |error| CliError::Read { path: arguments.file.display().to_string(), error };
    let decoder = config.decoder();
    let decoded = match arguments.file.to_str() {
        Some("-") => decode::read(&decoder, stdin().lock(), arguments.limit),
        _ => decode::read(&decoder, BufReader::new(File::open(&arguments.file).map_err(failed)?), arguments.limit),
    };
    let decoded = decoded.map_err(failed)?;
    let output = if arguments.json { decoded.json()? } else { decoded.table() };
    Ok(Done { output, status: if decoded.has_rejects() { EXIT_WRONG } else { 0 } })
}
