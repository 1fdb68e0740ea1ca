//! `cargo measure`: measures how soon an event can be queried, and how cost grows with members, campaigns and
//! payloads, on real servers.
//!
//! Must never print a figure of a run whose counts differ from what was produced, nor switch off a guard of
//! Tallyhouse.

mod freshness;
mod scaling;

use clap::{Args, Parser};
use devstack::bench::plot::{Chart, svg};
use devstack::bench::{AnyError, Interrupt, figures, table};
use devstack::{ClickHouse, Error, Kafka, KafkaOptions, Stack, build, progress};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures Tallyhouse on this machine: its freshness at steady rates, and how its cost grows.
///
/// Starts a real Kafka and a real ClickHouse and runs the real program, built in release, with all guards on. Everything shares
/// this machine's cores: servers, members, producer and the looks at the outcome. No figure is printed unless the counts by
/// event type and the number of rows are exactly what was produced.
#[derive(Parser)]
#[command(
    name = "cargo measure",
    after_long_help = "\
Examples:
  cargo measure freshness                                      three rates, a minute each, two flush ages
  cargo measure freshness --rates 20000 --partitions 64 --members 2 --ages 5000
  cargo measure scaling --only campaigns --rounds 3
  cargo measure scaling --markdown --svg docs/images/scaling.svg

`cargo peers` compares with what one would use instead. Ctrl-C ends everything in order."
)]
enum Task {
    /// Delay from when an event was due until it can be queried, at steady rates.
    Freshness(freshness::Arguments),
    /// Cost of an event with more members, more campaigns and larger payloads.
    Scaling(scaling::Arguments),
}

/// Settings of Tallyhouse, and the form of the figures.
#[derive(Args)]
struct Common {
    /// A setting for Tallyhouse instead of its default, as in `tallyhouse run --set`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print everything as JSON instead.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the table as Markdown, for the documents.
    #[arg(long)]
    markdown: bool,
    /// Also draw the figures into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// The results of the measurement, ready to be written.
struct Findings {
    /// The subject of the figures, in one line.
    heading: String,
    head: &'static [&'static str],
    rows: Vec<Vec<String>>,
    json: Value,
    charts: Vec<Chart>,
}

/// The servers and settings that every run needs.
struct Bench {
    program: PathBuf,
    kafka: Kafka,
    clickhouse: &'static ClickHouse,
    stack: &'static Stack,
    interrupt: Interrupt,
}

fn main() -> ExitCode {
    devstack::init();
    match measure(&Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("measure: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(task: &Task) -> Result<(), AnyError> {
    let interrupt = Interrupt::listen()?;
    let program = progress::during("building Tallyhouse", || build::tallyhouse(&["--release", "--bin", "tallyhouse"]))?;
    let stack = Stack::shared();
    let clickhouse = stack.clickhouse().map_err(Error::to_string)?;
    // The first members of a group get time to join, as with brokers by default, so none starts with all partitions.
    let properties = [("group.initial.rebalance.delay.ms".to_owned(), "3000".to_owned())].into();
    let kafka =
        progress::during("starting Kafka", || Kafka::start(KafkaOptions { properties, ..KafkaOptions::default() }))?;
    let bench = Bench { program, kafka, clickhouse, stack, interrupt };
    let (common, findings) = match task {
        Task::Freshness(arguments) => (&arguments.common, freshness::measure(arguments, &bench)?),
        Task::Scaling(arguments) => (&arguments.common, scaling::measure(arguments, &bench)?),
    };
    findings.write(common)
}

impl Findings {
    fn write(&self, common: &Common) -> Result<(), AnyError> {
        if let Some(path) = &common.svg {
            std::fs::write(path, svg(&self.charts)?)?;
        }
        let heading = format!("{}; {}", self.heading, figures::machine());
        if common.json {
            println!("{:#}", json!({"heading": heading, "set": common.set, "runs": self.json}));
        } else if common.markdown {
            println!("{heading}\n\n{}", table::markdown(self.head, &self.rows));
        } else {
            println!("{heading}\n\n{}", table::text(self.head, &self.rows));
        }
        Ok(())
    }
}
