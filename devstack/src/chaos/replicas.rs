//! Faults of a shard of two replicas: one of them, the way between them, or Keeper is away.

use super::AnyError;
use super::inject::{kill_and_restart, trouble};
use super::lane::Lane;
use super::plan::Fault;
use super::store::Tables;
use crate::clickhouse::ClickHouse;
use crate::proxy::{Proxy, Trouble};
use crate::replicas::Replica;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A member's line about a change of its server.
pub const CHANGED: &str = "the member now uses the ClickHouse server";
/// A member's line about parts that ClickHouse has lost. It inserts nothing for a time then.
pub const LOST: &str = "parts of the tables were lost with the only replica";
/// Longest wait until an insert or a fetch meets a fault.
const MEET_TIMEOUT: Duration = Duration::from_secs(8);
/// Longest wait until a member has changed its server.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for which an insert on the server that is left is held. Members change within it.
const HELD: Duration = Duration::from_secs(7);
/// Time by which Keeper is away longer for large batches, whose inserts may take 5 s longer.
const LARGE_LONGER: Duration = Duration::from_secs(5);
const RESTART_TIMEOUT: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Files in a replica's folder that are not on the disk that it loses.
const KEPT: [&str; 3] = ["devstack-config.xml", "devstack-users.xml", "server.log"];

/// Returns the fault's replica and the other one.
fn pair<'a>(fault: &Fault, lane: &'a Lane<'_>) -> Result<[&'a Replica; 2], AnyError> {
    let replicas = lane.servers.clickhouse.replicas()?;
    let number = number(fault, lane);
    Ok([replicas.replica(0, number), replicas.replica(0, 1 - number)])
}

/// Returns the number of the fault's replica, which the member of its number prefers.
fn number(fault: &Fault, lane: &Lane<'_>) -> usize {
    lane.preferred(fault.victim)
}

/// Waits until a trouble of a proxy has hit something. Returns false if nothing was hit in time.
fn await_hit(proxy: &Proxy, before: u64) -> bool {
    await_until(MEET_TIMEOUT, || proxy.hits() > before)
}

fn await_until(within: Duration, holds: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + within;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        sleep(LOOK_INTERVAL);
    }
    true
}

/// Returns the fault's replica as a server.
pub fn victim<'a>(fault: &Fault, lane: &'a Lane<'_>) -> Result<&'a ClickHouse, AnyError> {
    Ok(pair(fault, lane)?[0].clickhouse())
}

/// Cuts the members off from a replica.
pub fn cut(fault: &Fault, lane: &Lane<'_>, lasts: Duration) -> bool {
    trouble(&[&lane.clickhouse_proxies[number(fault, lane)]], Trouble::Cut, 100, lasts)
}

/// Keeps the other replica from fetching this one's parts.
pub fn stop_fetches(fault: &Fault, lane: &Lane<'_>, lasts: Duration) -> Result<bool, AnyError> {
    Ok(trouble(&[pair(fault, lane)?[0].fetches()?], Trouble::Cut, 100, lasts))
}

/// Kills ZooKeeper and restarts it on its data.
pub fn kill_keeper(lane: &Lane<'_>, lasts: Duration) -> Result<bool, AnyError> {
    let _alone = lane.servers.hurt_clickhouse();
    kill_and_restart(lane.servers.clickhouse.replicas()?.zookeeper()?, lasts)
}

/// Lets a commit of one replica or of both reach Keeper and drops the answer. Keeper is away for longer than an insert then.
pub fn cut_keeper(fault: &Fault, lane: &Lane<'_>, lasts: Duration) -> Result<bool, AnyError> {
    let _alone = lane.servers.hurt_clickhouse();
    let [replica, other] = pair(fault, lane)?;
    let mut proxies = vec![replica.keeper()?];
    if fault.times.is_multiple_of(2) {
        proxies.push(other.keeper()?);
    }
    let mut has_lost = false;
    let mut cuts = Vec::new();
    for proxy in &proxies {
        let before = proxy.hits();
        let lost = proxy.begin(Trouble::LoseCommit, 100);
        has_lost |= await_hit(proxy, before);
        cuts.push(proxy.begin(Trouble::Cut, 100));
        proxy.end(lost);
    }
    sleep(lasts + if lane.is_large { LARGE_LONGER } else { Duration::ZERO });
    proxies.iter().zip(cuts).for_each(|(proxy, cut)| proxy.end(cut));
    Ok(has_lost)
}

/// Cuts a member off from the server that it prefers while an insert is on the way there. The insert arrives after the member has
/// changed to the other server. Returns true if a member changed.
pub fn switch_server(fault: &Fault, lane: &Lane<'_>) -> bool {
    let lengths = lane.log_lengths();
    let proxy = &lane.clickhouse_proxies[number(fault, lane)];
    let before = proxy.hits();
    let held = proxy.begin(Trouble::Hold(HELD), 100);
    let is_held = await_hit(proxy, before);
    let cut = proxy.begin(Trouble::Cut, 100);
    let changed = await_until(CHANGE_TIMEOUT, || lane.logged_since(&lengths, CHANGED) > 0);
    proxy.end(held);
    proxy.end(cut);
    is_held && changed
}

/// Kills a replica that has parts which the other one has not fetched, and restarts it.
pub fn kill_unfetched(fault: &Fault, lane: &Lane<'_>, lasts: Duration) -> Result<bool, AnyError> {
    let _alone = lane.servers.hurt_clickhouse();
    let replica = pair(fault, lane)?[0];
    let is_unfetched = kill_with_unfetched_parts(replica)?;
    kill_and_restart(replica.clickhouse().server()?, lasts)?;
    Ok(is_unfetched)
}

fn kill_with_unfetched_parts(replica: &Replica) -> Result<bool, AnyError> {
    let fetches = replica.fetches()?;
    let before = fetches.hits();
    let cut = fetches.begin(Trouble::Cut, 100);
    let is_unfetched = await_hit(fetches, before);
    replica.clickhouse().server()?.kill9()?;
    fetches.end(cut);
    Ok(is_unfetched)
}

/// Kills a replica with parts that only it has, and loses its disk. The other one forgets it. Then it gets its tables again, as an
/// operator would do. Members reach it only after that: a server without the tables is another server to them.
pub fn lose_disk(fault: &Fault, lane: &Lane<'_>) -> Result<bool, AnyError> {
    let _alone = lane.servers.hurt_clickhouse();
    let (number, [lost, _]) = (number(fault, lane), pair(fault, lane)?);
    let is_unfetched = kill_with_unfetched_parts(lost)?;
    let proxy = &lane.clickhouse_proxies[number];
    let cut = proxy.begin(Trouble::Cut, 100);
    wipe(lost.clickhouse().directory().ok_or("the replica has no folder")?)?;
    let tables = lane.tables();
    let [ours, theirs] = [&tables[number], &tables[1 - number]];
    let letter = lost.name().rsplit('-').next().unwrap_or_default();
    // Until the session of the dead replica has ended, Keeper takes it for an active one.
    theirs.ask(&format!("SYSTEM DROP REPLICA '{letter}' FROM DATABASE {{db}}"))?;
    lost.clickhouse().server()?.restart()?;
    lost.clickhouse().server()?.wait_healthy(RESTART_TIMEOUT)?;
    copy_tables(theirs, ours)?;
    proxy.end(cut);
    Ok(is_unfetched)
}

fn wipe(folder: &Path) -> Result<(), AnyError> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if KEPT.iter().any(|kept| entry.file_name() == *kept) {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}

/// Makes the tables of one replica on another one, with the same ids. Rows come from Keeper and the replica.
fn copy_tables(from: &Tables<'_>, to: &Tables<'_>) -> Result<(), AnyError> {
    to.ask("CREATE DATABASE IF NOT EXISTS {db}")?;
    // Distributed tables name others, and views read from both.
    let names = from.ask(
        "SELECT name FROM system.tables WHERE database = '{db}' \
         ORDER BY engine LIKE '%View', engine = 'Distributed', metadata_modification_time, name",
    )?;
    for name in names.lines() {
        let statement = from.ask(&format!(
            "SHOW CREATE TABLE {{db}}.`{name}` FORMAT TSVRaw SETTINGS show_table_uuid_in_table_create_query_if_not_nil = 1"
        ))?;
        to.ask(&statement)?;
    }
    Ok(())
}
