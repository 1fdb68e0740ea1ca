//! Checks that must hold after a round. Each check returns the violations it found, in words with the offsets.

use super::AnyError;
use super::cluster::Topic;
use super::feed::SharedLedger;
use super::lane::Lane;
use super::ledger::{ABSENT, EVENT, Fate, Ledger, PRESENT, REJECT, UNKNOWN};
use super::store::Tables;
use rdkafka::message::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time after the last fault within which every record must be stored.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(90);
/// Time between two looks at the number of stored records.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum number of offsets that a message lists.
const LISTED: usize = 8;

/// One past the last offset of each partition.
pub type Ends = BTreeMap<i32, i64>;

/// Returns the end of the log. A broker that was stopped believes itself the leader until it hears otherwise, and
/// reports an old end. So an end before a record that Kafka has acknowledged is not believed at once.
pub fn ends(topic: &Topic, ledger: &SharedLedger) -> Result<Ends, AnyError> {
    let deadline = Instant::now() + PROGRESS_TIMEOUT;
    loop {
        let ends: Ends = (0..topic.partitions()?)
            .map(|partition| Ok((partition, topic.bounds(partition)?.1)))
            .collect::<Result<_, AnyError>>()?;
        let ledger = ledger.lock();
        let is_stale =
            ledger.partitions().any(|partition| ends.get(&partition).is_none_or(|&end| ledger.end(partition) > end));
        drop(ledger);
        if !is_stale || Instant::now() > deadline {
            return Ok(ends);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Reads the log where nobody has acknowledged an offset, once transactions have left control records in it. It notes
/// which offsets hold a record that a consumer sees, and which hold none.
pub fn resolve(lane: &Lane<'_>, ends: &Ends) -> Result<(), AnyError> {
    if !lane.has_markers.load(Ordering::Relaxed) {
        return Ok(());
    }
    for (&partition, &end) in ends {
        let low = lane.topic.bounds(partition)?.0;
        let (mut unknown, last) = {
            let ledger = lane.ledger.lock();
            (ledger.unknown_below(partition, end), ledger.stored_end(partition) - 1)
        };
        unknown.retain(|&offset| offset >= low);
        let (Some(&first), Some(&until)) = (unknown.first(), unknown.last()) else { continue };
        let mut seen = BTreeSet::new();
        // The read starts at an offset that holds a record for sure, so that an early end of the log is noticed.
        lane.topic.read(partition, first.min(last).max(low), until + 1, last.min(until), |record| {
            seen.insert(record.offset());
        })?;
        let mut ledger = lane.ledger.lock();
        for offset in unknown {
            ledger.note(partition, offset, if seen.contains(&offset) { PRESENT } else { ABSENT });
        }
    }
    Ok(())
}

/// Waits until everything in the log is counted or rejected on a server.
pub fn await_stored(
    lane: &Lane<'_>,
    tables: &Tables<'_>,
    ends: &Ends,
    within: Duration,
) -> Result<Vec<String>, AnyError> {
    let wanted: i64 = {
        let ledger = lane.ledger.lock();
        ends.iter().map(|(&partition, &end)| ledger.wanted_below(partition, end)).sum()
    };
    let deadline = Instant::now() + within;
    loop {
        // Counters are written last, so a counted event is stored as well.
        let sql =
            "SELECT (SELECT sum(total) FROM {db}.daily{local}) + (SELECT count() FROM {db}.rejected_events{local})";
        let stored: i64 = tables.ask(sql)?.parse()?;
        if stored >= wanted {
            return Ok(Vec::new());
        }
        if Instant::now() > deadline {
            let ready: Vec<String> = lane.slots.iter().map(readiness).collect();
            let ready = ready.join("\n  ");
            return Ok(vec![format!(
                "no progress: {stored} of {wanted} records are stored {within:?} after the last fault\n  {ready}"
            )]);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn readiness(slot: &super::lane::Slot) -> String {
    let answer = slot.http("/readyz").unwrap_or_else(|error| error.to_string());
    format!("member {}: {}", slot.number, answer.lines().last().unwrap_or_default())
}

/// Checks that every offset of the log is stored exactly once and with its fate, except those that hold no record.
/// Nothing else may be stored.
pub fn rows(ledger: &Ledger, ends: &Ends, stored: &Stored) -> Vec<String> {
    let (mut missing, mut doubled, mut beyond) = (Vec::new(), Vec::new(), Vec::new());
    let (mut lost, mut other, mut never) = (Vec::new(), Vec::new(), Vec::new());
    let partitions: BTreeSet<i32> =
        ends.keys().copied().chain(ledger.partitions()).chain(stored.partitions()).collect();
    for partition in partitions {
        let end = ends.get(&partition).map_or(0, |&end| end as usize);
        let (fates, found) = (ledger.of(partition), stored.fates(partition));
        for offset in 0..end.max(fates.len()).max(found.len()) {
            let fate = fates.get(offset).copied().unwrap_or(UNKNOWN);
            let found = found.get(offset).copied().unwrap_or(UNKNOWN);
            let wrong = match (offset < end, fate) {
                (false, UNKNOWN) if found == UNKNOWN => continue,
                (false, UNKNOWN) => &mut beyond,
                (false, _) => &mut lost,
                (true, ABSENT) if found == UNKNOWN => continue,
                (true, ABSENT) => &mut never,
                (true, _) if found == UNKNOWN => &mut missing,
                (true, _) if found == DOUBLED => &mut doubled,
                (true, EVENT..=REJECT) if found != fate => &mut other,
                (true, _) => continue,
            };
            wrong.push((partition, offset));
        }
    }
    let mut violations = Vec::new();
    describe("missing", &missing, &mut violations);
    describe("stored more than once", &doubled, &mut violations);
    describe("stored and not in the log", &beyond, &mut violations);
    describe("stored as something else than was produced", &other, &mut violations);
    describe("acknowledged by Kafka and not in its log", &lost, &mut violations);
    describe("stored and were aborted, removed before they were consumed, or no records", &never, &mut violations);
    violations
}

fn describe<T: std::fmt::Debug>(what: &str, places: &[T], found: &mut Vec<String>) {
    if !places.is_empty() {
        let (count, first) = (places.len(), &places[..places.len().min(LISTED)]);
        found.push(format!("{count} records are {what}: (partition, offset) {first:?}, last {:?}", places.last()));
    }
}

/// It is stored more than once.
const DOUBLED: Fate = 9;
/// Size of a row of the answer, in bytes: partition, offset, fate.
const ROW_BYTES: usize = 6;
/// The partition and the offset of a row.
const PLACE: &str = "toUInt8(extract(source, '/(\\d+)@')), toUInt32(source_offset)";

/// The table and type that each offset is stored as.
#[derive(Debug, Default)]
pub struct Stored(BTreeMap<i32, Vec<Fate>>);

impl Stored {
    /// Reads every row of events and rejects.
    pub fn of(tables: &Tables<'_>) -> Result<Stored, AnyError> {
        let types = "['delivered', 'open', 'click', 'bounce', 'unsubscribe']";
        Stored::read(
            tables,
            &format!(
                "SELECT {PLACE}, toUInt8(indexOf({types}, toString(event_type))) FROM {{db}}.email_events{{local}} \
                 UNION ALL SELECT {PLACE}, toUInt8({REJECT}) FROM {{db}}.rejected_events{{local}}"
            ),
        )
    }

    /// Reads every row of lifecycle topics.
    pub fn of_lifecycle(tables: &Tables<'_>) -> Result<Stored, AnyError> {
        Stored::read(tables, &format!("SELECT {PLACE}, toUInt8({EVENT}) FROM {{db}}.campaign_lifecycle{{local}}"))
    }

    fn read(tables: &Tables<'_>, sql: &str) -> Result<Stored, AnyError> {
        let answer = tables.ask_bytes(&format!("{sql} FORMAT RowBinary"))?;
        let mut stored = Stored::default();
        let rows = answer.chunks_exact(ROW_BYTES);
        if !rows.remainder().is_empty() {
            return Err("the rows were not received whole".into());
        }
        for row in rows {
            let &[partition, a, b, c, d, fate] = row else { continue };
            stored.note(i32::from(partition), u32::from_le_bytes([a, b, c, d]) as usize, fate);
        }
        Ok(stored)
    }

    fn note(&mut self, partition: i32, offset: usize, fate: Fate) {
        let fates = self.0.entry(partition).or_default();
        if fates.len() <= offset {
            fates.resize(offset + 1, UNKNOWN);
        }
        fates[offset] = if fates[offset] == UNKNOWN { fate } else { DOUBLED };
    }

    /// Returns the partitions that have rows.
    pub fn partitions(&self) -> impl Iterator<Item = i32> {
        self.0.keys().copied()
    }

    /// Returns the table and type that each offset of a partition is stored as, from 0 on.
    pub fn fates(&self, partition: i32) -> &[Fate] {
        self.0.get(&partition).map_or(&[], Vec::as_slice)
    }
}

/// Checks that the counters are the GROUP BY of the rows, and that the mark of each source and month lies behind its rows.
pub fn counters(tables: &Tables<'_>) -> Result<Vec<String>, AnyError> {
    let key = "day, event_type, campaign_id, workspace_id";
    let differences = tables.ask(&format!(
        "SELECT day, event_type, campaign_id, r.n AS rows, d.n AS total FROM \
         (SELECT toDate(event_time) AS day, event_type, campaign_id, workspace_id, count() AS n \
          FROM {{db}}.email_events{{local}} GROUP BY ALL) AS r \
         FULL JOIN (SELECT {key}, sum(total) AS n FROM {{db}}.daily{{local}} GROUP BY ALL) AS d USING ({key}) \
         WHERE r.n != d.n LIMIT {LISTED} FORMAT TSV"
    ))?;
    let low = tables.ask(&format!(
        "SELECT source, month, last, mark FROM (SELECT source, toYYYYMM(event_time) AS month, max(source_offset) AS last \
         FROM {{db}}.email_events{{local}} GROUP BY ALL) AS r \
         LEFT JOIN (SELECT source, toYYYYMM(day) AS month, max(end_offset) AS mark FROM {{db}}.daily{{local}} GROUP BY ALL) AS d \
         USING (source, month) WHERE mark <= last LIMIT {LISTED} FORMAT TSV"
    ))?;
    let violations = [
        ("daily is not the GROUP BY of the rows (day, type, campaign, rows, total)", differences),
        ("rows lie behind the mark of their source (source, month, last row, mark)", low),
    ];
    Ok(violations
        .into_iter()
        .filter(|(_, rows)| !rows.is_empty())
        .map(|(what, rows)| format!("{what}:\n{rows}"))
        .collect())
}

/// Checks that recipients are the GROUP BY of the rows, with the types and first times of each. ClickHouse computes the hashes here.
pub fn recipients(tables: &Tables<'_>) -> Result<Vec<String>, AnyError> {
    const KINDS: [&str; 5] = ["delivered", "open", "click", "bounce", "unsubscribe"];
    let recounted = KINDS
        .map(|kind| format!("min(if(event_type = '{kind}', event_time, toDateTime(4294967295, 'UTC')))"))
        .join(", ");
    let stored = KINDS.map(|kind| format!("min(first_{kind})")).join(", ");
    let differences = tables.ask(&format!(
        "WITH splitByChar('@', email)[-1] AS domain SELECT campaign_id, recipient, uniqExact(of) AS tables, any(of) AS one FROM \
         (SELECT 'rows' AS of, campaign_id, sipHash64Keyed((SELECT (any(k0), any(k1)) FROM {{db}}.recipient_key{{local}}), \
          substring(email, 1, length(email) - length(domain)) || lower(domain)) AS recipient, \
          tuple(groupBitOr(bitShiftLeft(toUInt16(1), toUInt8(event_type) - 1)), {recounted}) AS figures \
          FROM {{db}}.email_events{{local}} WHERE email != '' GROUP BY campaign_id, recipient \
          UNION ALL SELECT 'recipients' AS of, campaign_id, recipient, tuple(groupBitOr(flags), {stored}) AS figures \
          FROM {{db}}.recipients{{local}} GROUP BY campaign_id, recipient) \
         GROUP BY campaign_id, recipient, figures HAVING tables != 2 LIMIT {LISTED} FORMAT TSV"
    ))?;
    let violation =
        || format!("recipients is not the GROUP BY of the rows (campaign, recipient, tables, one):\n{differences}");
    Ok(if differences.is_empty() { Vec::new() } else { vec![violation()] })
}

/// The members' reports of their memory, the highest of a round.
#[derive(Debug, Default)]
pub struct Vitals {
    /// The members that were over the limit.
    pub violations: Vec<String>,
    /// Maximum of the bytes that windows and batches held.
    pub held_bytes: u64,
    /// Maximum of a member's resident memory, in bytes.
    pub rss_bytes: u64,
}

impl Vitals {
    /// Looks at every member now.
    pub fn look(&mut self, lane: &Lane<'_>) {
        for slot in &lane.slots {
            // A member that a fault has may be stopped and not answer for long.
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

/// Returns the sum of a metric over its labels.
pub fn metric(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Checks that no partition is stopped, and that no member has panicked.
pub fn members(lane: &Lane<'_>) -> Vec<String> {
    let mut violations = Vec::new();
    for slot in &lane.slots {
        if let Some((_, panic)) = slot.log().split_once("panicked at") {
            let panic: String = panic.lines().take(2).collect();
            violations.push(format!("member {} panicked: {panic}", slot.number));
        }
        // A member that was started just now may not answer yet. It has stopped nothing yet either.
        let stopped = slot.http("/metrics").map_or(0.0, |metrics| metric(&metrics, "tallyhouse_stopped_partitions"));
        if stopped > 0.0 {
            violations.push(format!("a partition is stopped: {}", readiness(slot)));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the findings for a log of two events, a reject, an aborted record and one that nobody has
    /// acknowledged, if these are stored.
    fn found(rows: &[(usize, Fate)]) -> String {
        let mut ledger = Ledger::default();
        for (offset, fate) in (0..).zip([EVENT, EVENT + 1, REJECT, ABSENT]) {
            ledger.note(0, offset, fate);
        }
        let mut stored = Stored::default();
        rows.iter().for_each(|&(offset, fate)| stored.note(0, offset, fate));
        rows_of(&ledger, &stored)
    }

    fn rows_of(ledger: &Ledger, stored: &Stored) -> String {
        rows(ledger, &[(0, 5)].into(), stored).join("\n")
    }

    #[test]
    fn each_difference_between_log_and_tables_is_found() {
        let right = [(0, EVENT), (1, EVENT + 1), (2, REJECT), (4, EVENT + 3)];
        assert_eq!(found(&right), "");
        assert!(found(&right[1..]).starts_with("1 records are missing: (partition, offset) [(0, 0)]"));
        assert!(
            found(&right[..3]).starts_with("1 records are missing: (partition, offset) [(0, 4)]"),
            "also unacknowledged"
        );
        let with = |row| found(&[&right[..], &[row]].concat());
        assert!(with((1, EVENT + 1)).starts_with("1 records are stored more than once: (partition, offset) [(0, 1)]"));
        assert!(with((3, EVENT)).starts_with("1 records are stored and were aborted"));
        assert!(with((7, EVENT)).starts_with("1 records are stored and not in the log: (partition, offset) [(0, 7)]"));
        assert!(
            found(&[&right[..2], &[(2, EVENT)], &right[3..]].concat())
                .starts_with("1 records are stored as something else")
        );
        let mut ledger = Ledger::default();
        ledger.note(0, 6, EVENT);
        let mut stored = Stored::default();
        (0..5).for_each(|offset| stored.note(0, offset, EVENT));
        assert!(rows_of(&ledger, &stored).starts_with("1 records are acknowledged by Kafka and not in its log"));
    }
}
