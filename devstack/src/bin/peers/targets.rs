//! The targets: ratios between contenders of the same invocation, met or missed.
//!
//! Must never judge what was not run: such a target is left out.

use crate::contenders::Contender::{
    self, KafkaEngine, KafkaEngineRecipients, LoopDecode, Python, Tallyhouse, TallyhouseHostile, TallyhouseStopped,
    WithRecipients,
};
use crate::report::Summary;
use crate::run::Run;
use devstack::bench::Cost;
use devstack::bench::figures::{MIB, median};

/// Tallyhouse's default `memory.limit_bytes`, in bytes.
const MEMORY_LIMIT_BYTES: u64 = 512 << 20;

/// One target with its outcome.
#[derive(Debug)]
pub struct Target {
    /// The comparison, in words.
    pub what: &'static str,
    /// The figure that was measured.
    pub found: f64,
    /// The bound of the figure.
    pub bound: Bound,
}

/// The bound of a figure.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// The figure must be this or more.
    AtLeast(f64),
    /// The figure must be this or less.
    AtMost(f64),
}

impl Target {
    /// True if the target is met.
    pub fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => self.found >= bound,
            Bound::AtMost(bound) => self.found <= bound,
        }
    }

    /// Returns the bound in words.
    pub fn bound_text(&self) -> String {
        match self.bound {
            Bound::AtLeast(bound) => format!("at least {bound:.2}"),
            Bound::AtMost(bound) => format!("at most {bound:.2}"),
        }
    }
}

/// Returns every target whose contenders ran. `large` is Tallyhouse on ten times the events.
pub fn judge(results: &[Summary], large: Option<&Run>) -> Vec<Target> {
    let of = |contender: Contender, figure: fn(&Run) -> Option<f64>| {
        let summary = results.iter().find(|summary| summary.contender == contender)?;
        median(summary.runs.iter().filter_map(figure))
    };
    let ratio = |above: Option<f64>, below: Option<f64>| Some(above? / below?);
    let whole = |run: &Run| Some(run.cpu_us());
    let rate = |run: &Run| Some(run.rate());
    let read_rate = |run: &Run| Some(run.events as f64 / run.read_seconds?);
    let peak_mib = |run: &Run| run.program.map(|Cost { peak_bytes, .. }| peak_bytes as f64 / MIB);
    let all = [
        (
            "CPU of Tallyhouse and ClickHouse per event / that of the Kafka engine (a/b)",
            ratio(of(Tallyhouse, whole), of(KafkaEngine, whole)),
            Bound::AtMost(1.0 / 3.0),
        ),
        (
            "CPU of Tallyhouse and ClickHouse per event, with recipients / that of the Kafka engine with a view for them (u/r)",
            ratio(of(WithRecipients, whole), of(KafkaEngineRecipients, whole)),
            Bound::AtMost(0.33),
        ),
        (
            "CPU of Tallyhouse and ClickHouse per event, with recipients / without them (u/a)",
            ratio(of(WithRecipients, whole), of(Tallyhouse, whole)),
            Bound::AtMost(1.25),
        ),
        (
            "Tallyhouse's own CPU per event / that of the loop with decode (a/d)",
            ratio(of(Tallyhouse, Run::program_cpu_us), of(LoopDecode, Run::program_cpu_us)),
            Bound::AtMost(1.6),
        ),
        (
            "events/s / those of the Kafka engine, from start until counted (a/b)",
            ratio(of(Tallyhouse, rate), of(KafkaEngine, rate)),
            Bound::AtLeast(5.0),
        ),
        (
            "events/s / those of the loop with decode, from the first record to the end (s/d)",
            ratio(of(TallyhouseStopped, read_rate), of(LoopDecode, read_rate)),
            Bound::AtLeast(0.7),
        ),
        (
            "events/s from the first record to the end / those of the Python consumer, which waits for no flush (s/e)",
            ratio(of(TallyhouseStopped, read_rate), of(Python, rate)),
            Bound::AtLeast(50.0),
        ),
        (
            "records/s where half are hostile / those where all are good, from the first record to the end (h/s)",
            ratio(of(TallyhouseHostile, read_rate), of(TallyhouseStopped, read_rate)),
            Bound::AtLeast(0.5),
        ),
        (
            "Tallyhouse's peak memory in MiB, under memory.limit_bytes (a)",
            of(Tallyhouse, peak_mib),
            Bound::AtMost(MEMORY_LIMIT_BYTES as f64 / MIB),
        ),
        (
            "Tallyhouse's peak memory with ten times the events / that of the others (a)",
            ratio(large.and_then(peak_mib), of(Tallyhouse, peak_mib)),
            Bound::AtMost(1.2),
        ),
    ];
    all.into_iter().filter_map(|(what, found, bound)| Some(Target { what, found: found?, bound })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(contender: Contender, wall_seconds: f64, cpu_seconds: f64) -> Run {
        let program = Some(Cost { cpu_seconds, peak_bytes: 1 << 20 });
        Run { contender, events: 10, wall_seconds, read_seconds: None, program, clickhouse: None, parts: None }
    }

    #[test]
    fn what_did_not_run_is_not_judged_and_a_ratio_is_of_medians() {
        let runs = [run(Tallyhouse, 1.0, 3.0), run(Tallyhouse, 2.0, 1.0), run(Tallyhouse, 9.0, 2.0)];
        let engine = Summary { contender: KafkaEngine, runs: vec![run(KafkaEngine, 150.0, 9.0)] };
        let results = [Summary { contender: Tallyhouse, runs: runs.to_vec() }, engine];
        let targets = judge(&results, None);
        let found: Vec<(f64, bool)> = targets.iter().map(|target| (target.found, target.is_met())).collect();
        assert_eq!(found, [(2.0 / 9.0, true), (75.0, true), (1.0, true)], "{targets:?}");
    }
}
