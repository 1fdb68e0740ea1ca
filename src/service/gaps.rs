//! The reader passes over offsets between two records: a transaction's marker, records that were aborted, or records that were
//! lost. The data that a consumer gets does not distinguish them. So a thread reads the log for that.
//!
//! Must never delay the reader, nor keep more than `GAPS_MAX` gaps: a gap that cannot be looked up is counted as unchecked.

use crate::config::Config;
use crate::kafka::consumer::is_unreadable;
use crate::kafka::observer::{Observer, ScanEnd};
use crate::platform::metrics::{GAP_KINDS, OFFSET_GAPS};
use metrics::counter;
use rdkafka::error::KafkaResult;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tallyhouse_core::source::OffsetRange;

/// Greatest number of gaps that wait for the next look.
const GAPS_MAX: usize = 4_096;
/// Time for which gaps are gathered before a look, because a look takes a connection of its own.
const GATHER: Duration = Duration::from_secs(5);
/// Time limit of one look.
const LOOK_TIME: Duration = Duration::from_secs(20);
/// Greatest distance, in offsets, between gaps of a partition that are looked up together.
const TOGETHER: u64 = 1_000;

/// The content of offsets without a delivered record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// There is no record: it is the marker of a transaction or, in a compacted topic, a removed record.
    Marker,
    /// A record of a transaction that was aborted.
    Aborted,
    /// A record that should have been counted, or a damaged batch.
    Lost,
    /// The offset could not be looked up.
    Unchecked,
}

impl Kind {
    fn count(self, offsets: u64) {
        let [marker, aborted, lost, unchecked] = GAP_KINDS;
        let word = match self {
            Kind::Marker => marker,
            Kind::Aborted => aborted,
            Kind::Lost => lost,
            Kind::Unchecked => unchecked,
        };
        counter!(OFFSET_GAPS, "kind" => word).increment(offsets);
    }
}

/// The sender to which the reader reports the offsets that it has passed over.
pub struct Gaps(SyncSender<(i32, OffsetRange)>);

impl Gaps {
    /// Starts the thread. The thread ends when this is dropped.
    pub fn start(config: &Config) -> Gaps {
        let (sender, gaps) = sync_channel(GAPS_MAX);
        let config = config.clone();
        std::thread::spawn(move || watch(&config, &gaps));
        Gaps(sender)
    }

    /// Reports offsets that were passed over.
    pub fn note(&self, partition: i32, gap: OffsetRange) {
        if self.0.try_send((partition, gap)).is_err() {
            Kind::Unchecked.count(gap.end - gap.start);
        }
    }
}

fn watch(config: &Config, gaps: &Receiver<(i32, OffsetRange)>) {
    while let Ok(first) = gaps.recv() {
        let mut gathered = vec![first];
        let deadline = Instant::now() + GATHER;
        while gathered.len() < GAPS_MAX {
            match gaps.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(gap) => gathered.push(gap),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        look(config, gathered);
    }
}

/// Looks up all gathered gaps, and counts them.
fn look(config: &Config, mut gathered: Vec<(i32, OffsetRange)>) {
    gathered.sort_unstable_by_key(|(partition, gap)| (*partition, gap.start));
    let deadline = Instant::now() + LOOK_TIME;
    for (partition, gaps) in together(&gathered) {
        let kinds = kinds(config, partition, gaps, deadline).unwrap_or_else(|error| {
            tracing::debug!(partition, "gaps cannot be looked up: {error}");
            [(Kind::Unchecked, offsets(gaps).count() as u64)].into()
        });
        for (kind, offsets) in kinds {
            if kind == Kind::Lost {
                let (start, end) = (gaps[0].1.start, gaps[gaps.len() - 1].1.end);
                tracing::error!(
                    partition,
                    start,
                    end,
                    offsets,
                    "records were passed over: see `tallyhouse explain TallyhouseOffsetGaps`"
                );
            }
            kind.count(offsets);
        }
    }
}

/// Returns gaps of a partition that lie close to each other, as parts of the sorted list.
fn together(sorted: &[(i32, OffsetRange)]) -> impl Iterator<Item = (i32, &[(i32, OffsetRange)])> {
    let close = |(before, first): &(i32, OffsetRange), (after, next): &(i32, OffsetRange)| {
        before == after && next.start.saturating_sub(first.end) <= TOGETHER
    };
    sorted.chunk_by(close).map(|part| (part[0].0, part))
}

fn offsets(gaps: &[(i32, OffsetRange)]) -> impl Iterator<Item = u64> {
    gaps.iter().flat_map(|(_, gap)| gap.start..gap.end)
}

/// Returns the kinds of the offsets of gaps that lie close to each other.
fn kinds(
    config: &Config,
    partition: i32,
    gaps: &[(i32, OffsetRange)],
    deadline: Instant,
) -> KafkaResult<BTreeMap<Kind, u64>> {
    let range = OffsetRange { start: gaps[0].1.start, end: gaps[gaps.len() - 1].1.end };
    let wanted: BTreeSet<u64> = offsets(gaps).collect();
    let shown = |observer: Observer| {
        let mut shown = BTreeSet::new();
        let looked = observer.look(partition, range, deadline, &mut |record| {
            if wanted.contains(&record.offset) {
                shown.insert(record.offset);
            }
        });
        match looked {
            Ok(ScanEnd::Done) => Ok(Some((shown, false))),
            Ok(ScanEnd::Gone | ScanEnd::TimeUp(_)) => Ok(None),
            // librdkafka skipped a damaged batch, and nobody will read it.
            Err(error) if is_unreadable(&error) => Ok(Some((shown, true))),
            Err(error) => Err(error),
        }
    };
    let unchecked = || [(Kind::Unchecked, wanted.len() as u64)].into();
    let Some((there, damaged)) = shown(Observer::uncommitted(config)?)? else { return Ok(unchecked()) };
    let committed = match there.is_empty() {
        true => BTreeSet::new(),
        false => match shown(Observer::small(config)?)? {
            Some((committed, _)) => committed,
            None => return Ok(unchecked()),
        },
    };
    Ok(judge(&wanted, &there, &committed, damaged))
}

/// Counts the kinds. `there` are the offsets that have a record, `committed` those that have a committed record.
fn judge(
    wanted: &BTreeSet<u64>,
    there: &BTreeSet<u64>,
    committed: &BTreeSet<u64>,
    damaged: bool,
) -> BTreeMap<Kind, u64> {
    let mut kinds = BTreeMap::new();
    for offset in wanted {
        let kind = match (there.contains(offset), committed.contains(offset)) {
            (_, true) => Kind::Lost,
            (true, false) => Kind::Aborted,
            (false, false) if damaged => Kind::Lost,
            (false, false) => Kind::Marker,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Sources};
    use rdkafka::config::ClientConfig;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

    fn gap(partition: i32, start: u64, end: u64) -> (i32, OffsetRange) {
        (partition, OffsetRange { start, end })
    }

    #[test]
    fn what_is_committed_is_lost_and_what_is_not_there_is_a_marker() {
        let set = |offsets: std::ops::Range<u64>| offsets.collect::<BTreeSet<u64>>();
        let of = |there, committed, damaged| judge(&set(10..20), &there, &committed, damaged);
        assert_eq!(of(set(0..0), set(0..0), false), [(Kind::Marker, 10)].into());
        assert_eq!(of(set(10..19), set(0..0), false), [(Kind::Aborted, 9), (Kind::Marker, 1)].into());
        assert_eq!(
            of(set(10..19), set(12..13), false),
            [(Kind::Aborted, 8), (Kind::Lost, 1), (Kind::Marker, 1)].into()
        );
        assert_eq!(of(set(10..12), set(0..0), true), [(Kind::Aborted, 2), (Kind::Lost, 8)].into());
    }

    /// The log is read for it. Offsets at its end have no record.
    #[test]
    fn records_that_nobody_was_given_are_lost() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let brokers = cluster.bootstrap_servers();
        let producer: ThreadedProducer<DefaultProducerContext> =
            ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
        (0..10).for_each(|_| producer.send(BaseRecord::<(), _>::to("t").payload("event")).unwrap());
        producer.flush(LOOK_TIME).unwrap();
        let settings = [format!("kafka.brokers={brokers}"), "kafka.topics.events=t".to_owned()];
        let flags = settings.iter().map(|flag| flag.parse().unwrap()).collect();
        let config = config::load(&Sources { flags, ..Sources::default() }).unwrap().config;
        let deadline = Instant::now() + LOOK_TIME;
        let found = kinds(&config, 0, &[gap(0, 3, 5), gap(0, 8, 12)], deadline).unwrap();
        assert_eq!(found, [(Kind::Lost, 4), (Kind::Marker, 2)].into());
    }

    #[test]
    fn only_gaps_that_lie_close_are_looked_at_together() {
        let sorted =
            [gap(0, 5, 6), gap(0, 1_006, 1_007), gap(0, 2_008, 2_009), gap(1, 2_009, 2_010), gap(1, 2_009, 2_012)];
        let parts: Vec<_> = together(&sorted).map(|(partition, part)| (partition, part.len())).collect();
        assert_eq!(parts, [(0, 2), (0, 1), (1, 2)]);
    }

    /// The reader waits neither for a busy thread nor for one that has ended.
    #[test]
    fn what_does_not_fit_is_not_waited_for() {
        let (sender, gaps) = sync_channel(1);
        let noted = Gaps(sender);
        (0..3).for_each(|n| noted.note(0, OffsetRange { start: n, end: n + 1 }));
        assert_eq!(gaps.try_iter().count(), 1);
    }
}
