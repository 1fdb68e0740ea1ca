//! Prints a check as a table for people and as JSON for machines. Pure.
//!
//! The JSON's names are stable: names are added, never changed.

use super::{Outcome, Report, State};
use crate::commands::table;
use crate::platform::output;
use serde::Serialize;
use std::fmt::Write as _;

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    ok: bool,
    failed: usize,
    warnings: usize,
    brokers: &'a str,
    clickhouse_url: &'a str,
    database: &'a str,
    topic: &'a str,
    group_id: &'a str,
    checks: &'a [Outcome],
}

impl Report {
    /// Returns the JSON document, with a line end.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(&self) -> serde_json::Result<String> {
        let json = Json {
            version: 1,
            ok: self.failed() == 0,
            failed: self.failed(),
            warnings: self.count(State::Warning),
            brokers: &self.brokers,
            clickhouse_url: &self.url,
            database: &self.database,
            topic: &self.topic,
            group_id: &self.group_id,
            checks: &self.checks,
        };
        output::json(&json)
    }

    /// Returns the table for people. Below a check that is not ok stands the remedy.
    pub fn table(&self) -> String {
        let Report { brokers, url, database, topic, group_id, .. } = self;
        let mut text =
            format!("Kafka {brokers}, topic {topic}, group {group_id}\nClickHouse {url}, database {database}\n\n");
        let mut table = table::new(&["check", "status", "seen, and what to do"]);
        for check in &self.checks {
            let status = match check.status {
                State::Ok => "ok",
                State::Warning => "warning",
                State::Failed => "FAILED",
                State::Skipped => "skipped",
            };
            let fix = check.fix.as_ref().map_or(String::new(), |fix| format!("\n-> {fix}"));
            table.add_row([table::word(check.code), status.to_owned(), format!("{}{fix}", check.seen)]);
        }
        let verdict = match (self.failed(), self.count(State::Warning)) {
            (0, 0) => "all is ready for `tallyhouse run`".to_owned(),
            (0, warnings) => format!("ready for `tallyhouse run`; {warnings} warnings"),
            (failed, warnings) => format!("{failed} failed, {warnings} warnings; each says what to do after ->"),
        };
        let _ = writeln!(text, "{table}\n\n{verdict}");
        table::printable(&text)
    }
}
