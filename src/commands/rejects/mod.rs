//! `tallyhouse rejects`: shows rejected records, exports them, and replays them.
//!
//! Must never put a value into SQL but by binding it. Must never let bytes from outside move a terminal's cursor. Must
//! never make an event of a row twice ([`replay`]).

mod candidates;
mod export;
mod ledger;
mod plan;
mod print;
mod read;
pub mod replay;
mod transactions;

pub use export::line;
pub use ledger::{Ledger, Replayed};
pub use print::{Count, Counts, Listing, Shown};
pub use read::{Pages, counts, newest, one};

use crate::clickhouse::error::ClickHouseError;
use bytes::Bytes;
use rdkafka::error::KafkaError;
use std::fmt;
use std::str::FromStr;
use tallyhouse_core::decode::reject::Reason;
use tallyhouse_core::decode::time;

/// The origin of a rejected record, which identifies a row of `rejected_events`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The row's `source`: `topic/partition@topic_id`.
    pub source: String,
    /// The `source_offset` of the row.
    pub offset: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.offset)
    }
}

impl FromStr for Origin {
    type Err = ();

    fn from_str(text: &str) -> Result<Origin, ()> {
        let (source, offset) = text.rsplit_once(':').ok_or(())?;
        let offset = offset.parse().map_err(|_| ())?;
        if source.is_empty() { Err(()) } else { Ok(Origin { source: source.to_owned(), offset }) }
    }
}

impl Origin {
    /// Returns topic and partition; `None` where the source is not in the form that this program writes.
    pub fn topic_and_partition(&self) -> Option<(&str, i32)> {
        let (topic, rest) = self.source.rsplit_once('/')?;
        // A topic id has no slash, and neither has a topic's name.
        Some((topic, rest.split('@').next()?.parse().ok()?))
    }
}

/// A row of `rejected_events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Source and offset of the rejected record.
    pub origin: Origin,
    /// The record's timestamp in milliseconds since 1970, if it had one.
    pub timestamp_ms: Option<i64>,
    /// The reason why it was rejected. It is a word of [`Reason::code`], of the version that wrote the row.
    pub reason: String,
    /// Message of the decoder about the fault.
    pub error: String,
    /// The record's key; empty where it had none.
    pub key: Bytes,
    /// The record's value; `None` for a tombstone.
    pub payload: Option<Bytes>,
}

/// A moment, in milliseconds since 1970-01-01 UTC. It is written `2026-11-24` or `2026-11-24T06:30:00`, with an
/// offset if it is not UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Moment, String> {
        let midnight = format!("{text}T00:00:00");
        let seconds = time::parse(if text.len() == 10 { &midnight } else { text });
        let seconds =
            seconds.map_err(|_| format!("{text:?} is not a time; write 2026-11-24 or 2026-11-24T06:30:00Z"))?;
        Ok(Moment(i64::from(seconds) * 1_000))
    }
}

/// A source or, without a topic id, all sources of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceName(pub String);

impl FromStr for SourceName {
    type Err = String;

    fn from_str(text: &str) -> Result<SourceName, String> {
        let origin = Origin { source: text.to_owned(), offset: 0 };
        let written = origin.topic_and_partition().filter(|(topic, partition)| !topic.is_empty() && *partition >= 0);
        let wrong = || format!("{text:?} is not a source; write topic/partition or topic/partition@topic-id");
        written.map(|_| SourceName(text.to_owned())).ok_or_else(wrong)
    }
}

/// The condition on the rows; all rows match where nothing is given.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only rows that were rejected for one of these reasons.
    pub reasons: Vec<Reason>,
    /// Only rows of this source.
    pub source: Option<SourceName>,
    /// Only rows with a Kafka timestamp from this moment on.
    pub since: Option<Moment>,
    /// Only rows with a Kafka timestamp before this moment.
    pub until: Option<Moment>,
    /// Maximum number of rows.
    pub limit: Option<u64>,
}

/// Returns the reason of a code.
///
/// # Errors
/// There is none of that name; the text lists them.
pub fn reason(code: &str) -> Result<Reason, String> {
    let all = || Reason::ALL.map(Reason::code).join(", ");
    Reason::ALL.into_iter().find(|reason| reason.code() == code).ok_or_else(|| format!("{code:?} is none of {}", all()))
}

/// The reason why rejected records could not be looked at or replayed.
#[derive(Debug, thiserror::Error)]
pub enum RejectsError {
    /// ClickHouse cannot be asked.
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    /// There is no such row.
    #[error(
        "rejected_events has no row of {0}. The table keeps rows for 30 days, or as long as `migrate --rejected-ttl-days` says. `tallyhouse rejects list` \
         shows its rows"
    )]
    NoRow(Origin),
    /// The name matches more than one topic id.
    #[error("there are several of that name, of topics that were deleted and made again. Name one: {}", .0.join(", "))]
    Several(Vec<String>),
    /// Kafka refuses or is away.
    #[error("kafka: {doing}: {error}. {remedy}")]
    #[expect(missing_docs, reason = "its text says it")]
    Kafka { doing: &'static str, error: KafkaError, remedy: &'static str },
    /// The ledger cannot be relied on.
    #[error("the topic {topic}, in which replays are noted, {what}. {remedy}")]
    #[expect(missing_docs, reason = "its text says it")]
    Ledger { topic: String, what: String, remedy: &'static str },
    /// The event topic does not exist.
    #[error("the topic {0} does not exist. Create it, or set kafka.topics.events")]
    NoTopic(String),
    /// Kafka has fenced this replay, because another one runs or this one stood still.
    #[error(
        "another replay has taken over, or this one stood still for so long that Kafka gave it up. Records that it had committed count. \
         Those under way count once or not at all. Run it again when no other one runs: it replays no record twice"
    )]
    Fenced,
    /// It is not known if the last transaction was committed.
    #[error(
        "Kafka did not report whether the last transaction was committed: {0}. Run it again: the ledger names the committed records, and \
         it replays none of them again"
    )]
    Unknown(KafkaError),
    /// A transaction failed and counts nothing.
    #[error(
        "kafka refused the records or did not answer: {0}. The replay gave the transaction up, and it counts nothing. Records that were \
         committed before it count. Remove the cause and run it again"
    )]
    Aborted(KafkaError),
    /// The given lines cannot be read.
    #[error("{path}: {error}")]
    #[expect(missing_docs, reason = "its text says it")]
    File { path: String, error: std::io::Error },
    /// A line is no line of an export.
    #[error("line {line}: {what}. This line and all after it were not replayed. Correct it and run it again")]
    #[expect(missing_docs, reason = "its text says it")]
    Line { line: u64, what: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_as_it_is_written() {
        for source in ["campaign.event_tracking/3@kq3vX0-_aaaaaaaaaaaaaa", "t/0"] {
            let origin = Origin { source: source.to_owned(), offset: u64::MAX };
            assert_eq!(origin.to_string().parse(), Ok(origin.clone()));
            assert_eq!(origin.topic_and_partition().unwrap().1, if source == "t/0" { 0 } else { 3 });
        }
        for text in ["", "t/0", ":1", "t/0:", "t/0:x", "t/0:-1"] {
            assert_eq!(text.parse::<Origin>(), Err(()), "{text}");
        }
    }

    #[test]
    fn times_and_sources_are_checked() {
        assert_eq!("1970-01-02".parse(), Ok(Moment(86_400_000)));
        assert_eq!("1970-01-01T01:00:00+01:00".parse(), Ok(Moment(0)));
        for text in ["yesterday", "2026-13-01", "2026-11-24T"] {
            assert!(text.parse::<Moment>().is_err(), "{text}");
        }
        for text in ["", "t", "t/", "/0", "t/x", "t/-1", "t/0' OR 1"] {
            assert!(text.parse::<SourceName>().is_err(), "{text}");
        }
        assert_eq!(reason("bad_uuid"), Ok(Reason::BadUuid));
        assert!(reason("bad").unwrap_err().contains("time_implausible"));
    }
}
