//! Prints a campaign in depth as tables for people, CSV for spreadsheets and JSON for machines.

use super::{Depth, HOURS_MAX, LINKS_MAX, Recipients, TIME_LIMITS};
use crate::commands::table::{self, printable};
use crate::platform::output;
use comfy_table::{Cell, CellAlignment};
use std::fmt::Write as _;
use tallyhouse_core::days::utc_text;

/// A part of the report: its title, the names of its columns, and its rows. The first column is text.
pub(super) struct Section {
    /// Name of the part in CSV.
    pub name: &'static str,
    pub title: String,
    pub columns: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

/// Columns of recipients, with the reading of each.
const REACHED: [&str; 8] = [
    "delivered",
    "unique opens",
    "of these not by a machine",
    "unique clicks",
    "bounced",
    "unsubscribed",
    "unique open rate",
    "unique click rate",
];

impl Depth {
    /// Returns the JSON document, with a line end. Rates are shares of unique delivered, and null without one.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(&self) -> serde_json::Result<String> {
        output::json(self)
    }

    /// Returns one row for each figure: its section, the name of its row, the name of its column, and the value.
    pub fn csv(&self) -> String {
        let mut text = "section,row,column,value\n".to_owned();
        for section in self.sections() {
            for row in &section.rows {
                let Some((name, values)) = row.split_first() else { continue };
                for (column, value) in section.columns.iter().skip(1).zip(values) {
                    let cells = [section.name, name, column, value].map(csv_cell);
                    let _ = writeln!(text, "{}", cells.join(","));
                }
            }
        }
        text
    }

    /// Returns the tables for people.
    pub fn table(&self) -> String {
        let mut text = self.heading();
        for section in self.sections() {
            let mut table = table::new(&section.columns);
            for row in &section.rows {
                table.add_row(cells(row));
            }
            let _ = write!(text, "\n{}\n\n{table}\n", section.title);
        }
        text
    }

    /// Returns the lines above the sections.
    pub(super) fn heading(&self) -> String {
        let mut text = format!("campaign {}\n", self.campaign_id);
        if self.rows == 0 {
            let _ = writeln!(text, "email_events has no rows of this campaign; daily counts {} events", self.counted);
            return text;
        }
        let time = |seconds: Option<u32>| utc(seconds).unwrap_or_default();
        let first = if self.has_delivered { "first delivery" } else { "first event (none is a delivery)" };
        let _ = writeln!(text, "{first} {}, last event {}", time(self.first_delivery), time(self.last_event));
        let _ = write!(text, "{} rows", self.rows);
        if self.counted > self.rows {
            let _ =
                write!(text, " of {} counted events; the others have expired, and no figure has them", self.counted);
        }
        text.push('\n');
        text += "A rate is a share of the recipients with a delivered event. \"Not by a machine\": an open that no machine rule names.\n";
        text
    }

    /// Returns the sections that have rows.
    pub(super) fn sections(&self) -> Vec<Section> {
        let numbers = |values: &[u64]| values.iter().map(u64::to_string).collect::<Vec<_>>();
        let row = |name: String, values: Vec<String>| [vec![name], values].concat();
        let more = if self.has_more_links { format!(", the {LINKS_MAX} with most clicks") } else { String::new() };
        let times = [
            ("audience ready", self.timeline.audience_ready),
            ("template ready", self.timeline.template_ready),
            ("first delivery", self.timeline.first_delivery),
            ("half of the opens", self.timeline.half_of_opens),
        ];
        let timeline = times.iter().filter_map(|(name, time)| Some(row((*name).to_owned(), vec![utc(*time)?])));
        let audience =
            self.audience_size.map(|size| row("recipients of the audience".to_owned(), vec![size.to_string()]));
        let share = self.delivered_of_audience.map(|rate| {
            row("unique delivered, as a share of the audience".to_owned(), vec![format!("{:.2} %", rate * 100.0)])
        });
        let recipients_of = [("all".to_owned(), &self.recipients)];
        let providers = self.providers.iter().map(|of| (of.provider.clone(), &of.recipients));
        let sections = [
            Section {
                name: "timeline",
                title: "Timeline".to_owned(),
                columns: vec!["stage", "time in UTC, or figure"],
                rows: timeline.chain(audience).chain(share).collect(),
            },
            Section {
                name: "events",
                title: "Events by type".to_owned(),
                columns: vec!["type", "events", "recipients"],
                rows: self
                    .events
                    .iter()
                    .map(|of| row(of.event_type.clone(), numbers(&[of.events, of.recipients])))
                    .collect(),
            },
            Section {
                name: "recipients",
                title: "Recipients by mailbox provider".to_owned(),
                columns: [vec!["provider"], REACHED.to_vec()].concat(),
                rows: recipients_of.into_iter().chain(providers).map(|(name, of)| row(name, reached(of))).collect(),
            },
            Section {
                name: "hours",
                title: "Opens and clicks by hour since the first delivery".to_owned(),
                columns: vec!["hour", "opens", "of these by a machine", "clicks"],
                rows: self
                    .hours
                    .iter()
                    .map(|of| row(hour_name(of.hour), numbers(&[of.opens, of.machine_opens, of.clicks])))
                    .collect(),
            },
            Section {
                name: "links",
                title: format!("Clicks by link{more}"),
                columns: vec!["link", "clicks", "unique clicks"],
                rows: self
                    .links
                    .iter()
                    .map(|of| row(or(&of.link, "(no link in metadata)"), numbers(&[of.clicks, of.recipients])))
                    .collect(),
            },
            Section {
                name: "opens",
                title: "Opens by machine rule".to_owned(),
                columns: vec!["rule", "opens", "recipients"],
                rows: self
                    .opens_by_machine
                    .iter()
                    .map(|of| row(or(&of.rule, "(no rule)"), numbers(&[of.opens, of.recipients])))
                    .collect(),
            },
            Section {
                name: "bounces",
                title: "Bounces by kind".to_owned(),
                columns: vec!["kind", "bounces", "recipients"],
                rows: self
                    .bounces
                    .iter()
                    .map(|of| row(of.kind.clone(), numbers(&[of.bounces, of.recipients])))
                    .collect(),
            },
            Section {
                name: "time_to_open",
                title: "Time from delivery to the first open, in recipients".to_owned(),
                columns: vec!["within", "all opens", "not by a machine"],
                rows: self.times(),
            },
        ];
        sections.into_iter().filter(|section| !section.rows.is_empty()).collect()
    }

    fn times(&self) -> Vec<Vec<String>> {
        let [all, unnamed] = &self.time_to_open;
        if all.recipients == 0 {
            return Vec::new();
        }
        let limits = TIME_LIMITS.iter().zip(all.within.iter().zip(&unnamed.within));
        let within =
            limits.map(|((_, name), (all, unnamed))| [(*name).to_owned(), all.to_string(), unnamed.to_string()]);
        let seconds = |seconds: Option<u64>| seconds.map_or("-".to_owned(), |s| format!("{s} s"));
        let ends = [
            ["any time".to_owned(), all.recipients.to_string(), unnamed.recipients.to_string()],
            ["median".to_owned(), seconds(all.median_s), seconds(unnamed.median_s)],
            ["nine in ten".to_owned(), seconds(all.nine_in_ten_s), seconds(unnamed.nine_in_ten_s)],
        ];
        within.chain(ends).map(Vec::from).collect()
    }
}

fn utc(seconds: Option<u32>) -> Option<String> {
    seconds.map(|seconds| utc_text(i64::from(seconds) * 1_000))
}

fn reached(of: &Recipients) -> Vec<String> {
    let percent = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{:.2} %", rate * 100.0));
    let reached = &of.reached;
    let counts = [
        reached.delivered,
        reached.opened,
        reached.opened_unnamed,
        reached.clicked,
        reached.bounced,
        reached.unsubscribed,
    ];
    let counts = counts.into_iter().map(|count| count.to_string());
    counts.chain([percent(of.unique_open_rate), percent(of.unique_click_rate)]).collect()
}

pub(super) fn hour_name(hour: i32) -> String {
    match hour {
        ..0 => "before".to_owned(),
        HOURS_MAX.. => format!("{HOURS_MAX} and later"),
        _ => hour.to_string(),
    }
}

fn or(text: &str, absent: &str) -> String {
    if text.is_empty() { absent.to_owned() } else { text.to_owned() }
}

fn cells(row: &[String]) -> Vec<Cell> {
    let cell = |(place, text): (usize, &String)| {
        let side = if place == 0 { CellAlignment::Left } else { CellAlignment::Right };
        Cell::new(printable(text)).set_alignment(side)
    };
    row.iter().enumerate().map(cell).collect()
}

/// Returns a value for CSV (RFC 4180). A text that a spreadsheet would take for a formula gets an apostrophe before it.
fn csv_cell(text: &str) -> String {
    let is_number = text.parse::<f64>().is_ok();
    let safe = if text.starts_with(['=', '+', '-', '@']) && !is_number { format!("'{text}") } else { text.to_owned() };
    if safe.contains([',', '"', '\n', '\r']) { format!("\"{}\"", safe.replace('"', "\"\"")) } else { safe }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_quotes_and_defuses() {
        for (text, wanted) in [
            ("a", "a"),
            ("-1", "-1"),
            ("a,\"b\"", "\"a,\"\"b\"\"\""),
            ("=1+1", "'=1+1"),
            ("@a,b", "\"'@a,b\""),
            ("12.5 %", "12.5 %"),
        ] {
            assert_eq!(csv_cell(text), wanted);
        }
    }

    #[test]
    fn hours_beyond_the_ends_have_names() {
        assert_eq!([-1, 0, 719, HOURS_MAX].map(hour_name), ["before", "0", "719", "720 and later"]);
    }
}
