//! Commits of this member's partitions, all that come at the same time by one request. Each has its own comparison and answer.
//!
//! Must never send a commit that was not compared with the committed offset a moment before, nor one of a partition that is given
//! up.

use super::joint::Joint;
use crate::kafka::consumer::Consumer;
use crate::kafka::{self, offsets};
use crate::platform::clock::boot_time;
use crate::platform::lock::locked;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::time::Duration;
use tallyhouse_core::protocol::{Committed, may_commit};

/// Time for which a commit waits for others to go with it. The sources of a group commit within a moment of each other.
const LINGER: Duration = Duration::from_millis(2);

/// Decides if a partition's task may commit. A commit holds the lock from the comparison to its answer.
#[derive(Clone, Debug, Default)]
pub struct CommitGate(Arc<Mutex<bool>>);

impl CommitGate {
    /// Waits for the commit under way, which may outlive its task, and lets no further one pass. Once the partition is somebody
    /// else's, a commit that was compared before could overwrite theirs.
    pub fn close(&self) {
        *locked(&self.0) = true;
    }

    /// Lets a commit pass until the guard is dropped, unless the gate is closed or the commit before still has no answer.
    fn pass(&self) -> KafkaResult<MutexGuard<'_, bool>> {
        let closed = match self.0.try_lock() {
            Ok(closed) => closed,
            Err(TryLockError::Poisoned(closed)) => closed.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::PreviousInProgress));
            }
        };
        if *closed { Err(KafkaError::Canceled) } else { Ok(closed) }
    }
}

/// A commit of one partition.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Number of the partition, from 0.
    pub partition: i32,
    /// Commit that Kafka must still hold.
    pub expected: Option<Committed>,
    /// Commit that Kafka is to hold.
    pub wanted: Committed,
    /// Gate of the partition's task.
    pub gate: CommitGate,
}

/// The time on the boot clock at which an acknowledged commit was sent. `None` if Kafka holds neither the expected commit nor the
/// wanted one.
pub type Sent = Option<Duration>;

/// Starts the task that sends the commits. Each request to Kafka may take `within`.
pub fn start(consumer: &Arc<Consumer>, topic: &str, within: Duration) -> Joint<Commit, KafkaResult<Sent>> {
    let (consumer, topic) = (Arc::downgrade(consumer), topic.to_owned());
    Joint::start(LINGER, move |commits: Vec<Commit>| {
        let (consumer, topic) = (Weak::clone(&consumer), topic.clone());
        async move {
            let count = commits.len();
            let done = kafka::blocking(move || {
                let consumer = consumer.upgrade().ok_or(KafkaError::Canceled)?;
                commit_all(&consumer, &topic, &commits, within)
            });
            done.await.unwrap_or_else(|error| vec![Err(error); count])
        }
    })
}

/// Compares and commits. An error is that of all commits.
fn commit_all(
    consumer: &Consumer,
    topic: &str,
    commits: &[Commit],
    within: Duration,
) -> KafkaResult<Vec<KafkaResult<Sent>>> {
    // The guards stay until the answer.
    let passes: Vec<KafkaResult<MutexGuard<'_, bool>>> = commits.iter().map(|commit| commit.gate.pass()).collect();
    let mut answers: Vec<Option<KafkaResult<Sent>>> =
        passes.iter().map(|pass| pass.as_ref().err().cloned().map(Err)).collect();
    let begun = boot_time();
    let found = compared(consumer, topic, commits, within)?;
    let mut wanted = Vec::new();
    for ((commit, found), answer) in commits.iter().zip(found).zip(&mut answers) {
        match found {
            _ if answer.is_some() => {}
            Ok(found) if may_commit(found.as_ref(), commit.expected.as_ref(), &commit.wanted) => {
                wanted.push((commit.partition, &commit.wanted));
            }
            Ok(_) => *answer = Some(Ok(None)),
            Err(error) => *answer = Some(Err(error)),
        }
    }
    let sent = boot_time();
    let outcome = match () {
        () if wanted.is_empty() => Ok(()),
        // A process that was stopped after its request may have been overtaken since.
        () if sent.saturating_sub(begun) > within => {
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::OperationTimedOut))
        }
        // Once its session has ended, librdkafka commits without a member id and generation. A group without members accepts
        // that, and it ends a static member permanently.
        () if consumer.assignment_lost() => Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::AssignmentLost)),
        () => offsets::commit(consumer, topic, &wanted),
    };
    let held = match &outcome {
        // Kafka judges each partition alone, and librdkafka hides which of them it refused.
        Err(_) if wanted.len() > 1 => compared(consumer, topic, commits, within).ok(),
        _ => None,
    };
    for (at, answer) in answers.iter_mut().enumerate().filter(|(_, answer)| answer.is_none()) {
        let holds = |held: &Vec<KafkaResult<Option<Committed>>>| {
            held[at].as_ref().is_ok_and(|found| found.as_ref() == Some(&commits[at].wanted))
        };
        *answer = Some(match &outcome {
            Ok(()) => Ok(Some(sent)),
            Err(_) if held.as_ref().is_some_and(holds) => Ok(Some(sent)),
            Err(error) => Err(error.clone()),
        });
    }
    Ok(answers.into_iter().flatten().collect())
}

/// Returns the committed offset of each commit's partition.
fn compared(
    consumer: &Consumer,
    topic: &str,
    commits: &[Commit],
    within: Duration,
) -> KafkaResult<Vec<KafkaResult<Option<Committed>>>> {
    let partitions: Vec<i32> = commits.iter().map(|commit| commit.partition).collect();
    let mut found = offsets::committed_of(consumer, topic, &partitions, within)?;
    let of_each = |partition| found.remove(partition).unwrap_or(Err(KafkaError::Canceled));
    Ok(partitions.iter().map(of_each).collect())
}
