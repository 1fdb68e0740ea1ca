//! Detects that librdkafka has left this member behind: its group continues, and the client no longer takes part.
//!
//! librdkafka 2.12.1 can take a rebalance for unfinished forever, and then ignores every later one
//! (docs/librdkafka-left-behind.md). The coordinator shows it: it waits for this member, or no longer counts it, or counts other
//! partitions as this member's.
//!
//! Must never run on the reader's thread, and never decide by one look: a member that is slow takes part again by itself.

use super::Shared;
use super::assignment::{Assignment, Standing};
use crate::config::{Config, GroupProtocol};
use crate::kafka::members::{self, Group, GroupState, member_id};
use crate::kafka::offsets;
use rdkafka::error::KafkaResult;
use std::fmt;
use std::time::Duration;

/// Number of looks in a row that must find the same member left behind. Together they last longer than a heartbeat takes to be
/// answered.
const LOOKS: u32 = 5;
/// Number of looks in a row from which on `/readyz` shows it.
const LOOKS_TOLD: u32 = 3;
/// Number of looks in a session.
const LOOKS_PER_SESSION: u32 = 6;
/// Least pause between two looks.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Longest wait for one answer. A slower coordinator proves nothing about this member.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Greatest time since the reader's last poll. A reader that has not polled for longer has not received the last rebalance
/// either.
const PULSE_AGE_MAX: Duration = Duration::from_secs(1);
/// Name of the cause at `/readyz`.
const CAUSE: &str = "group";

/// The difference between the coordinator's view of this member and the member's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The group waits for members to join. This member could join and does not.
    Awaited,
    /// The group does not list this member.
    NotListed,
    /// The group counts other partitions as this member's.
    Partitions {
        /// Partitions in the coordinator's view.
        counted: Vec<i32>,
        /// Partitions in the member's own view.
        held: Vec<i32>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Awaited => f.write_str("the group rebalances and waits for this member, which does not join"),
            Difference::NotListed => f.write_str("the group does not list this member any more, and it does not join"),
            Difference::Partitions { counted, held } => {
                write!(f, "the group counts the partitions {counted:?} as this member's, which holds {held:?}")
            }
        }
    }
}

/// Compares the coordinator's view with the member's own. `id` is the member's, empty if it has none.
fn compare(group: &Group, id: &str, held: &[i32]) -> Option<Difference> {
    let listed = group.members.iter().find(|member| !id.is_empty() && member.id == id);
    match (group.state, listed) {
        (GroupState::NotReported, _) => None,
        (GroupState::Rebalancing, _) => Some(Difference::Awaited),
        (_, None) => Some(Difference::NotListed),
        (_, Some(member)) => {
            let counted = member.partitions.clone()?;
            (counted != held).then(|| Difference::Partitions { counted, held: held.to_vec() })
        }
    }
}

/// Differences in a row, with no rebalance in between.
#[derive(Debug, Default)]
struct Row {
    rebalance: u64,
    looks: u32,
}

impl Row {
    /// Takes the result of a look. Returns the number of looks in a row that have found a difference.
    fn note(&mut self, rebalance: u64, differs: bool) -> u32 {
        self.looks = match differs {
            true if rebalance == self.rebalance => self.looks + 1,
            true => 1,
            false => 0,
        };
        self.rebalance = rebalance;
        self.looks
    }
}

/// Returns once this member is left behind, with the difference. It never returns in the consumer protocol, in which the broker
/// drives the members.
pub async fn found(shared: &Shared, assignment: &Assignment, config: &Config) -> Difference {
    if config.kafka.group_protocol == GroupProtocol::Consumer {
        return std::future::pending().await;
    }
    let interval = (shared.session_timeout / LOOKS_PER_SESSION).max(INTERVAL_MIN);
    let mut row = Row::default();
    loop {
        tokio::time::sleep(interval).await;
        let standing = assignment.standing().filter(|_| shared.health.pulse_age() < PULSE_AGE_MAX);
        let (rebalance, difference) = match standing {
            Some(standing) => (standing.rebalance, look(shared, &standing, &config.kafka.group_id).await),
            None => (0, None),
        };
        // A rebalance during the look makes its answers outdated.
        let now = assignment.standing().map(|standing| standing.rebalance);
        let difference = difference.filter(|_| now == Some(rebalance));
        let looks = row.note(rebalance, difference.is_some());
        let Some(difference) = difference.filter(|_| looks >= LOOKS_TOLD) else {
            shared.health.clear(CAUSE);
            continue;
        };
        tracing::warn!(looks, "{difference}");
        shared.health.set(CAUSE, difference.to_string());
        if looks >= LOOKS {
            return difference;
        }
    }
}

/// Looks at the group once. No answer counts as no difference.
async fn look(shared: &Shared, standing: &Standing, group: &str) -> Option<Difference> {
    let (group, topic, held) = (group.to_owned(), shared.topic.clone(), standing.partitions.clone());
    let asked = shared.kafka(move |consumer| -> KafkaResult<Option<Difference>> {
        // This request uses the connection of JoinGroup and SyncGroup, so it gets no answer while this member takes part in a
        // rebalance. It gets none while the coordinator is away either: the next request must not wait for one
        // (docs/librdkafka-coordinator-request.md).
        offsets::committed(consumer, &topic, 0, ANSWER_TIMEOUT)?;
        let described = members::describe(consumer, &group, &topic, ANSWER_TIMEOUT)?;
        Ok(compare(&described, &member_id(consumer), &held))
    });
    tokio::time::timeout(ANSWER_TIMEOUT * 3, asked).await.ok()?.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::members::Member;

    fn group(state: GroupState, members: &[(&str, Option<Vec<i32>>)]) -> Group {
        let member = |(id, partitions): &(&str, Option<Vec<i32>>)| Member {
            id: (*id).to_owned(),
            client_id: String::new(),
            host: String::new(),
            instance_id: None,
            partitions: partitions.clone(),
        };
        Group { state, protocol: None, members: members.iter().map(member).collect(), may_read: None }
    }

    #[test]
    fn a_member_in_step_differs_in_nothing() {
        let stable = group(GroupState::Stable, &[("other", Some(vec![2])), ("me", Some(vec![0, 1]))]);
        assert_eq!(compare(&stable, "me", &[0, 1]), None);
        // If a broker does not report partitions, that is no difference.
        assert_eq!(compare(&group(GroupState::Stable, &[("me", None)]), "me", &[0]), None);
        assert_eq!(compare(&group(GroupState::NotReported, &[]), "me", &[0]), None);
    }

    #[test]
    fn a_member_left_behind_differs() {
        let rebalancing = group(GroupState::Rebalancing, &[("me", Some(vec![0]))]);
        assert_eq!(compare(&rebalancing, "me", &[0]), Some(Difference::Awaited));
        let without = group(GroupState::Stable, &[("other", Some(vec![0]))]);
        assert_eq!(compare(&without, "me", &[0]), Some(Difference::NotListed));
        assert_eq!(compare(&without, "", &[]), Some(Difference::NotListed));
        assert_eq!(compare(&group(GroupState::Empty, &[]), "me", &[0]), Some(Difference::NotListed));
        let more = group(GroupState::Stable, &[("me", Some(vec![0, 3]))]);
        let difference = Difference::Partitions { counted: vec![0, 3], held: vec![0] };
        assert_eq!(compare(&more, "me", &[0]), Some(difference));
    }

    #[test]
    fn only_looks_in_a_row_without_a_rebalance_in_between_count() {
        let mut row = Row::default();
        assert_eq!([1, 1, 1].map(|rebalance| row.note(rebalance, true)), [1, 2, 3]);
        assert_eq!(row.note(2, true), 1);
        assert_eq!(row.note(2, true), 2);
        assert_eq!(row.note(2, false), 0);
        assert_eq!(row.note(2, true), 1);
    }
}
