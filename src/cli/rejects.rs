//! `tallyhouse rejects` on the command line.

use super::{CliError, Done, EXIT_WRONG, clickhouse_options};
use crate::clickhouse::servers::Servers;
use crate::commands::rejects::{self, Counts, Filter, Listing, Moment, Pages, Shown, SourceName, replay};
use crate::config::Config;
use crate::platform::output;
use crate::platform::signals;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use tallyhouse_core::decode::reject::Reason;
use tokio_util::sync::CancellationToken;

pub(super) const HELP: &str = "\
Examples:
  tallyhouse rejects count                               counts by reason
  tallyhouse rejects list --reason bad_uuid --limit 5    the newest ones
  tallyhouse rejects show campaign.event_tracking/3 1234
  tallyhouse rejects export --reason bad_uuid > bad.ndjson
  jq -c '.payload |= (fromjson | .campaign_id |= ltrimstr(\"x\") | tojson)' bad.ndjson > fixed.ndjson
  tallyhouse rejects replay --from fixed.ndjson

`tallyhouse explain replay` has the steps for rejected records, and the reason why a replay counts each once.";

const REPLAY_HELP: &str = "\
Without --from, replay sends rows with their own bytes. Use that after an upgrade, or after a change of decode.*. Replay leaves out the
rows that this version rejects. Use the configuration of the members. The summary goes to standard output, and all else goes to standard
error.

Exit status: 0 done. 1 not done, stopped by a signal, or a line of --from was left out. 64 wrong usage or configuration.
74 done, but standard output was lost.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the newest rejected records.
    List {
        #[command(flatten)]
        which: Which,
        /// Maximum number of records.
        #[arg(long, value_name = "ROWS", default_value_t = 50)]
        limit: u64,
        /// Print JSON; its field names are stable.
        #[arg(long)]
        json: bool,
    },
    /// Show one rejected record: its exact bytes, and the result of decoding it with this version.
    Show {
        /// Source of the record, as `list` shows it. @topic-id may be left out where only one source matches.
        source: SourceName,
        /// Offset of the record.
        offset: u64,
        /// Print only the bytes of the payload.
        #[arg(long)]
        raw: bool,
    },
    /// Count rejected records by reason.
    Count {
        #[command(flatten)]
        which: Which,
        /// Print JSON; its field names are stable.
        #[arg(long)]
        json: bool,
    },
    /// Print each rejected record as one line of JSON. Correct the lines and give them to `replay --from`.
    Export {
        #[command(flatten)]
        which: Which,
        /// Maximum number of records.
        #[arg(long, value_name = "ROWS")]
        limit: Option<u64>,
    },
    /// Put rejected records back into the event topic. Each row goes back once, also after repeats and interruptions.
    #[command(after_help = REPLAY_HELP)]
    Replay {
        #[command(flatten)]
        which: Which,
        /// Maximum number of records.
        #[arg(long, value_name = "ROWS", conflicts_with = "from")]
        limit: Option<u64>,
        /// File with corrected lines of an export; - reads standard input. Replay takes only the payload from them.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["reason", "source", "since", "until"])]
        from: Option<PathBuf>,
        /// Print the plan, and write nothing.
        #[arg(long)]
        dry_run: bool,
        /// Print the summary as JSON; its field names are stable.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// Only records with this reason; may be repeated. `tallyhouse explain rejects` lists the reasons.
    #[arg(long, value_name = "REASON", value_parser = rejects::reason)]
    reason: Vec<Reason>,
    /// Only records of this source: topic/partition or topic/partition@topic-id.
    #[arg(long, value_name = "SOURCE")]
    source: Option<SourceName>,
    /// Only records with a Kafka timestamp at or after this UTC time: 2026-11-24 or 2026-11-24T06:30:00.
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Only records with a Kafka timestamp before this UTC time.
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
}

impl Command {
    pub(super) fn changes_something(&self) -> bool {
        matches!(self, Command::Replay { dry_run: false, .. })
    }
}

impl Which {
    fn filter(self, limit: Option<u64>) -> Filter {
        let Which { reason, source, since, until } = self;
        Filter { reasons: reason, source, since, until, limit }
    }
}

pub(super) async fn run(config: &Config, command: Command) -> Result<Done, CliError> {
    let client = Servers::answering(&clickhouse_options(config)).await?;
    match command {
        Command::List { which, limit, json } => {
            let rows = rejects::newest(&client, &which.filter(Some(limit))).await?;
            let listing = Listing { rows, ledger: replay::look(config).await };
            Ok(if json { listing.json()? } else { listing.table() }.into())
        }
        Command::Show { source, offset, raw } => {
            let row = rejects::one(&client, source, offset).await?;
            if raw {
                print(&row.payload.unwrap_or_default())?;
                return Ok(String::new().into());
            }
            let ledger = replay::look(config).await;
            Ok(Shown { row, decoder: config.decoder(), ledger }.text().into())
        }
        Command::Count { which, json } => {
            let counts = Counts::new(&client, &which.filter(None), replay::look(config).await).await?;
            Ok(if json { counts.json()? } else { counts.table() }.into())
        }
        Command::Export { which, limit } => {
            let mut pages = Pages::new(&client, which.filter(limit));
            loop {
                let page = pages.next().await?;
                if page.is_empty() {
                    return Ok(String::new().into());
                }
                let lines: String = page.iter().map(rejects::line).collect::<Result<_, _>>()?;
                if !print(lines.as_bytes())? {
                    return Ok(String::new().into());
                }
            }
        }
        Command::Replay { which, limit, from, dry_run, json } => {
            let from_lines = from.is_some();
            let options = replay::Options { filter: which.filter(limit), from, dry_run };
            let stop = CancellationToken::new();
            signals::end_in_order(stop.clone(), async |signal| {
                output::note(&format!(
                    "tallyhouse: ended by a second {signal}. Kafka aborts the transaction that may be open, at the latest when the next \
                     replay begins. Run it again: rows that were replayed are not replayed twice"
                ));
            })?;
            let summary = replay::run(config, &client, options, &stop, &output::note).await?;
            let left_out = summary.refused + summary.without_row + summary.of_other_topics > 0;
            let status = if summary.stopped || from_lines && left_out { EXIT_WRONG } else { 0 };
            let output = if json { serde_json::to_string(&summary)? + "\n" } else { summary.to_string() };
            Ok(Done { output, status })
        }
    }
}

/// Prints the bytes. Returns true if the output still has a reader.
fn print(bytes: &[u8]) -> Result<bool, CliError> {
    match output::print(bytes) {
        Err(lost) if lost.reader_gone => Ok(false),
        Err(lost) => Err(lost.into()),
        Ok(()) => Ok(true),
    }
}
