//! Recognises events that are packed into something else: a schema registry's prefix, a compressed value, an envelope. The reason
//! of such a rejection names the packaging. A fault in the packed bytes would help nobody.
//!
//! Must only be used for records that are rejected already: the hot path does not pay for it, and it decides about no event.

use crate::decode::reject::{Reason, Rejection};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// First bytes of compressed data, with the name of the format.
const COMPRESSED: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy"),
    (b"\x82SNAPPY\x00", "snappy"),
    (b"\x78\x9c", "zlib"),
    (b"\x78\xda", "zlib"),
];

/// Returns a rejection that names the packaging of a rejected value, if it is known. It replaces the fault that was found first.
pub fn named(bytes: &[u8], rejection: Rejection) -> Rejection {
    let named = match rejection.reason {
        Reason::NotUtf8 | Reason::NotJson => registry_prefix(bytes).or_else(|| compressed(bytes)),
        Reason::MissingField => enveloped(bytes),
        _ => None,
    };
    named.unwrap_or(rejection)
}

/// Confluent's serializers write a zero and the schema's id in four bytes. Apicurio's may write the id in eight. No JSON begins
/// with a zero.
fn registry_prefix(bytes: &[u8]) -> Option<Rejection> {
    let (&zero, rest) = bytes.split_first()?;
    // UTF-16 can begin with a zero as well.
    let is_utf16 = matches!(rest, [first, 0, second, ..] if first.is_ascii() && second.is_ascii() && *first >= b'\t');
    if zero != 0 || is_utf16 {
        return None;
    }
    let four = rest.split_first_chunk::<4>().map(|(id, value)| (u64::from(u32::from_be_bytes(*id)), value));
    let eight = rest.split_first_chunk::<8>().map(|(id, value)| (u64::from_be_bytes(*id), value));
    let (id, value) = [four, eight].into_iter().flatten().find(|(id, value)| *id > 0 && !value.is_empty())?;
    let what = match value.trim_ascii_start().first() {
        Some(b'{') => "JSON follows it",
        _ => "no JSON follows it, so it may be Avro or Protobuf",
    };
    let error = format!("the value begins with a schema registry's prefix of schema {id}, and {what}");
    Some(Rejection::new(Reason::SchemaRegistryPrefix, error))
}

fn compressed(bytes: &[u8]) -> Option<Rejection> {
    let (_, format) = COMPRESSED.iter().find(|(beginning, _)| bytes.starts_with(beginning))?;
    Some(Rejection::new(Reason::Compressed, format!("the value itself is compressed: it is {format}")))
}

/// The outermost fields distinguish an envelope from an event that lacks a field. A `null` counts as absent.
#[derive(Deserialize)]
struct Outside {
    campaign_id: Option<IgnoredAny>,
    workspace_id: Option<IgnoredAny>,
    email: Option<IgnoredAny>,
    event_type: Option<IgnoredAny>,
    event_time: Option<IgnoredAny>,
    payload: Option<IgnoredAny>,
    specversion: Option<IgnoredAny>,
    data: Option<IgnoredAny>,
    data_base64: Option<IgnoredAny>,
    op: Option<IgnoredAny>,
    before: Option<IgnoredAny>,
    after: Option<IgnoredAny>,
}

fn enveloped(bytes: &[u8]) -> Option<Rejection> {
    let outside: Outside = serde_json::from_slice(bytes).ok()?;
    let of_event = [outside.campaign_id, outside.workspace_id, outside.email, outside.event_type, outside.event_time];
    if of_event.iter().any(Option::is_some) {
        return None;
    }
    let what = if outside.payload.is_some() {
        "an envelope with `payload`, as Kafka Connect and Debezium write"
    } else if outside.specversion.is_some() && (outside.data.is_some() || outside.data_base64.is_some()) {
        "a CloudEvents envelope with `data`"
    } else if outside.op.is_some() && (outside.before.is_some() || outside.after.is_some()) {
        "a change event with `before` and `after`, as Debezium writes"
    } else {
        return None;
    };
    Some(Rejection::new(Reason::Enveloped, format!("the value is {what}: the event is inside")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{TimeBounds, decode};

    const EVENT: &str = r#"{"campaign_id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "workspace_id": "00000000-0000-0000-0000-000000000001", "email": "a@example.com", "event_type": "open", "event_time": 1795501800}"#;

    fn rejected(bytes: &[u8]) -> Rejection {
        decode(Some(bytes), None, &TimeBounds { past_seconds_max: 0, future_seconds_max: 0 }).unwrap_err()
    }

    fn reason(bytes: impl AsRef<[u8]>) -> Reason {
        rejected(bytes.as_ref()).reason
    }

    /// Before the fix, the reason depended on the schema's id: `not_json` for 12, `not_utf8` for 250.
    #[test]
    fn a_registrys_prefix_is_named_whatever_the_id() {
        for id in [1_u32, 12, 250, 100_001, 0x7b22_6122, u32::MAX] {
            let confluent = [&[0][..], &id.to_be_bytes(), EVENT.as_bytes()].concat();
            assert_eq!(reason(&confluent), Reason::SchemaRegistryPrefix, "{id}");
            let apicurio = [&[0][..], &u64::from(id).to_be_bytes(), EVENT.as_bytes()].concat();
            assert_eq!(reason(&apicurio), Reason::SchemaRegistryPrefix, "{id}");
            assert!(rejected(&apicurio).error.contains(&format!("schema {id}, and JSON follows")), "{id}");
        }
        assert!(rejected(b"\0\0\0\0\x0c\x02\x06abc").error.contains("Avro"));
        let utf16: Vec<u8> = EVENT.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for other in [&b"\0"[..], b"\0\0\0\0\0", b"\0\0\0\0\x01", b"\0\0\0\0\0\0\0\0\0{}", &utf16] {
            assert!([Reason::NotJson, Reason::NotUtf8].contains(&reason(other)), "{other:?}");
        }
    }

    #[test]
    fn a_compressed_value_is_named() {
        let beginnings = COMPRESSED.iter().map(|(beginning, _)| [*beginning, &b"\x08\0\xff"[..]].concat());
        assert!(beginnings.into_iter().all(|value| reason(value) == Reason::Compressed));
        assert_eq!(
            [reason("x"), reason(b"\x1f"), reason(b"\xff\xfe{")],
            [Reason::NotJson, Reason::NotJson, Reason::NotUtf8]
        );
    }

    #[test]
    fn an_envelope_is_told_from_an_event_that_lacks_a_field() {
        for envelope in [
            format!(r#"{{"schema": {{"type": "struct"}}, "payload": {EVENT}}}"#),
            format!(r#"{{"payload": {EVENT}, "metadata": {{}}}}"#),
            r#"{"payload": {"before": null, "after": {}, "op": "c"}}"#.to_owned(),
            format!(r#"{{"specversion": "1.0", "id": "1", "source": "/x", "type": "open", "data": {EVENT}}}"#),
            r#"{"specversion": "1.0", "data_base64": "e30="}"#.to_owned(),
            r#"{"before": null, "after": {"email": "a@example.com"}, "op": "c"}"#.to_owned(),
        ] {
            assert_eq!(reason(&envelope), Reason::Enveloped, "{envelope}");
        }
        let lacks = EVENT.replacen("\"email\"", "\"payload\"", 1);
        for event in [&lacks, "{}", r#"{"data": {}}"#, r#"{"payload": null}"#, r#"{"specversion": "1.0"}"#] {
            assert_eq!(reason(event), Reason::MissingField, "{event}");
        }
        // An event may have fields of these names.
        let good = EVENT.replacen('{', "{\"payload\": {}, \"specversion\": 1, \"data\": {}, ", 1);
        let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
        assert!(decode(Some(good.as_bytes()), None, &bounds).is_ok());
    }
}
