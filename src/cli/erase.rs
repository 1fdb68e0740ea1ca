//! `tallyhouse erase` on the command line.

use super::{CliError, Done, EXIT_VIOLATIONS, clickhouse_options};
use crate::clickhouse::schema::Schema;
use crate::clickhouse::servers::Servers;
use crate::commands::erase::{self, Address, Options};
use crate::config::Config;
use crate::platform::output;
use crate::platform::telemetry;
use clap::Args;
use std::io::Read as _;

pub(super) const HELP: &str = "\
Examples:
  tallyhouse erase --email ann@example.com                                 prints the plan; changes nothing
  tallyhouse erase --email ann@example.com --email Ann.B@example.com --reference GDPR-17 --yes
  tallyhouse erase --email - --yes < addresses     keeps addresses out of the process list and the shell's history

An erasure blanks e-mail, metadata and rejected payloads. Rows and counters stay. `tallyhouse explain privacy` lists the copies that it
does not reach.

Exit status: 0 planned, or done and no row is left. 2 rows are left: run the command again. 1 not done. 64 wrong usage or configuration.
74 as 0, but standard output was lost.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Address of the person, in upper or lower case; may be repeated. `-` reads addresses from standard input, one per line.
    #[arg(long = "email", value_name = "ADDRESS", required = true)]
    emails: Vec<String>,
    /// Carry out the erasure. Without this option the command only prints the plan.
    #[arg(long)]
    yes: bool,
    /// Reference for the row in `erasures`, such as a ticket number. It must hold no personal data.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reference: String,
    /// Print JSON; its field names are stable.
    #[arg(long)]
    json: bool,
    /// Name of the cluster whose tables `migrate --cluster` made. Only several shards need it.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Maximum seconds for one query or change.
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    query_timeout_s: u64,
}

impl Arguments {
    pub(super) fn changes_something(&self) -> bool {
        self.yes
    }
}

pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<Done, CliError> {
    let Arguments { emails, yes, reference, json, cluster, query_timeout_s } = arguments;
    let addresses = addresses(&emails)?;
    if addresses.iter().any(|address| address.is_in(&reference)) {
        return Err(CliError::Reference);
    }
    telemetry::start(&config.log);
    let mut options = clickhouse_options(config);
    options.query_timeout_ms = query_timeout_s * 1_000;
    let client = Servers::answering(&options).await?;
    let (client, schema) = match &cluster {
        // It may have several shards, which are read through the Distributed tables.
        Some(name) => (client, Schema::cluster(name)?),
        None => Schema::found(&client).await?,
    };
    let say = |line: &str| {
        if !json {
            output::line(line);
        }
    };
    let summary = erase::run(&client, &schema, &Options { addresses, carry_out: yes, reference }, &say).await?;
    let output = if json { summary.json()? } else { summary.verdict() };
    Ok(Done { output, status: if summary.is_unfinished() { EXIT_VIOLATIONS } else { 0 } })
}

/// Returns the given addresses. An error does not repeat an address that cannot be used.
fn addresses(emails: &[String]) -> Result<Vec<Address>, CliError> {
    let mut texts = Vec::new();
    for email in emails {
        if email == "-" {
            let mut lines = String::new();
            std::io::stdin().read_to_string(&mut lines)?;
            texts.extend(lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        } else {
            texts.push(email.clone());
        }
    }
    let parsed =
        texts.iter().enumerate().map(|(index, text)| text.parse().map_err(|error| CliError::Email(index + 1, error)));
    let parsed: Vec<Address> = parsed.collect::<Result<_, _>>()?;
    if parsed.is_empty() || parsed.len() > Address::COUNT_MAX {
        return Err(CliError::Emails(parsed.len()));
    }
    Ok(parsed)
}
