//! `cargo chaos`: real servers, real members, faults drawn from a seed, and after each round the proof that every
//! record is there exactly once.
//!
//! ```text
//! producer ──► Kafka, 3 nodes ──proxies──► 3 members ──proxy──► ClickHouse, or two replicas of it
//!    │ ledger        ▲                         ▲                    ▲
//!    └─► verify ◄── faults of the round's plan ┴────────────────────┘
//! ```
//!
//! [`plan`] draws a round's faults, `inject` carries them out on a `lane`, and `verify` checks the result. One group
//! in three is large: its batches have 100,000 records, and its members' memory is too small for their backlog.
//!
//! Must never pass a round that was not verified to the end.

mod announced;
mod cluster;
mod feed;
mod gap;
mod inherited;
mod inject;
mod lane;
mod large;
mod ledger;
mod letters;
mod lifecycle;
pub mod plan;
mod replicas;
mod report;
mod still;
mod store;
mod transactions;
mod verify;

use crate::dice::mix;
use crate::kafka::{Kafka, KafkaOptions};
use crate::process::Server;
use crate::proxy::Proxy;
use lane::Lane;
use plan::{BROKERS, Kind, Plan, ROUNDS_PER_EPOCH};
pub use report::Report;
use report::RoundResult;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use store::Store;
use verify::{Stored, Vitals};

/// Any error of the harness itself. A violation is not an error.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Log text of a member that Kafka has fenced permanently.
const FENCED: &str = "kafka refuses this member permanently";
/// A member's message when its client takes no part in the group any more.
const LEFT_BEHIND: &str = "librdkafka has left this member behind";

/// Number of records sent at a time while faults are carried out ...
const BURST: u64 = 60;
const BURST_INTERVAL: Duration = Duration::from_millis(60);
/// ... minimum number of these bursts, some of them after the faults ...
const BURSTS_MIN: u64 = 30;
/// ... and number of bursts after which they become slower, as long faults have then seen more than enough.
const BURSTS_FAST: u64 = 50;
const BURST_INTERVAL_SLOW: Duration = Duration::from_millis(500);

/// A member's line about a source that leaves its group early.
const LEFT_GROUP: &str = "has left its group";
/// A member's error of an insert that it ends because its lease expired meanwhile.
const BROKEN_OFF: &str = "it broke the insert off";
/// Bursts between two looks at the number of partitions.
const LOOK_EVERY: u64 = 10;

const SUPERVISE_INTERVAL: Duration = Duration::from_millis(200);
const RESTART_TIMEOUT: Duration = Duration::from_secs(120);

/// The options of a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `tallyhouse` under test, with fail points: a build with debug assertions.
    pub program: PathBuf,
    /// The seed from which all random values follow.
    pub seed: u64,
    /// Number of the first round.
    pub first: u64,
    /// Number of rounds to run.
    pub rounds: u64,
    /// Number of pipelines that run side by side on the same servers.
    pub lanes: u64,
    /// The kinds of faults.
    pub kinds: Vec<Kind>,
    /// True if the members write to a shard of replicas and not to one server.
    pub is_cluster: bool,
    /// Number of kinds in each round; with 1, up to two more are drawn freely.
    pub from_deck: u64,
    /// A new folder for data and logs; it stays if there is a violation.
    pub folder: PathBuf,
    /// The caller sets it to end after the current rounds.
    pub stop: Arc<AtomicBool>,
}

/// The servers that all lanes share.
pub struct Servers {
    kafka: Kafka,
    clickhouse: Store,
    /// One in front of each node.
    kafka_proxies: Vec<Proxy>,
    /// The lock of the fault that hurts ClickHouse.
    hurting_clickhouse: Mutex<()>,
    /// Number of times that ClickHouse ended although nobody killed it.
    clickhouse_deaths: AtomicU64,
    /// The lock of the fault that hurts a broker. There are never two at a time, since two of three must live.
    hurting_broker: Mutex<()>,
}

impl Servers {
    /// Starts the servers. Data and logs lie in the folder.
    fn start(options: &Options) -> Result<Servers, AnyError> {
        let Options { seed, folder, is_cluster, .. } = options;
        let proxies: Vec<Proxy> =
            (0..BROKERS as u64).map(|node| Proxy::new(mix(*seed ^ node))).collect::<crate::Result<_>>()?;
        let properties = [("min.insync.replicas", "2"), ("log.retention.check.interval.ms", "600000")];
        let kafka = Kafka::start(KafkaOptions {
            nodes: BROKERS,
            properties: properties.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            proxies: proxies.iter().map(Proxy::address).collect(),
            directory: Some(folder.join("kafka")),
            ..KafkaOptions::default()
        })?;
        for (index, proxy) in proxies.iter().enumerate() {
            proxy.lead_to(kafka.behind_proxy(index)?);
        }
        Ok(Servers {
            kafka,
            clickhouse: Store::start(*is_cluster, folder)?,
            kafka_proxies: proxies,
            hurting_clickhouse: Mutex::default(),
            clickhouse_deaths: AtomicU64::new(0),
            hurting_broker: Mutex::default(),
        })
    }

    /// Locks ClickHouse and ZooKeeper for a fault that kills or stops one of them.
    fn hurt_clickhouse(&self) -> MutexGuard<'_, ()> {
        self.hurting_clickhouse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Restarts ClickHouse when it ends by itself, as a supervisor does, until `ended` is set. ClickHouse 26.7.2 as a
    /// library aborts at times when a connection is closed while it answers ("Terminate called for uncaught
    /// exception: Broken pipe").
    fn supervise(&self, ended: &AtomicBool) -> Result<(), AnyError> {
        let servers: Vec<&Server> =
            self.clickhouse.servers().into_iter().map(|server| server.server()).collect::<crate::Result<_>>()?;
        while !ended.load(Ordering::Relaxed) {
            for server in &servers {
                let _alone = self.hurt_clickhouse();
                if !server.is_alive() {
                    self.clickhouse_deaths.fetch_add(1, Ordering::Relaxed);
                    server.restart()?;
                    server.wait_healthy(RESTART_TIMEOUT)?;
                }
            }
            thread::sleep(SUPERVISE_INTERVAL);
        }
        Ok(())
    }
}

/// Runs the rounds and prints a line for each. The report has the results.
///
/// # Errors
/// The harness itself fails: servers that do not start, say.
pub fn run(options: &Options) -> Result<Report, AnyError> {
    fs::create_dir_all(&options.folder)?;
    let servers = Servers::start(options)?;
    let report = Mutex::new(Report::new(&options.kinds, options.is_cluster));
    let last = options.first + options.rounds;
    let next_epoch = AtomicU64::new(options.first / ROUNDS_PER_EPOCH);
    let ended = AtomicBool::new(false);
    let lanes: Result<(), AnyError> = thread::scope(|scope| {
        let work = || -> Result<(), AnyError> {
            loop {
                let epoch = next_epoch.fetch_add(1, Ordering::Relaxed);
                let begin = (epoch * ROUNDS_PER_EPOCH).max(options.first);
                let end = ((epoch + 1) * ROUNDS_PER_EPOCH).min(last);
                if begin >= end || options.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let done = run_epoch(options, &servers, epoch, begin..end, &report);
                if let Err(error) = &done {
                    // Failures in the other lanes from here on may be no more than a consequence.
                    eprintln!("chaos: epoch {epoch}: {error}");
                    options.stop.store(true, Ordering::Relaxed);
                }
                done?;
            }
        };
        let supervisor = scope.spawn(|| servers.supervise(&ended));
        let running: Vec<_> = (0..options.lanes).map(|_| scope.spawn(work)).collect();
        let lanes = running.into_iter().try_for_each(|lane| lane.join().map_err(|_| "a lane panicked")?);
        ended.store(true, Ordering::Relaxed);
        lanes.and(supervisor.join().map_err(|_| "the supervisor panicked")?)
    });
    lanes?;
    let mut report = report.into_inner().map_err(|_| "a lane panicked")?;
    report.clickhouse_deaths = servers.clickhouse_deaths.load(Ordering::Relaxed);
    drop(servers);
    if report.violations() == 0 {
        fs::remove_dir_all(&options.folder)?;
    }
    Ok(report)
}

/// Runs the rounds of one epoch, on a pipeline of their own. A violation ends it, since each later check would find
/// it again.
fn run_epoch(
    options: &Options,
    servers: &Servers,
    epoch: u64,
    rounds: std::ops::Range<u64>,
    report: &Mutex<Report>,
) -> Result<(), AnyError> {
    let is_large = plan::is_large(options.seed, epoch, &options.kinds);
    let lane = Lane::start(servers, &options.program, &options.folder, options.seed, epoch, is_large)?;
    let mut clean = true;
    for round in rounds {
        if options.stop.load(Ordering::Relaxed) {
            break;
        }
        let plan = Plan::of(options.seed, round, &options.kinds, options.from_deck);
        let result = run_round(&plan, &lane)?;
        clean = result.violations.is_empty();
        report.lock().map_err(|_| "a lane panicked")?.note(&result, &plan, &lane, options.seed);
        if !clean {
            break;
        }
        lane.trim_logs();
    }
    lane.end(!clean)
}

fn run_round(plan: &Plan, lane: &Lane<'_>) -> Result<RoundResult, AnyError> {
    let started = Instant::now();
    let sent_before = lane.feed().settle()?;
    let log_lengths = lane.log_lengths();
    let is_over = AtomicBool::new(false);
    let (outcome, seen) = thread::scope(|scope| {
        let announced = scope.spawn(|| announced::watch(lane, &is_over));
        let outcome = hurt_and_check(plan, lane, &log_lengths);
        is_over.store(true, Ordering::Relaxed);
        (outcome, announced.join())
    });
    let (effects, vitals, checked) = outcome?;
    let seen = seen.map_err(|_| "the watch panicked")??;
    let mut violations = checked.violations;
    violations.extend(vitals.violations);
    violations.extend(lane.reported());
    let took = started.elapsed();
    let both_written = lane.servers.clickhouse.both_inserted(&lane.name, took)?;
    let logs = lane.logs_from(&log_lengths);
    let logged = |text: &str| logs.iter().map(|log| log.matches(text).count() as u64).sum();
    Ok(RoundResult {
        effects,
        violations,
        records: checked.sent - sent_before,
        took,
        both_written,
        changed_server: logged(replicas::CHANGED) > 0,
        lost_parts: logged(replicas::LOST) > 0,
        still: checked.still,
        fenced: checked.ended.fenced,
        left_behind: checked.ended.left_behind,
        held_bytes: vitals.held_bytes,
        rss_bytes: vitals.rss_bytes,
        inherited: inherited::count(&logs, &seen.of_groups),
        seen,
        late_inserts: logged(BROKEN_OFF),
        broken_groups: logged(LEFT_GROUP),
        pauses: logged(large::PAUSES),
        repeated_letters: lane.letters.lock().unwrap_or_else(PoisonError::into_inner).repeated,
    })
}

/// Carries the faults out while records flow, and checks everything that must hold then.
fn hurt_and_check(plan: &Plan, lane: &Lane<'_>, log_lengths: &[u64]) -> Result<(Vec<bool>, Vitals, Checked), AnyError> {
    let mut vitals = Vitals::default();
    let has_backlog = plan.faults.iter().any(|fault| fault.has_backlog);
    if plan.is_large {
        lane.await_balance()?;
    }
    if plan.is_large && !has_backlog {
        lane.produce_backlog_unseen(&lane.lock_all(), large::BACKLOG)?;
    }
    lane.awaits_backlog.store(has_backlog, Ordering::Relaxed);
    let effects = thread::scope(|scope| {
        let faults: Vec<_> = plan.faults.iter().map(|fault| scope.spawn(move || inject::inject(fault, lane))).collect();
        let mut produced = Ok(());
        let (mut bursts, mut partitions) = (0, 1);
        while produced.is_ok() && (bursts < BURSTS_MIN || faults.iter().any(|fault| !fault.is_finished())) {
            if lane.awaits_backlog.load(Ordering::Relaxed) && faults.iter().any(|fault| !fault.is_finished()) {
                thread::sleep(BURST_INTERVAL);
                continue;
            }
            if bursts % LOOK_EVERY == 0 {
                // Kafka may be in trouble. Then the last known number stays.
                partitions = lane.topic.partitions().unwrap_or(partitions);
                vitals.look(lane);
            }
            produced = lane.feed().send(BURST, partitions).and_then(|()| lane.lifecycle().send());
            bursts += 1;
            thread::sleep(if bursts < BURSTS_FAST { BURST_INTERVAL } else { BURST_INTERVAL_SLOW });
        }
        let effects: Result<Vec<bool>, AnyError> =
            faults.into_iter().map(|fault| fault.join().map_err(|_| "a fault panicked")?).collect();
        produced.and(effects)
    })?;
    // This measures from the end of the last fault on, beside the checks and until everything is committed.
    let is_checked = AtomicBool::new(false);
    let (outcome, still) = thread::scope(|scope| {
        let watching = scope.spawn(|| still::watch(lane, log_lengths, &is_checked));
        let outcome = check(lane);
        is_checked.store(true, Ordering::Relaxed);
        (outcome, watching.join())
    });
    let mut checked = outcome?;
    let still = still.map_err(|_| "the watch panicked")??;
    checked.violations.extend(still.violation());
    checked.still = still.longest;
    vitals.look(lane);
    Ok((effects, vitals, checked))
}

/// The findings of the checks.
#[derive(Debug, Default)]
struct Checked {
    violations: Vec<String>,
    ended: Ended,
    /// Number of records sent so far.
    sent: u64,
    still: Duration,
}

/// Checks everything that must hold once the faults are over, on each server.
fn check(lane: &Lane<'_>) -> Result<Checked, AnyError> {
    let mut ended = Ended::default();
    let mut violations = revive(lane, &mut ended)?;
    let sent = lane.feed().settle()?;
    let (ends, ready) = (verify::ends(&lane.topic, &lane.ledger)?, lane.lifecycle().settle()?);
    verify::resolve(lane, &ends)?;
    let may_lose = if lane.servers.clickhouse.is_cluster() { still::AFTER_LOSS } else { Duration::ZERO };
    let within = verify::PROGRESS_TIMEOUT + may_lose;
    for tables in lane.tables() {
        let mut found = verify::await_stored(lane, &tables, &ends, within)?;
        tables.sync()?;
        let stored = Stored::of(&tables)?;
        found.extend(verify::rows(&lane.ledger.lock(), &ends, &stored));
        found.extend(verify::counters(&tables)?);
        found.extend(verify::recipients(&tables)?);
        found.extend(letters::check(lane, &stored)?);
        found.extend(lane.lifecycle().check(&tables, &ready, within)?);
        violations.extend(tables.named(found));
    }
    violations.extend(revive(lane, &mut ended)?);
    violations.extend(verify::members(lane));
    Ok(Checked { violations, ended, sent, still: Duration::ZERO })
}

/// Members that ended by themselves for a known reason. A supervisor has to start them again.
#[derive(Debug, Default)]
struct Ended {
    fenced: u64,
    left_behind: u64,
}

/// Replaces members that ended by themselves. Each of them is a violation, except static members that Kafka fenced,
/// and members that librdkafka left behind. These are counted.
///
/// librdkafka sends a commit that waited for the coordinator without a member id once the session has ended. Kafka
/// takes that for a second process of the same id.
fn revive(lane: &Lane<'_>, ended: &mut Ended) -> Result<Vec<String>, AnyError> {
    let mut violations = Vec::new();
    for slot in &lane.slots {
        let mut member = slot.lock();
        if !member.is_alive() {
            let log_tail = member.log_tail();
            if lane.is_static() && log_tail.contains(FENCED) {
                ended.fenced += 1;
            } else if log_tail.contains(LEFT_BEHIND) {
                ended.left_behind += 1;
            } else {
                violations.push(format!("member {} ended by itself:\n{log_tail}", slot.number));
            }
            lane.replace(slot, &mut member, None)?;
        }
    }
    Ok(violations)
}
