//! `cargo peers --steady`: what Tallyhouse and ClickHouse's Kafka engine take at a steady rate, in turn, by partitions and rate.
//!
//! Must never print a figure of a run whose counts differ from what was produced.

use crate::Arguments;
use crate::contenders::{Contender, WITH_RECIPIENTS};
use clap::Args;
use devstack::bench::figures::{machine, median, thousands};
use devstack::bench::rivals::{Cores, Load, Servers, SteadyRun, System};
use devstack::bench::{AnyError, Interrupt, table};
use devstack::{Error, Kafka, KafkaOptions, Stack, build, progress};
use serde_json::{Value, json};
use std::str::FromStr;
use std::time::Duration;

/// Partitions of a topic, and events per second over all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    partitions: i32,
    per_second: u64,
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Scenario, String> {
        let read = || {
            let (partitions, per_second) = text.split_once('x')?;
            let scenario = Scenario { partitions: partitions.parse().ok()?, per_second: per_second.parse().ok()? };
            ((1..=4_000).contains(&scenario.partitions) && scenario.per_second > 0).then_some(scenario)
        };
        read().ok_or_else(|| "must be partitions x events per second, such as 64x20000".to_owned())
    }
}

/// Options of the measurement at steady rates.
#[derive(Args)]
pub struct SteadyArguments {
    /// Measure steady rates instead of catching up.
    #[arg(long)]
    pub steady: bool,
    /// With --steady: partitions x events per second over all of them, one run each.
    #[arg(long, value_delimiter = ',', default_value = "4x100000,12x5000,64x20000,1000x20000", requires = "steady")]
    scenarios: Vec<Scenario>,
    /// With --steady: members of the group, which are consumers of the engine.
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u8).range(1..=16), requires = "steady")]
    members: Vec<u8>,
    /// With --steady: how long each run is measured, in seconds; a multiple of the flush age has as many flushes in each run.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600), requires = "steady")]
    seconds: u64,
    /// With --steady: how long each run goes on before it is measured, in seconds. Each partition adds 30 ms: the broker is slow
    /// until it has written the first entry of each index file.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=600), requires = "steady")]
    warm_up: u64,
    /// With --steady: how long the idle servers are measured before each run, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=600), requires = "steady")]
    idle: u64,
    /// With --steady: the age at which both flush (flush.age_ms, kafka_flush_interval_ms).
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(50..=600_000), requires = "steady")]
    age_ms: u64,
}

/// Addition to the warm-up for each partition. A fresh topic of 1,000 partitions holds the producer's records back for 20 s. The broker
/// writes the first entries of 2,000 index files then, each on a new page of the disk.
const WARM_UP_OF_A_PARTITION: Duration = Duration::from_millis(30);

/// Time that each contender runs before any figure counts: a fresh Kafka spends as much on compiling its code as on running it.
const JVM_WARM_UP: Duration = Duration::from_secs(20);

/// All runs of one contender under one load.
struct Measured {
    scenario: Scenario,
    members: usize,
    contender: Contender,
    runs: Vec<SteadyRun>,
}

const HEAD: [&str; 12] = [
    "partitions × events/s, members",
    "CPU, program",
    "CPU, ClickHouse",
    "program + ClickHouse",
    "CPU, Kafka",
    "idle, ClickHouse + Kafka",
    "inserts",
    "parts",
    "merges",
    "p50, s",
    "p99, s",
    "producer late, s",
];

/// Measures the contenders in turn, and prints the tables.
pub fn peers(arguments: &Arguments, interrupt: &Interrupt) -> Result<(), AnyError> {
    let contenders = contenders(arguments)?;
    let program = progress::during("building Tallyhouse", || build::tallyhouse(&["--release", "--bin", "tallyhouse"]))?;
    let stack = Stack::shared();
    let clickhouse = stack.clickhouse().map_err(Error::to_string)?;
    // The first members of a group are given time to come together, as brokers do by default: none starts with all partitions.
    let properties = [("group.initial.rebalance.delay.ms".to_owned(), "3000".to_owned())].into();
    let options = KafkaOptions { properties, ..KafkaOptions::default() };
    let kafka = progress::during("starting Kafka", || Kafka::start(options))?;
    let servers = Servers { kafka: &kafka, clickhouse, stack, interrupt };
    let with = [&arguments.set[..], &[WITH_RECIPIENTS.to_owned()]].concat();
    let system = |contender| match (contender, &arguments.against) {
        (Contender::KafkaEngine, _) => System::KafkaEngine { recipients: false },
        (Contender::KafkaEngineRecipients, _) => System::KafkaEngine { recipients: true },
        (Contender::WithRecipients, _) => System::Tallyhouse { program: &program, set: &with },
        (Contender::Other, Some(other)) => System::Tallyhouse { program: other, set: &[] },
        _ => System::Tallyhouse { program: &program, set: &arguments.set },
    };
    if let (Some(&scenario), Some(&members)) = (arguments.steady.scenarios.first(), arguments.steady.members.first()) {
        eprintln!("peers: a run of each that does not count, while the servers' code is compiled and caches fill");
        let load = Load {
            warm_up: Duration::ZERO,
            measured: JVM_WARM_UP,
            idle: Duration::ZERO,
            ..load(arguments, scenario, members.into())
        };
        contenders.iter().try_for_each(|&contender| servers.run(&load, system(contender)).map(drop))?;
    }
    let mut all: Vec<Measured> = Vec::new();
    for &scenario in &arguments.steady.scenarios {
        for &members in &arguments.steady.members {
            let load = load(arguments, scenario, members.into());
            let new = |&contender| Measured { scenario, members: load.members, contender, runs: Vec::new() };
            let mut measured: Vec<Measured> = contenders.iter().map(new).collect();
            for _ in 0..arguments.rounds.unwrap_or(1) {
                for one in &mut measured {
                    let run = servers.run(&load, system(one.contender));
                    one.runs.push(run.map_err(|error| format!("{}: {error}", one.name()))?);
                    eprintln!("peers: {}", one.cells().join("  "));
                }
            }
            all.extend(measured);
        }
    }
    print(arguments, &all);
    Ok(())
}

/// Who runs: Tallyhouse, the other Tallyhouse if there is one, and the engine, unless `--only` names some of them.
fn contenders(arguments: &Arguments) -> Result<Vec<Contender>, AnyError> {
    let further = [Contender::WithRecipients, Contender::KafkaEngineRecipients];
    let steady = [Contender::Tallyhouse, further[0], Contender::Other, Contender::KafkaEngine, further[1]];
    if let Some(other) = arguments.only.iter().flatten().find(|contender| !steady.contains(contender)) {
        return Err(format!("{} does not run with --steady; a, u, o, b and r do", other.name()).into());
    }
    let has = |contender| match (contender, &arguments.only) {
        (Contender::Other, _) => arguments.against.is_some(),
        (_, None) => !further.contains(&contender),
        (_, Some(only)) => only.contains(&contender),
    };
    Ok(steady.into_iter().filter(|&contender| has(contender)).collect())
}

fn load(arguments: &Arguments, scenario: Scenario, members: usize) -> Load {
    let steady = &arguments.steady;
    Load {
        partitions: scenario.partitions,
        per_second: scenario.per_second,
        members,
        flush_age: Duration::from_millis(steady.age_ms),
        warm_up: Duration::from_secs(steady.warm_up) + WARM_UP_OF_A_PARTITION * scenario.partitions.unsigned_abs(),
        measured: Duration::from_secs(steady.seconds),
        idle: Duration::from_secs(steady.idle),
        campaigns: arguments.campaigns,
    }
}

impl Measured {
    fn name(&self) -> String {
        let Scenario { partitions, per_second } = self.scenario;
        let (partitions, per_second) = (thousands(partitions.into()), thousands(per_second as f64));
        let contender = match self.contender {
            Contender::KafkaEngine => "Kafka engine, two views",
            Contender::KafkaEngineRecipients => "Kafka engine, three views",
            Contender::WithRecipients => "Tallyhouse with recipients",
            Contender::Other => "the other Tallyhouse",
            _ => "Tallyhouse",
        };
        format!("{partitions} × {per_second}, {}: {contender}", self.members)
    }

    fn median(&self, figure: impl Fn(&SteadyRun) -> f64) -> f64 {
        median(self.runs.iter().map(figure)).unwrap_or(f64::NAN)
    }

    /// CPU of the program and of ClickHouse together, and of Kafka.
    fn cores(&self) -> [f64; 2] {
        [self.median(|run| run.cores.program + run.cores.clickhouse), self.median(|run| run.cores.kafka)]
    }

    fn cells(&self) -> Vec<String> {
        let three = |figure: f64| format!("{figure:.3}");
        let [both, kafka] = self.cores();
        let seconds = |share: f64| {
            let ms = |run: &SteadyRun| run.delays.quantile_ms(share).map_or(f64::NAN, |ms| ms as f64);
            format!("{:.2}", self.median(ms) / 1_000.0)
        };
        let idle = [self.median(|run| run.idle.clickhouse), self.median(|run| run.idle.kafka)].map(three);
        vec![
            self.name(),
            three(self.median(|run| run.cores.program)),
            three(self.median(|run| run.cores.clickhouse)),
            three(both),
            three(kafka),
            idle.join(" + "),
            thousands(self.median(|run| run.inserts as f64)),
            thousands(self.median(|run| run.parts_most as f64)),
            thousands(self.median(|run| run.merges as f64)),
            seconds(0.5),
            seconds(0.99),
            format!("{:.2}", self.median(|run| run.late_ms as f64) / 1_000.0),
        ]
    }

    fn json(&self) -> Value {
        let Scenario { partitions, per_second } = self.scenario;
        let cores = |cores: &Cores| json!({"program": cores.program, "clickhouse": cores.clickhouse, "kafka": cores.kafka, "own": cores.own});
        let run = |run: &SteadyRun| {
            json!({
                "cores": cores(&run.cores), "idle_cores": cores(&run.idle), "inserts": run.inserts,
                "active_parts_max": run.parts_most, "merges": run.merges,
                "delay_ms": {"p50": run.delays.quantile_ms(0.5), "p99": run.delays.quantile_ms(0.99), "max": run.delays.quantile_ms(1.0)},
                "settled_after_s": run.settled_after.as_secs_f64(), "producer_late_ms": run.late_ms, "events": run.events,
            })
        };
        json!({
            "contender": self.contender.name(), "partitions": partitions, "events_per_s": per_second, "members": self.members,
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
        })
    }
}

fn is_engine(contender: Contender) -> bool {
    matches!(contender, Contender::KafkaEngine | Contender::KafkaEngineRecipients)
}

/// Under each of Tallyhouse's rows, what it takes of what the engine takes under the same load.
fn rows(all: &[Measured]) -> Vec<Vec<String>> {
    let engine_of = |one: &Measured| {
        let same = |other: &&Measured| {
            is_engine(other.contender) && (other.scenario, other.members) == (one.scenario, one.members)
        };
        all.iter().find(same).filter(|_| !is_engine(one.contender))
    };
    let with_ratio = |one: &Measured| {
        let ratio = engine_of(one).map(|engine| {
            let [both, kafka] = [0, 1].map(|index| format!("{:.2}", one.cores()[index] / engine.cores()[index]));
            let mut row = vec![String::new(); HEAD.len()];
            (row[0], row[3], row[4]) = ("… of the engine's".to_owned(), both, kafka);
            row
        });
        [Some(one.cells()), ratio]
    };
    all.iter().flat_map(with_ratio).flatten().collect()
}

fn print(arguments: &Arguments, all: &[Measured]) {
    let steady = &arguments.steady;
    let mut heading = format!(
        "{} s after {} s of warm-up and {} ms for each partition, flushed every {} ms, campaigns: {}, CPU in cores less the servers' idle share, medians of {}; {}",
        steady.seconds,
        steady.warm_up,
        WARM_UP_OF_A_PARTITION.as_millis(),
        steady.age_ms,
        thousands(arguments.campaigns as f64),
        arguments.rounds.unwrap_or(1),
        machine()
    );
    arguments.set.iter().for_each(|set| heading.push_str(&format!("; {set}")));
    if arguments.json {
        println!("{:#}", json!({"heading": heading, "runs": all.iter().map(Measured::json).collect::<Vec<_>>()}));
    } else if arguments.markdown {
        println!("{heading}\n\n{}", table::markdown(&HEAD, &rows(all)));
    } else {
        println!("{heading}\n\n{}", table::text(&HEAD, &rows(all)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devstack::bench::figures::Delays;

    #[test]
    fn scenarios_are_partitions_and_a_rate() {
        assert_eq!("64x20000".parse(), Ok(Scenario { partitions: 64, per_second: 20_000 }));
        for text in ["64", "0x5", "5x0", "x", "64x", "9999x1"] {
            assert!(text.parse::<Scenario>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_ratio_is_of_the_engine_under_the_same_load() {
        let measured = |contender, members, program, clickhouse| {
            let run = SteadyRun {
                cores: Cores { program, clickhouse, kafka: program + clickhouse, own: 0.0 },
                idle: Cores::default(),
                inserts: 1,
                parts_most: 1,
                merges: 1,
                delays: Delays::default(),
                settled_after: Duration::ZERO,
                late_ms: 0,
                events: 1,
            };
            Measured { scenario: Scenario { partitions: 4, per_second: 10 }, members, contender, runs: vec![run] }
        };
        let all = [
            measured(Contender::Tallyhouse, 1, 0.25, 0.25),
            measured(Contender::KafkaEngine, 1, 0.0, 2.0),
            measured(Contender::Tallyhouse, 2, 0.5, 0.0),
        ];
        let rows = rows(&all);
        assert_eq!(rows.len(), 4, "nothing to compare the last one with: {rows:?}");
        assert_eq!((rows[1][3].as_str(), rows[1][4].as_str()), ("0.25", "0.25"));
    }
}
