//! Prints a report as a table for people, CSV for spreadsheets and JSON for machines.
//!
//! The names in CSV and JSON are stable: names are added, never changed. Every value is a number, a day or a UUID, so
//! CSV needs no quotes.

use super::recipients::{FirstEvents, RecipientRates, Recipients};
use super::zone::{ZoneDay, ZoneReport};
use super::{
    By, Counts, DENOMINATORS, Filter, Further, Line, LineRecipients, NO_RECIPIENTS, RECIPIENT_RATES, Rates, Report,
    further,
};
use crate::commands::table;
use crate::platform::output;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt::Write as _;

const COUNTS: [&str; 5] = ["delivered", "opens", "clicks", "bounces", "unsubscribes"];
const RATES: [&str; 5] = ["open_rate", "click_rate", "click_to_open_rate", "bounce_rate", "unsubscribe_rate"];

/// Columns of the table of recipients by campaign.
const CAMPAIGN_COLUMNS: [&str; 15] = [
    "delivered",
    "opened",
    "clicked",
    "opened or clicked",
    "bounced",
    "unsubscribed",
    "complained",
    "of these without delivery",
    "open rate",
    "click rate",
    "open-or-click",
    "click of opened",
    "unsubscribe rate",
    "complaint rate",
    "bounce rate",
];

/// The words below a table of recipients by day.
const DAYS_OF_RECIPIENTS: &str = "\
Each recipient of a campaign counts on the day of the first event of a type. So days add up, and they have no rates.";

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
    /// The sum over campaigns; absent if recipients were not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    total_recipients: Option<LineRecipients>,
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
    /// Recipients with a first event on the day.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipients: Option<FirstEvents>,
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
            total_recipients: self
                .recipients
                .map(|numbers| LineRecipients::Campaign { numbers, rates: numbers.rates() }),
        };
        output::json(&json)
    }

    /// Returns a header and a row for each line, without a total. Columns for sent, complaints and deferred are there if any row
    /// has them, and so are those of recipients. Rates are shares, not percents, and empty without a denominator.
    pub fn csv(&self) -> String {
        let keys: &[&str] = match self.by {
            By::Campaign => &["campaign_id", "workspace_id", "first_day", "last_day"],
            By::Day => &["day"],
        };
        let further = further(&self.total());
        let further_names: Vec<&str> = further.iter().map(|(name, _)| *name).collect();
        let has_recipients = self.lines.iter().any(|line| line.recipients.is_some());
        let recipients: Vec<&str> = match (has_recipients, self.by) {
            (false, _) => Vec::new(),
            (true, By::Campaign) => Recipients::NAMES.into_iter().chain(RecipientRates::NAMES).collect(),
            (true, By::Day) => FirstEvents::NAMES.to_vec(),
        };
        let named: Vec<String> = recipients.iter().map(|name| format!(",{}", csv_name(name))).collect();
        let mut text = [keys, &COUNTS, &RATES, &further_names].concat().join(",") + &named.concat() + "\n";
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
            let values = line.recipients.as_ref().map_or(vec![String::new(); recipients.len()], LineRecipients::values);
            let values: String = values.iter().map(|value| format!(",{value}")).collect();
            let _ = writeln!(text, "{keys},{counts},{rates}{further}{values}");
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
        if let Some(table) = self.recipients_table() {
            let about = match self.by {
                By::Campaign => RECIPIENT_RATES,
                By::Day => DAYS_OF_RECIPIENTS,
            };
            let _ =
                write!(text, "\n\nRecipients\n{table}\n\n{about}\n\nEvents\n{}\n\n{DENOMINATORS}\n", self.rows_table());
        } else {
            let _ = write!(text, "\n\n{}\n\n{DENOMINATORS}\n", self.rows_table());
            // A campaign's recipients are not counted for some of its days.
            if self.by == By::Day || !self.filter.has_days() {
                let _ = writeln!(text, "{NO_RECIPIENTS}");
            }
        }
        text
    }

    /// Returns the table of recipients; `None` if no row has any.
    fn recipients_table(&self) -> Option<Table> {
        let (key, names): (_, Vec<&str>) = match self.by {
            By::Campaign => ("campaign", CAMPAIGN_COLUMNS.to_vec()),
            By::Day => ("day", FirstEvents::NAMES.to_vec()),
        };
        let mut table = wide_table(std::iter::once(key).chain(names));
        let mut has_rows = false;
        for line in &self.lines {
            let Some(recipients) = &line.recipients else { continue };
            has_rows = true;
            let key = Cell::new(line.campaign_id.as_ref().unwrap_or(&line.first_day));
            table.add_row(std::iter::once(key).chain(right(recipients.cells())));
        }
        if let Some(numbers) = self.recipients {
            let total = LineRecipients::Campaign { numbers, rates: numbers.rates() };
            table.add_row(std::iter::once(Cell::new("total")).chain(right(total.cells())));
        }
        has_rows.then_some(table)
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
        let mut table = wide_table(header);
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

impl LineRecipients {
    /// Returns the values for CSV: a rate without a denominator is empty.
    fn values(&self) -> Vec<String> {
        match self {
            LineRecipients::Campaign { numbers, rates } => {
                let shares = rates.shares().iter().map(|share| share.map_or(String::new(), |share| share.to_string()));
                numbers.numbers().iter().map(u64::to_string).chain(shares).collect()
            }
            LineRecipients::Day(firsts) => firsts.numbers().map(|number| number.to_string()).to_vec(),
        }
    }

    /// Returns the values for people, without the number of all recipients of a campaign.
    fn cells(&self) -> Vec<String> {
        match self {
            LineRecipients::Campaign { numbers, rates } => {
                let rates = rates.shares().iter().copied().map(percent);
                numbers.numbers()[1..].iter().map(u64::to_string).chain(rates).collect()
            }
            LineRecipients::Day(_) => self.values(),
        }
    }
}

impl ZoneReport {
    /// Returns the JSON document, with a line end. A day that is not kept has no counts.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(&self) -> serde_json::Result<String> {
        let row = |of: &ZoneDay| ZoneLine {
            day: of.day.to_string(),
            kept: of.counts.is_some(),
            counts: of.counts,
            recipients: of.recipients,
        };
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
        let recipients: &[&str] = if self.has_recipients() { &FirstEvents::NAMES } else { &[] };
        let named: String = recipients.iter().map(|name| format!(",{}", csv_name(name))).collect();
        let mut text = ["day", "kept"].into_iter().chain(names(&further)).collect::<Vec<_>>().join(",") + &named + "\n";
        for of in &self.days {
            let counts = match &of.counts {
                Some(counts) => all_numbers(counts, &further),
                None => vec![String::new(); COUNTS.len() + further.len()],
            };
            let firsts = of.recipients.unwrap_or_default().numbers().map(|number| format!(",{number}")).concat();
            let firsts = if self.has_recipients() { firsts } else { String::new() };
            let _ = writeln!(text, "{},{},{}{firsts}", of.day, of.counts.is_some(), counts.join(","));
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
        if self.has_recipients() {
            let mut table = table::new(&[&["day"][..], &FirstEvents::NAMES].concat());
            for of in &self.days {
                let firsts = of.recipients.unwrap_or_default().numbers().map(|number| number.to_string());
                table.add_row([vec![Cell::new(of.day.to_string())], right(firsts)].concat());
            }
            let _ = write!(text, "\n\nRecipients\n{table}\n\n{DAYS_OF_RECIPIENTS}\n\nEvents");
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
        let gap = if self.has_recipients() { "\n" } else { "\n\n" };
        let _ = write!(text, "{gap}{table}\n\nNumbers of events. Each day is a day of {}.\n", self.zone);
        if self.days_not_kept() > 0 {
            text += "Not kept: raw rows of this day have expired, so its events are in no day here, and not in the total.\n\
                     `tallyhouse report --by day` counts them by UTC day.\n";
        }
        text
    }
}

/// Returns the name of a number of recipients among the columns of CSV. A rate's own name says of whom it is.
fn csv_name(name: &str) -> String {
    if name == "recipients" || name.contains("rate_of_") { name.to_owned() } else { format!("recipients_{name}") }
}

/// Returns an empty table as wide as its content: a UUID cut in two cannot be copied.
fn wide_table<'n>(header: impl IntoIterator<Item = &'n str>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_BORDERS_ONLY_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}

fn percent(rate: Option<f64>) -> String {
    rate.map_or("-".to_owned(), |rate| format!("{:.2} %", rate * 100.0))
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
    let counted = numbers(counts).map(|count| count.to_string());
    right(counted.into_iter().chain(shares(&Rates::of(counts)).map(percent)))
}

fn numbers(counts: &Counts) -> [u64; 5] {
    [counts.delivered, counts.opens, counts.clicks, counts.bounces, counts.unsubscribes]
}

fn shares(rates: &Rates) -> [Option<f64>; 5] {
    [rates.open_rate, rates.click_rate, rates.click_to_open_rate, rates.bounce_rate, rates.unsubscribe_rate]
}
