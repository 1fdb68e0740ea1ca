//! The contenders: the setup, run, check and removal of each.
//!
//! Must never hand on a run whose counts are not those of the ledger.

use crate::Programs;
use crate::run::Run;
use clap::ValueEnum;
use devstack::bench::rivals::{RECIPIENTS, make_queue, statements};
use devstack::bench::{
    AnyError, Cost, Deployment, Interrupt, LOOK_INTERVAL, Meter, Topic, Until, catch_up, counted, finish,
};
use devstack::process::ended_children_cpu;
use devstack::producer::Ledger;
use devstack::{ClickHouse, Output, Stack, process};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const VIEWS: &str = include_str!("views.sql");
/// Number of consumers of the Kafka engine.
const ENGINE_CONSUMERS: usize = 2;
/// Flush age of the Kafka engine, which is ClickHouse's default (`stream_flush_interval_ms`).
const ENGINE_FLUSH_AGE: Duration = Duration::from_millis(7_500);
/// Setting of Tallyhouse with recipients.
pub const WITH_RECIPIENTS: &str = "clickhouse.recipients=true";
const PLAIN_TABLES: &str = include_str!("tables.sql");

/// A contender, as named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    /// Tallyhouse, left alone until everything is counted.
    #[value(name = "a")]
    Tallyhouse,
    /// Tallyhouse, stopped once everything is read.
    #[value(name = "s")]
    TallyhouseStopped,
    /// Tallyhouse, as `s`, on a topic half of which is hostile.
    #[value(name = "h")]
    TallyhouseHostile,
    /// Tallyhouse, as `a`, with recipients.
    #[value(name = "u")]
    WithRecipients,
    /// Another build of Tallyhouse, as `a`.
    #[value(name = "o")]
    Other,
    /// ClickHouse's Kafka engine with materialized views.
    #[value(name = "b")]
    KafkaEngine,
    /// The same with a third view, into a table of recipients.
    #[value(name = "r")]
    KafkaEngineRecipients,
    /// The bare rdkafka loop.
    #[value(name = "c")]
    Loop,
    /// The loop with Tallyhouse's decoder.
    #[value(name = "d")]
    LoopDecode,
    /// The consumer in Python.
    #[value(name = "e")]
    Python,
}

impl Contender {
    /// Returns the name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Tallyhouse => "(a) Tallyhouse",
            Contender::TallyhouseStopped => "(s) Tallyhouse, stopped once all is read",
            Contender::TallyhouseHostile => "(h) the same, half of the records hostile",
            Contender::WithRecipients => "(u) Tallyhouse with recipients",
            Contender::Other => "(o) the other Tallyhouse",
            Contender::KafkaEngine => "(b) ClickHouse Kafka engine, two views",
            Contender::KafkaEngineRecipients => "(r) ClickHouse Kafka engine, three views",
            Contender::Loop => "(c) bare rdkafka loop",
            Contender::LoopDecode => "(d) loop and decode",
            Contender::Python => "(e) Python consumer",
        }
    }
}

/// The servers, programs and topics that every contender works with.
pub struct Bench<'a> {
    /// Source of names that nobody else uses.
    pub stack: &'a Stack,
    /// Addresses of the Kafka brokers.
    pub brokers: &'a str,
    /// The ClickHouse server of all contenders.
    pub clickhouse: &'a ClickHouse,
    /// The built Rust programs.
    pub programs: Programs,
    /// A Python that has the packages of the consumer.
    pub python: Option<PathBuf>,
    /// The topic with all events.
    pub all: Topic,
    /// The topic with fewer events for the Python consumer.
    pub python_part: Topic,
    /// The topic with as many records as events, half of them hostile.
    pub hostile: Topic,
    /// Settings of Tallyhouse, as in `tallyhouse run --set`.
    pub set: Vec<String>,
    /// The signal to end.
    pub interrupt: Interrupt,
}

impl Bench<'_> {
    /// Runs one contender on a topic (some have one of their own) and checks its counts.
    pub fn run(&self, contender: Contender, topic: &Topic) -> Result<Run, AnyError> {
        let run = match contender {
            Contender::Tallyhouse => self.tallyhouse(&self.programs.tallyhouse, topic, Until::Counted, &[]),
            Contender::TallyhouseStopped => self.tallyhouse(&self.programs.tallyhouse, topic, Until::Consumed, &[]),
            Contender::TallyhouseHostile => {
                self.tallyhouse(&self.programs.tallyhouse, &self.hostile, Until::Consumed, &[])
            }
            Contender::WithRecipients => {
                let with = [WITH_RECIPIENTS.to_owned()];
                self.tallyhouse(&self.programs.tallyhouse, topic, Until::Counted, &with)
            }
            Contender::Other => match &self.programs.other {
                Some(program) => self.tallyhouse(program, topic, Until::Counted, &[]),
                None => return Err("contender o needs --against PROGRAM".into()),
            },
            Contender::KafkaEngine => self.kafka_engine(topic, false),
            Contender::KafkaEngineRecipients => self.kafka_engine(topic, true),
            Contender::Loop => self.consume_loop(topic, false),
            Contender::LoopDecode => self.consume_loop(topic, true),
            Contender::Python => self.python(&self.python_part),
        };
        run.map(|run| Run { contender, ..run }).map_err(|error| format!("{}: {error}", contender.name()).into())
    }

    fn tallyhouse(&self, program: &Path, topic: &Topic, until: Until, more: &[String]) -> Result<Run, AnyError> {
        let deployment = Deployment {
            program,
            brokers: self.brokers,
            clickhouse: self.clickhouse,
            topic: &topic.name,
            database: &self.stack.fresh_database_name("peers"),
            set: &[&self.set, more].concat(),
        };
        let found = catch_up(&deployment, 1, topic, until, &self.interrupt)?;
        Ok(Run {
            contender: Contender::Tallyhouse,
            events: topic.ledger.produced,
            wall_seconds: found.wall_seconds,
            read_seconds: found.read_seconds,
            program: Some(found.program),
            clickhouse: Some(found.clickhouse),
            parts: Some(found.parts),
        })
    }

    fn kafka_engine(&self, topic: &Topic, recipients: bool) -> Result<Run, AnyError> {
        let database = self.stack.fresh_database_name("peers");
        statements(self.clickhouse, PLAIN_TABLES, &database)?;
        let meter = Meter::start(self.clickhouse)?;
        let started = Instant::now();
        make_queue(self.clickhouse, &database, self.brokers, &topic.name, ENGINE_CONSUMERS, ENGINE_FLUSH_AGE)?;
        if recipients {
            statements(self.clickhouse, RECIPIENTS, &database)?;
        }
        statements(self.clickhouse, VIEWS, &database)?;
        let server = self.clickhouse.server()?;
        while counted(self.clickhouse, &database)? < topic.ledger.produced {
            if !server.is_alive() {
                return Err(format!("it ended by itself: {}", server.log_tail()).into());
            }
            self.interrupt.check(started)?;
            std::thread::sleep(LOOK_INTERVAL);
        }
        let wall = started.elapsed();
        // Otherwise its idle consumers would be counted while merges settle.
        self.clickhouse.query(&format!("DROP TABLE {database}.to_raw SYNC"))?;
        self.clickhouse.query(&format!("DROP TABLE {database}.queue SYNC"))?;
        self.finish(&database, &topic.ledger, meter, wall)
    }

    fn consume_loop(&self, topic: &Topic, decode: bool) -> Result<Run, AnyError> {
        let events = topic.ledger.produced;
        let mut command = Command::new(&self.programs.consume_loop);
        command.args(["--brokers", self.brokers, "--topic", &topic.name, "--events", &events.to_string()]);
        command.args(decode.then_some("--decode"));
        let (program, wall, printed) = self.to_its_end("consume_loop", command)?;
        let printed: serde_json::Value = serde_json::from_str(&printed)?;
        let read = |name: &str| printed.get(name).and_then(serde_json::Value::as_f64);
        if decode && read("events") != Some((events - topic.ledger.broken) as f64) {
            return Err(format!("it decoded other than {events} events: {printed}").into());
        }
        let read_seconds = read("read_seconds");
        Ok(Run { read_seconds, program: Some(program), ..bare_run(events, wall) })
    }

    fn python(&self, topic: &Topic) -> Result<Run, AnyError> {
        let python = self.python.as_ref().ok_or("there is no Python")?;
        let database = self.stack.fresh_database_name("peers");
        statements(self.clickhouse, PLAIN_TABLES, &database)?;
        let mut command = Command::new(python);
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("contenders/consumer.py"))
            .args(["--brokers", self.brokers, "--topic", &topic.name, "--group", &database])
            .args(["--url", self.clickhouse.url(), "--database", &database])
            .args(["--events", &topic.ledger.produced.to_string()]);
        let meter = Meter::start(self.clickhouse)?;
        let (program, wall, _) = self.to_its_end("consumer.py", command)?;
        let run = self.finish(&database, &topic.ledger, meter, wall)?;
        Ok(Run { program: Some(program), ..run })
    }

    /// Runs a program that ends by itself. Returns its cost, its time and its output.
    fn to_its_end(&self, name: &str, command: Command) -> Result<(Cost, Duration, String), AnyError> {
        let cpu_before = ended_children_cpu()?;
        let started = Instant::now();
        let program = process::spawn(name, command, Output::Captured)?;
        let mut peak_bytes = 0;
        while program.is_alive() {
            self.interrupt.check(started)?;
            peak_bytes = program.peak_memory_bytes().unwrap_or(peak_bytes);
            process::wait_gone(program.pid(), LOOK_INTERVAL)?;
        }
        let wall = started.elapsed();
        let status = program.wait(Duration::ZERO)?;
        if !status.success() {
            return Err(format!("it ended with {status}: {}", program.stderr()).into());
        }
        let cpu_seconds = (ended_children_cpu()? - cpu_before).as_secs_f64();
        Ok((Cost { cpu_seconds, peak_bytes }, wall, program.stdout()))
    }

    fn finish(&self, database: &str, ledger: &Ledger, meter: Meter<'_>, wall: Duration) -> Result<Run, AnyError> {
        let (clickhouse, parts) = finish(meter, self.clickhouse, database, ledger)?;
        Ok(Run { clickhouse: Some(clickhouse), parts: Some(parts), ..bare_run(ledger.produced, wall) })
    }
}

/// Makes a run of which only the time is known. The caller adds the contender.
fn bare_run(events: u64, wall: Duration) -> Run {
    Run {
        contender: Contender::Tallyhouse,
        events,
        wall_seconds: wall.as_secs_f64(),
        read_seconds: None,
        program: None,
        clickhouse: None,
        parts: None,
    }
}
