//! The keys of the configuration: name, default, help, and the allowed values.
//!
//! A [`Kind`] judges one value on its own and converts it to the type of its field. It must never look at another key: that is
//! the task of `validate`. It must never look at the origin of a value: that is the task of `layers`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use toml::{Table, Value};
use tracing_subscriber::EnvFilter;
use url::Url;

use super::secret::mask;

/// A configuration key with its default and allowed values.
#[derive(Debug)]
pub struct Key {
    /// Dotted name, such as `flush.age_ms`.
    pub name: &'static str,
    /// Default, as text. Empty: the key is not set (for a secret: the empty secret).
    pub default: &'static str,
    /// Description of the key, as in the field's documentation.
    pub help: &'static str,
    /// Kind of values that it accepts.
    pub kind: Kind,
}

/// The values that a key accepts.
#[derive(Debug)]
pub enum Kind {
    /// Text that is not empty.
    Text,
    /// Text that is never shown.
    Secret,
    /// The name of a Kafka topic.
    Topic,
    /// The name of a Kafka topic, or empty text for none.
    TopicOrNone,
    /// A name that can stand in SQL without quoting.
    Identifier,
    /// Http or https addresses without credentials: a list, or text with commas.
    HttpUrls,
    /// An IP address and port.
    Address,
    /// A filter of log events.
    LogFilter,
    /// One word of a list.
    OneOf(&'static [&'static str]),
    /// The value true or false.
    Bool,
    /// A whole number in this range.
    Integer(RangeInclusive<i64>),
    /// A number of bytes, plain or with a unit.
    Bytes(RangeInclusive<i64>),
    /// A number in this range.
    Float(RangeInclusive<f64>),
    /// A table of librdkafka properties.
    Properties,
}

impl Key {
    /// Returns the allowed values, to follow the words "must be".
    pub fn allowed(&self) -> String {
        let unset = if self.is_optional() { ", or \"\" for not set" } else { "" };
        self.kind.allowed() + unset
    }

    /// True if `value` means "not set".
    pub(super) fn is_unset(&self, value: &Value) -> bool {
        self.is_optional() && value.as_str() == Some("")
    }

    fn is_optional(&self) -> bool {
        self.default.is_empty() && !matches!(self.kind, Kind::Secret | Kind::Properties)
    }

    /// Returns the value as people may see it. It masks text that could hold a credential.
    pub(super) fn show(&self, value: &Value) -> String {
        match (&self.kind, value) {
            _ if self.is_unset(value) => "(not set)".to_owned(),
            (Kind::Secret, Value::String(text)) => mask(text).to_owned(),
            (Kind::Properties, Value::Table(_)) => "(none)".to_owned(),
            (Kind::Secret | Kind::Properties, _) => "***".to_owned(),
            (Kind::HttpUrls, value) if value.to_string().contains(['@', '?']) => "***".to_owned(),
            (Kind::Bytes(_), Value::Integer(bytes)) => format_bytes(*bytes),
            _ => show(value),
        }
    }
}

/// Returns a value on one line.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

impl Kind {
    fn allowed(&self) -> String {
        match self {
            Kind::Text => "text, not empty, without control characters".into(),
            Kind::Secret => "text without NUL".into(),
            Kind::Topic => "a Kafka topic name: 1 to 249 of the characters A-Z a-z 0-9 . _ -".into(),
            Kind::TopicOrNone => format!("{}, or \"\" for none", Kind::Topic.allowed()),
            Kind::Identifier => "a letter or _, then at most 127 letters, digits or _".into(),
            Kind::HttpUrls => {
                "http://host:port or https://host:port without user, password or query; several as a list or with commas".into()
            }
            Kind::Address => "an IP address and port, such as 127.0.0.1:9464".into(),
            Kind::LogFilter => "a log filter, such as info or info,tallyhouse=debug".into(),
            Kind::OneOf(words) => format!("one of {}", words.join(", ")),
            Kind::Bool => "true or false".into(),
            Kind::Integer(range) => {
                format!("a whole number from {} to {}", range.start(), range.end())
            }
            Kind::Bytes(range) => format!(
                "a number of bytes from {} to {}, such as 1048576, 512MiB or 1GB",
                format_bytes(*range.start()),
                format_bytes(*range.end())
            ),
            Kind::Float(range) => format!("a number from {} to {}", range.start(), range.end()),
            Kind::Properties => "a table of librdkafka properties, each text, a number or true/false".into(),
        }
    }

    /// Returns `number`, or the least allowed number if that is greater.
    pub(super) fn at_least(&self, number: i64) -> i64 {
        match self {
            Kind::Integer(range) | Kind::Bytes(range) => number.max(*range.start()),
            _ => number,
        }
    }

    /// Converts `given`, text (from the environment or a flag) or typed (from TOML), to the type of the field.
    pub(super) fn parse(&self, given: &Value) -> Option<Value> {
        match self {
            Kind::Text => text_if(given, |t| !t.is_empty() && !t.contains(char::is_control)),
            Kind::Secret => text_if(given, |t| !t.contains('\0')),
            Kind::Topic => text_if(given, is_topic),
            Kind::TopicOrNone => text_if(given, |text| text.is_empty() || is_topic(text)),
            Kind::Identifier => text_if(given, is_identifier),
            Kind::HttpUrls => http_urls(given),
            Kind::Address => text_if(given, |t| t.parse::<SocketAddr>().is_ok()),
            Kind::LogFilter => text_if(given, |t| !t.is_empty() && t.parse::<EnvFilter>().is_ok()),
            Kind::OneOf(words) => text_if(given, |t| words.contains(&t)),
            Kind::Bool => parse_text(given, |t| t.parse().ok().map(Value::Boolean)).filter(Value::is_bool),
            Kind::Integer(range) => integer_in(range, parse_text(given, |t| t.parse().ok().map(Value::Integer))),
            Kind::Bytes(range) => integer_in(range, parse_text(given, |t| parse_bytes(t).map(Value::Integer))),
            Kind::Float(range) => {
                let number = match parse_text(given, |t| t.parse().ok().map(Value::Float))? {
                    Value::Integer(whole) => whole as f64,
                    other => other.as_float()?,
                };
                range.contains(&number).then_some(Value::Float(number))
            }
            // Its entries are keys of their own: see `property`.
            Kind::Properties => (given.as_str() == Some("")).then(|| Value::Table(Table::new())),
        }
    }
}

/// Returns the text of a librdkafka property.
pub(super) fn property(given: &Value) -> Option<Value> {
    let text = match given {
        Value::String(text) => text.clone(),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => given.to_string(),
        _ => return None,
    };
    (!text.contains('\0')).then_some(Value::String(text))
}

fn text_if(given: &Value, accept: impl Fn(&str) -> bool) -> Option<Value> {
    given.as_str().filter(|text| accept(text)).map(Value::from)
}

fn parse_text(given: &Value, parse: impl Fn(&str) -> Option<Value>) -> Option<Value> {
    match given {
        Value::String(text) => parse(text),
        typed => Some(typed.clone()),
    }
}

fn integer_in(range: &RangeInclusive<i64>, value: Option<Value>) -> Option<Value> {
    value.filter(|v| v.as_integer().is_some_and(|n| range.contains(&n)))
}

fn is_topic(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=249).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != ".."
}

fn is_identifier(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&text.len()) && text.bytes().all(word) && !text.as_bytes()[0].is_ascii_digit()
}

/// Returns the addresses as one text, separated by commas. None is there twice.
fn http_urls(given: &Value) -> Option<Value> {
    let urls: Vec<&str> = match given {
        Value::String(text) => text.split(',').map(str::trim).collect(),
        Value::Array(list) => list.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    let is_fine =
        |(number, url): (usize, &&str)| is_http_url(url) && !url.contains(',') && !urls[..number].contains(url);
    (!urls.is_empty() && urls.iter().enumerate().all(is_fine)).then(|| Value::from(urls.join(",")))
}

fn is_http_url(text: &str) -> bool {
    // The check also looks for '@' and '?' in the text, so that everything that `show` masks is refused as well.
    !text.contains(['@', '?', '#'])
        && Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

const UNITS: [(&str, i64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads bytes from `1048576`, `512MiB`, `1 GB`; binary and decimal units, in any case.
fn parse_bytes(text: &str) -> Option<i64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: i64 = number.parse().ok()?;
    let unit = unit.trim();
    let factor = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => return None,
    };
    number.checked_mul(factor)
}

/// Returns bytes in the largest binary unit that is exact.
pub(super) fn format_bytes(bytes: i64) -> String {
    let exact = UNITS[..3].iter().find(|(_, factor)| bytes != 0 && bytes % factor == 0);
    exact.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_take_units_and_nothing_else() {
        assert_eq!(parse_bytes("512MiB"), Some(536_870_912));
        assert_eq!(parse_bytes("1GB"), Some(1_000_000_000));
        assert_eq!(parse_bytes("3 kib"), Some(3072));
        for wrong in ["", "MiB", "-1", "1.5GiB", "1 parsec", "9999999999GiB", "1MiB2"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn words_of_each_kind() {
        let ok = |kind: &Kind, text: &str| kind.parse(&Value::from(text)).is_some();
        assert!(ok(&Kind::Identifier, "_campaigns2"));
        for wrong in ["", "2x", "a-b", "a`b", "a b", &"x".repeat(129)] {
            assert!(!ok(&Kind::Identifier, wrong), "{wrong}");
        }
        for wrong in ["", "..", "^campaign", "a b", "é"] {
            assert!(!ok(&Kind::Topic, wrong), "{wrong}");
        }
        assert!(ok(&Kind::HttpUrls, "https://ch.example:8443/prefix"));
        let list = Value::from(vec!["http://a:1", "http://b:1"]);
        assert_eq!(Kind::HttpUrls.parse(&list), Some("http://a:1,http://b:1".into()));
        assert_eq!(Kind::HttpUrls.parse(&"http://a:1, http://b:1".into()), Some("http://a:1,http://b:1".into()));
        assert_eq!(Kind::HttpUrls.parse(&Value::Array(Vec::new())), None);
        let wrong = [
            "localhost:8123",
            "tcp://h",
            "http://",
            "http://u:p@h",
            "http://h/?user=x",
            "http://a,http://a",
            "http://a,",
        ];
        for wrong in wrong {
            assert!(!ok(&Kind::HttpUrls, wrong), "{wrong}");
        }
        assert!(ok(&Kind::LogFilter, "info,tallyhouse=debug") && !ok(&Kind::LogFilter, "a=b=c"));
        assert!(ok(&Kind::Float(0.5..=2.0), "1") && !ok(&Kind::Float(0.5..=2.0), "NaN"));
        assert!(Kind::Float(0.5..=2.0).parse(&Value::Integer(1)).is_some());
        assert!(Kind::Text.parse(&Value::Integer(1)).is_none());
        assert!(Kind::Bool.parse(&Value::Integer(1)).is_none());
    }

    proptest! {
        #[test]
        fn formatted_bytes_parse_back(bytes in 0..=i64::MAX) {
            prop_assert_eq!(parse_bytes(&format_bytes(bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".*") {
            let _ = parse_bytes(&text);
        }

        #[test]
        fn units_multiply(number in 0i64..8_000_000_000, unit in 0..UNITS.len(), lower: bool) {
            let (name, factor) = UNITS[unit];
            let name = if lower { name.to_lowercase() } else { name.to_owned() };
            prop_assert_eq!(parse_bytes(&format!("{number}{name}")), number.checked_mul(factor));
        }
    }
}
