//! Tests offsets without records: transactions, committed and aborted, leave control records and events that never
//! happened.

use crate::operate::json_of;
use crate::operator::HALF_APPLIED;
use crate::service::{Bench, await_http, end, http, kafka};
use devstack::producer::{Events, Ledger};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use std::time::{Duration, Instant};

const PARTITIONS: u64 = 3;
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A producer of transactions, which notes the committed events.
struct Transactions<'a> {
    bench: &'a Bench,
    producer: BaseProducer,
    next: u64,
    ledger: Ledger,
}

impl Transactions<'_> {
    fn new(bench: &Bench) -> Transactions<'_> {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", kafka())
            .set("transactional.id", &bench.topic)
            .create()
            .unwrap();
        producer.init_transactions(TIMEOUT).unwrap();
        Transactions { bench, producer, next: 0, ledger: Ledger::default() }
    }

    /// Begins a transaction and sends this number of events to each partition.
    fn send(&mut self, per_partition: u64) -> std::ops::Range<u64> {
        self.producer.begin_transaction().unwrap();
        let numbers = self.next..self.next + per_partition * PARTITIONS;
        for n in numbers.clone() {
            let payload = Events::default().payload(n).bytes;
            let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.bench.topic);
            self.producer.send(record.partition((n % PARTITIONS) as i32).payload(&payload)).unwrap();
        }
        self.producer.flush(TIMEOUT).unwrap();
        self.next = numbers.end;
        numbers
    }

    fn commit(&mut self, per_partition: u64) {
        let numbers = self.send(per_partition);
        self.producer.commit_transaction(TIMEOUT).unwrap();
        numbers.for_each(|n| self.ledger.note(&Events::default().payload(n)));
    }

    fn abort(&mut self, per_partition: u64) {
        self.send(per_partition);
        self.producer.abort_transaction(TIMEOUT).unwrap();
    }
}

/// Events of aborted transactions are not counted, and batches with gaps inside are replayed as they were.
pub async fn aborted_transactions_never_happened(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut transactions = Transactions::new(&bench);
    for round in 0..40 {
        transactions.commit(1 + round % 60);
        transactions.abort(1 + round % 7);
        transactions.commit(50);
    }
    for point in ["raw_inserted:2", "intent_committed:4", "rejected_inserted:2"] {
        bench.die(&[("TALLYHOUSE_FAILPOINT", point), ("TALLYHOUSE__FLUSH__ROWS_MAX", "300")]);
    }
    let member = bench.start(&[]);
    bench.await_stored(transactions.ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    // This member looked up the offsets that it passed over.
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let metrics = http(&member, "/metrics").await;
        let of = |kind: &str| {
            let name = format!("tallyhouse_offset_gaps_total{{kind=\"{kind}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap()
        };
        assert_eq!((of("lost"), of("unchecked")), (0, 0), "{}", member.stderr());
        if of("aborted") > PARTITIONS && of("marker") > PARTITIONS {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    end(&member);
    bench.assert_exact(&transactions.ledger, "with aborted transactions").await;
}

/// A replay ends although nothing but control records, aborted events and an open transaction follow its last event.
pub async fn a_replay_ends_where_only_control_records_follow(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut transactions = Transactions::new(&bench);
    transactions.commit(120);
    transactions.abort(30);
    let batch = bench.die_at("raw_inserted:1", HALF_APPLIED, PARTITIONS as i32).await;
    // The reader may have come to the log's end before the batch was taken.
    assert!(batch.start == 0 && [120, 152].contains(&batch.end), "{} to {}", batch.start, batch.end);
    let open = transactions.send(10);
    let member = bench.start(&[]);
    bench.await_stored(360, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    assert_eq!(bench.stored().await, 360, "events of an open transaction are not counted");
    transactions.producer.commit_transaction(TIMEOUT).unwrap();
    open.for_each(|n| transactions.ledger.note(&Events::default().payload(n)));
    bench.await_stored(390, &[&member]).await;
    // This is past the control record at the end.
    let last = 120 + 1 + 30 + 1 + 10 + 1;
    let is_committed = |partition| bench.committed(partition).is_some_and(|(offset, _)| offset == last);
    let deadline = Instant::now() + TIMEOUT;
    while !(0..PARTITIONS as i32).all(is_committed) || !bench.open_batches(PARTITIONS as i32).is_empty() {
        assert!(Instant::now() < deadline, "{:?}\n{}", bench.committed(0), member.stderr());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let (status, seen) = json_of(&bench, &["status"], &[]);
    let partitions = seen["partitions"].as_array().unwrap();
    let idle = |partition: &Value| partition["progress"] == "idle" && partition["lag_records"] == 0;
    assert!(status == Some(0) && partitions.iter().all(idle), "{seen:#}");
    end(&member);
    bench.assert_exact(&transactions.ledger, "with control records at the end").await;
    // Retention takes the whole log, control records included, and nothing is lost by that.
    for partition in 0..PARTITIONS as i32 {
        bench.delete_records(partition, last).await;
    }
    let member = bench.start(&[]);
    transactions.commit(10);
    bench.await_stored(420, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&transactions.ledger, "after retention").await;
}

/// A transaction that a producer leaves open hides the records that others have sent since. The member, `status` and
/// `check` say so.
pub async fn an_open_transaction_is_seen(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut transactions = Transactions::new(&bench);
    transactions.commit(5);
    let member = bench.start(&[]);
    bench.await_stored(15, &[&member]).await;
    transactions.send(1);
    let behind = PARTITIONS + bench.produce(300).produced;
    let (status, seen) = json_of(&bench, &["status"], &[]);
    let first = &seen["partitions"][0];
    assert_eq!((status, held_back(&seen)), (Some(0), behind), "{seen:#}");
    assert!(first["open_transaction_s"].as_f64().is_some_and(|seconds| seconds < 60.0), "{seen:#}");
    let (_, checked, _) = bench.run(&["check", "--json"], &[]);
    assert!(checked.contains(&format!("{behind} more behind open transactions")), "{checked}");
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let metrics = http(&member, "/metrics").await;
        let lines = metrics.lines().filter(|line| line.starts_with("tallyhouse_open_transaction_records{"));
        let told: u64 = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        if told == behind {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    transactions.producer.commit_transaction(TIMEOUT).unwrap();
    bench.await_stored(15 + behind, &[&member]).await;
    let (_, seen) = json_of(&bench, &["status"], &[]);
    assert_eq!(held_back(&seen), 0, "{seen:#}");
    end(&member);
}

fn held_back(seen: &Value) -> u64 {
    seen["partitions"].as_array().unwrap().iter().map(|one| one["open_transaction_records"].as_u64().unwrap()).sum()
}
