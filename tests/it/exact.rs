//! Tests faults that lost events or stopped them permanently, at the sizes people run. Each test fails on 682310c,
//! where the fault was found.

use crate::operator::{alter_topic, await_stop};
use crate::service::{Bench, address, await_http, end, http, kafka};
use devstack::producer::{Events, create_topic};
use devstack::{Output, Server, process};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const FAILPOINT: &str = "TALLYHOUSE_FAILPOINT";
const MEMORY_LIMIT: &str = "TALLYHOUSE__MEMORY__LIMIT_BYTES";
const ROWS_MAX: &str = "TALLYHOUSE__FLUSH__ROWS_MAX";
const BYTES_MAX: &str = "TALLYHOUSE__FLUSH__BYTES_MAX";
const AGE_MS: &str = "TALLYHOUSE__FLUSH__AGE_MS";
const DEAD_LETTER: &str = "TALLYHOUSE__KAFKA__TOPICS__DEAD_LETTER";
/// Settings by which each answer of a broker has one of its batches of each partition. Partitions are then read
/// evenly, and slowly.
const ONE_BATCH_A_FETCH: [(&str, &str); 3] = [
    ("TALLYHOUSE__KAFKA__PROPERTIES__FETCH_MESSAGE_MAX_BYTES", "1"),
    // librdkafka requires the third to be at least the second.
    ("TALLYHOUSE__KAFKA__PROPERTIES__MESSAGE_MAX_BYTES", "1000"),
    ("TALLYHOUSE__KAFKA__PROPERTIES__FETCH_MAX_BYTES", "1000"),
];
/// Age in ms that no test reaches: a window is flushed for its size alone.
const NEVER: &str = "600000";

/// Sends records to one partition and waits until Kafka has acknowledged all of them.
struct ToPartition<'a> {
    bench: &'a Bench,
    producer: BaseProducer,
}

impl ToPartition<'_> {
    /// Makes a sender whose batches have at most this number of records.
    fn new(bench: &Bench, batch_records: u32) -> ToPartition<'_> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", kafka())
            .set("enable.idempotence", "true")
            .set("batch.num.messages", batch_records.to_string())
            .set("linger.ms", "20")
            .set("compression.type", "lz4")
            .create()
            .unwrap();
        ToPartition { bench, producer }
    }

    fn send(&self, partition: i32, payloads: impl Iterator<Item = Vec<u8>>) {
        for payload in payloads {
            let mut record: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to(&self.bench.topic).partition(partition).payload(&payload);
            // A full queue is emptied by polling.
            while let Err((_, returned)) = self.producer.send(record) {
                self.producer.poll(POLL_INTERVAL);
                record = returned;
            }
        }
        self.producer.flush(TIMEOUT).unwrap();
    }
}

/// Returns this number of events, none of them broken.
fn events(count: u64) -> impl Iterator<Item = Vec<u8>> {
    let events = Events { broken_percent: 0, ..Events::default() };
    (0..count).map(move |n| events.payload(n).bytes)
}

/// Returns this number of events of half a megabyte each, which is almost all in the address.
fn large_events(count: u64) -> impl Iterator<Item = Vec<u8>> {
    let address = "x".repeat(500_000);
    events(count).map(move |bytes| String::from_utf8(bytes).unwrap().replace("person", &address).into_bytes())
}

/// Waits until `condition` holds; panics with `told` after the timeout.
async fn await_that(condition: impl AsyncFn() -> bool, told: impl AsyncFn() -> String) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition().await {
        if Instant::now() > deadline {
            panic!("{}", told().await);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

impl Bench {
    /// Returns the number of rows of a partition in `email_events`.
    async fn rows_of(&self, partition: i32) -> u64 {
        let source = format!("source LIKE '{}/{partition}@%'", self.topic);
        self.count(&format!("SELECT count() FROM email_events WHERE {source}")).await
    }

    /// Returns the number of counted events of a partition. Counters are written last.
    async fn counted_of(&self, partition: i32) -> u64 {
        let source = format!("source LIKE '{}/{partition}@%'", self.topic);
        let mark = format!("(SELECT max(end_offset) FROM daily WHERE {source})");
        self.count(&format!("SELECT count() FROM email_events WHERE {source} AND source_offset < {mark}")).await
    }

    /// Waits until this number of a partition's events is counted.
    async fn await_counted_of(&self, partition: i32, events: u64, member: &Server) {
        let told = async || {
            let (counted, committed) = (self.counted_of(partition).await, self.committed(partition));
            format!("{counted} of {events} events of partition {partition}, {committed:?}\n{}", member.stderr())
        };
        await_that(async || self.counted_of(partition).await >= events, told).await;
    }
}

/// Returns the next offset that a member will read of a partition, if it has a window.
async fn next_offset(member: &Server, partition: i32) -> Option<u64> {
    let answer = http(member, "/windows").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let windows: serde_json::Value = serde_json::from_str(body).unwrap();
    windows.get(partition.to_string())?.get("next")?.as_u64()
}

/// A batch is announced and a member dies. The next member reads the batch again. In the middle of that, retention
/// removes the records at another partition's position. Every event of the announced batch is counted once.
pub async fn a_replay_beside_an_out_of_range_error_loses_nothing(url: &str, database: &str) {
    const EVENTS: u64 = 40_000;
    let bench = Bench::new(url, database).await;
    let producer = ToPartition::new(&bench, 20);
    producer.send(0, events(EVENTS));
    let rows_max = EVENTS.to_string();
    let sizes = [(ROWS_MAX, rows_max.as_str()), (AGE_MS, NEVER)];
    bench.die(&[&sizes[..], &[(FAILPOINT, "intent_committed")]].concat());
    let announced: Vec<_> =
        bench.open_batches(3).into_iter().map(|open| (open.partition, open.start, open.end)).collect();
    assert_eq!(announced, [(0, 0, EVENTS)]);
    producer.send(1, events(EVENTS));

    // Two thousand answers of twenty events each take seconds.
    let member = bench.start(&[&sizes[..], &ONE_BATCH_A_FETCH].concat());
    let is_in_the_middle = async || {
        let is_up = member.stderr().contains("completing an announced batch");
        let is_reading = async |partition| next_offset(&member, partition).await > Some(EVENTS / 20);
        is_up && is_reading(0).await && is_reading(1).await
    };
    await_that(is_in_the_middle, async || member.stderr()).await;
    // While it stands still it cannot come to the end of the removed records.
    member.stop().unwrap();
    bench.delete_records(1, EVENTS).await;
    assert_eq!(bench.rows_of(0).await, 0, "the batch was read before the records were removed");
    member.cont().unwrap();

    bench.await_counted_of(0, EVENTS, &member).await;
    // A stop of partition 1 for its gap is right, and only partition 1 may stop.
    await_that(
        async || bench.committed(0).is_some_and(|(offset, _)| offset == EVENTS),
        async || format!("{:?}\n{}", bench.committed(0), member.stderr()),
    )
    .await;
    end(&member);
    assert_eq!((bench.rows_of(0).await, bench.counted_of(0).await), (EVENTS, EVENTS));
    bench.assert_consistent("after the replay").await;
}

/// The announced batch is larger than half of the windows' limit. The same member with the same memory completes it.
pub async fn a_replay_of_half_the_memory_ends(url: &str, database: &str) {
    const EVENTS: u64 = 100;
    let bench = Bench::new(url, database).await;
    ToPartition::new(&bench, 1).send(0, large_events(EVENTS));
    let memory = [(MEMORY_LIMIT, "64MiB"), (BYTES_MAX, "32MiB"), (ROWS_MAX, "1000000")];
    let dying = [&memory[..], &[(AGE_MS, NEVER), (FAILPOINT, "intent_committed")]].concat();
    bench.die(&dying);
    assert_eq!(bench.open_batches(3).len(), 1);
    let member = bench.start(&memory);
    bench.await_stored(EVENTS, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    assert_eq!(bench.rows_of(0).await, EVENTS);
    bench.assert_consistent("after a large replay").await;
}

/// A large member announced a batch on each of four partitions and died. A member with an eighth of its memory counts them all.
pub async fn replays_of_a_larger_member_end(url: &str, database: &str) {
    const EVENTS: u64 = 40;
    const PARTITIONS: i32 = 4;
    let bench = Bench::new(url, database).await;
    bench.recreate_topic(PARTITIONS).await;
    let producer = ToPartition::new(&bench, 1);
    (0..PARTITIONS).for_each(|partition| producer.send(partition, large_events(EVENTS)));
    bench.execute("ALTER TABLE email_events ADD CONSTRAINT held CHECK 0").await;
    let sizes = [(BYTES_MAX, "16MiB"), (ROWS_MAX, "1000000")];
    let large = bench.start(&[&sizes[..], &[(MEMORY_LIMIT, "512MiB"), (AGE_MS, NEVER)]].concat());
    await_http(&large, "/metrics", "tallyhouse_retries_total{step=\"insert\"}").await;
    await_that(
        async || bench.open_batches(PARTITIONS).len() == PARTITIONS as usize,
        async || format!("{:?}\n{}", bench.open_batches(PARTITIONS), large.stderr()),
    )
    .await;
    large.kill9().unwrap();
    bench.bury();
    bench.execute("ALTER TABLE email_events DROP CONSTRAINT held").await;
    let small = bench.start(&[&sizes[..], &[(MEMORY_LIMIT, "64MiB")], &ONE_BATCH_A_FETCH].concat());
    bench.await_stored(EVENTS * PARTITIONS as u64, &[&small]).await;
    await_http(&small, "/readyz", "\"ready\":true").await;
    end(&small);
    assert_eq!(bench.stored().await, EVENTS * PARTITIONS as u64);
    bench.assert_consistent("after four replays").await;
}

/// Settings of a member whose batch of large events is closed by their number.
const LARGE: [(&str, &str); 3] = [(MEMORY_LIMIT, "512MiB"), (BYTES_MAX, "100MiB"), (AGE_MS, NEVER)];
/// Settings of a member that has no room for it.
const SMALL: [(&str, &str); 2] = [(MEMORY_LIMIT, "64MiB"), (BYTES_MAX, "30MiB")];
/// Time limit of an insert, in ms. A member waits that long for an insert of which it knows nothing.
const INSERT_TIMEOUT: (&str, &str) = ("TALLYHOUSE__CLICKHOUSE__INSERT_TIMEOUT_MS", "2000");
/// Time in ms that a member adds to this. It is 30 s for people. Here no sender is stopped.
const RECEIVE_TIMEOUT: (&str, &str) = ("TALLYHOUSE_RECEIVE_TIMEOUT_MS", "1000");

/// A larger member announced a batch and died before it inserted anything. A member without room for the batch waits
/// until nothing of it can arrive any more. It then announces the same events in smaller batches.
pub async fn a_batch_that_does_not_fit_is_announced_smaller(url: &str, database: &str) {
    const EVENTS: u64 = 100;
    let bench = Bench::new(url, database).await;
    ToPartition::new(&bench, 1).send(0, large_events(EVENTS));
    let dying = [(ROWS_MAX, "100"), (FAILPOINT, "intent_committed")];
    bench.die(&[&LARGE[..], &dying].concat());
    assert_eq!(bench.open_batches(3).len(), 1);
    let member = bench.start(&[&SMALL[..], &[INSERT_TIMEOUT, RECEIVE_TIMEOUT]].concat());
    bench.await_stored(EVENTS, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    assert!(member.stderr().contains("waiting until nothing of it can arrive"), "{}", member.stderr());
    end(&member);
    assert_eq!(bench.rows_of(0).await, EVENTS);
    bench.assert_consistent("after a batch was announced smaller").await;
}

/// Starts a proxy that refuses bodies of more than `bytes_max` bytes with status 413, as nginx does.
async fn narrow_proxy(url: &str, bytes_max: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    let there = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass_narrow(client, there.clone(), bytes_max));
        }
    });
    format!("http://{here}")
}

/// Passes one request for each connection. The body of an insert is chunked; it is read whole before it is passed on.
async fn pass_narrow(mut client: TcpStream, there: String, bytes_max: usize) {
    let mut request = Vec::new();
    let is_insert =
        |request: &[u8]| String::from_utf8_lossy(request).lines().next().is_some_and(|l| l.contains("INSERT"));
    let has_head = |request: &[u8]| request.windows(4).any(|end| end == b"\r\n\r\n");
    while !has_head(&request) || is_insert(&request) && !request.ends_with(b"\r\n0\r\n\r\n") {
        if !client.read_buf(&mut request).await.is_ok_and(|bytes| bytes > 0) {
            return;
        }
        if request.len() > bytes_max {
            let refused =
                b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nnginx";
            let _ = client.write_all(refused).await;
            // The rest is read until the client has enough of it. If the connection closed before, the answer would be
            // lost with it.
            while client.read_buf(&mut request).await.is_ok_and(|bytes| bytes > 0) {
                request.clear();
            }
            return;
        }
    }
    let Ok(mut server) = TcpStream::connect(there).await else { return };
    let line = request.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    request.splice(line..line, *b"Connection: close\r\n");
    if server.write_all(&request).await.is_ok() {
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

/// A proxy refuses large bodies (tried 15). The same events are announced in smaller batches until they pass, and each
/// is counted once. A limit of ClickHouse's own is recognised by the words of the server.
pub async fn a_batch_that_is_refused_for_its_size_is_announced_smaller(url: &str, database: &str) {
    const EVENTS: u64 = 1_000;
    let bench = Bench::new(url, database).await;
    for refused in [
        "SELECT groupArray(number) FROM numbers(10000000) SETTINGS max_memory_usage = 1000000",
        "INSERT INTO email_events (event_time) SELECT today() - number FROM numbers(3) SETTINGS max_partitions_per_insert_block = 1",
    ] {
        let error = bench.try_execute(refused).await.unwrap_err();
        assert!(error.refuses_size(), "{error}");
    }
    ToPartition::new(&bench, 1_000).send(0, events(EVENTS));
    let proxy = narrow_proxy(url, 20_000).await;
    let url = ("TALLYHOUSE__CLICKHOUSE__URL", proxy.as_str());
    let settings = [(ROWS_MAX, "1000"), INSERT_TIMEOUT, RECEIVE_TIMEOUT, url];
    let member = bench.start(&[&settings[..], &[("TALLYHOUSE__CLICKHOUSE__COMPRESSION", "none")]].concat());
    bench.await_stored(EVENTS, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    assert!(member.stderr().contains("413 Payload Too Large"), "{}", member.stderr());
    end(&member);
    assert_eq!(bench.rows_of(0).await, EVENTS);
    bench.assert_consistent("in batches that fit through the proxy").await;
}

/// A batch that does not fit has its rows inserted: the partition stops and names the limit that it needs, and that
/// limit is enough.
pub async fn a_half_applied_batch_that_does_not_fit_stops(url: &str, database: &str) {
    const EVENTS: u64 = 100;
    let bench = Bench::new(url, database).await;
    ToPartition::new(&bench, 1).send(0, large_events(EVENTS));
    let dying = [(ROWS_MAX, "100"), (FAILPOINT, "raw_inserted")];
    bench.die(&[&LARGE[..], &dying].concat());
    let member = bench.start(&SMALL);
    await_stop(&member, "replay_too_large", "was begun by a member with a larger memory.limit_bytes").await;
    let told = http(&member, "/readyz").await;
    let limit =
        told.split("memory.limit_bytes = ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
    end(&member);
    let member = bench.start(&[SMALL[1], (MEMORY_LIMIT, &limit)]);
    bench.await_stored(EVENTS, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    assert_eq!(bench.rows_of(0).await, EVENTS);
    bench.assert_consistent("with the limit that was named").await;
}

/// The rejects of one partition cannot be delivered, so it waits. Even so, several times the memory flows through the
/// other partitions.
pub async fn one_partition_that_waits_stops_no_other(url: &str, database: &str) {
    const EVENTS: u64 = 100;
    const OTHERS: u64 = 200;
    let bench = Bench::new(url, database).await;
    let dead_letter = format!("{}.dead", bench.topic);
    create_topic(kafka(), &dead_letter, 1).unwrap();
    alter_topic(&dead_letter, "max.message.bytes", "10").await;
    let producer = ToPartition::new(&bench, 1);
    producer.send(0, std::iter::once(b"no event".to_vec()).chain(large_events(EVENTS)));
    let settings = [(MEMORY_LIMIT, "64MiB"), (BYTES_MAX, "4MiB"), (DEAD_LETTER, dead_letter.as_str())];
    let member = bench.start(&settings);
    await_http(&member, "/readyz", "does not take a rejected record").await;
    // It goes on reading what it cannot store, up to a part of the memory.
    const HELD: u64 = 20;
    await_that(async || next_offset(&member, 0).await > Some(HELD), async || member.stderr()).await;
    producer.send(1, large_events(OTHERS));
    producer.send(2, large_events(OTHERS));
    for partition in [1, 2] {
        bench.await_counted_of(partition, OTHERS, &member).await;
    }
    assert!(bench.counted_of(0).await < EVENTS, "partition 0 did not wait");
    alter_topic(&dead_letter, "max.message.bytes", "1048588").await;
    bench.await_stored(EVENTS + 1 + 2 * OTHERS, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    assert_eq!(bench.stored().await, EVENTS + 1 + 2 * OTHERS);
    bench.assert_consistent("after one partition waited").await;
}

/// ClickHouse refuses every insert. Each partition tries again with growing pauses, and the member is not ready all
/// the while. `status` names both partitions; asked with `--member`, it names the refusal.
pub async fn a_refused_insert_is_tried_with_growing_pauses(url: &str, database: &str) {
    const EVENTS: u64 = 300;
    const WATCHED: Duration = Duration::from_secs(10);
    let bench = Bench::new(url, database).await;
    let producer = ToPartition::new(&bench, 100);
    [0, 1].into_iter().for_each(|partition| producer.send(partition, events(EVENTS)));
    bench.execute("ALTER TABLE email_events ADD CONSTRAINT held CHECK 0").await;
    let member = bench.start(&[("TALLYHOUSE__RETRY__BACKOFF_MAX_MS", "10000")]);
    await_http(&member, "/readyz", "partition 0, insert").await;
    await_http(&member, "/readyz", "partition 1, insert").await;
    let since = Instant::now();
    // Both look while the member is watched.
    let status = |arguments: &[&str]| {
        let command = bench.command(&[&["status"], arguments].concat());
        process::spawn("tallyhouse status", command, Output::Captured).unwrap()
    };
    let plain = status(&[]);
    let asking = status(&["--interval-s", "0", "--member", &format!("http://{}", address(&member))]);
    while since.elapsed() < WATCHED {
        let answer = http(&member, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("partition 0, insert"), "{answer}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    for (status, told) in [(plain, "stands still: batch [0, 300) is announced"), (asking, "insert: ClickHouse reports")]
    {
        assert_eq!(status.wait(TIMEOUT).unwrap().code(), Some(1), "{}", status.stdout());
        let text = status.stdout();
        for partition in [0, 1] {
            let line = format!("WRONG: partition {partition}");
            let named = text.lines().any(|found| found.starts_with(&line) && found.contains(told));
            assert!(named && !text.contains("nothing is wrong"), "{text}");
        }
    }
    let metrics = http(&member, "/metrics").await;
    let retries = metrics.lines().find_map(|line| line.strip_prefix("tallyhouse_retries_total{step=\"insert\"} "));
    let retries: u64 = retries.unwrap().parse().unwrap();
    assert!((4..=20).contains(&retries), "{retries} refused inserts of two partitions");
    bench.execute("ALTER TABLE email_events DROP CONSTRAINT held").await;
    bench.await_stored(2 * EVENTS, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_consistent("after refused inserts").await;
}
