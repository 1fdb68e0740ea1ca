//! What must hold after a round. Each check gives the violations it found, in words with the offsets.

use super::AnyError;
use super::feed::Fate;
use super::lane::Lane;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Everything produced must be stored this long after the last fault.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(90);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Offsets that a message lists.
const LISTED: usize = 8;

/// One past the last offset of each partition.
pub type Ends = BTreeMap<i32, i64>;

/// Where the log ends. A broker that was stopped takes itself for the leader until it hears otherwise, and tells an end of then:
/// one before a record that Kafka has acknowledged is not believed at once.
pub fn ends(lane: &Lane<'_>) -> Result<Ends, AnyError> {
    let deadline = Instant::now() + PROGRESS_TIMEOUT;
    loop {
        let ends: Ends = (0..lane.topic.partitions()?)
            .map(|partition| Ok((partition, lane.topic.bounds(partition)?.1)))
            .collect::<Result<_, AnyError>>()?;
        let is_stale = |&(partition, offset): &(i32, i64)| ends.get(&partition).is_none_or(|&end| offset >= end);
        if !lane.feed().ledger().acknowledged.keys().any(is_stale) || Instant::now() > deadline {
            return Ok(ends);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Waits until everything in the log is counted or rejected.
pub fn await_stored(lane: &Lane<'_>, ends: &Ends) -> Result<Vec<String>, AnyError> {
    let wanted: i64 = ends.values().sum();
    let deadline = Instant::now() + PROGRESS_TIMEOUT;
    loop {
        // Counters are written last, so that what is counted is stored as well.
        let sql = "SELECT (SELECT sum(total) FROM {db}.daily) + (SELECT count() FROM {db}.rejected_events)";
        let stored: i64 = lane.ask(sql)?.parse()?;
        if stored >= wanted {
            return Ok(Vec::new());
        }
        if Instant::now() > deadline {
            let ready: Vec<String> = lane.slots.iter().map(readiness).collect();
            let ready = ready.join("\n  ");
            return Ok(vec![format!(
                "no progress: {stored} of {wanted} records are stored {PROGRESS_TIMEOUT:?} after the last fault\n  {ready}"
            )]);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn readiness(slot: &super::lane::Slot) -> String {
    let answer = slot.http("/readyz").unwrap_or_else(|error| error.to_string());
    format!("member {}: {}", slot.number, answer.lines().last().unwrap_or_default())
}

/// Every offset of the log is stored exactly once and as what it was produced; nothing else is.
pub fn rows(lane: &Lane<'_>, ends: &Ends) -> Result<Vec<String>, AnyError> {
    let stored = stored(lane)?;
    let mut found = Vec::new();
    let log = ends.iter().flat_map(|(&partition, &end)| (0..end).map(move |offset| (partition, offset)));
    let missing: Vec<_> = log.filter(|place| !stored.contains_key(place)).collect();
    let doubled: Vec<_> = stored.iter().filter(|(_, fates)| fates.len() > 1).map(|(&place, _)| place).collect();
    let beyond: Vec<_> =
        stored.keys().filter(|(partition, offset)| ends.get(partition).is_none_or(|end| offset >= end)).collect();
    let mut lost = Vec::new();
    let mut other = Vec::new();
    for (&(partition, offset), fate) in &lane.feed().ledger().acknowledged {
        match stored.get(&(partition, offset)).map(|fates| fates[0]) {
            _ if ends.get(&partition).is_none_or(|&end| offset >= end) => lost.push((partition, offset)),
            Some(stored) if stored != *fate => other.push((partition, offset)),
            _ => {}
        }
    }
    describe("missing", &missing, &mut found);
    describe("stored more than once", &doubled, &mut found);
    describe("stored and not in the log", &beyond, &mut found);
    describe("stored as something else than was produced", &other, &mut found);
    describe("acknowledged by Kafka and not in its log", &lost, &mut found);
    Ok(found)
}

fn describe<T: std::fmt::Debug>(what: &str, places: &[T], found: &mut Vec<String>) {
    if !places.is_empty() {
        let (count, first) = (places.len(), &places[..places.len().min(LISTED)]);
        found.push(format!("{count} records are {what}: (partition, offset) {first:?}, last {:?}", places.last()));
    }
}

/// What each offset is stored as, each time it is.
fn stored(lane: &Lane<'_>) -> Result<BTreeMap<(i32, i64), Vec<Fate>>, AnyError> {
    let answer = lane.ask(
        "SELECT extract(source, '/(\\\\d+)@') AS partition, source_offset, indexOf(\
         ['delivered', 'open', 'click', 'bounce', 'unsubscribe'], toString(event_type)) AS fate FROM {db}.email_events \
         UNION ALL SELECT extract(source, '/(\\\\d+)@'), source_offset, 0 FROM {db}.rejected_events FORMAT TSV",
    )?;
    let mut stored: BTreeMap<(i32, i64), Vec<Fate>> = BTreeMap::new();
    for line in answer.lines() {
        let mut fields = line.split('\t');
        let mut next = || fields.next().ok_or("a column is missing");
        let place = (next()?.parse()?, next()?.parse()?);
        stored.entry(place).or_default().push(next()?.parse::<u8>()?.checked_sub(1));
    }
    Ok(stored)
}

/// The counters are the GROUP BY of the rows.
pub fn counters(lane: &Lane<'_>) -> Result<Vec<String>, AnyError> {
    let key = "day, event_type, campaign_id, workspace_id, source";
    let differences = lane.ask(&format!(
        "SELECT day, event_type, campaign_id, source, r.n AS rows, d.n AS total FROM \
         (SELECT toDate(event_time) AS day, event_type, campaign_id, workspace_id, source, count() AS n \
          FROM {{db}}.email_events GROUP BY ALL) AS r \
         FULL JOIN (SELECT {key}, sum(total) AS n FROM {{db}}.daily GROUP BY ALL) AS d USING ({key}) \
         WHERE r.n != d.n LIMIT {LISTED} FORMAT TSV"
    ))?;
    match differences.is_empty() {
        true => Ok(Vec::new()),
        false => Ok(vec![format!(
            "daily is not the GROUP BY of the rows (day, type, campaign, source, rows, total):\n{differences}"
        )]),
    }
}

/// What the members say of their memory, the most over a round.
#[derive(Debug, Default)]
pub struct Vitals {
    /// Who was over the limit.
    pub violations: Vec<String>,
    /// The most memory that windows and batches held.
    pub held_bytes: u64,
    /// The most resident memory of a member.
    pub rss_bytes: u64,
}

impl Vitals {
    /// Looks at every member now.
    pub fn look(&mut self, lane: &Lane<'_>) {
        for slot in &lane.slots {
            // One that a fault has may be stopped and not answer for long.
            let Some(member) = slot.try_lock() else { continue };
            self.rss_bytes = self.rss_bytes.max(member.rss_bytes().unwrap_or(0));
            let Ok(metrics) = slot.http("/metrics") else { continue };
            let used = metric(&metrics, "tallyhouse_memory_used_bytes");
            let limit = metric(&metrics, "tallyhouse_memory_limit_bytes");
            if used > limit {
                self.violations.push(format!("member {} holds {used} bytes, over its limit of {limit}", slot.number));
            }
            self.held_bytes = self.held_bytes.max(used as u64);
        }
    }
}

/// The sum of a metric over its labels.
fn metric(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// No partition is stopped, and no member has panicked.
pub fn members(lane: &Lane<'_>) -> Vec<String> {
    let mut violations = Vec::new();
    for slot in &lane.slots {
        if let Some((_, panic)) = slot.log().split_once("panicked at") {
            let panic: String = panic.lines().take(2).collect();
            violations.push(format!("member {} panicked: {panic}", slot.number));
        }
        // One that was started just now may not answer yet; it has stopped nothing yet either.
        let stopped = slot.http("/metrics").map_or(0.0, |metrics| metric(&metrics, "tallyhouse_stopped_partitions"));
        if stopped > 0.0 {
            violations.push(format!("a partition is stopped: {}", readiness(slot)));
        }
    }
    violations
}
