//! The contenders: how each is set up, run to its end, checked, and cleared away.
//!
//! Must never hand on a run whose counts are not those of the ledger.

use crate::measure::{Cost, Meter, Run, parts_written};
use crate::{AnyError, Programs};
use clap::ValueEnum;
use devstack::process::ended_children_cpu;
use devstack::producer::{EVENT_TYPES, Ledger};
use devstack::{ClickHouse, Output, Server, Stack, http, process};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const RUN_TIMEOUT: Duration = Duration::from_secs(1_800);
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const KAFKA_ENGINE: &str = include_str!("kafka_engine.sql");
const PLAIN_TABLES: &str = include_str!("tables.sql");

/// Who runs.
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
    /// Another build of Tallyhouse, as `a`.
    #[value(name = "o")]
    Other,
    /// ClickHouse's Kafka engine.
    #[value(name = "b")]
    KafkaEngine,
    /// The bare rdkafka loop.
    #[value(name = "c")]
    Loop,
    /// The loop with Tallyhouse's decoder.
    #[value(name = "d")]
    LoopDecode,
    /// The Python consumer.
    #[value(name = "e")]
    Python,
}

impl Contender {
    /// What the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Tallyhouse => "(a) Tallyhouse",
            Contender::TallyhouseStopped => "(s) Tallyhouse, stopped once all is read",
            Contender::TallyhouseHostile => "(h) the same, half of the records hostile",
            Contender::Other => "(o) the other Tallyhouse",
            Contender::KafkaEngine => "(b) ClickHouse Kafka engine, two views",
            Contender::Loop => "(c) bare rdkafka loop",
            Contender::LoopDecode => "(d) loop and decode",
            Contender::Python => "(e) Python consumer",
        }
    }
}

/// A topic, and what is in it.
pub struct Topic {
    /// Its name.
    pub name: String,
    /// What was produced.
    pub ledger: Ledger,
}

/// What every contender works with.
pub struct Bench<'a> {
    /// For names that nobody else uses.
    pub stack: &'a Stack,
    /// Kafka.
    pub brokers: &'a str,
    /// ClickHouse.
    pub clickhouse: &'a ClickHouse,
    /// The Rust programs.
    pub programs: Programs,
    /// A Python that has what the consumer needs.
    pub python: Option<PathBuf>,
    /// All events.
    pub all: Topic,
    /// The part for the Python consumer.
    pub python_part: Topic,
    /// As many records as events, half of them hostile.
    pub hostile: Topic,
    /// Settings of Tallyhouse.
    pub set: Vec<String>,
    /// Ctrl-C was pressed.
    pub interrupted: Arc<AtomicBool>,
}

impl Bench<'_> {
    /// Runs one contender on a topic (some have one of their own) and checks its counts.
    pub fn run(&self, contender: Contender, topic: &Topic) -> Result<Run, AnyError> {
        let run = match contender {
            Contender::Tallyhouse => self.tallyhouse(&self.programs.tallyhouse, topic, false),
            Contender::TallyhouseStopped => self.tallyhouse(&self.programs.tallyhouse, topic, true),
            Contender::TallyhouseHostile => self.tallyhouse(&self.programs.tallyhouse, &self.hostile, true),
            Contender::Other => match &self.programs.other {
                Some(program) => self.tallyhouse(program, topic, false),
                None => return Err("contender o needs --against PROGRAM".into()),
            },
            Contender::KafkaEngine => self.kafka_engine(topic),
            Contender::Loop => self.consume_loop(topic, false),
            Contender::LoopDecode => self.consume_loop(topic, true),
            Contender::Python => self.python(&self.python_part),
        };
        run.map(|run| Run { contender, ..run }).map_err(|error| format!("{}: {error}", contender.name()).into())
    }

    fn tallyhouse(&self, program: &Path, topic: &Topic, stopped: bool) -> Result<Run, AnyError> {
        let database = self.stack.fresh_database_name("peers");
        let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let command = |name: &str| {
            let mut command = Command::new(program);
            command
                .arg(name)
                .env("TALLYHOUSE__KAFKA__BROKERS", self.brokers)
                .env("TALLYHOUSE__KAFKA__TOPICS__EVENTS", &topic.name)
                .env("TALLYHOUSE__KAFKA__GROUP_ID", &database)
                .env("TALLYHOUSE__CLICKHOUSE__URL", self.clickhouse.url())
                .env("TALLYHOUSE__CLICKHOUSE__DATABASE", &database)
                .env("TALLYHOUSE__ADMIN__LISTEN", admin.to_string())
                .args(self.set.iter().flat_map(|set| ["--set", set]));
            command
        };
        let migrated = command("migrate").output()?;
        if !migrated.status.success() {
            return Err(String::from_utf8_lossy(&migrated.stderr).into_owned().into());
        }
        let (meter, cpu_before) = (Meter::start(self.clickhouse)?, ended_children_cpu()?);
        let started = Instant::now();
        let member = process::spawn("tallyhouse", command("run"), Output::Captured)?;
        let (wanted, mut first) = (topic.ledger.produced, None);
        let peak_bytes = self.follow(&member, || {
            if !stopped {
                return Ok(counted(self.clickhouse, &database)? >= wanted);
            }
            let consumed = consumed(admin);
            if consumed > 0 {
                first.get_or_insert_with(Instant::now);
            }
            Ok(consumed >= wanted)
        })?;
        let mut wall = started.elapsed();
        let status = member.terminate(STOP_TIMEOUT)?;
        if stopped {
            wall = started.elapsed();
        }
        if !status.success() {
            return Err(format!("it ended with {status}: {}", member.stderr()).into());
        }
        let cpu_seconds = (ended_children_cpu()? - cpu_before).as_secs_f64();
        let program = Cost { cpu_seconds, peak_bytes };
        let read_seconds = first.map(|first| (started + wall).duration_since(first).as_secs_f64());
        let rejected = self.clickhouse.number(&format!("SELECT count() FROM {database}.rejected_events"))?;
        if rejected != topic.ledger.broken {
            return Err(format!("{rejected} records are rejected instead of {}", topic.ledger.broken).into());
        }
        let run = self.finish(&database, &topic.ledger, meter, wall)?;
        Ok(Run { program: Some(program), read_seconds, ..run })
    }

    fn kafka_engine(&self, topic: &Topic) -> Result<Run, AnyError> {
        let database = self.stack.fresh_database_name("peers");
        self.statements(PLAIN_TABLES, &database)?;
        let sql = KAFKA_ENGINE.replace("{brokers}", self.brokers).replace("{topic}", &topic.name);
        let meter = Meter::start(self.clickhouse)?;
        let started = Instant::now();
        self.statements(&sql, &database)?;
        let server = self.clickhouse.server()?;
        self.follow(server, || Ok(counted(self.clickhouse, &database)? >= topic.ledger.produced))?;
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
        self.statements(PLAIN_TABLES, &database)?;
        let mut command = Command::new(python);
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/consumer.py"))
            .args(["--brokers", self.brokers, "--topic", &topic.name, "--group", &database])
            .args(["--url", self.clickhouse.url(), "--database", &database])
            .args(["--events", &topic.ledger.produced.to_string()]);
        let meter = Meter::start(self.clickhouse)?;
        let (program, wall, _) = self.to_its_end("consumer.py", command)?;
        let run = self.finish(&database, &topic.ledger, meter, wall)?;
        Ok(Run { program: Some(program), ..run })
    }

    /// Runs a program that ends by itself; gives its cost, its time and what it printed.
    fn to_its_end(&self, name: &str, command: Command) -> Result<(Cost, Duration, String), AnyError> {
        let cpu_before = ended_children_cpu()?;
        let started = Instant::now();
        let program = process::spawn(name, command, Output::Captured)?;
        let mut peak_bytes = 0;
        while program.is_alive() {
            self.check_going_on(started)?;
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

    /// Waits until `done`, while the server lives; gives its peak of memory.
    fn follow(&self, server: &Server, mut done: impl FnMut() -> Result<bool, AnyError>) -> Result<u64, AnyError> {
        let started = Instant::now();
        while !done()? {
            if !server.is_alive() {
                return Err(format!("it ended by itself: {}", server.log_tail()).into());
            }
            self.check_going_on(started)?;
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(server.peak_memory_bytes()?)
    }

    fn check_going_on(&self, started: Instant) -> Result<(), AnyError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        if started.elapsed() > RUN_TIMEOUT {
            return Err(format!("it is not done after {RUN_TIMEOUT:?}").into());
        }
        Ok(())
    }

    /// Compares the counts, takes ClickHouse's part of the figures, and drops the database.
    fn finish(&self, database: &str, ledger: &Ledger, meter: Meter<'_>, wall: Duration) -> Result<Run, AnyError> {
        let clickhouse = meter.finish()?;
        compare(self.clickhouse, database, ledger)?;
        let parts = parts_written(self.clickhouse, database)?;
        self.clickhouse.query(&format!("DROP DATABASE {database} SYNC"))?;
        Ok(Run { clickhouse: Some(clickhouse), parts: Some(parts), ..bare_run(ledger.produced, wall) })
    }

    fn statements(&self, sql: &str, database: &str) -> Result<(), AnyError> {
        for statement in sql.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
            self.clickhouse.query(&statement.replace("{database}", database))?;
        }
        Ok(())
    }
}

/// A run of which only the time is known. The caller says whose.
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

/// Events that are both stored and counted.
fn counted(clickhouse: &ClickHouse, database: &str) -> Result<u64, AnyError> {
    let sql = format!(
        "SELECT least((SELECT count() FROM {database}.email_events), (SELECT sum(total) FROM {database}.daily))"
    );
    Ok(clickhouse.number(&sql)?)
}

/// Records that a member has consumed, as it tells itself; 0 while it does not answer.
fn consumed(address: SocketAddr) -> u64 {
    let metrics = http::get(address, "/metrics", HTTP_TIMEOUT).unwrap_or_default();
    let value = metrics.lines().find_map(|line| line.strip_prefix("tallyhouse_consumed_records_total "));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn compare(clickhouse: &ClickHouse, database: &str, ledger: &Ledger) -> Result<(), AnyError> {
    let rows = clickhouse.number(&format!("SELECT count() FROM {database}.email_events"))?;
    let mut counts = vec![("rows".to_owned(), ledger.produced - ledger.broken, rows)];
    for (event_type, wanted) in EVENT_TYPES.iter().zip(ledger.by_type) {
        let sql = format!("SELECT sum(total) FROM {database}.daily WHERE level = '{event_type}'");
        counts.push((format!("sum(total) of {event_type}"), wanted, clickhouse.number(&sql)?));
    }
    match counts.iter().find(|(_, wanted, found)| wanted != found) {
        Some((what, wanted, found)) => Err(format!("wrong counts: {what} is {found} instead of {wanted}").into()),
        None => Ok(()),
    }
}
