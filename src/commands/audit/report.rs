//! The audit's report: a table for people, and JSON for machines.
//!
//! The JSON's field names are stable (`docs/audit.md`): fields are added, never renamed or given another meaning.

use super::finding::{Check, Finding, Severity};
use crate::commands::table;
use crate::platform::output;
use comfy_table::Table;
use serde::Serialize;
use std::fmt::Write as _;

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The check that was made.
    pub check: Check,
    /// The scope of the check, in words.
    pub scope: String,
    /// Number of violations, including those that are not listed.
    pub violations: u64,
    /// Number of notices, including those that are not listed.
    pub notices: u64,
    /// The first findings of each severity, up to the limit.
    pub findings: Vec<Finding>,
}

/// The report of an audit.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the ClickHouse database.
    pub database: String,
    /// Name of the event topic.
    pub topic: String,
    /// The topic's id today.
    pub topic_id: String,
    /// Consumer group of the members.
    pub group_id: String,
    /// First day of the audit.
    pub since: Option<String>,
    /// Last day of the audit.
    pub until: Option<String>,
    /// One result of each check.
    pub checks: Vec<Outcome>,
}

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    clean: bool,
    violations: u64,
    notices: u64,
    database: &'a str,
    topic: &'a str,
    topic_id: &'a str,
    group_id: &'a str,
    since: &'a Option<String>,
    until: &'a Option<String>,
    checks: &'a [Outcome],
}

impl Outcome {
    /// Makes the result of a check that has found nothing yet.
    pub fn new(check: Check, scope: String) -> Outcome {
        Outcome { check, scope, violations: 0, notices: 0, findings: Vec::new() }
    }

    /// Counts a finding, and lists it if there are fewer than `limit` of its severity yet.
    pub fn add(&mut self, finding: Finding, limit: usize) {
        let listed = self.findings.iter().filter(|listed| listed.severity == finding.severity).count();
        match finding.severity {
            Severity::Violation => self.violations += 1,
            Severity::Notice => self.notices += 1,
        }
        if listed < limit {
            self.findings.push(finding);
        }
    }

    /// Adds the violations that a query has listed, and counts `all` that there are.
    pub fn add_first(&mut self, findings: impl ExactSizeIterator<Item = Finding>, all: u64, limit: usize) {
        self.violations += all - findings.len() as u64;
        findings.for_each(|finding| self.add(finding, limit));
    }

    /// Adds what the same check has found of a lifecycle topic.
    pub fn absorb(&mut self, of: Outcome, topic: &str, limit: usize) {
        let (violations, notices) = (self.violations + of.violations, self.notices + of.notices);
        of.findings.into_iter().for_each(|finding| self.add(finding, limit));
        (self.violations, self.notices) = (violations, notices);
        self.scope = format!("{}; {topic}: {}", self.scope, of.scope);
    }
}

impl Report {
    /// Returns the number of violations over all checks.
    pub fn violations(&self) -> u64 {
        self.checks.iter().map(|outcome| outcome.violations).sum()
    }

    fn notices(&self) -> u64 {
        self.checks.iter().map(|outcome| outcome.notices).sum()
    }

    /// Returns the JSON document, with a line end.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(&self) -> serde_json::Result<String> {
        let json = Json {
            version: 1,
            clean: self.violations() == 0,
            violations: self.violations(),
            notices: self.notices(),
            database: &self.database,
            topic: &self.topic,
            topic_id: &self.topic_id,
            group_id: &self.group_id,
            since: &self.since,
            until: &self.until,
            checks: &self.checks,
        };
        output::json(&json)
    }

    /// Returns the table for people.
    pub fn table(&self) -> String {
        let mut text = format!("database {}, topic {}, group {}", self.database, self.topic, self.group_id);
        let days = [("since", &self.since), ("until", &self.until)];
        days.iter().filter_map(|(word, day)| day.as_ref().map(|day| (word, day))).for_each(|(word, day)| {
            let _ = write!(text, ", {word} {day}");
        });
        let mut checks = table::new(&["check", "promise", "looked at", "violations", "notices"]);
        for outcome in &self.checks {
            checks.add_row([
                table::word(outcome.check),
                outcome.check.promise().to_owned(),
                outcome.scope.clone(),
                outcome.violations.to_string(),
                outcome.notices.to_string(),
            ]);
        }
        let _ = write!(text, "\n\n{checks}\n\n");
        for severity in [Severity::Violation, Severity::Notice] {
            if let Some(table) = self.findings_table(severity) {
                let _ = write!(text, "{table}\n\n");
            }
        }
        let verdict = match self.violations() {
            0 => "clean".to_owned(),
            count => format!("{count} violations; `tallyhouse explain CODE` says what to do"),
        };
        let _ = writeln!(text, "{verdict}");
        text
    }

    fn findings_table(&self, severity: Severity) -> Option<Table> {
        let title = if severity == Severity::Violation { "VIOLATION" } else { "notice" };
        let mut table = table::new(&[title, "where", "what"]);
        for outcome in &self.checks {
            let of_severity = outcome.findings.iter().filter(|finding| finding.severity == severity);
            of_severity.for_each(|finding| {
                table.add_row([finding.code.word().to_owned(), place(finding), finding.message.clone()]);
            });
            let all = if severity == Severity::Violation { outcome.violations } else { outcome.notices };
            let listed = outcome.findings.iter().filter(|finding| finding.severity == severity).count() as u64;
            if all > listed {
                table.add_row(["…".to_owned(), String::new(), format!("and {} more; see --limit", all - listed)]);
            }
        }
        (!table.is_empty()).then_some(table)
    }
}

/// Returns the place of a finding, one thing a line.
fn place(finding: &Finding) -> String {
    let mut lines: Vec<String> = Vec::new();
    if let Some(counter) = &finding.counter {
        lines.push(format!("{} {}", counter.day, counter.event_type));
        lines.push(format!("campaign {}", counter.campaign_id));
    }
    lines.extend(finding.table.clone());
    lines.extend(finding.source.clone());
    match (finding.first_offset, finding.end_offset) {
        (Some(first), Some(end)) if end <= first + 1 => lines.push(format!("offset {first}")),
        (Some(first), Some(end)) => lines.push(format!("offsets {first} to {}", end - 1)),
        _ => {}
    }
    lines.join("\n")
}
