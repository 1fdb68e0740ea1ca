//! Prints a report as a table for people, CSV for spreadsheets and JSON for machines.
//!
//! The names in CSV and JSON are stable: names are added, never changed. Every value is a number, a day or a UUID, so
//! CSV needs no quotes.

use super::{By, Counts, DENOMINATORS, Line, Rates, Report};
use crate::platform::output;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt::Write as _;

const COUNTS: [&str; 5] = ["delivered", "opens", "clicks", "bounces", "unsubscribes"];
const RATES: [&str; 5] = ["open_rate", "click_rate", "click_to_open_rate", "bounce_rate", "unsubscribe_rate"];

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    database: &'a str,
    by: By,
    workspace_id: Option<String>,
    campaign_id: Option<String>,
    since: Option<String>,
    until: Option<String>,
    rows: &'a [Line],
    total: Total,
}

#[derive(Serialize)]
struct Total {
    #[serde(flatten)]
    counts: Counts,
    #[serde(flatten)]
    rates: Rates,
}

impl Report {
    /// Returns the JSON document, with a line end. Rates are shares, not percents, and null without a denominator.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(&self) -> serde_json::Result<String> {
        let counts = self.total();
        let json = Json {
            version: 1,
            database: &self.database,
            by: self.by,
            workspace_id: self.filter.workspace.map(|id| id.to_string()),
            campaign_id: self.filter.campaign.map(|id| id.to_string()),
            since: self.filter.since.map(|day| day.to_string()),
            until: self.filter.until.map(|day| day.to_string()),
            rows: &self.lines,
            total: Total { counts, rates: Rates::of(&counts) },
        };
        output::json(&json)
    }

    /// Returns a header and a row for each line, without a total. Columns for sent, complaints and deferred are there if any row
    /// has them. Rates are shares, not percents, and empty without a
    /// denominator.
    pub fn csv(&self) -> String {
        let keys: &[&str] = match self.by {
            By::Campaign => &["campaign_id", "workspace_id", "first_day", "last_day"],
            By::Day => &["day"],
        };
        let further = self.further();
        let further_names: Vec<&str> = further.iter().map(|(name, _)| *name).collect();
        let mut text = [keys, &COUNTS, &RATES, &further_names].concat().join(",") + "\n";
        for line in &self.lines {
            let keys = match (&line.campaign_id, &line.workspace_id) {
                (Some(campaign), Some(workspace)) => {
                    format!("{campaign},{workspace},{},{}", line.first_day, line.last_day)
                }
                _ => line.first_day.clone(),
            };
            let counts = numbers(&line.counts).map(|count| count.to_string()).join(",");
            let rates = shares(&line.rates).map(|rate| rate.map_or(String::new(), |rate| rate.to_string())).join(",");
            let further: String = further.iter().map(|(_, count)| format!(",{}", count(&line.counts))).collect();
            let _ = writeln!(text, "{keys},{counts},{rates}{further}");
        }
        text
    }

    /// Returns the table for people, with a total and the definitions of the rates.
    pub fn table(&self) -> String {
        let mut text = format!("database {}", self.database);
        let named = [
            ("workspace", self.filter.workspace.map(|id| id.to_string())),
            ("campaign", self.filter.campaign.map(|id| id.to_string())),
            ("since", self.filter.since.map(|day| day.to_string())),
            ("until", self.filter.until.map(|day| day.to_string())),
        ];
        for (word, value) in named {
            let _ = value.map(|value| write!(text, ", {word} {value}"));
        }
        if self.lines.is_empty() {
            let _ = writeln!(text, "\n\nno events counted");
            return text;
        }
        let _ = write!(text, "\n\n{}\n\n{DENOMINATORS}\n", self.rows_table());
        text
    }

    /// Returns the table of the rows. It does not repeat in each row a workspace that was asked for.
    fn rows_table(&self) -> Table {
        let workspaces = self.by == By::Campaign && self.filter.workspace.is_none();
        let mut header = match self.by {
            By::Campaign => vec!["campaign"],
            By::Day => vec!["day"],
        };
        if workspaces {
            header.push("workspace");
        }
        let keys = header.len();
        header.extend(COUNTS);
        header.extend(["open rate", "click rate", "click-to-open", "bounce rate", "unsubscribe rate"]);
        let further = self.further();
        header.extend(further.iter().map(|(name, _)| *name));
        let further = |counts: &Counts| -> Vec<Cell> {
            let counts = further.iter().map(|(_, count)| count(counts).to_string());
            counts.map(|text| Cell::new(text).set_alignment(CellAlignment::Right)).collect()
        };
        let mut table = Table::new();
        table.load_style(presets::ASCII_BORDERS_ONLY_CONDENSED);
        // A UUID cut in two cannot be copied, so the table is as wide as its content.
        table.set_content_arrangement(ContentArrangement::Disabled).set_header(header);
        for line in &self.lines {
            let mut cells = vec![Cell::new(line.campaign_id.as_ref().unwrap_or(&line.first_day))];
            if workspaces {
                cells.push(Cell::new(line.workspace_id.as_deref().unwrap_or_default()));
            }
            cells.extend(figures(&line.counts));
            cells.extend(further(&line.counts));
            table.add_row(cells);
        }
        let mut total = vec![Cell::new("total")];
        total.resize(keys, Cell::new(""));
        total.extend(figures(&self.total()));
        total.extend(further(&self.total()));
        table.add_row(total);
        table
    }
}

fn figures(counts: &Counts) -> Vec<Cell> {
    let percent = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{:.2} %", rate * 100.0));
    let counted = numbers(counts).map(|count| count.to_string());
    let texts = counted.into_iter().chain(shares(&Rates::of(counts)).map(percent));
    texts.map(|text| Cell::new(text).set_alignment(CellAlignment::Right)).collect()
}

fn numbers(counts: &Counts) -> [u64; 5] {
    [counts.delivered, counts.opens, counts.clicks, counts.bounces, counts.unsubscribes]
}

fn shares(rates: &Rates) -> [Option<f64>; 5] {
    [rates.open_rate, rates.click_rate, rates.click_to_open_rate, rates.bounce_rate, rates.unsubscribe_rate]
}
