//! What the tables for people have alike. Pure.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Width of a table, in columns: it must read well in a mail of cron's.
const WIDTH: u16 = 120;

/// An empty table that breaks long cells into lines.
pub fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_BORDERS_ONLY_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH).set_header(header);
    table
}

/// The text without control characters: line ends are ours, everything else that moves a cursor came from outside.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// A code as it stands in JSON.
pub fn word(code: impl Serialize) -> String {
    serde_json::to_string(&code).unwrap_or_default().trim_matches('"').to_owned()
}
