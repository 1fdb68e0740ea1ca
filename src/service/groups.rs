//! The groups of this member: batches of several partitions that one insert per table writes.
//!
//! The tasks of partitions wait here for the batch of their open window. When one window is due, all of them are taken, and their
//! batches become a group ([`Group`]). A large flush becomes several groups. A window that is full is a batch of its own, and so is
//! one that is read again. Their tasks take them, and insert them alone.
//!
//! Must never let the end of one task cancel an insert that has the rows of others.

use super::Shared;
use super::windows::{Ages, Due, ReservedBatch, Windows};
use crate::clickhouse::error::ClickHouseError;
use crate::platform::clock::boot_time;
use crate::platform::failpoint;
use crate::platform::lock::locked;
use crate::platform::metrics::INSERT_SECONDS;
use metrics::histogram;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};
use tallyhouse_core::batch::Part;
use tallyhouse_core::protocol::group::{Group, GroupId, JointInsert, Size, cut, id_of};
use tallyhouse_core::protocol::lease::Lease;
use tallyhouse_core::protocol::marks::Insert;
use tallyhouse_core::source::Source;
use tallyhouse_core::window::Limits;
use tokio::sync::oneshot;

/// Longest time for which the sources of a group wait for one that neither inserts nor leaves.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest time between two looks at the ages of the windows.
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(200);
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// A batch that was taken for a task, with its place in a group if it is in one.
pub type Taken = (Arc<ReservedBatch>, Option<Seat>);

/// The tasks that wait for the batch of their open window, and the groups under way.
#[derive(Default)]
pub struct Groups {
    waiting: Mutex<BTreeMap<i32, Waiting>>,
    live: Mutex<Vec<Weak<Live>>>,
    /// Greatest number of records of a group, once a larger one was refused. It only falls.
    records_max: Mutex<Option<u64>>,
}

struct Waiting {
    fill: u64,
    source: Source,
    taken: oneshot::Sender<Taken>,
}

/// The wait of one task for a batch. It ends with the drop, which leaves a newer wait of the same partition alone.
pub struct Wait {
    groups: Arc<Groups>,
    partition: i32,
    /// The batch, once it was taken for this task.
    pub taken: oneshot::Receiver<Taken>,
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.taken.close();
        let mut waiting = locked(&self.groups.waiting);
        if waiting.get(&self.partition).is_some_and(|one| one.taken.is_closed()) {
            waiting.remove(&self.partition);
        }
    }
}

impl Groups {
    /// Lets a task wait for the batch of its open window.
    pub fn wait(self: &Arc<Groups>, source: &Source, fill: u64) -> Wait {
        let (taken, receiver) = oneshot::channel();
        let partition = source.partition;
        locked(&self.waiting).insert(partition, Waiting { fill, source: source.clone(), taken });
        Wait { groups: Arc::clone(self), partition, taken: receiver }
    }

    /// Takes a batch for a task that waits, to be inserted alone. Returns `None` if none is due. Returns an error if a batch was
    /// taken for the task already: then it is about to arrive.
    pub fn take_alone(&self, windows: &Windows, partition: i32, due: Due) -> Result<Option<ReservedBatch>, Arriving> {
        let mut waiting = locked(&self.waiting);
        let fill = waiting.get(&partition).ok_or(Arriving)?.fill;
        let taken = windows.take(partition, due, fill);
        if taken.is_some() {
            waiting.remove(&partition);
        }
        Ok(taken)
    }

    /// Notes that partitions are being revoked: they may be somebody else's at any moment from now on.
    pub fn doubt(&self, partitions: &[i32]) {
        let live: Vec<Arc<Live>> = locked(&self.live).iter().filter_map(Weak::upgrade).collect();
        for group in live {
            let mut state = group.state();
            partitions.iter().for_each(|&partition| state.group.doubt(partition));
        }
    }

    /// Returns the time at which the first window that a task waits for is due.
    fn due_at(&self, windows: &Windows, ages: Ages) -> Option<Instant> {
        let waiting = locked(&self.waiting);
        waiting.iter().filter_map(|(&partition, one)| windows.due_at(partition, ages, one.fill)).min()
    }

    /// Takes the open windows of all tasks that wait, except for empty ones.
    fn take_all(&self, windows: &Windows, ages: Ages) -> Vec<(Waiting, ReservedBatch)> {
        let due: Vec<(i32, Waiting)> = {
            let mut waiting = locked(&self.waiting);
            let has_rows = |partition: i32, one: &Waiting| windows.due_at(partition, ages, one.fill).is_some();
            waiting.extract_if(.., |&partition, one| has_rows(partition, one)).collect()
        };
        // A task whose window was closed meanwhile gets nothing, and waits again.
        due.into_iter()
            .filter_map(|(partition, one)| Some((windows.take(partition, Due::Now, one.fill)?, one)))
            .map(|(batch, one)| (one, batch))
            .collect()
    }

    /// Hands batches to their tasks, in groups no larger than a single batch may be.
    fn hand_out(&self, shared: &Arc<Shared>, taken: Vec<(Waiting, ReservedBatch)>, limits: &Limits) {
        // Transaction markers alone leave no rows, so there is nothing to insert together.
        let (empty, mut full): (Vec<_>, Vec<_>) = taken.into_iter().partition(|(_, held)| held.batch.is_empty());
        empty.into_iter().for_each(|(waiting, held)| hand(waiting, held, None));
        let rows_max = locked(&self.records_max).map_or(limits.rows_max, |most| most.min(limits.rows_max));
        let sizes: Vec<Size> = full.iter().map(|(_, held)| held.batch.size()).collect();
        for count in cut(&sizes, &Limits { rows_max, ..*limits }) {
            let rest = full.split_off(count);
            let group = (count > 1).then(|| self.begin(shared, &full));
            for (waiting, held) in std::mem::replace(&mut full, rest) {
                let seat =
                    group.as_ref().map(|live| Seat { live: Arc::clone(live), partition: waiting.source.partition });
                hand(waiting, held, seat);
            }
        }
    }

    fn begin(&self, shared: &Arc<Shared>, batches: &[(Waiting, ReservedBatch)]) -> Arc<Live> {
        let names: Vec<String> = batches.iter().map(|(waiting, _)| waiting.source.name()).collect();
        let id = id_of(names.iter().map(String::as_str).zip(batches.iter().map(|(_, held)| held.batch.range())));
        let group = Group::new(batches.iter().map(|(waiting, _)| waiting.source.partition));
        let state = Mutex::new(State { group, asked: BTreeMap::new(), inserting: false });
        let live = Arc::new(Live { id, state, shared: Arc::clone(shared) });
        let mut all = locked(&self.live);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&live));
        live
    }

    /// Halves the size of groups, as one was refused for its size.
    fn shrink(&self, records: u64) {
        let mut most = locked(&self.records_max);
        *most = Some(most.map_or(records / 2, |most| most.min(records / 2)).max(1));
        tracing::warn!(
            records,
            "ClickHouse refuses a group of batches for its size: they are inserted alone, later groups are smaller"
        );
    }
}

fn hand(waiting: Waiting, held: ReservedBatch, seat: Option<Seat>) {
    // A task that has ended takes nothing. Its batch is read again by the next owner.
    let _ = waiting.taken.send((Arc::new(held), seat));
}

/// The task's batch was taken already.
#[derive(Debug)]
pub struct Arriving;

/// Takes the windows whenever one of them is due, for as long as the service runs.
pub async fn flush_when_due(shared: Weak<Shared>, limits: Limits) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let ages = shared.flush_ages();
        let (groups, windows) = (&shared.groups, &shared.windows);
        let due_at = groups.due_at(windows, ages);
        if due_at.is_some_and(|due_at| due_at <= Instant::now()) {
            groups.hand_out(&shared, groups.take_all(windows, ages), &limits);
        }
        let interval = (ages.most / 4).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX);
        let left = due_at.map_or(interval, |due_at| due_at.saturating_duration_since(Instant::now()).min(interval));
        drop(shared);
        tokio::time::sleep(left.max(Duration::from_millis(1))).await;
    }
}

/// A group under way.
struct Live {
    id: GroupId,
    state: Mutex<State>,
    shared: Arc<Shared>,
}

struct State {
    group: Group,
    /// Sources that ask for an insert and have no answer, by partition.
    asked: BTreeMap<i32, Asked>,
    /// True while an insert is under way.
    inserting: bool,
}

/// A source that asks for an insert.
struct Asked {
    batch: Arc<ReservedBatch>,
    source: Source,
    lease: Lease,
    answer: oneshot::Sender<Answer>,
}

/// The answer to a source's insert.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The rows are there.
    Inserted,
    /// The insert is acknowledged, and may have been dropped.
    Unproven,
    /// The lease of a source has expired, so nothing was sent.
    LeaseExpired,
    /// The insert failed, or its outcome is unknown.
    Failed {
        /// Message of ClickHouse about the failure.
        error: String,
        /// True if ClickHouse refuses the insert permanently.
        for_good: bool,
        /// True for one of the sources, which reports the failure for all.
        reports: bool,
    },
    /// The source is not in the group any more.
    Left,
}

impl Live {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Carries out an insert that the group has decided on, in a task of its own.
    fn start(self: &Arc<Live>, state: &mut State, insert: Option<JointInsert>) {
        let Some(insert) = insert else { return };
        let asked: Vec<(Insert, Asked)> = insert
            .into_iter()
            .filter_map(|(partition, insert)| Some((insert, state.asked.remove(&partition)?)))
            .collect();
        state.inserting = true;
        tokio::spawn(Arc::clone(self).insert(asked));
    }

    async fn insert(self: Arc<Live>, asked: Vec<(Insert, Asked)>) {
        let answers = self.answers(&asked).await;
        self.state().inserting = false;
        for ((_, one), answer) in asked.into_iter().zip(answers) {
            let _ = one.answer.send(answer);
        }
    }

    async fn answers(&self, asked: &[(Insert, Asked)]) -> Vec<Answer> {
        let Some((first, one)) = asked.first() else { return Vec::new() };
        let table = first.table;
        let all = |answer: Answer| vec![answer; asked.len()];
        let lease_holds = || asked.iter().all(|(_, one)| one.lease.holds(boot_time()));
        if !lease_holds() {
            return all(Answer::LeaseExpired);
        }
        failpoint::hit("lease_checked");
        let names: Vec<String> = asked.iter().map(|(_, one)| one.source.name()).collect();
        let parts: Vec<Part<'_>> = asked
            .iter()
            .zip(&names)
            .map(|((insert, one), source)| Part { batch: &one.batch.batch, partitions: &insert.partitions, source })
            .collect();
        let token = one.source.token(one.batch.batch.range(), Some(self.id), table, 0);
        let started = Instant::now();
        let id = one.source.joint_id(self.id, table);
        let outcome = self.shared.sink.insert(table, &parts, &token, &id, lease_holds).await;
        histogram!(INSERT_SECONDS, "table" => table.name()).record(started.elapsed());
        let error = match outcome {
            Ok(rows) => {
                self.shared.note_rows(table, rows);
                let whole = self.state().group.is_whole();
                return all(if whole && lease_holds() { Answer::Inserted } else { Answer::Unproven });
            }
            Err(error) => error,
        };
        self.on_error(&error, asked);
        tracing::debug!(partitions = asked.len(), "a group's insert failed");
        let failed = |reports| Answer::Failed { error: error.to_string(), for_good: error.is_for_good(), reports };
        (0..asked.len()).map(|n| failed(n == 0)).collect()
    }

    /// If ClickHouse refuses an insert, one source alone may be the reason. The others must not wait for it.
    fn on_error(&self, error: &ClickHouseError, asked: &[(Insert, Asked)]) {
        if error.refuses_size() {
            self.shared.groups.shrink(asked.iter().map(|(_, one)| one.batch.batch.size().records).sum());
        }
        if error.may_refuse_rows() {
            let mut state = self.state();
            state.group.break_up();
            for (_, one) in std::mem::take(&mut state.asked) {
                let _ = one.answer.send(Answer::Left);
            }
        }
    }

    /// Removes the sources that ask for nothing, if the others only wait for them.
    fn leave_absent(self: &Arc<Live>) {
        let mut state = self.state();
        if !state.inserting {
            tracing::warn!("a group's insert goes on without the partitions that do not take part in it");
            let insert = state.group.leave_absent();
            self.start(&mut state, insert);
        }
    }
}

/// The place of a source in its group. The source leaves the group with the drop.
pub struct Seat {
    live: Arc<Live>,
    partition: i32,
}

impl Seat {
    /// Returns the id of the group.
    pub fn group(&self) -> GroupId {
        self.live.id
    }

    /// Asks for an insert, and waits until the group has made it.
    pub async fn insert(&self, insert: Insert, batch: Arc<ReservedBatch>, source: &Source, lease: Lease) -> Answer {
        let (answer, mut answered) = oneshot::channel();
        {
            let mut state = self.live.state();
            if !state.group.has(self.partition) {
                return Answer::Left;
            }
            state.asked.insert(self.partition, Asked { batch, source: source.clone(), lease, answer });
            let insert = state.group.ask(self.partition, insert);
            self.live.start(&mut state, insert);
        }
        loop {
            match tokio::time::timeout(PATIENCE, &mut answered).await {
                Ok(answer) => return answer.unwrap_or(Answer::Left),
                Err(_) => self.live.leave_absent(),
            }
        }
    }

    /// Leaves the group, because the batch is committed.
    pub fn finish(self) {
        let mut state = self.live.state();
        let insert = state.group.finish(self.partition);
        self.live.start(&mut state, insert);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.live.state();
        if state.group.has(self.partition) {
            tracing::info!(partition = self.partition, "a partition has left its group before its end");
        }
        state.asked.remove(&self.partition);
        let insert = state.group.leave(self.partition);
        self.live.start(&mut state, insert);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tallyhouse_core::stream::Stream;

    /// A task whose window was closed before it could be taken waits again.
    #[test]
    fn the_end_of_a_wait_leaves_a_newer_one_alone() {
        let groups = Arc::new(Groups::default());
        let windows = Windows::new(Stream::Events, Limits { rows_max: 1, bytes_max: 1, days_max: 1 }, Arc::default());
        let source = Source { cluster: String::new(), topic: "t".into(), topic_id: String::new(), partition: 3 };
        let older = groups.wait(&source, 1);
        let newer = groups.wait(&source, 2);
        drop(older);
        assert!(matches!(groups.take_alone(&windows, 3, Due::Now), Ok(None)), "it still waits");
        drop(newer);
        assert!(groups.take_alone(&windows, 3, Due::Now).is_err(), "nobody waits");
    }
}
