//! `tallyhouse status` on the command line.

use super::{CliError, Done, EXIT_WRONG, clickhouse_options};
use crate::audit::AuditError;
use crate::clickhouse::client::Client;
use crate::config::Config;
use crate::output;
use crate::signals;
use crate::status::{ANSWER_TIMEOUT, Rates, Watcher};
use clap::Args;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

pub(super) const HELP: &str = "\
Examples:
  tallyhouse status                 who counts, how far each partition is, what is wrong
  tallyhouse status --watch         the same every 2 seconds with rates, until Ctrl-C
  tallyhouse status --json | jq .problems

What is wrong comes first. `member` is a row of the upper table. A partition that stops names its page in docs/stops/.
What a member alone knows (a rebuilt batch that differs, say) is at its /readyz. Changes nothing, and never joins the group.

Exit status: 0 all is well, 1 something is wrong, 64 wrong usage or configuration.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print JSON; its field names are stable. With --watch one line per look.
    #[arg(long)]
    json: bool,
    /// Look again every so many seconds, until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    watch: Option<u64>,
}

pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<Done, CliError> {
    let Arguments { json, watch } = arguments;
    let watcher = Watcher::new(config, hurried_client(config)?).map_err(AuditError::Consumer)?;
    let Some(seconds) = watch else {
        signals::quit_without_a_core()?;
        let status = watcher.look().await;
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
            looked = look_and_print(&watcher, &mut earlier, json) => looked,
            // Ctrl-C is how this ends; what was seen last is its exit status.
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

type Look = (Instant, crate::status::Status);

/// Whether all is well; `None` when nobody reads any more.
async fn look_and_print(watcher: &Watcher, earlier: &mut Option<Look>, json: bool) -> Result<Option<bool>, CliError> {
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

/// On a terminal in the place of the last one, else below it.
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

/// A client that does not wait long: people wait for the answer.
pub(super) fn hurried_client(config: &Config) -> Result<Client, CliError> {
    let mut options = clickhouse_options(config);
    options.query_timeout_ms = options.query_timeout_ms.min(ANSWER_TIMEOUT.as_millis() as u64);
    Ok(Client::new(&options)?)
}
