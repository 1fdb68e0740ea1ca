//! One ClickHouse server over HTTP(S), with a time limit for each statement.
//!
//! Must never send a password to any server but the configured one, nor skip the check of a certificate. Must never let an
//! identifier from the configuration into SQL before [`identifier`] has checked it.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clickhouse::query::Query;
use clickhouse::sql::Bind;
use clickhouse::{Compression as Codec, Row, RowOwned, RowRead};
use hyper_util::client::legacy::{Client as HttpClient, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use url::Url;

use super::error::{ClickHouseError, Peer};
use super::exchange::Exchange;
use super::identity::{self, Identity, Server};
use super::replica::{self, Replica};
use super::schema::Form;
use super::settings::{self, Found, Own, Pin, Pins};
use crate::platform::advice::Advice;
use crate::platform::tls;

/// Comment on every statement of this binary, in `system.query_log.log_comment`.
const LOG_COMMENT: &str = concat!("tallyhouse/", env!("CARGO_PKG_VERSION"));

/// Longest wait for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for which an idle connection is kept. It is shorter than ClickHouse's `keep_alive_timeout` (3 s in old servers, now 30
/// s). So a request is not sent into a connection that the server is closing.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The compression of data that is sent to and received from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// LZ4: it takes less network and a little CPU.
    Lz4,
    /// No compression, for a server on the same machine.
    None,
}

/// Options for the connection to ClickHouse.
#[derive(Clone)]
pub struct ClickHouseOptions {
    /// `http://host:port` or `https://host:port`, without user, password or settings. Several, separated by commas, name replicas in
    /// order of preference; a client is made for each ([`super::servers`]).
    pub url: String,
    /// User that logs in to ClickHouse.
    pub user: String,
    /// Password of the user; never printed.
    pub password: String,
    /// Database of all tables: letters, digits and `_`, not starting with a digit.
    pub database: String,
    /// PEM file with the authorities to trust. `None`: the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// PEM files of a client certificate and of its key, for a server that demands one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Compression of the traffic.
    pub compression: Compression,
    /// Longest time for a query, in milliseconds; also sent as `max_execution_time`.
    pub query_timeout_ms: u64,
    /// Longest time for an INSERT, in milliseconds.
    pub insert_timeout_ms: u64,
}

impl fmt::Debug for ClickHouseOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClickHouseOptions")
            .field("url", &self.url)
            .field("user", &self.user)
            .field("password", &"<hidden>")
            .field("database", &self.database)
            .field("ca_file", &self.ca_file)
            .field("identity", &self.identity)
            .field("compression", &self.compression)
            .field("query_timeout_ms", &self.query_timeout_ms)
            .field("insert_timeout_ms", &self.insert_timeout_ms)
            .finish()
    }
}

/// A pool of connections to one server. Clones share the pool.
#[derive(Clone)]
pub struct Client {
    http: clickhouse::Client,
    exchange: Exchange,
    pins: Arc<OnceCell<Pins>>,
    identity: Arc<Identity>,
    replica: Option<Arc<Replica>>,
    /// True if the tables are Shared ones of ClickHouse Cloud, where several servers answer at one address.
    is_shared: bool,
    peer: Arc<Peer>,
    query_timeout: Duration,
    insert_timeout: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.peer).finish()
    }
}

impl Client {
    /// Prepares the pool. It connects to nothing yet.
    ///
    /// # Errors
    /// [`ClickHouseError::Config`] if an option cannot be used.
    pub fn new(options: &ClickHouseOptions) -> Result<Self, ClickHouseError> {
        let url = server_url(&options.url)?;
        let database = identifier("clickhouse.database", &options.database)?;
        let connector = connector(&url, options)?;
        let mut builder = HttpClient::builder(TokioExecutor::new());
        builder.pool_idle_timeout(POOL_IDLE_TIMEOUT);
        let exchange = Exchange {
            pool: builder.build(connector.clone()),
            url: url.clone(),
            user: options.user.clone(),
            password: options.password.clone(),
            compression: options.compression,
            is_once: false,
        };
        let http = clickhouse::Client::with_http_client(builder.build(connector))
            .with_url(url.as_str())
            .with_user(&options.user)
            .with_password(&options.password)
            .with_compression(match options.compression {
                Compression::Lz4 => Codec::Lz4,
                Compression::None => Codec::None,
            });
        Ok(Self {
            http,
            exchange,
            pins: Arc::default(),
            identity: Arc::default(),
            replica: None,
            is_shared: false,
            peer: Arc::new(Peer { url: url.to_string(), user: options.user.clone(), database: database.to_owned() }),
            query_timeout: Duration::from_millis(options.query_timeout_ms),
            insert_timeout: Duration::from_millis(options.insert_timeout_ms),
        })
    }

    /// Returns a client for tables of this form. On a cluster, it reads and writes the tables of its own server, and never through
    /// the Distributed ones: they ask any replica.
    pub fn for_form(&self, form: &Form) -> Client {
        let replica = |replica| Client { pins: Arc::default(), replica: Some(Arc::new(replica)), ..self.clone() };
        match form {
            Form::Cluster(_) if self.replica.is_none() => replica(Replica::with_local_tables()),
            Form::ReplicatedDatabase if self.replica.is_none() => replica(Replica::default()),
            Form::Shared if !self.is_shared => {
                let identity = Arc::new(Identity::of_service());
                Client { pins: Arc::default(), identity, is_shared: true, ..self.clone() }
            }
            Form::Cluster(_) | Form::Single | Form::ReplicatedDatabase | Form::Shared => self.clone(),
        }
    }

    /// True if the tables are replicated.
    pub fn is_replica(&self) -> bool {
        self.replica.is_some()
    }

    /// True if the tables are Shared ones of ClickHouse Cloud.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Returns the state of this server as a replica; `None` if the tables are not replicated.
    pub(super) fn replica(&self) -> Option<&Replica> {
        self.replica.as_deref()
    }

    /// Returns the name of the table on this server that has the rows of a table of the schema.
    pub fn stored(&self, table: &str) -> String {
        self.replica().map_or_else(|| table.to_owned(), |replica| replica.stored(table))
    }

    fn sql<'s>(&self, sql: &'s str) -> Cow<'s, str> {
        if self.replica().is_some_and(Replica::has_local_tables) { replica::local(sql).into() } else { sql.into() }
    }

    /// Returns the configured database: a valid identifier.
    pub fn database(&self) -> &str {
        &self.peer.database
    }

    /// Returns the longest time for an INSERT.
    pub fn insert_timeout(&self) -> Duration {
        self.insert_timeout
    }

    /// Returns a statement in the configured database. `?` takes the next [`Statement::bind`], `??` is a question mark.
    pub fn query(&self, sql: &str) -> Statement<'_> {
        let http = self.http.clone().with_database(self.database());
        self.statement(http.query(&self.sql(sql)))
    }

    /// Returns a statement outside of any database, for a database that may not exist yet. Otherwise it is as [`Self::query`].
    pub fn server_query(&self, sql: &str) -> Statement<'_> {
        self.statement(self.http.query(sql))
    }

    /// Runs DDL as it stands, outside of any database, for a database that may not exist yet. With ON CLUSTER, the servers get
    /// one second less than `query_timeout_ms` (`distributed_ddl_task_timeout`), so that the error names the late ones.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn execute(&self, sql: &str) -> Result<(), ClickHouseError> {
        let cluster_limit_s = self.query_timeout.as_secs().saturating_sub(1).max(1);
        self.statement(self.http.query_raw(sql))
            .setting("distributed_ddl_task_timeout", &cluster_limit_s.to_string())
            .execute()
            .await
    }

    /// Returns the `clickhouse` crate's own client, for an INSERT that is not of a batch. Database, user and compression are set.
    /// It has no timeout, setting or query id.
    pub fn for_insert(&self) -> clickhouse::Client {
        self.http.clone().with_database(self.database())
    }

    /// Classifies an error that came out of [`Self::for_insert`].
    pub fn classify(&self, error: &clickhouse::error::Error) -> ClickHouseError {
        self.peer.classify(error)
    }

    /// Returns a read whose answer decides about inserts or commits. The answer holds the sent query id, so it is ClickHouse's
    /// own and of now. It also says which server answers ([`super::identity`]). No answer at all is not an empty answer.
    pub fn deciding(&self, sql: &str) -> Deciding<'_> {
        let query_id = new_query_id();
        let server = identity::COLUMNS;
        let sql = self.sql(sql);
        let sql = format!("SELECT queryID() AS query_id, {server}, groupArray(tuple(*)) AS answer FROM ({sql})");
        let query = self.http.clone().with_database(self.database()).query(&sql).with_setting("query_id", &query_id);
        Deciding { statement: Statement { client: self, query }, query_id }
    }

    /// Sends the INSERT of a batch. Only ClickHouse's own answer counts as success ([`super::exchange`]), and only that of the
    /// server that has answered before ([`super::identity`]). If `may_end` is false once the data is on its way, the INSERT is broken
    /// off, and ClickHouse applies nothing of it.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`]. Unless nothing was sent, the outcome is unknown.
    pub async fn insert(
        &self,
        sql: &str,
        query_id: &str,
        token: &str,
        chunks: Vec<Bytes>,
        may_end: impl Fn() -> bool,
    ) -> Result<(), ClickHouseError> {
        let pins = self.fit_pins().await?;
        let parameters = self.parameters(query_id, token, &pins.inserts);
        self.acknowledged(sql, query_id, &parameters, chunks, self.insert_timeout, may_end).await
    }

    /// Sends an INSERT whose rows change nothing if they are there already, and have distinct keys. So it has no token, and the server
    /// compares it with no other insert. Only ClickHouse's own answer counts, as in [`Self::insert`].
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn insert_idempotent(
        &self,
        sql: &str,
        query_id: &str,
        chunks: impl IntoIterator<Item = Bytes, IntoIter: Send>,
    ) -> Result<(), ClickHouseError> {
        let pins = self.fit_pins().await?;
        let fixed = [("database", self.database()), ("query_id", query_id)];
        let parameters: Vec<(&str, &str)> =
            fixed.into_iter().chain(pins.plain_inserts()).chain(pins.distinct_rows()).collect();
        self.acknowledged(sql, query_id, &parameters, chunks, self.insert_timeout, || true).await
    }

    /// Runs a statement that must be carried out by the server that has answered before. Returns nothing else than that it was.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub(super) async fn execute_here(&self, sql: &str, setting: (&str, &str)) -> Result<(), ClickHouseError> {
        let query_id = new_query_id();
        let parameters = [("query_id", query_id.as_str()), ("log_comment", LOG_COMMENT), setting];
        self.acknowledged(sql, &query_id, &parameters, Vec::new(), self.query_timeout, || true).await
    }

    /// Sends a statement that returns no rows. It counts if ClickHouse itself answers, and the server that has answered before.
    async fn acknowledged(
        &self,
        sql: &str,
        query_id: &str,
        parameters: &[(&str, &str)],
        chunks: impl IntoIterator<Item = Bytes, IntoIter: Send>,
        limit: Duration,
        may_end: impl Fn() -> bool,
    ) -> Result<(), ClickHouseError> {
        self.identity.refuse().map_err(|doubt| self.peer.doubted(doubt))?;
        let asked = Instant::now();
        let answer = self.exchange.send(sql, parameters, chunks, limit, may_end).await;
        let answer = answer.map_err(|error| self.classify(&error))?;
        if answer.query_id.as_deref() != Some(query_id) || !answer.body.is_empty() {
            return Err(self.peer.not_ours(&answer.body));
        }
        self.identity.acknowledged(answer.server.as_deref(), asked).map_err(|doubt| self.peer.doubted(doubt))
    }

    /// Waits for any answer, for this time at most. Later statements judge the server.
    pub async fn await_answer(&self, limit: Duration) {
        let parameters = [("log_comment", LOG_COMMENT)];
        let answer = self.exchange.send("SELECT 1 FORMAT Null", &parameters, Vec::new(), limit, || true).await;
        if let Err(error) = answer {
            tracing::debug!("the first question failed: {error}");
        }
    }

    /// Returns the time limit of a query.
    pub(super) fn query_timeout(&self) -> Duration {
        self.query_timeout
    }

    /// Returns the server's address.
    pub fn url(&self) -> &str {
        &self.peer.url
    }

    /// Returns the error of a server that has not answered for this time.
    pub(super) fn unanswered(&self, limit: Duration) -> ClickHouseError {
        self.peer.unreachable(format!("no answer within {} ms", limit.as_millis()))
    }

    /// Returns the server's address, and the name under which it has answered.
    pub fn described(&self) -> String {
        let name = self.identity.name().map_or_else(String::new, |name| format!("\"{name}\" at "));
        format!("{name}{}", self.peer.url)
    }

    /// Returns the parameters of a request whose acknowledgement counts.
    fn parameters<'a>(&'a self, query_id: &'a str, token: &'a str, pins: &'a [Pin]) -> Vec<(&'a str, &'a str)> {
        let fixed = [("database", self.database()), ("query_id", query_id), ("insert_deduplication_token", token)];
        fixed.into_iter().chain(pins.iter().map(|(name, value)| (*name, value.as_str()))).collect()
    }

    /// Checks that exact reads and writes are possible: as [`Self::prove_settings`] and [`Self::prove_one_server`]. Each command that
    /// writes begins with it.
    ///
    /// # Errors
    /// Those of both.
    pub async fn prove(&self) -> Result<(), ClickHouseError> {
        self.prove_settings().await?;
        self.prove_server().await
    }

    /// Checks that one server answers, and warns if its acknowledgements do not name it.
    ///
    /// # Errors
    /// Those of [`Self::prove_one_server`].
    pub(super) async fn prove_server(&self) -> Result<(), ClickHouseError> {
        if !self.prove_one_server(identity::LOOKS).await? && !self.is_shared {
            tracing::warn!("acknowledgements of inserts do not name their server: {}", identity::NO_NAME);
        }
        Ok(())
    }

    /// Checks that one server answers over this number of new connections. Returns true if the header with its name comes back.
    ///
    /// # Errors
    /// [`ClickHouseError::OtherServer`], or any other of [`ClickHouseError`].
    pub async fn prove_one_server(&self, looks: usize) -> Result<bool, ClickHouseError> {
        let mut is_named = true;
        for _ in 0..looks {
            is_named &= self.look().await?;
        }
        Ok(is_named)
    }

    /// Waits until another server has answered, and looks for one from time to time.
    pub async fn other_server(&self) -> ClickHouseError {
        loop {
            let other = tokio::time::timeout(identity::INTERVAL, self.identity.other()).await;
            if let Ok(message) = other {
                return self.peer.doubted(identity::Doubt::Other(message));
            }
            if let Err(error) = self.look().await {
                tracing::debug!("the server's identity is not known: {error}");
            }
        }
    }

    /// Asks over a new connection which server answers. Returns true if the header with its name comes back.
    async fn look(&self) -> Result<bool, ClickHouseError> {
        let (server, tables) = (identity::COLUMNS, identity::tables(self.database()));
        let sql = format!("SELECT queryID(), {server}, {tables} FORMAT JSONCompactEachRow");
        let query_id = new_query_id();
        let mut parameters = vec![("query_id", query_id.as_str())];
        parameters.extend(self.pins().await?.reads.iter().map(|(name, value)| (*name, value.as_str())));
        let once = Exchange { is_once: true, ..self.exchange.clone() };
        let asked = Instant::now();
        let answer = once.send(&sql, &parameters, Vec::new(), self.query_timeout, || true).await;
        let answer = answer.map_err(|error| self.classify(&error))?;
        let row = serde_json::from_slice::<(String, String, u32, String, Option<String>)>(&answer.body).ok();
        let Some((_, name, uptime_s, id, tables)) = row.filter(|(id, ..)| *id == query_id) else {
            return Err(self.peer.not_ours(&answer.body));
        };
        let is_named = self.identity.is_in_header(answer.server.as_ref() == Some(&name));
        let server = Server { name, uptime: Duration::from_secs(uptime_s.into()), id, tables };
        self.identity.read(server, asked).map_err(|doubt| self.peer.doubted(doubt))?;
        Ok(is_named)
    }

    /// Checks that this user can have the settings that exactness needs, and that the sent text arrives. It sends a statement in
    /// the same way as an INSERT. The statement returns its own query id and settings.
    ///
    /// # Errors
    /// [`ClickHouseError::Unfit`] for what only an operator can change, or any other of [`ClickHouseError`].
    pub async fn prove_settings(&self) -> Result<(), ClickHouseError> {
        let pins = self.fit_pins().await?;
        let names: Vec<String> = settings::names().into_iter().map(|name| format!("'{name}'")).collect();
        let sql = format!(
            "SELECT queryID(), name, value FROM system.settings WHERE name IN ({}) FORMAT TSV",
            names.join(", ")
        );
        let query_id = new_query_id();
        // The limits of a profile would cut this answer as well, so the settings of reads are sent with it.
        let of_reads = pins.reads.iter().filter(|(name, _)| pins.inserts.iter().all(|(other, _)| other != name));
        let sent: Vec<Pin> = pins.inserts.iter().chain(of_reads).cloned().collect();
        let parameters = self.parameters(&query_id, &query_id, &sent);
        let answer = self.exchange.send(&sql, &parameters, Vec::new(), self.query_timeout, || true).await;
        let answer = answer.map_err(|error| self.classify(&error))?;
        let text = String::from_utf8_lossy(&answer.body);
        let row = |line: &str| {
            let mut fields = line.split('\t').map(str::to_owned);
            let id = fields.next()?;
            Some((id, Found { name: fields.next()?, value: fields.next()?, ..Found::default() }))
        };
        let Some(rows) = text.lines().map(row).collect::<Option<Vec<_>>>().filter(|rows| !rows.is_empty()) else {
            return Err(self.peer.not_ours(&answer.body));
        };
        if answer.query_id.as_ref() != Some(&query_id) || rows.iter().any(|(id, _)| *id != query_id) {
            let why = "the query id that was sent does not come back, so nobody can tell whether an answer is ClickHouse's own";
            return Err(self.unfit(Advice::new(format!("{why}: {PROXY}"), PROXY_FIX)));
        }
        let arrived: Vec<Found> = rows.into_iter().map(|(_, found)| found).collect();
        let token = [("insert_deduplication_token", query_id)];
        let lost = [settings::lost(&sent, &arrived), settings::lost(&token, &arrived)].concat();
        match lost.is_empty() {
            true => Ok(()),
            false => {
                let problem = format!("these settings do not arrive: {}: {PROXY}", lost.join(", "));
                Err(self.unfit(Advice::new(problem, PROXY_FIX)))
            }
        }
    }

    /// Returns an error that says that this server, user or way cannot be used.
    pub fn unfit(&self, advice: Advice) -> ClickHouseError {
        self.peer.unfit(advice)
    }

    /// Returns the settings that statements carry, and the problems. It asks the server only once.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn pins(&self) -> Result<&Pins, ClickHouseError> {
        self.pins.get_or_try_init(|| self.ask_pins()).await
    }

    /// As [`Self::pins`], for a command whose answers or changes would be wrong without them.
    ///
    /// # Errors
    /// [`ClickHouseError::Unfit`] where the user cannot have them, or any other of [`ClickHouseError`].
    pub async fn fit_pins(&self) -> Result<&Pins, ClickHouseError> {
        let pins = self.pins().await?;
        pins.problem().map_or(Ok(pins), |problem| Err(self.unfit(problem)))
    }

    /// A profile can falsify this question too (seen: a `limit` of 1). So the settings against that are sent with it if the
    /// server allows them.
    async fn ask_pins(&self) -> Result<Pins, ClickHouseError> {
        let ask = |pinned: bool| {
            let query = self.http.query(settings::QUESTION).bind(settings::names());
            let pins: &[(&str, &str)] = if pinned { &settings::OF_THE_QUESTION[..] } else { &[] };
            let query = pins.iter().fold(query, |query, (name, value)| query.with_setting(*name, *value));
            self.limited(query.fetch_all::<Found>())
        };
        let found = match ask(true).await {
            // The server does not know one of them, or a profile fixes one.
            Err(ClickHouseError::Server { code: 115 | 452, .. }) => ask(false).await?,
            answer => answer?,
        };
        let (query_timeout, insert_timeout) = (self.query_timeout, self.insert_timeout);
        let (shared, replicated) = (self.is_shared, self.is_shared || self.replica.is_some());
        Ok(settings::judge(&found, Own { replicated, shared, query_timeout, insert_timeout, log_comment: LOG_COMMENT }))
    }

    fn statement(&self, query: Query) -> Statement<'_> {
        Statement { client: self, query: query.with_setting("query_id", new_query_id()) }
    }

    async fn limited<T>(
        &self,
        answer: impl Future<Output = Result<T, clickhouse::error::Error>>,
    ) -> Result<T, ClickHouseError> {
        match tokio::time::timeout(self.query_timeout, answer).await {
            Ok(result) => result.map_err(|error| self.classify(&error)),
            Err(_) => {
                let reason = format!("no answer within {} ms", self.query_timeout.as_millis());
                Err(self.peer.unreachable(reason))
            }
        }
    }
}

/// Returns an id that no other statement has: `tallyhouse-` and 32 hexadecimal digits.
pub fn new_query_id() -> String {
    format!("tallyhouse-{:032x}", rand::random::<u128>())
}

/// A proxy that changes requests or answers, and the remedy.
const PROXY: &str = "a proxy in between drops or replaces them";
const PROXY_FIX: &str = "Set clickhouse.url to ClickHouse itself, or let the proxy pass query_id, all settings of the URL, and the header \
                         X-ClickHouse-Query-Id of the answer";

/// An answer with the id of the query that it answers, and the server that gives it.
#[derive(Row, Deserialize)]
struct Answered<T> {
    query_id: String,
    server_name: String,
    server_uptime: u32,
    server_id: String,
    answer: Vec<T>,
}

/// A read whose answer decides about inserts or commits.
#[must_use = "a statement runs when it is awaited"]
pub struct Deciding<'c> {
    statement: Statement<'c>,
    query_id: String,
}

impl Deciding<'_> {
    /// Does the same as [`Statement::bind`].
    pub fn bind(self, value: impl Bind) -> Self {
        Self { statement: self.statement.bind(value), ..self }
    }

    /// Returns all rows, each a tuple.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`]; [`ClickHouseError::Unfit`] where the user cannot have the settings that make the answer whole.
    pub async fn rows<T: DeserializeOwned + 'static>(self) -> Result<Vec<T>, ClickHouseError> {
        let client = self.statement.client;
        client.fit_pins().await?;
        let asked = Instant::now();
        let answered = self.statement.rows::<Answered<T>>().await?.into_iter().next();
        let Some(answered) = answered.filter(|answered| answered.query_id == self.query_id) else {
            return Err(client.peer.not_ours(b"an answer to another question"));
        };
        let Answered { server_name: name, server_uptime, server_id: id, answer, .. } = answered;
        let server = Server { name, uptime: Duration::from_secs(server_uptime.into()), id, tables: None };
        client.identity.read(server, asked).map_err(|doubt| client.peer.doubted(doubt))?;
        Ok(answer)
    }

    /// Returns the one number that the statement gives.
    ///
    /// # Errors
    /// Returns those of [`Self::rows`].
    pub async fn number(self) -> Result<u64, ClickHouseError> {
        let rows = self.rows::<(u64,)>().await?;
        rows.first().map(|(number,)| *number).ok_or_else(|| ClickHouseError::Decode("there is no row".to_owned()))
    }
}

/// A statement that is about to run. It ends after `query_timeout_ms` at the latest, here and on the server.
#[must_use = "a statement runs when it is awaited"]
pub struct Statement<'c> {
    client: &'c Client,
    query: Query,
}

impl<'c> Statement<'c> {
    /// Puts `value`, escaped, in place of the next `?`.
    pub fn bind(mut self, value: impl Bind) -> Self {
        self.query = self.query.bind(value);
        self
    }

    /// Adds a ClickHouse setting to this statement.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.query = self.query.with_setting(name, value);
        self
    }

    /// Adds a setting without which the statement is right as well, if the server knows it. Its name is one of those that
    /// [`settings`] asks for.
    ///
    /// # Errors
    /// Any of [`ClickHouseError`].
    pub async fn optional_setting(self, name: &str, value: &str) -> Result<Self, ClickHouseError> {
        let is_known = self.client.pins().await?.optional.contains(&name);
        Ok(if is_known { self.setting(name, value) } else { self })
    }

    /// Adds the settings that an INSERT of no batch needs. No token of a profile goes with it.
    ///
    /// # Errors
    /// Any of [`ClickHouseError`].
    pub async fn inserting(self) -> Result<Self, ClickHouseError> {
        let pins = self.client.pins().await?.plain_inserts();
        let statement = self.setting("insert_deduplication_token", "");
        Ok(pins.fold(statement, |statement, (name, value)| statement.setting(name, value)))
    }

    /// Returns the query with the settings that the server lets this user send.
    async fn pinned(self) -> Result<(&'c Client, Query), ClickHouseError> {
        let pins = &self.client.pins().await?.reads;
        let query = pins.iter().fold(self.query, |query, (name, value)| query.with_setting(*name, value.as_str()));
        Ok((self.client, query))
    }

    /// Runs a statement without rows, to its end.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn execute(self) -> Result<(), ClickHouseError> {
        let (client, query) = self.pinned().await?;
        client.limited(query.execute()).await
    }

    /// Returns all rows. They are held in memory, so a statement should ask for few.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`]; `Decode` if `T` does not fit the columns.
    pub async fn rows<T: RowOwned + RowRead>(self) -> Result<Vec<T>, ClickHouseError> {
        let (client, query) = self.pinned().await?;
        client.limited(query.fetch_all()).await
    }

    /// Returns the single value of type `UInt64` that the statement gives.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`]; `Decode` if there is no row, or it is not one `UInt64`.
    pub async fn scalar_u64(self) -> Result<u64, ClickHouseError> {
        let (client, query) = self.pinned().await?;
        client.limited(query.fetch_one()).await
    }
}

/// Returns the name if it can stand in SQL without quotes: letters, digits and `_`, not starting with a digit, at most 128 bytes.
/// `key` names it in the error.
///
/// # Errors
/// [`ClickHouseError::Config`] for any other.
pub fn identifier<'a>(key: &str, value: &'a str) -> Result<&'a str, ClickHouseError> {
    let valid = (1..=128).contains(&value.len())
        && !value.starts_with(|c: char| c.is_ascii_digit())
        && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if valid {
        return Ok(value);
    }
    Err(ClickHouseError::Config(format!(
        "{key} is {value:?}; use letters, digits and _, not starting with a digit, at most 128 characters"
    )))
}

fn server_url(text: &str) -> Result<Url, ClickHouseError> {
    let refuse = |why: &str| Err(ClickHouseError::Config(format!("clickhouse.url {why}")));
    if text.contains(',') {
        return refuse("names several servers where one is expected");
    }
    let Ok(url) = Url::parse(text) else {
        return refuse("is not a URL; write it as http://host:8123 or https://host:8443");
    };
    if !matches!(url.scheme(), "http" | "https") {
        return refuse("starts with neither http:// nor https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("holds a user or password; set clickhouse.user and clickhouse.password instead");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("holds settings after ? or #; they would not be sent");
    }
    Ok(url)
}

/// Connections with or without TLS.
pub(super) type Connector = hyper_rustls::HttpsConnector<HttpConnector>;

fn connector(url: &Url, options: &ClickHouseOptions) -> Result<Connector, ClickHouseError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    Ok(hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls_config(url, options)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp))
}

fn tls_config(url: &Url, options: &ClickHouseOptions) -> Result<ClientConfig, ClickHouseError> {
    let unusable = |key: &str, why: &dyn fmt::Display| ClickHouseError::Config(format!("{key}: {why}"));
    let roots = match url.scheme() {
        "https" => tls::roots(options.ca_file.as_deref()).map_err(|error| unusable("clickhouse.ca_file", &error))?,
        _ => RootCertStore::empty(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("clickhouse.url", &error))?
        .with_root_certificates(roots);
    let Some((cert_file, key_file)) = &options.identity else { return Ok(builder.with_no_client_auth()) };
    let key = "clickhouse.cert_file, clickhouse.key_file";
    let (chain, private) = tls::identity(cert_file, key_file).map_err(|error| unusable(key, &error))?;
    builder.with_client_auth_cert(chain, private).map_err(|error| unusable(key, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ClickHouseOptions {
        ClickHouseOptions {
            url: "http://localhost:8123".to_owned(),
            user: "default".to_owned(),
            password: "s3cret".to_owned(),
            database: "campaigns".to_owned(),
            ca_file: None,
            identity: None,
            compression: Compression::Lz4,
            query_timeout_ms: 1_000,
            insert_timeout_ms: 1_000,
        }
    }

    #[test]
    fn the_password_is_never_printed() {
        let options = options();
        let client = Client::new(&options).unwrap();
        assert!(!format!("{options:?} {client:?}").contains("s3cret"));
    }

    #[test]
    fn a_url_with_more_than_an_address_is_refused_without_being_repeated() {
        for url in ["localhost:8123", "ftp://h", "http://u:s3cret@h:1", "http://h:1/?password=s3cret"] {
            let url = url.to_owned();
            let error = Client::new(&ClickHouseOptions { url, ..options() }).unwrap_err();
            assert!(matches!(error, ClickHouseError::Config(_)), "{error}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_ca_file_that_holds_no_certificate_is_refused() {
        let url = "https://localhost:8443".to_owned();
        let ca_file = Some(PathBuf::from("Cargo.toml"));
        let error = Client::new(&ClickHouseOptions { url, ca_file, ..options() }).unwrap_err();
        assert!(error.to_string().contains("Cargo.toml"), "{error}");
    }
}
