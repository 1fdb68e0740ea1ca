//! Reasons why a record is not an event: stable words for the table, the metrics and the alerts.

/// The reason a record was rejected. Its [`code`](Reason::code) is stored and must never change its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The record has no value (a tombstone).
    Tombstone,
    /// The value has no bytes.
    Empty,
    /// The value begins with a schema registry's prefix.
    SchemaRegistryPrefix,
    /// The value itself is compressed, in addition to Kafka's compression of its batch.
    Compressed,
    /// The value is not UTF-8.
    NotUtf8,
    /// The value is not JSON, or is cut off.
    NotJson,
    /// The value is JSON, but neither an object nor an array.
    NotAnObject,
    /// The value is an array, such as the batch of a provider's webhook.
    Array,
    /// A string that is read holds half of a surrogate pair (`\ud800`), which is no character.
    LoneSurrogate,
    /// One of the six fields occurs twice.
    DuplicateField,
    /// The event is inside of an envelope, such as that of CloudEvents or Kafka Connect.
    Enveloped,
    /// A required field is absent.
    MissingField,
    /// A field has a value of the wrong JSON type.
    WrongType,
    /// `campaign_id` or `workspace_id` is not a UUID.
    BadUuid,
    /// `event_type` is no known type.
    UnknownEventType,
    /// `event_time` cannot be read as a time.
    BadTime,
    /// `event_time` is outside 1970-01-01 to 2106-02-07, the range of ClickHouse's `DateTime`.
    TimeOutOfRange,
    /// `event_time` is further from the Kafka record's timestamp than `decode.past_days_max` or
    /// `decode.future_days_max` allow.
    TimeImplausible,
    /// As `TimeImplausible`, but the record's timestamp itself cannot be right: it seems to be in another unit than milliseconds.
    RecordTimeImplausible,
}

impl Reason {
    /// Every reason. A window stores a reason as its index in this list.
    pub const ALL: [Reason; 19] = [
        Reason::Tombstone,
        Reason::Empty,
        Reason::SchemaRegistryPrefix,
        Reason::Compressed,
        Reason::NotUtf8,
        Reason::NotJson,
        Reason::NotAnObject,
        Reason::Array,
        Reason::LoneSurrogate,
        Reason::DuplicateField,
        Reason::Enveloped,
        Reason::MissingField,
        Reason::WrongType,
        Reason::BadUuid,
        Reason::UnknownEventType,
        Reason::BadTime,
        Reason::TimeOutOfRange,
        Reason::TimeImplausible,
        Reason::RecordTimeImplausible,
    ];

    /// Returns the stable word.
    pub fn code(self) -> &'static str {
        match self {
            Reason::Tombstone => "tombstone",
            Reason::Empty => "empty",
            Reason::SchemaRegistryPrefix => "schema_registry_prefix",
            Reason::Compressed => "compressed",
            Reason::NotUtf8 => "not_utf8",
            Reason::NotJson => "not_json",
            Reason::NotAnObject => "not_an_object",
            Reason::Array => "array",
            Reason::LoneSurrogate => "lone_surrogate",
            Reason::DuplicateField => "duplicate_field",
            Reason::Enveloped => "enveloped",
            Reason::MissingField => "missing_field",
            Reason::WrongType => "wrong_type",
            Reason::BadUuid => "bad_uuid",
            Reason::UnknownEventType => "unknown_event_type",
            Reason::BadTime => "bad_time",
            Reason::TimeOutOfRange => "time_out_of_range",
            Reason::TimeImplausible => "time_implausible",
            Reason::RecordTimeImplausible => "record_time_implausible",
        }
    }
}

/// A record that is not an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Reason with a stable code.
    pub reason: Reason,
    /// Description of the fault, for people: at most [`Rejection::ERROR_BYTES_MAX`] bytes. It holds no more of the payload than a
    /// short excerpt.
    pub error: String,
}

impl Rejection {
    /// Greatest length of the error text, in bytes.
    pub const ERROR_BYTES_MAX: usize = 256;

    /// Returns a rejection, with its error text cut to its greatest length.
    pub fn new(reason: Reason, error: impl Into<String>) -> Rejection {
        let mut error = error.into();
        if error.len() > Self::ERROR_BYTES_MAX {
            let cut = (0..=Self::ERROR_BYTES_MAX).rev().find(|&i| error.is_char_boundary(i)).unwrap_or(0);
            error.truncate(cut);
        }
        Rejection { reason, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{TimeBounds, decode};

    const FIELDS: [&str; 6] = [
        r#""campaign_id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff""#,
        r#""workspace_id": "00000000-0000-0000-0000-000000000001""#,
        r#""email": "ada@example.com""#,
        r#""event_type": "open""#,
        r#""event_time": "2026-11-24T06:30:00.123456""#,
        r#""metadata": {}"#,
    ];

    /// Returns the value that an example of the page stands for: a whole value, or a good event with one field replaced or
    /// absent.
    fn payload(example: &str) -> Option<Vec<u8>> {
        let example = example.trim_matches('`');
        let absent = example.strip_prefix("(no ").and_then(|rest| rest.strip_suffix(')'));
        match absent {
            Some("value") => return None,
            Some("bytes") => return Some(Vec::new()),
            _ => {}
        }
        let name = absent.map(|name| format!("\"{name}\"")).or_else(|| Some(example.split_once(':')?.0.to_owned()));
        let place = name.and_then(|name| FIELDS.iter().position(|field| field.starts_with(&name)));
        let text = place.map_or_else(
            || example.to_owned(),
            |place| {
                let mut fields = FIELDS.to_vec();
                fields.splice(place..=place, absent.is_none().then_some(example));
                format!("{{{}}}", fields.join(", "))
            },
        );
        Some(unescaped(&text))
    }

    /// `\xff` stands for that byte.
    fn unescaped(text: &str) -> Vec<u8> {
        let mut parts = text.split(r"\x");
        let mut bytes = parts.next().unwrap().as_bytes().to_vec();
        for part in parts {
            bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
            bytes.extend(&part.as_bytes()[2..]);
        }
        bytes
    }

    /// Every reason has a row in `docs/rejects.md`, in order. The example in the row is rejected for that reason.
    #[test]
    fn the_page_has_every_reason_with_a_true_example() {
        let page = include_str!("../../../docs/rejects.md");
        let rows: Vec<Vec<&str>> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
            .map(|row| row.split(" | ").collect())
            .collect();
        let codes: Vec<&str> = rows.iter().map(|row| row[0].trim_end_matches('`')).collect();
        assert_eq!(codes, Reason::ALL.map(Reason::code));
        let bounds = TimeBounds { past_seconds_max: 3_650 * 86_400, future_seconds_max: 86_400 };
        let found = |example: &str| {
            // In a good event only the record's own timestamp can be wrong.
            let timestamp_ms = example.strip_prefix("(timestamp ").and_then(|rest| rest.strip_suffix(')'));
            let payload = payload(if timestamp_ms.is_some() { FIELDS[0] } else { example });
            let timestamp_ms = timestamp_ms.map_or(1_795_501_800_000, |text| text.parse().unwrap());
            decode(payload.as_deref(), Some(timestamp_ms), &bounds).err().map(|rejection| rejection.reason)
        };
        assert_eq!(found(FIELDS[0]), None, "the event that examples change is good");
        for (reason, row) in Reason::ALL.into_iter().zip(rows) {
            assert_eq!(row.len(), 4, "{row:?}");
            assert_eq!(found(row[2]), Some(reason), "{}", row[2]);
        }
    }
}
