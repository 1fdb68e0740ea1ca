//! `cargo peers`: compares the cost of an event with Tallyhouse and with its alternatives, side by side on real
//! servers.
//!
//! ```text
//! fill one topic ─► round 1..n: each contender in turn, in a fresh database, until all is counted ─► compare ─► figures
//! ```
//!
//! With `--steady` (`steady.rs`), what a steady rate takes.
//!
//! Must never print a figure of a run whose counts differ from what was produced, nor switch off a guard of Tallyhouse.

mod contenders;
mod python;
mod report;
mod run;
mod steady;
mod targets;

use clap::Parser;
use contenders::{Bench, Contender};
use devstack::bench::{AnyError, Interrupt, Topic};
use devstack::producer::Events;
use devstack::{Error, Stack, build};
use run::Run;
use std::path::PathBuf;
use std::process::ExitCode;
use steady::SteadyArguments;

const PARTITIONS: i32 = 4;
/// Default rounds of each contender, and the default contenders.
const ROUNDS: u32 = 3;
const CONTENDERS: [Contender; 6] = [
    Contender::Tallyhouse,
    Contender::TallyhouseStopped,
    Contender::KafkaEngine,
    Contender::Loop,
    Contender::LoopDecode,
    Contender::Python,
];

/// Measures Tallyhouse against what one would use instead: time, CPU and memory per event.
///
/// Fills a topic in a real Kafka with events of the Django producer: four partitions, lz4, none broken, so that all can
/// be compared. Then each contender counts them in a fresh database of the same real ClickHouse, in several rounds.
/// Before a figure is printed, the counts by event type and the number of rows must be what was produced. With --steady, measures
/// what Tallyhouse and the Kafka engine take at steady rates instead.
#[derive(Parser)]
#[command(name = "cargo peers", after_long_help = AFTER_HELP)]
struct Arguments {
    /// Number of events to produce.
    #[arg(long, default_value_t = 3_000_000, value_parser = clap::value_parser!(u64).range(10..))]
    events: u64,
    /// Rounds of each contender; the figures are medians. [default: 3, with --steady 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Letters of the contenders that run. [default: a,s,b,c,d,e, with --steady a,b]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Option<Vec<Contender>>,
    /// Number of events for the Python consumer; its figures per event stand for all.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    python_events: u64,
    /// Of how many campaigns the events are.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    campaigns: u64,
    /// Of how many days the events are, in no order.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_650))]
    days: u64,
    /// Also run Tallyhouse on ten times the events, to see whether memory grows with their number.
    #[arg(long)]
    memory: bool,
    /// A setting for Tallyhouse instead of its default, as in `tallyhouse run --set`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Another `tallyhouse` program (an earlier build, say) that runs as contender `o`.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// Print everything as JSON instead.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the table as Markdown, for docs/performance.md.
    #[arg(long)]
    markdown: bool,
    #[command(flatten)]
    steady: SteadyArguments,
}

const AFTER_HELP: &str = "\
Contenders:
  a  Tallyhouse, all guards on, default settings, left alone until everything is counted. The last window of each partition
     waits for flush.age_ms (5 s), as it does in service.
  s  The same, but told to stop (SIGTERM) once everything is read: it flushes, commits and ends. The speed of catching up,
     without that wait.
  h  As s, on as many records of which every other one is hostile in one of sixteen ways. Not run unless named: --only s,h.
  u  As a, with recipients (clickhouse.recipients = true), from which unique figures come. Not run unless named.
  b  ClickHouse's Kafka engine, with a materialized view into the raw table and one from there into the daily table.
  r  As b, with a third view that writes a table of recipients with the same columns as Tallyhouse's. Not run unless named.
  c  A bare rdkafka loop that reads the records and does nothing.
  d  The same loop, each value read by Tallyhouse's decoder.
  e  devstack/contenders/consumer.py: confluent_kafka, json and clickhouse_connect in batches of 10,000 rows.

CPU of ClickHouse includes the merges that follow a run, until they have settled. Kafka's own is not counted. Parts are those
written by inserts. Ctrl-C ends everything in order.

With --steady, (a) and (b) run in turn at steady rates, (o) too with --against, (u) and (r) if they are named. The producer is an open loop: event n is due n / rate
after the start and is sent then, whatever the system does. Both flush at the same age, and their tables have the same columns. The
engine's have neither index nor tokens, and its counters are not kept by source. CPU is in cores over the measured seconds, less what
the idle servers took before with the same looks at them. `inserts` are those in both tables, `parts` is the greatest number of active
parts of one ClickHouse partition. p50 and p99 count from when an event was due until one of five looks a second showed it. The looks
read daily for Tallyhouse, which writes it last, and email_events for the engine.
All of it takes half an hour for each round; --scenarios 64x20000 --members 2 --seconds 15 is a short run.

Exit status 0 means that all counts were equal; a missed target does not change it.";

fn main() -> ExitCode {
    devstack::init();
    match peers(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn peers(arguments: &Arguments) -> Result<(), AnyError> {
    let interrupt = Interrupt::listen()?;
    if arguments.steady.steady {
        return steady::peers(arguments, &interrupt);
    }
    let mut wanted = arguments.only.clone().unwrap_or_else(|| CONTENDERS.to_vec());
    if arguments.against.is_some() && !wanted.contains(&Contender::Other) {
        wanted.push(Contender::Other);
    }
    let programs = build_all(arguments.against.clone())?;
    let python = if wanted.contains(&Contender::Python) { python::interpreter() } else { None };
    wanted.retain(|contender| *contender != Contender::Python || python.is_some());

    let stack = Stack::shared();
    let kafka = stack.kafka().map_err(Error::to_string)?;
    let clickhouse = stack.clickhouse().map_err(Error::to_string)?;
    let fill = |events, broken_percent| {
        if events > 0 {
            eprintln!("peers: producing {events} events");
        }
        let shape =
            Events { broken_percent, campaigns: arguments.campaigns, days: arguments.days, ..Events::default() };
        let name = stack.fresh_topic_name("peers");
        Topic::fill(kafka.bootstrap(), &name, PARTITIONS, (&shape, events), &interrupt)
    };
    let only_for = |contender, events| if wanted.contains(&contender) { events } else { 0 };
    let bench = Bench {
        stack,
        brokers: kafka.bootstrap(),
        clickhouse,
        programs,
        python,
        all: fill(arguments.events, 0)?,
        python_part: fill(only_for(Contender::Python, arguments.python_events), 0)?,
        hostile: fill(only_for(Contender::TallyhouseHostile, arguments.events), 50)?,
        set: arguments.set.clone(),
        interrupt: interrupt.clone(),
    };
    let mut runs = Vec::new();
    let rounds = arguments.rounds.unwrap_or(ROUNDS);
    for round in 1..=rounds {
        for &contender in &wanted {
            let run = bench.run(contender, &bench.all)?;
            eprintln!("peers: round {round} of {rounds}: {}", report::line(&run));
            runs.push(run);
        }
    }
    let large =
        if arguments.memory { Some(bench.run(Contender::Tallyhouse, &fill(arguments.events * 10, 0)?)?) } else { None };
    print(arguments, &runs, large.as_ref());
    Ok(())
}

fn print(arguments: &Arguments, runs: &[Run], large: Option<&Run>) {
    let results = report::summarize(runs);
    let targets = targets::judge(&results, large);
    if arguments.json {
        println!("{:#}", report::json(runs, &results, &targets));
    } else if arguments.markdown {
        println!("{}", report::markdown(&results, &targets));
    } else {
        println!("{}", report::text(&results, &targets));
    }
}

/// The programs that run.
struct Programs {
    tallyhouse: PathBuf,
    consume_loop: PathBuf,
    other: Option<PathBuf>,
}

/// Builds the real programs, in release, with the cargo at hand.
fn build_all(other: Option<PathBuf>) -> Result<Programs, AnyError> {
    // They are built one after the other. Together, the features that only examples need would come into the program.
    let tallyhouse = build::tallyhouse(&["--release", "--bin", "tallyhouse"])?;
    build::tallyhouse(&["--release", "--example", "consume_loop"])?;
    let consume_loop = tallyhouse.with_file_name("examples").join("consume_loop");
    Ok(Programs { tallyhouse, consume_loop, other })
}
