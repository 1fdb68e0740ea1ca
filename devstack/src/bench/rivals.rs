//! One steady run of one system: Tallyhouse, or ClickHouse's Kafka engine with two views.
//!
//! ```text
//! tables ─► idle share ─► consumers settle ─► producer: warm-up │ measured ─► all is counted ─► compare ─► figures
//!           └──────────── the same looks at ClickHouse all the time ────────────┘
//! ```
//!
//! Must never slow the producer down for a system's sake. Must never hand on a figure of a run whose counts are not those of the
//! ledger.

use super::figures::Delays;
use super::meter::settle as settle_merges;
use super::{
    AnyError, Deployment, Interrupt, LOOK_INTERVAL, Member, Pace, Sent, Witness, compare, counted, end_all,
    parts_written, produce_steadily, settle,
};
use crate::process::own_cpu;
use crate::producer::{Events, Producer, create_topic};
use crate::{ClickHouse, Kafka, Stack};
use std::path::Path;
use std::time::{Duration, Instant};

const TABLES: &str = include_str!("rivals_tables.sql");
const VIEWS: &str = include_str!("rivals_views.sql");
/// The engine's table of recipients, and its view from the raw table.
pub const RECIPIENTS: &str = include_str!("rivals_recipients.sql");
/// The Kafka table of the engine, from which its views read.
const QUEUE: &str = include_str!("queue.sql");

/// Until the producer starts, so that its payloads are made.
const AHEAD: Duration = Duration::from_secs(1);
/// For everything to be counted once the producer has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(600);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Between two looks at what is counted: few enough to cost ClickHouse little.
const WITNESS_INTERVAL: Duration = Duration::from_millis(200);

/// The events to produce, and the settings of their consumer.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Partitions of the topic.
    pub partitions: i32,
    /// Events per second, over all partitions.
    pub per_second: u64,
    /// Members of the group, or consumers of the engine.
    pub members: usize,
    /// The age at which both flush.
    pub flush_age: Duration,
    /// Time before anything counts.
    pub warm_up: Duration,
    /// Time after the warm-up that counts.
    pub measured: Duration,
    /// Time that the idle servers are measured; zero skips it.
    pub idle: Duration,
    /// Number of distinct campaigns in the events.
    pub campaigns: u64,
}

/// The system that consumes the events.
#[derive(Clone, Copy, Debug)]
pub enum System<'a> {
    /// A group of Tallyhouse members.
    Tallyhouse {
        /// Path of the `tallyhouse` program.
        program: &'a Path,
        /// Further settings, as in `tallyhouse run --set`.
        set: &'a [String],
    },
    /// ClickHouse's Kafka engine. Its tables have the columns of Tallyhouse's, and neither index nor tokens.
    KafkaEngine {
        /// True if a third view writes recipients.
        recipients: bool,
    },
}

/// Processor time, each in cores.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cores {
    /// Cores that the members use.
    pub program: f64,
    /// Cores that the ClickHouse server uses.
    pub clickhouse: f64,
    /// Cores that the Kafka brokers use.
    pub kafka: f64,
    /// This process: producer and witness.
    pub own: f64,
}

/// The figures of one run.
#[derive(Clone, Debug)]
pub struct SteadyRun {
    /// Processor time of the measured part, without the idle share of the servers.
    pub cores: Cores,
    /// CPU of the servers before, with the same looks and nothing to do.
    pub idle: Cores,
    /// Parts that inserts wrote in the measured part. All events are of one day, so that each insert writes one.
    pub inserts: u64,
    /// Greatest number of active parts of one ClickHouse partition.
    pub parts_most: u64,
    /// Merges that ended in the measured part.
    pub merges: u64,
    /// Events that count, and from when they were due until an answer of ClickHouse showed them.
    pub delays: Delays,
    /// From the start of the consumers until they read all partitions.
    pub settled_after: Duration,
    /// The longest time that the producer was late.
    pub late_ms: u64,
    /// Events that were produced and counted.
    pub events: u64,
}

/// The servers, and whether to go on.
#[derive(Clone, Copy)]
pub struct Servers<'a> {
    /// Kafka that holds the topics.
    pub kafka: &'a Kafka,
    /// ClickHouse that both systems write to.
    pub clickhouse: &'a ClickHouse,
    /// For names that nobody else uses.
    pub stack: &'a Stack,
    /// Checks that the run may go on.
    pub interrupt: &'a Interrupt,
}

impl Servers<'_> {
    /// Runs one system under a load, and checks its counts.
    ///
    /// # Errors
    /// The counts are not those of the ledger, a consumer ended by itself, a server is not ours, or a signal came.
    pub fn run(self, load: &Load, system: System<'_>) -> Result<SteadyRun, AnyError> {
        let Servers { kafka, clickhouse, stack, interrupt } = self;
        let (topic, database) = (stack.fresh_topic_name("steady"), stack.fresh_database_name("steady"));
        create_topic(kafka.bootstrap(), &topic, load.partitions)?;
        let age = [format!("flush.age_ms={}", load.flush_age.as_millis())];
        let set: Vec<String> = match system {
            System::Tallyhouse { set, .. } => age.into_iter().chain(set.iter().cloned()).collect(),
            System::KafkaEngine { .. } => Vec::new(),
        };
        let deployment = |program| Deployment {
            program,
            brokers: kafka.bootstrap(),
            clickhouse,
            topic: &topic,
            database: &database,
            set: &set,
        };
        match system {
            System::Tallyhouse { program, .. } => deployment(program).migrate()?,
            System::KafkaEngine { .. } => statements(clickhouse, TABLES, &database)?,
        }
        let pace = Pace::new(load.per_second, load.warm_up + load.measured);
        let mut watch = Watch {
            servers: self,
            database: &database,
            ends: match system {
                System::Tallyhouse { .. } => "max(end_offset) FROM {database}.daily WHERE source != '' AND",
                System::KafkaEngine { .. } => "max(source_offset) + 1 FROM {database}.email_events WHERE",
            },
            block: 0,
            witness: Witness::new(pace, load.partitions as usize).after_warm_up(load.warm_up),
            parts_most: 0,
            members: Vec::new(),
        };
        let idle = watch.idle(load.idle)?;

        let started = Instant::now();
        match system {
            System::Tallyhouse { program, .. } => {
                watch.members = (0..load.members).map(|_| deployment(program).start()).collect::<Result<_, _>>()?;
                settle(&watch.members, load.partitions as usize, interrupt)?;
            }
            System::KafkaEngine { recipients } => {
                make_queue(clickhouse, &database, kafka.bootstrap(), &topic, load.members, load.flush_age)?;
                if recipients {
                    statements(clickhouse, RECIPIENTS, &database)?;
                }
                statements(clickhouse, VIEWS, &database)?;
                watch.settle_engine(load.partitions as u64)?;
            }
        }
        let settled_after = started.elapsed();

        let producer = Producer::new(kafka.bootstrap(), &topic, load.partitions)?;
        let shape = Events { days: 1, campaigns: load.campaigns, broken_percent: 0, ..Events::default() };
        let started = Instant::now() + AHEAD;
        let edges = [load.warm_up, load.warm_up + load.measured];
        let ([before, after], sent) =
            watch.measure(started, edges, || produce_steadily(producer, &shape, pace, started, interrupt))?;
        watch.drain(started, sent.ledger.produced)?;
        match system {
            System::Tallyhouse { .. } => end_all(&watch.members)?,
            System::KafkaEngine { .. } => {
                watch.until("it to be counted", started, || {
                    Ok(counted(clickhouse, &database)? >= sent.ledger.produced)
                })?;
                clickhouse.query(&format!("DROP TABLE {database}.to_raw SYNC"))?;
                clickhouse.query(&format!("DROP TABLE {database}.queue SYNC"))?;
            }
        }
        compare(clickhouse, &database, &sent.ledger)?;
        let taken = after.since(&before);
        let [first, second] = watch.witness.halves();
        Ok(SteadyRun {
            cores: Cores {
                clickhouse: (taken.clickhouse - idle.clickhouse).max(0.0),
                kafka: (taken.kafka - idle.kafka).max(0.0),
                ..taken
            },
            idle,
            inserts: after.inserts - before.inserts,
            parts_most: watch.parts_most,
            merges: after.merges - before.merges,
            delays: first.plus(second),
            settled_after,
            late_ms: sent.late.quantile_ms(1.0).unwrap_or(0),
            events: sent.ledger.produced,
        })
    }
}

/// Values of all meters at one time.
struct Reading {
    at: Instant,
    program: Duration,
    clickhouse: Duration,
    kafka: Duration,
    own: Duration,
    inserts: u64,
    merges: u64,
}

impl Reading {
    fn since(&self, before: &Reading) -> Cores {
        let seconds = (self.at - before.at).as_secs_f64();
        let cores = |cpu: fn(&Reading) -> Duration| cpu(self).saturating_sub(cpu(before)).as_secs_f64() / seconds;
        Cores {
            program: cores(|reading| reading.program),
            clickhouse: cores(|reading| reading.clickhouse),
            kafka: cores(|reading| reading.kafka),
            own: cores(|reading| reading.own),
        }
    }
}

/// Looks at a run from its beginning to its end.
struct Watch<'a> {
    servers: Servers<'a>,
    database: &'a str,
    /// The query for the end of each source.
    ends: &'static str,
    /// The last inserted block that was seen. A table numbers its blocks, and a part's name has the numbers of its first and last.
    block: u64,
    witness: Witness,
    parts_most: u64,
    members: Vec<Member>,
}

impl Watch<'_> {
    fn read(&self) -> Result<Reading, AnyError> {
        let Servers { kafka, clickhouse, .. } = self.servers;
        let at = Instant::now();
        Ok(Reading {
            at,
            program: self.members.iter().map(|member| member.server.cpu_time()).sum::<Result<_, _>>()?,
            clickhouse: clickhouse.server()?.cpu_time()?,
            kafka: kafka.nodes()?.iter().map(|node| node.cpu_time()).sum::<Result<_, _>>()?,
            own: own_cpu()?,
            inserts: parts_written(clickhouse, self.database)?.values().sum(),
            merges: clickhouse.number("SELECT sum(value) FROM system.events WHERE event = 'Merge'")?,
        })
    }

    /// CPU that the servers take when they only answer the looks, once the merges of what ran before have ended.
    fn idle(&mut self, lasts: Duration) -> Result<Cores, AnyError> {
        if lasts.is_zero() {
            return Ok(Cores::default());
        }
        settle_merges(self.servers.clickhouse)?;
        let started = Instant::now();
        self.look(started)?;
        let before = self.read()?;
        while before.at.elapsed() < lasts {
            self.look(started)?;
        }
        Ok(self.read()?.since(&before))
    }

    /// Looks while `produce` runs, and reads the meters at two times after the start.
    fn measure(
        &mut self,
        started: Instant,
        edges: [Duration; 2],
        produce: impl FnOnce() -> Result<Sent, AnyError> + Send,
    ) -> Result<([Reading; 2], Sent), AnyError> {
        std::thread::scope(|scope| {
            let producing = scope.spawn(produce);
            let mut read_at = |edge: Duration| {
                while Instant::now() < started + edge {
                    self.look(started)?;
                }
                self.read()
            };
            let readings = [read_at(edges[0])?, read_at(edges[1])?];
            while !producing.is_finished() {
                self.look(started)?;
            }
            let sent = producing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((readings, sent))
        })
    }

    /// Looks until all events are counted.
    fn drain(&mut self, started: Instant, produced: u64) -> Result<(), AnyError> {
        let produced_at = Instant::now();
        while self.witness.seen() < produced {
            if produced_at.elapsed() > DRAIN_TIMEOUT {
                let log: Vec<String> = self.members.iter().map(|member| member.server.log_tail()).collect();
                let progress = self.witness.progress();
                return Err(format!("{progress} after {DRAIN_TIMEOUT:?}; the members say:\n{}", log.join("\n")).into());
            }
            self.look(started)?;
        }
        Ok(())
    }

    /// Looks once at what came since the last look, and pauses.
    fn look(&mut self, started: Instant) -> Result<(), AnyError> {
        let Servers { clickhouse, interrupt, .. } = self.servers;
        let database = self.database;
        self.members.iter().try_for_each(Member::check_alive)?;
        interrupt.check(started)?;
        let ends = self.ends.replace("{database}", database);
        // ClickHouse judges parts by their names before it reads them.
        let last = "toUInt64(splitByChar('_', _part)[3])";
        let sql = format!("SELECT max({last}), source, {ends} {last} > {} GROUP BY source", self.block);
        let answer = clickhouse.query(&sql)?;
        let elapsed = Instant::now().saturating_duration_since(started);
        let mut block = self.block;
        for line in answer.lines() {
            let (last, end) = line.split_once('\t').ok_or_else(|| format!("{line:?} has no block"))?;
            block = block.max(last.parse()?);
            self.witness.see(end, elapsed)?;
        }
        self.block = block;
        let parts = format!(
            "SELECT max(parts) FROM (SELECT count() AS parts FROM system.parts \
             WHERE active AND database = '{database}' GROUP BY table, partition_id)"
        );
        self.parts_most = self.parts_most.max(clickhouse.number(&parts)?);
        std::thread::sleep(WITNESS_INTERVAL);
        Ok(())
    }

    /// Waits until the engine's consumers have all partitions.
    fn settle_engine(&self, partitions: u64) -> Result<(), AnyError> {
        let sql = format!(
            "SELECT sum(length(assignments.partition_id)) FROM system.kafka_consumers WHERE database = '{}'",
            self.database
        );
        let started = Instant::now();
        self.until("its partitions", started, || Ok(self.servers.clickhouse.number(&sql)? == partitions))
    }

    fn until(
        &self,
        what: &str,
        started: Instant,
        mut done: impl FnMut() -> Result<bool, AnyError>,
    ) -> Result<(), AnyError> {
        let waiting = Instant::now();
        while !done()? {
            self.servers.interrupt.check(started)?;
            if waiting.elapsed() > SETTLE_TIMEOUT {
                return Err(format!("the engine still waits for {what} after {SETTLE_TIMEOUT:?}").into());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }
}

/// Creates the Kafka table of ClickHouse's engine, in which each consumer has a thread of its own.
///
/// # Errors
/// ClickHouse refuses it.
pub fn make_queue(
    clickhouse: &ClickHouse,
    database: &str,
    brokers: &str,
    topic: &str,
    consumers: usize,
    flush_age: Duration,
) -> Result<(), AnyError> {
    let sql = QUEUE.replace("{brokers}", brokers).replace("{topic}", topic);
    let sql = sql.replace("{consumers}", &consumers.to_string());
    statements(clickhouse, &sql.replace("{flush_age_ms}", &flush_age.as_millis().to_string()), database)
}

/// Runs the statements of a file, with the database in the place of `{database}`.
///
/// # Errors
/// ClickHouse refuses one of them.
pub fn statements(clickhouse: &ClickHouse, sql: &str, database: &str) -> Result<(), AnyError> {
    for statement in sql.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
        clickhouse.query(&statement.replace("{database}", database))?;
    }
    Ok(())
}
