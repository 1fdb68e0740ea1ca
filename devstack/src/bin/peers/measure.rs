//! What is measured of one run, and how: `/proc` of the program and of ClickHouse, and ClickHouse's own tables.
//!
//! Must never leave one contender's merges to the next: a run ends when ClickHouse has settled.

use crate::AnyError;
use crate::contenders::Contender;
use devstack::ClickHouse;
use std::time::{Duration, Instant};

/// ClickHouse has settled when nothing was merged for this long.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
const SETTLE_LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The figures of one run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Who ran.
    pub contender: Contender,
    /// Events counted or read.
    pub events: u64,
    /// From the start of the program until everything was counted, or the program's end, in seconds.
    pub wall_seconds: f64,
    /// From the first record on; where it is known.
    pub read_seconds: Option<f64>,
    /// CPU of the program, all threads, user and system; none if there is no program.
    pub program: Option<Cost>,
    /// What it cost ClickHouse; none if it took no part.
    pub clickhouse: Option<Cost>,
    /// Parts that inserts wrote.
    pub parts: Option<u64>,
}

/// What one process spent on a run.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// Most resident memory, in bytes; of ClickHouse, what came on top of what it had before.
    pub peak_bytes: u64,
}

impl Run {
    /// CPU of the program and of ClickHouse together, in microseconds per event.
    pub fn cpu_us(&self) -> f64 {
        let seconds = |cost: Option<Cost>| cost.map_or(0.0, |cost| cost.cpu_seconds);
        (seconds(self.program) + seconds(self.clickhouse)) * 1e6 / self.events as f64
    }

    /// CPU of the program alone, in microseconds per event.
    pub fn program_cpu_us(&self) -> Option<f64> {
        self.program.map(|cost| cost.cpu_seconds * 1e6 / self.events as f64)
    }

    /// Events per second of wall time.
    pub fn rate(&self) -> f64 {
        self.events as f64 / self.wall_seconds
    }
}

/// ClickHouse as it was when a run began.
pub struct Meter<'a> {
    clickhouse: &'a ClickHouse,
    cpu: Duration,
    memory_bytes: u64,
}

impl Meter<'_> {
    /// Begins once ClickHouse is idle.
    pub fn start(clickhouse: &ClickHouse) -> Result<Meter<'_>, AnyError> {
        settle(clickhouse)?;
        let server = clickhouse.server()?;
        server.reset_peak_memory()?;
        Ok(Meter { clickhouse, cpu: server.cpu_time()?, memory_bytes: server.rss_bytes()? })
    }

    /// What ClickHouse spent since, merges included: waits until they have settled.
    pub fn finish(self) -> Result<Cost, AnyError> {
        let server = self.clickhouse.server()?;
        let peak_bytes = server.peak_memory_bytes()?.saturating_sub(self.memory_bytes);
        settle(self.clickhouse)?;
        Ok(Cost { cpu_seconds: (server.cpu_time()? - self.cpu).as_secs_f64(), peak_bytes })
    }
}

fn settle(clickhouse: &ClickHouse) -> Result<(), AnyError> {
    let started = Instant::now();
    let mut quiet_since = started;
    while quiet_since.elapsed() < SETTLED_AFTER && started.elapsed() < SETTLE_TIMEOUT {
        if clickhouse.number("SELECT count() FROM system.merges")? > 0 {
            quiet_since = Instant::now();
        }
        std::thread::sleep(SETTLE_LOOK_INTERVAL);
    }
    Ok(())
}

/// Parts that inserts wrote into a database: a table numbers its inserted blocks from 1, and merged parts keep the numbers.
pub fn parts_written(clickhouse: &ClickHouse, database: &str) -> Result<u64, AnyError> {
    let sql = format!(
        "SELECT sum(last) FROM (SELECT max(max_block_number) AS last FROM system.parts \
         WHERE database = '{database}' GROUP BY table)"
    );
    Ok(clickhouse.number(&sql)?)
}
