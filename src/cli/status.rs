//! `tallyhouse status` on the command line.

use super::{CliError, Done, EXIT_WRONG, short_timeout_options};
use crate::clickhouse::servers::Servers;
use crate::commands::audit::AuditError;
use crate::commands::status::{MemberUrl, Rates, Status, Watcher};
use crate::config::Config;
use crate::platform::output;
use crate::platform::signals;
use clap::Args;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

pub(super) const HELP: &str = "\
Examples:
  tallyhouse status                 members, the position of each partition, and problems
  tallyhouse status --member http://127.0.0.1:9464      also the causes that this member reports
  tallyhouse status --watch         the same every 2 seconds with rates, until Ctrl-C
  tallyhouse status --json | jq .problems

Problems come first. `member` is a row of the upper table. The command changes nothing and never joins
the group. `tallyhouse explain REASON` prints the page of a stopped partition.

A partition stands still when records wait and nothing is committed or announced for one flush and
10 s. One flush is flush.age_ms. Where records wait, status therefore looks a second time. It does so when all these partitions have moved, and at the latest after that time.
`tallyhouse explain status` has the details.

Consumers cannot read the records of an open transaction yet. `log end` lies before these records, and
the lag leaves them out. Only a member knows some causes, such as a refused insert: --member asks it.

Exit status: 0 no problem was found, 1 there is a problem, 64 wrong usage or configuration.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print JSON; its field names are stable. With --watch one line per look.
    #[arg(long)]
    json: bool,
    /// Repeat the look at this interval in seconds, until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    watch: Option<u64>,
    /// Maximum time between the two looks; 0 looks once. With less than the default, partitions may stay unjudged.
    #[arg(long, value_name = "SECONDS", conflicts_with = "watch", value_parser = clap::value_parser!(u64).range(0..=3_600))]
    interval_s: Option<u64>,
    /// Ask the member at this address (its admin.listen) for causes, such as http://127.0.0.1:9464; may be repeated.
    #[arg(long = "member", value_name = "URL")]
    members: Vec<MemberUrl>,
}

pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<Done, CliError> {
    let Arguments { json, watch, interval_s, members } = arguments;
    let mut watcher = Watcher::new(config, Servers::answering(&short_timeout_options(config)).await?, members)
        .map_err(AuditError::Consumer)?;
    let Some(seconds) = watch else {
        signals::quit_without_a_core()?;
        let status = look_twice(&mut watcher, interval_s.map(Duration::from_secs)).await;
        let output = if json { status.json(None, false)? } else { status.table(None) };
        return Ok(Done { output, status: exit_status(status.problems().is_empty()) });
    };
    let every = Duration::from_secs(seconds);
    let stop = CancellationToken::new();
    signals::end_in_order(stop.clone(), async |_| ())?;
    let mut earlier = None;
    let mut well = true;
    loop {
        let looked = tokio::select! {
            looked = look_and_print(&mut watcher, &mut earlier, json) => looked,
            // Ctrl-C ends the watch. The last look decides the exit status.
            () = stop.cancelled() => Ok(None),
        };
        match looked? {
            Some(seen) => well = seen,
            None => return Ok(Done { output: String::new(), status: exit_status(well) }),
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = stop.cancelled() => return Ok(Done { output: String::new(), status: exit_status(well) }),
        }
    }
}

/// Looks once, and again if only a second look can show if partitions move. The second look follows when all have
/// moved, or after `interval`.
async fn look_twice(watcher: &mut Watcher, interval: Option<Duration>) -> Status {
    let status = watcher.look().await;
    let Some(patience) = status.unjudged().into_iter().map(|(_, patience)| patience).max() else { return status };
    let within = interval.unwrap_or(patience);
    if within.is_zero() {
        return status;
    }
    if std::io::stderr().is_terminal() {
        let seconds = within.as_secs_f64().ceil();
        output::note(&format!("records wait: looking for up to {seconds} s whether they are counted"));
    }
    watcher.await_movement(&status, within).await;
    watcher.look().await
}

type Look = (Instant, Status);

/// Returns true if all is well; `None` when nobody reads the output any more.
async fn look_and_print(
    watcher: &mut Watcher,
    earlier: &mut Option<Look>,
    json: bool,
) -> Result<Option<bool>, CliError> {
    let status = watcher.look().await;
    let now = Instant::now();
    let rates = earlier.as_ref().and_then(|(then, before)| Rates::between(before, &status, now - *then));
    let text = if json { status.json(rates, true)? } else { status.table(rates) };
    let well = status.problems().is_empty();
    *earlier = Some((now, status));
    match output::print(placed(&text, json).as_bytes()) {
        Err(lost) if lost.reader_gone => Ok(None),
        Err(lost) => Err(lost.into()),
        Ok(()) => Ok(Some(well)),
    }
}

/// Returns the text so that it replaces the last one on a terminal, or follows it elsewhere.
fn placed(text: &str, json: bool) -> String {
    match (std::io::stdout().is_terminal(), json) {
        (_, true) => text.to_owned(),
        (true, false) => format!("\x1b[H\x1b[2J{text}"),
        (false, false) => format!("{text}\n"),
    }
}

fn exit_status(well: bool) -> u8 {
    if well { 0 } else { EXIT_WRONG }
}
