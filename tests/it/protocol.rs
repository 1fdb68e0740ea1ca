//! Tests the protocol on a real ClickHouse, over a log in memory that stands in for a Kafka partition. Every step of
//! it is cut short once, and another member goes on from the committed offset.

use futures::{StreamExt as _, stream};
use std::collections::VecDeque;
use tallyhouse::clickhouse::client::Client;
use tallyhouse::clickhouse::error::ClickHouseError;
use tallyhouse::clickhouse::recipients;
use tallyhouse::clickhouse::schema::Schema;
use tallyhouse::clickhouse::sink::{OpenBatch, Sink};
use tallyhouse_core::batch::{Batch, Part};
use tallyhouse_core::decode::{TimeBounds, decode};
use tallyhouse_core::protocol::marks::Progress;
use tallyhouse_core::protocol::{Action, Committed, LogView, Outcome, Protocol, Step, may_commit};
use tallyhouse_core::source::{OffsetRange, Source};
use tallyhouse_core::window::{Record, Window};

const RECORDS_PER_BATCH: usize = 40;
const RECORDS: u64 = 100;
/// Number of cases that run side by side. Each mostly waits for an answer.
const CASES_AT_A_TIME: usize = 4;
const BOUNDS: TimeBounds = TimeBounds { past_seconds_max: i64::MAX / 2, future_seconds_max: i64::MAX / 2 };

/// One partition's log and its committed offset.
struct Log {
    records: Vec<(u64, String)>,
    committed: Option<Committed>,
}

impl Log {
    /// Makes a log with events of one workspace, of two days around a month's end, some of them broken. Its offsets have gaps as
    /// transactions leave them.
    fn new(workspace: i32) -> Log {
        let records = (0..RECORDS).map(|n| {
            let payload = match n % 10 {
                9 => format!("broken {n}"),
                _ => format!(
                    r#"{{"campaign_id":"{:016x}{:016x}","workspace_id":"{:032x}","email":"P{n}@EXAMPLE.com","event_type":"{}","event_time":"2026-{}","metadata":{{"n": {n}}}}}"#,
                    workspace,
                    n % 3,
                    workspace,
                    ["delivered", "open", "click"][n as usize % 3],
                    if n % 2 == 0 { "10-31T23:59:59.999999" } else { "11-01T00:00:00" },
                ),
            };
            (n * 3, payload)
        });
        Log { records: records.collect(), committed: None }
    }

    fn high(&self) -> u64 {
        self.records.last().map_or(0, |(offset, _)| offset + 1)
    }
}

/// A fault at one step of a member.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The member dies after it carried the step out, which is before the next one.
    CrashAfter,
    /// The step is carried out, and its answer is lost.
    AnswerLost,
    /// The lease is found expired.
    LeaseExpired,
    /// An insert is applied to the first of its ClickHouse partitions only; the member dies, and the committed offset is lost.
    HalfAppliedAndForgotten,
}

/// The effect of a step that a fault can change.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Insert,
    Commit,
    /// It changes nothing outside of the member: a crash after it leaves what a crash after the step before leaves.
    Inside,
}

impl Fault {
    /// True if the fault at a step of this kind leaves another world than a run without it, or with it at the step before.
    fn matters_at(self, kind: Kind) -> bool {
        match self {
            Fault::CrashAfter | Fault::AnswerLost => kind != Kind::Inside,
            Fault::LeaseExpired => kind == Kind::Insert,
            Fault::HalfAppliedAndForgotten => true,
        }
    }
}

struct Member<'a> {
    log: &'a mut Log,
    sink: &'a Sink,
    source: &'a Source,
    position: u64,
    frozen: VecDeque<Batch>,
}

impl Member<'_> {
    /// Runs an assignment to the log's end, with a fault at one step. Returns the steps taken.
    async fn run(mut self, fault: Option<(usize, Fault)>) -> Vec<Kind> {
        let (mut protocol, first) = Protocol::start();
        let mut next = Step::Do(first);
        let mut steps = Vec::new();
        loop {
            assert!(steps.len() < 1_000, "no end at {next:?}");
            let fault = fault.filter(|(at, _)| *at == steps.len()).map(|(_, fault)| fault);
            let mut action = match next {
                Step::Release => return steps,
                Step::Stop(reason) | Step::Do(Action::LookAgain(reason)) => panic!("stopped: {reason}"),
                Step::Do(action) => action,
            };
            let kind = match &action {
                Action::Insert { .. } => Kind::Insert,
                Action::Commit { .. } => Kind::Commit,
                _ => Kind::Inside,
            };
            steps.push(kind);
            if fault == Some(Fault::LeaseExpired) {
                next = protocol.on_outcome(Outcome::LeaseExpired);
                continue;
            }
            if let Action::Insert { insert, .. } = &mut action
                && fault == Some(Fault::HalfAppliedAndForgotten)
            {
                insert.partitions.truncate(1);
            }
            let seen = self.perform(action).await;
            next = match (fault, kind) {
                (Some(Fault::HalfAppliedAndForgotten), _) => {
                    self.log.committed = None;
                    return steps;
                }
                (Some(Fault::CrashAfter), _) => return steps,
                (Some(Fault::AnswerLost), Kind::Insert) => protocol.on_outcome(Outcome::InsertUnknown),
                (Some(Fault::AnswerLost), _) => protocol.on_outcome(Outcome::CommitFailed),
                _ => protocol.on_outcome(seen),
            };
        }
    }

    async fn perform(&mut self, action: Action) -> Outcome {
        match action {
            Action::ReadCommitted => Outcome::Log(LogView {
                committed: self.log.committed.clone(),
                topic_id: self.source.topic_id.clone(),
                ids_of_rows: Vec::new(),
                cluster_id: String::new(),
                low: 0,
                high: self.log.high(),
            }),
            Action::ReadProgress { from } => Outcome::Progress(self.sink.progress(from, self.source).await.unwrap()),
            Action::Fill { from, until, .. } => {
                self.position = from;
                self.frozen.clear();
                self.freeze(until, usize::MAX).map_or(Outcome::Drained, Outcome::Batch)
            }
            Action::AwaitBatch => self.freeze(None, RECORDS_PER_BATCH).map_or(Outcome::Drained, Outcome::Batch),
            Action::TakeBatch => self.freeze(None, RECORDS_PER_BATCH).map_or(Outcome::NoBatch, Outcome::Batch),
            Action::Commit { expected, wanted, .. } => {
                if !may_commit(self.log.committed.as_ref(), expected.as_ref(), &wanted) {
                    return Outcome::CommitOvertaken;
                }
                self.frozen.retain(|batch| batch.range().end > wanted.offset);
                self.log.committed = Some(wanted);
                Outcome::CommitDone
            }
            Action::Insert { range, group, insert, attempt } => {
                let batch = self.frozen.iter().find(|batch| batch.range() == range).unwrap();
                let token = self.source.token(range, group, insert.table, attempt);
                let parts = [Part { batch, partitions: &insert.partitions, source: &self.source.name() }];
                self.sink.insert(insert.table, &parts, &token, &token, || true).await.unwrap();
                Outcome::Inserted
            }
            Action::ReadMarks { range, group, .. } => {
                self.sink.await_ended(range, group, self.source).await.unwrap();
                Outcome::Marks(self.sink.marks(range, self.source, None).await.unwrap())
            }
            Action::LookAgain(_) => unreachable!("it ends the run"),
        }
    }

    fn freeze(&mut self, until: Option<u64>, records_max: usize) -> Option<tallyhouse_core::protocol::Frozen> {
        let records_max = if until.is_some() { records_max } else { RECORDS_PER_BATCH };
        let mut window = Window::new(self.position);
        let records = self.log.records.iter().filter(|(offset, _)| *offset >= self.position);
        for (offset, payload) in
            records.take_while(|(offset, _)| until.is_none_or(|end| *offset < end)).take(records_max)
        {
            let payload = Some(payload.as_bytes());
            let record = Record { offset: *offset, timestamp_ms: Some(0), key: Some(b"k"), payload };
            window.push(&record, &decode(payload, None, &BOUNDS));
        }
        if window.is_empty() && until.is_none() {
            return None;
        }
        let batch = Batch::freeze(window, until.unwrap_or(0));
        self.position = batch.range().end;
        let frozen = batch.frozen();
        self.frozen.push_back(batch);
        Some(frozen)
    }
}

fn source(partition: i32) -> Source {
    Source { cluster: "c".into(), topic: "events".into(), topic_id: "kq3vX0aaaaaaaaaaaaaaaa".into(), partition }
}

async fn migrated(url: &str, database: &str) -> (Client, Sink) {
    let client = crate::schema::migrated(url, database).await;
    let key = recipients::key(&client).await.unwrap();
    (client.clone(), Sink::new(client, Schema::single()).with_recipients(Some(key)))
}

async fn run(log: &mut Log, sink: &Sink, source: &Source, fault: Option<(usize, Fault)>) -> Vec<Kind> {
    Member { log, sink, source, position: 0, frozen: VecDeque::new() }.run(fault).await
}

/// Checks that every record is a row or a reject exactly once, and that the counters are the GROUP BY of the rows.
async fn assert_exact(client: &Client, source: &Source, what: &str) {
    let one = async |sql: &str| client.query(sql).bind(source.name()).scalar_u64().await.unwrap();
    let rejects = one("SELECT count() FROM rejected_events WHERE source = ?").await;
    let rows = one("SELECT count() FROM email_events WHERE source = ?").await;
    let distinct = one("SELECT uniqExact(source_offset) FROM email_events WHERE source = ?").await;
    assert_eq!((rows, distinct, rejects), (RECORDS * 9 / 10, RECORDS * 9 / 10, RECORDS / 10), "{what}");
    let key = "toDate(event_time) AS day, event_type, campaign_id, workspace_id";
    let differences = client
        .query(&format!(
            "SELECT count() FROM (SELECT {key}, count() AS n FROM email_events WHERE source = ? GROUP BY ALL) AS r \
             FULL JOIN (SELECT day, event_type, campaign_id, workspace_id, sum(total) AS n FROM daily WHERE workspace_id = toUUID(?) GROUP BY ALL) AS d \
             USING (day, event_type, campaign_id, workspace_id) WHERE r.n != d.n"
        ))
        .bind(source.name())
        .bind(format!("{:032x}", source.partition));
    assert_eq!(differences.scalar_u64().await.unwrap(), 0, "{what}: daily is not the GROUP BY of the rows");
    let recounted = recipients::recount("source = ?");
    let stored = recipients::stored("startsWith(replaceAll(toString(campaign_id), '-', ''), ?)");
    let differences = client
        .query(&format!(
            "SELECT count() FROM (SELECT * FROM ({recounted} UNION ALL {stored}) GROUP BY ALL HAVING count() != 2)"
        ))
        .bind(source.name())
        .bind(format!("{:016x}", source.partition));
    assert_eq!(differences.scalar_u64().await.unwrap(), 0, "{what}: recipients is not the GROUP BY of the rows");
}

/// A member whose lease expires while it sends an insert breaks it off. ClickHouse then applies nothing of it, and takes it later.
pub async fn an_insert_whose_lease_expires_is_broken_off(url: &str, database: &str) {
    let (client, sink) = migrated(url, database).await;
    let (mut log, source) = (Log::new(0), source(0));
    let mut member = Member { log: &mut log, sink: &sink, source: &source, position: 0, frozen: VecDeque::new() };
    let frozen = member.freeze(None, RECORDS_PER_BATCH).unwrap();
    for insert in frozen.expected.inserts() {
        let (table, name) = (insert.table, source.name());
        let id = source.own_id(frozen.range, None, table, 0);
        let parts = [Part { batch: &member.frozen[0], partitions: &insert.partitions, source: &name }];
        let expired = sink.insert(table, &parts, &id, &id, || false).await;
        assert!(matches!(expired, Err(ClickHouseError::LeaseExpired)), "{expired:?}");
        sink.await_ended(frozen.range, None, &source).await.unwrap();
        let rows = format!("SELECT count() FROM {}", table.name());
        assert_eq!(client.query(&rows).scalar_u64().await.unwrap(), 0, "{}", table.name());
        let inserted = sink.insert(table, &parts, &id, &id, || true).await.unwrap();
        assert_eq!(client.query(&rows).scalar_u64().await.unwrap(), inserted, "{}", table.name());
    }
}

/// The columns hold the producer's values, and the design's two queries run verbatim.
pub async fn a_batch_is_stored_as_it_was_consumed(url: &str, database: &str) {
    let (client, sink) = migrated(url, database).await;
    let mut log = Log::new(0);
    run(&mut log, &sink, &source(0), None).await;
    assert_exact(&client, &source(0), "without a fault").await;
    let stored: Vec<(String, String, String, String, String, u64)> = client
        .query(
            "SELECT email, metadata, toString(event_type), toString(event_time), toString(campaign_id), source_offset \
             FROM email_events ORDER BY source_offset LIMIT 2",
        )
        .rows()
        .await
        .unwrap();
    let (email, metadata, event_type) = ("P1@EXAMPLE.com".into(), r#"{"n": 1}"#.into(), "open".into());
    let (time, campaign) = ("2026-11-01 00:00:00".into(), "00000000-0000-0000-0000-000000000001".into());
    assert_eq!(stored[1], (email, metadata, event_type, time, campaign, 3));
    assert_eq!(stored[0].3, "2026-10-31 23:59:59");
    let rejected: Vec<(String, String, String)> = client
        .query("SELECT reason, payload, key FROM rejected_events ORDER BY source_offset LIMIT 1")
        .rows()
        .await
        .unwrap();
    assert_eq!(rejected, [("not_json".into(), "broken 9".into(), "k".into())]);
    let levels: Vec<(String, u64)> =
        client.query("SELECT level, sum(total) AS total_count FROM daily GROUP BY level").rows().await.unwrap();
    assert_eq!(levels.iter().map(|(_, total)| total).sum::<u64>(), RECORDS * 9 / 10);
    let opens: Vec<(String, u32)> = client
        .query(
            "SELECT email, event_time FROM email_events WHERE campaign_id = '00000000-0000-0000-0000-000000000001' \
             AND event_type = 'open' ORDER BY event_time DESC",
        )
        .rows()
        .await
        .unwrap();
    assert!(!opens.is_empty() && opens.is_sorted_by(|a, b| a.1 >= b.1));
}

async fn every_fault_at_every_step(client: &Client, sink: &Sink) {
    let steps = run(&mut Log::new(0), sink, &source(0), None).await;
    let faults = [Fault::CrashAfter, Fault::AnswerLost, Fault::LeaseExpired, Fault::HalfAppliedAndForgotten];
    let cases = faults.into_iter().flat_map(|fault| {
        let steps = steps.iter().enumerate().filter(move |(_, kind)| fault.matters_at(**kind));
        steps.map(move |(step, _)| (fault, step))
    });
    let check = async |partition, fault, step| {
        let source = source(partition);
        let mut log = Log::new(partition);
        run(&mut log, sink, &source, Some((step, fault))).await;
        // This is the next owner. Where the first one went on to the end, it finds nothing to do.
        run(&mut log, sink, &source, None).await;
        assert_exact(client, &source, &format!("fault {} at step {step}", fault as u8)).await;
    };
    // Each case has a source of its own.
    let cases = stream::iter((1..).zip(cases));
    cases.for_each_concurrent(CASES_AT_A_TIME, |(partition, (fault, step))| check(partition, fault, step)).await;
}

/// A source without rows has made no progress, and one that has is found whole.
pub async fn progress_is_what_the_rows_say(url: &str, database: &str) {
    let (_, sink) = migrated(url, database).await;
    assert_eq!(sink.progress(0, &source(0)).await.unwrap(), Progress::default());
    let mut log = Log::new(0);
    run(&mut log, &sink, &source(0), None).await;
    let end = Some(log.high());
    assert_eq!(sink.progress(0, &source(0)).await.unwrap(), Progress { counted_end: end, ..Progress::default() });
    assert_eq!(sink.progress(0, &source(1)).await.unwrap(), Progress::default());
}

/// Members die at each step. One question for all their sources has the answers of a question for each.
pub async fn a_question_for_many_sources_answers_for_each(url: &str, database: &str) {
    let (client, sink) = migrated(url, database).await;
    let steps = run(&mut Log::new(0), &sink, &source(0), None).await;
    // The first one dies before it has done anything.
    let mut faults = vec![(0, Fault::CrashAfter)];
    for (step, kind) in steps.into_iter().enumerate() {
        let both = [Fault::CrashAfter, Fault::HalfAppliedAndForgotten];
        faults.extend(both.into_iter().filter(|fault| fault.matters_at(kind)).map(|fault| (step, fault)));
    }
    let deaths = (1..).zip(faults).map(async |(partition, fault)| {
        let mut log = Log::new(partition);
        run(&mut log, &sink, &source(partition), Some(fault)).await;
        (source(partition).name(), log.committed.map_or(0, |committed| committed.offset))
    });
    let mut asked: Vec<_> = stream::iter(deaths).buffered(CASES_AT_A_TIME).collect().await;
    let partition = asked.len() as i32 + 1;
    // Events come before rejects in this log, so no member leaves a reject that has no row before it.
    let sql = format!(
        "INSERT INTO {database}.rejected_events (source, source_offset, kafka_timestamp, reason, error, key, payload) \
         VALUES ('{}', 5, now(), 'not_json', '', '', '')",
        source(partition).name()
    );
    client.execute(&sql).await.unwrap();
    asked.push((source(partition).name(), 3));
    let together = sink.progress_of(&asked).await.unwrap();
    let rejected = Progress { rejected_end: Some(6), stored_end: Some(6), ..Progress::default() };
    assert_eq!(together.last(), Some(&rejected));
    for ((one, progress), partition) in asked.iter().zip(&together).zip(1..) {
        assert_eq!(sink.progress(one.1, &source(partition)).await.unwrap(), *progress, "{one:?}");
    }
    let batch = |((_, start), partition): (&(String, u64), i32)| OpenBatch {
        range: OffsetRange { start: *start, end: start + 3 * RECORDS_PER_BATCH as u64 },
        group: None,
        source: source(partition),
        months: (partition % 3 > 0).then(|| vec![202_611]),
    };
    let batches: Vec<OpenBatch> = asked.iter().zip(1..).map(batch).collect();
    let marks = sink.marks_of(&batches).await.unwrap();
    for (batch, marks) in batches.iter().zip(&marks) {
        let alone = sink.marks(batch.range, &batch.source, batch.months.as_deref()).await.unwrap();
        assert_eq!(marks.as_ref(), Some(&alone), "{batch:?}");
    }
    assert!(marks.iter().flatten().any(|marks| !marks.daily.is_empty() && marks.rejected > 0), "{marks:?}");
    // A second batch of one source is asked alone.
    let twice = sink.marks_of(&[batches[0].clone(), batches[0].clone()]).await.unwrap();
    assert!(twice[0].is_some() && twice[1].is_none(), "{twice:?}");
    let some = |of: fn(&Progress) -> Option<u64>| together.iter().any(|progress| of(progress).is_some());
    assert!(some(|p| p.counted_end) && some(|p| p.uncounted) && together[0] == Progress::default(), "{together:?}");
    let with_rows = source(partition);
    let ids = sink.topic_ids_of(&with_rows.topic, &[partition + 1, partition]).await.unwrap();
    assert_eq!(ids, [vec![], vec![with_rows.topic_id.clone()]]);
    assert_eq!(sink.topic_ids(&with_rows).await.unwrap(), [with_rows.topic_id]);
}

/// Nothing is lost or counted twice wherever a member dies or an answer is lost.
pub async fn a_crash_after_any_step_loses_and_doubles_nothing(url: &str, database: &str) {
    let (client, sink) = migrated(url, database).await;
    every_fault_at_every_step(&client, &sink).await;
}

/// The same with deduplication off, as after the window has passed: the marks alone keep it exact.
pub async fn a_replay_is_exact_when_no_token_is_remembered(url: &str, database: &str) {
    let (client, sink) = migrated(url, database).await;
    for table in ["email_events", "daily", "rejected_events"] {
        let sql = format!("ALTER TABLE {database}.{table} MODIFY SETTING non_replicated_deduplication_window = 0");
        client.execute(&sql).await.unwrap();
    }
    every_fault_at_every_step(&client, &sink).await;
}
