//! What the tables for people have alike. Pure.

use crate::core::event::{Day, SECONDS_PER_DAY};
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

/// A time in milliseconds since 1970-01-01 UTC as text; what lies before that as that.
pub fn utc_text(ms: i64) -> String {
    let ms = ms.max(0).unsigned_abs();
    let (seconds, rest_ms) = (ms / 1_000, ms % 1_000);
    let (days, second) = (seconds / u64::from(SECONDS_PER_DAY), seconds % u64::from(SECONDS_PER_DAY));
    let date = Day(u16::try_from(days).unwrap_or(u16::MAX)).yyyymmdd();
    let (year, month, day) = (date / 10_000, date / 100 % 100, date % 100);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{rest_ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_chrono() {
        for ms in [0, 1, 951_782_400_000, 1_795_576_200_123, 4_102_444_799_999] {
            let wanted = chrono::DateTime::from_timestamp_millis(ms).unwrap().format("%Y-%m-%dT%H:%M:%S%.3fZ");
            assert_eq!(utc_text(ms), wanted.to_string());
        }
        assert_eq!(utc_text(-5), "1970-01-01T00:00:00.000Z");
    }
}
