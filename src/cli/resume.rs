//! `tallyhouse resume` on the command line.

use super::{CliError, Done, EXIT_WRONG, audit, is_confirmed};
use crate::commands::resume::{self, Choice, Plan};
use crate::config::Config;
use crate::platform::output;
use clap::Args;
use serde::Serialize;

pub(super) const HELP: &str = "\
Examples:
  tallyhouse status                                      which partitions stop, and why
  tallyhouse resume --partition 3 --count-anew           the plan; asks before it changes anything
  tallyhouse resume --partition 0,1,2 --count-anew --yes     after a restored backup
  tallyhouse resume --partition 3 --continue --yes       go on, and accept what the stop warns of

End all members with SIGTERM first: Kafka lets nobody change the offsets of a group that has some. The
page of each reason, `tallyhouse explain REASON`, says which of the two is right:

  sink_behind      --count-anew from the greatest mark shown; --continue leaves the lost rows out
  other_cluster    --count-anew this log from its beginning; --continue if it is a copy of the other
  topic_recreated  --count-anew the new topic from its beginning; --continue if it is a copy
  retention_gap    --continue at the log's beginning
  intent_gone      --continue behind the batch

Exit status: 0 done, 1 not done, 64 wrong usage or configuration, 74 as 0, but standard output was lost.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The stopped partition; may be repeated, or a list such as 0,1,2.
    #[arg(long = "partition", value_name = "N", required = true, value_delimiter = ',', value_parser = clap::value_parser!(i32).range(0..))]
    partitions: Vec<i32>,
    /// Go on where the partition stands, and accept what the stop warns of.
    #[arg(long = "continue", required_unless_present = "count_anew", conflicts_with = "count_anew")]
    goes_on: bool,
    /// Count again what the stop warns of.
    #[arg(long)]
    count_anew: bool,
    /// The topic; the configured one without it.
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Carry it out without a question. Without it, and without a terminal, only the plan is printed.
    #[arg(long)]
    yes: bool,
    /// Print JSON; its field names are stable.
    #[arg(long)]
    json: bool,
    /// Seconds that one query may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    query_timeout_s: u64,
}

impl Arguments {
    pub(super) fn changes_something(&self) -> bool {
        self.yes
    }
}

#[derive(Serialize)]
struct Summary<'a> {
    done: bool,
    plans: &'a [Plan],
}

pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<Done, CliError> {
    let Arguments { mut partitions, goes_on, topic, yes, json, query_timeout_s, .. } = arguments;
    partitions.sort_unstable();
    partitions.dedup();
    let mut config = config.clone();
    if let Some(topic) = topic {
        let stage = config.kafka.topics.lifecycle().into_iter().find(|(_, name)| *name == topic);
        match stage.map(|(stage, _)| stage) {
            Some(stage) => config = config.for_lifecycle(stage, &topic),
            None => config.kafka.topics.events = topic,
        }
    }
    let choice = if goes_on { Choice::Continue } else { Choice::CountAnew };
    let reader = audit::reader(&config, query_timeout_s).await?;
    let plans = resume::plan(&config, &reader, &partitions, choice).await?;
    if !json {
        plans.iter().for_each(|plan| output::line(plan.text().trim_end()));
    }
    let done = yes || !json && is_confirmed()?;
    if done {
        resume::carry_out(&config, &plans).await?;
    }
    let output = match (json, done) {
        (true, _) => output::json(&Summary { done, plans: &plans })?,
        (false, true) => "committed; start the members\n".to_owned(),
        (false, false) => "nothing was changed; --yes carries it out\n".to_owned(),
    };
    Ok(Done { output, status: if done { 0 } else { EXIT_WRONG } })
}
