//! One pipeline under test: a topic, a group, a database, three members and a producer, for the rounds of one epoch.
//!
//! Members talk to both servers through proxies only. Everything else asks the servers directly.

use super::cluster::Topic;
use super::feed::{Feed, SharedLedger};
use super::letters::Letters;
use super::lifecycle::Lifecycle;
use super::plan::{MEMBERS, Membership, REBALANCE_GRACE_MS, SESSION_TIMEOUT_MS};
use super::store::Tables;
use super::verify::metric;
use super::{AnyError, Servers};
use crate::dice::mix;
use crate::http;
use crate::ports::PortBlock;
use crate::process::{self, Output, Server, Signal};
use crate::proxy::{Proxy, Trouble};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Number of partitions of a small group. Each of three members has a group of four batches.
pub const PARTITIONS: i32 = 12;
/// Number of partitions of a large group. Its batches are full, and a full batch is inserted alone.
const PARTITIONS_LARGE: i32 = 3;
/// Time limit for the tables to be made: another lane may have killed ClickHouse just now.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(120);
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum length of a member's log, in bytes. A longer one is put aside between rounds, and the one put aside before
/// is deleted.
const LOG_BYTES_MAX: u64 = 8 << 20;

/// The settings of all members, besides addresses and names.
const SETTINGS: &[(&str, &str)] = &[
    ("MEMORY__LIMIT_BYTES", "64MiB"),
    ("FLUSH__BYTES_MAX", "16MiB"),
    ("FLUSH__BATCHES_PER_SECOND_MAX", "50"),
    ("RETRY__BACKOFF_MAX_MS", "500"),
    ("SHUTDOWN__GRACE_MS", "10000"),
    ("CLICKHOUSE__QUERY_TIMEOUT_MS", "2000"),
    ("CLICKHOUSE__RECIPIENTS", "true"),
    ("KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS", "2000"),
    ("KAFKA__PROPERTIES__RECONNECT_BACKOFF_MAX_MS", "1000"),
    ("LOG__LEVEL", "info,tallyhouse=trace"),
];
/// Settings for many batches in little time.
const SMALL: &[(&str, &str)] = &[
    ("FLUSH__AGE_MS", "200"),
    ("FLUSH__ROWS_MAX", "200"),
    // This is shorter than the longest pause of a server, so outcomes are unknown while the statement still runs.
    ("CLICKHOUSE__INSERT_TIMEOUT_MS", "3000"),
];
/// Settings for large batches. A window of one partition is as large as its part of the memory allows: 168,000
/// records of a backlog.
const LARGE: &[(&str, &str)] =
    &[("FLUSH__AGE_MS", "3000"), ("FLUSH__ROWS_MAX", "120000"), ("CLICKHOUSE__INSERT_TIMEOUT_MS", "8000")];

/// Number of partitions of a large group that have a backlog; they are the first.
const BACKLOG_PARTITIONS: usize = 3;
/// Longest silence of a member while the backlog is made. The session is longer.
const BACKLOG_TIMEOUT: Duration = Duration::from_millis(3_500);
const BALANCE_TIMEOUT: Duration = Duration::from_secs(10);
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(30);

/// A place for a member, whose process comes and goes.
pub struct Slot {
    /// Number of the slot, counted from 0.
    pub number: usize,
    log: PathBuf,
    /// The address of the member's endpoint.
    address: SocketAddr,
    server: Mutex<Server>,
}

impl Slot {
    /// Locks the member's process; nobody else touches it meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the member's process, unless a fault has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, Server>> {
        self.server.try_lock().ok()
    }

    /// Returns the recent log of all the slot's members.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Returns the same from this byte on.
    pub fn log_from(&self, length: u64) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.log).and_then(|mut log| {
            log.seek(SeekFrom::Start(length))?;
            log.read_to_end(&mut bytes)
        });
        read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Returns the number of partitions of a topic that the member reports as its own.
    pub fn assigned(&self, topic: &str) -> f64 {
        let name = format!("tallyhouse_assigned_partitions{{topic=\"{topic}\"");
        self.http("/metrics").map_or(0.0, |page| metric(&page, &name))
    }

    /// Returns the answer of the member's endpoint.
    pub fn http(&self, path: &str) -> Result<String, AnyError> {
        Ok(http::get(self.address, path, HTTP_TIMEOUT)?)
    }
}

/// One pipeline under test.
pub struct Lane<'a> {
    /// The servers, which other lanes use as well.
    pub servers: &'a Servers,
    /// Settings of the members, the same for all rounds of an epoch.
    pub membership: Membership,
    /// True if its batches are large.
    pub is_large: bool,
    /// The topic of the events.
    pub topic: Topic,
    /// The dead-letter topic, which receives rejected records once more.
    pub dead_letters: Topic,
    /// The lifecycle topic and its messages.
    lifecycle: Mutex<Lifecycle>,
    /// The proxies between the members and ClickHouse, one in front of each server.
    pub clickhouse_proxies: Vec<Proxy>,
    /// The members, one in each slot.
    pub slots: Vec<Slot>,
    feed: Mutex<Feed>,
    /// The fate that each record must have.
    pub ledger: SharedLedger,
    /// The letters that were found in the dead-letter topic.
    pub letters: Mutex<Letters>,
    /// True if transactions have left control records in the log.
    pub has_markers: AtomicBool,
    /// Violations that faults have found.
    violations: Mutex<Vec<String>>,
    /// True if a fault is about to produce a backlog, for which windows are to be empty.
    pub awaits_backlog: AtomicBool,
    /// The name of topic, group and database.
    pub name: String,
    /// The folder of the members' logs.
    pub folder: PathBuf,
    program: PathBuf,
    /// The ports: one for the endpoint of each member.
    ports: PortBlock,
}

impl<'a> Lane<'a> {
    /// Makes topic and tables and starts the members.
    pub fn start(
        servers: &'a Servers,
        program: &Path,
        folder: &Path,
        seed: u64,
        epoch: u64,
        is_large: bool,
    ) -> Result<Lane<'a>, AnyError> {
        let name = format!("chaos_{seed}_{epoch}");
        let folder = folder.join(&name);
        fs::create_dir_all(&folder)?;
        let mut clickhouse_proxies = Vec::new();
        for (number, server) in (0..).zip(servers.clickhouse.servers()) {
            let proxy = Proxy::new(mix(seed ^ mix(epoch)) ^ number)?;
            proxy.lead_to(server.http_addr()?.parse()?);
            clickhouse_proxies.push(proxy);
        }
        let bootstrap = servers.kafka.bootstrap();
        let ledger = SharedLedger::default();
        let mut lane = Lane {
            servers,
            membership: Membership::of(seed, epoch),
            is_large,
            topic: Topic::create(bootstrap, &name, if is_large { PARTITIONS_LARGE } else { PARTITIONS })?,
            dead_letters: Topic::create(bootstrap, &format!("{name}.dead"), 1)?,
            lifecycle: Mutex::new(Lifecycle::create(bootstrap, &format!("{name}.ready"), seed)?),
            clickhouse_proxies,
            slots: Vec::new(),
            feed: Mutex::new(Feed::new(bootstrap, &name, seed, is_large, &ledger)?),
            ledger,
            letters: Mutex::default(),
            has_markers: AtomicBool::new(false),
            violations: Mutex::default(),
            awaits_backlog: AtomicBool::new(false),
            name,
            folder,
            program: program.to_owned(),
            ports: PortBlock::reserve()?,
        };
        lane.migrate()?;
        for number in 0..MEMBERS {
            let log = lane.folder.join(format!("member-{number}.log"));
            let server = Mutex::new(lane.spawn(number, &log, None)?);
            let address = lane.endpoint(number);
            lane.slots.push(Slot { number, log, address, server });
        }
        Ok(lane)
    }

    fn command(&self, arguments: &[&str], url: &str) -> Command {
        let mut command = Command::new(&self.program);
        let brokers: Vec<String> = self.servers.kafka_proxies.iter().map(|proxy| proxy.address().to_string()).collect();
        command.env_clear().current_dir(std::env::temp_dir()).args(arguments);
        let session_timeout_ms = SESSION_TIMEOUT_MS.to_string();
        let own = [
            ("KAFKA__BROKERS", brokers.join(",")),
            ("KAFKA__GROUP_ID", self.name.clone()),
            ("KAFKA__TOPICS__EVENTS", self.name.clone()),
            ("KAFKA__TOPICS__AUDIENCE_READY", format!("{}.ready", self.name)),
            ("KAFKA__TOPICS__TEMPLATE_READY", String::new()),
            ("KAFKA__TOPICS__DEAD_LETTER", format!("{}.dead", self.name)),
            ("KAFKA__SESSION_TIMEOUT_MS", session_timeout_ms),
            ("REBALANCE__GRACE_MS", REBALANCE_GRACE_MS.to_string()),
            ("KAFKA__ASSIGNMENT", self.membership.assignment.to_owned()),
            ("CLICKHOUSE__URL", url.to_owned()),
            ("CLICKHOUSE__DATABASE", self.name.clone()),
        ];
        let sized = if self.is_large { LARGE } else { SMALL };
        let settings = SETTINGS.iter().chain(sized).map(|&(key, value)| (key, value.to_owned()));
        command.envs(own.into_iter().chain(settings).map(|(key, value)| (format!("TALLYHOUSE__{key}"), value)));
        command
    }

    fn migrate(&self) -> Result<(), AnyError> {
        let deadline = Instant::now() + MIGRATE_TIMEOUT;
        let store = &self.servers.clickhouse;
        let url = store.servers().first().map_or("", |server| server.url());
        loop {
            let output = self.command(store.migrate(), url).output()?;
            if output.status.success() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Returns the number of the server that a member prefers. Members prefer different ones.
    pub fn preferred(&self, member: usize) -> usize {
        member % self.clickhouse_proxies.len()
    }

    /// Begins a trouble in front of every ClickHouse server. Returns its number at each proxy.
    pub fn begin_everywhere(&self, trouble: Trouble) -> Vec<u64> {
        self.clickhouse_proxies.iter().map(|proxy| proxy.begin(trouble, 100)).collect()
    }

    /// Ends the troubles with these numbers.
    pub fn end_everywhere(&self, numbers: &[u64]) {
        self.clickhouse_proxies.iter().zip(numbers).for_each(|(proxy, &number)| proxy.end(number));
    }

    /// Returns the database on each server.
    pub fn tables(&self) -> Vec<Tables<'_>> {
        self.servers.clickhouse.tables(&self.name)
    }

    /// True if its members are static ones.
    pub fn is_static(&self) -> bool {
        self.membership.is_static
    }

    fn endpoint(&self, number: usize) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.port(number as u16)))
    }

    fn spawn(&self, number: usize, log: &Path, fail_point: Option<&str>) -> Result<Server, AnyError> {
        let mut urls: Vec<String> =
            self.clickhouse_proxies.iter().map(|proxy| format!("http://{}", proxy.address())).collect();
        urls.rotate_left(self.preferred(number));
        let mut command = self.command(&["run"], &urls.join(","));
        if self.servers.clickhouse.is_cluster() {
            command.env("TALLYHOUSE__CLICKHOUSE__REPLICAS_CONFIRMED", "2");
            // A sync has a second less.
            command.env("TALLYHOUSE__CLICKHOUSE__QUERY_TIMEOUT_MS", "4000");
        }
        command.env("TALLYHOUSE__ADMIN__LISTEN", self.endpoint(number).to_string());
        command.envs(fail_point.map(|point| ("TALLYHOUSE_FAILPOINT", point)));
        if self.membership.is_static {
            command.env("TALLYHOUSE__KAFKA__GROUP_INSTANCE_ID", format!("member-{number}"));
        }
        Ok(process::spawn(format!("member {number}"), command, Output::Log(log.to_owned()))?)
    }

    /// Puts a new member into the slot. The last one, if it is alive, is killed with -9.
    pub fn replace(&self, slot: &Slot, member: &mut Server, fail_point: Option<&str>) -> Result<(), AnyError> {
        member.kill9()?;
        *member = self.spawn(slot.number, &slot.log, fail_point)?;
        Ok(())
    }

    /// Notes a violation that a fault has found.
    pub fn report(&self, violation: String) {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(violation);
    }

    /// Returns the violations that faults have found since the last look.
    pub fn reported(&self) -> Vec<String> {
        std::mem::take(&mut *self.violations.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Locks all members; nobody else touches them meanwhile.
    pub fn lock_all(&self) -> Vec<MutexGuard<'_, Server>> {
        self.slots.iter().map(Slot::lock).collect()
    }

    /// Ends all members in order.
    pub fn terminate_all(&self, members: &[MutexGuard<'_, Server>]) {
        // If a member has ended by itself, the checks find it by its log.
        members.iter().for_each(|member| drop(member.signal(Signal::TERM)));
        members.iter().for_each(|member| drop(member.wait(TERMINATE_TIMEOUT)));
    }

    /// Starts a new member in each slot.
    pub fn start_all(&self, members: &mut [MutexGuard<'_, Server>]) -> Result<(), AnyError> {
        self.slots.iter().zip(members).try_for_each(|(slot, member)| self.replace(slot, member, None))
    }

    /// Waits until each member has partitions, all have an owner, and each has committed something. The wait is
    /// limited, as a member may have been left without partitions.
    pub fn await_balance(&self) -> Result<(), AnyError> {
        let partitions = self.topic.partitions()?;
        self.await_within_bounds(|| {
            let assigned: Vec<f64> = self.slots.iter().map(|slot| slot.assigned(&self.name)).collect();
            Ok(assigned.iter().all(|&count| count > 0.0) && assigned.iter().sum::<f64>() >= f64::from(partitions))
        })?;
        let have_begun = || Ok(self.topic.committed()?.len() >= partitions.unsigned_abs() as usize);
        if have_begun()? {
            return Ok(());
        }
        // Members that have begun ask ClickHouse nothing more before they announce a batch.
        self.feed().send(u64::from(partitions.unsigned_abs()), partitions)?;
        self.await_within_bounds(have_begun)
    }

    fn await_within_bounds(&self, holds: impl Fn() -> Result<bool, AnyError>) -> Result<(), AnyError> {
        let deadline = Instant::now() + BALANCE_TIMEOUT;
        while !holds()? && Instant::now() < deadline {
            std::thread::sleep(RETRY_INTERVAL);
        }
        Ok(())
    }

    /// Produces a backlog: the given number of records into each of the first partitions.
    pub fn produce_backlog(&self, counts: [u64; BACKLOG_PARTITIONS]) -> Result<(), AnyError> {
        let shares: Vec<(i32, u64)> = (0..).zip(counts).collect();
        let produced = self.feed().send_backlog(&shares, Instant::now() + BACKLOG_TIMEOUT);
        self.awaits_backlog.store(false, Ordering::Relaxed);
        produced
    }

    /// Produces the same while all members are stopped, for less than their session, so that they find a backlog.
    pub fn produce_backlog_unseen(
        &self,
        members: &[MutexGuard<'_, Server>],
        counts: [u64; BACKLOG_PARTITIONS],
    ) -> Result<(), AnyError> {
        members.iter().for_each(|member| drop(member.stop()));
        let produced = self.produce_backlog(counts);
        members.iter().for_each(|member| drop(member.cont()));
        produced
    }

    /// Returns what each slot's members have written beyond these lengths.
    pub fn logs_from(&self, lengths: &[u64]) -> Vec<String> {
        self.slots.iter().zip(lengths).map(|(slot, length)| slot.log_from(*length)).collect()
    }

    /// Returns how often a text is in the members' logs beyond these lengths.
    pub fn logged_since(&self, lengths: &[u64], text: &str) -> usize {
        self.logs_from(lengths).iter().map(|log| log.matches(text).count()).sum()
    }

    /// Returns the lengths of the members' logs.
    pub fn log_lengths(&self) -> Vec<u64> {
        self.slots.iter().map(|slot| fs::metadata(&slot.log).map_or(0, |log| log.len())).collect()
    }

    /// Locks the producer, even after a thread panicked with the lock.
    pub fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the lifecycle topic, even after a thread panicked with the lock.
    pub fn lifecycle(&self) -> MutexGuard<'_, Lifecycle> {
        self.lifecycle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the members' logs from growing without end.
    pub fn trim_logs(&self) {
        for slot in &self.slots {
            if fs::metadata(&slot.log).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
                let _ = fs::copy(&slot.log, slot.log.with_extension("log.1"));
                let _ = File::options().write(true).truncate(true).open(&slot.log);
            }
        }
    }

    /// Ends the members and removes what the lane has made, unless it is `kept` as evidence.
    pub fn end(self, kept: bool) -> Result<(), AnyError> {
        for slot in &self.slots {
            slot.lock().kill9()?;
        }
        if kept {
            return Ok(());
        }
        // Everything goes with the servers. This only keeps a long run small.
        if let Some(tables) = self.tables().first() {
            tables.ask(&self.servers.clickhouse.drop_statement())?;
        }
        self.topic.delete()?;
        self.dead_letters.delete()?;
        self.lifecycle().delete()?;
        fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}
