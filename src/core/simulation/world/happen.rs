//! What each move does to the world.

use super::{Commit, Doing, Fault, Move, SESSION, Task, World};
use crate::core::lease::Lease;
use crate::core::marks::{Insert, Marks};
use crate::core::protocol::{Action, LogView, Protocol, Seen, may_commit};
use crate::core::simulation::sink::Sent;
use crate::core::source::OffsetRange;

impl World {
    /// Makes a move happen.
    pub fn make(&mut self, chosen: Move) {
        match chosen {
            Move::Produce(p) => self.partitions[p].log.high += 1,
            Move::Assign(p, m) => self.assign(p, m),
            Move::Step(p, t) => self.step(p, t),
            Move::Freeze(p, t, end) => self.freeze(p, t, end),
            Move::Compare(p, i) => self.compare(p, i),
            Move::Deliver(p, i) => self.deliver(p, i, true),
            Move::Begin(p, i) => self.begin(p, i),
            Move::Apply(p, i, k) => {
                let partition = &mut self.partitions[p];
                partition.sink.apply(i, k, &partition.log);
                if let Some(doubled) = partition.sink.doubled() {
                    self.violation = Some(format!("partition {p}: offset {doubled}"));
                }
            }
            Move::Acknowledge(p, i) => self.answer_insert(p, i, Seen::Inserted),
            Move::Forget(m) => self.forget(m),
            Move::Rejoin(m) => self.rejoin(m),
            Move::Fault(fault) => {
                self.faults_left -= 1;
                self.fail(fault);
            }
        }
    }

    fn fail(&mut self, fault: Fault) {
        match fault {
            Fault::Crash(m) => self.crash(m),
            Fault::Expire(m) => self.forget(m),
            Fault::Suspend(m) => self.members[m].now += SESSION,
            Fault::Revoke(p) => {
                if let Some(owner) = self.partitions[p].owner.take() {
                    self.drop_task(p, owner);
                }
            }
            Fault::Drain(p, t) => self.observe(p, t, Seen::Drained),
            Fault::LoseCommitAnswer(p, i) => self.deliver(p, i, false),
            Fault::AbandonCommit(p, i) => {
                let commit = &mut self.partitions[p].commits[i];
                commit.waiting = false;
                let member = commit.member;
                self.answer(p, member, Seen::CommitFailed);
            }
            Fault::Restamp(p, i) => {
                let generation = self.generation;
                let partition = &mut self.partitions[p];
                partition.restamped = true;
                if let Some((stamp, _)) = &mut partition.commits[i].stamp {
                    *stamp = generation;
                }
                self.deliver(p, i, true);
            }
            Fault::DropInsert(p, i) => self.answer_insert(p, i, Seen::InsertUnknown),
            Fault::AbandonInsert(p, i) => {
                if let Some(member) = self.partitions[p].sink.sent[i].waiting.take() {
                    self.answer(p, member, Seen::InsertUnknown);
                }
            }
            Fault::KillSink { halfway } => {
                for p in 0..self.partitions.len() {
                    for member in self.partitions[p].sink.kill(halfway) {
                        self.answer(p, member, Seen::InsertUnknown);
                    }
                }
            }
            Fault::ForgetTokens(p) => self.partitions[p].sink.forget_tokens(),
            Fault::DeleteRecords(p) => {
                let partition = &mut self.partitions[p];
                partition.log.low = partition.committed.as_ref().map_or(0, |committed| committed.offset);
            }
            Fault::LoseCommitted(p) => self.partitions[p].committed = None,
        }
    }

    fn assign(&mut self, p: usize, m: usize) {
        self.new_generation();
        let (protocol, action) = Protocol::start();
        let lease = Lease::new(SESSION);
        let partition = &mut self.partitions[p];
        partition.owner = Some(m);
        partition.tasks.push(Task {
            member: m,
            protocol,
            doing: Doing::Next(action),
            position: 0,
            frozen: Vec::new(),
            lease,
            renewed: None,
        });
    }

    fn new_generation(&mut self) {
        self.generation += 1;
        let generation = self.generation;
        self.members.iter_mut().filter(|m| m.alive && m.joined).for_each(|m| m.generation = generation);
    }

    fn forget(&mut self, m: usize) {
        self.members[m].joined = false;
        self.members[m].now += SESSION;
        self.partitions.iter_mut().filter(|p| p.owner == Some(m)).for_each(|p| p.owner = None);
    }

    fn rejoin(&mut self, m: usize) {
        for p in 0..self.partitions.len() {
            self.drop_task(p, m);
        }
        self.members[m].alive = true;
        self.members[m].joined = true;
        self.new_generation();
    }

    fn crash(&mut self, m: usize) {
        self.members[m].alive = false;
        for p in 0..self.partitions.len() {
            self.drop_task(p, m);
        }
    }

    /// A task is cut off; what it has sent goes on without it.
    fn drop_task(&mut self, p: usize, m: usize) {
        let partition = &mut self.partitions[p];
        partition.tasks.retain(|task| task.member != m);
        partition.commits.retain(|commit| commit.member != m || commit.stamp.is_some());
        partition.commits.iter_mut().filter(|commit| commit.member == m).for_each(|commit| commit.waiting = false);
        partition.sink.sent.iter_mut().filter(|sent| sent.waiting == Some(m)).for_each(|sent| sent.waiting = None);
    }

    fn step(&mut self, p: usize, t: usize) {
        let partition = &mut self.partitions[p];
        let task = &mut partition.tasks[t];
        let (sink, log) = (&mut partition.sink, &partition.log);
        let doing = task.doing.clone();
        let seen = match doing {
            Doing::Next(Action::ReadCommitted) => {
                task.frozen.clear();
                let committed = partition.committed.clone();
                Seen::Log(LogView { committed, topic_id: "id".into(), low: log.low, high: log.high })
            }
            Doing::Next(Action::ReadProgress { from }) => {
                task.doing = Doing::Progress { from, ends: sink.ends() };
                return;
            }
            Doing::Progress { from, ends } => Seen::Progress(sink.progress(from, &ends, log)),
            Doing::Next(Action::Fill { from, until }) => {
                task.frozen.clear();
                task.position = from;
                task.doing = Doing::Reading { until };
                return;
            }
            Doing::Reading { .. } | Doing::Next(Action::AwaitBatch) => Seen::OutOfLog,
            Doing::Next(Action::TakeBatch) => Seen::NoBatch,
            Doing::Next(Action::Commit { expected, wanted }) => {
                let member = task.member;
                task.doing = Doing::Committing;
                partition.commits.push(Commit { member, waiting: true, expected, wanted, stamp: None });
                return;
            }
            Doing::Next(Action::Insert { range, insert, attempt }) => {
                if task.lease.holds(self.members[task.member].now) {
                    if !self.rules.tokens {
                        return self.send(p, t, range, insert, attempt);
                    }
                    task.doing = Doing::Sending { range, insert, attempt };
                    return;
                }
                Seen::LeaseExpired
            }
            Doing::Sending { range, insert, attempt } => return self.send(p, t, range, insert, attempt),
            Doing::Next(Action::ReadMarks { range }) => {
                let mut marks = Marks::default();
                sink.raw_marks(range, log, &mut marks);
                task.doing = Doing::Marks { range, marks, tables: 1 };
                return;
            }
            Doing::Marks { range, mut marks, tables: 1 } => {
                sink.daily_marks(&mut marks);
                task.doing = Doing::Marks { range, marks, tables: 2 };
                return;
            }
            Doing::Marks { range, mut marks, .. } => {
                sink.rejected_marks(range, &mut marks);
                Seen::Marks(marks)
            }
            Doing::Next(Action::Release | Action::Stop(_)) | Doing::Committing | Doing::Inserting => return,
        };
        self.observe(p, t, seen);
    }

    fn send(&mut self, p: usize, t: usize, range: OffsetRange, insert: Insert, attempt: u32) {
        let tokens = self.rules.tokens;
        let partition = &mut self.partitions[p];
        let token = if tokens { partition.source.token(range, insert.table, attempt) } else { String::new() };
        let waiting = Some(partition.tasks[t].member);
        let left = insert.partitions.clone();
        partition.tasks[t].doing = Doing::Inserting;
        partition.sink.sent.push(Sent { range, insert, token, waiting, begun: false, left });
        if !tokens {
            let last = partition.sink.sent.len() - 1;
            self.begin(p, last);
        }
    }

    fn freeze(&mut self, p: usize, t: usize, end: u64) {
        let partition = &mut self.partitions[p];
        let task = &mut partition.tasks[t];
        let frozen = partition.log.freeze(OffsetRange { start: task.position, end });
        task.position = end;
        task.frozen.push(frozen.clone());
        self.observe(p, t, Seen::Batch(frozen));
    }

    fn begin(&mut self, p: usize, i: usize) {
        if !self.partitions[p].sink.begin(i) {
            self.answer_insert(p, i, Seen::InsertUnknown);
        }
    }

    fn compare(&mut self, p: usize, i: usize) {
        let partition = &mut self.partitions[p];
        let commit = &mut partition.commits[i];
        let member = &self.members[commit.member];
        if may_commit(partition.committed.as_ref(), commit.expected.as_ref(), &commit.wanted) {
            commit.stamp = Some((member.generation, member.now));
        } else {
            let commit = partition.commits.remove(i);
            if commit.waiting {
                self.answer(p, commit.member, Seen::CommitOvertaken);
            }
        }
    }

    fn deliver(&mut self, p: usize, i: usize, answered: bool) {
        let partition = &mut self.partitions[p];
        let commit = partition.commits.remove(i);
        let Some((generation, sent)) = commit.stamp else { return };
        let accepted = !self.rules.fence || self.members[commit.member].joined && generation == self.generation;
        if accepted {
            if let Some(lost) = partition.sink.missing_below(commit.wanted.offset, &partition.log) {
                self.violation = Some(format!("partition {p}: committed {}, but {lost}", commit.wanted.offset));
            }
            partition.set_back =
                partition.committed.as_ref().is_some_and(|before| before.offset > commit.wanted.offset);
            partition.committed = Some(commit.wanted.clone());
        }
        if !commit.waiting {
            return;
        }
        if !(accepted && answered) {
            return self.answer(p, commit.member, Seen::CommitFailed);
        }
        if let Some(task) = partition.tasks.iter_mut().find(|task| task.member == commit.member) {
            task.lease.renew(sent);
            task.renewed = Some(sent);
            task.frozen.retain(|batch| batch.range.end > commit.wanted.offset);
        }
        self.answer(p, commit.member, Seen::CommitDone);
    }

    fn answer_insert(&mut self, p: usize, i: usize, seen: Seen) {
        if let Some(member) = self.partitions[p].sink.sent.remove(i).waiting {
            self.answer(p, member, seen);
        }
    }

    fn answer(&mut self, p: usize, member: usize, seen: Seen) {
        if let Some(t) = self.partitions[p].tasks.iter().position(|task| task.member == member) {
            self.observe(p, t, seen);
        }
    }

    fn observe(&mut self, p: usize, t: usize, seen: Seen) {
        let partition = &mut self.partitions[p];
        let task = &mut partition.tasks[t];
        let action = task.protocol.observe(seen);
        match &action {
            Action::Stop(reason) if !partition.restamped => {
                self.violation = Some(format!("partition {p} stopped: {reason}"));
            }
            Action::Insert { range, .. } if !task.frozen.iter().any(|batch| batch.range == *range) => {
                self.violation = Some(format!("partition {p}: an insert of {range}, which is not at hand"));
            }
            Action::Release | Action::Stop(_) => {
                let task = partition.tasks.remove(t);
                if partition.owner == Some(task.member) && matches!(action, Action::Release) {
                    partition.owner = None;
                }
                return;
            }
            _ => {}
        }
        task.doing = Doing::Next(action);
    }
}
