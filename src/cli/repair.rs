//! `tallyhouse repair` on the command line.

use super::{CliError, Done, EXIT_VIOLATIONS, audit, is_confirmed};
use crate::commands::repair::{self, Interrupts, Options, Shard, Standing};
use crate::config::Config;
use crate::platform::output;
use crate::platform::signals::{self, Signal};
use clap::Subcommand;
use std::time::Duration;
use tallyhouse_core::days::Month;
use uuid::Uuid;

const DAILY_HELP: &str = "\
A signal ends the repair in order, and members can count again. A second signal, a second later or more, ends it at once.

Exit status: 0 no counter differs any more. 2 a counter differs. 1 the repair was not done. 74 as 0, but standard output was lost.";

const RECIPIENTS_HELP: &str = "\
Exit status: 0 done, or nothing to do. 1 not done. With --remove-wrong: 2 recipients that no row shows are left.

Examples:
  tallyhouse repair recipients                                     adds what the rows show
  tallyhouse repair recipients --remove-wrong                      prints the campaigns with recipients that no row shows
  tallyhouse repair recipients --remove-wrong --campaign ID --yes  deletes the recipients of one, and adds those of its rows";

/// Longest wait, after a second signal, until members can count the month again.
const LEAVE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Count months of daily again from email_events, while the service runs.
    ///
    /// The repair first prints the counters that differ. Members cannot count these months during the short last step; they wait and
    /// go on by themselves. The repair refuses a month whose raw rows are incomplete or doubled. Use the configuration of the members.
    #[command(after_help = DAILY_HELP)]
    Daily {
        /// Month to count again, such as 202611; may be repeated.
        #[arg(long = "month", value_name = "YYYYMM", required = true)]
        months: Vec<Month>,
        /// Print the differences and the statements, and change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Go on although rows are gone (TTL, dropped partitions) or doubled: daily then gets the counts of email_events.
        #[arg(long)]
        trust_rows: bool,
        /// Count the rows of other topics and of earlier topic ids to the last one. Give this only if no member writes them any more.
        #[arg(long)]
        others_closed: bool,
        /// Maximum seconds for one query.
        #[arg(long, value_name = "SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        query_timeout_s: u64,
    },
    /// Add the recipients that the rows of email_events show, while the service runs.
    ///
    /// Use it after an upgrade from a version without recipients, after a time with clickhouse.recipients = false, or where `audit`
    /// reports recipients_missing. It may be interrupted and run again. Without --remove-wrong it removes nothing.
    #[command(after_help = RECIPIENTS_HELP)]
    Recipients {
        /// Work on this campaign alone.
        #[arg(long, value_name = "UUID")]
        campaign: Option<Uuid>,
        /// Print the statement and the number of days, and change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Instead, replace the recipients of campaigns that have some which no row shows. Only where the rows of the whole life are kept.
        #[arg(long, conflicts_with = "dry_run")]
        remove_wrong: bool,
        /// Carry the removal out. Without it the plan is printed, and a terminal is asked.
        #[arg(long, requires = "remove_wrong")]
        yes: bool,
        /// Maximum seconds for one query.
        #[arg(long, value_name = "SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        query_timeout_s: u64,
    },
    /// Remove the constraint on daily and the table that an interrupted repair has left.
    Clean {
        /// Maximum seconds for one query.
        #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        query_timeout_s: u64,
    },
}

impl Command {
    pub(super) fn changes_something(&self) -> bool {
        !matches!(self, Command::Daily { dry_run: true, .. } | Command::Recipients { dry_run: true, .. })
    }
}

pub(super) async fn run(config: &Config, command: Command) -> Result<Done, CliError> {
    let say = output::line;
    match command {
        Command::Clean { query_timeout_s } => {
            let reader = audit::reader(config, query_timeout_s).await?;
            let shard = Shard::of(config, reader.client(), reader.schema())?;
            repair::clean(reader.client(), &shard, &say).await?;
            Ok("clean\n".to_owned().into())
        }
        Command::Recipients { campaign, remove_wrong: true, yes, query_timeout_s, .. } => {
            let reader = audit::reader(config, query_timeout_s).await?;
            let (client, schema) = (reader.client(), reader.schema());
            let found = repair::recipients::find_wrong(client, schema, campaign, &say).await?;
            let (output, left) = if !found.iter().any(|wrong| wrong.is_removable) {
                ("nothing to remove\n".to_owned(), found.len() as u64)
            } else if yes || is_confirmed()? {
                let left = repair::recipients::remove(client, schema, &found, &say).await?;
                let kept = found.iter().filter(|wrong| !wrong.is_removable).count() as u64;
                (format!("removed; {left} wrong recipients are left in these campaigns\n"), left + kept)
            } else {
                ("nothing was changed; --yes carries it out\n".to_owned(), found.len() as u64)
            };
            Ok(Done { output, status: if left > 0 { EXIT_VIOLATIONS } else { 0 } })
        }
        Command::Recipients { campaign, dry_run, query_timeout_s, .. } => {
            let reader = audit::reader(config, query_timeout_s).await?;
            repair::recipients::add(reader.client(), reader.schema(), campaign, dry_run, &say).await?;
            Ok(if dry_run { String::new() } else { "added\n".to_owned() }.into())
        }
        Command::Daily { mut months, dry_run, trust_rows, others_closed, query_timeout_s } => {
            months.sort_unstable();
            months.dedup();
            let reader = audit::reader(config, query_timeout_s).await?;
            let options = Options { months, dry_run, trust_rows, others_closed };
            let interrupts = Interrupts::default();
            let standing = interrupts.standing.clone();
            signals::end_in_order(interrupts.stop.clone(), move |signal| leave(signal, standing))?;
            let left = repair::daily(config, &reader, &options, &interrupts, &say).await?;
            Ok(Done { output: String::new(), status: if left > 0 { EXIT_VIOLATIONS } else { 0 } })
        }
    }
}

/// Prints the constraint that stands, and gives the repair a little time to take it down.
async fn leave(signal: Signal, standing: Standing) {
    let Some(fence) = standing.fence() else {
        output::note(&format!(
            "tallyhouse: ended by a second {signal}. No constraint of this repair stands. A table daily_repair_… may be left: the \
             next repair drops it, or `tallyhouse repair clean`"
        ));
        return;
    };
    output::note(&format!(
        "tallyhouse: a second {signal} came while the constraint {fence} stands on daily. Members cannot count the month until it is \
         down. The repair ends then, or after {} s at the latest. `tallyhouse repair clean` removes it too",
        LEAVE_MAX.as_secs()
    ));
    output::note(&match tokio::time::timeout(LEAVE_MAX, standing.is_down()).await {
        Ok(()) => format!("tallyhouse: the constraint {fence} is gone: members can count"),
        Err(_) => format!("tallyhouse: the constraint {fence} still stands: run `tallyhouse repair clean`"),
    });
}
