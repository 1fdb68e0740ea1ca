//! Members of Tallyhouse on a database of their own: their start, their catch-up with a full topic, and their end.
//!
//! Must never hand on what a run cost unless its counts are those of the ledger, and every member ended well.

use super::{AnyError, Cost, Interrupt, LOOK_INTERVAL, Meter, Metrics, Topic, compare, counted, parts_written};
use crate::http;
use crate::process::{self, ended_children_cpu};
use crate::producer::Ledger;
use crate::{ClickHouse, Output, Server, Signal};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(300);
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of the members of one group.
#[derive(Clone, Copy)]
pub struct Deployment<'a> {
    /// Path of the program `tallyhouse`.
    pub program: &'a Path,
    /// Addresses of the Kafka brokers.
    pub brokers: &'a str,
    /// The ClickHouse server that counts.
    pub clickhouse: &'a ClickHouse,
    /// Name of the event topic.
    pub topic: &'a str,
    /// Name of the database, and of the consumer group.
    pub database: &'a str,
    /// Further settings, as in `tallyhouse run --set`.
    pub set: &'a [String],
}

/// A running `tallyhouse run`.
pub struct Member {
    /// The process of the member.
    pub server: Server,
    admin: SocketAddr,
}

/// The time at which members receive the signal to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Everything is counted in ClickHouse.
    Counted,
    /// Everything is read: they flush the rest at once.
    Consumed,
}

/// The cost of counting a full topic.
#[derive(Debug, Clone, Copy)]
pub struct CatchUp {
    /// Time from the start of the members until everything was counted, or until the last of them had ended, in
    /// seconds.
    pub wall_seconds: f64,
    /// Time from the first record until then, in seconds. It is known only with [`Until::Consumed`].
    pub read_seconds: Option<f64>,
    /// Cost of all members.
    pub program: Cost,
    /// Cost of ClickHouse, merges included.
    pub clickhouse: Cost,
    /// Number of parts that inserts wrote.
    pub parts: u64,
}

impl Deployment<'_> {
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.program);
        command
            .arg(name)
            .env("TALLYHOUSE__KAFKA__BROKERS", self.brokers)
            .env("TALLYHOUSE__KAFKA__TOPICS__EVENTS", self.topic)
            .env("TALLYHOUSE__KAFKA__GROUP_ID", self.database)
            .env("TALLYHOUSE__CLICKHOUSE__URL", self.clickhouse.url())
            .env("TALLYHOUSE__CLICKHOUSE__DATABASE", self.database)
            .args(self.set.iter().flat_map(|set| ["--set", set]));
        command
    }

    /// Makes the tables.
    ///
    /// # Errors
    /// The program refuses.
    pub fn migrate(&self) -> Result<(), AnyError> {
        let migrated = self.command("migrate").output()?;
        if migrated.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&migrated.stderr).into()) }
    }

    /// Starts a member. It waits for nothing.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(&self) -> Result<Member, AnyError> {
        let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = self.command("run");
        command.env("TALLYHOUSE__ADMIN__LISTEN", admin.to_string());
        Ok(Member { server: process::spawn("tallyhouse", command, Output::Captured)?, admin })
    }
}

impl Member {
    /// Reads the member's metrics now.
    pub fn metrics(&self) -> Metrics {
        Metrics::ask(self.admin)
    }

    /// Partitions that it reads now; 0 while it does not answer.
    pub fn reading(&self) -> usize {
        let windows = http::get(self.admin, "/windows", HTTP_TIMEOUT).unwrap_or_default();
        let body = windows.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let windows: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        windows.as_object().map_or(0, serde_json::Map::len)
    }

    /// Checks that the member runs.
    ///
    /// # Errors
    /// The member has ended. The error has the last lines that it printed.
    pub fn check_alive(&self) -> Result<(), AnyError> {
        if self.server.is_alive() {
            return Ok(());
        }
        Err(format!("a member ended by itself: {}", self.server.log_tail()).into())
    }
}

/// Waits until every member has its share of the partitions, says that it is ready, and reads all of them.
///
/// # Errors
/// One ends, a signal came, or it takes longer than five minutes.
pub fn settle(members: &[Member], partitions: usize, interrupt: &Interrupt) -> Result<(), AnyError> {
    let started = Instant::now();
    loop {
        members.iter().try_for_each(Member::check_alive)?;
        let metrics: Vec<Metrics> = members.iter().map(Member::metrics).collect();
        let assigned: Vec<f64> = metrics.iter().map(|one| one.sum("tallyhouse_assigned_partitions")).collect();
        let ready = metrics.iter().all(|one| one.sum("tallyhouse_ready") > 0.0);
        let even = assigned.iter().all(|&one| one as usize >= partitions / members.len());
        let reading: usize = members.iter().map(Member::reading).sum();
        if ready && even && reading == partitions {
            return Ok(());
        }
        interrupt.check(started)?;
        if started.elapsed() > SETTLE_TIMEOUT {
            return Err(format!(
                "the members do not settle: they have {assigned:?} of {partitions} partitions and read {reading}"
            )
            .into());
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Asks all members to end, and waits for them.
///
/// # Errors
/// One does not end, or ends badly.
pub fn end_all(members: &[Member]) -> Result<(), AnyError> {
    members.iter().try_for_each(|member| member.server.signal(Signal::TERM))?;
    for Member { server, .. } in members {
        let status = server.wait(STOP_TIMEOUT)?;
        if !status.success() {
            return Err(format!("a member ended with {status}: {}", server.stderr()).into());
        }
    }
    Ok(())
}

/// Starts `members` members on a full topic, lets them count it, and ends them.
///
/// # Errors
/// The counts are not those of the ledger, a member ended by itself, or a signal came. It is also an error if the
/// members did not share the partitions evenly from the first record on.
pub fn catch_up(
    deployment: &Deployment<'_>,
    members: usize,
    topic: &Topic,
    until: Until,
    interrupt: &Interrupt,
) -> Result<CatchUp, AnyError> {
    deployment.migrate()?;
    let (clickhouse, wanted) = (deployment.clickhouse, topic.ledger.produced);
    let (meter, cpu_before) = (Meter::start(clickhouse)?, ended_children_cpu()?);
    let started = Instant::now();
    let members: Vec<Member> = (0..members).map(|_| deployment.start()).collect::<Result<_, _>>()?;
    let mut first = None;
    loop {
        let done = match until {
            Until::Counted => counted(clickhouse, deployment.database)? >= wanted,
            Until::Consumed => {
                let consumed = |member: &Member| member.metrics().sum("tallyhouse_consumed_records_total");
                let consumed: f64 = members.iter().map(consumed).sum();
                first = first.or((consumed > 0.0).then(Instant::now));
                consumed >= wanted as f64
            }
        };
        if done {
            break;
        }
        members.iter().try_for_each(Member::check_alive)?;
        interrupt.check(started)?;
        std::thread::sleep(LOOK_INTERVAL);
    }
    let counted_at = Instant::now();
    check_shared(&members, topic.partitions)?;
    let peaks = members.iter().map(|member| member.server.peak_memory_bytes()).collect::<Result<Vec<u64>, _>>()?;
    end_all(&members)?;
    let over_at = if until == Until::Counted { counted_at } else { Instant::now() };
    let cpu_seconds = (ended_children_cpu()? - cpu_before).as_secs_f64();
    let program = Cost { cpu_seconds, peak_bytes: peaks.into_iter().max().unwrap_or(0) };
    let (clickhouse, parts) = finish(meter, clickhouse, deployment.database, &topic.ledger)?;
    Ok(CatchUp {
        wall_seconds: (over_at - started).as_secs_f64(),
        read_seconds: first.map(|first| (over_at - first).as_secs_f64()),
        program,
        clickhouse,
        parts,
    })
}

/// Checks that the members shared the partitions all the time. The cost of several members has a meaning only then.
fn check_shared(members: &[Member], partitions: i32) -> Result<(), AnyError> {
    let (least, mut problems) = (partitions as usize / members.len(), Vec::new());
    for (number, metrics) in members.iter().map(Member::metrics).enumerate() {
        let assigned = metrics.sum("tallyhouse_assigned_partitions");
        let moved = metrics.sum_of("tallyhouse_rebalances_total", "kind", "revoked");
        if (assigned as usize) < least || moved > 0.0 {
            problems
                .push(format!("member {number} has {assigned} of {partitions} partitions after {moved} revocations"));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ").into()) }
}

/// Measures ClickHouse's part and compares the counts. Returns the cost and the parts written.
///
/// The database stays until the server ends. After thousands of files were deleted, ext4 looks long for an inode for
/// each new one (`recently_deleted`). That was a fifth of the next run's cost in ClickHouse.
///
/// # Errors
/// The counts are not those of the ledger, or ClickHouse does not answer.
pub fn finish(
    meter: Meter<'_>,
    clickhouse: &ClickHouse,
    database: &str,
    ledger: &Ledger,
) -> Result<(Cost, u64), AnyError> {
    let cost = meter.finish()?;
    compare(clickhouse, database, ledger)?;
    let parts = parts_written(clickhouse, database)?.values().sum();
    Ok((cost, parts))
}
