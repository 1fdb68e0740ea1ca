//! A ClickHouse server, or several as the shards of a cluster.
//!
//! It is the library server of [`crate::init`], so it differs from a packaged one. SQL cannot create users (give
//! [`User`]s instead). There is no interserver port (Replicated tables stay read-only), and ON CLUSTER is disabled.
//! [`crate::replicas`] starts servers that have both.
//!
//! Must never listen on anything but 127.0.0.1.

use crate::{
    cache::Cache,
    data::DataFolder,
    error::{Context, Error, Result},
    fetch, host, http,
    ports::PortBlock,
    process::{self, Output, Server},
};
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The environment variable that names a server to use instead, as a URL.
pub const EXTERNAL_VARIABLE: &str = "TALLYHOUSE_TEST_CLICKHOUSE";
/// The name of the cluster that [`ClickHouse::start_cluster`] defines.
pub const CLUSTER: &str = "tallyhouse";

/// Time limit for the start. Starting takes well under a second; a machine that also compiles takes longer.
const START_DEADLINE: Duration = Duration::from_secs(60);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum size of an answer, in bytes. No answer to a test is that large.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
const LISTEN: &str = "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP";
/// A replica takes part in ON CLUSTER from its first such statement. This one changes nothing.
const JOIN: &str = "CREATE DATABASE IF NOT EXISTS default ON CLUSTER";
/// The server serves until this query ends, which it does after decades.
const SERVE: &str = "SELECT sleepEachRow(1) FROM numbers(1000000000) SETTINGS max_block_size=1 FORMAT Null";

/// The options of a server. The default is temporary data and the user `default` with an empty password.
#[derive(Debug, Clone, Default)]
pub struct ClickHouseOptions {
    /// Folder of data, configuration and log; it is kept. A temporary folder if None.
    pub directory: Option<PathBuf>,
    /// Users that the server has besides `default`.
    pub users: Vec<User>,
    /// XML that goes into the server's `<clickhouse>` element, such as `<zookeeper>…</zookeeper>`.
    pub config: String,
}

/// A user with a password.
#[derive(Debug, Clone, Default)]
pub struct User {
    /// The name; it becomes an XML element, so letters, digits and `_` only.
    pub name: String,
    /// The password in plain text.
    pub password: String,
    /// `GRANT` queries without `TO`, such as `GRANT SELECT ON campaigns.*`. If empty, the user has all rights of
    /// `default`.
    pub grants: Vec<String>,
    /// XML of its settings profile, such as `<use_query_cache>1</use_query_cache>` or `<constraints>…</constraints>`.
    pub profile: String,
    /// Row policies: database, table and the condition of the rows that it reads.
    pub filters: Vec<(String, String, String)>,
}

/// A running server, or one that somebody else runs. Dropping it kills the server.
#[derive(Debug)]
pub struct ClickHouse {
    url: String,
    owned: Option<Owned>,
}

/// Fields drop in this order: first the process, then its files, then its ports.
#[derive(Debug)]
struct Owned {
    server: Server,
    data: DataFolder,
    ports: PortBlock,
}

impl ClickHouse {
    /// Starts a server and waits until it answers. Fetches ClickHouse first if it is not in the cache.
    ///
    /// Fails when [`crate::init`] was not called, ClickHouse cannot be fetched, or the server does not become healthy
    /// within a minute.
    pub fn start(options: ClickHouseOptions) -> Result<ClickHouse> {
        ClickHouse::launch(options, PortBlock::reserve()?, None)
    }

    /// Starts `shards` servers that know each other as the shards of the cluster [`CLUSTER`], with the macros `shard`
    /// (from 1) and `replica`. `options.directory` gets a sub-folder for each.
    ///
    /// Fails as [`ClickHouse::start`] does.
    pub fn start_cluster(shards: usize, options: &ClickHouseOptions) -> Result<Vec<ClickHouse>> {
        let ports = (0..shards).map(|_| PortBlock::reserve()).collect::<Result<Vec<_>>>()?;
        let peers = cluster_xml(CLUSTER, &ports.iter().map(|ports| vec![tcp_port(ports)]).collect::<Vec<_>>());
        let start_shard = |(index, ports): (usize, PortBlock)| {
            let macros = format!("<macros><shard>{}</shard><replica>1</replica></macros>", index + 1);
            let directory = options.directory.as_ref().map(|folder| folder.join(format!("shard-{index}")));
            let config = format!("{}<remote_servers>{peers}</remote_servers>{macros}", options.config);
            ClickHouse::launch(ClickHouseOptions { directory, config, ..options.clone() }, ports, None)
        };
        ports.into_iter().enumerate().map(start_shard).collect()
    }

    /// Uses a server that somebody else runs at `url`, whose user and password may be query parameters.
    pub fn external(url: impl Into<String>) -> ClickHouse {
        ClickHouse { url: url.into(), owned: None }
    }

    /// Returns the address of the HTTP interface: `http://host:port`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns `host:port` of the HTTP interface. Fails for an external server.
    pub fn http_addr(&self) -> Result<String> {
        Ok(format!("127.0.0.1:{}", http_port(&self.owned()?.ports)))
    }

    /// Returns `host:port` of the native interface. Fails for an external server.
    pub fn tcp_addr(&self) -> Result<String> {
        Ok(format!("127.0.0.1:{}", tcp_port(&self.owned()?.ports)))
    }

    /// Returns the process. Fails for an external server.
    pub fn server(&self) -> Result<&Server> {
        Ok(&self.owned()?.server)
    }

    /// Returns the folder of data and log (`server.log`). None for an external server.
    pub fn directory(&self) -> Option<&Path> {
        self.owned.as_ref().map(|owned| owned.data.path())
    }

    /// Runs one query as the user of [`ClickHouse::url`] and returns its answer, without the last line feed.
    ///
    /// Fails when ClickHouse refuses it or does not answer within a minute.
    pub fn query(&self, sql: &str) -> Result<String> {
        query(&self.url, sql, QUERY_TIMEOUT).map_err(|message| Error::Query { sql: sql.to_owned(), message })
    }

    /// Runs one query and returns its answer in bytes, for answers that are large or no text.
    ///
    /// Fails as [`ClickHouse::query`] does.
    pub fn query_bytes(&self, sql: &str) -> Result<Vec<u8>> {
        // With this option only a whole answer has the status of a success.
        let url = format!("{}/?wait_end_of_query=1", self.url);
        bytes(&url, sql, QUERY_TIMEOUT).map_err(|message| Error::Query { sql: sql.to_owned(), message })
    }

    /// Returns the one number that a query gives.
    ///
    /// Fails as [`ClickHouse::query`] does, and when the answer is no number.
    pub fn number(&self, sql: &str) -> Result<u64> {
        let answer = self.query(sql)?;
        answer.parse().map_err(|_| Error::Query { sql: sql.to_owned(), message: format!("{answer:?} is no number") })
    }

    /// Ends everything now, for an end of the process that drops nothing.
    pub(crate) fn dispose(&self) {
        if let Some(owned) = &self.owned {
            let _ = owned.server.kill9();
            owned.data.remove_if_temporary();
        }
    }

    fn owned(&self) -> Result<&Owned> {
        self.owned.as_ref().ok_or(Error::NotOurs { name: "ClickHouse", variable: EXTERNAL_VARIABLE })
    }

    /// Starts a server. With `replica`, it is one: the port at which others fetch its parts, and the name of a cluster
    /// that has only this server.
    pub(crate) fn launch(
        options: ClickHouseOptions,
        ports: PortBlock,
        replica: Option<(u16, &str)>,
    ) -> Result<ClickHouse> {
        let library = fetch::clickhouse(&Cache::open()?)?;
        let data = DataFolder::make(options.directory.as_deref())?;
        let folder = data.path();
        let (config, users) = (folder.join("devstack-config.xml"), folder.join("devstack-users.xml"));
        fs::write(&users, users_xml(&options.users)).context("write", &users)?;
        fs::write(&config, config_xml(&users, &options.config)).context("write", &config)?;
        let mut command = host::command(&library, replica.map(|(port, _)| port))?;
        command.current_dir(folder).arg("--multiquery").arg("--listen_host=127.0.0.1").arg("--log-level=warning");
        command.arg(format!("--path={}", folder.display())).arg(format!("--config-file={}", config.display()));
        command.arg(format!("--http_port={}", http_port(&ports))).arg(format!("--tcp_port={}", tcp_port(&ports)));
        match replica {
            None => command.args(["--query", &format!("{LISTEN}; {SERVE}")]),
            // The statement may fail while ZooKeeper is away. The server then takes part all the same.
            Some((_, alone)) => {
                command.arg("--ignore-error").args(["--query", &format!("{LISTEN}; {JOIN} `{alone}`; {SERVE}")])
            }
        };
        let url = format!("http://127.0.0.1:{}", http_port(&ports));
        let server = process::spawn("ClickHouse", command, Output::Log(folder.join("server.log")))?;
        let server = server.with_health(health_check(url.clone()));
        server.wait_healthy(START_DEADLINE)?;
        Ok(ClickHouse { url, owned: Some(Owned { server, data, ports }) })
    }
}

pub(crate) fn http_port(ports: &PortBlock) -> u16 {
    ports.port(0)
}

pub(crate) fn tcp_port(ports: &PortBlock) -> u16 {
    ports.port(1)
}

fn health_check(url: String) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
    move || match query(&url, "SELECT 1", CHECK_TIMEOUT)?.as_str() {
        "1" => Ok(()),
        other => Err(format!("SELECT 1 gave {other:?}")),
    }
}

fn query(url: &str, sql: &str, timeout: Duration) -> Result<String, String> {
    let text = String::from_utf8(bytes(url, sql, timeout)?).map_err(|error| error.to_string())?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// Asks on a new connection for each query: a pooled one could belong to a server killed since.
fn bytes(url: &str, sql: &str, timeout: Duration) -> Result<Vec<u8>, String> {
    let mut answer = http::agent(timeout).post(url).send(sql).map_err(|error| error.to_string())?;
    // An exception can follow a status of 200 that has been sent already.
    let failed = !answer.status().is_success() || answer.headers().contains_key("X-ClickHouse-Exception-Code");
    let read = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
    let body = read.map_err(|error| error.to_string())?;
    if failed { Err(String::from_utf8_lossy(&body).trim_end().to_owned()) } else { Ok(body) }
}

fn config_xml(users: &Path, further: &str) -> String {
    let users = escape(&users.display().to_string());
    format!(
        "<clickhouse><logger><console>1</console></logger><users_config>{users}</users_config>{further}</clickhouse>"
    )
}

fn users_xml(users: &[User]) -> String {
    let default = User { name: "default".into(), ..User::default() };
    let users: Vec<&User> = [&default].into_iter().chain(users).collect();
    let mut xml = "<clickhouse><profiles>".to_owned();
    for User { name, profile, .. } in &users {
        let _ = write!(xml, "<{name}>{profile}</{name}>");
    }
    xml.push_str("</profiles><quotas><default/></quotas><users>");
    for User { name, password, grants, filters, .. } in users {
        let password = escape(password);
        let _ = write!(xml, "<{name}><password>{password}</password><networks><ip>127.0.0.1</ip></networks>");
        let _ = write!(xml, "<profile>{name}</profile><quota>default</quota>");
        let queries: String = grants.iter().map(|grant| format!("<query>{}</query>", escape(grant))).collect();
        if !queries.is_empty() {
            let _ = write!(xml, "<grants>{queries}</grants>");
        }
        let filter = |(database, table, condition): &(String, String, String)| {
            format!("<{database}><{table}><filter>{}</filter></{table}></{database}>", escape(condition))
        };
        let filters: String = filters.iter().map(filter).collect();
        if !filters.is_empty() {
            let _ = write!(xml, "<databases>{filters}</databases>");
        }
        let _ = write!(xml, "</{name}>");
    }
    xml + "</users></clickhouse>"
}

/// Returns a cluster for `<remote_servers>`, by the native ports of each shard's replicas.
pub(crate) fn cluster_xml(name: &str, shards: &[Vec<u16>]) -> String {
    let replica = |port: &u16| format!("<replica><host>127.0.0.1</host><port>{port}</port></replica>");
    let shard = |replicas: &Vec<u16>| {
        let replicas: String = replicas.iter().map(replica).collect();
        format!("<shard><internal_replication>true</internal_replication>{replicas}</shard>")
    };
    let shards: String = shards.iter().map(shard).collect();
    format!("<{name}>{shards}</{name}>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
