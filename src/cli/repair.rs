//! `tallyhouse repair` on the command line.

use super::{CliError, Done, EXIT_VIOLATIONS, audit, end_on_signals};
use crate::audit::span::Month;
use crate::config::Config;
use crate::repair::{self, Options};
use clap::Subcommand;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Count months of daily again from email_events, while the service runs.
    ///
    /// Prints first what differs. Members cannot count these months for the short end of the work; they wait by themselves.
    /// Refuses where the raw rows themselves are incomplete or doubled. Use the configuration of the members.
    #[command(after_help = "Exit status: 0 nothing differs any more, 2 something does, 1 it was not done.")]
    Daily {
        /// Month to count again, such as 202611; may be repeated.
        #[arg(long = "month", value_name = "YYYYMM", required = true)]
        months: Vec<Month>,
        /// Print what differs and the statements; change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Go on although rows are gone (TTL, dropped partitions) or doubled: daily becomes what email_events has.
        #[arg(long)]
        trust_rows: bool,
        /// No member writes sources of other topics or earlier topic ids any more: count their rows to the last.
        #[arg(long)]
        others_closed: bool,
        /// Seconds that one query may take.
        #[arg(long, value_name = "SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        query_timeout_s: u64,
    },
    /// Remove what an interrupted repair has left: its constraint on daily and its table.
    Clean {
        /// Seconds that one query may take.
        #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        query_timeout_s: u64,
    },
}

pub(super) async fn run(config: &Config, command: Command) -> Result<Done, CliError> {
    let say = |line: &str| println!("{line}");
    match command {
        Command::Clean { query_timeout_s } => {
            let reader = audit::reader(config, query_timeout_s)?;
            repair::clean(reader.client(), &say).await?;
            Ok("clean\n".to_owned().into())
        }
        Command::Daily { mut months, dry_run, trust_rows, others_closed, query_timeout_s } => {
            months.sort_unstable();
            months.dedup();
            let reader = audit::reader(config, query_timeout_s)?;
            let options = Options { months, dry_run, trust_rows, others_closed };
            let stop = CancellationToken::new();
            end_on_signals(stop.clone())?;
            let left = repair::daily(config, &reader, &options, &stop, &say).await?;
            Ok(Done { output: String::new(), status: if left > 0 { EXIT_VIOLATIONS } else { 0 } })
        }
    }
}
