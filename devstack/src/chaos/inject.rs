//! Injects one fault, undoes it, and returns true if it took effect.
//!
//! Must leave behind running servers and running members, whatever happened.

use super::lane::{Lane, PARTITIONS, Slot};
use super::plan::{BROKERS, Fault, Kind};
use super::{AnyError, RESTART_TIMEOUT, gap, large, letters, replicas, transactions};
use crate::process::Server;
use crate::proxy::{Proxy, Trouble};
use std::sync::PoisonError;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time limit for a member to reach its fail point, and for the group to commit something.
const POINT_TIMEOUT: Duration = Duration::from_secs(15);
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for a member that was woken up to notice that it lost its partitions.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(3);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Greatest number of partitions of a small group.
const PARTITIONS_MAX: i32 = PARTITIONS + 5;
/// Maximum age of an answer from memory. Members look for 3.5 s for rows that are not shown.
const ANSWER_AGE: Duration = Duration::from_secs(2);
/// Time for which an insert is held: longer than an insert's timeout in a small group.
const HELD: Duration = Duration::from_millis(3_500);
/// Log texts of a member that notices that it was away for too long.
const NOTICES: [&str; 3] = ["lost=true", "the lease has expired", "changed by another member"];

/// Injects the fault and undoes it. Returns true if it took effect.
pub fn inject(fault: &Fault, lane: &Lane<'_>) -> Result<bool, AnyError> {
    let lasts = Duration::from_millis(fault.lasts_ms);
    let slot = &lane.slots[fault.victim % lane.slots.len()];
    let clickhouse = some_of(fault, &lane.clickhouse_proxies);
    let kafka: Vec<&Proxy> = lane.servers.kafka_proxies.iter().collect();
    let delay = Trouble::Delay(Duration::from_millis(fault.lasts_ms / 2));
    sleep(Duration::from_millis(fault.at_ms));
    match fault.kind {
        Kind::KillAtPoint => kill_at_point(fault, lane, slot, || Ok(true)),
        Kind::EvictTokens => kill_at_point(fault, lane, slot, || forget_tokens(lane)),
        Kind::KillMember => {
            let mut member = slot.lock();
            member.kill9()?;
            sleep(lasts);
            lane.replace(slot, &mut member, None)?;
            Ok(true)
        }
        Kind::Zombie => zombie(fault, lane, slot, lasts),
        Kind::Pause => pause(&slot.lock(), lasts),
        Kind::Storm => storm(fault, lane),
        Kind::KillClickhouse => {
            let _alone = lane.servers.hurt_clickhouse();
            kill_and_restart_all(&clickhouse_servers(lane)?, lasts)
        }
        Kind::PauseClickhouse => {
            let _alone = lane.servers.hurt_clickhouse();
            pause_all(&clickhouse_servers(lane)?, lasts)
        }
        Kind::KillBroker => {
            let _alone = lane.servers.hurting_broker.lock().unwrap_or_else(PoisonError::into_inner);
            kill_and_restart(lane.servers.kafka.node(fault.victim % BROKERS)?, lasts)
        }
        Kind::PauseBroker => {
            let _alone = lane.servers.hurting_broker.lock().unwrap_or_else(PoisonError::into_inner);
            pause(lane.servers.kafka.node(fault.victim % BROKERS)?, lasts)
        }
        Kind::CutClickhouse => Ok(trouble(&clickhouse, Trouble::Cut, fault.percent, lasts)),
        Kind::DelayClickhouse => Ok(trouble(&clickhouse, delay, fault.percent, lasts)),
        Kind::HalfClickhouse => Ok(trouble(&clickhouse, Trouble::Half, fault.percent, lasts)),
        Kind::LoseClickhouse => Ok(trouble(&clickhouse, Trouble::LoseAnswer, fault.percent, lasts)),
        Kind::AnswerForClickhouse => Ok(trouble(&clickhouse, Trouble::Answer, 100, lasts)),
        Kind::StaleClickhouse => {
            // Members that have begun ask nothing. A member that begins does.
            let mut member = slot.lock();
            let _ = member.terminate(TERMINATE_TIMEOUT);
            lane.replace(slot, &mut member, None)?;
            drop(member);
            Ok(trouble(&clickhouse, Trouble::Remember(ANSWER_AGE), 100, lasts))
        }
        Kind::HoldClickhouse => Ok(trouble(&clickhouse, Trouble::Hold(HELD), fault.percent, lasts)),
        Kind::CutKafka => Ok(trouble(&kafka, Trouble::Cut, fault.percent, lasts)),
        Kind::DelayKafka => Ok(trouble(&kafka, delay, fault.percent, lasts)),
        Kind::HalfKafka => Ok(trouble(&kafka, Trouble::Half, fault.percent, lasts)),
        Kind::LoseKafka => Ok(trouble(&kafka, Trouble::LoseAnswer, fault.percent, lasts)),
        Kind::DeleteRecords => delete_records(lane),
        Kind::AddPartition => add_partition(lane, lasts),
        Kind::RetentionGap => gap::beyond_positions(fault, lane),
        Kind::Transactions => transactions::produce(fault, lane),
        Kind::RefuseDeadLetters => letters::refuse(fault, lane),
        Kind::SlowConsumers => large::slow_consumers(fault, lane),
        Kind::InheritBatches => large::inherit_batches(fault, lane),
        Kind::KillReplica => {
            let _alone = lane.servers.hurt_clickhouse();
            kill_and_restart(replicas::victim(fault, lane)?.server()?, lasts)
        }
        Kind::PauseReplica => {
            let _alone = lane.servers.hurt_clickhouse();
            pause(replicas::victim(fault, lane)?.server()?, lasts)
        }
        Kind::CutReplica => Ok(replicas::cut(fault, lane, lasts)),
        Kind::StopFetches => replicas::stop_fetches(fault, lane, lasts),
        Kind::KillKeeper => replicas::kill_keeper(lane, lasts),
        Kind::CutKeeper => replicas::cut_keeper(fault, lane, lasts),
        Kind::SwitchServer => Ok(replicas::switch_server(fault, lane)),
        Kind::KillUnfetched => replicas::kill_unfetched(fault, lane, lasts),
        Kind::LoseDisk => replicas::lose_disk(fault, lane),
    }
}

/// Starts a member in the slot that dies at the fail point. Then `meanwhile` runs, and then a sound member takes
/// over.
fn kill_at_point(
    fault: &Fault,
    lane: &Lane<'_>,
    slot: &Slot,
    meanwhile: impl FnOnce() -> Result<bool, AnyError>,
) -> Result<bool, AnyError> {
    let mut member = slot.lock();
    // It leaves in order, so its partitions need not wait for its session to end.
    let _ = member.terminate(TERMINATE_TIMEOUT);
    lane.replace(slot, &mut member, Some(&format!("{}:{}", fault.point, fault.times)))?;
    if fault.has_backlog {
        lane.produce_backlog(large::BACKLOG)?;
    }
    let died = member.wait(POINT_TIMEOUT).is_ok();
    let done = if died { meanwhile() } else { Ok(false) };
    lane.replace(slot, &mut member, None)?;
    done
}

/// Shrinks the deduplication windows to one block and widens them again: the tokens of all blocks but the last are gone.
fn forget_tokens(lane: &Lane<'_>) -> Result<bool, AnyError> {
    for window in [0, 10_000] {
        for table in ["email_events", "rejected_events", "daily"] {
            for server in lane.tables() {
                server.ask(&format!(
                    "ALTER TABLE {{db}}.{table} MODIFY SETTING non_replicated_deduplication_window = {window}"
                ))?;
            }
        }
    }
    Ok(true)
}

/// Stops a member past its session: at any moment, or right after the check of its lease, with an insert to send.
fn zombie(fault: &Fault, lane: &Lane<'_>, slot: &Slot, lasts: Duration) -> Result<bool, AnyError> {
    let mut member = slot.lock();
    if fault.times.is_multiple_of(2) {
        let _ = member.terminate(TERMINATE_TIMEOUT);
        lane.replace(slot, &mut member, Some(&format!("lease_checked:{}:stop", fault.times)))?;
        let deadline = Instant::now() + POINT_TIMEOUT;
        while !member.is_stopped().unwrap_or(false) {
            if Instant::now() > deadline {
                // Nothing may stop it later.
                lane.replace(slot, &mut member, None)?;
                return Ok(false);
            }
            sleep(LOOK_INTERVAL);
        }
    }
    let notices = || NOTICES.iter().map(|notice| slot.log().matches(notice).count()).sum::<usize>();
    let before = notices();
    pause(&member, lasts)?;
    let deadline = Instant::now() + NOTICE_TIMEOUT;
    while notices() == before && Instant::now() < deadline {
        sleep(LOOK_INTERVAL);
    }
    Ok(notices() > before)
}

/// Returns the proxies that a trouble hits: the only one, one of two, or both.
fn some_of<'a>(fault: &Fault, proxies: &'a [Proxy]) -> Vec<&'a Proxy> {
    let is_hit = |number: usize| proxies.get(fault.victim).is_none() || number == fault.victim;
    proxies.iter().enumerate().filter(|(number, _)| is_hit(*number)).map(|(_, proxy)| proxy).collect()
}

fn clickhouse_servers<'a>(lane: &'a Lane<'_>) -> crate::Result<Vec<&'a Server>> {
    lane.servers.clickhouse.servers().into_iter().map(|server| server.server()).collect()
}

fn pause(server: &Server, lasts: Duration) -> Result<bool, AnyError> {
    pause_all(&[server], lasts)
}

/// Stops servers for this time. It has no effect on a server that has ended by itself; that shows elsewhere.
fn pause_all(servers: &[&Server], lasts: Duration) -> Result<bool, AnyError> {
    let stopped: Vec<&&Server> = servers.iter().filter(|server| server.stop().is_ok()).collect();
    sleep(lasts);
    Ok(stopped.into_iter().filter(|server| server.cont().is_ok()).count() == servers.len())
}

pub fn kill_and_restart(server: &Server, lasts: Duration) -> Result<bool, AnyError> {
    kill_and_restart_all(&[server], lasts)
}

fn kill_and_restart_all(servers: &[&Server], lasts: Duration) -> Result<bool, AnyError> {
    servers.iter().try_for_each(|server| server.kill9())?;
    sleep(lasts);
    servers.iter().try_for_each(|server| server.restart())?;
    servers.iter().try_for_each(|server| server.wait_healthy(RESTART_TIMEOUT))?;
    Ok(true)
}

fn storm(fault: &Fault, lane: &Lane<'_>) -> Result<bool, AnyError> {
    for number in 0..=fault.times as usize {
        let slot = &lane.slots[(fault.victim + number) % lane.slots.len()];
        let mut member = slot.lock();
        // A member that does not handle signals yet ends at once, which is as good.
        let _ = member.terminate(TERMINATE_TIMEOUT);
        lane.replace(slot, &mut member, None)?;
        drop(member);
        sleep(Duration::from_millis(fault.lasts_ms / 4));
    }
    Ok(true)
}

pub fn trouble(proxies: &[&Proxy], trouble: Trouble, percent: u64, lasts: Duration) -> bool {
    let hits = || proxies.iter().map(|proxy| proxy.hits()).sum::<u64>();
    let before = hits();
    let begun: Vec<u64> = proxies.iter().map(|proxy| proxy.begin(trouble, percent)).collect();
    sleep(lasts);
    proxies.iter().zip(begun).for_each(|(proxy, number)| proxy.end(number));
    hits() > before
}

/// Deletes records up to the committed offsets, as soon as there are records below one.
fn delete_records(lane: &Lane<'_>) -> Result<bool, AnyError> {
    let deadline = Instant::now() + POINT_TIMEOUT;
    loop {
        let mut consumed = Vec::new();
        for (partition, offset) in lane.topic.committed()? {
            if lane.topic.bounds(partition)?.0 < offset {
                consumed.push((partition, offset));
            }
        }
        if !consumed.is_empty() {
            lane.topic.delete_below(&consumed)?;
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        sleep(LOOK_INTERVAL);
    }
}

/// Adds a partition. The fault goes on for a time, so that records reach the new partition in this round.
fn add_partition(lane: &Lane<'_>, lasts: Duration) -> Result<bool, AnyError> {
    let count = lane.topic.partitions()?;
    // A group of static members may not notice (KAFKA-13435): see docs/limits.md.
    if count >= PARTITIONS_MAX || lane.membership.is_static {
        return Ok(false);
    }
    lane.topic.raise_partitions(count + 1)?;
    sleep(lasts);
    Ok(true)
}
