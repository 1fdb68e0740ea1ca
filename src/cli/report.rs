//! `tallyhouse report` on the command line.

use super::{CliError, Done, clickhouse_options};
use crate::clickhouse::client::Client;
use crate::clickhouse::servers::Servers;
use crate::commands::report::depth::rules::{BUILT_IN, Rules};
use crate::commands::report::{self, By, Filter, depth, zone};
use crate::config::Config;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
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
    /// One campaign in depth, as a page with charts that needs nothing else.
    Html,
}

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only events of this workspace.
    #[arg(long, value_name = "UUID")]
    workspace: Option<Uuid>,
    /// Only events of this campaign.
    #[arg(long, value_name = "UUID")]
    campaign: Option<Uuid>,
    /// First UTC day, such as 2026-11-01. With --zone it is a day of the zone.
    #[arg(long, value_name = "DAY")]
    since: Option<Day>,
    /// Last UTC day, inclusive. With --zone it is a day of the zone.
    #[arg(long, value_name = "DAY")]
    until: Option<Day>,
    /// Subject of a row [default: campaign; day with --zone].
    #[arg(long, value_enum)]
    by: Option<By>,
    /// Count by day in this time zone, such as Europe/Paris. Other zones than UTC need raw rows.
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    /// Format of the output; the names in CSV and JSON are stable.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Report one campaign in depth from its raw rows: hours, links, mailbox providers, machine opens, bounces, time to open.
    #[arg(long, requires = "campaign", conflicts_with_all = ["workspace", "since", "until", "by", "zone"])]
    in_depth: bool,
    /// File of rules for links, machine opens, bounces and mailbox providers in place of the built-in ones.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Print the built-in rules and connect to nothing.
    #[arg(long)]
    print_rules: bool,
}

pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<Done, CliError> {
    let Arguments { workspace, campaign, since, until, by, zone, format, in_depth, rules, print_rules } = arguments;
    if print_rules {
        return Ok(BUILT_IN.to_owned().into());
    }
    if in_depth && let Some(campaign) = campaign {
        return in_depth_of(config, campaign, rules, format).await;
    }
    if let Some(option) = rules.map(|_| "--rules").or(matches!(format, Format::Html).then_some("--format html")) {
        return Err(CliError::NotInDepth(option));
    }
    if let (Some(first), Some(last)) = (since, until)
        && first > last
    {
        return Err(CliError::Days { since: first.to_string(), until: last.to_string() });
    }
    let client = Servers::answering(&clickhouse_options(config)).await?;
    let filter = Filter { workspace, campaign, since, until };
    if let Some(zone) = zone {
        return by_day_of(&client, filter, zone, by, format).await;
    }
    let report = report::read(&client, filter, by.unwrap_or_default()).await?;
    written(format, || report.table(), || report.csv(), || report.json())
}

async fn by_day_of(
    client: &Client,
    filter: Filter,
    zone: String,
    by: Option<By>,
    format: Format,
) -> Result<Done, CliError> {
    if by == Some(By::Campaign) {
        return Err(CliError::ZoneIsByDay);
    }
    if !zone::is_known(client, &zone).await? {
        return Err(CliError::Zone(zone));
    }
    let report = zone::read(client, filter, zone).await?;
    written(format, || report.table(), || report.csv(), || report.json())
}

/// Returns the report in a format that every report has.
fn written(
    format: Format,
    table: impl Fn() -> String,
    csv: impl Fn() -> String,
    json: impl Fn() -> serde_json::Result<String>,
) -> Result<Done, CliError> {
    let output = match format {
        Format::Table => table(),
        Format::Csv => csv(),
        Format::Json => json()?,
        Format::Html => return Err(CliError::NotInDepth("--format html")),
    };
    Ok(output.into())
}

async fn in_depth_of(
    config: &Config,
    campaign: Uuid,
    rules: Option<PathBuf>,
    format: Format,
) -> Result<Done, CliError> {
    let (text, name) = match rules {
        Some(file) => {
            let name = file.display().to_string();
            (std::fs::read_to_string(&file).map_err(|error| CliError::Read { path: name.clone(), error })?, name)
        }
        None => (BUILT_IN.to_owned(), "the built-in rules".to_owned()),
    };
    let rules = Rules::parse(&text).map_err(|error| CliError::Rules { path: name, error })?;
    let client = Servers::answering(&clickhouse_options(config)).await?;
    let depth = depth::read(&client, campaign, &rules).await?;
    let output = match format {
        Format::Table => depth.table(),
        Format::Csv => depth.csv(),
        Format::Json => depth.json()?,
        Format::Html => depth.html(),
    };
    Ok(output.into())
}
