//! Tests the memory of the whole process where it is hardest to bound: packed batches from three brokers on a machine
//! of 64 cores.

use crate::service::{Bench, await_http, end, http};
use devstack::producer::{Events, create_topic};
use devstack::{Kafka, KafkaOptions, Server};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Maximum memory of the process beside `memory.limit_bytes`, in bytes.
const RESERVE: u64 = 96 * MIB;
const PARTITIONS: i32 = 24;
const RECORDS: u64 = 240_000;
const TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Time without a read after which reading has come to a halt.
const HALT: Duration = Duration::from_secs(2);

/// Sends ordinary events, long ones, some very large ones, and large records that are no events. Packed they come to
/// about a twentieth. Returns the number of records that are no events.
fn produce(bootstrap: &str, topic: &str) -> u64 {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        // Without it a batch that is sent again after a pause of its broker would be in the log twice.
        .set("enable.idempotence", "true")
        .set("compression.type", "zstd")
        .set("linger.ms", "50")
        .set("batch.size", "1000000")
        .set("queue.buffering.max.messages", "100000")
        .create()
        .unwrap();
    let events = Events { broken_percent: 0, ..Events::default() };
    let reject = vec![b'x'; 140_000];
    let mut rejects = 0;
    for n in 0..RECORDS {
        let grown = |bytes: usize| {
            let event = String::from_utf8(events.payload(n).bytes).unwrap();
            event.replace("Mozilla", &"Mozilla, like others, ".repeat(bytes / 22)).into_bytes()
        };
        let payload = match n {
            n if n % 2_000 == 7 => grown(200_000),
            n if n % 500 == 9 => reject.clone(),
            n if n % 4 == 0 => grown(3_000),
            _ => events.payload(n).bytes,
        };
        rejects += u64::from(payload == reject);
        // A thousand records in turn go to each partition, so that batches are full.
        let partition = (n / 1_000 % PARTITIONS as u64) as i32;
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(partition).payload(&payload);
        while let Err((_, returned)) = producer.send(record) {
            producer.poll(POLL_INTERVAL);
            record = returned;
        }
    }
    producer.flush(TIMEOUT).unwrap();
    rejects
}

/// Makes the library by which a process sees 64 cores.
fn cores(folder: &Path) -> PathBuf {
    let library = folder.join("cores.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/cores.c");
    let done = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status().unwrap();
    assert!(done.success());
    library
}

/// Waits until the member has read for a while and takes no more, as all its memory is in use.
async fn await_halt(member: &Server) {
    let (deadline, mut last, mut since) = (Instant::now() + TIMEOUT, 0.0, Instant::now());
    while last == 0.0 || since.elapsed() < HALT {
        assert!(Instant::now() < deadline, "{last} records were read\n{}", member.stderr());
        tokio::time::sleep(POLL_INTERVAL).await;
        let metrics = http(member, "/metrics").await;
        let consumed = metrics.lines().find_map(|line| line.strip_prefix("tallyhouse_consumed_records_total "));
        let consumed = consumed.map_or(0.0, |count| count.parse::<f64>().unwrap());
        if consumed > last {
            (last, since) = (consumed, Instant::now());
        }
    }
}

/// An allocator has arenas by the number of cores, four for each, and every arena keeps some memory.
pub async fn many_cores_make_no_more_arenas(_url: &str, _database: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(crate::program());
    command.arg("--version").env("LD_PRELOAD", cores(folder.path())).env("MALLOC_CONF", "stats_print:true");
    let printed = String::from_utf8(command.output().unwrap().stderr).unwrap();
    let arenas = printed.lines().find_map(|line| line.trim().strip_prefix("opt.narenas: ")).unwrap();
    assert_eq!(arenas, "8");
}

/// The test runs with a small and with a large limit. The process takes at most the limit and a reserve. ClickHouse
/// refuses inserts until windows and queues are full; then all is counted.
pub async fn the_process_stays_within_the_limit_and_a_reserve(url: &str, database: &str) {
    let kafka = Kafka::start(KafkaOptions { nodes: 3, ..KafkaOptions::default() }).unwrap();
    let topic = format!("{database}.packed");
    create_topic(kafka.bootstrap(), &topic, PARTITIONS).unwrap();
    let begun = Instant::now();
    let rejects = produce(kafka.bootstrap(), &topic);
    println!("produced in {:?}", begun.elapsed());
    let folder = tempfile::tempdir().unwrap();
    let cores = cores(folder.path());
    for limit in [64 * MIB, 512 * MIB] {
        let begun = Instant::now();
        let bench = Bench::at(kafka.bootstrap(), url, &format!("{database}_{}", limit / MIB)).await;
        bench.execute("ALTER TABLE email_events ADD CONSTRAINT held CHECK 0").await;
        let limit_bytes = limit.to_string();
        let member = bench.start(&[
            ("LD_PRELOAD", cores.to_str().unwrap()),
            ("TALLYHOUSE__KAFKA__TOPICS__EVENTS", &topic),
            ("TALLYHOUSE__MEMORY__LIMIT_BYTES", &limit_bytes),
            ("TALLYHOUSE__FLUSH__BYTES_MAX", &(limit / 8).to_string()),
            ("TALLYHOUSE__FLUSH__ROWS_MAX", "500000"),
            ("TALLYHOUSE__FLUSH__AGE_MS", "1000"),
        ]);
        await_http(&member, "/livez", "alive").await;
        await_halt(&member).await;
        let held = member.peak_memory_bytes().unwrap();
        bench.execute("ALTER TABLE email_events DROP CONSTRAINT held").await;
        bench.await_stored(RECORDS, &[&member]).await;
        let peak = member.peak_memory_bytes().unwrap();
        println!(
            "limit {} MiB: {} MiB while inserts were refused, {} MiB at the peak, {:?}",
            limit / MIB,
            held / MIB,
            peak / MIB,
            begun.elapsed()
        );
        let log = member.stderr();
        end(&member);
        assert!(peak < limit + RESERVE, "{} MiB with a limit of {} MiB", peak / MIB, limit / MIB);
        assert_eq!(
            (bench.stored().await, bench.count("SELECT count() FROM rejected_events").await),
            (RECORDS, rejects),
            "{log}"
        );
        bench.assert_consistent("after a backlog of packed batches").await;
    }
}
