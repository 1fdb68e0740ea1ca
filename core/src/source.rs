//! The identity of one Kafka partition: the name that its rows carry in ClickHouse, and the token of its inserts.
//!
//! Must never map two different logs to one name. The topic id distinguishes a re-created topic from the deleted topic of the
//! same name. So the marks of the old one are never taken for those of the new one.

use crate::guard::{self, Guard};
use std::fmt;

/// A half-open range of Kafka offsets, `start..end`: the offsets that one batch covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OffsetRange {
    /// First offset of the range.
    pub start: u64,
    /// One past the last offset of the range.
    pub end: u64,
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

/// The three tables of a batch, in the order in which the member writes to them. The counters come last. So their mark
/// (`end_offset`) shows that the batch's rows and rejects are there as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `email_events`: one row per event.
    Raw,
    /// `rejected_events`: one row per record that is not an event.
    Rejected,
    /// `daily`: one row per counter.
    Daily,
}

impl Table {
    /// All tables, in the order of writing.
    pub const ALL: [Table; 3] = [Table::Raw, Table::Rejected, Table::Daily];

    /// Returns the table's name in ClickHouse.
    pub fn name(self) -> &'static str {
        match self {
            Table::Raw => "email_events",
            Table::Daily => "daily",
            Table::Rejected => "rejected_events",
        }
    }
}

/// One partition of one topic of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Kafka's cluster id; empty if the broker reports none.
    pub cluster: String,
    /// The topic's name.
    pub topic: String,
    /// Kafka's topic id (KIP-516) in its 22-character text form; empty if the broker reports none.
    pub topic_id: String,
    /// The partition's number.
    pub partition: i32,
}

impl Source {
    /// Returns the text of the `source` column: `topic/partition@topic_id`, or `topic/partition` without a topic id.
    pub fn name(&self) -> String {
        if self.topic_id.is_empty() {
            format!("{}/{}", self.topic, self.partition)
        } else {
            format!("{}/{}@{}", self.topic, self.partition, self.topic_id)
        }
    }

    /// Returns the `insert_deduplication_token` (and the query id) of one batch's insert into one table. It is the same for every
    /// attempt at the same batch, by any member. `attempt` is 0 until the server has acknowledged the insert and left no rows of
    /// it.
    pub fn token(&self, range: OffsetRange, table: Table, attempt: u32) -> String {
        if !guard::is_on(Guard::Token) {
            return String::new();
        }
        let OffsetRange { start, end } = range;
        let token = format!("tallyhouse:{}:{}:{start}-{end}:{}", self.cluster, self.name(), table.name());
        if attempt == 0 { token } else { format!("{token}:again-{attempt}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(topic_id: &str) -> Source {
        Source { cluster: "c1".into(), topic: "events".into(), topic_id: topic_id.into(), partition: 3 }
    }

    #[test]
    fn a_recreated_topic_has_another_name_and_other_tokens() {
        let range = OffsetRange { start: 10, end: 20 };
        assert_eq!(source("AAA").name(), "events/3@AAA");
        assert_eq!(source("").name(), "events/3");
        assert_eq!(source("AAA").token(range, Table::Daily, 0), "tallyhouse:c1:events/3@AAA:10-20:daily");
        assert_eq!(source("").token(range, Table::Raw, 2), "tallyhouse:c1:events/3:10-20:email_events:again-2");
        assert_ne!(source("AAA").token(range, Table::Raw, 0), source("BBB").token(range, Table::Raw, 0));
    }
}
