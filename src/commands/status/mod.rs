//! `tallyhouse status`: shows the members, the position of each partition, and the problems.
//!
//! `progress.rs` compares looks that follow each other; `asked.rs` asks the members that are named for causes.
//!
//! Must never say that nothing is wrong beside a partition that stands still. Must never change anything or join the
//! group. Must never give up as a whole because one of the servers is away: the status shows the other one, and names
//! the cause.

mod asked;
mod print;
mod progress;
mod read;
#[cfg(test)]
mod tests;

pub use asked::{Asked, MemberUrl};
pub use progress::{GRACE, History, Motion, Progress};
pub use read::Watcher;

use crate::kafka::held_back::HeldBack;
use crate::kafka::members::{Group, GroupState, Member};
use crate::kafka::observer::LifecycleTopic;
use asked::Cause;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tallyhouse_core::protocol::outlook::Outlook;
use tallyhouse_core::source::OffsetRange;

/// The result of one look at both servers. An `Err` is in words, for people.
#[derive(Clone, Debug)]
pub struct Status {
    /// Value of the key `kafka.brokers`.
    pub brokers: String,
    /// `clickhouse.url`, which never holds credentials.
    pub url: String,
    /// Name of the ClickHouse database.
    pub database: String,
    /// Name of the event topic.
    pub topic: String,
    /// Consumer group of the members.
    pub group_id: String,
    /// `Ok` if the dead-letter topic exists, or none is configured.
    pub dead_letter: Result<(), String>,
    /// The lifecycle topics that are configured.
    pub lifecycle: Vec<Lifecycle>,
    /// `Ok` if ClickHouse answers and has the tables.
    pub clickhouse: Result<(), String>,
    /// Problem of the replica that answered, if it has one.
    pub replica: Option<String>,
    /// The group and its members.
    pub group: Result<Group, String>,
    /// The partitions of the topic.
    pub partitions: Result<Vec<Partition>, String>,
    /// The pace at which a partition flushes.
    pub pace: crate::config::pace::Pace,
    /// The members that were asked for causes.
    pub asked: Vec<Asked>,
}

/// The state of one lifecycle topic.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    /// Name of the topic.
    pub topic: String,
    /// Its state, which is `None` if it does not exist. An `Err` is in words.
    pub seen: Result<Option<LifecycleTopic>, String>,
}

impl Lifecycle {
    /// Describes the state of the topic.
    pub fn describe(&self) -> String {
        match &self.seen {
            Ok(Some(LifecycleTopic { partitions, lag_records })) => {
                format!("partitions {partitions}, records not committed {lag_records}")
            }
            Ok(None) => "does not exist; members wait for it".to_owned(),
            Err(error) => format!("cannot be asked for: {error}"),
        }
    }
}

/// One partition of the topic.
#[derive(Clone, Debug)]
pub struct Partition {
    /// Number of the partition.
    pub number: i32,
    /// Its position, or the reason why it is not known.
    pub seen: Result<Standing, String>,
}

/// The position of a partition.
#[derive(Clone, Debug)]
pub struct Standing {
    /// First offset in the log.
    pub start: u64,
    /// One past the last offset in the log that can be read. Records of an open transaction lie behind it.
    pub end: u64,
    /// The group's committed offset, if there is one that can be read and is of this topic.
    pub committed: Option<u64>,
    /// The batch that is announced and not yet committed.
    pub intent: Option<OffsetRange>,
    /// The next action of `tallyhouse run`; `None` where that depends on ClickHouse, which was not asked.
    pub outlook: Option<Outlook>,
    /// The records that open transactions hold back behind `end`; `None` where Kafka did not report them.
    pub held_back: Option<HeldBack>,
    /// Its moves between this command's looks.
    pub motion: Motion,
}

/// Kinds of problems. A code never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Kafka could not be asked.
    Kafka,
    /// ClickHouse could not be asked, or lacks tables.
    Clickhouse,
    /// A replica of ClickHouse takes no inserts, lags, or forgets tokens soon.
    Replica,
    /// The group could not be asked for.
    Group,
    /// The dead-letter topic is missing or may not be written to.
    DeadLetter,
    /// Nobody is in the group, and records wait.
    NoMembers,
    /// A partition stops when a member takes it.
    PartitionStops,
    /// A member reports that a partition is stopped.
    PartitionStopped,
    /// Records wait, and neither the committed offset nor the announced batch has changed for too long.
    PartitionStandsStill,
    /// A transaction has been open for long, and the records behind it cannot be read.
    OpenTransaction,
    /// A member reports the cause that keeps it from counting.
    MemberNotReady,
    /// A member could not be asked.
    MemberUnknown,
    /// One partition could not be asked for.
    PartitionUnknown,
    /// The group is stable, records wait, and no member has the partition.
    PartitionWithoutMember,
}

/// A problem that the status shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The kind of the problem.
    pub code: Code,
    /// The partition, if the problem concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<i32>,
    /// The problem, and its remedy.
    pub message: String,
}

/// The speed of the log's growth and of the group, from two looks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Records added to the log, per second.
    pub produced_per_s: f64,
    /// Records committed, per second.
    pub committed_per_s: f64,
    /// Seconds until all is committed at this pace; `None` while the lag does not shrink.
    pub catch_up_s: Option<f64>,
}

impl Standing {
    /// Returns the number of offsets of the log that are not committed. Control records of transactions count as
    /// well.
    pub fn lag(&self) -> u64 {
        self.end.saturating_sub(self.committed.unwrap_or(0).max(self.start))
    }

    /// Returns the records that an open transaction holds back, if one is open.
    fn open_transaction(&self) -> Option<HeldBack> {
        self.held_back.filter(|held_back| held_back.offsets > 0)
    }
}

impl Status {
    /// Returns the partitions that could be asked for.
    pub fn standings(&self) -> impl Iterator<Item = (i32, &Standing)> {
        let partitions = self.partitions.iter().flatten();
        partitions.filter_map(|partition| Some((partition.number, partition.seen.as_ref().ok()?)))
    }

    /// Returns the number of records that are not committed, of all partitions that could be asked for.
    pub fn lag(&self) -> u64 {
        self.standings().map(|(_, standing)| standing.lag()).sum()
    }

    fn members(&self) -> &[Member] {
        self.group.as_ref().map_or(&[], |group| &group.members)
    }

    /// Returns the position in the list of members of the one that has the partition.
    pub fn holder(&self, partition: i32) -> Option<usize> {
        self.members().iter().position(|member| member.partitions.as_ref().is_some_and(|all| all.contains(&partition)))
    }

    /// Returns the problems, the most far-reaching first. Empty when all is well.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add = |code, partition, message| problems.push(Problem { code, partition, message });
        if let Err(message) = &self.partitions {
            add(Code::Kafka, None, message.clone());
        }
        if let Err(message) = &self.clickhouse {
            add(Code::Clickhouse, None, message.clone());
        }
        if let Some(message) = &self.replica {
            add(Code::Replica, None, message.clone());
        }
        if let Err(message) = &self.dead_letter {
            add(Code::DeadLetter, None, message.clone());
        }
        match &self.group {
            Err(message) if self.partitions.is_ok() => add(Code::Group, None, message.clone()),
            Ok(group) if group.members.is_empty() && self.lag() > 0 => {
                let waiting = self.lag();
                let message = format!("no members: nothing is counted, {waiting} records wait. Start `tallyhouse run`");
                add(Code::NoMembers, None, message);
            }
            _ => {}
        }
        for partition in self.partitions.iter().flatten() {
            let number = partition.number;
            match &partition.seen {
                Err(message) => add(Code::PartitionUnknown, Some(number), format!("partition {number}: {message}")),
                Ok(standing) => {
                    if let Some(Outlook::Stops(reason)) = &standing.outlook {
                        add(
                            Code::PartitionStops,
                            Some(number),
                            format!("partition {number} stops: {}", reason.message()),
                        );
                    }
                    if let Some(message) = self.stands_still(number, standing) {
                        add(Code::PartitionStandsStill, Some(number), message);
                    }
                    if let Some(message) = long_transaction(number, standing) {
                        add(Code::OpenTransaction, Some(number), message);
                    }
                    if standing.lag() > 0 && self.is_without_member(number) {
                        let message = format!(
                            "partition {number}: no member has it. If that stays, restart a member: `tallyhouse run`"
                        );
                        add(Code::PartitionWithoutMember, Some(number), message);
                    }
                }
            }
        }
        self.asked.iter().for_each(|member| problems.extend(self.problems_of(member)));
        problems.sort_by_key(|problem| problem.code);
        problems
    }

    /// Returns the problems that a member reports.
    fn problems_of(&self, member: &Asked) -> Vec<Problem> {
        let url = &member.url;
        let answer = match &member.answer {
            Ok(answer) => answer,
            Err(error) => {
                let message = format!(
                    "the member at {url} cannot be asked: {error}. See that it runs and that this is its admin.listen, reachable from here"
                );
                return vec![Problem { code: Code::MemberUnknown, partition: None, message }];
            }
        };
        let problem = |(name, reason): (&String, &String)| {
            let (code, partition, message) = match Cause::of(name) {
                Cause::Stopped(number) if self.stops(number).is_some_and(|known| known == *reason) => return None,
                Cause::Stopped(number) => {
                    (Code::PartitionStopped, Some(number), format!("{name} is stopped: {reason} (reported by {url})"))
                }
                Cause::Step(number) => {
                    (Code::MemberNotReady, Some(number), format!("{name}: {reason} (reported by {url})"))
                }
                Cause::Member => (Code::MemberNotReady, None, format!("{name}: {reason} (reported by {url})")),
            };
            Some(Problem { code, partition, message })
        };
        let mut problems: Vec<Problem> = answer.reasons.iter().filter_map(problem).collect();
        // A member's metrics may be a moment younger than its causes.
        if !answer.reasons.keys().any(|name| matches!(Cause::of(name), Cause::Stopped(_))) {
            problems.extend(answer.stopped.iter().map(|(reason, count)| Problem {
                code: Code::PartitionStopped,
                partition: None,
                message: format!("stopped partitions: {count}, see `tallyhouse explain {reason}` (reported by {url})"),
            }));
        }
        problems
    }

    /// Returns why a partition stops when a member takes it, in the words that members use.
    fn stops(&self, partition: i32) -> Option<String> {
        let standing = self.standings().find(|&(number, _)| number == partition)?.1;
        match &standing.outlook {
            Some(Outlook::Stops(reason)) => Some(reason.message()),
            _ => None,
        }
    }

    /// Returns the time that a partition may take to commit or announce something while records wait.
    pub fn patience(&self) -> Duration {
        let flush_age = self.asked.iter().filter_map(|member| member.answer.as_ref().ok()?.flush_age).max();
        self.pace.flush_age().max(flush_age.unwrap_or_default()) + GRACE
    }

    /// Judges a partition by its looks.
    pub fn progress(&self, standing: &Standing) -> Progress {
        standing.progress(self.patience())
    }

    /// Returns the partitions that only a later look can judge, each with the time until that look. It is empty where
    /// the cause is already known.
    pub fn unjudged(&self) -> Vec<(i32, Duration)> {
        let is_explained = |standing: &Standing| matches!(standing.outlook, Some(Outlook::Stops(_)));
        let open = self
            .standings()
            .filter(|(_, standing)| self.progress(standing) == Progress::NotJudged && !is_explained(standing));
        match self.clickhouse.is_err() || self.has_nobody() {
            true => Vec::new(),
            false => open.map(|(number, _)| (number, self.patience())).collect(),
        }
    }

    fn has_nobody(&self) -> bool {
        self.group.as_ref().is_ok_and(|group| group.members.is_empty())
    }

    /// Returns the problem in words, unless another problem of the partition says why it stands still.
    fn stands_still(&self, number: i32, standing: &Standing) -> Option<String> {
        let is_explained =
            matches!(standing.outlook, Some(Outlook::Stops(_))) || self.is_without_member(number) || self.has_nobody();
        if is_explained || self.progress(standing) != Progress::StandsStill {
            return None;
        }
        let seconds = standing.motion.unmoved.as_secs();
        let what = match standing.intent {
            Some(range) => format!("batch {range} is announced and was not ended in {seconds} s"),
            None => format!("{} records wait, and nothing was committed in {seconds} s", standing.lag()),
        };
        let flush = (self.patience() - GRACE).as_secs_f64().ceil();
        let group = match &self.group {
            Ok(Group { state: GroupState::Rebalancing, .. }) => "Partitions are being shared out; if that stays, ",
            _ => "",
        };
        Some(format!(
            "partition {number} stands still: {what} (a flush is due within {flush} s). {group}/readyz of its member says why"
        ))
    }

    /// True if no member has the partition. That is known only if the group is stable and every member's partitions
    /// are reported.
    fn is_without_member(&self, partition: i32) -> bool {
        let settled = self.group.as_ref().is_ok_and(|group| group.state == GroupState::Stable);
        let all_answer = self.members().iter().all(|member| member.partitions.is_some());
        settled && all_answer && !self.members().is_empty() && self.holder(partition).is_none()
    }
}

/// Returns the problem in words, if a transaction has been open for too long.
fn long_transaction(number: i32, standing: &Standing) -> Option<String> {
    let held_back = standing.open_transaction()?;
    let (offsets, seconds) = (held_back.offsets, held_back.open_too_long()?.as_secs());
    Some(format!(
        "partition {number}: a producer's transaction has been open for {seconds} s, and {offsets} records behind offset {} wait for its \
         end. Do what `tallyhouse explain TallyhouseOpenTransaction` says",
        standing.end
    ))
}

impl Rates {
    /// Compares two looks. Returns `None` where they have no partition in common, or no time lies between them.
    pub fn between(earlier: &Status, later: &Status, elapsed: Duration) -> Option<Rates> {
        let before: BTreeMap<i32, &Standing> = earlier.standings().collect();
        let both: Vec<_> = later.standings().filter_map(|(number, now)| Some((before.get(&number)?, now))).collect();
        if both.is_empty() || elapsed.is_zero() {
            return None;
        }
        let per_s = |records: u64| records as f64 / elapsed.as_secs_f64();
        let produced = both.iter().map(|(before, now)| now.end.saturating_sub(before.end)).sum();
        // Without a committed offset the group stands at the log's start.
        let done = |standing: &Standing| standing.committed.unwrap_or(standing.start);
        let committed = both.iter().map(|(before, now)| done(now).saturating_sub(done(before))).sum();
        let (produced_per_s, committed_per_s) = (per_s(produced), per_s(committed));
        let gained_per_s = committed_per_s - produced_per_s;
        let catch_up_s = (gained_per_s > 0.0).then(|| later.lag() as f64 / gained_per_s);
        Some(Rates { produced_per_s, committed_per_s, catch_up_s })
    }
}
