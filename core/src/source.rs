//! The identity of one Kafka partition: the name that its rows carry in ClickHouse, and the token of its inserts.
//!
//! Must never map two different logs to one name. The topic id distinguishes a re-created topic from the deleted topic of the
//! same name. So the marks of the old one are never taken for those of the new one.

use crate::guard::{self, Guard};
use crate::protocol::group::GroupId;
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

/// The tables of batches, in the order in which the member writes to them. The rows with a mark (`end_offset`) come last: the
/// counters of events, and the rows of a lifecycle topic. So the mark shows that the rest of the batch is there as well. A batch
/// writes to the tables of its stream ([`Stream::tables`](crate::stream::Stream::tables)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `email_events`: one row per event.
    Raw,
    /// `rejected_events`: one row per record that is not an event.
    Rejected,
    /// `campaign_lifecycle`: one row per record of a lifecycle topic.
    Lifecycle,
    /// `daily`: one row per counter.
    Daily,
}

impl Table {
    /// All tables, in the order of writing.
    pub const ALL: [Table; 4] = [Table::Raw, Table::Rejected, Table::Lifecycle, Table::Daily];

    /// Returns the table with this name in ClickHouse.
    pub fn of_name(name: &str) -> Option<Table> {
        Table::ALL.into_iter().find(|table| table.name() == name)
    }

    /// Returns the table's name in ClickHouse.
    pub const fn name(self) -> &'static str {
        match self {
            Table::Raw => "email_events",
            Table::Lifecycle => "campaign_lifecycle",
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
    /// Name of the topic in Kafka.
    pub topic: String,
    /// Kafka's topic id (KIP-516) in its 22-character text form; empty if the broker reports none.
    pub topic_id: String,
    /// Number of the partition, from 0.
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

    /// Returns the `insert_deduplication_token` of one batch's insert into one table. It is the same for every attempt at the same
    /// batch, by any member. All batches of a group have one token. `attempt` is the number of tokens of the insert
    /// that are used up or not to be used. From 1 on the batch has tokens of its own.
    pub fn token(&self, range: OffsetRange, group: Option<GroupId>, table: Table, attempt: u32) -> String {
        match group {
            _ if !guard::is_on(Guard::Token) => String::new(),
            Some(group) if attempt == 0 && guard::is_on(Guard::GroupToken) => self.token_of(group, table),
            _ => self.own_id(range, group, table, attempt),
        }
    }

    /// Returns the token of all sources of a group.
    fn token_of(&self, group: GroupId, table: Table) -> String {
        format!("tallyhouse:{}:group-{}:{}", self.cluster, group.simple(), table.name())
    }

    /// Returns the id of an insert of this source alone. Two inserts of one id never run at the same time.
    pub fn own_id(&self, range: OffsetRange, group: Option<GroupId>, table: Table, attempt: u32) -> String {
        let OffsetRange { start, end } = range;
        let id = match group {
            Some(group) => format!("{}:{}", self.token_of(group, table), self.name()),
            None => format!("tallyhouse:{}:{}:{start}-{end}:{}", self.cluster, self.name(), table.name()),
        };
        if attempt == 0 { id } else { format!("{id}:again-{attempt}") }
    }

    /// Returns the id of an insert of several sources of a group.
    pub fn joint_id(&self, group: GroupId, table: Table) -> String {
        format!("{}:joint", self.token_of(group, table))
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
        let token = |id, table, attempt| source(id).token(range, None, table, attempt);
        assert_eq!(token("AAA", Table::Daily, 0), "tallyhouse:c1:events/3@AAA:10-20:daily");
        assert_eq!(token("", Table::Raw, 2), "tallyhouse:c1:events/3:10-20:email_events:again-2");
        assert_ne!(token("AAA", Table::Raw, 0), token("BBB", Table::Raw, 0));
    }

    #[test]
    fn the_sources_of_a_group_share_its_first_token_only() {
        let (range, group) = (OffsetRange { start: 10, end: 20 }, Some(GroupId::from_u128(7)));
        let token = |id, attempt| source(id).token(range, group, Table::Raw, attempt);
        assert_eq!(token("AAA", 0), format!("tallyhouse:c1:group-{:032x}:email_events", 7));
        assert_eq!(token("AAA", 0), token("BBB", 0));
        assert_eq!(token("AAA", 1), format!("tallyhouse:c1:group-{:032x}:email_events:events/3@AAA:again-1", 7));
        assert_ne!(token("AAA", 1), token("BBB", 1));
    }
}
