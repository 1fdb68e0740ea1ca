//! A Kafka cluster of one or three nodes in KRaft mode, each broker and controller at once.
//!
//! Tuned for tests, not for data: small heaps, few internal partitions, no waiting before the first rebalance.
//!
//! Must never listen on anything but 127.0.0.1.

mod leave;
mod probe;
pub mod secure;

pub use leave::remove_members;

use crate::{
    cache::Cache,
    data::DataFolder,
    error::{Context, Error, Result},
    fetch,
    ports::PortBlock,
    process::{self, Output, Server},
};
use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The environment variable that names a cluster to use instead, as `host:port,…`.
pub const EXTERNAL_VARIABLE: &str = "TALLYHOUSE_TEST_KAFKA";

/// Time limit for the start. Starting takes 3 to 10 s; a machine that also compiles takes longer.
const START_DEADLINE: Duration = Duration::from_secs(120);
const QUIET_LOG: &str = include_str!("log4j2.properties");

/// The options of a cluster. `KafkaOptions::default()` is one node with temporary data.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// Number of nodes: 1, or 3 for replicated partitions.
    pub nodes: usize,
    /// Further lines for each `server.properties`. They override the built-in ones.
    pub properties: BTreeMap<String, String>,
    /// Folder of data and logs, with one folder for each node; it is kept. A temporary folder if None.
    pub directory: Option<PathBuf>,
    /// The address of a proxy for each node, or none. Each node then has a second listener, [`Kafka::behind_proxy`],
    /// whose clients are sent to the proxies' addresses. Other clients and the nodes among themselves do not pass the
    /// proxies.
    pub proxies: Vec<SocketAddr>,
    /// Further listeners of a single node. Their security is in `properties`.
    pub listeners: Vec<Listener>,
    /// Users for SCRAM-SHA-512, each with its password.
    pub scram_users: Vec<(String, String)>,
}

/// A listener on 127.0.0.1 that sends clients to `localhost`.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its name, in capitals.
    pub name: String,
    /// `SSL`, `SASL_SSL` or another protocol of Kafka's.
    pub protocol: String,
    /// Its port, which somebody has reserved.
    pub port: u16,
}

impl Default for KafkaOptions {
    fn default() -> KafkaOptions {
        KafkaOptions {
            nodes: 1,
            properties: BTreeMap::new(),
            directory: None,
            proxies: Vec::new(),
            listeners: Vec::new(),
            scram_users: Vec::new(),
        }
    }
}

/// A running cluster, or one that somebody else runs. Dropping it kills the nodes.
#[derive(Debug)]
pub struct Kafka {
    bootstrap: String,
    owned: Option<Owned>,
}

/// Fields drop in this order: first the processes, then their files, then their ports.
#[derive(Debug)]
struct Owned {
    nodes: Vec<Server>,
    data: DataFolder,
    _ports: PortBlock,
    proxied_ports: PortBlock,
}

impl Kafka {
    /// Starts a cluster and waits until every node knows every other. Fetches Kafka first if it is not in the cache.
    ///
    /// Fails when Java is missing, Kafka cannot be fetched, or a node does not become healthy within two minutes.
    /// Panics when `options.nodes` is neither 1 nor 3, or 3 with further listeners.
    pub fn start(options: KafkaOptions) -> Result<Kafka> {
        assert!(matches!(options.nodes, 1 | 3), "a cluster has 1 or 3 nodes, not {}", options.nodes);
        assert!(options.nodes == 1 || options.listeners.is_empty(), "further listeners are for a single node");
        let jars = fetch::kafka(&Cache::open()?)?;
        let (ports, proxied_ports) = (PortBlock::reserve()?, PortBlock::reserve()?);
        let data = DataFolder::make(options.directory.as_deref())?;
        let plan = Plan {
            options: &options,
            jars: &jars,
            data: data.path(),
            ports: &ports,
            proxied_ports: &proxied_ports,
            cluster_id: &random_id(),
        };
        let started: Result<Vec<Server>> = thread::scope(|scope| {
            let starting: Vec<_> =
                (0..options.nodes).map(|index| scope.spawn(move || plan.start_node(index))).collect();
            starting
                .into_iter()
                .map(|node| node.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let nodes = started?;
        let deadline = Instant::now() + START_DEADLINE;
        for node in &nodes {
            node.wait_healthy(deadline.saturating_duration_since(Instant::now()))?;
        }
        let addresses: Vec<String> = (0..options.nodes).map(|index| plan.address(index)).collect();
        Ok(Kafka { bootstrap: addresses.join(","), owned: Some(Owned { nodes, data, _ports: ports, proxied_ports }) })
    }

    /// Uses a cluster that somebody else runs at `bootstrap` (`host:port,…`).
    pub fn external(bootstrap: impl Into<String>) -> Kafka {
        Kafka { bootstrap: bootstrap.into(), owned: None }
    }

    /// Returns the nodes' addresses as clients want them: `host:port,…`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Returns the node at `index`, counted from 0. Its Kafka `node.id` is one more. Fails for an external cluster.
    pub fn node(&self, index: usize) -> Result<&Server> {
        let nodes = self.nodes()?;
        nodes.get(index).ok_or(Error::NoSuchNode { index, nodes: nodes.len() })
    }

    /// Returns all nodes. Fails for an external cluster.
    pub fn nodes(&self) -> Result<&[Server]> {
        match &self.owned {
            Some(owned) => Ok(&owned.nodes),
            None => Err(Error::NotOurs { name: "Kafka", variable: EXTERNAL_VARIABLE }),
        }
    }

    /// Returns the address to which the proxy of the node at `index` is to lead. Fails for an external cluster.
    pub fn behind_proxy(&self, index: usize) -> Result<SocketAddr> {
        self.node(index)?;
        match &self.owned {
            Some(owned) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, owned.proxied_ports.port(index as u16)))),
            None => Err(Error::NotOurs { name: "Kafka", variable: EXTERNAL_VARIABLE }),
        }
    }

    /// Returns the folder of data and logs (`node-N/server.log`). None for an external cluster.
    pub fn directory(&self) -> Option<&Path> {
        self.owned.as_ref().map(|owned| owned.data.path())
    }

    /// Ends everything now, for an end of the process that drops nothing.
    pub(crate) fn dispose(&self) {
        if let Some(owned) = &self.owned {
            for node in &owned.nodes {
                let _ = node.kill9();
            }
            owned.data.remove_if_temporary();
        }
    }
}

/// Runs one of the tools that Kafka ships as shell scripts, by the class that the script starts. Returns its output.
///
/// Fails when Java is missing, Kafka cannot be fetched, or the tool ends badly; the error holds its output.
pub fn tool(class: &str, arguments: &[&str]) -> Result<String> {
    let jars = fetch::kafka(&Cache::open()?)?;
    let mut command = Command::new("java");
    command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-cp"]).arg(jars.join("*"));
    command.arg(class).args(arguments);
    process::run(command)
}

/// The settings that all nodes of a cluster share.
#[derive(Clone, Copy)]
struct Plan<'a> {
    options: &'a KafkaOptions,
    jars: &'a Path,
    data: &'a Path,
    ports: &'a PortBlock,
    proxied_ports: &'a PortBlock,
    cluster_id: &'a str,
}

impl Plan<'_> {
    fn broker_port(&self, index: usize) -> u16 {
        self.ports.port(index as u16 * 2)
    }

    fn controller_port(&self, index: usize) -> u16 {
        self.ports.port(index as u16 * 2 + 1)
    }

    fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.broker_port(index))
    }

    /// Writes the node's files, formats its storage unless that was done before, and starts it without waiting for
    /// health.
    fn start_node(&self, index: usize) -> Result<Server> {
        let folder = self.data.join(format!("node-{index}"));
        fs::create_dir_all(&folder).context("make", &folder)?;
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).context("write", &folder.join(name));
        write("log4j2.properties", QUIET_LOG)?;
        let lines = self.properties(index, &folder).into_iter().map(|(key, value)| format!("{key}={value}\n"));
        write("server.properties", &lines.collect::<String>())?;
        if !folder.join("data/meta.properties").exists() {
            // The format tool lives for a second: compiling it well would take longer than running it.
            let mut format = self.java(&folder, &["-XX:TieredStopAtLevel=1"]);
            format.args(["kafka.tools.StorageTool", "format", "-t", self.cluster_id, "-c", "server.properties"]);
            for (user, password) in &self.options.scram_users {
                format.args(["--add-scram", &format!("SCRAM-SHA-512=[name={user},password={password}]")]);
            }
            process::run(format)?;
        }
        let heap = if self.options.nodes == 1 { "-Xmx1g" } else { "-Xmx512m" };
        let mut command = self.java(&folder, &[heap]);
        command.args(["kafka.Kafka", "server.properties"]);
        let server = process::spawn(format!("Kafka node {index}"), command, Output::Log(folder.join("server.log")))?;
        let (port, cluster_size) = (self.broker_port(index), self.options.nodes);
        Ok(server.with_health(health_check(port, cluster_size)))
    }

    fn java(&self, folder: &Path, options: &[&str]) -> Command {
        let mut command = Command::new("java");
        command.current_dir(folder).args(options).args(["-XX:+UseSerialGC", "-XX:-UsePerfData"]);
        command.arg("-Dlog4j2.configurationFile=log4j2.properties").arg("-cp").arg(self.jars.join("*"));
        command
    }

    fn properties(&self, index: usize, folder: &Path) -> BTreeMap<String, String> {
        let nodes = self.options.nodes;
        let voter = |index| format!("{}@127.0.0.1:{}", index + 1, self.controller_port(index));
        let (broker, controller) = (self.broker_port(index), self.controller_port(index));
        let proxy = self.options.proxies.get(index);
        let behind = |_| format!(",PROXIED://127.0.0.1:{}", self.proxied_ports.port(index as u16));
        let (behind, proxy) =
            (proxy.map(behind).unwrap_or_default(), proxy.map(|at| format!(",PROXIED://{at}")).unwrap_or_default());
        let further = |host: &str| -> String {
            self.options.listeners.iter().map(|at| format!(",{}://{host}:{}", at.name, at.port)).collect()
        };
        let protocols: String =
            self.options.listeners.iter().map(|at| format!(",{}:{}", at.name, at.protocol)).collect();
        let (behind, proxy) = (behind + &further("127.0.0.1"), proxy + &further("localhost"));
        let own = [
            ("process.roles", "broker,controller".to_owned()),
            ("node.id", (index + 1).to_string()),
            ("controller.quorum.voters", (0..nodes).map(voter).collect::<Vec<_>>().join(",")),
            ("listeners", format!("PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}{behind}")),
            ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{broker}{proxy}")),
            ("controller.listener.names", "CONTROLLER".to_owned()),
            (
                "listener.security.protocol.map",
                format!("PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT{protocols}"),
            ),
            ("log.dirs", folder.join("data").display().to_string()),
            ("default.replication.factor", nodes.to_string()),
            ("offsets.topic.replication.factor", nodes.to_string()),
            ("transaction.state.log.replication.factor", nodes.to_string()),
            ("transaction.state.log.min.isr", nodes.div_ceil(2).to_string()),
        ];
        let common = COMMON_PROPERTIES.iter().map(|&(key, value)| (key, value.to_owned()));
        let built_in = own.into_iter().chain(common).map(|(key, value)| (key.to_owned(), value));
        built_in.chain(self.options.properties.clone()).collect()
    }
}

const COMMON_PROPERTIES: &[(&str, &str)] = &[
    ("auto.create.topics.enable", "false"),
    // The controller notices a lost broker, and moves its partitions, in 2 s instead of 9. A restart after kill -9
    // waits as long, since the controller refuses a broker whose last session has not run out.
    ("broker.heartbeat.interval.ms", "500"),
    ("broker.session.timeout.ms", "2000"),
    // In the consumer protocol (KIP-848) the broker decides the length of a session.
    ("group.consumer.heartbeat.interval.ms", "1000"),
    ("group.consumer.min.heartbeat.interval.ms", "500"),
    ("group.consumer.min.session.timeout.ms", "1000"),
    ("group.consumer.session.timeout.ms", "6000"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("group.min.session.timeout.ms", "1000"),
    // 128 MiB are set aside by default, a quarter of a small heap.
    ("log.cleaner.dedupe.buffer.size", "4194304"),
    ("offsets.topic.num.partitions", "4"),
    ("transaction.state.log.num.partitions", "4"),
];

/// Returns a health check. A broker is healthy if it serves clients and counts itself as alive; a cluster's first
/// start waits for all.
fn health_check(port: u16, cluster_size: usize) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
    let complete_once = AtomicBool::new(false);
    move || {
        let known = probe::broker_ports(port).map_err(|error| format!("no answer on port {port}: {error}"))?;
        let wanted = if complete_once.load(Ordering::Relaxed) { 1 } else { cluster_size };
        if known.len() < wanted || !known.contains(&i32::from(port)) {
            return Err(format!("it knows {} of {cluster_size} brokers so far", known.len()));
        }
        complete_once.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Returns a cluster id: 22 characters of base64url that decode to 16 bytes, of which only letters and digits are
/// used.
fn random_id() -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let random = || ALPHABET[(RandomState::new().build_hasher().finish() % 62) as usize] as char;
    // The last character carries 2 bits; A is zero.
    std::iter::repeat_with(random).take(21).chain(['A']).collect()
}
