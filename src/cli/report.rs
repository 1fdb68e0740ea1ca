//! `tallyhouse report` on the command line.

use super::{CliError, Done, clickhouse_options};
use crate::clickhouse::client::Client;
use crate::commands::report::{self, By, Filter};
use crate::config::Config;
use clap::{Args, ValueEnum};
use tallyhouse_core::days::Day;
use uuid::Uuid;

pub(super) use crate::commands::report::DENOMINATORS as HELP;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people, with a total.
    Table,
    /// For spreadsheets; rates as shares, empty without a denominator.
    Csv,
    /// For machines; rates as shares, null without a denominator.
    Json,
}

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only events of this workspace.
    #[arg(long, value_name = "UUID")]
    workspace: Option<Uuid>,
    /// Only events of this campaign.
    #[arg(long, value_name = "UUID")]
    campaign: Option<Uuid>,
    /// First UTC day, such as 2026-11-01.
    #[arg(long, value_name = "DAY")]
    since: Option<Day>,
    /// Last UTC day, inclusive.
    #[arg(long, value_name = "DAY")]
    until: Option<Day>,
    /// Subject of a row.
    #[arg(long, value_enum, default_value_t)]
    by: By,
    /// Format of the output; the names in CSV and JSON are stable.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<Done, CliError> {
    let Arguments { workspace, campaign, since, until, by, format } = arguments;
    if let (Some(first), Some(last)) = (since, until)
        && first > last
    {
        return Err(CliError::Days { since: first.to_string(), until: last.to_string() });
    }
    let client = Client::new(&clickhouse_options(config))?;
    let report = report::read(&client, Filter { workspace, campaign, since, until }, by).await?;
    let output = match format {
        Format::Table => report.table(),
        Format::Csv => report.csv(),
        Format::Json => report.json()?,
    };
    Ok(output.into())
}
