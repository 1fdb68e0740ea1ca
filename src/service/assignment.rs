//! The partitions that are assigned to this member. Each has one task, which starts at the assignment and ends before the
//! partition is given up.
//!
//! Must never let a revocation return while a task of the revoked partitions, or a commit of theirs, still runs.

use super::commits::CommitGate;
use super::partition::Partition;
use super::{Drain, Shared, gauges};
use crate::kafka::consumer::Rebalances;
use crate::platform::lock::locked;
use crate::platform::metrics::{ASSIGNED, REBALANCES};
use metrics::{counter, gauge};
use rdkafka::statistics::Statistics;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

struct Running {
    drain: watch::Sender<Drain>,
    task: JoinHandle<()>,
    gate: CommitGate,
}

/// The partitions that this member has after a rebalance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Number of the rebalance, counted from 1.
    pub rebalance: u64,
    /// Numbers of the partitions, in ascending order.
    pub partitions: Vec<i32>,
}

/// The number of times that partitions were assigned. Settled: nothing was revoked since.
#[derive(Default)]
struct Rebalanced {
    assigned: u64,
    settled: bool,
}

/// The tasks of the partitions that are assigned to this member.
pub struct Assignment {
    runtime: Handle,
    grace: Duration,
    shared: OnceLock<Arc<Shared>>,
    running: Mutex<HashMap<i32, Running>>,
    rebalanced: Mutex<Rebalanced>,
}

impl Assignment {
    /// Creates an empty assignment. `grace` bounds the time for which a revocation waits for the batches in flight. Tasks run on
    /// the current runtime.
    pub fn new(grace: Duration) -> Assignment {
        Assignment {
            runtime: Handle::current(),
            grace,
            shared: OnceLock::new(),
            running: Mutex::default(),
            rebalanced: Mutex::default(),
        }
    }

    /// Gives the tasks the objects that they share. It must be called before the consumer subscribes.
    pub fn start_with(&self, shared: Arc<Shared>) {
        let _ = self.shared.set(shared);
    }

    fn running_locked(&self) -> MutexGuard<'_, HashMap<i32, Running>> {
        locked(&self.running)
    }

    fn remove(&self, partitions: &[i32]) -> Vec<Running> {
        let mut running = self.running_locked();
        let removed = partitions.iter().filter_map(|partition| running.remove(partition)).collect();
        self.report(running.len());
        removed
    }

    fn report(&self, assigned: usize) {
        if let Some(shared) = self.shared.get() {
            gauge!(ASSIGNED, "topic" => shared.topic.clone()).set(assigned as f64);
        }
    }

    /// Counts a rebalance of this kind.
    fn count(&self, kind: &'static str) {
        if let Some(shared) = self.shared.get() {
            counter!(REBALANCES, "kind" => kind, "topic" => shared.topic.clone()).increment(1);
        }
    }

    fn rebalanced_locked(&self) -> MutexGuard<'_, Rebalanced> {
        locked(&self.rebalanced)
    }

    /// Returns the result of the last rebalance; `None` while one is under way, as far as librdkafka has reported.
    pub fn standing(&self) -> Option<Standing> {
        let rebalance = {
            let rebalanced = self.rebalanced_locked();
            rebalanced.settled.then_some(rebalanced.assigned)?
        };
        let mut partitions: Vec<i32> = self.running_locked().keys().copied().collect();
        partitions.sort_unstable();
        Some(Standing { rebalance, partitions })
    }

    /// Flushes every partition. Returns `true` if all ended within the grace.
    pub async fn flush_all(&self, grace: Duration) -> bool {
        self.end_all(Drain::Flush, grace).await
    }

    /// Gives every partition up as a revocation does. Returns `true` if all ended within its grace.
    pub async fn abandon_all(&self) -> bool {
        self.end_all(Drain::Abandon, self.grace).await
    }

    async fn end_all(&self, how: Drain, grace: Duration) -> bool {
        let all: Vec<i32> = self.running_locked().keys().copied().collect();
        let Some(shared) = self.shared.get() else { return true };
        drain(self.remove(&all), how, grace, shared).await
    }
}

/// Asks tasks to end and waits. A task that has not ended in time is cut off, and the next owner completes its batch. This also
/// waits for a commit under way: librdkafka could send it when the partition is somebody else's. If the commit gets no answer
/// within a session, only the end of this process ends it.
async fn drain(running: Vec<Running>, how: Drain, grace: Duration, shared: &Shared) -> bool {
    let deadline = tokio::time::Instant::now() + grace;
    for one in &running {
        let _ = one.drain.send(how);
        // All are cut off at once: a task that continues while another is waited for would commit to a partition that it no
        // longer owns.
        if grace.is_zero() {
            one.task.abort();
        }
    }
    let mut all_ended = true;
    for Running { mut task, gate, .. } in running {
        if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
            all_ended = false;
            task.abort();
            let _ = task.await;
        }
        let closed = tokio::task::spawn_blocking(move || gate.close());
        if tokio::time::timeout_at(deadline + shared.session_timeout, closed).await.is_err() {
            shared.give_up("the group's coordinator does not answer a commit".to_owned());
            std::future::pending::<()>().await;
        }
    }
    all_ended
}

impl Rebalances for Assignment {
    fn assigned(&self, partitions: &[i32]) {
        self.count("assigned");
        tracing::info!(?partitions, "assigned");
        let Some(shared) = self.shared.get() else { return };
        let mut running = self.running_locked();
        for &partition in partitions {
            let (drain, drained) = watch::channel(Drain::No);
            let gate = CommitGate::default();
            let task = Partition::new(Arc::clone(shared), partition, drained, gate.clone());
            let task = self.runtime.spawn(task.run().instrument(shared.span.clone()));
            running.insert(partition, Running { drain, task, gate });
        }
        self.report(running.len());
        shared.health.clear("assignment");
        drop(running);
        let mut rebalanced = self.rebalanced_locked();
        *rebalanced = Rebalanced { assigned: rebalanced.assigned + 1, settled: true };
    }

    fn revoked(&self, partitions: &[i32], lost: bool) {
        self.count(if lost { "lost" } else { "revoked" });
        tracing::info!(?partitions, lost, "revoked");
        self.rebalanced_locked().settled = false;
        if let Some(shared) = self.shared.get() {
            shared.groups.doubt(partitions);
        }
        let removed = self.remove(partitions);
        let Some(shared) = self.shared.get() else { return };
        for &partition in partitions {
            shared.forget(partition);
        }
        if !removed.is_empty() {
            let grace = if lost { Duration::ZERO } else { self.grace };
            self.runtime.block_on(drain(removed, Drain::Abandon, grace, shared));
        }
        for &partition in partitions {
            gauges::forget(shared, partition);
        }
    }

    fn statistics(&self, statistics: &Statistics) {
        if let Some(shared) = self.shared.get() {
            gauges::take(shared, statistics);
        }
    }
}
