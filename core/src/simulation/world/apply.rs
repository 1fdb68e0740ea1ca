//! Applies each move to the world.

use super::{Commit, Doing, Fault, Grouped, Held, Hides, Move, PLENTY, Partition, SESSION, Task, World};
use crate::batch::Batch;
use crate::guard::{self, Guard};
use crate::protocol::group::{Group, GroupId, JointInsert, OfGroup, id_of};
use crate::protocol::lease::Lease;
use crate::protocol::marks::{Insert, Marks, PartitionId, Progress};
use crate::protocol::stop::StopReason;
use crate::protocol::{
    Action, Frozen, INSERTS_MAX, LOOKS_FOR_ROWS, LogView, Outcome, Protocol, Step, may_commit, vouches_for_rows,
};
use crate::simulation::log::DAYS;
use crate::simulation::server::{Part, Sent};
use crate::simulation::sink::Content;
use crate::source::{OffsetRange, Source};
use crate::window::buffer::{Buffer, Halt};
use crate::window::intake::{Fill, Intake, Verdict};
use std::collections::BTreeSet;

/// The token of a group does not depend on a range.
const NO_RANGE: OffsetRange = OffsetRange { start: 0, end: 0 };

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
            Move::Gather(m) => self.gather(m),
            Move::Send(g) => {
                let Grouped { member, id, .. } = self.groups[g];
                let joint = self.groups[g].sending.take();
                joint.into_iter().for_each(|joint| self.send_joint(member, id, joint));
            }
            Move::LeaveAbsent(g) => {
                let Grouped { member, id, group, .. } = &mut self.groups[g];
                let (member, id, joint) = (*member, *id, group.leave_absent());
                self.leave_those_outside(member, id);
                self.start_joint(member, id, joint);
            }
            Move::Refuse(i) => self.refuse(i, Outcome::InsertUnknown),
            Move::Compare(p, i) => self.compare(p, i),
            Move::Deliver(p, i) => self.deliver(p, i, true),
            Move::Begin(i) => self.begin(i),
            Move::Apply(i, k) => self.apply(i, k),
            Move::Acknowledge(i) => self.acknowledge(i),
            Move::Fetch(p, replica) => self.partitions[p].sink.fetch(replica),
            Move::EndQuarantine(p) => self.partitions[p].sink.quarantined = false,
            Move::Vanish(p) => self.partitions[p].sink.vanish(),
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
            Fault::DropInsert(i) => {
                let sent = self.server.sent.remove(i);
                self.answer_parts(&sent, |_, _| Outcome::InsertUnknown);
            }
            Fault::AbandonInsert(i) => {
                let sent = self.server.sent[i].clone();
                self.server.sent[i].parts.iter_mut().for_each(|part| part.waiting = false);
                self.answer_parts(&sent, |_, _| Outcome::InsertUnknown);
            }
            Fault::Switch(m) => self.members[m].replica = (self.members[m].replica + 1) % self.rules.replicas,
            Fault::LoseDisk { replica, keeps_tokens } => self.lose_disk(replica, keeps_tokens),
            Fault::GiveUpKeeper(i) => {
                let sent = self.server.sent.remove(i);
                let Sent { replica, table, left, parts, .. } = &sent;
                for (part, partition) in parts.iter().flat_map(|part| left.iter().map(move |left| (part, *left))) {
                    if part.insert.partitions.contains(&partition) {
                        let sink = &mut self.partitions[part.partition].sink;
                        sink.pretend(*replica, *table, partition, part.range, &part.content);
                    }
                }
                self.answer_parts(&sent, |_, _| Outcome::InsertUnknown);
            }
            Fault::KillSink { halfway } => self.kill(halfway),
            Fault::ForgetTokens(p) => {
                self.forget_tokens(p, &self.forgettable(p));
            }
            Fault::Hide(p) => self.partitions[p].sink.hide(looks),
            // It may begin within a look, which leaves one look less.
            Fault::HideTable(p, table) => self.partitions[p].sink.hide_table(table, looks.map(|looks| looks - 1)),
            Fault::ShowOld(p, end) => self.partitions[p].sink.show_old(end, looks.map(|looks| looks - 1)),
            Fault::Restore(p, end, keeps_tokens) => {
                self.partitions[p].sink.restore(end);
                if !keeps_tokens {
                    self.forget_tokens(p, &self.server.groups_of(p));
                }
            }
            Fault::Answer(i) => {
                let proves = self.rules.proves_answers;
                let sent = self.server.sent.remove(i);
                self.answer_parts(&sent, |_, _| if proves { Outcome::InsertUnknown } else { Outcome::Inserted });
            }
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
            Fault::LoseWindow(p, t) => {
                self.partitions[p].window_lost = true;
                let Task { buffer, fill, .. } = &mut self.partitions[p].tasks[t];
                drop(buffer.as_mut().and_then(|buffer| buffer.take(*fill, |_| true)));
            }
            Fault::CutShort(p, t) => {
                self.partitions[p].cut_short = true;
                let until = self.partitions[p].tasks[t].buffer.as_ref().and_then(Buffer::until);
                until.into_iter().for_each(|until| self.reach_end(p, t, until));
            }
        }
    }

    fn lose_disk(&mut self, replica: usize, keeps_tokens: bool) {
        let is_killed = |sent: &Sent| sent.begun && sent.replica == replica;
        let (killed, others): (Vec<Sent>, Vec<Sent>) =
            std::mem::take(&mut self.server.sent).into_iter().partition(is_killed);
        self.server.sent = others;
        killed.iter().for_each(|sent| self.answer_parts(sent, |_, _| Outcome::InsertUnknown));
        for p in 0..self.partitions.len() {
            if self.partitions[p].sink.lose(replica) && !keeps_tokens {
                // Members notice a loss of any partition.
                self.partitions.iter_mut().for_each(|partition| partition.sink.quarantined = true);
                self.forget_tokens(p, &self.server.groups_of(p));
            }
        }
    }

    fn forget_tokens(&mut self, p: usize, groups: &BTreeSet<GroupId>) {
        self.server.forget(p, groups);
        self.partitions[p].sink.has_forgotten = true;
        for p in groups.iter().flat_map(|group| &self.server.groups[group]) {
            self.partitions[*p].sink.has_forgotten = true;
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
            replaying: false,
            lost: partition.sink.lost,
            group: None,
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
        self.groups.retain(|grouped| grouped.member != m);
        for p in 0..self.partitions.len() {
            self.drop_task(p, m);
        }
    }

    /// Cuts a task off. Its sent requests continue without it.
    fn drop_task(&mut self, p: usize, m: usize) {
        self.members[m].intake.forget(p as i32);
        for sent in self.server.sent.iter_mut().filter(|sent| sent.member == m) {
            sent.parts.iter_mut().filter(|part| part.partition == p).for_each(|part| part.waiting = false);
        }
        let of_member = |task: &&mut Task| task.member == m;
        let group = self.partitions[p].tasks.iter_mut().find(of_member).and_then(|task| task.group.take());
        let partition = &mut self.partitions[p];
        partition.tasks.retain(|task| task.member != m);
        partition.commits.retain(|commit| commit.member != m || commit.stamp.is_some());
        partition.commits.iter_mut().filter(|commit| commit.member == m).for_each(|commit| commit.waiting = false);
        group.into_iter().for_each(|group| self.leave(p, m, group));
    }

    fn step(&mut self, p: usize, t: usize) {
        let partition = &mut self.partitions[p];
        let task = &mut partition.tasks[t];
        let (sink, log) = (&mut partition.sink, &partition.log);
        let doing = task.doing.clone();
        let in_use = self.members[task.member].replica;
        match doing {
            Doing::Next(Action::ReadProgress { .. } | Action::ReadMarks { .. }) if guard::is_on(Guard::Sync) => {
                sink.fetch(in_use);
                sink.ask(in_use);
            }
            // Without the guard, statements take turns, as behind a load balancer.
            Doing::Progress { replica, .. } | Doing::Marks { replica, .. } => {
                let turn = usize::from(!guard::is_on(Guard::OneReplica));
                sink.ask((replica + turn) % self.rules.replicas.max(1));
            }
            _ => sink.ask(in_use),
        }
        let seen = match doing {
            Doing::Next(Action::ReadCommitted | Action::LookAgain(_)) => {
                let high = log.high;
                return self.look(p, t, high);
            }
            Doing::Next(Action::ReadProgress { from }) => {
                sink.note_looks(1);
                task.doing = Doing::Progress { from, ends: sink.ends(), replica: in_use };
                return;
            }
            Doing::Progress { .. } if !sink.shows(&task.id) => Outcome::Progress(Progress::default()),
            Doing::Progress { from, ends, .. } => Outcome::Progress(sink.progress(from, &ends, log)),
            Doing::Next(Action::Fill { from, until, records_max }) => {
                task.frozen.clear();
                task.replaying = until.is_some();
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
            Doing::Next(Action::Commit { expected, wanted, .. })
                if task.lost != sink.lost
                    && vouches_for_rows(expected.as_ref(), &wanted)
                    && guard::is_on(Guard::Confirm) =>
            {
                task.lost = sink.lost;
                Outcome::Unconfirmed
            }
            Doing::Next(Action::Commit { expected, wanted, .. }) => {
                if self.rules.confirms && guard::is_on(Guard::Confirm) && vouches_for_rows(expected.as_ref(), &wanted) {
                    (0..self.rules.replicas).for_each(|replica| sink.fetch(replica));
                }
                let member = task.member;
                task.doing = Doing::Committing;
                partition.commits.push(Commit { member, waiting: true, expected, wanted, stamp: None });
                return;
            }
            Doing::Next(Action::Insert { .. }) if sink.quarantined && guard::is_on(Guard::Quarantine) => {
                Outcome::InsertUnknown
            }
            Doing::Next(Action::Insert { insert, attempt: 0, .. }) if task.group.is_some() => {
                return self.ask(p, t, insert);
            }
            Doing::Next(Action::Insert { .. }) if task.group.is_some() => {
                let (m, group) = (task.member, task.group.take());
                group.into_iter().for_each(|group| self.leave(p, m, group));
                return;
            }
            Doing::Next(Action::Insert { range, group, insert, attempt }) => {
                if task.lease.holds(self.members[task.member].now) {
                    if !self.rules.tokens {
                        return self.send(p, t, range, group, insert, attempt);
                    }
                    task.doing = Doing::Sending { range, group, insert, attempt };
                    return;
                }
                Outcome::LeaseExpired
            }
            Doing::Sending { range, group, insert, attempt } => {
                return self.send(p, t, range, group, insert, attempt);
            }
            Doing::Next(Action::ReadMarks { range, quiet, .. }) => {
                let mut marks = Marks::default();
                // The wait for quiet is longer than the time for which rows are shown late.
                let looks = if quiet { u32::MAX } else { 1 };
                sink.note_looks(looks);
                sink.raw_marks(range, log, &mut marks);
                task.doing = Doing::Marks { range, marks, tables: 1, replica: in_use };
                return;
            }
            Doing::Marks { .. } if !sink.shows(&task.id) => Outcome::Marks(Marks::default()),
            Doing::Marks { range, mut marks, tables: 1, replica } => {
                sink.daily_marks(&mut marks);
                task.doing = Doing::Marks { range, marks, tables: 2, replica };
                return;
            }
            Doing::Marks { range, mut marks, .. } => {
                sink.rejected_marks(range, &mut marks);
                Outcome::Marks(marks)
            }
            Doing::Committing | Doing::Inserting | Doing::Gathering => return,
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

    /// Sends an insert of one source alone.
    fn send(&mut self, p: usize, t: usize, range: OffsetRange, group: Option<GroupId>, insert: Insert, attempt: u32) {
        let tokens = self.rules.tokens;
        let task = &mut self.partitions[p].tasks[t];
        task.doing = Doing::Inserting;
        let (member, id, table) = (task.member, task.id.clone(), insert.table);
        let source = Source { topic_id: id.clone(), ..self.partitions[p].source.clone() };
        let token = if tokens { source.token(range, group, table, attempt) } else { String::new() };
        let left = insert.partitions.clone();
        let Some(part) = self.part(p, t, |held| held.frozen.range == range, insert) else { return };
        let shares_token = group.is_some() && attempt == 0 && guard::is_on(Guard::GroupToken);
        self.server.sent.push(Sent {
            member,
            replica: self.members[member].replica,
            table,
            group,
            joint: false,
            token,
            shares_token,
            begun: false,
            left,
            parts: vec![part],
        });
        if !tokens {
            self.begin(self.server.sent.len() - 1);
        }
    }

    /// Returns the part of an insert with rows of a batch of this task.
    fn part(&self, p: usize, t: usize, is_wanted: impl Fn(&&Held) -> bool, insert: Insert) -> Option<Part> {
        let task = &self.partitions[p].tasks[t];
        let held = task.frozen.iter().find(is_wanted)?;
        let (range, content) = (held.frozen.range, held.content.clone());
        Some(Part { partition: p, range, insert, content, id: task.id.clone(), waiting: true })
    }

    /// A task asks its group for an insert.
    fn ask(&mut self, p: usize, t: usize, insert: Insert) {
        let task = &mut self.partitions[p].tasks[t];
        task.doing = Doing::Gathering;
        let (m, Some(id)) = (task.member, task.group) else { return };
        let joint = self.grouped(m, id).and_then(|grouped| grouped.group.ask(p as i32, insert));
        self.start_joint(m, id, joint);
    }

    fn grouped(&mut self, m: usize, id: GroupId) -> Option<&mut Grouped> {
        self.groups.iter_mut().find(|grouped| grouped.member == m && grouped.id == id)
    }

    /// A task leaves its group before its batch is committed.
    fn leave(&mut self, p: usize, m: usize, id: GroupId) {
        let joint = self.grouped(m, id).and_then(|grouped| grouped.group.leave(p as i32));
        self.start_joint(m, id, joint);
    }

    /// Tells the tasks that are no longer in the group, and lets those that wait in it insert alone.
    fn leave_those_outside(&mut self, m: usize, id: GroupId) {
        let group = self.grouped(m, id).map(|grouped| grouped.group.clone());
        for p in 0..self.partitions.len() {
            let is_in = group.as_ref().is_some_and(|group| group.has(p as i32));
            let in_group = |task: &&mut Task| task.member == m && task.group == Some(id);
            if let Some(task) = self.partitions[p].tasks.iter_mut().find(in_group).filter(|_| !is_in) {
                task.group = None;
                let waited = task.doing == Doing::Gathering;
                if waited {
                    self.answer(p, m, Outcome::InsertUnknown);
                }
            }
        }
    }

    /// Checks the leases of all sources of a group's insert.
    fn start_joint(&mut self, m: usize, id: GroupId, joint: Option<JointInsert>) {
        let now = self.members[m].now;
        match joint {
            Some(joint) if joint.iter().all(|(p, _)| self.task(*p as usize, m).is_some_and(|t| t.lease.holds(now))) => {
                match self.rules.tokens {
                    true => self.grouped(m, id).into_iter().for_each(|grouped| grouped.sending = Some(joint.clone())),
                    false => self.send_joint(m, id, joint),
                }
            }
            Some(joint) => joint.iter().for_each(|(p, _)| self.answer(*p as usize, m, Outcome::LeaseExpired)),
            None => {}
        }
        self.groups.retain(|grouped| !grouped.group.is_empty() || grouped.sending.is_some());
    }

    fn task(&self, p: usize, m: usize) -> Option<&Task> {
        self.partitions[p].tasks.iter().find(|task| task.member == m)
    }

    /// Sends an insert of several sources of a group. A source that has left meanwhile gets no answer.
    fn send_joint(&mut self, m: usize, id: GroupId, joint: JointInsert) {
        let Some(&(first, Insert { table, .. })) = joint.first() else { return };
        let source = self.partitions[first as usize].source.clone();
        let tokens = self.rules.tokens;
        let token = if tokens { source.token(NO_RANGE, Some(id), table, 0) } else { String::new() };
        let mut parts = Vec::new();
        for (p, insert) in joint {
            let p = p as usize;
            let Some(t) = self.partitions[p].tasks.iter().position(|task| task.member == m) else { continue };
            if self.partitions[p].tasks[t].group != Some(id) {
                continue;
            }
            parts.extend(self.part(p, t, |held| held.frozen.group.is_some_and(|group| group.id == id), insert));
            self.partitions[p].tasks[t].doing = Doing::Inserting;
        }
        let left: BTreeSet<PartitionId> = parts.iter().flat_map(|part| part.insert.partitions.clone()).collect();
        if parts.is_empty() {
            return self.groups.retain(|grouped| !grouped.group.is_empty());
        }
        self.server.sent.push(Sent {
            member: m,
            replica: self.members[m].replica,
            table,
            group: Some(id),
            joint: true,
            token,
            shares_token: true,
            begun: false,
            left: left.into_iter().collect(),
            parts,
        });
        if !tokens {
            self.begin(self.server.sent.len() - 1);
        }
    }

    /// Takes the windows of all partitions whose tasks wait for one. Those with records become a group.
    fn gather(&mut self, m: usize) {
        let mut taken: Vec<(usize, Batch)> = Vec::new();
        for p in self.may_gather(m) {
            let Some(task) = self.partitions[p].tasks.iter_mut().find(|task| task.member == m) else { continue };
            let fill = task.fill;
            let window = task.buffer.as_mut().and_then(|buffer| buffer.take(fill, |_| true));
            taken.extend(window.map(|(window, end)| (p, Batch::freeze_of(self.rules.stream, window, end))));
        }
        let in_group = |(_, batch): &&(usize, Batch)| !batch.is_empty();
        let names: Vec<(usize, String, OffsetRange)> = taken
            .iter()
            .filter(in_group)
            .filter_map(|(p, batch)| {
                let topic_id = self.task(*p, m)?.id.clone();
                let source = Source { topic_id, ..self.partitions[*p].source.clone() };
                Some((*p, source.name(), batch.range()))
            })
            .collect();
        let id = (names.len() > 1).then(|| id_of(names.iter().map(|(_, name, range)| (name.as_str(), *range))));
        if let Some(id) = id {
            self.server.groups.insert(id, names.iter().map(|(p, ..)| *p).collect());
            let group = Group::new(names.iter().map(|(p, ..)| *p as i32));
            self.groups.push(Grouped { member: m, id, group, sending: None });
        }
        for (p, batch) in taken {
            let Some(t) = self.partitions[p].tasks.iter().position(|task| task.member == m) else { continue };
            self.freeze(p, t, &batch, id.filter(|_| !batch.is_empty()));
        }
    }

    fn freeze(&mut self, p: usize, t: usize, batch: &Batch, group: Option<GroupId>) {
        let task = &mut self.partitions[p].tasks[t];
        let (rows, rejects) = batch.offsets();
        let frozen = Frozen { group: group.map(OfGroup::whole), ..batch.frozen() };
        task.frozen.push(Held { frozen: frozen.clone(), content: Content { rows, rejects }, bytes: batch.bytes() });
        task.group = group.or(task.group);
        task.replaying = false;
        self.on_outcome(p, t, Outcome::Batch(frozen));
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
        self.freeze(p, t, &Batch::freeze_of(self.rules.stream, window, end), None);
    }

    fn begin(&mut self, i: usize) {
        let sent = &self.server.sent[i];
        let is_refused = |p: usize| sent.is_larger_than(self.partitions[p].sink.records_max);
        if sent.parts.iter().any(|part| is_refused(part.partition)) {
            // One batch alone may fit.
            let refused = if sent.joint { Outcome::InsertUnknown } else { Outcome::InsertTooLarge };
            self.refuse(i, refused);
        } else if !self.server.begin(i) {
            let sent = self.server.sent.remove(i);
            self.answer_parts(&sent, |_, _| Outcome::InsertUnknown);
        }
    }

    /// Refuses an insert. One source alone may be the reason, so its group ends.
    fn refuse(&mut self, i: usize, seen: Outcome) {
        let sent = self.server.sent.remove(i);
        if let Some(id) = sent.group.filter(|_| sent.joint) {
            self.grouped(sent.member, id).into_iter().for_each(|grouped| grouped.group.break_up());
            self.leave_those_outside(sent.member, id);
            self.groups.retain(|grouped| grouped.member != sent.member || grouped.id != id);
        }
        self.answer_parts(&sent, |_, _| seen.clone());
    }

    fn apply(&mut self, i: usize, k: usize) {
        for Part { partition, id, .. } in &self.server.sent[i].parts {
            if self.partitions[*partition].sink.is_of_two_ids(id) {
                self.violation = Some(format!("partition {partition}: rows under two names"));
            }
        }
        let Some(clickhouse_partition) = self.server.take(i, k) else { return };
        // If rows are hidden permanently, one needless repeat cannot be distinguished from a needed one.
        let times_max = if self.rules.hides == Hides::ForGood { INSERTS_MAX as u8 } else { 1 };
        let Sent { replica, table, parts, .. } = &self.server.sent[i];
        for Part { partition: p, range, insert, content, .. } in parts {
            if insert.partitions.contains(&clickhouse_partition) {
                self.partitions[*p].sink.apply(*replica, *table, clickhouse_partition, *range, content);
            }
            if let Some(doubled) = self.partitions[*p].sink.more_than(times_max) {
                self.violation = Some(format!("partition {p}: offset {doubled}"));
            }
        }
    }

    /// Answers an insert that is applied. The acknowledgement of a group's insert proves its rows only while the group is whole
    /// and the leases hold.
    fn acknowledge(&mut self, i: usize) {
        let sent = self.server.sent.remove(i);
        let whole = match sent.group {
            Some(id) => self.grouped(sent.member, id).is_some_and(|grouped| grouped.group.is_whole()),
            None => true,
        };
        self.answer_parts(&sent, |world, task| {
            let held = task.lease.holds(world.members[task.member].now) || !guard::is_on(Guard::LeaseOfGroup);
            if sent.group.is_none() || whole && held { Outcome::Inserted } else { Outcome::InsertUnproven }
        });
    }

    fn kill(&mut self, halfway: bool) {
        for i in (0..self.server.sent.len()).filter(|_| halfway) {
            if !self.can_be_halved(&self.server.sent[i]) {
                continue;
            }
            if let Some(&first) = self.server.sent[i].left.first() {
                self.server.remember(i, first);
            }
            let Sent { table, parts, .. } = self.server.sent[i].clone();
            parts.iter().for_each(|part| self.partitions[part.partition].sink.halve(part.range, table));
        }
        for sent in self.server.kill() {
            self.answer_parts(&sent, |_, _| Outcome::InsertUnknown);
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
            let in_group = task.frozen.iter().any(|held| held.frozen.group.is_some());
            if let Some(id) = task.group.take_if(|_| !in_group) {
                let joint = self.grouped(commit.member, id).and_then(|grouped| grouped.group.finish(p as i32));
                self.start_joint(commit.member, id, joint);
            }
        }
        self.answer(p, commit.member, Outcome::CommitDone);
    }

    /// Answers each task that waits for an insert.
    fn answer_parts(&mut self, sent: &Sent, seen: impl Fn(&World, &Task) -> Outcome) {
        for part in sent.parts.iter().filter(|part| part.waiting) {
            let outcome = self.task(part.partition, sent.member).map(|task| seen(self, task));
            outcome.into_iter().for_each(|outcome| self.answer(part.partition, sent.member, outcome));
        }
    }

    fn answer(&mut self, p: usize, member: usize, seen: Outcome) {
        if let Some(t) = self.partitions[p].tasks.iter().position(|task| task.member == member) {
            self.on_outcome(p, t, seen);
        }
    }

    fn on_outcome(&mut self, p: usize, t: usize, seen: Outcome) {
        let step = self.partitions[p].tasks[t].protocol.on_outcome(seen);
        // A task that ends, or starts over, leaves its group.
        let task = &mut self.partitions[p].tasks[t];
        let m = task.member;
        if let Step::Release
        | Step::Stop(_)
        | Step::Do(Action::ReadCommitted | Action::LookAgain(_) | Action::Fill { .. }) = step
            && let Some(id) = task.group.take()
        {
            self.leave(p, m, id);
        }
        let Some(t) = self.partitions[p].tasks.iter().position(|task| task.member == m) else { return };
        let partition = &mut self.partitions[p];
        let task = &mut partition.tasks[t];
        match step {
            // The operator's remedy is a member with more memory.
            Step::Stop(StopReason::ReplayTooLarge { .. }) if self.members[task.member].share_bytes < PLENTY => {
                let member = &mut self.members[task.member];
                member.share_bytes = PLENTY;
                member.intake = Intake::new(PLENTY, self.limits.rows_max);
                let task = partition.tasks.remove(t);
                for p in 0..self.partitions.len() {
                    self.drop_task(p, task.member);
                    let owner = &mut self.partitions[p].owner;
                    *owner = owner.filter(|owner| *owner != task.member);
                }
            }
            // The operator's remedy is another limit.
            Step::Stop(StopReason::InsertTooLarge { .. }) => {
                partition.sink.records_max = None;
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
                partition.owner = partition.owner.filter(|owner| *owner != task.member);
            }
            Step::Stop(StopReason::NotShown { .. } | StopReason::SinkBehind { .. })
                if self.rules.hides == Hides::ForGood && partition.sink.hides() =>
            {
                partition.not_shown = true;
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
            }
            // Rows that the task has seen are lost with a disk.
            Step::Stop(StopReason::NotShown { .. }) if partition.sink.lost > 0 => {
                partition.not_shown = true;
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
            }
            Step::Stop(StopReason::SinkBehind { .. }) if partition.sink.restored => {
                partition.behind = true;
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
            }
            // Retention has deleted the records, so they cannot be counted again.
            Step::Stop(StopReason::RetentionGap { .. }) if partition.sink.restored => {
                partition.not_shown = true;
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
            }
            Step::Stop(reason) if !partition.restamped => {
                self.violation = Some(format!("partition {p} stopped: {reason}"));
            }
            Step::Release | Step::Stop(_) => {
                let task = partition.tasks.remove(t);
                self.members[task.member].intake.forget(p as i32);
                if partition.owner == Some(task.member) && matches!(step, Step::Release) {
                    partition.owner = None;
                }
            }
            Step::Do(action) => {
                if let Action::Insert { range, .. } = &action
                    && !task.frozen.iter().any(|held| held.frozen.range == *range)
                {
                    self.violation = Some(format!("partition {p}: an insert of {range}, which is not at hand"));
                }
                task.doing = Doing::Next(action);
            }
        }
    }
}

impl Task {
    /// librdkafka reads no more of the partition, and reports that by an error.
    fn lose_position(&mut self) {
        self.position = None;
        self.buffer.as_mut().into_iter().for_each(Buffer::lose_position);
    }
}
