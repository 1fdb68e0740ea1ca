//! Prints a report as a table for people, CSV for spreadsheets and JSON for machines.
//!
//! The names in CSV and JSON are stable: names are added, never changed. Every value is a number, a day or a UUID, so
//! CSV needs no quotes.

use super::zone::{ZoneDay, ZoneReport};
use super::{By, Counts, DENOMINATORS, Filter, Further, Line, Rates, Report, further};
use crate::commands::table;
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
struct ZoneJson<'a> {
    version: u32,
    database: &'a str,
    by: By,
    zone: &'a str,
    workspace_id: Option<String>,
    campaign_id: Option<String>,
    since: Option<String>,
    until: Option<String>,
    rows: Vec<ZoneLine>,
    /// The sum of the days that have counts.
    total: Counts,
    days_not_kept: usize,
}

#[derive(Serialize)]
struct ZoneLine {
    day: String,
    kept: bool,
    #[serde(flatten)]
    counts: Option<Counts>,
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
        let further = further(&self.total());
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
        let mut text = heading(&self.database, &self.filter);
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
        let further = further(&self.total());
        header.extend(further.iter().map(|(name, _)| *name));
        let further = |counts: &Counts| right(further.iter().map(|(_, count)| count(counts).to_string()));
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

impl ZoneReport {
    /// Returns the JSON document, with a line end. A day that is not kept has no counts.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(&self) -> serde_json::Result<String> {
        let row = |of: &ZoneDay| ZoneLine { day: of.day.to_string(), kept: of.counts.is_some(), counts: of.counts };
        let json = ZoneJson {
            version: 1,
            database: &self.database,
            by: By::Day,
            zone: &self.zone,
            workspace_id: self.filter.workspace.map(|id| id.to_string()),
            campaign_id: self.filter.campaign.map(|id| id.to_string()),
            since: self.filter.since.map(|day| day.to_string()),
            until: self.filter.until.map(|day| day.to_string()),
            rows: self.days.iter().map(row).collect(),
            total: self.total(),
            days_not_kept: self.days_not_kept(),
        };
        output::json(&json)
    }

    /// Returns a header and a row for each day, without a total. The counts of a day that is not kept are empty.
    pub fn csv(&self) -> String {
        let further = further(&self.total());
        let mut text = ["day", "kept"].into_iter().chain(names(&further)).collect::<Vec<_>>().join(",") + "\n";
        for of in &self.days {
            let counts = match &of.counts {
                Some(counts) => all_numbers(counts, &further),
                None => vec![String::new(); COUNTS.len() + further.len()],
            };
            let _ = writeln!(text, "{},{},{}", of.day, of.counts.is_some(), counts.join(","));
        }
        text
    }

    /// Returns the table for people, with a total.
    pub fn table(&self) -> String {
        let mut text = heading(&self.database, &self.filter);
        if self.days.is_empty() {
            let _ = writeln!(text, "\n\nno events counted");
            return text;
        }
        let further = further(&self.total());
        let mut table = table::new(&["day"].into_iter().chain(names(&further)).collect::<Vec<_>>());
        for of in &self.days {
            let counts = match &of.counts {
                Some(counts) => all_numbers(counts, &further),
                None => {
                    let first = std::iter::once("not kept");
                    first.chain(std::iter::repeat("-")).take(COUNTS.len() + further.len()).map(str::to_owned).collect()
                }
            };
            table.add_row([vec![Cell::new(of.day.to_string())], right(counts)].concat());
        }
        table.add_row([vec![Cell::new("total")], right(all_numbers(&self.total(), &further))].concat());
        let _ = write!(text, "\n\n{table}\n\nNumbers of events. Each day is a day of {}.\n", self.zone);
        if self.days_not_kept() > 0 {
            text += "Not kept: raw rows of this day have expired, so its events are in no day here, and not in the total.\n\
                     `tallyhouse report --by day` counts them by UTC day.\n";
        }
        text
    }
}

/// Returns the line above a table: the database and the conditions on the events.
fn heading(database: &str, filter: &Filter) -> String {
    let mut text = format!("database {database}");
    let named = [
        ("workspace", filter.workspace.map(|id| id.to_string())),
        ("campaign", filter.campaign.map(|id| id.to_string())),
        ("since", filter.since.map(|day| day.to_string())),
        ("until", filter.until.map(|day| day.to_string())),
    ];
    for (word, value) in named {
        let _ = value.map(|value| write!(text, ", {word} {value}"));
    }
    text
}

fn names(further: &[Further]) -> impl Iterator<Item = &'static str> {
    COUNTS.into_iter().chain(further.iter().map(|(name, _)| *name))
}

fn all_numbers(counts: &Counts, further: &[Further]) -> Vec<String> {
    let further = further.iter().map(|(_, count)| count(counts));
    numbers(counts).into_iter().chain(further).map(|count| count.to_string()).collect()
}

fn right(texts: impl IntoIterator<Item = String>) -> Vec<Cell> {
    texts.into_iter().map(|text| Cell::new(text).set_alignment(CellAlignment::Right)).collect()
}

fn figures(counts: &Counts) -> Vec<Cell> {
    let percent = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{:.2} %", rate * 100.0));
    let counted = numbers(counts).map(|count| count.to_string());
    right(counted.into_iter().chain(shares(&Rates::of(counts)).map(percent)))
}

fn numbers(counts: &Counts) -> [u64; 5] {
    [counts.delivered, counts.opens, counts.clicks, counts.bounces, counts.unsubscribes]
}

fn shares(rates: &Rates) -> [Option<f64>; 5] {
    [rates.open_rate, rates.click_rate, rates.click_to_open_rate, rates.bounce_rate, rates.unsubscribe_rate]
}
