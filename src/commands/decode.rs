//! `tallyhouse decode`: shows the outcome of each line of a file, so that a mapping can be tried before it runs.
//!
//! Must decide with the decoder of `run`, and must connect to nothing.

use super::table::{self, printable};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, Read as _};
use tallyhouse_core::days::utc_text;
use tallyhouse_core::decode::event::Event;
use tallyhouse_core::decode::mapped::Decoder;
use tallyhouse_core::decode::reject::Rejection;
use uuid::Uuid;

/// Longest line that is read, in bytes. Kafka's default maximum of a record is 1 MiB.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// The outcome of one line. The names are stable: names are added, never changed.
#[derive(Debug, PartialEq, Serialize)]
pub struct Line {
    /// Number of the line, from 1.
    pub line: usize,
    /// The word `event` or `reject`.
    pub outcome: &'static str,
    /// The event's fields; absent for a reject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Fields>,
    /// The path of each field's value, or `constant`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub from: BTreeMap<&'static str, String>,
    /// Stable reason of a reject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Description of the fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The fields of an event as the tables would have them.
#[derive(Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are those of the columns")]
pub struct Fields {
    pub campaign_id: String,
    pub workspace_id: String,
    pub email: String,
    pub event_type: &'static str,
    pub event_time: String,
    pub metadata: String,
}

/// The outcomes of a file's lines.
#[derive(Debug)]
pub struct Decoded {
    lines: Vec<Line>,
    /// True if the file has more lines than were read.
    has_more: bool,
}

/// Reads at most `limit` lines. Empty lines are left out, because a file often ends with one.
///
/// # Errors
/// The file cannot be read, or a line is too long.
pub fn read(decoder: &Decoder, mut input: impl BufRead, limit: usize) -> std::io::Result<Decoded> {
    let mut decoded = Decoded { lines: Vec::new(), has_more: false };
    for number in 1.. {
        let mut line = Vec::new();
        let length = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if length == 0 {
            break;
        }
        if length as u64 == LINE_BYTES_MAX {
            return Err(std::io::Error::other(format!("line {number} has more than {LINE_BYTES_MAX} bytes")));
        }
        let value = line.strip_suffix(b"\n").unwrap_or(&line);
        let value = value.strip_suffix(b"\r").unwrap_or(value);
        if value.is_empty() {
            continue;
        }
        if decoded.lines.len() == limit {
            decoded.has_more = true;
            break;
        }
        let line = match decoder.decode(Some(value), None) {
            Ok(event) => Line::of_event(number, &event, decoder.origins(value)),
            Err(rejection) => Line::of_rejection(number, rejection),
        };
        decoded.lines.push(line);
    }
    Ok(decoded)
}

impl Line {
    fn of_event(line: usize, event: &Event<'_>, from: Vec<(&'static str, String)>) -> Line {
        let uuid = |id| Uuid::from_bytes(id).to_string();
        let fields = Fields {
            campaign_id: uuid(event.campaign_id),
            workspace_id: uuid(event.workspace_id),
            email: event.email.clone().into_owned(),
            event_type: event.event_type.name(),
            event_time: utc_text(i64::from(event.event_time) * 1_000),
            metadata: event.metadata.to_owned(),
        };
        let from = from.into_iter().collect();
        Line { line, outcome: "event", event: Some(fields), from, reason: None, error: None }
    }

    fn of_rejection(line: usize, rejection: Rejection) -> Line {
        let reason = Some(rejection.reason.code());
        Line { line, outcome: "reject", event: None, from: BTreeMap::new(), reason, error: Some(rejection.error) }
    }

    /// Returns the outcome in words: each field with its origin, or the fault.
    fn description(&self) -> String {
        let Some(event) = &self.event else { return self.error.clone().unwrap_or_default() };
        let fields = [
            ("campaign_id", event.campaign_id.as_str()),
            ("workspace_id", &event.workspace_id),
            ("email", &event.email),
            ("event_time", &event.event_time),
        ];
        let origin = |name| self.from.get(name).map_or("nothing", String::as_str);
        let mut text = format!("event_type from {}", origin("event_type"));
        for (name, value) in fields {
            let _ = write!(text, "\n{name} {value} from {}", origin(name));
        }
        let _ = write!(text, "\nmetadata from {}", origin("metadata"));
        text
    }
}

impl Decoded {
    /// True if a line would be rejected.
    pub fn has_rejects(&self) -> bool {
        self.lines.iter().any(|line| line.event.is_none())
    }

    /// Returns one JSON object for each line.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(&self) -> serde_json::Result<String> {
        self.lines.iter().map(|line| Ok(serde_json::to_string(line)? + "\n")).collect()
    }

    /// Returns a table with the sum of each outcome below it.
    pub fn table(&self) -> String {
        let mut table = table::new(&["line", "becomes", "why"]);
        let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for line in &self.lines {
            let becomes = match (&line.event, line.reason) {
                (Some(event), _) => (line.outcome, event.event_type),
                (None, reason) => (line.outcome, reason.unwrap_or_default()),
            };
            *sums.entry(becomes).or_default() += 1;
            let cells = [line.line.to_string(), format!("{} {}", becomes.0, becomes.1), line.description()];
            table.add_row(cells.map(|cell| printable(&cell)));
        }
        let mut text = format!("{table}\n\n");
        for ((outcome, name), count) in sums {
            let _ = writeln!(text, "{count} {outcome} {name}");
        }
        if self.has_more {
            let _ = writeln!(text, "the file has more lines than {}; --limit reads more", self.lines.len());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tallyhouse_core::decode::TimeBounds;

    const EVENT: &str = r#"{"campaign_id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "workspace_id": "00000000-0000-0000-0000-000000000001", "email": "a\u001b@b", "event_type": "open", "event_time": 1795501800}"#;

    fn decoded(text: &str, limit: usize) -> Decoded {
        let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
        read(&Decoder::new(bounds, None), text.as_bytes(), limit).unwrap()
    }

    #[test]
    fn each_line_has_its_outcome_and_the_origin_of_each_field() {
        let decoded = decoded(&format!("{EVENT}\r\n\n[{EVENT}]\n{{}}"), 10);
        let outcomes: Vec<_> = decoded.lines.iter().map(|line| (line.line, line.reason)).collect();
        assert_eq!(outcomes, [(1, None), (3, Some("array")), (4, Some("missing_field"))]);
        let first = &decoded.lines[0];
        assert_eq!(first.event.as_ref().unwrap().event_time, "2026-11-24T06:30:00.000Z");
        assert_eq!((first.from["email"].as_str(), first.from.get("metadata")), ("email", None));
        assert!(decoded.has_rejects() && !decoded.has_more);
        let table = decoded.table();
        assert!(
            table.contains("event open") && table.contains("1 reject array") && !table.contains('\u{1b}'),
            "{table}"
        );
        let json = decoded.json().unwrap();
        assert_eq!(json.lines().count(), 3);
        assert!(json.contains(r#""outcome":"reject","reason":"array""#), "{json}");
    }

    #[test]
    fn the_limit_is_said() {
        let decoded = decoded(&[EVENT; 3].join("\n"), 2);
        assert!(decoded.has_more && decoded.lines.len() == 2 && !decoded.has_rejects());
        assert!(decoded.table().contains("more lines than 2"));
    }
}
