//! Prints rejected records for people and for machines. Names in JSON are stable: names are added, never changed.

use super::{Filter, Ledger, Rejected, RejectsError, Replayed, read};
use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use crate::commands::table;
use crate::platform::output;
use comfy_table::ContentArrangement;
use serde::Serialize;
use std::fmt::Write as _;
use tallyhouse_core::days::utc_text;
use tallyhouse_core::decode::mapped::Decoder;

/// Maximum number of characters of a payload in a table.
const CELL_CHARS: usize = 60;
/// Number of offsets in one question.
const OFFSETS: usize = 5_000;

/// A list of rows.
pub struct Listing {
    /// The rows, each with only the beginning of its payload, and the payload's whole length.
    pub rows: Vec<(Rejected, u64)>,
    /// The ledger of replays, or the reason why it is not known.
    pub ledger: Result<Ledger, RejectsError>,
}

#[derive(Serialize)]
struct ListedRow<'a> {
    source: &'a str,
    source_offset: u64,
    kafka_timestamp: Option<String>,
    reason: &'a str,
    error: &'a str,
    payload_bytes: u64,
    payload_excerpt: String,
    replayed: Option<Replayed>,
}

#[derive(Serialize)]
struct Json<T: Serialize> {
    version: u32,
    /// Null where the ledger could be read.
    ledger_error: Option<String>,
    rows: Vec<T>,
}

fn json<T: Serialize>(rows: Vec<T>, ledger: Option<&RejectsError>) -> serde_json::Result<String> {
    let json = Json { version: 1, ledger_error: ledger.map(ToString::to_string), rows };
    output::json(&json)
}

impl Listing {
    fn replayed(&self, row: &Rejected) -> Option<Replayed> {
        self.ledger.as_ref().ok()?.get(&row.origin)
    }

    /// Returns the JSON document, with a line end.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(&self) -> serde_json::Result<String> {
        let listed = self.rows.iter().map(|(row, payload_bytes)| ListedRow {
            source: &row.origin.source,
            source_offset: row.origin.offset,
            kafka_timestamp: row.timestamp_ms.map(utc_text),
            reason: &row.reason,
            error: &row.error,
            payload_bytes: *payload_bytes,
            payload_excerpt: String::from_utf8_lossy(row.payload.as_deref().unwrap_or_default()).into_owned(),
            replayed: self.replayed(row),
        });
        json(listed.collect(), self.ledger.as_ref().err())
    }

    /// Returns the table for people.
    pub fn table(&self) -> String {
        if self.rows.is_empty() {
            return "no rejected records\n".to_owned();
        }
        let mut rows = table::new(&["source", "offset", "kafka timestamp", "reason", "error", "payload", "replayed"]);
        // A source cut in two cannot be copied, so the table is as wide as its longest source.
        rows.set_content_arrangement(ContentArrangement::Disabled);
        for (row, payload_bytes) in &self.rows {
            rows.add_row([
                one_line(row.origin.source.as_bytes(), usize::MAX),
                row.origin.offset.to_string(),
                row.timestamp_ms.map_or("-".to_owned(), utc_text),
                one_line(row.reason.as_bytes(), CELL_CHARS),
                one_line(row.error.as_bytes(), CELL_CHARS),
                match &row.payload {
                    Some(payload) => format!("{} ({payload_bytes} bytes)", one_line(payload, CELL_CHARS)),
                    None => "none".to_owned(),
                },
                self.replayed(row).map_or("-".to_owned(), |replayed| place(&replayed)),
            ]);
        }
        format!("{rows}\n{}", unknown_replays(self.ledger.as_ref().err()))
    }
}

fn place(replayed: &Replayed) -> String {
    let fixed = if replayed.fixed { ", fixed" } else { "" };
    format!("{}:{}{fixed}", replayed.partition, replayed.offset)
}

fn unknown_replays(error: Option<&RejectsError>) -> String {
    error.map_or_else(String::new, |error| format!("\nWhat was replayed is not known: {error}\n"))
}

/// Returns text from outside on one line, without characters that move a cursor or turn the direction of writing.
fn one_line(bytes: &[u8], chars_max: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut line: String =
        text.chars().take(chars_max).map(|c| if table::is_odd(c) { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(chars_max).is_some() {
        line.push('…');
    }
    line
}

/// The rows of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The reason of these rows.
    pub reason: String,
    /// Number of rows with this reason.
    pub rows: u64,
    /// Number of these rows that were replayed; `None` where that is not known.
    pub replayed: Option<u64>,
    /// Number of their sources.
    pub sources: u64,
    /// Earliest Kafka timestamp, in milliseconds since 1970.
    pub first_ms: i64,
    /// Latest Kafka timestamp, in milliseconds since 1970.
    pub last_ms: i64,
}

/// The rows by reason.
pub struct Counts {
    counts: Vec<Count>,
    error: Option<RejectsError>,
}

impl Counts {
    /// Counts the rows of a filter, and how many of them were replayed.
    ///
    /// # Errors
    /// Any of [`ClickHouseError`].
    pub async fn new(
        client: &Client,
        filter: &Filter,
        ledger: Result<Ledger, RejectsError>,
    ) -> Result<Counts, ClickHouseError> {
        let mut counts = read::counts(client, filter).await?;
        let ledger = match ledger {
            Ok(ledger) => ledger,
            Err(error) => return Ok(Counts { counts, error: Some(error) }),
        };
        counts.iter_mut().for_each(|count| count.replayed = Some(0));
        for (source, offsets) in ledger.by_source() {
            let offsets: Vec<u64> = offsets.collect();
            for offsets in offsets.chunks(OFFSETS) {
                for (reason, rows) in read::counts_among(client, filter, source, offsets.to_vec()).await? {
                    let replayed = counts.iter_mut().find(|count| count.reason == reason);
                    if let Some(Count { replayed: Some(replayed), .. }) = replayed {
                        *replayed += rows;
                    }
                }
            }
        }
        Ok(Counts { counts, error: None })
    }

    /// Returns the JSON document, with a line end.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(self) -> serde_json::Result<String> {
        json(self.counts, self.error.as_ref())
    }

    /// Returns the table for people.
    pub fn table(&self) -> String {
        if self.counts.is_empty() {
            return "no rejected records\n".to_owned();
        }
        let mut rows = table::new(&["reason", "rows", "replayed", "sources", "first", "last"]);
        for count in &self.counts {
            rows.add_row([
                one_line(count.reason.as_bytes(), CELL_CHARS),
                count.rows.to_string(),
                count.replayed.map_or("?".to_owned(), |replayed| replayed.to_string()),
                count.sources.to_string(),
                utc_text(count.first_ms),
                utc_text(count.last_ms),
            ]);
        }
        let total: u64 = self.counts.iter().map(|count| count.rows).sum();
        format!("{rows}\n{total} rows\n{}", unknown_replays(self.error.as_ref()))
    }
}

/// One row, with this version's judgement of it.
pub struct Shown {
    /// The row of `rejected_events`.
    pub row: Rejected,
    /// The decoder of the event topic's records.
    pub decoder: Decoder,
    /// The ledger of replays, or the reason why it is not known.
    pub ledger: Result<Ledger, RejectsError>,
}

impl Shown {
    /// Returns everything about the row, with its exact bytes.
    pub fn text(&self) -> String {
        let Rejected { origin, timestamp_ms, reason, error, key, payload } = &self.row;
        let judged = match self.decoder.decode(payload.as_deref(), *timestamp_ms) {
            Ok(event) => format!(
                "takes it for an event: {} at {}; `rejects replay` counts it",
                event.event_type.name(),
                utc_text(i64::from(event.event_time) * 1_000)
            ),
            Err(rejection) => format!("rejects it: {}: {}", rejection.reason.code(), rejection.error),
        };
        let replayed = match &self.ledger {
            Ok(ledger) => ledger.get(origin).map_or("no".to_owned(), |replayed| {
                format!("to partition:offset {} at {}", place(&replayed), utc_text(replayed.at_ms))
            }),
            Err(error) => format!("not known: {error}"),
        };
        let fields = [
            ("source", origin.source.clone()),
            ("offset", origin.offset.to_string()),
            ("kafka timestamp", timestamp_ms.map_or("none".to_owned(), utc_text)),
            ("reason", reason.clone()),
            ("error", error.clone()),
            ("this version", judged),
            ("replayed", replayed),
        ];
        let mut text = String::new();
        for (name, value) in fields {
            let _ = writeln!(text, "{name:<16} {}", one_line(value.as_bytes(), usize::MAX));
        }
        let none = match payload {
            Some(_) => "",
            None => ", a tombstone",
        };
        let payload = payload.as_deref().unwrap_or_default();
        let _ = write!(text, "\nkey, {} bytes\n{}", key.len(), dump(key));
        let _ = write!(text, "\npayload, {} bytes{none}\n{}", payload.len(), dump(payload));
        text
    }
}

/// Returns bytes in the form of `hexdump -C`.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (row, bytes) in bytes.chunks(16).enumerate() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
        let (left, right) = bytes.split_at(bytes.len().min(8));
        let shown = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' };
        let shown: String = bytes.iter().map(shown).collect();
        let _ = writeln!(text, "{:08x}  {:<24} {:<24} |{shown}|", row * 16, hex(left), hex(right));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_moves_the_cursor() {
        assert_eq!(one_line(b"a\x1b[2J\r\nb\xff", 60), "a\u{fffd}[2J\u{fffd}\u{fffd}b\u{fffd}");
        assert_eq!(one_line("\u{202e}evil\u{2066}".as_bytes(), 60), "\u{fffd}evil\u{fffd}");
        assert_eq!(one_line(b"abcdef", 3), "abc…");
    }

    #[test]
    fn bytes_are_dumped_as_hexdump_does() {
        let text = dump(b"{\"a\": 1}\0\xff9 bytes.");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "00000000  7b 22 61 22 3a 20 31 7d  00 ff 39 20 62 79 74 65  |{\"a\": 1}..9 byte|");
        assert_eq!(lines[1], format!("00000010  73 2e {:<43} |s.|", ""));
    }
}
