//! Prints a status as a table for people and JSON for machines. Pure.
//!
//! The JSON's names are stable: names are added, never changed. Texts of members and brokers never reach a terminal
//! with their control characters.

use super::{Asked, Lifecycle, Problem, Progress, Rates, Standing, Status};
use crate::commands::table;
use crate::kafka::members::{GroupState, Member};
use comfy_table::{Cell, CellAlignment, Table};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;
use tallyhouse_core::protocol::outlook::Outlook;

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    ok: bool,
    problems: Vec<Problem>,
    brokers: &'a str,
    clickhouse_url: &'a str,
    database: &'a str,
    topic: &'a str,
    group_id: &'a str,
    group_state: Option<GroupState>,
    members: Option<&'a [Member]>,
    lag_records: u64,
    partitions: Vec<JsonPartition<'a>>,
    lifecycle_topics: Vec<JsonLifecycle<'a>>,
    rates: Option<Rates>,
    members_asked: Vec<JsonAsked<'a>>,
}

#[derive(Serialize)]
struct JsonLifecycle<'a> {
    topic: &'a str,
    error: Option<&'a str>,
    /// `null` where the topic does not exist, or could not be asked for.
    partitions: Option<usize>,
    lag_records: Option<u64>,
}

#[derive(Serialize)]
struct JsonAsked<'a> {
    url: &'a str,
    error: Option<&'a str>,
    ready: Option<bool>,
    reasons: Option<&'a BTreeMap<String, String>>,
    stopped_partitions: Option<&'a BTreeMap<String, u64>>,
}

#[derive(Serialize)]
struct JsonPartition<'a> {
    partition: i32,
    error: Option<&'a str>,
    log_start: Option<u64>,
    log_end: Option<u64>,
    committed: Option<u64>,
    lag_records: Option<u64>,
    /// End (exclusive) of the batch that begins at the committed offset.
    intent_end: Option<u64>,
    /// Index of the owner in `members`.
    member: Option<usize>,
    /// `goes_on`, `stops`, or `unknown` without ClickHouse.
    outlook: &'static str,
    message: Option<String>,
    stop_reason: Option<&'static str>,
    stop_page: Option<String>,
    /// Records behind `log_end` that open transactions hold back; `null` where Kafka did not report them.
    open_transaction_records: Option<u64>,
    /// Seconds since the first of these records.
    open_transaction_s: Option<f64>,
    progress: Option<Progress>,
    /// Seconds for which records have waited and this command has seen nothing committed or announced.
    unmoved_s: Option<f64>,
}

impl Status {
    /// Returns the JSON document, in one line where `compact`, with a line end. `null` is a value that could not be
    /// asked.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(&self, rates: Option<Rates>, compact: bool) -> serde_json::Result<String> {
        let problems = self.problems();
        let partitions = self.partitions.iter().flatten();
        let group = self.group.as_ref().ok();
        let json = Json {
            version: 1,
            ok: problems.is_empty(),
            problems,
            brokers: &self.brokers,
            clickhouse_url: &self.url,
            database: &self.database,
            topic: &self.topic,
            group_id: &self.group_id,
            group_state: group.map(|group| group.state),
            members: group.map(|group| &group.members[..]),
            lag_records: self.lag(),
            partitions: partitions.map(|of| self.json_partition(of.number, of.seen.as_ref())).collect(),
            lifecycle_topics: self.lifecycle.iter().map(json_lifecycle).collect(),
            rates,
            members_asked: self.asked.iter().map(json_asked).collect(),
        };
        let text = if compact { serde_json::to_string(&json)? } else { serde_json::to_string_pretty(&json)? };
        Ok(text + "\n")
    }

    fn json_partition<'a>(&self, partition: i32, seen: Result<&'a Standing, &'a String>) -> JsonPartition<'a> {
        let standing = seen.ok();
        let outlook = standing.and_then(|standing| standing.outlook.as_ref());
        let reason = outlook.and_then(|outlook| match outlook {
            Outlook::Stops(reason) => Some(reason),
            Outlook::GoesOn(_) => None,
        });
        JsonPartition {
            partition,
            error: seen.err().map(String::as_str),
            log_start: standing.map(|standing| standing.start),
            log_end: standing.map(|standing| standing.end),
            committed: standing.and_then(|standing| standing.committed),
            lag_records: standing.map(Standing::lag),
            intent_end: standing.and_then(|standing| standing.intent).map(|range| range.end),
            member: self.holder(partition),
            outlook: match outlook {
                None => "unknown",
                Some(Outlook::GoesOn(_)) => "goes_on",
                Some(Outlook::Stops(_)) => "stops",
            },
            message: outlook.map(|outlook| match outlook {
                Outlook::GoesOn(words) => words.clone(),
                Outlook::Stops(reason) => reason.to_string(),
            }),
            stop_reason: reason.map(|reason| reason.code()),
            stop_page: reason.map(|reason| reason.page()),
            open_transaction_records: standing.and_then(|standing| standing.held_back).map(|held| held.offsets),
            open_transaction_s: standing
                .and_then(|standing| Some(standing.open_transaction()?.open_for?.as_secs_f64())),
            progress: standing.map(|standing| self.progress(standing)),
            unmoved_s: standing.map(|standing| standing.motion.unmoved.as_secs_f64()),
        }
    }

    /// Returns the problems, then the members, the partitions and the total. The rates follow where there were two
    /// looks.
    pub fn table(&self, rates: Option<Rates>) -> String {
        let mut text = String::new();
        let problems = self.problems();
        problems.iter().for_each(|problem| {
            let _ = writeln!(text, "WRONG: {}", problem.message);
        });
        match self.unjudged_in_words() {
            Some(words) => drop(writeln!(text, "{words}")),
            None if problems.is_empty() => text.push_str("nothing is wrong\n"),
            None => {}
        }
        if let Some(words) = self.open_transactions_in_words() {
            let _ = writeln!(text, "{words}");
        }
        if let Some(words) = self.not_asked_in_words() {
            let _ = writeln!(text, "{words}");
        }
        let Status { topic, group_id, database, .. } = self;
        let _ = writeln!(text, "\ntopic {topic}, group {group_id}, database {database}");
        if let Ok(group) = &self.group {
            let state = match group.state {
                GroupState::Stable => "stable",
                GroupState::Rebalancing => "partitions are being shared out",
                GroupState::Empty => "nobody is in it, nothing is counted",
                GroupState::Unknown => "Kafka does not know it yet, nothing is counted",
                GroupState::NotReported => "Kafka does not tell its state",
            };
            let _ = writeln!(text, "group: {state}");
            if !group.members.is_empty() {
                let _ = writeln!(text, "\n{}", members_table(&group.members));
            }
        }
        if self.partitions.as_ref().is_ok_and(|partitions| !partitions.is_empty()) {
            let _ = writeln!(text, "\n{}", self.partitions_table());
        }
        for (number, lifecycle) in self.lifecycle.iter().enumerate() {
            let line = if number == 0 { "\n" } else { "" };
            let _ = writeln!(text, "{line}topic {}: {}", lifecycle.topic, lifecycle.describe());
        }
        if let Some(rates) = rates {
            let _ = writeln!(text, "\n{}", describe_rates(&rates, self.lag()));
        }
        table::printable(&text)
    }

    /// Returns the text that replaces "nothing is wrong", because that is not known.
    fn unjudged_in_words(&self) -> Option<String> {
        let unjudged = self.unjudged();
        let longest = unjudged.iter().map(|(_, patience)| *patience).max()?.as_secs_f64().ceil();
        let of = if unjudged.len() == 1 { "partition" } else { "partitions" };
        let numbers = unjudged.iter().map(|(number, _)| number.to_string()).collect::<Vec<_>>().join(", ");
        Some(format!(
            "not judged: {of} {numbers}, where records wait. Looks {longest} s apart can tell: --interval-s {longest}"
        ))
    }

    /// Describes open transactions, also those that are open only for a moment. They are the reason why produced
    /// records are not counted yet.
    fn open_transactions_in_words(&self) -> Option<String> {
        let open: Vec<_> =
            self.standings().filter_map(|(number, standing)| Some((number, standing.open_transaction()?))).collect();
        let records: u64 = open.iter().map(|(_, held_back)| held_back.offsets).sum();
        let open = open.iter().map(|(number, held_back)| match held_back.open_for {
            Some(open_for) => format!("partition {number} (open for {} s)", open_for.as_secs()),
            None => format!("partition {number}"),
        });
        let open = open.collect::<Vec<_>>().join(", ");
        (!open.is_empty())
            .then(|| format!("{records} records lie behind open transactions and cannot be read yet: {open}"))
    }

    fn not_asked_in_words(&self) -> Option<String> {
        let (members, asked) = (self.members().len(), self.asked.len());
        match asked {
            _ if self.has_nobody() => None,
            0 => Some("causes are known to the members: add --member URL".to_owned()),
            _ if asked < members => Some(format!("{asked} of {members} members were asked: add --member URL")),
            _ => None,
        }
    }

    fn partitions_table(&self) -> Table {
        let mut table = table::new(&[
            "partition",
            "log start",
            "log end",
            "committed",
            "lag",
            "open batch up to",
            "member",
            "what `tallyhouse run` does",
        ]);
        for partition in self.partitions.iter().flatten() {
            let number = partition.number;
            let cells = match &partition.seen {
                Ok(standing) => self.standing_cells(number, standing),
                Err(error) => ["?", "?", "?", "?", "?", "?", error].map(str::to_owned),
            };
            let cells = [number.to_string()].into_iter().chain(cells).enumerate();
            table.add_row(cells.map(|(column, text)| match column {
                1..=5 => number_cell(text),
                _ => Cell::new(text),
            }));
        }
        let sum = |of: &dyn Fn(&Standing) -> u64| self.standings().map(|(_, standing)| of(standing)).sum::<u64>();
        let mut total = vec![Cell::new("total"), Cell::new("")];
        total.push(number_cell(sum(&|standing| standing.end.saturating_sub(standing.start)).to_string() + " kept"));
        total.push(Cell::new(""));
        total.push(number_cell(self.lag().to_string()));
        table.add_row(total);
        table
    }

    fn standing_cells(&self, number: i32, standing: &Standing) -> [String; 7] {
        let dash = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        // Names the member by its place in the table of members.
        let member = match self.holder(number) {
            Some(index) => (index + 1).to_string(),
            None if self.members().iter().any(|member| member.partitions.is_none()) => "?".to_owned(),
            None => "-".to_owned(),
        };
        let outlook = match &standing.outlook {
            Some(Outlook::GoesOn(_)) | None if self.progress(standing) == Progress::StandsStill => {
                format!("STANDS STILL, for {} s so far", standing.motion.unmoved.as_secs())
            }
            None => "not known without ClickHouse".to_owned(),
            Some(Outlook::GoesOn(words)) => words.clone(),
            Some(Outlook::Stops(reason)) => format!("STOPS: {}, see `{}`", reason.code(), reason.page()),
        };
        [
            standing.start.to_string(),
            standing.end.to_string(),
            dash(standing.committed),
            standing.lag().to_string(),
            dash(standing.intent.map(|range| range.end)),
            member,
            outlook,
        ]
    }
}

fn json_lifecycle(lifecycle: &Lifecycle) -> JsonLifecycle<'_> {
    let state = lifecycle.seen.as_ref().ok().copied().flatten();
    JsonLifecycle {
        topic: &lifecycle.topic,
        error: lifecycle.seen.as_ref().err().map(String::as_str),
        partitions: state.map(|state| state.partitions),
        lag_records: state.map(|state| state.lag_records),
    }
}

fn json_asked(asked: &Asked) -> JsonAsked<'_> {
    let answer = asked.answer.as_ref().ok();
    JsonAsked {
        url: &asked.url,
        error: asked.answer.as_ref().err().map(String::as_str),
        ready: answer.map(|answer| answer.reasons.is_empty()),
        reasons: answer.map(|answer| &answer.reasons),
        stopped_partitions: answer.map(|answer| &answer.stopped),
    }
}

fn members_table(members: &[Member]) -> Table {
    let mut table = table::new(&["member", "client id", "host", "instance id", "partitions"]);
    for (index, member) in members.iter().enumerate() {
        let partitions = match &member.partitions {
            None => "not reported by the broker".to_owned(),
            Some(partitions) if partitions.is_empty() => "none".to_owned(),
            Some(partitions) => partitions.iter().map(i32::to_string).collect::<Vec<_>>().join(", "),
        };
        table.add_row([
            (index + 1).to_string(),
            member.client_id.clone(),
            member.host.trim_start_matches('/').to_owned(),
            member.instance_id.clone().unwrap_or_else(|| "-".to_owned()),
            partitions,
        ]);
    }
    table
}

fn describe_rates(rates: &Rates, lag: u64) -> String {
    let Rates { produced_per_s, committed_per_s, catch_up_s } = rates;
    let end = match catch_up_s {
        _ if lag == 0 => "nothing waits".to_owned(),
        Some(seconds) => format!("all is committed in {} at this pace", duration(*seconds)),
        None => "the lag does not shrink".to_owned(),
    };
    format!("produced {produced_per_s:.0}/s, committed {committed_per_s:.0}/s: {end}")
}

fn duration(seconds: f64) -> String {
    // Nobody waits for longer than a year.
    let seconds = Duration::from_secs_f64(seconds.clamp(0.0, 31_536_000.0)).as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

fn number_cell(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}
