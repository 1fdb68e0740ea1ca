//! Writes a rejected record as one line of JSON, and reads it back.
//!
//! The names are stable: names are added, never changed. Bytes that are UTF-8 stand as text, others as base64. The
//! bytes that are read back are the bytes that were written, one for one.

use super::{Origin, Rejected};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tallyhouse_core::days::utc_text;

#[derive(Serialize)]
struct Line<'a> {
    source: &'a str,
    source_offset: u64,
    kafka_timestamp: Option<String>,
    reason: &'a str,
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// The outer `Option` is `None` where the line has no such field. A tombstone is a null that stands there.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

/// Returns the line, with its end.
///
/// # Errors
/// Never in practice: all keys are text.
pub fn line(row: &Rejected) -> serde_json::Result<String> {
    let text = |bytes| std::str::from_utf8(bytes).ok();
    let payload = row.payload.as_ref().map(Bytes::as_ref);
    let line = Line {
        source: &row.origin.source,
        source_offset: row.origin.offset,
        kafka_timestamp: row.timestamp_ms.map(utc_text),
        reason: &row.reason,
        error: &row.error,
        key: text(&row.key),
        key_base64: text(&row.key).is_none().then(|| BASE64.encode(&row.key)),
        payload: payload.map_or(Some(None), |bytes| text(bytes).map(Some)),
        payload_base64: payload.filter(|bytes| text(bytes).is_none()).map(|bytes| BASE64.encode(bytes)),
    };
    Ok(serde_json::to_string(&line)? + "\n")
}

/// The part of a line that a replay takes: the row's origin, and the value to replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExportedRecord {
    /// Origin of the row.
    pub origin: Origin,
    /// Its value; `None` for a tombstone.
    pub payload: Option<Bytes>,
}

#[derive(Deserialize)]
struct Read<'a> {
    source: String,
    source_offset: u64,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(default)]
    payload_base64: Option<String>,
}

/// Reads a line of an export that was perhaps edited. Everything but the payload is only for people, because the row
/// has the rest. A payload that is not text is taken as the JSON that it is, so an edited object needs no quoting.
pub(super) fn read(line: &str) -> Result<ExportedRecord, String> {
    let read: Read<'_> = serde_json::from_str(line).map_err(|error| format!("is no line of an export: {error}"))?;
    let payload = match (read.payload, read.payload_base64) {
        (Some(_), Some(_)) => return Err("has both payload and payload_base64; remove one".to_owned()),
        (None, None) => None,
        (None, Some(text)) => {
            let bytes = BASE64.decode(text).map_err(|error| format!("payload_base64: {error}"))?;
            Some(bytes.into())
        }
        (Some(json), None) if json.get().starts_with('"') => {
            let text: String = serde_json::from_str(json.get()).map_err(|error| format!("payload: {error}"))?;
            Some(text.into())
        }
        (Some(json), None) => Some(json.get().to_owned().into()),
    };
    Ok(ExportedRecord { origin: Origin { source: read.source, offset: read.source_offset }, payload })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rejected(key: Vec<u8>, payload: Option<Vec<u8>>) -> Rejected {
        Rejected {
            origin: Origin { source: "t/0@x".into(), offset: 7 },
            timestamp_ms: Some(1_000),
            reason: "not_json".into(),
            error: "at \"x\"\n".into(),
            key: key.into(),
            payload: payload.map(Bytes::from),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_as_they_were(key: Vec<u8>, payload: Option<Vec<u8>>, text: Option<String>) {
            for payload in [payload, text.map(String::into_bytes)] {
                let row = rejected(key.clone(), payload);
                let line = line(&row).unwrap();
                prop_assert_eq!(line.matches('\n').count(), 1);
                prop_assert_eq!(read(&line).unwrap(), ExportedRecord { origin: row.origin, payload: row.payload });
            }
        }

        #[test]
        fn any_line_is_read_or_refused(line: String) {
            let _ = read(&line);
        }
    }

    #[test]
    fn an_edited_object_is_taken_as_it_stands_and_doubt_is_refused() {
        let given = read(r#"{"source":"t/0","source_offset":1,"payload":{"b": 1,"a":[]},"more":2}"#).unwrap();
        assert_eq!(given.payload.unwrap(), Bytes::from_static(br#"{"b": 1,"a":[]}"#));
        assert_eq!(read(r#"{"source":"t/0","source_offset":1,"payload":null}"#).unwrap().payload, None);
        for line in [
            "",
            "[]",
            r#"{"source_offset":1,"payload":"x"}"#,
            r#"{"source":"t/0","source_offset":-1,"payload":"x"}"#,
            r#"{"source":"t/0","source_offset":1,"payload":"x","payload_base64":"eA=="}"#,
            r#"{"source":"t/0","source_offset":1,"payload_base64":"?"}"#,
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
