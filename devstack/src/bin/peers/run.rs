//! The figures of one run of one contender.

use crate::contenders::Contender;
use devstack::bench::Cost;

/// The figures of one run.
#[derive(Debug, Clone)]
pub struct Run {
    /// The contender that ran.
    pub contender: Contender,
    /// Number of events counted or read.
    pub events: u64,
    /// Time from the start of the program until everything was counted, or until the program's end, in seconds.
    pub wall_seconds: f64,
    /// Time from the first record on, in seconds, where it is known.
    pub read_seconds: Option<f64>,
    /// CPU of the program, all threads, user and system; none if there is no program.
    pub program: Option<Cost>,
    /// Cost in ClickHouse; none if it took no part.
    pub clickhouse: Option<Cost>,
    /// Number of parts that inserts wrote.
    pub parts: Option<u64>,
}

impl Run {
    /// Returns the CPU time of the program and of ClickHouse together, in microseconds per event.
    pub fn cpu_us(&self) -> f64 {
        let seconds = |cost: Option<Cost>| cost.map_or(0.0, |cost| cost.cpu_seconds);
        (seconds(self.program) + seconds(self.clickhouse)) * 1e6 / self.events as f64
    }

    /// Returns the CPU time of the program alone, in microseconds per event.
    pub fn program_cpu_us(&self) -> Option<f64> {
        self.program.map(|cost| cost.cpu_seconds * 1e6 / self.events as f64)
    }

    /// Returns the events per second of wall time.
    pub fn rate(&self) -> f64 {
        self.events as f64 / self.wall_seconds
    }
}
