//! Why a record is not an event: stable words for the table, the metrics and the alerts.

/// The reason a record was rejected. Its [`code`](Reason::code) is stored and must never change its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The record has no value (a tombstone).
    Tombstone,
    /// The value has no bytes.
    Empty,
    /// The value is not UTF-8.
    NotUtf8,
    /// The value is not JSON, or is cut off.
    NotJson,
    /// The value is JSON, but not an object.
    NotAnObject,
    /// One of the six fields stands there twice.
    DuplicateField,
    /// A required field is absent.
    MissingField,
    /// A field has a value of the wrong JSON type.
    WrongType,
    /// `campaign_id` or `workspace_id` is not a UUID.
    BadUuid,
    /// `event_type` is none of the five.
    UnknownEventType,
    /// `event_time` cannot be read as a time.
    BadTime,
    /// `event_time` is outside 1970-01-01 to 2106-02-07, which is what ClickHouse's `DateTime` can hold.
    TimeOutOfRange,
    /// `event_time` is further from the Kafka record's timestamp than `decode.past_days_max` or
    /// `decode.future_days_max` allow.
    TimeImplausible,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 13] = [
        Reason::Tombstone,
        Reason::Empty,
        Reason::NotUtf8,
        Reason::NotJson,
        Reason::NotAnObject,
        Reason::DuplicateField,
        Reason::MissingField,
        Reason::WrongType,
        Reason::BadUuid,
        Reason::UnknownEventType,
        Reason::BadTime,
        Reason::TimeOutOfRange,
        Reason::TimeImplausible,
    ];

    /// The stable word.
    pub fn code(self) -> &'static str {
        match self {
            Reason::Tombstone => "tombstone",
            Reason::Empty => "empty",
            Reason::NotUtf8 => "not_utf8",
            Reason::NotJson => "not_json",
            Reason::NotAnObject => "not_an_object",
            Reason::DuplicateField => "duplicate_field",
            Reason::MissingField => "missing_field",
            Reason::WrongType => "wrong_type",
            Reason::BadUuid => "bad_uuid",
            Reason::UnknownEventType => "unknown_event_type",
            Reason::BadTime => "bad_time",
            Reason::TimeOutOfRange => "time_out_of_range",
            Reason::TimeImplausible => "time_implausible",
        }
    }
}

/// A record that is not an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The stable reason.
    pub reason: Reason,
    /// What is wrong, for people: at most [`Rejection::ERROR_BYTES_MAX`] bytes, with no more of the payload than a
    /// short excerpt.
    pub error: String,
}

impl Rejection {
    /// Greatest length of the error text, in bytes.
    pub const ERROR_BYTES_MAX: usize = 256;

    /// A rejection with its error text cut to its greatest length.
    pub fn new(reason: Reason, error: impl Into<String>) -> Rejection {
        let mut error = error.into();
        if error.len() > Self::ERROR_BYTES_MAX {
            let cut = (0..=Self::ERROR_BYTES_MAX).rev().find(|&i| error.is_char_boundary(i)).unwrap_or(0);
            error.truncate(cut);
        }
        Rejection { reason, error }
    }
}
