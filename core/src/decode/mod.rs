//! Turns a record's bytes into an [`Event`], or into the reason why they are none.
//!
//! This is the hot path. `fast.rs` reads what the producer writes. serde_json reads all else, and also finds the fault in it.
//! `mapped.rs` reads producers with other fields or words; [`mapped::Decoder`] chooses.
//! Both borrow from the payload. They allocate nothing for a well-formed event without escapes. Decoding must never panic on any
//! bytes, never depend on the wall clock, and never change a byte of `metadata`. A replay must decide as the first reading did,
//! so times are judged by the Kafka record's own timestamp.

pub mod event;
pub mod fast;
pub mod mapped;
mod packaging;
pub mod reject;
pub mod time;

use self::event::{Event, EventType, UuidBytes};
use self::reject::{Reason, Rejection};
use self::time::TimeError;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// Greatest distances of `event_time` from the Kafka record's timestamp.
#[derive(Clone, Copy, Debug)]
pub struct TimeBounds {
    /// Greatest distance into the past, in seconds (`decode.past_days_max`).
    pub past_seconds_max: i64,
    /// Greatest distance into the future, in seconds (`decode.future_days_max`).
    pub future_seconds_max: i64,
}

/// Timestamps that a record of Kafka can have: from 2010, before Kafka existed, to the last second that ClickHouse's `DateTime`
/// holds. A timestamp outside of this range is not in milliseconds, or is not a time.
pub const RECORD_TIMES_MS: Range<i64> = 1_262_304_000_000..4_294_967_296_000;

/// Reads the value of one record.
///
/// `timestamp_ms` is the Kafka record's timestamp in milliseconds since 1970-01-01 UTC. Without one, any time that fits the
/// column is accepted.
///
/// # Errors
/// Returns a [`Rejection`] with a stable reason for everything that is not an event.
pub fn decode<'a>(
    payload: Option<&'a [u8]>,
    timestamp_ms: Option<i64>,
    bounds: &TimeBounds,
) -> Result<Event<'a>, Rejection> {
    let read = |text| fast::read(text).map_or_else(|| decode_json(text), Ok);
    let event = text(payload).and_then(read).map_err(|rejection| named(payload, rejection))?;
    plausible(event, timestamp_ms, bounds)
}

/// Does the same as [`decode`], without the fast reader. The fast reader has to agree with it for any bytes. Tests compare the
/// two.
///
/// # Errors
/// Returns those of [`decode`].
pub fn decode_reference<'a>(
    payload: Option<&'a [u8]>,
    timestamp_ms: Option<i64>,
    bounds: &TimeBounds,
) -> Result<Event<'a>, Rejection> {
    let event = text(payload).and_then(decode_json).map_err(|rejection| named(payload, rejection))?;
    plausible(event, timestamp_ms, bounds)
}

#[cold]
fn named(payload: Option<&[u8]>, rejection: Rejection) -> Rejection {
    packaging::named(payload.unwrap_or_default(), rejection)
}

#[inline]
fn text(payload: Option<&[u8]>) -> Result<&str, Rejection> {
    let bytes = payload.ok_or_else(|| Rejection::new(Reason::Tombstone, "the record has no value"))?;
    if bytes.is_empty() {
        return Err(Rejection::new(Reason::Empty, "the value has no bytes"));
    }
    simdutf8::basic::from_utf8(bytes).map_err(|_| not_utf8(bytes))
}

fn decode_json(text: &str) -> Result<Event<'_>, Rejection> {
    let mut note = Note::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let event = json.deserialize_map(EventVisitor { note: &mut note }).and_then(|event| json.end().map(|()| event));
    event.map_err(|error| note.refused.take().unwrap_or_else(|| classify(text, &error, &note)))
}

/// Facts that serde's errors do not carry: the reason for which a field refused its value, and the field that was read last.
#[derive(Default)]
struct Note {
    refused: Option<Rejection>,
    field: Field,
}

// Two decoders call it. Without the attribute the compiler puts it into neither, and the fast path loses 3 %.
#[inline]
fn plausible<'a>(event: Event<'a>, timestamp_ms: Option<i64>, bounds: &TimeBounds) -> Result<Event<'a>, Rejection> {
    let Some(timestamp_ms) = timestamp_ms else { return Ok(event) };
    let ahead = i64::from(event.event_time) - timestamp_ms.div_euclid(1_000);
    if (-bounds.past_seconds_max..=bounds.future_seconds_max).contains(&ahead) {
        return Ok(event);
    }
    Err(implausible(ahead, timestamp_ms))
}

/// Returns the rejection that names the wrong time. A record's timestamp in seconds lies in 1970, and one in microseconds in the
/// year 58000.
#[cold]
fn implausible(ahead: i64, timestamp_ms: i64) -> Rejection {
    if !RECORD_TIMES_MS.contains(&timestamp_ms) {
        let error = format!(
            "the record's Kafka timestamp {timestamp_ms} is no time in milliseconds from 2010 to 2106, so event_time cannot be judged"
        );
        return Rejection::new(Reason::RecordTimeImplausible, error);
    }
    let (distance, side) = (ahead.unsigned_abs(), if ahead < 0 { "before" } else { "after" });
    Rejection::new(Reason::TimeImplausible, format!("event_time is {distance} s {side} the Kafka timestamp"))
}

fn not_utf8(bytes: &[u8]) -> Rejection {
    let at = simdutf8::compat::from_utf8(bytes).map_or_else(|e| e.valid_up_to(), str::len);
    Rejection::new(Reason::NotUtf8, format!("invalid UTF-8 at byte {at}"))
}

/// Finds the reason for an error to which no field gave a reason.
fn classify(text: &str, error: &serde_json::Error, note: &Note) -> Rejection {
    let start = text.trim_ascii_start();
    let starts_object = start.starts_with('{');
    let error_text = error.to_string();
    let reason = match error.classify() {
        Category::Data if starts_object => Reason::WrongType,
        _ if serde_json::from_str::<IgnoredAny>(text).is_err() => Reason::NotJson,
        _ if start.starts_with('[') => {
            let error = "the value is an array: each event needs a record of its own";
            return Rejection::new(Reason::Array, error);
        }
        _ if !starts_object => Reason::NotAnObject,
        // The text is correct JSON, with a value that serde_json cannot represent: a number beyond f64, or half a surrogate pair.
        _ if !error_text.starts_with("number out of range") => Reason::LoneSurrogate,
        _ if note.field == Field::EventTime => Reason::TimeOutOfRange,
        _ => Reason::WrongType,
    };
    Rejection::new(reason, error_text)
}

/// A field of an event, or any other field.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Field {
    CampaignId,
    WorkspaceId,
    Email,
    EventType,
    EventTime,
    Metadata,
    #[default]
    Unknown,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Field, D::Error> {
        struct FieldVisitor;
        impl Visitor<'_> for FieldVisitor {
            type Value = Field;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }
            fn visit_str<E>(self, name: &str) -> Result<Field, E> {
                Ok(match name {
                    "campaign_id" => Field::CampaignId,
                    "workspace_id" => Field::WorkspaceId,
                    "email" => Field::Email,
                    "event_type" => Field::EventType,
                    "event_time" => Field::EventTime,
                    "metadata" => Field::Metadata,
                    _ => Field::Unknown,
                })
            }
        }
        deserializer.deserialize_identifier(FieldVisitor)
    }
}

/// A string, borrowed from the payload unless it has escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// The parsed `event_time` in seconds since 1970, or its fault.
struct Time(Result<u32, TimeError>);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TimeVisitor;
        impl Visitor<'_> for TimeVisitor {
            type Value = Time;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time as text or as epoch seconds")
            }
            fn visit_str<E>(self, text: &str) -> Result<Time, E> {
                Ok(Time(time::parse(text)))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Time, E> {
                Ok(Time(time::from_integer(number)))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Time, E> {
                Ok(Time(i64::try_from(number).map_err(|_| TimeError::OutOfRange).and_then(time::from_integer)))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Time, E> {
                Ok(Time(time::from_float(number)))
            }
        }
        deserializer.deserialize_any(TimeVisitor)
    }
}

/// Reads the JSON object of an event.
struct EventVisitor<'n> {
    note: &'n mut Note,
}

impl EventVisitor<'_> {
    fn refuse<E: serde::de::Error>(&mut self, reason: Reason, error: String) -> E {
        self.note.refused = Some(Rejection::new(reason, error));
        E::custom("refused")
    }

    /// Stores a field's value. It refuses the same field twice.
    fn once<T, E: serde::de::Error>(&mut self, slot: &mut Option<T>, value: T, name: &str) -> Result<(), E> {
        match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(self.refuse(Reason::DuplicateField, format!("`{name}` stands there twice"))),
        }
    }

    fn uuid<E: serde::de::Error>(&mut self, text: &str, name: &str) -> Result<UuidBytes, E> {
        parse_uuid(text)
            .ok_or_else(|| self.refuse(Reason::BadUuid, format!("`{name}` is not a UUID: {}", excerpt(text))))
    }

    fn event_type<E: serde::de::Error>(&mut self, text: &str) -> Result<EventType, E> {
        EventType::from_name(text)
            .ok_or_else(|| self.refuse(Reason::UnknownEventType, format!("no such event_type: {}", excerpt(text))))
    }

    fn time<E: serde::de::Error>(&mut self, time: Time) -> Result<u32, E> {
        time.0.map_err(|error| match error {
            TimeError::Malformed => self.refuse(Reason::BadTime, "`event_time` is not a time".into()),
            TimeError::OutOfRange => {
                self.refuse(Reason::TimeOutOfRange, "`event_time` is not within 1970-01-01 to 2106-02-07".into())
            }
        })
    }

    fn required<T, E: serde::de::Error>(&mut self, value: Option<T>, name: &str) -> Result<T, E> {
        value.ok_or_else(|| self.refuse(Reason::MissingField, format!("`{name}` is missing")))
    }
}

impl<'de> Visitor<'de> for EventVisitor<'_> {
    type Value = Event<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Event<'de>, A::Error> {
        let (mut campaign_id, mut workspace_id, mut email) = (None, None, None);
        let (mut event_type, mut event_time, mut metadata) = (None, None, None);
        let mut unknown_fields = 0;
        while let Some(field) = map.next_key()? {
            self.note.field = field;
            match field {
                Field::CampaignId => {
                    let id = self.uuid(&map.next_value::<Text>()?.0, "campaign_id")?;
                    self.once(&mut campaign_id, id, "campaign_id")?;
                }
                Field::WorkspaceId => {
                    let id = self.uuid(&map.next_value::<Text>()?.0, "workspace_id")?;
                    self.once(&mut workspace_id, id, "workspace_id")?;
                }
                Field::Email => self.once(&mut email, map.next_value::<Text>()?.0, "email")?,
                Field::EventType => {
                    let value = self.event_type(&map.next_value::<Text>()?.0)?;
                    self.once(&mut event_type, value, "event_type")?;
                }
                Field::EventTime => {
                    let time = self.time(map.next_value()?)?;
                    self.once(&mut event_time, time, "event_time")?;
                }
                Field::Metadata => self.once(&mut metadata, map.next_value::<&RawValue>()?.get(), "metadata")?,
                Field::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                    unknown_fields += 1;
                }
            }
        }
        Ok(Event {
            campaign_id: self.required(campaign_id, "campaign_id")?,
            workspace_id: self.required(workspace_id, "workspace_id")?,
            email: self.required(email, "email")?,
            event_type: self.required(event_type, "event_type")?,
            event_time: self.required(event_time, "event_time")?,
            metadata: metadata.unwrap_or(""),
            unknown_fields,
        })
    }
}

/// Reads every form of 32 hexadecimal digits that Python's `uuid.UUID(text)` accepts: with or without dashes, braces, `urn:` and
/// `uuid:`, in any case. Python's `int(text, 16)` also accepts fewer digits with a sign, `0x`, underscores, spaces or digits of
/// other scripts among the 32 characters. Nobody writes an id in that way, and Python reads it as another id than the intended
/// one.
fn parse_uuid(text: &str) -> Option<UuidBytes> {
    // These are the two usual forms. Among the others, the crate knows some that Python does not.
    if let 32 | 36 = text.len()
        && let Ok(uuid) = uuid::Uuid::try_parse(text)
    {
        return Some(uuid.into_bytes());
    }
    let hex = text.replace("urn:", "").replace("uuid:", "");
    let hex = hex.trim_matches(['{', '}']).replace('-', "");
    (hex.len() == 32).then(|| uuid::Uuid::try_parse(&hex).ok()).flatten().map(uuid::Uuid::into_bytes)
}

fn excerpt(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let mut shown: String = text.chars().take(CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: TimeBounds = TimeBounds { past_seconds_max: 10 * 86_400, future_seconds_max: 86_400 };
    const NOW_MS: i64 = 1_795_501_800_000; // 2026-11-24T06:30:00Z

    const GOOD: &str = r#"{"campaign_id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "workspace_id": "00000000-0000-0000-0000-000000000001", "email": "ada@example.com", "event_type": "open", "event_time": "2026-11-24T06:30:00.123456", "metadata": {"a": [1, 2.50]}}"#;

    fn read(text: &str) -> Result<Event<'_>, Rejection> {
        decode(Some(text.as_bytes()), Some(NOW_MS), &BOUNDS)
    }

    fn reason(text: &str) -> Reason {
        read(text).expect_err(text).reason
    }

    #[test]
    fn the_producers_event_is_read_without_copies() {
        let event = read(GOOD).unwrap();
        assert_eq!(event.campaign_id[..4], [0x6f, 0x96, 0x19, 0xff]);
        assert_eq!((event.event_type, event.event_time), (EventType::Open, 1_795_501_800));
        assert_eq!((event.metadata, event.unknown_fields), (r#"{"a": [1, 2.50]}"#, 0));
        assert!(matches!(event.email, Cow::Borrowed("ada@example.com")));
    }

    #[test]
    fn optional_and_unknown_fields() {
        let event = read(GOOD).unwrap();
        assert_eq!(
            read(&GOOD.replace(r#", "metadata": {"a": [1, 2.50]}"#, "")).unwrap(),
            Event { metadata: "", ..event.clone() }
        );
        assert_eq!(
            read(&GOOD.replace("metadata", "meta")).unwrap(),
            Event { metadata: "", unknown_fields: 1, ..event.clone() }
        );
        assert_eq!(read(&GOOD.replace(r#"{"a": [1, 2.50]}"#, "null")).unwrap().metadata, "null");
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read(&GOOD.replace(r#"{"a": [1, 2.50]}"#, &deep)).unwrap().metadata, deep);
        assert_eq!(read(&GOOD.replace("ada@", r"\u0061da@")).unwrap(), event);
        assert_eq!(read(&GOOD.replace("ada@", r"\u0000@")).unwrap().email, "\0@example.com");
        // These values are not inspected, and serde_json may not be able to read them.
        let odd = r#"{"a":1e999,"a":[99999999999999999999],"\ud800":"\udc00"}"#;
        assert_eq!(read(&GOOD.replace(r#"{"a": [1, 2.50]}"#, odd)).unwrap().metadata, odd);
        let unknown = format!(r#"{{"x":{odd},"x":{odd},"#);
        assert_eq!(read(&GOOD.replacen('{', &unknown, 1)).unwrap(), Event { unknown_fields: 2, ..event });
    }

    #[test]
    fn every_reason_is_given_for_what_it_names() {
        let with = |from: &str, to: &str| GOOD.replace(from, to);
        assert_eq!(decode(None, None, &BOUNDS).unwrap_err().reason, Reason::Tombstone);
        assert_eq!(reason(""), Reason::Empty);
        assert_eq!(decode(Some(b"{\"email\": \"\xff\"}"), None, &BOUNDS).unwrap_err().reason, Reason::NotUtf8);
        for text in [
            "nonsense",
            "{",
            "\0",
            &GOOD[..100],
            &format!("{GOOD}x"),
            &with("2.50", "NaN"),
            &with("2.50", "-Infinity"),
            "\u{feff}{}",
        ] {
            assert_eq!(reason(text), Reason::NotJson, "{text}");
        }
        for text in ["5", "null", "1e999", r#""\ud800""#] {
            assert_eq!(reason(text), Reason::NotAnObject, "{text}");
        }
        for text in ["[]", " [1e999]", &format!("[{GOOD}]")] {
            assert_eq!(reason(text), Reason::Array, "{text}");
        }
        for (from, to) in [("ada", r"\ud800"), ("ada", r"\udc00x"), ("open", r"\ud83d"), ("email", r"\ud800")] {
            assert_eq!(reason(&with(from, to)), Reason::LoneSurrogate, "{to}");
        }
        assert_eq!(reason(&with("{\"campaign", r#"{"email": "x", "campaign"#)), Reason::DuplicateField);
        for field in ["campaign_id", "workspace_id", "email", "event_type", "event_time"] {
            assert_eq!(reason(&with(field, "other")), Reason::MissingField);
        }
        assert_eq!(reason("{}"), Reason::MissingField);
        for (from, to) in
            [("\"ada@example.com\"", "1e999"), ("\"open\"", "null"), ("\"2026-11-24T06:30:00.123456\"", "true")]
        {
            assert_eq!(reason(&with(from, to)), Reason::WrongType);
        }
        assert_eq!(reason(&with("6f9619ff", "6f9619fg")), Reason::BadUuid);
        assert_eq!(reason(&with("open", "opened")), Reason::UnknownEventType);
        assert_eq!(reason(&with("2026-11-24T", "2026-11-31T")), Reason::BadTime);
        assert_eq!(reason(&with("2026-11", "1926-11")), Reason::TimeOutOfRange);
        for number in ["99999999999999999999999", "1e999", "-1e999"] {
            assert_eq!(reason(&with("\"2026-11-24T06:30:00.123456\"", number)), Reason::TimeOutOfRange);
        }
        assert_eq!(reason(&with("2026-11-24", "2026-11-13")), Reason::TimeImplausible);
        assert_eq!(reason(&with("2026-11-24", "2026-11-26")), Reason::TimeImplausible);
        // The record's time is given in seconds, microseconds, nanoseconds, and not at all.
        for timestamp_ms in [NOW_MS / 1_000, NOW_MS * 1_000, NOW_MS * 1_000_000, 1, -1] {
            let rejection = decode(Some(GOOD.as_bytes()), Some(timestamp_ms), &BOUNDS).unwrap_err();
            assert_eq!(rejection.reason, Reason::RecordTimeImplausible, "{rejection:?}");
            assert!(rejection.error.contains(&format!("Kafka timestamp {timestamp_ms} ")), "{rejection:?}");
        }
        // Bounds that are wide enough still accept it.
        let wide = TimeBounds { past_seconds_max: i64::MAX / 2, future_seconds_max: i64::MAX / 2 };
        assert!(decode(Some(GOOD.as_bytes()), Some(NOW_MS / 1_000), &wide).is_ok());
        assert!(decode(Some(with("2026-11", "2020-11").as_bytes()), None, &BOUNDS).is_ok());
    }

    #[test]
    fn uuids_are_read_as_python_reads_them() {
        let wanted = parse_uuid("6f9619ff-8b86-d011-b42d-00cf4fc964ff").unwrap();
        for text in [
            "6F9619FF8B86D011B42D00CF4FC964FF",
            "{6f9619ff-8b86-d011-b42d-00cf4fc964ff}",
            "urn:uuid:6f9619ff-8b86-d011-b42d-00cf4fc964ff",
            "6f96-19ff8b86d011b42d00cf4fc964ff",
            "{{uuid:6f9619ff8b86d011b42d00cf4fc964ff",
            "6f9619ffurn:8b86d011b42d00cf4fc964ff",
            "uurn:uid:6f9619ff8b86d011b42d00cf4fc964ff",
            "}6f9619ff8b86d011b42d00cf4fc964ff{",
            "{-6f9619ff8b86d011b42d00cf4fc964ff",
        ] {
            assert_eq!(parse_uuid(text), Some(wanted), "{text}");
        }
        // Python does not accept these either.
        for text in [
            "-{6f9619ff8b86d011b42d00cf4fc964ff",
            "URN:UUID:6f9619ff-8b86-d011-b42d-00cf4fc964ff",
            "6f9619ff8b86d011{b42d00cf4fc964ff",
            " 6f9619ff8b86d011b42d00cf4fc964ff",
            "(6f9619ff-8b86-d011-b42d-00cf4fc964ff)",
        ] {
            assert_eq!(parse_uuid(text), None, "{text}");
        }
        // Python accepts these. Its int(text, 16) reads them as another id than the intended one.
        for text in [
            " 6f9619ff8b86d011b42d00cf4fc964f",
            "6f9619ff8b86d011b42d00cf4fc964f\n",
            "0x9619ff8b86d011b42d00cf4fc964ff",
            "+f9619ff8b86d011b42d00cf4fc964ff",
            "6f_619ff8b86d011b42d00cf4fc964ff",
            "６f9619ff8b86d011b42d00cf4fc964ff",
        ] {
            assert_eq!(parse_uuid(text), None, "{text}");
        }
        for text in ["", "6f9619ff-8b86-d011-b42d-00cf4fc964f", "6f9619ff-8b86-d011-b42d-00cf4fc964ff0"] {
            assert_eq!(parse_uuid(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(Some(&bytes), Some(NOW_MS), &BOUNDS);
        }

        #[test]
        fn a_damaged_event_never_panics_and_errors_stay_short(at in 0usize..GOOD.len(), byte in any::<u8>()) {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = byte;
            if let Err(rejection) = decode(Some(&bytes), Some(NOW_MS), &BOUNDS) {
                prop_assert!(rejection.error.len() <= Rejection::ERROR_BYTES_MAX);
            }
        }

        #[test]
        fn every_event_is_read_as_it_was_written(
            ids in any::<[u128; 2]>(), email in any::<String>(), kind in 0usize..EventType::ALL.len(), seconds in 0u32..86_400,
            key in "[a-z]{1,9}", value in any::<f64>(),
        ) {
            let metadata = serde_json::json!({ key: value }).to_string();
            let [campaign, workspace] = ids.map(uuid::Uuid::from_u128);
            let time = i64::from(seconds) + NOW_MS / 1_000 - 86_400;
            let text = format!(
                r#"{{"campaign_id":"{campaign}","workspace_id":"{workspace}","email":{},"event_type":"{}","event_time":{time},"metadata":{metadata}}}"#,
                serde_json::to_string(&email).unwrap(), EventType::ALL[kind].name(),
            );
            let event = read(&text).unwrap();
            prop_assert_eq!((event.campaign_id, event.workspace_id), (campaign.into_bytes(), workspace.into_bytes()));
            prop_assert_eq!((&*event.email, event.metadata), (email.as_str(), metadata.as_str()));
            prop_assert_eq!((event.event_type, i64::from(event.event_time)), (EventType::ALL[kind], time));
        }
    }
}
