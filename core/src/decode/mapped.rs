//! Reads events of producers that use other field names, nested fields or other words, by a mapping from the configuration.
//!
//! The default event never comes here: [`Decoder`] chooses between the two paths once. This path walks the record once for each
//! level of nesting. It must reject for the same reasons as the default path, and it must never depend on the wall clock.

use crate::decode::event::{Event, EventType, UuidBytes};
use crate::decode::reject::{Reason, Rejection};
use crate::decode::time::{self, TimeError};
use crate::decode::{Note, Text, TimeBounds, classify, excerpt, packaging, parse_uuid, plausible, text};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// Namespace of the UUIDv5 that stands for an id that is no UUID. It never changes, so that an id always gets the same UUID.
pub const NAMESPACE: Uuid = Uuid::from_u128(0x49ed_ed6a_14c1_468a_a307_69eb_b74f_ca48);

/// Stands for the whole record in place of a path.
pub const WHOLE: &str = "*";
/// Greatest number of parts of a field. [`Walk`] has a bit for each path of all six fields.
const PARTS_MAX: usize = 10;
/// Greatest number of names in a path.
const DEPTH_MAX: usize = 8;

/// Reads the values of records, by the default form or by a mapping.
#[derive(Clone, Debug)]
pub struct Decoder {
    bounds: TimeBounds,
    mapping: Option<Arc<Mapping>>,
}

impl Decoder {
    /// Returns a decoder. Without a mapping it reads the default form.
    pub fn new(bounds: TimeBounds, mapping: Option<Mapping>) -> Decoder {
        Decoder { bounds, mapping: mapping.map(Arc::new) }
    }

    /// Reads the value of one record, as [`crate::decode::decode`] does.
    ///
    /// # Errors
    /// Returns a [`Rejection`] with a stable reason for everything that is not an event.
    #[inline]
    pub fn decode<'a>(&'a self, payload: Option<&'a [u8]>, timestamp_ms: Option<i64>) -> Result<Event<'a>, Rejection> {
        match &self.mapping {
            None => crate::decode::decode(payload, timestamp_ms, &self.bounds),
            Some(mapping) => mapping.decode(payload, timestamp_ms, &self.bounds),
        }
    }

    /// Returns each field of an event with the path or the constant that its value comes from. Fields without a value are left
    /// out, and nothing is returned for a value that is no JSON object.
    pub fn origins(&self, payload: &[u8]) -> Vec<(&'static str, String)> {
        let default;
        let mapping = match &self.mapping {
            Some(mapping) => mapping.as_ref(),
            None => match Mapping::new(&MappingText::default()) {
                Ok(mapping) => {
                    default = mapping;
                    &default
                }
                Err(_) => return Vec::new(),
            },
        };
        mapping.origins(payload)
    }
}

/// Treatment of an id that is no UUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtherIds {
    /// The record is rejected as `bad_uuid`.
    #[default]
    Reject,
    /// The id becomes a UUIDv5 in [`NAMESPACE`].
    Uuid5,
}

/// A mapping as the configuration has it. Each field is a list of paths, separated by commas. The first path that has a value
/// counts. A last part that begins with `=` is a constant for records without a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingText<'a> {
    /// Paths to the value of `campaign_id`.
    pub campaign_id: &'a str,
    /// Paths to the value of `workspace_id`.
    pub workspace_id: &'a str,
    /// Paths to the value of `email`.
    pub email: &'a str,
    /// Paths to the value of `event_type`.
    pub event_type: &'a str,
    /// Paths to the value of `event_time`.
    pub event_time: &'a str,
    /// Sources of `metadata`; [`WHOLE`] is the whole record, and an empty text is none.
    pub metadata: &'a str,
    /// Pairs `word=type`, separated by commas.
    pub words: &'a str,
    /// Treatment of an id that is no UUID.
    pub other_ids: OtherIds,
}

/// The types' own names as words.
pub const OWN_WORDS: &str = "delivered=delivered, open=open, click=click, bounce=bounce, unsubscribe=unsubscribe, sent=sent, \
                             complaint=complaint, deferred=deferred";

impl Default for MappingText<'_> {
    fn default() -> Self {
        MappingText {
            campaign_id: "campaign_id",
            workspace_id: "workspace_id",
            email: "email",
            event_type: "event_type",
            event_time: "event_time",
            metadata: "metadata",
            words: OWN_WORDS,
            other_ids: OtherIds::Reject,
        }
    }
}

/// A reason why a mapping cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingError {
    /// Name of the faulty field of [`MappingText`].
    pub field: &'static str,
    /// Reason, to follow the field's name.
    pub reason: String,
}

/// The sources of one field, in order.
#[derive(Clone, Debug)]
struct Sources<C> {
    field: &'static str,
    /// Paths with the slot in which the walk puts their values.
    paths: Vec<(String, usize)>,
    constant: Option<C>,
}

/// A name on a path, with the names below it.
#[derive(Clone, Debug, Default)]
struct Node {
    children: Vec<(String, Node)>,
    slot: Option<usize>,
}

/// A mapping that can work.
#[derive(Clone, Debug)]
pub struct Mapping {
    root: Node,
    slots: usize,
    campaign_id: Sources<UuidBytes>,
    workspace_id: Sources<UuidBytes>,
    email: Sources<String>,
    event_type: Sources<EventType>,
    event_time: Sources<u32>,
    metadata: Sources<String>,
    keeps_whole: bool,
    words: Vec<(String, EventType)>,
    other_ids: OtherIds,
}

impl Mapping {
    /// Reads a mapping.
    ///
    /// # Errors
    /// Returns every reason why it cannot work.
    pub fn new(given: &MappingText<'_>) -> Result<Mapping, Vec<MappingError>> {
        let mut maker = Maker::default();
        let other_ids = given.other_ids;
        let campaign_id = maker.sources("campaign_id", given.campaign_id, |text| constant_id(text, other_ids));
        let workspace_id = maker.sources("workspace_id", given.workspace_id, |text| constant_id(text, other_ids));
        let email = maker.sources("email", given.email, |text| Ok(text.to_owned()));
        let event_type = maker.sources("event_type", given.event_type, |text| {
            EventType::from_name(text).ok_or_else(|| format!("the constant {text:?} is none of {}", type_names()))
        });
        let event_time = maker.sources("event_time", given.event_time, |_| {
            Err("a constant cannot stand for it, because each event has a time of its own".to_owned())
        });
        let keeps_whole = given.metadata.trim() == WHOLE;
        let metadata = if keeps_whole || given.metadata.trim().is_empty() { "" } else { given.metadata };
        let metadata = maker.sources("metadata", metadata, |text| match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(_) => Err(format!("the constant {text:?} is not JSON")),
        });
        let words = maker.words(given.words);
        if !maker.errors.is_empty() {
            return Err(maker.errors);
        }
        let Maker { root, slots, .. } = maker;
        Ok(Mapping {
            root,
            slots,
            campaign_id,
            workspace_id,
            email,
            event_type,
            event_time,
            metadata,
            keeps_whole,
            words,
            other_ids,
        })
    }

    fn decode<'a>(
        &'a self,
        payload: Option<&'a [u8]>,
        timestamp_ms: Option<i64>,
        bounds: &TimeBounds,
    ) -> Result<Event<'a>, Rejection> {
        let event = text(payload).and_then(|text| self.event(text)).map_err(|rejection| match rejection.reason {
            // A mapping may read an envelope, so a missing field says nothing about one.
            Reason::MissingField => rejection,
            _ => packaging::named(payload.unwrap_or_default(), rejection),
        })?;
        plausible(event, timestamp_ms, bounds)
    }

    fn event<'a>(&'a self, text: &'a str) -> Result<Event<'a>, Rejection> {
        let found = self.find(text)?;
        let event_time = match found.first(&self.event_time)? {
            Value::Constant(time) => *time,
            Value::Json(raw, path) => event_time(raw, path)?,
        };
        Ok(Event {
            campaign_id: self.id(&found, &self.campaign_id)?,
            workspace_id: self.id(&found, &self.workspace_id)?,
            email: match found.first(&self.email)? {
                Value::Constant(email) => Cow::Borrowed(email.as_str()),
                Value::Json(raw, path) => match scalar(raw, "email", path)? {
                    Scalar::Text(email) => email,
                    _ => return Err(wrong_type("email", path, "text")),
                },
            },
            event_type: self.event_type(&found)?,
            event_time,
            metadata: match found.first_or_none(&self.metadata) {
                _ if self.keeps_whole => text.trim_ascii(),
                Some(Value::Constant(metadata)) => metadata,
                Some(Value::Json(raw, _)) => raw,
                None => "",
            },
            unknown_fields: if self.keeps_whole { 0 } else { found.unknown_fields },
        })
    }

    fn id(&self, found: &Found<'_>, sources: &Sources<UuidBytes>) -> Result<UuidBytes, Rejection> {
        let field = sources.field;
        let (raw, path) = match found.first(sources)? {
            Value::Constant(id) => return Ok(*id),
            Value::Json(raw, path) => (raw, path),
        };
        let text = match (scalar(raw, field, path)?, self.other_ids) {
            (Scalar::Text(text), _) => text,
            (Scalar::Number(number), OtherIds::Uuid5) => Cow::Borrowed(number),
            _ => return Err(wrong_type(field, path, "text")),
        };
        id_of(&text, self.other_ids).ok_or_else(|| {
            let error = format!("`{field}` (from `{path}`) is not a UUID: {}", excerpt(&text));
            Rejection::new(Reason::BadUuid, error)
        })
    }

    fn event_type(&self, found: &Found<'_>) -> Result<EventType, Rejection> {
        let (raw, path) = match found.first(&self.event_type)? {
            Value::Constant(event_type) => return Ok(*event_type),
            Value::Json(raw, path) => (raw, path),
        };
        let word = match scalar(raw, "event_type", path)? {
            Scalar::Text(word) => word,
            Scalar::Number(word) | Scalar::Bool(word) => Cow::Borrowed(word),
            Scalar::Nested => return Err(wrong_type("event_type", path, "text, a number, true or false")),
        };
        let known = self.words.iter().find(|(known, _)| *known == *word);
        known.map(|(_, event_type)| *event_type).ok_or_else(|| {
            let error = format!("no word for an event_type (from `{path}`): {}", excerpt(&word));
            Rejection::new(Reason::UnknownEventType, error)
        })
    }

    fn origins(&self, payload: &[u8]) -> Vec<(&'static str, String)> {
        let Some(found) = text(Some(payload)).ok().and_then(|text| self.find(text).ok()) else { return Vec::new() };
        let whole = self.keeps_whole.then(|| WHOLE.to_owned());
        [
            ("campaign_id", found.origin(&self.campaign_id)),
            ("workspace_id", found.origin(&self.workspace_id)),
            ("email", found.origin(&self.email)),
            ("event_type", found.origin(&self.event_type)),
            ("event_time", found.origin(&self.event_time)),
            ("metadata", whole.or_else(|| found.origin(&self.metadata))),
        ]
        .into_iter()
        .filter_map(|(field, origin)| Some((field, origin?)))
        .collect()
    }

    /// Returns the JSON text at each path.
    fn find<'a>(&self, text: &'a str) -> Result<Found<'a>, Rejection> {
        let mut found = Found { values: vec![None; self.slots], unknown_fields: 0 };
        let mut below = vec![(&self.root, text)];
        let mut is_root = true;
        while let Some((node, text)) = below.pop() {
            let mut note = Note::default();
            let mut json = serde_json::Deserializer::from_str(text);
            let walk = Walk { node, found: &mut found, below: &mut below, note: &mut note, is_root };
            let walked = walk.deserialize(&mut json).and_then(|()| json.end());
            walked.map_err(|error| note.refused.take().unwrap_or_else(|| classify(text, &error, &note)))?;
            is_root = false;
        }
        Ok(found)
    }
}

/// The JSON text at each path of a record.
struct Found<'a> {
    values: Vec<Option<&'a str>>,
    unknown_fields: u32,
}

/// The value of a field.
enum Value<'a, 'm, C> {
    /// JSON text with its path.
    Json(&'a str, &'m str),
    Constant(&'m C),
}

impl<'a> Found<'a> {
    /// Returns the first value of a field. A `null` counts as absent.
    fn first_or_none<'m, C>(&self, sources: &'m Sources<C>) -> Option<Value<'a, 'm, C>> {
        let at = |(path, slot): &'m (String, usize)| {
            self.values[*slot].filter(|raw| *raw != "null").map(|raw| Value::Json(raw, path.as_str()))
        };
        sources.paths.iter().find_map(at).or_else(|| sources.constant.as_ref().map(Value::Constant))
    }

    fn first<'m, C>(&self, sources: &'m Sources<C>) -> Result<Value<'a, 'm, C>, Rejection> {
        self.first_or_none(sources).ok_or_else(|| {
            let paths: Vec<String> = sources.paths.iter().map(|(path, _)| format!("`{path}`")).collect();
            let error = format!("`{}` is missing: no value at {}", sources.field, paths.join(", "));
            Rejection::new(Reason::MissingField, error)
        })
    }

    fn origin<C>(&self, sources: &Sources<C>) -> Option<String> {
        Some(match self.first_or_none(sources)? {
            Value::Json(_, path) => path.to_owned(),
            Value::Constant(_) => "constant".to_owned(),
        })
    }
}

/// Reads one object or array, and notes the values that the mapping names.
struct Walk<'w, 'm, 'a> {
    node: &'m Node,
    found: &'w mut Found<'a>,
    /// Values that have further names of the mapping below them.
    below: &'w mut Vec<(&'m Node, &'a str)>,
    note: &'w mut Note,
    is_root: bool,
}

impl<'a> Walk<'_, '_, 'a> {
    /// Notes the value of the child with a number. False if this object had the same name before.
    fn note_value(&mut self, child: usize, seen: &mut u64, value: &'a str) -> bool {
        let is_first = *seen & (1 << child) == 0;
        *seen |= 1 << child;
        let node = &self.node.children[child].1;
        if let Some(slot) = node.slot {
            self.found.values[slot] = Some(value);
        }
        if !node.children.is_empty() && value.starts_with(['{', '[']) {
            self.below.push((node, value));
        }
        is_first
    }

    fn child(&self, name: &str) -> Option<usize> {
        self.node.children.iter().position(|(child, _)| child == name)
    }
}

impl<'a> DeserializeSeed<'a> for Walk<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.is_root { deserializer.deserialize_map(self) } else { deserializer.deserialize_any(self) }
    }
}

impl<'a> Visitor<'a> for Walk<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut seen = 0;
        while let Some(Text(name)) = map.next_key()? {
            let Some(child) = self.child(&name) else {
                map.next_value::<IgnoredAny>()?;
                self.found.unknown_fields += u32::from(self.is_root);
                continue;
            };
            let value = map.next_value::<&RawValue>()?.get();
            if !self.note_value(child, &mut seen, value) {
                let error = format!("`{}` stands there twice", excerpt(&name));
                self.note.refused = Some(Rejection::new(Reason::DuplicateField, error));
                return Err(serde::de::Error::custom("refused"));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(mut self, mut items: A) -> Result<(), A::Error> {
        let mut seen = 0;
        for index in 0_usize.. {
            let Some(value) = items.next_element::<&RawValue>()? else { break };
            if let Some(child) = self.child(&index.to_string()) {
                self.note_value(child, &mut seen, value.get());
            }
        }
        Ok(())
    }
}

/// A JSON value that has no parts.
enum Scalar<'a> {
    Text(Cow<'a, str>),
    Number(&'a str),
    Bool(&'a str),
    /// An object or an array.
    Nested,
}

/// Returns a value. `raw` is correct JSON.
fn scalar<'a>(raw: &'a str, field: &str, path: &str) -> Result<Scalar<'a>, Rejection> {
    match raw.as_bytes().first() {
        Some(b'"') if !raw.contains('\\') => Ok(Scalar::Text(Cow::Borrowed(&raw[1..raw.len() - 1]))),
        Some(b'"') => serde_json::from_str(raw)
            .map(|text| Scalar::Text(Cow::Owned(text)))
            .map_err(|error| Rejection::new(Reason::LoneSurrogate, format!("`{field}` (from `{path}`): {error}"))),
        Some(b'{' | b'[') => Ok(Scalar::Nested),
        Some(b't' | b'f') => Ok(Scalar::Bool(raw)),
        _ => Ok(Scalar::Number(raw)),
    }
}

fn event_time(raw: &str, path: &str) -> Result<u32, Rejection> {
    let time = match scalar(raw, "event_time", path)? {
        Scalar::Text(text) => time::parse(&text),
        Scalar::Number(number) => match (number.parse::<i64>(), number.parse::<f64>()) {
            (Ok(number), _) => time::from_integer(number),
            (_, Ok(number)) => time::from_float(number),
            _ => Err(TimeError::Malformed),
        },
        _ => return Err(wrong_type("event_time", path, "a time as text or as a number")),
    };
    time.map_err(|error| match error {
        TimeError::Malformed => {
            let error = format!("`event_time` (from `{path}`) is not a time: {}", excerpt(raw));
            Rejection::new(Reason::BadTime, error)
        }
        TimeError::OutOfRange => {
            let error = format!("`event_time` (from `{path}`) is not within 1970-01-01 to 2106-02-07");
            Rejection::new(Reason::TimeOutOfRange, error)
        }
    })
}

fn wrong_type(field: &str, path: &str, wanted: &str) -> Rejection {
    Rejection::new(Reason::WrongType, format!("`{field}` (from `{path}`) is not {wanted}"))
}

/// Returns the UUID of an id, or `None` if the record has to be rejected. An empty id is none.
fn id_of(text: &str, other_ids: OtherIds) -> Option<UuidBytes> {
    parse_uuid(text).or_else(|| match other_ids {
        OtherIds::Uuid5 if !text.is_empty() => Some(Uuid::new_v5(&NAMESPACE, text.as_bytes()).into_bytes()),
        _ => None,
    })
}

fn constant_id(text: &str, other_ids: OtherIds) -> Result<UuidBytes, String> {
    id_of(text, other_ids).ok_or_else(|| format!("the constant {text:?} is not a UUID"))
}

fn type_names() -> String {
    EventType::ALL.map(EventType::name).join(", ")
}

/// Collects the parts of a mapping and the faults in it.
#[derive(Default)]
struct Maker {
    root: Node,
    slots: usize,
    errors: Vec<MappingError>,
}

impl Maker {
    fn refuse(&mut self, field: &'static str, reason: impl Into<String>) {
        self.errors.push(MappingError { field, reason: reason.into() });
    }

    fn sources<C>(
        &mut self,
        field: &'static str,
        given: &str,
        constant_of: impl Fn(&str) -> Result<C, String>,
    ) -> Sources<C> {
        let mut sources = Sources { field, paths: Vec::new(), constant: None };
        let parts: Vec<&str> = given.split(',').map(str::trim).collect();
        if given.trim().is_empty() {
            if field != "metadata" {
                self.refuse(field, "needs a path or a constant");
            }
            return sources;
        }
        if parts.len() > PARTS_MAX {
            self.refuse(field, format!("has more than {PARTS_MAX} parts"));
            return sources;
        }
        for part in parts {
            if sources.constant.is_some() {
                self.refuse(field, format!("{part:?} is never read, because a constant stands before it"));
            } else if let Some(text) = part.strip_prefix('=') {
                match constant_of(text.trim()) {
                    Ok(constant) => sources.constant = Some(constant),
                    Err(reason) => self.refuse(field, reason),
                }
            } else {
                match names(part) {
                    Ok(names) => sources.paths.push((part.to_owned(), self.slot_of(&names))),
                    Err(reason) => self.refuse(field, format!("the path {part:?} {reason}")),
                }
            }
        }
        sources
    }

    /// Returns the slot of a path. Two fields may have the same path.
    fn slot_of(&mut self, names: &[String]) -> usize {
        let mut node = &mut self.root;
        for name in names {
            let place = node.children.iter().position(|(child, _)| child == name);
            let place = place.unwrap_or_else(|| {
                node.children.push((name.clone(), Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[place].1;
        }
        let next = &mut self.slots;
        *node.slot.get_or_insert_with(|| {
            *next += 1;
            *next - 1
        })
    }

    fn words(&mut self, given: &str) -> Vec<(String, EventType)> {
        let mut words: Vec<(String, EventType)> = Vec::new();
        for pair in given.split(',').map(str::trim) {
            let Some((word, name)) = pair.rsplit_once('=').map(|(word, name)| (word.trim(), name.trim())) else {
                self.refuse("words", format!("{pair:?} is not a pair word=type"));
                continue;
            };
            match EventType::from_name(name) {
                _ if word.is_empty() => self.refuse("words", format!("{pair:?} has no word")),
                _ if words.iter().any(|(known, _)| known == word) => {
                    self.refuse("words", format!("the word {word:?} stands there twice"));
                }
                Some(event_type) => words.push((word.to_owned(), event_type)),
                None => self.refuse("words", format!("the type in {pair:?} is none of {}", type_names())),
            }
        }
        words
    }
}

/// Returns the names of a path: they are separated by dots, and `\.` is a dot in a name.
fn names(path: &str) -> Result<Vec<String>, String> {
    let (mut names, mut name) = (Vec::new(), String::new());
    let mut characters = path.chars();
    while let Some(c) = characters.next() {
        match c {
            '.' => names.push(std::mem::take(&mut name)),
            '\\' => match characters.next() {
                Some(escaped @ ('.' | '\\')) => name.push(escaped),
                _ => return Err("has a \\ that stands neither before . nor before \\".to_owned()),
            },
            _ => name.push(c),
        }
    }
    names.push(name);
    if names.iter().any(String::is_empty) {
        return Err("has an empty name".to_owned());
    }
    if names.len() > DEPTH_MAX {
        return Err(format!("has more than {DEPTH_MAX} names"));
    }
    if names == [WHOLE] {
        return Err("stands for the whole record, which only metadata can be, and alone".to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode_reference;
    use proptest::prelude::*;

    const BOUNDS: TimeBounds = TimeBounds { past_seconds_max: 10 * 86_400, future_seconds_max: 86_400 };
    const NOW_MS: i64 = 1_795_501_800_000; // 2026-11-24T06:30:00Z
    const ID: &str = "6f9619ff-8b86-d011-b42d-00cf4fc964ff";

    /// A producer with nested fields and words of its own.
    fn nested() -> MappingText<'static> {
        MappingText {
            campaign_id: "tags.campaign.0, mail.campaign",
            workspace_id: "account, =00000000-0000-0000-0000-000000000007",
            email: "mail.to.0",
            event_type: "failure.severity, kind",
            event_time: "open.at, at",
            metadata: WHOLE,
            words: "permanent=bounce, temporary=deferred, opened = open, 7=click, true=sent",
            other_ids: OtherIds::Uuid5,
        }
    }

    fn decoder(text: &MappingText<'_>) -> Decoder {
        Decoder::new(BOUNDS, Some(Mapping::new(text).unwrap()))
    }

    fn reason(decoder: &Decoder, value: &str) -> Reason {
        decoder.decode(Some(value.as_bytes()), Some(NOW_MS)).expect_err(value).reason
    }

    const OPENED: &str = r#"{"kind": "opened", "at": 1, "open": {"at": 1795501800.5}, "tags": {"campaign": ["news-7"]}, "mail": {"to": ["ada@example.com", "b"], "x": {}}}"#;

    #[test]
    fn values_are_found_in_nested_fields_and_words_are_translated() {
        let decoder = decoder(&nested());
        let event = decoder.decode(Some(OPENED.as_bytes()), Some(NOW_MS)).unwrap();
        assert_eq!(event.campaign_id, Uuid::new_v5(&NAMESPACE, b"news-7").into_bytes());
        assert_eq!(event.workspace_id[15], 7);
        assert_eq!((&*event.email, event.event_type), ("ada@example.com", EventType::Open));
        assert_eq!((event.event_time, event.metadata, event.unknown_fields), (1_795_501_800, OPENED, 0));
        assert!(matches!(event.email, Cow::Borrowed(_)));
        let origins = decoder.origins(OPENED.as_bytes());
        let wanted = ["tags.campaign.0", "constant", "mail.to.0", "kind", "open.at", "*"];
        assert_eq!(origins.iter().map(|(_, origin)| origin.as_str()).collect::<Vec<_>>(), wanted);
        for (from, to, wanted) in [
            (r#""kind": "opened""#, r#""failure": {"severity": "permanent"}"#, EventType::Bounce),
            (r#""kind": "opened""#, r#""failure": {"severity": "temporary"}, "kind": "failed""#, EventType::Deferred),
            (r#""kind": "opened""#, r#""failure": {"severity": null}, "kind": "opened""#, EventType::Open),
            (r#""kind": "opened""#, r#""failure": "x", "kind": "\u006fpened""#, EventType::Open),
            (r#""opened""#, "7", EventType::Click),
            (r#""opened""#, "true", EventType::Sent),
        ] {
            let value = OPENED.replace(from, to);
            assert_eq!(decoder.decode(Some(value.as_bytes()), Some(NOW_MS)).unwrap().event_type, wanted, "{value}");
        }
        // A number is an id as well, and the name of a UUIDv5 is its text.
        let numbered = OPENED.replace(r#"["news-7"]"#, "[42]");
        let event = decoder.decode(Some(numbered.as_bytes()), Some(NOW_MS)).unwrap();
        assert_eq!(event.campaign_id, Uuid::new_v5(&NAMESPACE, b"42").into_bytes());
        let own = OPENED.replace("news-7", ID);
        let event = decoder.decode(Some(own.as_bytes()), Some(NOW_MS)).unwrap();
        assert_eq!(Uuid::from_bytes(event.campaign_id).to_string(), ID);
    }

    #[test]
    fn rejects_have_the_reasons_of_the_default_form() {
        let mapped = decoder(&nested());
        let with = |from: &str, to: &str| {
            assert!(OPENED.contains(from), "{from}");
            OPENED.replace(from, to)
        };
        for (value, wanted) in [
            ("", Reason::Empty),
            ("{", Reason::NotJson),
            ("5", Reason::NotAnObject),
            ("[{}]", Reason::Array),
            (r#"{"payload": {}}"#, Reason::MissingField),
            ("{}{}", Reason::NotJson),
            ("\x1f\u{8b}", Reason::NotJson),
        ] {
            assert_eq!(reason(&mapped, value), wanted, "{value}");
        }
        assert_eq!(mapped.decode(None, None).unwrap_err().reason, Reason::Tombstone);
        for (from, to, wanted) in [
            ("\"opened\"", "\"open\"", Reason::UnknownEventType),
            ("\"opened\"", "null", Reason::MissingField),
            ("\"opened\"", "{}", Reason::WrongType),
            ("\"opened\"", r#""\ud800""#, Reason::LoneSurrogate),
            ("\"kind\"", r#""\ud800""#, Reason::LoneSurrogate),
            ("\"x\"", r#""\ud800""#, Reason::LoneSurrogate),
            ("[\"news-7\"]", "[]", Reason::MissingField),
            ("[\"news-7\"]", "[\"\"]", Reason::BadUuid),
            ("[\"news-7\"]", "[true]", Reason::WrongType),
            ("\"ada@example.com\"", "5", Reason::WrongType),
            ("1795501800.5", "\"soon\"", Reason::BadTime),
            ("1795501800.5", "1e999", Reason::TimeOutOfRange),
            ("1795501800.5", "-1", Reason::TimeOutOfRange),
            ("1795501800.5", "[]", Reason::WrongType),
            ("1795501800.5", "1", Reason::TimeImplausible),
            ("{\"at\": 1795501800.5}", "{\"at\": 1795501800, \"at\": 1795501801}", Reason::DuplicateField),
            ("\"at\": 1,", "\"tags\": {}, \"at\": 1,", Reason::DuplicateField),
        ] {
            assert_eq!(reason(&mapped, &with(from, to)), wanted, "{to}");
        }
        let strict = decoder(&MappingText { other_ids: OtherIds::Reject, ..nested() });
        assert_eq!(reason(&strict, OPENED), Reason::BadUuid);
        assert_eq!(reason(&strict, &with("\"news-7\"", "42")), Reason::WrongType);
        let error = strict.decode(Some(OPENED.as_bytes()), None).unwrap_err().error;
        assert_eq!(error, "`campaign_id` (from `tags.campaign.0`) is not a UUID: \"news-7\"");
        // A value that no path names is not inspected, however deep it is.
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(mapped.decode(Some(with("{}", &deep).as_bytes()), Some(NOW_MS)).is_ok());
    }

    #[test]
    fn a_mapping_that_cannot_work_is_refused_with_the_place() {
        let good = nested();
        let long = ["a"; DEPTH_MAX + 1].join(".");
        let many = (0..=PARTS_MAX).map(|n| format!("p{n}")).collect::<Vec<_>>().join(",");
        for (text, field, reason) in [
            (MappingText { email: " ", ..good.clone() }, "email", "needs a path or a constant"),
            (MappingText { email: "a..b", ..good.clone() }, "email", "has an empty name"),
            (MappingText { email: "a,", ..good.clone() }, "email", "has an empty name"),
            (MappingText { email: r"a\b", ..good.clone() }, "email", "stands neither"),
            (MappingText { email: "*", ..good.clone() }, "email", "only metadata"),
            (MappingText { metadata: "*, a", ..good.clone() }, "metadata", "only metadata"),
            (MappingText { metadata: "=x", ..good.clone() }, "metadata", "not JSON"),
            (MappingText { email: &long, ..good.clone() }, "email", "more than 8 names"),
            (MappingText { email: &many, ..good.clone() }, "email", "more than 10 parts"),
            (MappingText { email: "=a, b", ..good.clone() }, "email", "never read"),
            (MappingText { event_time: "=2026-11-24", ..good.clone() }, "event_time", "time of its own"),
            (MappingText { event_type: "=opened", ..good.clone() }, "event_type", "none of delivered"),
            (MappingText { campaign_id: "=", ..good.clone() }, "campaign_id", "not a UUID"),
            (MappingText { words: "", ..good.clone() }, "words", "not a pair"),
            (MappingText { words: "a=open, a=click", ..good.clone() }, "words", "twice"),
            (MappingText { words: "a=opened", ..good.clone() }, "words", "none of delivered"),
            (MappingText { words: "=open", ..good.clone() }, "words", "no word"),
        ] {
            let errors = Mapping::new(&text).unwrap_err();
            assert!(errors.iter().all(|error| error.field == field), "{errors:?}");
            assert!(errors.iter().any(|error| error.reason.contains(reason)), "{errors:?}");
        }
        let two = MappingText { email: "", event_type: "", ..good };
        assert_eq!(Mapping::new(&two).unwrap_err().len(), 2);
    }

    #[test]
    fn a_dot_in_a_name_is_escaped() {
        let mapping = MappingText { email: r"a\.b.c\\d", metadata: "", ..nested() };
        let value = OPENED.replacen('{', r#"{"z": 1, "a.b": {"c\\d": "x@y"}, "#, 1);
        let decoder = decoder(&mapping);
        let event = decoder.decode(Some(value.as_bytes()), None).unwrap();
        assert_eq!((&*event.email, event.metadata, event.unknown_fields), ("x@y", "", 1));
    }

    proptest! {
        /// The default form as a mapping reads each event as the default path does.
        #[test]
        fn the_default_form_is_one_mapping(
            id in any::<u128>(), email in any::<String>(), kind in 0usize..EventType::ALL.len(), seconds in any::<u32>(),
            metadata in prop_oneof![Just("{\"a\": [1]}"), Just("\"x\""), Just("[]")], extra in "[a-z]{1,3}",
        ) {
            let id = Uuid::from_u128(id);
            let (email, kind) = (serde_json::to_string(&email).unwrap(), EventType::ALL[kind].name());
            let text = format!(
                r#"{{"campaign_id":"{id}","{extra}":1,"workspace_id":"{id}","email":{email},"event_type":"{kind}","event_time":{seconds},"metadata":{metadata}}}"#
            );
            let default = Decoder::new(BOUNDS, Some(Mapping::new(&MappingText::default()).unwrap()));
            prop_assert_eq!(default.decode(Some(text.as_bytes()), None), decode_reference(Some(text.as_bytes()), None, &BOUNDS));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decoder(&nested()).decode(Some(&bytes), Some(NOW_MS));
        }

        #[test]
        fn a_damaged_record_never_panics(at in 0usize..OPENED.len(), byte in any::<u8>()) {
            let mut bytes = OPENED.as_bytes().to_vec();
            bytes[at] = byte;
            if let Err(rejection) = decoder(&nested()).decode(Some(&bytes), Some(NOW_MS)) {
                prop_assert!(rejection.error.len() <= Rejection::ERROR_BYTES_MAX);
            }
        }
    }
}
