//! A ClickHouse cluster whose shards have replicas, with ZooKeeper and ON CLUSTER.
//!
//! ```text
//!              ┌── keeper proxy ── replica a ◄── fetches proxy ──┐
//! ZooKeeper ◄──┤                                                 ├── (each replica fetches parts through the
//!              └── keeper proxy ── replica b ◄── fetches proxy ──┘    other's proxy)
//! ```
//!
//! Each replica is a process of its own, as [`crate::clickhouse`] describes. The library cannot replicate by itself, so
//! [`patch`] changes it in memory. This works for one build on x86-64; [`unavailable`] says so elsewhere.
//!
//! Not in it: `system.zookeeper`, and ClickHouse Keeper. [`Replicas::make_replicated_database`] says how a database with the engine
//! Replicated is made.
//!
//! Must never listen on anything but 127.0.0.1.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod patch;
mod zookeeper;

use crate::{
    clickhouse::{self, CLUSTER, ClickHouse, ClickHouseOptions},
    data::DataFolder,
    error::{Context, Error, Result},
    ports::PortBlock,
    process::Server,
    proxy::Proxy,
};
use std::{env, net::SocketAddr, path::Path, thread, time::Duration};
use zookeeper::ZooKeeper;

/// The environment variable that names a cluster to use instead: the replicas' URLs, separated by commas, and a semicolon
/// between two shards.
///
/// Each server needs the macros `shard` and `replica` and a cluster of the name [`CLUSTER`].
pub const EXTERNAL_VARIABLE: &str = "TALLYHOUSE_TEST_CLICKHOUSE_REPLICAS";

/// Time without an answer after which ZooKeeper ends a replica's session.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends fetches of parts to the handler that [`patch`] puts in the place of `webterminal`. They are POST requests of
/// ClickHouse's own client without a body. Nothing else here sends such.
const HTTP_HANDLERS: &str = "<http_handlers><rule><methods>POST</methods><headers><User-Agent>regex:ClickHouse/.*\
    </User-Agent><Content-Length>0</Content-Length></headers><handler><type>webterminal</type></handler></rule>\
    <defaults/></http_handlers>";

/// Threads for the queues of replicated tables and for fetches. The library has two and one, a packaged server 512 and 16. With so few
/// a replica was seen to lag by minutes on a busy machine.
const POOLS: &str = "<background_schedule_pool_size>16</background_schedule_pool_size>\
    <background_fetches_pool_size>8</background_fetches_pool_size>";

/// The name of the cluster of a replica alone. A statement ON this CLUSTER makes the replica's worker.
const ALONE: &str = "alone";

/// A running cluster, or one that somebody else runs. Dropping it kills all its servers.
///
/// Fields drop in this order: first the processes, then their files.
#[derive(Debug)]
pub struct Replicas {
    shards: Vec<Vec<Replica>>,
    zookeeper: Option<ZooKeeper>,
    data: Option<DataFolder>,
}

/// One replica of a shard.
#[derive(Debug)]
pub struct Replica {
    name: String,
    clickhouse: ClickHouse,
    proxies: Option<Proxies>,
}

#[derive(Debug)]
struct Proxies {
    fetches: Proxy,
    keeper: Proxy,
}

/// Returns the reason why no replicas can be started on this machine. None if they can.
pub fn unavailable() -> Option<String> {
    let possible = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    let reason =
        || format!("replicas can be started on Linux on x86-64 only; elsewhere name some in {EXTERNAL_VARIABLE}");
    (!possible).then(reason)
}

impl Replicas {
    /// Starts `shards` shards of `replicas` replicas each, and waits until they answer. Fetches ZooKeeper and ClickHouse
    /// first if they are not in the cache.
    ///
    /// Each replica has the macros `shard` (from 1) and `replica` (`a`, `b`, …). `options.directory` gets a sub-folder for
    /// each server. Fails when [`unavailable`] has a reason, and as [`ClickHouse::start`] does.
    pub fn start(shards: usize, replicas: usize, options: &ClickHouseOptions) -> Result<Replicas> {
        if let Some(reason) = unavailable() {
            return Err(Error::NoReplicas { reason });
        }
        let data = DataFolder::make(options.directory.as_deref())?;
        let zookeeper = ZooKeeper::start(&data.path().join("zookeeper"))?;
        let block = || (0..replicas).map(|_| PortBlock::reserve()).collect::<Result<Vec<_>>>();
        let ports = (0..shards).map(|_| block()).collect::<Result<Vec<_>>>()?;
        let known = |ports: &Vec<PortBlock>| ports.iter().map(clickhouse::tcp_port).collect::<Vec<_>>();
        let peers = clickhouse::cluster_xml(CLUSTER, &ports.iter().map(known).collect::<Vec<_>>());
        let plan = Plan { options, peers: &peers, folder: data.path(), zookeeper: zookeeper.address() };
        let shards = thread::scope(|scope| {
            let start = |(shard, ports): (usize, Vec<PortBlock>)| {
                let one = |(number, ports)| scope.spawn(move || plan.start(shard, number, ports));
                ports.into_iter().enumerate().map(one).collect::<Vec<_>>()
            };
            let starting: Vec<_> = ports.into_iter().enumerate().map(start).collect();
            let join = |replica: thread::ScopedJoinHandle<'_, Result<Replica>>| {
                replica.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            starting.into_iter().map(|shard| shard.into_iter().map(join).collect()).collect::<Result<_>>()
        })?;
        Ok(Replicas { shards, zookeeper: Some(zookeeper), data: Some(data) })
    }

    /// Uses the cluster that [`EXTERNAL_VARIABLE`] names. None if it is not set.
    pub fn external() -> Option<Replicas> {
        let urls = env::var(EXTERNAL_VARIABLE).ok().filter(|urls| !urls.is_empty())?;
        let replica = |url: &str| {
            let url = url.trim();
            Replica { name: url.to_owned(), clickhouse: ClickHouse::external(url), proxies: None }
        };
        let shards = urls.split(';').map(|shard| shard.split(',').map(replica).collect()).collect();
        Some(Replicas { shards, zookeeper: None, data: None })
    }

    /// Returns the replicas of each shard.
    pub fn shards(&self) -> &[Vec<Replica>] {
        &self.shards
    }

    /// Returns one replica; both numbers are counted from 0. Panics when there is none.
    pub fn replica(&self, shard: usize, number: usize) -> &Replica {
        &self.shards[shard][number]
    }

    /// Makes a database with the engine Replicated on all replicas.
    ///
    /// A new replica of such a database first copies what the others have. The threads for that are made by ClickHouse's own main
    /// program, and not by the library. A new database has nothing to copy, so the replicas are marked as complete in ZooKeeper.
    /// They see it at their next attempt, within five seconds. Fails as [`ClickHouse::query`] does.
    pub fn make_replicated_database(&self, name: &str) -> Result<()> {
        let path = format!("/clickhouse/databases/{name}");
        for replica in self.shards.iter().flatten() {
            let allowed = format!("{}/?allow_experimental_database_replicated=1", replica.clickhouse.url());
            let create = format!("CREATE DATABASE {name} ENGINE = Replicated('{path}', '{{shard}}', '{{replica}}')");
            ClickHouse::external(allowed).query(&create)?;
        }
        let Some(zookeeper) = &self.zookeeper else { return Ok(()) };
        for replica in self.shards.iter().flatten() {
            let node = format!("{path}/replicas/{}/log_ptr", replica.name.replace('-', "|"));
            zookeeper.set(&node, "1").context("set", Path::new(&node))?;
        }
        Ok(())
    }

    /// Returns ZooKeeper's process. Fails for an external cluster.
    pub fn zookeeper(&self) -> Result<&Server> {
        self.zookeeper.as_ref().map(ZooKeeper::server).ok_or_else(not_ours)
    }

    /// Returns `host:port` of ZooKeeper. Fails for an external cluster.
    pub fn zookeeper_address(&self) -> Result<SocketAddr> {
        self.zookeeper.as_ref().map(ZooKeeper::address).ok_or_else(not_ours)
    }

    /// Ends everything now, for an end of the process that drops nothing.
    pub(crate) fn dispose(&self) {
        self.shards.iter().flatten().for_each(|replica| replica.clickhouse.dispose());
        if let Some(zookeeper) = &self.zookeeper {
            let _ = zookeeper.server().kill9();
        }
        if let Some(data) = &self.data {
            data.remove_if_temporary();
        }
    }

    /// Returns the folder of data and logs (`SHARD-REPLICA/server.log`). None for an external cluster.
    pub fn directory(&self) -> Option<&Path> {
        self.data.as_ref().map(DataFolder::path)
    }
}

impl Replica {
    /// Returns the macros `shard` and `replica`, such as `1-a`; of an external cluster the URL.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the server, which can be killed, stopped and restarted.
    pub fn clickhouse(&self) -> &ClickHouse {
        &self.clickhouse
    }

    /// Returns the proxy through which other replicas fetch this one's parts. Fails for an external cluster.
    pub fn fetches(&self) -> Result<&Proxy> {
        self.proxies.as_ref().map(|proxies| &proxies.fetches).ok_or_else(not_ours)
    }

    /// Returns the proxy through which this replica reaches ZooKeeper. Fails for an external cluster.
    pub fn keeper(&self) -> Result<&Proxy> {
        self.proxies.as_ref().map(|proxies| &proxies.keeper).ok_or_else(not_ours)
    }
}

fn not_ours() -> Error {
    Error::NotOurs { name: "the cluster of replicas", variable: EXTERNAL_VARIABLE }
}

/// The settings that all replicas of a cluster share.
#[derive(Clone, Copy)]
struct Plan<'a> {
    options: &'a ClickHouseOptions,
    peers: &'a str,
    folder: &'a Path,
    zookeeper: SocketAddr,
}

impl Plan<'_> {
    fn start(&self, shard: usize, number: usize, ports: PortBlock) -> Result<Replica> {
        let name = format!("{}-{}", shard + 1, letter(number));
        let (fetches, keeper) = (Proxy::new(0)?, Proxy::new(0)?);
        fetches.lead_to(SocketAddr::from(([127, 0, 0, 1], clickhouse::http_port(&ports))));
        keeper.lead_to(self.zookeeper);
        let config = self.config(&name, shard, number, keeper.address().port(), clickhouse::tcp_port(&ports));
        let options = ClickHouseOptions { directory: Some(self.folder.join(&name)), config, ..self.options.clone() };
        let clickhouse = ClickHouse::launch(options, ports, Some((fetches.address().port(), ALONE)))?;
        Ok(Replica { name, clickhouse, proxies: Some(Proxies { fetches, keeper }) })
    }

    fn config(&self, name: &str, shard: usize, number: usize, keeper: u16, tcp: u16) -> String {
        let Plan { options, peers, .. } = self;
        // All library servers have the same UUID, and each would end the other's session with it.
        let zookeeper = format!(
            "<zookeeper><node><host>127.0.0.1</host><port>{keeper}</port></node>\
             <session_timeout_ms>{}</session_timeout_ms><sessions_path>/clickhouse/sessions/{name}</sessions_path>\
             </zookeeper>",
            SESSION_TIMEOUT.as_millis()
        );
        let macros = format!("<macros><shard>{}</shard><replica>{}</replica></macros>", shard + 1, letter(number));
        let alone = clickhouse::cluster_xml(ALONE, &[vec![tcp]]);
        format!(
            "{}<display_name>{name}</display_name>{POOLS}{zookeeper}{macros}<remote_servers>{peers}{alone}</remote_servers>\
             <distributed_ddl><path>/clickhouse/task_queue/ddl</path></distributed_ddl>{HTTP_HANDLERS}",
            options.config
        )
    }
}

/// Returns the letter of a replica: a, b, …
fn letter(number: usize) -> char {
    char::from(b'a' + number as u8)
}
