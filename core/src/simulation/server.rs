//! A fake of ClickHouse's inserts and tokens, with the habits of the real server. An insert applies one ClickHouse partition after
//! the other, continues after its sender is gone, and may begin long after it was sent. It is dropped per partition while its token
//! is remembered. Two queries of one id do not run at once.
//!
//! Must never be kinder than the server that `tests/it/protocol.rs` talks to.

use super::sink::Content;
use crate::protocol::group::GroupId;
use crate::protocol::marks::{Insert, PartitionId};
use crate::source::{OffsetRange, Table};
use std::collections::{BTreeMap, BTreeSet};

/// An insert that was sent and is not over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sent {
    pub member: usize,
    /// The replica to which it was sent.
    pub replica: usize,
    pub table: Table,
    /// The group of its batches.
    pub group: Option<GroupId>,
    /// True if it was sent for the group, not for one source alone.
    pub joint: bool,
    pub token: String,
    /// True if the token is that of the group.
    pub shares_token: bool,
    /// True if it has reached the server, and shows in `system.processes`.
    pub begun: bool,
    /// ClickHouse partitions that are not applied yet.
    pub left: Vec<PartitionId>,
    pub parts: Vec<Part>,
}

/// The part of an insert that has the rows of one source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Number of the Kafka partition.
    pub partition: usize,
    pub range: OffsetRange,
    pub insert: Insert,
    /// Content of the batch of which the insert is a part.
    pub content: Content,
    /// The topic id in the `source` of its rows.
    pub id: String,
    /// True if a task waits for the answer.
    pub waiting: bool,
}

impl Sent {
    pub fn has(&self, partition: usize) -> bool {
        self.parts.iter().any(|part| part.partition == partition)
    }

    /// True if no task waits for its answer.
    pub fn is_late(&self) -> bool {
        !self.parts.iter().any(|part| part.waiting)
    }

    fn records(&self) -> u64 {
        self.parts.iter().map(|part| (part.content.rows.len() + part.content.rejects.len()) as u64).sum()
    }

    /// True if it is refused by a server that takes this number of records.
    pub fn is_larger_than(&self, records_max: Option<u64>) -> bool {
        records_max.is_some_and(|most| self.records() > most)
    }

    /// True if the insert writes this batch, as far as its query id shows.
    pub fn is_of(&self, partition: usize, range: OffsetRange, group: Option<GroupId>) -> bool {
        let own = self.parts.iter().any(|part| part.partition == partition && part.range == range);
        own || self.joint && self.group == group
    }

    fn query_id(&self) -> (Table, Option<GroupId>, Option<(usize, OffsetRange)>) {
        let own = self.parts.first().filter(|_| !self.joint).map(|part| (part.partition, part.range));
        (self.table, self.group.filter(|_| self.joint), own)
    }
}

/// A token that is remembered, with the Kafka partitions that use it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Token {
    text: String,
    clickhouse_partition: PartitionId,
    group: Option<GroupId>,
    partition: usize,
}

/// The inserts under way, and the tokens of the earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Server {
    pub sent: Vec<Sent>,
    tokens: BTreeSet<Token>,
    /// The Kafka partitions of each group.
    pub groups: BTreeMap<GroupId, Vec<usize>>,
}

impl Server {
    /// Lets a sent insert reach the server. Returns `false` if the server refuses it because its query id is running.
    pub fn begin(&mut self, index: usize) -> bool {
        let wanted = self.sent[index].query_id();
        let replica = self.sent[index].replica;
        let is_there = |sent: &&Sent| sent.begun && sent.replica == replica;
        let free = !self.sent.iter().filter(is_there).any(|sent| sent.query_id() == wanted);
        self.sent[index].begun = free;
        free
    }

    /// Takes the next ClickHouse partition of a begun insert. Returns `None` if its token is remembered.
    pub fn take(&mut self, index: usize, place: usize) -> Option<PartitionId> {
        let clickhouse_partition = self.sent[index].left.remove(place);
        self.remember(index, clickhouse_partition).then_some(clickhouse_partition)
    }

    /// Stores the token of an insert for a ClickHouse partition. Returns `false` if it is remembered already.
    pub fn remember(&mut self, index: usize, clickhouse_partition: PartitionId) -> bool {
        let Sent { token, group, shares_token, parts, .. } = &self.sent[index];
        let group = group.filter(|_| *shares_token);
        let partition = parts.first().filter(|_| group.is_none()).map_or(usize::MAX, |part| part.partition);
        let token = Token { text: token.clone(), clickhouse_partition, group, partition };
        token.text.is_empty() || self.tokens.insert(token)
    }

    /// True if an insert of this batch runs on this replica, as far as the query ids show.
    pub fn is_running(&self, replica: usize, partition: usize, range: OffsetRange, group: Option<GroupId>) -> bool {
        let is_there = |sent: &&Sent| sent.begun && sent.replica == replica;
        self.sent.iter().filter(is_there).any(|sent| sent.is_of(partition, range, group))
    }

    /// True if an insert with rows of this Kafka partition is on its way or under way.
    pub fn has_sent(&self, partition: usize) -> bool {
        self.sent.iter().any(|sent| sent.has(partition))
    }

    /// Returns the groups with this Kafka partition whose tokens are remembered.
    pub fn groups_of(&self, partition: usize) -> BTreeSet<GroupId> {
        let of = |group: &GroupId| self.groups.get(group).is_some_and(|partitions| partitions.contains(&partition));
        self.tokens.iter().filter_map(|token| token.group).filter(of).collect()
    }

    /// Forgets the tokens of this Kafka partition, and those of some groups.
    pub fn forget(&mut self, partition: usize, groups: &BTreeSet<GroupId>) {
        self.tokens.retain(|token| match &token.group {
            Some(group) => !groups.contains(group),
            None => token.partition != partition,
        });
    }

    /// Kills a replica. Inserts that had begun keep the part that was applied. Returns these inserts.
    pub fn kill(&mut self) -> Vec<Sent> {
        let replica = self.sent.iter().find(|sent| sent.begun).map(|sent| sent.replica);
        let is_killed = |sent: &Sent| sent.begun && Some(sent.replica) == replica;
        let (begun, others) = std::mem::take(&mut self.sent).into_iter().partition(is_killed);
        self.sent = others;
        begun
    }
}
