//! The world around the protocol: a consumer group, its partitions, and everything that can happen to them.
//!
//! A world is a value. [`World::moves`] lists everything that can happen next, and [`World::make`] makes one of it happen. The
//! simulation draws moves at random ([`super`]), the model tries them all ([`super::model`]). The decisions come from the code
//! that runs in production: [`Buffer`] and [`Intake`] of the reader, [`Batch`](crate::batch::Batch), [`Protocol`], [`Group`],
//! [`Lease`], [`may_commit`](crate::protocol::may_commit), [`Source::token`].
//!
//! The world makes the same assumptions as `docs/limits.md`. A token is remembered for longer than a lease lasts and than an
//! insert is under way. The committed offset is lost only while nobody writes. A commit of an older generation is accepted only
//! while nobody writes. ClickHouse does not die twice between the token and the rows of one batch and table. Nor does it die once there
//! with a batch's own token after somebody has used that of its group. While it shows rows late, it forgets no token, and no late commit is
//! accepted. It remembers the tokens of rows that were shown and are hidden again. Rows are lost with a disk once. A backup is
//! restored only while nobody writes. A backup keeps tokens only if each has its rows. A TTL reaches no rows while the committed
//! offset is lost, or was set back.

mod apply;
pub mod scenarios;

use super::log::{DAYS, Log};
use super::server::{Sent, Server};
use super::sink::{Content, Sink};
use crate::protocol::group::{Group, GroupId, JointInsert};
use crate::protocol::intent::Metadata;
use crate::protocol::lease::Lease;
use crate::protocol::marks::{Insert, Marks, PartitionId};
use crate::protocol::{Action, Committed, Frozen, LOOKS_MAX, Protocol};
use crate::source::{OffsetRange, Source, Table};
use crate::stream::Stream;
use crate::window::Limits;
use crate::window::buffer::{Buffer, Halt};
use crate::window::intake::{Fill, Intake};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SESSION: Duration = Duration::from_secs(40);

/// The guarantees of the servers. The switches show that each guarantee is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// The broker refuses commits of an old generation.
    pub fence: bool,
    /// Marks are read only once no insert of the batch runs.
    pub await_ended: bool,
    /// ClickHouse remembers tokens. Without this, every insert begins when the lease is found valid.
    pub tokens: bool,
    /// ClickHouse refuses every insert of the first partition. The other partitions must still reach their end.
    pub refuses: bool,
    /// Memory of the members.
    pub memory: Memory,
    /// Time for which ClickHouse does not show applied rows, if that happens.
    pub hides: Hides,
    /// Members distinguish ClickHouse's own acknowledgement from that of something in its place.
    pub proves_answers: bool,
    /// A window is taken alone only if no other partition of the member has one.
    pub gathers: bool,
    /// Number of replicas of the tables; 0 for tables of one server. Members use any of them.
    pub replicas: usize,
    /// An insert never gives up on Keeper before its time is over.
    pub outlasts_keeper: bool,
    /// A second replica confirms what is committed, and a replica may lose its disk.
    pub confirms: bool,
    /// Content of the topic.
    pub stream: Stream,
}

impl Rules {
    pub const REAL: Rules = Rules {
        fence: true,
        await_ended: true,
        tokens: true,
        refuses: false,
        memory: Memory::Any,
        hides: Hides::ForAWhile,
        proves_answers: true,
        gathers: false,
        replicas: 0,
        outlasts_keeper: true,
        confirms: false,
        stream: Stream::Events,
    };
}

/// The time for which ClickHouse does not show applied rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hides {
    /// For fewer looks than the protocol makes, as with a cache or a lagging replica.
    ForAWhile,
    /// Permanently, as with a row policy.
    ForGood,
}

/// The memory of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Memory {
    /// Any amount, drawn at random.
    Any,
    /// More than all logs need.
    Plenty,
    /// The first member has plenty, the others have too little for its batches.
    Unequal,
}

/// Memory that no log of a world fills, in bytes.
pub const PLENTY: usize = 1 << 20;

/// The present work of a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Doing {
    /// It is about to perform this action.
    Next(Action),
    /// It has read the counters' ends.
    Progress { from: u64, ends: BTreeMap<PartitionId, u64>, replica: usize },
    /// Waits for the reader.
    Awaiting,
    /// Waits for its commit.
    Committing,
    /// It has found its lease valid, and has not sent anything yet.
    Sending { range: OffsetRange, group: Option<GroupId>, insert: Insert, attempt: u32 },
    /// Waits until the other sources of its group ask for an insert as well.
    Gathering,
    /// Waits for its insert.
    Inserting,
    /// Has read the marks of some tables.
    Marks { range: OffsetRange, marks: Marks, tables: u8, replica: usize },
}

/// The task of one partition in one member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Task {
    member: usize,
    protocol: Protocol,
    doing: Doing,
    /// Topic id in the `source` of the rows that it reads and inserts.
    id: String,
    /// The number of its last fill.
    fill: u64,
    /// Fill of which the reader does not know yet.
    asked: Option<Fill>,
    /// Records that the reader has read for it.
    buffer: Option<Buffer>,
    /// Offset at which the reader continues. It is `None` before the reader may read, and after it has lost its position.
    position: Option<u64>,
    /// True if the reader has paused it.
    paused: bool,
    /// True until the batch is frozen that its fill has to rebuild.
    replaying: bool,
    /// The number of losses of rows that it knows of.
    lost: u32,
    /// The group that it is in.
    group: Option<GroupId>,
    frozen: Vec<Held>,
    lease: Lease,
    /// Time at which the lease was renewed, independent of the lease itself.
    renewed: Option<Duration>,
}

/// A batch that is frozen and not committed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Held {
    frozen: Frozen,
    content: Content,
    bytes: usize,
}

/// A call that compares and commits. Its task may have stopped waiting for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Commit {
    member: usize,
    /// True if a task waits for the answer.
    waiting: bool,
    expected: Option<Committed>,
    wanted: Committed,
    /// Generation and time with which it was sent, after the comparison.
    stamp: Option<(u32, Duration)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Partition {
    source: Source,
    /// True if the brokers report the topic's id.
    tells_id: bool,
    log: Log,
    committed: Option<Committed>,
    owner: Option<usize>,
    tasks: Vec<Task>,
    commits: Vec<Commit>,
    sink: Sink,
    /// True if a commit was sent late with a newer generation. Then a stop is an accepted end.
    restamped: bool,
    /// True if a late commit has set the committed offset back. It stays so until the next batch is committed.
    set_back: bool,
    /// True if a replay was once handed over before it was whole.
    cut_short: bool,
    /// True if a window was once lost on its way.
    window_lost: bool,
    /// True if it stopped because its rows are hidden permanently, or are gone together with their records. That is an accepted
    /// end.
    not_shown: bool,
    /// True if it stopped because rows that were shown are gone. An operator has to delete the committed offset.
    behind: bool,
    /// Number of times that a broker reported old bounds of the log. A broker learns the new ones before a task has looked too
    /// often.
    stale_logs: u32,
}

/// A group of a member, with the insert for which every lease was found valid and that is not sent yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Grouped {
    member: usize,
    id: GroupId,
    group: Group,
    sending: Option<JointInsert>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Member {
    alive: bool,
    /// The replica that it uses.
    replica: usize,
    /// True if it is in the group, as the broker sees it.
    joined: bool,
    generation: u32,
    now: Duration,
    /// Memory that windows and batches may hold, in bytes.
    share_bytes: usize,
    /// Decisions of its reader.
    intake: Intake,
}

/// Something that can happen. The numbers are those of partitions, members, tasks, commits and inserts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    Produce(usize),
    Assign(usize, usize),
    Step(usize, usize),
    /// The reader of a member receives fills, or begins the next one.
    Fill(usize),
    /// The reader gets the next record of a partition.
    Read(usize, usize),
    /// The reader reaches the end of a log.
    End(usize, usize),
    /// The reader of a member resumes partitions for which there is memory again.
    Resume(usize),
    /// A task takes a window.
    Take(usize, usize),
    /// A member takes the windows of all its partitions whose tasks wait for one, as a group.
    Gather(usize),
    /// A member sends the insert of a group.
    Send(usize),
    /// The sources of a group wait for an absent one no longer.
    LeaveAbsent(usize),
    /// ClickHouse refuses an insert.
    Refuse(usize),
    Compare(usize, usize),
    Deliver(usize, usize),
    Begin(usize),
    Apply(usize, usize),
    Acknowledge(usize),
    /// A replica fetches the rows of a partition that it lacks.
    Fetch(usize, usize),
    /// A replica takes away rows of a partition that no other replica has.
    Vanish(usize),
    /// No insert of a partition can arrive any more that was sent before tokens were lost.
    EndQuarantine(usize),
    /// The group forgets a dead member.
    Forget(usize),
    /// A member that is not in the group notices that, or is started again.
    Rejoin(usize),
    /// The operator applies the remedy for a partition whose rows are gone.
    Remedy(usize),
    Fault(Fault),
}

/// A fault that the world can inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A process dies; its sent requests are on their way.
    Crash(usize),
    /// A process is stopped for longer than its session. The group forgets it, and it continues without knowing.
    Expire(usize),
    /// A process is stopped for longer than a lease, and stays in the group.
    Suspend(usize),
    /// A partition is taken from its owner, whose task is cut off.
    Revoke(usize),
    /// A task is asked to end at a point where it can.
    Drain(usize, usize),
    /// A commit is accepted and its answer is lost.
    LoseCommitAnswer(usize, usize),
    /// A task no longer waits for a commit, which stays on its way.
    AbandonCommit(usize, usize),
    /// librdkafka sends a commit late, with the generation that it has then.
    Restamp(usize, usize),
    /// A connection is cut before the insert reached the server.
    DropInsert(usize),
    /// A task no longer waits for an insert, which stays on its way.
    AbandonInsert(usize),
    /// A member changes to another replica.
    Switch(usize),
    /// A replica loses its disk, and with it the rows that the other one has not fetched. `keeps_tokens`: Keeper remembers the tokens.
    LoseDisk { replica: usize, keeps_tokens: bool },
    /// An insert gives up on Keeper, and its replica shows the rows for a while.
    GiveUpKeeper(usize),
    /// ClickHouse dies and comes back. `halfway`: it dies after it stored a token and before it stored the rows.
    KillSink { halfway: bool },
    /// Tokens leave the deduplication window.
    ForgetTokens(usize),
    /// From now on ClickHouse refuses batches of more records than this, or accepts all again.
    Narrow(usize, Option<u64>),
    /// Rows that are applied from now on are not shown.
    Hide(usize),
    /// Brokers begin to report topic ids, or a broker that reports none answers from now on.
    TellIds(usize),
    /// Nothing of a table is shown.
    HideTable(usize, Table),
    /// The state before this offset is shown.
    ShowOld(usize, u64),
    /// Rows from this offset on are gone, and their tokens may be kept: a backup is restored, or parts are lost.
    Restore(usize, u64, bool),
    /// Something in the place of ClickHouse acknowledges an insert.
    Answer(usize),
    /// The TTL reaches one more day.
    Age(usize),
    /// The TTL takes away the rows that it has reached.
    RemoveExpired(usize),
    /// Retention removes records that are committed.
    DeleteRecords(usize),
    /// The committed offset is lost.
    LoseCommitted(usize),
    /// A broker with an old state reports that the log ends here.
    StaleEnd(usize, usize),
    /// The same happens when a task asks for the log's bounds.
    StaleLog(usize, usize),
    /// The reader loses its position, as after an unclean election.
    LosePosition(usize, usize),
    /// The oldest replay of a member makes no progress, as its broker is away.
    Stall(usize),
    /// The reader hands a replay over before it is whole. No order of events does that; a defect would.
    CutShort(usize, usize),
    /// A window is lost on its way to its task. No order of events does that; a defect would.
    LoseWindow(usize, usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub rules: Rules,
    pub faults_left: u32,
    /// The only kinds of faults that happen, if any are named.
    pub focus: &'static [&'static str],
    generation: u32,
    fills: u64,
    limits: Limits,
    members: Vec<Member>,
    partitions: Vec<Partition>,
    server: Server,
    groups: Vec<Grouped>,
    /// Violation that has occurred, if any: something that must never happen.
    pub violation: Option<String>,
}

impl World {
    /// Creates a world. `shares`: for each member, the bytes that its windows and batches may hold. `rows_max`: number of records
    /// of a batch.
    pub fn new(rules: Rules, shares: &[usize], rows_max: u64, logs: Vec<Log>, faults: u32) -> World {
        let partition = |(number, log): (usize, Log)| Partition {
            source: Source {
                cluster: String::new(),
                topic: "t".into(),
                topic_id: "id".into(),
                partition: number as i32,
            },
            tells_id: true,
            committed: None,
            owner: None,
            tasks: Vec::new(),
            commits: Vec::new(),
            sink: Sink::new(rules.stream, log.end() as usize, rules.replicas),
            restamped: false,
            set_back: false,
            cut_short: false,
            window_lost: false,
            not_shown: false,
            behind: false,
            stale_logs: 0,
            log,
        };
        World {
            rules,
            faults_left: faults,
            focus: &[],
            generation: 0,
            fills: 0,
            limits: Limits { rows_max, bytes_max: usize::MAX, days_max: usize::MAX },
            members: shares
                .iter()
                .map(|&share_bytes| Member {
                    alive: true,
                    replica: 0,
                    joined: true,
                    generation: 0,
                    now: Duration::ZERO,
                    share_bytes,
                    intake: Intake::new(share_bytes, rows_max),
                })
                .collect(),
            partitions: logs.into_iter().enumerate().map(partition).collect(),
            server: Server::default(),
            groups: Vec::new(),
            violation: None,
        }
    }

    /// True if everything is applied and committed.
    pub fn is_done(&self) -> bool {
        self.partitions.iter().skip(usize::from(self.rules.refuses)).all(|p| {
            let end = p.log.end();
            let committed = p.set_back || p.committed.as_ref().is_some_and(|c| c.offset == end);
            let applied = p.log.high == end && p.sink.missing_below(end, &p.log).is_none();
            let stopped = (p.restamped || p.not_shown) && p.tasks.is_empty();
            (committed && applied || stopped) && !self.server.has_sent(p.number())
        })
    }

    /// True if a partition has stopped because its rows are hidden.
    pub fn has_not_shown(&self) -> bool {
        self.partitions.iter().any(|p| p.not_shown)
    }

    /// Returns everything that can happen next, including faults while there are any left.
    pub fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        if self.violation.is_some() {
            return moves;
        }
        for (m, member) in self.members.iter().enumerate() {
            let settled = self.partitions.iter().all(|p| p.owner != Some(m));
            match member.joined {
                false if settled => moves.push(Move::Rejoin(m)),
                true if !member.alive => moves.push(Move::Forget(m)),
                _ => {}
            }
            if member.alive && (member.intake.can_begin() || self.has_asked(m)) {
                moves.push(Move::Fill(m));
            }
            if member.alive && self.partitions.iter().any(|p| p.tasks.iter().any(|task| self.may_resume(task, m, p))) {
                moves.push(Move::Resume(m));
            }
            if self.may_gather(m).len() > 1 {
                moves.push(Move::Gather(m));
            }
        }
        for (g, grouped) in self.groups.iter().enumerate() {
            match &grouped.sending {
                Some(_) => moves.push(Move::Send(g)),
                None if self.has_absent(grouped) => moves.push(Move::LeaveAbsent(g)),
                None => {}
            }
        }
        for (i, sent) in self.server.sent.iter().enumerate() {
            match (sent.begun, sent.left.len()) {
                _ if self.rules.refuses && sent.has(0) => moves.push(Move::Refuse(i)),
                (false, _) => moves.push(Move::Begin(i)),
                (true, 0) => moves.push(Move::Acknowledge(i)),
                (true, left) => moves.extend((0..left).map(|k| Move::Apply(i, k))),
            }
        }
        for p in 0..self.partitions.len() {
            self.partition_moves(p, &mut moves);
        }
        if self.faults_left > 0 {
            self.faults(&mut moves);
        }
        moves
    }

    /// Returns the name of a move's kind, for counting and weighing. A request for which nobody waits any more is another kind.
    /// So is an action of a member for a partition that it lost.
    pub fn kind(&self, chosen: Move) -> String {
        let late = match chosen {
            Move::Step(p, t) => self.partitions[p].owner != Some(self.partitions[p].tasks[t].member),
            Move::Compare(p, i) | Move::Deliver(p, i) => !self.partitions[p].commits[i].waiting,
            Move::Begin(i) | Move::Apply(i, _) => self.server.sent[i].is_late(),
            _ => false,
        };
        let name = match chosen {
            Move::Fault(fault) => name(&fault),
            other => name(&other),
        };
        if late { format!("late {name}") } else { name }
    }

    /// Returns the text of a move with its objects, for reading a replay.
    pub fn describe(&self, chosen: Move) -> String {
        let about = match chosen {
            Move::Step(p, t) | Move::Take(p, t) | Move::Read(p, t) | Move::End(p, t) => {
                let Task { member, doing, position, paused, buffer, .. } = &self.partitions[p].tasks[t];
                let read = buffer.as_ref().map(|buffer| (buffer.window().start(), buffer.until(), buffer.closed()));
                format!("member {member} {doing:?}, at {position:?}, paused {paused}, {read:?}")
            }
            Move::Compare(p, i) | Move::Deliver(p, i) => {
                let Commit { member, wanted, stamp, .. } = &self.partitions[p].commits[i];
                let metadata = String::from_utf8_lossy(&wanted.metadata);
                format!("member {member} commits {} {metadata:?} {stamp:?}", wanted.offset)
            }
            Move::Begin(i) | Move::Apply(i, _) | Move::Acknowledge(i) => format!("{:?}", self.server.sent[i]),
            Move::Send(g) | Move::LeaveAbsent(g) => format!("{:?}", self.groups[g]),
            _ => String::new(),
        };
        format!("{chosen:?} {about}")
    }

    fn partition_moves(&self, p: usize, moves: &mut Vec<Move>) {
        let partition = &self.partitions[p];
        if partition.log.high < partition.log.end() {
            moves.push(Move::Produce(p));
        }
        moves.extend((0..self.rules.replicas).filter(|&r| partition.sink.lags(r)).map(|r| Move::Fetch(p, r)));
        if partition.sink.quarantined && !self.has_older_inserts(partition) {
            moves.push(Move::EndQuarantine(p));
        }
        if partition.sink.has_phantoms() {
            moves.push(Move::Vanish(p));
        }
        if partition.behind && self.is_idle(partition) {
            moves.push(Move::Remedy(p));
        }
        if partition.owner.is_none() && !partition.behind {
            let able = |m: &usize| self.members[*m].alive && self.members[*m].joined;
            moves.extend((0..self.members.len()).filter(able).map(|m| Move::Assign(p, m)));
        }
        for (t, task) in partition.tasks.iter().enumerate() {
            self.task_moves(p, t, task, moves);
        }
        for (i, commit) in partition.commits.iter().enumerate() {
            // A task has one call at a time that compares and commits, and one connection keeps their order.
            let is_open =
                || !partition.commits.iter().any(|other| other.member == commit.member && other.stamp.is_some());
            match commit.stamp {
                Some(_) => moves.push(Move::Deliver(p, i)),
                None if is_open() => moves.push(Move::Compare(p, i)),
                None => {}
            }
        }
    }

    /// Returns the partitions of a member whose tasks wait for a batch that is no replay, and have one.
    fn may_gather(&self, m: usize) -> Vec<usize> {
        let waits = |task: &&Task| {
            task.member == m && task.awaits() && task.has_batch() && !task.replaying && task.group.is_none()
        };
        let ready = |p: &&Partition| p.tasks.iter().any(|task| waits(&task));
        self.partitions.iter().filter(ready).map(Partition::number).collect()
    }

    /// True if another partition of the member has a batch to take, or reads one.
    fn has_others_to_come(&self, p: usize, m: usize) -> bool {
        let comes = |task: &Task, log: &Log| {
            let reads = || task.position.is_some_and(|position| log.next(position).is_some());
            let asks = matches!(
                task.doing,
                Doing::Next(Action::ReadCommitted | Action::ReadProgress { .. } | Action::Fill { .. })
                    | Doing::Progress { .. }
            );
            task.member == m && (asks || task.awaits() && (task.asked.is_some() || task.has_batch() || reads()))
        };
        let others = self.partitions.iter().filter(|other| other.number() != p);
        others.into_iter().any(|other| other.tasks.iter().any(|task| comes(task, &other.log)))
    }

    /// True if a source of the group waits, and another one does neither wait nor insert.
    fn has_absent(&self, grouped: &Grouped) -> bool {
        let doing = |what: &Doing| {
            let does =
                |task: &Task| task.group == Some(grouped.id) && task.member == grouped.member && task.doing == *what;
            self.partitions.iter().any(|p| p.tasks.iter().any(does))
        };
        doing(&Doing::Gathering) && !doing(&Doing::Inserting)
    }

    fn task_moves(&self, p: usize, t: usize, task: &Task, moves: &mut Vec<Move>) {
        let log = &self.partitions[p].log;
        if let (Some(buffer), Some(position), false) = (&task.buffer, task.position, task.paused) {
            match position < log.low || log.next(position).is_some() {
                true => moves.push(Move::Read(p, t)),
                false if buffer.until().is_some() || buffer.window().next() < log.high => moves.push(Move::End(p, t)),
                false => {}
            }
        }
        match &task.doing {
            Doing::Committing | Doing::Inserting | Doing::Gathering => {}
            Doing::Awaiting | Doing::Next(Action::AwaitBatch) => {
                let gathers = self.rules.gathers && !task.replaying && self.has_others_to_come(p, task.member);
                if task.has_batch() && !gathers {
                    moves.push(Move::Take(p, t));
                }
                if self.halt(task).is_some() {
                    moves.push(Move::Step(p, t));
                }
            }
            Doing::Next(Action::ReadMarks { range, group, .. })
                if self.rules.await_ended
                    && self.server.is_running(self.members[task.member].replica, p, *range, *group) => {}
            Doing::Next(Action::ReadMarks { quiet: true, .. }) if !self.nobody_inserts(&self.partitions[p]) => {}
            Doing::Next(Action::TakeBatch) => {
                moves.push(Move::Step(p, t));
                if task.has_batch() {
                    moves.push(Move::Take(p, t));
                }
            }
            _ => moves.push(Move::Step(p, t)),
        }
    }

    /// True if an insert could still arrive that was sent before its token was lost.
    fn has_older_inserts(&self, partition: &Partition) -> bool {
        let p = partition.number();
        let is_sending = |grouped: &Grouped| grouped.sending.iter().flatten().any(|(number, _)| *number as usize == p);
        let sends = |task: &Task| matches!(task.doing, Doing::Sending { .. });
        self.server.has_sent(p) || self.groups.iter().any(is_sending) || partition.tasks.iter().any(sends)
    }

    fn halt(&self, task: &Task) -> Option<Halt> {
        task.buffer.as_ref().and_then(|buffer| buffer.halted(task.fill))
    }

    /// Returns the bytes that the windows and batches of a member hold.
    fn used_bytes(&self, m: usize) -> usize {
        self.partitions.iter().flat_map(|p| &p.tasks).filter(|task| task.member == m).map(Task::held_bytes).sum()
    }

    fn has_asked(&self, m: usize) -> bool {
        self.partitions.iter().flat_map(|p| &p.tasks).any(|task| task.member == m && task.asked.is_some())
    }

    fn may_resume(&self, task: &Task, m: usize, partition: &Partition) -> bool {
        let may =
            |intake: &Intake| intake.may_resume(partition.source.partition, task.held_bytes(), self.used_bytes(m));
        task.member == m && task.paused && may(&self.members[m].intake)
    }

    fn faults(&self, moves: &mut Vec<Move>) {
        let in_focus = |fault: &Fault| self.focus.is_empty() || self.focus.contains(&name(fault).as_str());
        let mut add = |fault| moves.extend(Some(fault).filter(in_focus).map(Move::Fault));
        for (m, member) in self.members.iter().enumerate() {
            if member.alive {
                add(Fault::Crash(m));
                add(Fault::Suspend(m));
            }
            if member.alive && self.rules.replicas > 0 {
                add(Fault::Switch(m));
            }
            if member.alive && member.joined {
                add(Fault::Expire(m));
            }
            if member.alive && !member.intake.replays().is_empty() {
                add(Fault::Stall(m));
            }
        }
        let may_lose = self.rules.confirms && self.partitions.iter().all(|p| p.sink.lost == 0);
        for replica in (0..self.rules.replicas).filter(|_| may_lose) {
            [true, false].into_iter().for_each(|keeps_tokens| add(Fault::LoseDisk { replica, keeps_tokens }));
        }
        if self.server.sent.iter().any(|sent| sent.begun) {
            add(Fault::KillSink { halfway: false });
        }
        if self.server.sent.iter().any(|sent| self.can_be_halved(sent)) {
            add(Fault::KillSink { halfway: true });
        }
        for (i, sent) in self.server.sent.iter().enumerate() {
            if !sent.begun {
                add(Fault::DropInsert(i));
            }
            if !sent.is_late() {
                add(Fault::AbandonInsert(i));
            }
            if sent.begun && !sent.left.is_empty() && !self.rules.outlasts_keeper {
                add(Fault::GiveUpKeeper(i));
            }
            if !sent.is_late() && !sent.begun {
                add(Fault::Answer(i));
            }
        }
        for (p, partition) in self.partitions.iter().enumerate() {
            if partition.owner.is_some() {
                add(Fault::Revoke(p));
            }
            for (t, task) in partition.tasks.iter().enumerate() {
                if self.can_drain(task) {
                    add(Fault::Drain(p, t));
                }
                let looks = matches!(task.doing, Doing::Next(Action::ReadCommitted | Action::LookAgain(_)));
                // The content of the log at the loss of the committed offset may be in the tables already.
                let knows = partition.committed.is_some() || !partition.sink.restored;
                if looks && knows && partition.stale_logs + 1 < LOOKS_MAX {
                    add(Fault::StaleLog(p, t));
                }
                let Some((buffer, _)) = task.buffer.as_ref().zip(task.position) else { continue };
                add(Fault::LosePosition(p, t));
                // The gap shows at the next batch.
                let more_comes = buffer.window().next() < partition.log.end();
                if buffer.has_batch(task.fill) && more_comes && !task.replaying && !partition.window_lost {
                    add(Fault::LoseWindow(p, t));
                }
                if buffer.until().is_some() && !task.paused {
                    add(Fault::StaleEnd(p, t));
                    if !partition.cut_short && partition.is_announced() {
                        add(Fault::CutShort(p, t));
                    }
                }
            }
            for (i, commit) in partition.commits.iter().enumerate() {
                if commit.waiting {
                    add(Fault::AbandonCommit(p, i));
                }
                if let Some((generation, _)) = commit.stamp {
                    let member = &self.members[commit.member];
                    if member.joined && generation == self.generation {
                        add(Fault::LoseCommitAnswer(p, i));
                    } else if member.joined && member.alive && self.nobody_inserts(partition) && partition.is_healthy()
                    {
                        add(Fault::Restamp(p, i));
                    }
                }
            }
            add(Fault::TellIds(p));
            match partition.sink.records_max {
                Some(_) => add(Fault::Narrow(p, None)),
                None => [1, 3].into_iter().for_each(|most| add(Fault::Narrow(p, Some(most)))),
            }
            if self.rules.tokens && self.nobody_inserts(partition) && !partition.sink.hides() {
                add(Fault::ForgetTokens(p));
            }
            // Twice in a row would be longer than the protocol looks.
            let may_hide = self.rules.tokens && self.rules.replicas == 0 && !partition.sink.has_hidden;
            if may_hide && !partition.restamped && self.server.has_sent(p) {
                add(Fault::Hide(p));
            }
            let may_hide_old = may_hide && !partition.restamped;
            if may_hide_old && !partition.sink.has_forgotten && partition.committed.is_some() {
                partition.sink.older().into_iter().for_each(|end| add(Fault::ShowOld(p, end)));
                self.rules.stream.tables().iter().for_each(|&table| add(Fault::HideTable(p, table)));
            }
            match &partition.committed {
                Some(committed) if committed.offset > partition.log.low && !partition.sink.restored => {
                    add(Fault::DeleteRecords(p));
                }
                _ => {}
            }
            let ages = partition.sink.expired_before();
            let is_idle = self.is_idle(partition);
            if is_idle && partition.committed.is_some() && partition.log.low == 0 && partition.is_healthy() {
                add(Fault::LoseCommitted(p));
            }
            if is_idle && partition.is_healthy() && !partition.restamped {
                // With no row left, nothing shows which deleted records were never counted again. If a row was never known to be
                // shown, nobody can notice that it is gone.
                let is_noticed = |end: &u64| partition.marked() > Some(*end) && (*end > 0 || partition.log.low == 0);
                for end in partition.sink.older().into_iter().filter(is_noticed) {
                    // A table without any row also looks like a new one.
                    if end > 0 && !partition.sink.has_halved() {
                        add(Fault::Restore(p, end, true));
                    }
                    if self.forgettable(p) == self.server.groups_of(p) {
                        add(Fault::Restore(p, end, false));
                    }
                }
            }
            let may_age = self.rules.stream == Stream::Events
                && !partition.restamped
                && !partition.sink.restored
                && partition.committed.is_some();
            if may_age && DAYS.iter().any(|(day, _)| *day > ages) {
                add(Fault::Age(p));
            }
            if partition.sink.may_remove_expired() {
                add(Fault::RemoveExpired(p));
            }
        }
    }

    fn can_drain(&self, task: &Task) -> bool {
        match &task.doing {
            Doing::Awaiting | Doing::Progress { .. } => true,
            Doing::Next(action) => {
                matches!(
                    action,
                    Action::ReadCommitted
                        | Action::LookAgain(_)
                        | Action::ReadProgress { .. }
                        | Action::Fill { .. }
                        | Action::AwaitBatch
                        | Action::Commit { announces: true, .. }
                        | Action::ReadMarks { quiet: true, .. }
                        | Action::ReadMarks { look: 1.., .. }
                )
            }
            _ => false,
        }
    }

    /// True if no insert is under way, and none may still be sent under a lease that holds.
    fn nobody_inserts(&self, partition: &Partition) -> bool {
        let p = partition.number();
        let is_sending = |grouped: &Grouped| grouped.sending.iter().flatten().any(|(number, _)| *number as usize == p);
        let inserts = |task: &Task| match &task.doing {
            Doing::Sending { .. } => true,
            // The action itself waits until nothing can arrive, for longer than its lease lasts.
            Doing::Next(Action::ReadMarks { quiet: true, .. }) => false,
            Doing::Next(Action::Insert { .. } | Action::ReadMarks { .. }) | Doing::Marks { .. } | Doing::Gathering => {
                task.renewed == Some(self.members[task.member].now)
            }
            _ => false,
        };
        !self.server.has_sent(p) && !self.groups.iter().any(is_sending) && !partition.tasks.iter().any(inserts)
    }

    /// True if nobody works on a partition, and no request is on its way.
    fn is_idle(&self, partition: &Partition) -> bool {
        partition.tasks.is_empty() && partition.commits.is_empty() && !self.server.has_sent(partition.number())
    }

    /// Returns the groups with this partition whose tokens may leave the deduplication window: nobody inserts any of their batches.
    fn forgettable(&self, p: usize) -> BTreeSet<GroupId> {
        let is_quiet = |group: &GroupId| {
            let may = |p: &Partition| self.nobody_inserts(p) && !p.sink.hides();
            self.server.groups[group].iter().all(|&other| may(&self.partitions[other]))
        };
        self.server.groups_of(p).into_iter().filter(is_quiet).collect()
    }

    /// True if ClickHouse may die after it has stored the token of this insert and before it stores the rows.
    fn can_be_halved(&self, sent: &Sent) -> bool {
        let is_first =
            sent.parts.iter().all(|part| self.partitions[part.partition].sink.can_be_halved(part.range, sent.table));
        let is_shared = sent.group.is_none() || sent.shares_token;
        // On a replica, one transaction in Keeper stores both.
        let can = self.rules.replicas == 0 && sent.begun && !sent.left.is_empty();
        can && !sent.token.is_empty() && is_first && is_shared
    }
}

/// Returns the name of a kind of move or fault.
fn name(kind: &impl std::fmt::Debug) -> String {
    let text = format!("{kind:?}");
    text.split(['(', ' ']).next().unwrap_or_default().to_owned()
}

impl Task {
    /// True if it waits for a batch.
    fn awaits(&self) -> bool {
        matches!(self.doing, Doing::Awaiting | Doing::Next(Action::AwaitBatch))
    }

    /// True if its reader has a window for it to take. The window may not be due yet.
    fn has_batch(&self) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| buffer.has_batch(self.fill))
    }

    fn held_bytes(&self) -> usize {
        self.buffer.as_ref().map_or(0, Buffer::bytes) + self.frozen.iter().map(|held| held.bytes).sum::<usize>()
    }
}

impl Partition {
    /// Returns the greatest mark that its tables have certainly shown.
    fn marked(&self) -> Option<u64> {
        Metadata::decode(&self.committed.as_ref()?.metadata).ok()??.marked
    }

    fn number(&self) -> usize {
        self.source.partition as usize
    }

    /// True if its tables show everything that was ever applied.
    fn is_healthy(&self) -> bool {
        !self.sink.hides() && !self.sink.restored && self.sink.expired_before() == 0
    }

    /// True if the committed offset announces a batch. Then its number of records is known.
    fn is_announced(&self) -> bool {
        let metadata =
            self.committed.as_ref().and_then(|committed| Metadata::decode(&committed.metadata).ok().flatten());
        metadata.is_some_and(|metadata| metadata.next.is_some())
    }
}
