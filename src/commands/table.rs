//! The common parts of the tables for people. Pure.

use chrono::{DateTime, SecondsFormat, Utc};
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

/// Returns a time in milliseconds since 1970-01-01 UTC as text. An earlier time becomes 1970-01-01.
pub fn utc_text(ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(ms.max(0)).unwrap_or(DateTime::<Utc>::MAX_UTC);
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_to_the_millisecond() {
        for ms in [0, 1, 951_782_400_000, 1_795_576_200_123, 4_102_444_799_999] {
            let wanted = chrono::DateTime::from_timestamp_millis(ms).unwrap().format("%Y-%m-%dT%H:%M:%S%.3fZ");
            assert_eq!(utc_text(ms), wanted.to_string());
        }
        assert_eq!(utc_text(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc_text(1_795_576_200_123), "2026-11-25T03:10:00.123Z");
        assert_eq!(utc_text(-5), "1970-01-01T00:00:00.000Z");
    }
}
