//! `cargo measure freshness`: measures the time from when an event is due until a query counts it, at steady rates.
//!
//! ```text
//! members settle ─► producer keeps the rate ──► all is counted ─► compare ─► figures
//!                   witness asks `daily` every 50 ms
//! ```
//!
//! Must never slow the producer down for the system's sake: a rate that does not hold is reported as such.

use crate::{Bench, Common, Findings};
use clap::Args;
use devstack::bench::Witness;
use devstack::bench::figures::{bucket_quantile, thousands};
use devstack::bench::plot::{Axis, Chart, Scale, Series};
use devstack::bench::{
    AnyError, Deployment, LOOK_INTERVAL, Member, Meter, Metrics, Pace, Sent, end_all, finish, parts_written,
    produce_steadily, settle,
};
use devstack::process::own_cpu;
use devstack::producer::{Events, Producer, create_topic};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time until the producer starts, in which it makes its payloads.
const AHEAD: Duration = Duration::from_secs(1);
/// Time limit for counting everything once the producer has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);
/// Time between two lines that report the progress.
const TELL_INTERVAL: Duration = Duration::from_secs(10);
/// A producer that was later than this did not keep the rate.
const LATE_MS_MAX: u64 = 1_000;
const QUERYABLE: &str = "tallyhouse_event_to_queryable_seconds";

#[derive(Args)]
#[command(after_long_help = "\
The producer is an open loop: event n is due n / rate after the start and is sent then, whatever the system does. A delay counts
from when the event was due until an answer of `SELECT source, max(end_offset) FROM daily WHERE source != '' GROUP BY source`, asked every 50 ms,
has shown it; counters are written last, so its row is there as well. Delays are upper bounds, to 10 ms.

A rate holds if the producer was never more than a second late and the delay does not grow: p99 of the second half of the events
is at most one and a half times that of the first, plus a second. A rate that does not hold is measured all the same, and said so.

`own p50` and `own p99` are what Tallyhouse tells of itself (tallyhouse_event_to_queryable_seconds): the bounds of its buckets.
`inserts/s` are parts that inserts wrote into email_events and into daily, per second. `parts` is the greatest number of active parts
of one ClickHouse partition at any time; ClickHouse delays inserts from 1,000 on. CPU is in cores, over the whole run.

With few events a window waits for flush.age_ms; with many partitions it waits longer, so that a member writes no more than
flush.batches_per_second_max batches a second (partitions of the member / that number, in seconds): `age` is what it came to.")]
pub struct Arguments {
    /// Events per second, one run each.
    #[arg(long, value_delimiter = ',', default_value = "1000,50000,300000", value_parser = clap::value_parser!(u64).range(1..))]
    rates: Vec<u64>,
    /// Time that each run produces, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Values of flush.age_ms, each with every rate.
    #[arg(long, value_delimiter = ',', default_value = "5000,1000")]
    ages: Vec<u64>,
    /// Partitions of the topic.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=1_000))]
    partitions: i32,
    /// Members of the group.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=16))]
    members: u64,
    /// Number of distinct campaigns in the events.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    campaigns: u64,
    #[command(flatten)]
    pub common: Common,
}

/// The figures of one rate with one flush age.
struct Run {
    age_ms: u64,
    rate: u64,
    /// The reason why the rate did not hold.
    broken: Option<String>,
    effective_age_s: f64,
    delay_ms: [Option<u64>; 3],
    halves_p99_ms: [Option<u64>; 2],
    own_s: [Option<f64>; 2],
    inserts_per_s: BTreeMap<String, f64>,
    parts_most: u64,
    producer_late_ms: u64,
    /// Cores used by Tallyhouse, ClickHouse, Kafka, and this program (producer and witness).
    cores: [f64; 4],
}

const HEAD: [&str; 14] = [
    "flush.age_ms",
    "events/s",
    "holds",
    "age, s",
    "p50, s",
    "p99, s",
    "max, s",
    "own p50, s",
    "own p99, s",
    "inserts/s",
    "parts",
    "CPU Tallyhouse",
    "ClickHouse",
    "Kafka + producer",
];

/// Runs every rate with every flush age.
pub fn measure(arguments: &Arguments, bench: &Bench) -> Result<Findings, AnyError> {
    let mut runs = Vec::new();
    for &age_ms in &arguments.ages {
        for &rate in &arguments.rates {
            let run = run(arguments, bench, age_ms, rate)
                .map_err(|error| format!("{rate} events/s with flush.age_ms={age_ms}: {error}"))?;
            eprintln!("measure: {}", line(&run));
            runs.push(run);
        }
    }
    let Arguments { seconds, partitions, members, campaigns, .. } = arguments;
    let mut heading = format!(
        "{seconds} s at each rate; partitions: {partitions}, members: {members}, campaigns: {}",
        thousands(*campaigns as f64)
    );
    arguments.common.set.iter().for_each(|set| heading.push_str(&format!(", {set}")));
    Ok(Findings {
        heading,
        head: &HEAD,
        rows: runs.iter().map(cells).collect(),
        json: runs.iter().map(json).collect(),
        charts: vec![chart(arguments, &runs)],
    })
}

fn run(arguments: &Arguments, bench: &Bench, age_ms: u64, rate: u64) -> Result<Run, AnyError> {
    let Bench { program, kafka, clickhouse, stack, interrupt } = bench;
    let pace = Pace::new(rate, Duration::from_secs(arguments.seconds));
    let database = stack.fresh_database_name("measure");
    let topic = stack.fresh_topic_name("measure");
    create_topic(kafka.bootstrap(), &topic, arguments.partitions)?;
    let set: Vec<String> = [format!("flush.age_ms={age_ms}")].into_iter().chain(arguments.common.set.clone()).collect();
    let deployment =
        Deployment { program, brokers: kafka.bootstrap(), clickhouse, topic: &topic, database: &database, set: &set };
    deployment.migrate()?;
    let meter = Meter::start(clickhouse)?;
    let members: Vec<Member> = (0..arguments.members).map(|_| deployment.start()).collect::<Result<_, _>>()?;
    settle(&members, arguments.partitions as usize, interrupt)?;

    let producer = Producer::new(kafka.bootstrap(), &topic, arguments.partitions)?;
    let shape = Events { days: 1, campaigns: arguments.campaigns, broken_percent: 0, ..Events::default() };
    let cpu = || -> Result<[Duration; 4], AnyError> {
        let members = members.iter().map(|member| member.server.cpu_time()).sum::<Result<Duration, _>>()?;
        let brokers = kafka.nodes()?.iter().map(|node| node.cpu_time()).sum::<Result<Duration, _>>()?;
        Ok([members, clickhouse.server()?.cpu_time()?, brokers, own_cpu()?])
    };
    eprintln!("measure: {} events/s for {} s, flush.age_ms={age_ms}", thousands(rate as f64), arguments.seconds);
    let mut watch = Watch {
        bench,
        members: &members,
        database: &database,
        witness: Witness::new(pace, arguments.partitions as usize),
        parts_most: 0,
        told: Duration::ZERO,
        started: Instant::now() + AHEAD,
    };
    let (before, started) = (cpu()?, watch.started);
    let sent = watch.until_counted(|| produce_steadily(producer, &shape, pace, started, interrupt))?;
    let (after, seconds) = (cpu()?, started.elapsed().as_secs_f64());
    let metrics: Vec<Metrics> = members.iter().map(Member::metrics).collect();
    end_all(&members)?;
    let parts = parts_written(clickhouse, &database)?;
    finish(meter, clickhouse, &database, &sent.ledger)?;
    let [first, second] = watch.witness.halves();
    let all = first.plus(second);
    let halves_p99_ms = [first.quantile_ms(0.99), second.quantile_ms(0.99)];
    let own = own_buckets(&metrics);
    let producer_late_ms = sent.late.quantile_ms(1.0).unwrap_or(0);
    Ok(Run {
        age_ms,
        rate,
        broken: broken(&sent, halves_p99_ms),
        effective_age_s: metrics.iter().map(|metrics| metrics.sum("tallyhouse_flush_age_seconds")).fold(0.0, f64::max),
        delay_ms: [0.5, 0.99, 1.0].map(|share| all.quantile_ms(share)),
        halves_p99_ms,
        own_s: [0.5, 0.99].map(|share| bucket_quantile(&own, share)),
        inserts_per_s: parts.into_iter().map(|(table, parts)| (table, parts as f64 / seconds)).collect(),
        parts_most: watch.parts_most,
        producer_late_ms,
        cores: std::array::from_fn(|index| (after[index] - before[index]).as_secs_f64() / seconds),
    })
}

/// The state of the looks while events come.
struct Watch<'a> {
    bench: &'a Bench,
    members: &'a [Member],
    database: &'a str,
    witness: Witness,
    parts_most: u64,
    /// Time of the latest line, after the start.
    told: Duration,
    started: Instant,
}

impl Watch<'_> {
    /// Looks while `produce` runs, and further until everything that it sent is counted.
    fn until_counted(&mut self, produce: impl FnOnce() -> Result<Sent, AnyError> + Send) -> Result<Sent, AnyError> {
        let sent = std::thread::scope(|scope| {
            let producing = scope.spawn(produce);
            while !producing.is_finished() {
                self.look()?;
            }
            producing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let produced_at = Instant::now();
        while self.witness.seen() < sent.ledger.produced {
            if produced_at.elapsed() > DRAIN_TIMEOUT {
                let log = self.members.iter().map(|member| member.server.log_tail()).collect::<Vec<_>>().join("\n");
                return Err(
                    format!("{} after {DRAIN_TIMEOUT:?}; the members say:\n{log}", self.witness.progress()).into()
                );
            }
            self.look()?;
        }
        Ok(sent)
    }

    /// Looks once, and pauses.
    fn look(&mut self) -> Result<(), AnyError> {
        let (clickhouse, database) = (self.bench.clickhouse, self.database);
        self.members.iter().try_for_each(Member::check_alive)?;
        self.bench.interrupt.check(self.started)?;
        let answer = clickhouse.query(&format!(
            "SELECT source, max(end_offset) FROM {database}.daily WHERE source != '' GROUP BY source"
        ))?;
        let elapsed = self.started.elapsed();
        self.witness.see(&answer, elapsed)?;
        let parts = format!(
            "SELECT max(parts) FROM (SELECT count() AS parts FROM system.parts \
             WHERE active AND database = '{database}' GROUP BY table, partition_id)"
        );
        self.parts_most = self.parts_most.max(clickhouse.number(&parts)?);
        if elapsed > self.told + TELL_INTERVAL {
            self.told = elapsed;
            eprintln!("measure: {:.0} s: {}", elapsed.as_secs_f64(), self.witness.progress());
        }
        std::thread::sleep(LOOK_INTERVAL);
        Ok(())
    }
}

/// Returns the sum of the members' own histograms.
fn own_buckets(metrics: &[Metrics]) -> Vec<(f64, f64)> {
    let all: Vec<Vec<(f64, f64)>> = metrics.iter().map(|metrics| metrics.buckets(QUERYABLE)).collect();
    let bucket = |index: usize, bound: f64| (bound, all.iter().filter_map(|one| one.get(index)).map(|one| one.1).sum());
    all.first().into_iter().flatten().enumerate().map(|(index, (bound, _))| bucket(index, *bound)).collect()
}

/// Returns why a rate did not hold, if it did not.
fn broken(sent: &Sent, [first, second]: [Option<u64>; 2]) -> Option<String> {
    let late_ms = sent.late.quantile_ms(1.0).unwrap_or(0);
    if late_ms > LATE_MS_MAX {
        return Some(format!("the producer was up to {:.1} s late", late_ms as f64 / 1_000.0));
    }
    let (first, second) = (first?, second?);
    (second > first * 3 / 2 + 1_000)
        .then(|| format!("the delay grows: p99 {} and then {}", seconds(Some(first)), seconds(Some(second))))
}

fn seconds(delay_ms: Option<u64>) -> String {
    delay_ms.map_or("–".to_owned(), |ms| format!("{:.2}", ms as f64 / 1_000.0))
}

fn line(run: &Run) -> String {
    let [p50, p99, most] = run.delay_ms.map(seconds);
    let holds = run.broken.as_deref().unwrap_or("it holds");
    let (rate, late_ms) = (thousands(run.rate as f64), run.producer_late_ms);
    format!("{rate} events/s: p50 {p50} s, p99 {p99} s, at most {most} s; {holds}; producer at most {late_ms} ms late")
}

fn cells(run: &Run) -> Vec<String> {
    let own = |bound: Option<f64>| bound.map_or("–".to_owned(), |bound| format!("≤ {bound}"));
    let inserts = |table: &str| run.inserts_per_s.get(table).copied().unwrap_or(0.0);
    let [tallyhouse, clickhouse, kafka, own_cpu] = run.cores;
    vec![
        thousands(run.age_ms as f64),
        thousands(run.rate as f64),
        run.broken.clone().unwrap_or_else(|| "yes".to_owned()),
        format!("{:.1}", run.effective_age_s),
        seconds(run.delay_ms[0]),
        seconds(run.delay_ms[1]),
        seconds(run.delay_ms[2]),
        own(run.own_s[0]),
        own(run.own_s[1]),
        format!("{:.1} + {:.1}", inserts("email_events"), inserts("daily")),
        run.parts_most.to_string(),
        format!("{tallyhouse:.2}"),
        format!("{clickhouse:.2}"),
        format!("{kafka:.2} + {own_cpu:.2}"),
    ]
}

fn json(run: &Run) -> Value {
    let [tallyhouse, clickhouse, kafka, own] = run.cores;
    json!({
        "flush_age_ms": run.age_ms, "events_per_s": run.rate, "holds": run.broken.is_none(), "broken": run.broken,
        "effective_age_s": run.effective_age_s, "delay_ms": {"p50": run.delay_ms[0], "p99": run.delay_ms[1], "max": run.delay_ms[2]},
        "p99_ms_by_half": run.halves_p99_ms, "own_s": {"p50": run.own_s[0], "p99": run.own_s[1]},
        "inserts_per_s": run.inserts_per_s, "active_parts_max": run.parts_most, "producer_late_ms": run.producer_late_ms,
        "cores": {"tallyhouse": tallyhouse, "clickhouse": clickhouse, "kafka": kafka, "producer_and_witness": own},
    })
}

fn chart(arguments: &Arguments, runs: &[Run]) -> Chart {
    let series = |age_ms: u64, index: usize, name: &str| Series {
        name: format!("{name}, flush.age_ms={age_ms}"),
        points: runs
            .iter()
            .filter(|run| run.age_ms == age_ms)
            .filter_map(|run| Some((run.rate as f64, run.delay_ms[index]? as f64 / 1_000.0)))
            .collect(),
    };
    Chart {
        title: "From event to query".to_owned(),
        x: Axis { name: "events/s".to_owned(), scale: Scale::Log },
        y: Axis { name: "delay, s".to_owned(), scale: Scale::Linear },
        series: arguments.ages.iter().flat_map(|&age| [series(age, 1, "p99"), series(age, 0, "p50")]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_that_was_not_kept_or_piles_up_does_not_hold() {
        let mut sent = Sent::default();
        assert_eq!(broken(&sent, [Some(5_000), Some(8_500)]), None);
        assert!(broken(&sent, [Some(5_000), Some(8_510)]).is_some_and(|why| why.contains("grows")));
        sent.late.record(1_500);
        assert!(broken(&sent, [Some(5_000), Some(5_000)]).is_some_and(|why| why.contains("1.5 s late")));
    }
}
