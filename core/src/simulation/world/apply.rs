//! Applies each move to the world.

use super::{Commit, Doing, Fault, Held, Hides, Move, PLENTY, Partition, SESSION, Task, World};
use crate::batch::Batch;
use crate::protocol::lease::Lease;
use crate::protocol::marks::{Insert, Marks, Progress};
use crate::protocol::stop::StopReason;
use crate::protocol::{Action, INSERTS_MAX, LOOKS_FOR_ROWS, LogView, Outcome, Protocol, may_commit};
use crate::simulation::log::DAYS;
use crate::simulation::sink::{Content, Sent};
use crate::source::{OffsetRange, Source};
use crate::window::buffer::{Buffer, Halt};
use crate::window::intake::{Fill, Intake, Verdict};

impl World {
    /// Makes a move happen.
    pub fn make(&mut self, chosen: Move) {
        match chosen {
            Move::Produce(p) => self.partitions[p].log.high += 1,
            Move::Assign(p, m) => self.assign(p, m),
            Move::Step(p, t) => self.step(p, t),
            Move::Fill(m) => self.fill(m),
            Move::Read(p, t) => self.read(p, t),
            Move::End(p, t) => {
                let end = self.partitions[p].log.high;
                self.reach_end(p, t, end);
            }
            Move::Resume(m) => self.resume(m),
            Move::Take(p, t) => self.take(p, t),
            Move::Refuse(p, i) => self.answer_insert(p, i, Outcome::InsertUnknown),
            Move::Compare(p, i) => self.compare(p, i),
            Move::Deliver(p, i) => self.deliver(p, i, true),
            Move::Begin(p, i) => self.begin(p, i),
            Move::Apply(p, i, k) => {
                let partition = &mut self.partitions[p];
                if partition.sink.is_of_two_ids(i) {
                    self.violation = Some(format!("partition {p}: rows under two names"));
                }
                partition.sink.apply(i, k);
                // If rows are hidden permanently, one needless repeat cannot be distinguished from a needed one.
                let times_max = if self.rules.hides == Hides::ForGood { INSERTS_MAX as u8 } else { 1 };
                if let Some(doubled) = partition.sink.more_than(times_max) {
                    self.violation = Some(format!("partition {p}: offset {doubled}"));
                }
            }
            Move::Acknowledge(p, i) => self.answer_insert(p, i, Outcome::Inserted),
            Move::Forget(m) => self.forget(m),
            Move::Rejoin(m) => self.rejoin(m),
            Move::Remedy(p) => {
                let partition = &mut self.partitions[p];
                (partition.committed, partition.owner, partition.behind) = (None, None, false);
            }
            Move::Fault(fault) => {
                self.faults_left -= 1;
                self.fail(fault);
            }
        }
    }

    fn fail(&mut self, fault: Fault) {
        let looks = match self.rules.hides {
            Hides::ForAWhile => Some(LOOKS_FOR_ROWS),
            Hides::ForGood => None,
        };
        match fault {
            Fault::Crash(m) => self.crash(m),
            Fault::Expire(m) => self.forget(m),
            Fault::Suspend(m) => self.members[m].now += SESSION,
            Fault::Revoke(p) => {
                if let Some(owner) = self.partitions[p].owner.take() {
                    self.drop_task(p, owner);
                }
            }
            Fault::Drain(p, t) => self.on_outcome(p, t, Outcome::Drained),
            Fault::LoseCommitAnswer(p, i) => self.deliver(p, i, false),
            Fault::AbandonCommit(p, i) => {
                let commit = &mut self.partitions[p].commits[i];
                commit.waiting = false;
                let member = commit.member;
                self.answer(p, member, Outcome::CommitFailed);
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
            Fault::DropInsert(p, i) => self.answer_insert(p, i, Outcome::InsertUnknown),
            Fault::AbandonInsert(p, i) => {
                if let Some(member) = self.partitions[p].sink.sent[i].waiting.take() {
                    self.answer(p, member, Outcome::InsertUnknown);
                }
            }
            Fault::KillSink { halfway } => {
                for p in 0..self.partitions.len() {
                    for member in self.partitions[p].sink.kill(halfway) {
                        self.answer(p, member, Outcome::InsertUnknown);
                    }
                }
            }
            Fault::ForgetTokens(p) => self.partitions[p].sink.forget_tokens(),
            Fault::Hide(p) => self.partitions[p].sink.hide(looks),
            // It may begin within a look, which leaves one look less.
            Fault::HideTable(p, table) => self.partitions[p].sink.hide_table(table, looks.map(|looks| looks - 1)),
            Fault::ShowOld(p, end) => self.partitions[p].sink.show_old(end, looks.map(|looks| looks - 1)),
            Fault::Restore(p, end, keeps_tokens) => self.partitions[p].sink.restore(end, keeps_tokens),
            Fault::Answer(p, i) if self.rules.proves_answers => self.answer_insert(p, i, Outcome::InsertUnknown),
            Fault::Answer(p, i) => self.answer_insert(p, i, Outcome::Inserted),
            Fault::Age(p) => {
                let sink = &mut self.partitions[p].sink;
                let next = DAYS.iter().map(|(day, _)| *day).find(|day| *day > sink.expired_before());
                next.into_iter().for_each(|day| sink.age(day));
            }
            Fault::RemoveExpired(p) => {
                let Partition { sink, log, .. } = &mut self.partitions[p];
                sink.remove_expired(log);
            }
            Fault::TellIds(p) => self.partitions[p].tells_id ^= true,
            Fault::Narrow(p, records_max) => self.partitions[p].sink.records_max = records_max,
            Fault::DeleteRecords(p) => {
                let partition = &mut self.partitions[p];
                partition.log.low = partition.committed.as_ref().map_or(0, |committed| committed.offset);
            }
            Fault::LoseCommitted(p) => self.partitions[p].committed = None,
            Fault::StaleEnd(p, t) => {
                if let Some(position) = self.partitions[p].tasks[t].position {
                    self.reach_end(p, t, position);
                }
            }
            Fault::StaleLog(p, t) => {
                let partition = &mut self.partitions[p];
                partition.stale_logs += 1;
                let high = partition.log.low;
                self.look(p, t, high);
            }
            Fault::LosePosition(p, t) => self.partitions[p].tasks[t].lose_position(),
            Fault::Stall(m) => {
                let Some(fill) = self.members[m].intake.rotate() else { return };
                let tasks = &mut self.partitions[fill.partition as usize].tasks;
                if let Some(task) = tasks.iter_mut().find(|task| task.member == m && task.fill == fill.number) {
                    (task.buffer, task.position, task.paused) = (None, None, false);
                }
            }
            Fault::CutShort(p, t) => {
                self.partitions[p].cut_short = true;
                let until = self.partitions[p].tasks[t].buffer.as_ref().and_then(Buffer::until);
                until.into_iter().for_each(|until| self.reach_end(p, t, until));
            }
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
            id: String::new(),
            fill: 0,
            asked: None,
            buffer: None,
            position: None,
            paused: false,
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

    /// Cuts a task off. Its sent requests continue without it.
    fn drop_task(&mut self, p: usize, m: usize) {
        self.members[m].intake.forget(p as i32);
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
            Doing::Next(Action::ReadCommitted | Action::LookAgain(_)) => {
                let high = log.high;
                return self.look(p, t, high);
            }
            Doing::Next(Action::ReadProgress { from }) => {
                sink.note_looks(1);
                task.doing = Doing::Progress { from, ends: sink.ends() };
                return;
            }
            Doing::Progress { .. } if !sink.shows(&task.id) => Outcome::Progress(Progress::default()),
            Doing::Progress { from, ends } => Outcome::Progress(sink.progress(from, &ends, log)),
            Doing::Next(Action::Fill { from, until, records_max }) => {
                task.frozen.clear();
                self.fills += 1;
                task.fill = self.fills;
                task.doing = Doing::Awaiting;
                task.asked = Some(Fill { partition: p as i32, number: self.fills, from, until, records_max });
                return;
            }
            Doing::Awaiting | Doing::Next(Action::AwaitBatch) => {
                match task.buffer.as_ref().and_then(|buffer| buffer.halted(task.fill)) {
                    Some(Halt::TooLarge { .. }) => Outcome::TooLarge { limit_bytes: PLENTY as u64 },
                    _ => Outcome::PositionLost,
                }
            }
            Doing::Next(Action::TakeBatch) => Outcome::NoBatch,
            Doing::Next(Action::Commit { expected, wanted, .. }) => {
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
                Outcome::LeaseExpired
            }
            Doing::Sending { range, insert, attempt } => return self.send(p, t, range, insert, attempt),
            Doing::Next(Action::ReadMarks { range, quiet, .. }) => {
                let mut marks = Marks::default();
                // The wait for quiet is longer than the time for which rows are shown late.
                let looks = if quiet { u32::MAX } else { 1 };
                sink.note_looks(looks);
                sink.raw_marks(range, log, &mut marks);
                task.doing = Doing::Marks { range, marks, tables: 1 };
                return;
            }
            Doing::Marks { .. } if !sink.shows(&task.id) => Outcome::Marks(Marks::default()),
            Doing::Marks { range, mut marks, tables: 1 } => {
                sink.daily_marks(&mut marks);
                task.doing = Doing::Marks { range, marks, tables: 2 };
                return;
            }
            Doing::Marks { range, mut marks, .. } => {
                sink.rejected_marks(range, &mut marks);
                Outcome::Marks(marks)
            }
            Doing::Next(Action::Release | Action::Stop(_)) | Doing::Committing | Doing::Inserting => return,
        };
        self.on_outcome(p, t, seen);
    }

    fn look(&mut self, p: usize, t: usize, high: u64) {
        let partition = &mut self.partitions[p];
        partition.tasks[t].frozen.clear();
        let committed = partition.committed.clone();
        let low = partition.log.low;
        let topic_id = if partition.tells_id { "id".to_owned() } else { String::new() };
        let ids_of_rows = if committed.is_none() { partition.sink.ids() } else { Vec::new() };
        let log = LogView { committed, topic_id, ids_of_rows, cluster_id: String::new(), low, high };
        partition.tasks[t].id = log.id_of_rows().unwrap_or_default();
        self.on_outcome(p, t, Outcome::Log(log));
    }

    fn send(&mut self, p: usize, t: usize, range: OffsetRange, insert: Insert, attempt: u32) {
        let tokens = self.rules.tokens;
        let partition = &mut self.partitions[p];
        let id = partition.tasks[t].id.clone();
        let source = Source { topic_id: id.clone(), ..partition.source.clone() };
        let token = if tokens { source.token(range, insert.table, attempt) } else { String::new() };
        let waiting = Some(partition.tasks[t].member);
        let left = insert.partitions.clone();
        let task = &mut partition.tasks[t];
        task.doing = Doing::Inserting;
        let Some(held) = task.frozen.iter().find(|held| held.frozen.range == range) else { return };
        let content = held.content.clone();
        partition.sink.sent.push(Sent { range, insert, content, token, id, waiting, begun: false, left });
        if !tokens {
            let last = partition.sink.sent.len() - 1;
            self.begin(p, last);
        }
    }

    /// Performs the reader's part. It drops the records of partitions with new fills. Then it seeks for the next fill and makes
    /// an empty buffer there.
    fn fill(&mut self, m: usize) {
        if self.has_asked(m) {
            for task in self.partitions.iter_mut().flat_map(|p| &mut p.tasks).filter(|task| task.member == m) {
                let Some(fill) = task.asked.take() else { continue };
                (task.buffer, task.position, task.paused) = (None, None, false);
                self.members[m].intake.ask(fill);
            }
            return;
        }
        let Some(fill) = self.members[m].intake.begin() else { return };
        let p = fill.partition as usize;
        let task = self.partitions[p].tasks.iter_mut().find(|task| task.member == m && task.fill == fill.number);
        match task {
            Some(task) => {
                task.buffer = Some(Buffer::of(&fill));
                task.position = Some(fill.from);
                task.paused = false;
            }
            None => self.members[m].intake.forget(fill.partition),
        }
    }

    fn read(&mut self, p: usize, t: usize) {
        let partition = &mut self.partitions[p];
        let (task, log) = (&mut partition.tasks[t], &partition.log);
        let (Some(buffer), Some(position)) = (&mut task.buffer, task.position) else { return };
        let Some(offset) = log.next(position).filter(|_| position >= log.low) else { return task.lose_position() };
        let (record, decoded) = log.decoded(offset);
        buffer.push(&record, &decoded, &self.limits);
        task.position = Some(offset + 1);
        let (number, is_whole, held, m) = (buffer.fill(), buffer.until().is_none(), task.held_bytes(), task.member);
        if is_whole {
            self.members[m].intake.finish(number);
        }
        let used = self.used_bytes(m);
        let intake = &mut self.members[m].intake;
        let task = &mut self.partitions[p].tasks[t];
        match intake.after_record(p as i32, held, used) {
            Verdict::GoOn => {}
            Verdict::Pause => task.paused = true,
            Verdict::GiveWay => {
                let fill = intake.replays().iter().find(|fill| fill.number == number).copied();
                fill.into_iter().for_each(|fill| intake.defer(fill));
                (task.buffer, task.position) = (None, None);
            }
            Verdict::TooLarge => {
                intake.finish(number);
                task.buffer.as_mut().into_iter().for_each(Buffer::give_up);
            }
        }
    }

    fn reach_end(&mut self, p: usize, t: usize, end: u64) {
        let task = &mut self.partitions[p].tasks[t];
        let Some(buffer) = &mut task.buffer else { return };
        buffer.reached_end(end);
        if buffer.until().is_none() {
            self.members[task.member].intake.finish(buffer.fill());
        }
    }

    fn resume(&mut self, m: usize) {
        self.members[m].intake.note_room();
        for p in 0..self.partitions.len() {
            for t in 0..self.partitions[p].tasks.len() {
                let goes_on = self.may_resume(&self.partitions[p].tasks[t], m, &self.partitions[p]);
                self.partitions[p].tasks[t].paused &= !goes_on;
            }
        }
    }

    fn take(&mut self, p: usize, t: usize) {
        let task = &mut self.partitions[p].tasks[t];
        let fill = task.fill;
        let taken = task.buffer.as_mut().and_then(|buffer| buffer.take(fill, |_| true));
        let Some((window, end)) = taken else { return };
        let batch = Batch::freeze(window, end);
        let (rows, rejects) = batch.offsets();
        let frozen = batch.frozen();
        task.frozen.push(Held { frozen: frozen.clone(), content: Content { rows, rejects }, bytes: batch.bytes() });
        self.on_outcome(p, t, Outcome::Batch(frozen));
    }

    fn begin(&mut self, p: usize, i: usize) {
        if self.partitions[p].sink.refuses(i) {
            self.answer_insert(p, i, Outcome::InsertTooLarge);
        } else if !self.partitions[p].sink.begin(i) {
            self.answer_insert(p, i, Outcome::InsertUnknown);
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
                self.answer(p, commit.member, Outcome::CommitOvertaken);
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
            return self.answer(p, commit.member, Outcome::CommitFailed);
        }
        if let Some(task) = partition.tasks.iter_mut().find(|task| task.member == commit.member) {
            task.lease.renew(sent);
            task.renewed = Some(sent);
            task.frozen.retain(|held| held.frozen.range.end > commit.wanted.offset);
        }
        self.answer(p, commit.member, Outcome::CommitDone);
    }

    fn answer_insert(&mut self, p: usize, i: usize, seen: Outcome) {
        if let Some(member) = self.partitions[p].sink.sent.remove(i).waiting {
            self.answer(p, member, seen);
        }
    }

    fn answer(&mut self, p: usize, member: usize, seen: Outcome) {
        if let Some(t) = self.partitions[p].tasks.iter().position(|task| task.member == member) {
            self.on_outcome(p, t, seen);
        }
    }

    fn on_outcome(&mut self, p: usize, t: usize, seen: Outcome) {
        let partition = &mut self.partitions[p];
        let task = &mut partition.tasks[t];
        let action = task.protocol.on_outcome(seen);
        match &action {
            // The operator's remedy is a member with more memory.
            Action::Stop(StopReason::ReplayTooLarge { .. }) if self.members[task.member].share_bytes < PLENTY => {
                let member = &mut self.members[task.member];
                member.share_bytes = PLENTY;
                member.intake = Intake::new(PLENTY, self.limits.rows_max);
                let task = partition.tasks.remove(t);
                for p in 0..self.partitions.len() {
                    self.drop_task(p, task.member);
                    let owner = &mut self.partitions[p].owner;
                    *owner = owner.filter(|owner| *owner != task.member);
                }
                return;
            }
            // The operator's remedy is another limit.
            Action::Stop(StopReason::InsertTooLarge { .. }) => {
                partition.sink.records_max = None;
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
                partition.owner = partition.owner.filter(|owner| *owner != task.member);
                return;
            }
            Action::Stop(StopReason::NotShown { .. } | StopReason::SinkBehind { .. })
                if self.rules.hides == Hides::ForGood && partition.sink.hides() =>
            {
                partition.not_shown = true;
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
                return;
            }
            Action::Stop(StopReason::SinkBehind { .. }) if partition.sink.restored => {
                partition.behind = true;
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
                return;
            }
            // Retention has deleted the records, so they cannot be counted again.
            Action::Stop(StopReason::RetentionGap { .. }) if partition.sink.restored => {
                partition.not_shown = true;
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
                return;
            }
            Action::Stop(reason) if !partition.restamped => {
                self.violation = Some(format!("partition {p} stopped: {reason}"));
            }
            Action::Insert { range, .. } if !task.frozen.iter().any(|held| held.frozen.range == *range) => {
                self.violation = Some(format!("partition {p}: an insert of {range}, which is not at hand"));
            }
            Action::Release | Action::Stop(_) => {
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
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

impl Task {
    /// librdkafka reads no more of the partition, and reports that by an error.
    fn lose_position(&mut self) {
        self.position = None;
        self.buffer.as_mut().into_iter().for_each(Buffer::lose_position);
    }
}
