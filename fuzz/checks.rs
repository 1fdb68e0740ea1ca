//! Properties that must hold for any bytes. Each check panics if its property does not hold.
//!
//! `tests/fuzz.rs` runs them over the seeds and over mutations of them. Coverage guides the targets in `fuzz_targets/`.

use chrono::{FixedOffset, NaiveDateTime, Timelike};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;
use tallyhouse_core::batch::{Batch, Part, block};
use tallyhouse_core::decode::event::{Event, EventType, UuidBytes};
use tallyhouse_core::decode::reject::{Reason, Rejection};
use tallyhouse_core::decode::{TimeBounds, decode as read, decode_reference as decode_json};
use tallyhouse_core::protocol::intent::{Metadata, MetadataError};
use tallyhouse_core::protocol::marks::Insert;
use tallyhouse_core::window::{Record, Window};

/// 2026-11-24T06:30:00Z, the Kafka timestamp of every record.
pub const NOW_MS: i64 = 1_795_501_800_000;
/// The defaults of `decode.past_days_max` and `decode.future_days_max`.
pub const BOUNDS: TimeBounds = TimeBounds { past_seconds_max: 3_650 * 86_400, future_seconds_max: 2 * 86_400 };

/// Any value is an event or a reject, with the same result each time. It is one row of a batch whose blocks can be made.
pub fn decode(data: &[u8]) {
    for timestamp_ms in [None, Some(NOW_MS), Some(i64::MAX), Some(0)] {
        let decoded = read(Some(data), timestamp_ms, &BOUNDS);
        assert_eq!(decoded, read(Some(data), timestamp_ms, &BOUNDS));
        match &decoded {
            Ok(event) => assert!(is_part(event.metadata, data)),
            Err(rejection) => assert!(rejection.error.len() <= Rejection::ERROR_BYTES_MAX),
        }
        let mut window = Window::new(7);
        window.push(&Record { offset: 7, timestamp_ms, key: Some(data), payload: Some(data) }, &decoded);
        let batch = Batch::freeze(window, 0);
        let rows = batch.frozen().expected.inserts().iter().map(|insert| alone(&batch, insert)).sum::<u64>();
        assert_eq!(rows, if decoded.is_ok() { 2 } else { 1 }, "a row and its counter, or a reject");
    }
}

fn alone(batch: &Batch, insert: &Insert) -> u64 {
    block(insert.table, &[Part { batch, partitions: &insert.partitions, source: "t/0" }]).0
}

/// Metadata of a commit is read only if it is exactly the text that would be written. An error shows little of it.
pub fn intent(data: &[u8]) {
    match Metadata::decode(data) {
        Ok(None) => assert!(data.is_empty()),
        Ok(Some(metadata)) => assert_eq!(Metadata::decode(metadata.encode().as_bytes()), Ok(Some(metadata))),
        Err(MetadataError::Foreign(shown) | MetadataError::Corrupt(shown)) => assert!(shown.len() <= 3 * 80),
        Err(MetadataError::Version(_) | MetadataError::Word(_)) => {}
    }
}

/// The fast reader returns only results of serde_json: the same event to the byte, the same reject.
pub fn quick(data: &[u8]) {
    assert_eq!(read(Some(data), None, &BOUNDS), decode_json(Some(data), None, &BOUNDS));
}

/// The decoder agrees with plain `serde_json::Value`, chrono and the `uuid` crate, except for the differences in
/// `docs/rejects.md`.
pub fn differential(data: &[u8]) {
    let decoded = read(Some(data), Some(NOW_MS), &BOUNDS);
    match (reference(data), &decoded) {
        (Ok(wanted), Ok(event)) => assert!(wanted.is(event), "read {event:?} instead of {wanted:?}"),
        (Err(faults), Err(rejection)) => {
            assert!(faults.allow(rejection.reason), "{rejection:?} is none of {faults:?}");
        }
        // The decoder does not look into it, so `Value` need not be able to hold it.
        (Err(Faults::Unreadable { grammatical: true }), Ok(_)) => {}
        (wanted, found) => panic!("{found:?} instead of {wanted:?}"),
    }
}

fn is_part(text: &str, data: &[u8]) -> bool {
    text.is_empty() || data.as_ptr_range().contains(&text.as_ptr())
}

/// An event as the reference reads it.
#[derive(Debug)]
struct Wanted {
    campaign_id: UuidBytes,
    workspace_id: UuidBytes,
    email: String,
    event_type: &'static str,
    event_time: i64,
    metadata: Option<Value>,
    unknown_fields: u32,
}

impl Wanted {
    fn is(&self, event: &Event<'_>) -> bool {
        let metadata = (!event.metadata.is_empty()).then(|| serde_json::from_str(event.metadata).ok());
        self.campaign_id == event.campaign_id
            && self.workspace_id == event.workspace_id
            && self.email == event.email
            && self.event_type == event.event_type.name()
            && self.event_time == i64::from(event.event_time)
            && self.metadata == metadata.flatten()
            && self.unknown_fields == event.unknown_fields
    }
}

/// Reasons why the reference reads no event.
#[derive(Debug)]
enum Faults {
    /// `Value` cannot be made of it. Then a fault before that place may have been found first. `grammatical`: it is JSON, but has
    /// a number, a string or a depth that `Value` cannot hold.
    Unreadable { grammatical: bool },
    /// Each of these is wrong with it, and the decoder may find any of them first.
    Some(BTreeSet<Reason>),
}

impl Faults {
    fn allow(&self, reason: Reason) -> bool {
        match self {
            Faults::Unreadable { .. } => true,
            // The reason names the packaging, if that is known.
            Faults::Some(reasons) => match reason {
                Reason::SchemaRegistryPrefix | Reason::Compressed => reasons.contains(&Reason::NotUtf8),
                Reason::Enveloped => reasons.contains(&Reason::MissingField),
                reason => reasons.contains(&reason),
            },
        }
    }
}

/// An object's fields in order, each with its value. `Value` itself would keep only the last of two equal fields.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

fn reference(data: &[u8]) -> Result<Wanted, Faults> {
    let only = |reason| Faults::Some(BTreeSet::from([reason]));
    if data.is_empty() {
        return Err(only(Reason::Empty));
    }
    let text = std::str::from_utf8(data).map_err(|_| only(Reason::NotUtf8))?;
    if let Err(error) = serde_json::from_str::<Value>(text) {
        let error = error.to_string();
        let beyond = ["recursion limit", "number out of range", "surrogate", "end of hex escape", "unicode code point"];
        return Err(Faults::Unreadable { grammatical: beyond.iter().any(|why| error.contains(why)) });
    }
    let Ok(Fields(fields)) = serde_json::from_str(text) else {
        let is_array = serde_json::from_str::<Vec<serde::de::IgnoredAny>>(text).is_ok();
        return Err(only(if is_array { Reason::Array } else { Reason::NotAnObject }));
    };
    judge(&fields).map_err(Faults::Some)
}

fn judge(fields: &[(String, Value)]) -> Result<Wanted, BTreeSet<Reason>> {
    let mut faults = BTreeSet::new();
    let last = |name: &str, faults: &mut BTreeSet<Reason>| {
        let mut values = fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value);
        let (value, again) = (values.next(), values.next());
        if again.is_some() {
            faults.insert(Reason::DuplicateField);
            // Any of them may be wrong in its own way, and may be found first.
            faults.extend([Reason::WrongType, Reason::BadUuid, Reason::UnknownEventType, Reason::BadTime]);
            faults.insert(Reason::TimeOutOfRange);
        }
        value.cloned()
    };
    let required = |name: &str, faults: &mut BTreeSet<Reason>| {
        let value = last(name, faults);
        if value.is_none() {
            faults.insert(Reason::MissingField);
        }
        value
    };
    let text = |name: &str, faults: &mut BTreeSet<Reason>| match required(name, faults) {
        Some(Value::String(text)) => Some(text),
        Some(_) => {
            faults.insert(Reason::WrongType);
            None
        }
        None => None,
    };
    let note = |reason, faults: &mut BTreeSet<Reason>| {
        faults.insert(reason);
    };
    let campaign_id = text("campaign_id", &mut faults).map(|text| uuid(&text));
    let workspace_id = text("workspace_id", &mut faults).map(|text| uuid(&text));
    if [campaign_id, workspace_id].contains(&Some(None)) {
        note(Reason::BadUuid, &mut faults);
    }
    let email = text("email", &mut faults);
    let event_type =
        text("event_type", &mut faults).map(|text| EventType::ALL.iter().map(|t| t.name()).find(|name| *name == text));
    if event_type == Some(None) {
        note(Reason::UnknownEventType, &mut faults);
    }
    let event_time = required("event_time", &mut faults).map(|value| time(&value));
    if let Some(Err(reason)) = event_time {
        note(reason, &mut faults);
    }
    let metadata = last("metadata", &mut faults);
    let known = ["campaign_id", "workspace_id", "email", "event_type", "event_time", "metadata"];
    let unknown_fields = fields.iter().filter(|(name, _)| !known.contains(&name.as_str())).count() as u32;
    match (campaign_id, workspace_id, email, event_type, event_time) {
        (
            Some(Some(campaign_id)),
            Some(Some(workspace_id)),
            Some(email),
            Some(Some(event_type)),
            Some(Ok(event_time)),
        ) if faults.is_empty() => {
            let ahead = event_time - NOW_MS / 1_000;
            if !(-BOUNDS.past_seconds_max..=BOUNDS.future_seconds_max).contains(&ahead) {
                return Err(BTreeSet::from([Reason::TimeImplausible]));
            }
            Ok(Wanted { campaign_id, workspace_id, email, event_type, event_time, metadata, unknown_fields })
        }
        _ => Err(faults),
    }
}

/// Reads a UUID as CPython's `uuid.UUID.__init__` does, except for `int(hex, 16)`: here it takes 32 digits, and nothing else.
fn uuid(text: &str) -> Option<UuidBytes> {
    let hex = text.replace("urn:", "").replace("uuid:", "");
    let hex = hex.trim_matches(|c| c == '{' || c == '}').replace('-', "");
    let whole = hex.len() == 32 && hex.chars().all(|c| c.is_ascii_hexdigit());
    whole.then(|| u128::from_str_radix(&hex, 16).ok()).flatten().map(|id| uuid::Uuid::from_u128(id).into_bytes())
}

fn time(value: &Value) -> Result<i64, Reason> {
    let seconds = match value {
        Value::String(text) => match epoch_of_text(text) {
            Some(number) => seconds_of(number),
            None => time_of_text(text).ok_or(Reason::BadTime)?,
        },
        Value::Number(number) => {
            let whole = match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => i128::from(number),
                (_, Some(number)) => i128::from(number),
                // A number below zero, even by a fraction, is out of range. A cast would cut the fraction off.
                _ => number.as_f64().filter(|number| *number >= 0.0).map_or(-1, |number| number as i128),
            };
            seconds_of(whole)
        }
        _ => return Err(Reason::WrongType),
    };
    u32::try_from(seconds).map(i64::from).map_err(|_| Reason::TimeOutOfRange)
}

/// Returns the whole seconds of an epoch number, whose size decides its unit.
fn seconds_of(number: i128) -> i128 {
    let microseconds = 1_000_000_000_000_000;
    match number {
        _ if number <= i128::from(u32::MAX) => number,
        _ if number < microseconds => number / 1_000,
        _ if number < 1_000 * microseconds => number / 1_000_000,
        _ => number / 1_000_000_000,
    }
}

/// Reads text of 10, 13, 16 or 19 digits. Only 10 digits may have a fraction.
fn epoch_of_text(text: &str) -> Option<i128> {
    let (whole, fraction) = text.split_once(['.', ',']).map_or((text, None), |(whole, rest)| (whole, Some(rest)));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let fits = match fraction {
        Some(fraction) => whole.len() == 10 && (1..=9).contains(&fraction.len()) && digits(fraction),
        None => [10, 13, 16, 19].contains(&whole.len()),
    };
    (fits && digits(whole)).then(|| whole.parse().ok()).flatten()
}

/// Reads `YYYY-MM-DD?HH:MM` or `YYYY-MM-DD?HH:MM:SS` exactly as chrono writes it, then a fraction and an offset.
fn time_of_text(text: &str) -> Option<i128> {
    let has_seconds = text.as_bytes().get(16) == Some(&b':');
    let filled = if has_seconds { text.to_owned() } else { format!("{}:00{}", text.get(..16)?, text.get(16..)?) };
    let (naive, rest) = filled.split_at_checked(19)?;
    let separator = naive.get(10..11).filter(|separator| ["T", "t", " "].contains(separator))?;
    let format = format!("%Y-%m-%d{separator}%H:%M:%S");
    let naive = NaiveDateTime::parse_from_str(naive, &format).ok().filter(|time| {
        // chrono also reads fewer digits and leap seconds.
        time.format(&format).to_string() == naive && time.nanosecond() == 0
    })?;
    let rest = match rest.strip_prefix(['.', ',']) {
        Some(_) if !has_seconds => return None,
        Some(fraction) => {
            let rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            (1..=9).contains(&(fraction.len() - rest.len())).then_some(rest)?
        }
        None => rest,
    };
    let rest = match rest.strip_suffix(']') {
        Some(named) => {
            let (offset, name) = named.split_once('[')?;
            let is_name = |c: char| c.is_ascii_alphanumeric() || "/_+-".contains(c);
            let fits = !offset.is_empty() && !offset.starts_with([' ', '\u{2212}']) && !name.is_empty();
            (fits && name.chars().all(is_name)).then_some(offset)?
        }
        None => rest,
    };
    let offset = match rest {
        "" | "Z" | "z" | " UTC" => 0,
        _ => {
            let rest = rest.strip_prefix(' ').unwrap_or(rest).replacen('\u{2212}', "-", 1);
            let (sign, digits) = rest.split_at_checked(1)?;
            let (hours, minutes, seconds) = match digits.len() {
                2 => (digits, "00", "00"),
                4 => (digits.get(..2)?, digits.get(2..)?, "00"),
                5 if digits.get(2..3) == Some(":") => (digits.get(..2)?, digits.get(3..)?, "00"),
                8 if digits.get(2..3) == Some(":") && digits.get(5..6) == Some(":") => {
                    (digits.get(..2)?, digits.get(3..5)?, digits.get(6..)?)
                }
                _ => return None,
            };
            let part = |text: &str, most| {
                let digits = text.chars().all(|c| c.is_ascii_digit());
                digits.then(|| text.parse::<i32>().ok()).flatten().filter(|part| *part <= most)
            };
            let seconds = part(hours, 23)? * 3_600 + part(minutes, 59)? * 60 + part(seconds, 59)?;
            match sign {
                "+" => seconds,
                "-" => -seconds,
                _ => return None,
            }
        }
    };
    let zone = FixedOffset::east_opt(offset)?;
    Some(i128::from(naive.and_local_timezone(zone).single()?.timestamp()))
}
