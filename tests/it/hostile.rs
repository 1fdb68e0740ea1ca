//! Tests hostile input through real servers: produced = rows + rejected, always, and memory stays bounded.

use crate::operator::alter_topic;
use crate::service::{Bench, await_http, end, http, kafka};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::collections::BTreeMap;
use std::time::Duration;
use tallyhouse_core::decode::reject::Reason;

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
const TIMEOUT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// The seeds of the fuzz targets are of the end of 2026. With this setting they are not too far ahead of any
/// machine's clock.
const ANY_FUTURE: (&str, &str) = ("TALLYHOUSE__DECODE__FUTURE_DAYS_MAX", "36500");

/// A producer that packs all its records before a flush into one batch.
struct Packer {
    producer: BaseProducer,
    topic: String,
}

impl Packer {
    fn new(bench: &Bench, codec: &str) -> Packer {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", kafka())
            .set("compression.type", codec)
            .set("linger.ms", "60000")
            .set("batch.size", "500000000")
            .set("message.max.bytes", "500000000")
            .create()
            .unwrap();
        Packer { producer, topic: bench.topic.clone() }
    }

    fn put(&self, partition: i32, key: Option<&[u8]>, value: Option<&[u8]>) {
        self.put_at(None, partition, key, value);
    }

    fn put_at(&self, timestamp: Option<i64>, partition: i32, key: Option<&[u8]>, value: Option<&[u8]>) {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.topic).partition(partition);
        (record.key, record.payload, record.timestamp) = (key, value, timestamp);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    fn flush(&self) {
        self.producer.flush(TIMEOUT).unwrap();
        assert_eq!(self.producer.in_flight_count(), 0);
    }
}

/// Returns the seeds of the fuzz targets, each with its outcome: `event`, or a reason.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/decode");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let seed = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name.split_once('.').unwrap().0.to_owned(), std::fs::read(entry.path()).unwrap())
    };
    entries.map(seed).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// Returns an event of today with this number of bytes of metadata.
fn event(metadata_bytes: usize) -> Vec<u8> {
    let time = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S");
    format!(
        "{{\"campaign_id\":\"{0}\",\"workspace_id\":\"{0}\",\"email\":\"a@example.com\",\"event_type\":\"open\",\
         \"event_time\":\"{time}\",\"metadata\":\"{1}\"}}",
        devstack::producer::uuid(1),
        "x".repeat(metadata_bytes)
    )
    .into_bytes()
}

/// Every kind of bad input is packed in every way. Each record is a row or a reject with its exact bytes, reason and
/// metric, and one bad record stops nothing.
pub async fn every_kind_of_bad_input_is_kept_with_its_reason(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let (mut wanted, mut events) = (Vec::new(), 0);
    let key = b"\0key\xff";
    for codec in CODECS {
        let packer = Packer::new(&bench, codec);
        packer.put(0, Some(key), None);
        wanted.push(("tombstone".to_owned(), hex(key), String::new()));
        // This is a record of 1970, as when its timestamp is in seconds.
        let mut late = event(0);
        let year = b"\"event_time\":\"".len() + late.windows(12).position(|part| part == b"\"event_time\"").unwrap();
        late[year..year + 10].copy_from_slice(b"2105-01-01");
        packer.put_at(Some(1_795_501_800), 1, None, Some(&late));
        wanted.push(("record_time_implausible".to_owned(), String::new(), hex(&late)));
        for (number, (outcome, value)) in (0..).zip(seeds()) {
            let key = (number % 2 == 0).then_some(&key[..]);
            packer.put(number % 3, key, Some(&value));
            match outcome.as_str() {
                "event" => events += 1,
                _ => wanted.push((outcome, hex(key.unwrap_or_default()), hex(&value))),
            }
        }
        packer.flush();
    }
    let member = bench.start(&[ANY_FUTURE]);
    let produced = events + wanted.len() as u64;
    bench.await_stored(produced, &[&member]).await;
    let mut by_reason = BTreeMap::<&str, u64>::new();
    wanted.iter().for_each(|(reason, ..)| *by_reason.entry(reason).or_default() += 1);
    let codes = Reason::ALL.map(Reason::code);
    assert_eq!(by_reason.keys().copied().collect::<Vec<_>>(), {
        let mut codes = codes.to_vec();
        codes.sort_unstable();
        codes
    });
    for (reason, count) in by_reason {
        let sample = format!("tallyhouse_rejected_records_total{{reason=\"{reason}\"}} {count}\n");
        await_http(&member, "/metrics", &sample).await;
    }
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);

    let mut stored: Vec<(String, String, String)> =
        bench.rows("SELECT reason, hex(key), hex(payload) FROM rejected_events").await;
    stored.sort();
    wanted.sort();
    assert_eq!(stored, wanted);
    assert_eq!(bench.count("SELECT count() FROM email_events").await, events);
    assert_eq!(bench.count("SELECT countIf(error = '') FROM rejected_events").await, 0);
    let offsets = "SELECT uniqExact(source, source_offset) FROM \
                   (SELECT source, source_offset FROM email_events UNION ALL SELECT source, source_offset FROM rejected_events)";
    assert_eq!(bench.count(offsets).await, produced);
    bench.assert_consistent("with every kind of bad input").await;
}

/// Records as large as the topic allows, and batches of a hundred MiB that come as a few packed bytes, need little
/// memory.
pub async fn large_records_and_bombs_of_every_codec(url: &str, database: &str) {
    const LARGE: usize = 8 * MIB;
    const BOMB: usize = 120 * MIB;
    const LIMIT: usize = 128 * MIB;
    let bench = Bench::new(url, database).await;
    alter_topic(&bench.topic, "max.message.bytes", &(LARGE + MIB).to_string()).await;
    let limit = LIMIT.to_string();
    let settings = [("TALLYHOUSE__MEMORY__LIMIT_BYTES", limit.as_str()), ("TALLYHOUSE__FLUSH__BYTES_MAX", "32MiB")];
    let member = bench.start(&settings);
    let plain = Packer::new(&bench, "none");
    let mut produced = 0;
    for value in [event(LARGE), vec![b'{'; LARGE], event(0)] {
        plain.put(0, None, Some(&value));
        plain.flush();
        produced += 1;
    }
    bench.await_stored(produced, &[&member]).await;
    for codec in CODECS.iter().filter(|codec| **codec != "none") {
        let packer = Packer::new(&bench, codec);
        for number in 0..BOMB / MIB {
            let value = if number % 2 == 0 { event(MIB) } else { vec![b'x'; MIB] };
            packer.put(1, None, Some(&value));
            produced += 1;
        }
        packer.flush();
        bench.await_stored(produced, &[&member]).await;
    }
    let peak = member.peak_memory_bytes().unwrap();
    let log = member.stderr();
    end(&member);
    // The batch is in memory unpacked, once, while its records are taken.
    assert!(peak < (LIMIT + BOMB + 32 * MIB) as u64, "{} MiB\n{log}", peak / MIB as u64);
    assert_eq!(bench.stored().await, produced);
    let sizes: Vec<(u64, u64)> =
        bench.rows("SELECT max(length(metadata)), min(length(metadata)) FROM email_events").await;
    assert_eq!(sizes, [(LARGE as u64 + 2, 2)]);
    assert_eq!(bench.count("SELECT max(length(payload)) FROM rejected_events").await, LARGE as u64);
    bench.assert_consistent("with bombs").await;
}

/// A batch that librdkafka refuses to unpack keeps its own partition from going on. The member says so, and reads it
/// once that is allowed.
pub async fn a_batch_that_cannot_be_unpacked_stops_no_other_partition(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let packer = Packer::new(&bench, "zstd");
    for _ in 0..20 {
        packer.put(0, None, Some(&event(MIB)));
    }
    packer.flush();
    let ordinary = Packer::new(&bench, "zstd");
    (0..500).for_each(|_| ordinary.put(1, None, Some(&event(10))));
    ordinary.flush();
    let small = [
        ("TALLYHOUSE__KAFKA__PROPERTIES__RECEIVE_MESSAGE_MAX_BYTES", "10000000"),
        ("TALLYHOUSE__KAFKA__PROPERTIES__FETCH_MAX_BYTES", "1000000"),
    ];
    let member = bench.start(&small);
    bench.await_stored(500, &[&member]).await;
    await_http(&member, "/readyz", "a batch in Kafka cannot be read").await;
    let told = http(&member, "/readyz").await;
    assert!(told.contains("offset 0") || told.contains("message at 0"), "{told}");
    ordinary.put(1, None, Some(&event(10)));
    ordinary.flush();
    bench.await_stored(501, &[&member]).await;
    end(&member);
    assert_eq!(bench.stored().await, 501);
    bench.consume(521).await;
    assert_eq!(bench.stored().await, 521);
    bench.assert_consistent("once it could be unpacked").await;
}

/// Events of a thousand days in no order still make large batches, past the server's default limit for an insert. A
/// member that dies with a batch half applied doubles nothing.
pub async fn a_thousand_days_in_any_order(url: &str, database: &str) {
    const DAYS: u64 = 1_000;
    let bench = Bench::new(url, database).await;
    let events =
        devstack::producer::Events { days: DAYS, campaigns: 1_000_000, broken_percent: 0, ..Default::default() };
    let mut producer = bench.producer();
    producer.send_events(&events, 0..3 * DAYS).unwrap();
    let ledger = producer.finish().unwrap();
    let settings = [("TALLYHOUSE__FLUSH__ROWS_MAX", "100000"), ("TALLYHOUSE__FLUSH__AGE_MS", "2000")];
    let member = bench.start(&[&settings[..], &[("TALLYHOUSE_FAILPOINT", "raw_inserted:2")]].concat());
    member.wait(TIMEOUT).unwrap();
    let member = bench.start(&settings);
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "with a thousand days").await;
    let batches = bench.count("SELECT uniqExact(source, end_offset) FROM daily WHERE source != ''").await;
    assert!(batches <= 6, "{batches} batches for three partitions");
}
