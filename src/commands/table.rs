//! The common parts of the tables for people. Pure.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Width of a table, in columns. It must read well in a mail of cron's.
const WIDTH: u16 = 120;

/// Makes an empty table that breaks long cells into lines.
pub fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_BORDERS_ONLY_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH).set_header(header);
    table
}

/// True if a character moves a cursor, turns the direction of writing, or is not seen.
pub fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Returns the text without odd characters. Line ends are Tallyhouse's; all others came from outside.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_odd(c) && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Returns a code as it stands in JSON.
pub fn word(code: impl Serialize) -> String {
    serde_json::to_string(&code).unwrap_or_default().trim_matches('"').to_owned()
}
