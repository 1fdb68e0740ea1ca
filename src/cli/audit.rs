//! `tallyhouse audit` on the command line.

use super::{CliError, Done, EXIT_VIOLATIONS, clickhouse_options};
use crate::clickhouse::schema::Schema;
use crate::clickhouse::servers::Servers;
use crate::commands::audit::{self, Options, Reader};
use crate::config::Config;
use crate::platform::output;
use clap::Args;
use std::io::IsTerminal as _;
use tallyhouse_core::days::Day;

pub(super) const HELP: &str = "\
Exit status: 0 clean, 2 violations found, 1 the audit could not be done, 64 wrong usage or configuration.
`tallyhouse explain CODE` prints the meaning and the remedy of a code; `tallyhouse explain audit` prints the whole page.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// First UTC day of event_time, such as 2026-11-01. For gaps it is a day of the Kafka record's timestamp.
    #[arg(long, value_name = "DAY")]
    since: Option<Day>,
    /// Last UTC day, inclusive.
    #[arg(long, value_name = "DAY")]
    until: Option<Day>,
    /// Print JSON; its field names are stable.
    #[arg(long)]
    json: bool,
    /// Maximum number of findings in the list of each check. The counts include all findings.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: u32,
    /// Maximum seconds for one query.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    query_timeout_s: u64,
}

pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<Done, CliError> {
    let Arguments { since, until, json, limit, query_timeout_s } = arguments;
    let reader = reader(config, query_timeout_s).await?;
    // With 0 there would be no finding to follow with "and n more".
    let options = Options { since, until, limit: limit.max(1) as usize };
    let shown = std::io::stderr().is_terminal();
    let progress = |step: &str| {
        if shown {
            output::note(&format!("audit: {step}"));
        }
    };
    let mut lifecycle = Vec::new();
    for (stage, topic) in config.kafka.topics.lifecycle() {
        if reader.has_lifecycle(stage, topic).await? {
            let config = config.for_lifecycle(stage, topic);
            let reader = self::reader(&config, query_timeout_s).await?;
            lifecycle.push((config, reader));
        }
    }
    let report = audit::run(config, &reader, &lifecycle, &options, &progress).await?;
    let output = if json { report.json()? } else { report.table() };
    Ok(Done { output, status: if report.violations() > 0 { EXIT_VIOLATIONS } else { 0 } })
}

/// Makes connections with a time limit of their own, as these queries read whole tables.
pub(super) async fn reader(config: &Config, query_timeout_s: u64) -> Result<Reader, CliError> {
    let mut options = clickhouse_options(config);
    options.query_timeout_ms = query_timeout_s * 1_000;
    let (client, schema) = Schema::found(&Servers::answering(&options).await?).await?;
    Ok(Reader::new(config, client, schema)?)
}
