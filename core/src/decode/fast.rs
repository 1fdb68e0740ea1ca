//! A fast reader of events as `json.dumps` writes them: the six known fields in any order, at most one space after `,` and `:`.
//!
//! It returns only events, and exactly the event that serde_json reads. It leaves everything that it does not know for certain to
//! [`crate::decode::decode_reference`]: other white space, fields, number or UUID forms, and anything broken. Only that function
//! may reject. It must never accept what that function does not accept, never read anything differently, and never look beyond
//! [`DEPTH_MAX`].
//!
//! It is here for speed alone: an event takes 165 ns, and 340 to 360 ns by serde_json.

use crate::decode::event::{Event, EventType, UuidBytes};
use crate::decode::time;
use std::borrow::Cow;

/// Greatest depth of `metadata` that this reader follows. It bounds the stack.
const DEPTH_MAX: u32 = 16;

/// Returns the event in a text, or `None` if only the other decoder can decide.
pub fn read(text: &str) -> Option<Event<'_>> {
    let mut json = Json { text, bytes: text.as_bytes(), at: 0 };
    let (mut campaign_id, mut workspace_id, mut email) = (None, None, None);
    let (mut event_type, mut event_time, mut metadata) = (None, None, None);
    json.byte(b'{')?;
    loop {
        // Each test is a comparison of constant length. That is far cheaper than a search for the end of the name.
        let first = if json.name(b"\"campaign_id\":") {
            campaign_id.replace(json.uuid()?).is_none()
        } else if json.name(b"\"workspace_id\":") {
            workspace_id.replace(json.uuid()?).is_none()
        } else if json.name(b"\"email\":") {
            email.replace(json.string()?).is_none()
        } else if json.name(b"\"event_type\":") {
            event_type.replace(json.event_type()?).is_none()
        } else if json.name(b"\"event_time\":") {
            event_time.replace(time::parse(json.plain_string()?).ok()?).is_none()
        } else if json.name(b"\"metadata\":") {
            metadata.replace(json.raw_value()?).is_none()
        } else {
            false
        };
        if !first {
            return None;
        }
        if !json.comma() {
            break;
        }
    }
    json.byte(b'}')?;
    (json.at == text.len()).then_some(())?;
    Some(Event {
        campaign_id: campaign_id?,
        workspace_id: workspace_id?,
        email: email?,
        event_type: event_type?,
        event_time: event_time?,
        metadata: metadata.unwrap_or(""),
        unknown_fields: 0,
    })
}

/// A position in the text.
struct Json<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Json<'a> {
    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn takes(&mut self, byte: u8) -> bool {
        // The CPU predicts a branch. It would have to wait for an `at` that is computed from the comparison.
        if self.peek() == Some(byte) {
            self.at += 1;
            return true;
        }
        false
    }

    fn byte(&mut self, byte: u8) -> Option<()> {
        self.takes(byte).then_some(())
    }

    #[inline]
    fn takes_word<const N: usize>(&mut self, word: &[u8; N]) -> bool {
        if self.bytes.get(self.at..).and_then(|rest| rest.first_chunk()) == Some(word) {
            self.at += N;
            return true;
        }
        false
    }

    fn word<const N: usize>(&mut self, word: &[u8; N]) -> Option<()> {
        self.takes_word(word).then_some(())
    }

    /// Skips a field's name with its colon; true if it stands here.
    #[inline]
    fn name<const N: usize>(&mut self, name: &[u8; N]) -> bool {
        let found = self.takes_word(name);
        if found {
            self.takes(b' ');
        }
        found
    }

    #[inline]
    fn colon(&mut self) -> Option<()> {
        self.byte(b':')?;
        self.takes(b' ');
        Some(())
    }

    #[inline]
    fn comma(&mut self) -> bool {
        let found = self.takes(b',');
        if found {
            self.takes(b' ');
        }
        found
    }

    /// Reads a string without escapes.
    #[inline(always)]
    fn plain_string(&mut self) -> Option<&'a str> {
        self.byte(b'"')?;
        let start = self.at;
        self.at += plain_length(&self.bytes[start..]);
        let end = self.at;
        self.byte(b'"')?;
        self.text.get(start..end)
    }

    /// Reads a string, and copies it if it has escapes. serde_json alone decides the meaning of escapes, or that they have none.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        let start = self.at;
        if let Some(plain) = self.plain_string() {
            return Some(Cow::Borrowed(plain));
        }
        self.at = start;
        self.string_skipped()?;
        serde_json::from_str(self.text.get(start..self.at)?).ok().map(Cow::Owned)
    }

    #[inline]
    fn string_skipped(&mut self) -> Option<()> {
        self.byte(b'"')?;
        loop {
            self.at += plain_length(&self.bytes[self.at..]);
            if self.takes(b'"') {
                return Some(());
            }
            // Otherwise this is a control character, or the end of the text.
            self.byte(b'\\')?;
            match self.peek()? {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
                b'u' => {
                    let digits = self.bytes.get(self.at + 1..self.at + 5)?;
                    digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                    self.at += 5;
                }
                _ => return None,
            }
        }
    }

    fn event_type(&mut self) -> Option<EventType> {
        EventType::from_name(self.plain_string()?)
    }

    /// Reads a UUID of 36 characters, in any case.
    #[inline]
    fn uuid(&mut self) -> Option<UuidBytes> {
        self.byte(b'"')?;
        let uuid = uuid::Uuid::try_parse_ascii(self.bytes.get(self.at..self.at + 36)?).ok()?;
        self.at += 36;
        self.byte(b'"')?;
        Some(uuid.into_bytes())
    }

    /// Returns the text of a JSON value as it stands.
    fn raw_value(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.value_skipped(DEPTH_MAX)?;
        self.text.get(start..self.at)
    }

    fn value_skipped(&mut self, depth: u32) -> Option<()> {
        match self.peek()? {
            b'"' => self.string_skipped(),
            b'{' => self.items_skipped(b'}', depth.checked_sub(1)?),
            b'[' => self.items_skipped(b']', depth.checked_sub(1)?),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number_skipped(),
        }
    }

    /// Skips an object or an array, after its opening bracket.
    fn items_skipped(&mut self, close: u8, depth: u32) -> Option<()> {
        self.at += 1;
        if self.takes(close) {
            return Some(());
        }
        loop {
            if close == b'}' {
                self.string_skipped()?;
                self.colon()?;
            }
            self.value_skipped(depth)?;
            if !self.comma() {
                return self.byte(close);
            }
        }
    }

    /// Skips a number without an exponent.
    fn number_skipped(&mut self) -> Option<()> {
        self.takes(b'-');
        if !self.takes(b'0') {
            self.digits_skipped()?;
        }
        if self.takes(b'.') {
            self.digits_skipped()?;
        }
        // Anything else that follows here, such as a second digit or an exponent, is no `,` and no bracket.
        Some(())
    }

    fn digits_skipped(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
}

/// Returns the number of bytes before the first `"`, `\` or control character. It looks at eight bytes at once.
#[inline(always)]
fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGH: u64 = ONES << 7;
    let (eights, rest) = bytes.as_chunks::<8>();
    for (n, eight) in eights.iter().enumerate() {
        let word = u64::from_le_bytes(*eight);
        // The high bit of a byte is set where a subtraction borrows. A borrow can reach the bytes above it, so only the lowest
        // set bit counts.
        let less = |word: u64, than: u64| word.wrapping_sub(ONES * than) & !word;
        let equal = |byte: u8| less(word ^ (ONES * u64::from(byte)), 1);
        let found = (less(word, 0x20) | equal(b'"') | equal(b'\\')) & HIGH;
        if found != 0 {
            return n * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | ..0x20);
    bytes.len() - rest.len() + rest.iter().position(special).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{TimeBounds, decode, decode_reference};
    use proptest::prelude::*;

    const BOUNDS: TimeBounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };

    fn slowly(text: &str) -> Option<Event<'_>> {
        decode_reference(Some(text.as_bytes()), None, &BOUNDS).ok()
    }

    fn assert_quick(text: &str) {
        let event = read(text);
        assert!(event.is_some(), "not read quickly: {text}");
        assert_eq!(event, slowly(text), "{text}");
    }

    /// The event is as `examples/producer.py` writes it, with escapes in the address.
    #[test]
    fn an_event_of_the_python_producer_is_read_here() {
        assert_quick(
            r#"{"campaign_id": "678a5aa3-3b6f-4507-8c5f-e8f8dc3bf364", "workspace_id": "eb8ac8ce-8a24-4e6b-b313-8131c541013d", "email": "pers\u00f6nlich411@example.com", "event_type": "click", "event_time": "2026-11-23T12:33:21.747332", "metadata": {"ip": "203.0.113.7", "links": [1, 2.5, null], "note": "na\u00efve \u2603"}}"#,
        );
    }

    const HEAD: &str = r#"{"campaign_id":"6f9619ff-8b86-d011-b42d-00cf4fc964ff","workspace_id":"00000000-0000-0000-0000-000000000001","email":"a@b","event_type":"open","event_time":"2026-11-24T06:30:00","metadata":"#;

    #[test]
    fn metadata_is_kept_to_the_byte() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for metadata in [
            "{}",
            "[]",
            "null",
            "true",
            "-0.50",
            "0",
            r#""\u00e4\"\ud800 \\""#,
            r#"{"a": [1,{"b": "ä"}, false]}"#,
            &deep(16),
        ] {
            let text = format!("{HEAD}{metadata}}}");
            assert_quick(&text);
            assert_eq!(read(&text).unwrap().metadata, metadata);
        }
        for metadata in [
            "01",
            "-",
            "1.",
            ".5",
            "+1",
            "1e5",
            "nul",
            "[1,]",
            "{1:2}",
            r#"{"a"}"#,
            "[}",
            r#""\x""#,
            r#""\u12g4""#,
            "\"\n\"",
            &deep(17),
        ] {
            assert_eq!(read(&format!("{HEAD}{metadata}}}")), None, "{metadata}");
        }
    }

    #[test]
    fn the_rest_is_left_to_serde() {
        let good = format!("{HEAD}{{}}}}");
        for (from, to) in [
            ("\"email\":\"a@b\"", "\"email\":\"a@b\",\"email\":\"a@b\""),
            ("\"email\"", "\"e\\u006dail\""),
            ("\"email\"", "\"other\""),
            ("\"a@b\"", "null"),
            ("a@b", "\\ud800"),
            ("a@b", "\u{1f}"),
            ("6f9619ff-", "6f9619ff"),
            ("\"2026-11-24T06:30:00\"", "1795501800"),
            (",\"email", ",  \"email"),
            (":{}}", ":{}} "),
            (":{}}", ":{}}}"),
            (":{}}", ":{},}"),
            (":{}}", ":{}"),
        ] {
            assert!(good.contains(from));
            assert_eq!(read(&good.replace(from, to)), None, "{to}");
        }
    }

    #[test]
    fn the_first_special_byte_is_found_wherever_it_is() {
        for byte in 0..=u8::MAX {
            for (length, at) in (0..40).flat_map(|length| (0..length).map(move |at| (length, at))) {
                for around in [b' ', b'!', 0x7f, 0x80, 0xff] {
                    let mut bytes = vec![around; length];
                    bytes[at] = byte;
                    let wanted = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..0x20));
                    assert_eq!(plain_length(&bytes), wanted.unwrap_or(length), "{bytes:?}");
                }
            }
        }
    }

    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
            any::<i64>().prop_map(|number| number.to_string()),
            any::<f64>().prop_map(|number| format!("{number:?}")),
            "-?[0-9]{1,2}(\\.[0-9]{0,2})?([eE][+-]?[0-9]?)?",
            "\"(\\\\[\"/bfnrtu\\\\x]|[0-9a-fA-F]{3,5}|ä|\u{1f}){0,6}\"",
            Just("null".to_owned()),
        ];
        leaf.prop_recursive(4, 20, 4, |inner| {
            prop_oneof![
                (proptest::collection::vec(inner.clone(), 0..4), ", ?")
                    .prop_map(|(items, comma)| format!("[{}]", items.join(&comma))),
                (any::<String>(), inner, ": {0,2}").prop_map(|(name, value, colon)| {
                    format!("{{{}{colon}{value}}}", serde_json::to_string(&name).unwrap())
                }),
            ]
        })
    }

    /// The text of an event: fields in any order, some left out, all white space.
    fn event() -> impl Strategy<Value = String> {
        let fields =
            (any::<[u128; 2]>(), any::<String>(), 0usize..EventType::ALL.len(), any::<u32>(), json(), any::<bool>())
                .prop_map(|([campaign, workspace], email, kind, time, metadata, upper)| {
                    let id = |id: u128| {
                        let id = uuid::Uuid::from_u128(id).to_string();
                        if upper { id.to_uppercase() } else { id }
                    };
                    let time = chrono::DateTime::from_timestamp(time.into(), time).unwrap_or_default().to_rfc3339();
                    vec![
                        ("campaign_id", format!("\"{}\"", id(campaign))),
                        ("workspace_id", format!("\"{}\"", id(workspace))),
                        ("email", serde_json::to_string(&email).unwrap()),
                        ("event_type", format!("\"{}\"", EventType::ALL[kind].name())),
                        ("event_time", format!("\"{time}\"")),
                        ("metadata", metadata),
                    ]
                });
        let space = || prop_oneof![4 => Just(String::new()), 8 => Just(" ".to_owned()), 1 => "[ \n\t\r]{0,2}"];
        (fields.prop_shuffle(), space(), space(), prop_oneof![9 => Just(0usize), 1 => Just(1usize)]).prop_map(
            |(fields, comma, colon, left_out)| {
                let fields: Vec<_> =
                    fields.iter().skip(left_out).map(|(name, value)| format!("\"{name}\":{colon}{value}")).collect();
                format!("{{{}}}", fields.join(&format!(",{comma}")))
            },
        )
    }

    fn agrees(bytes: &[u8]) -> Result<(), TestCaseError> {
        prop_assert_eq!(decode(Some(bytes), None, &BOUNDS), decode_reference(Some(bytes), None, &BOUNDS));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_event_is_the_one_that_serde_reads(text in event()) {
            agrees(text.as_bytes())?;
        }

        #[test]
        fn a_damaged_event_becomes_what_serde_makes_of_it(
            text in event(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0usize..3), 1..4)
        ) {
            let mut bytes = text.into_bytes();
            for (at, byte, kind) in changes {
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, b"\",:{}[] \\0"[usize::from(byte) % 10]),
                    _ => drop(bytes.remove(at)),
                }
            }
            agrees(&bytes)?;
        }
    }
}
