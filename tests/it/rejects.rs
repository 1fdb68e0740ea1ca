//! Tests `tallyhouse rejects` and the dead-letter topic on real servers. A replayed record counts once, however often
//! and wherever the replay is cut.

use crate::audit::assert_clean;
use crate::group::await_frozen;
use crate::operator::alter_topic;
use crate::service::{Bench, await_http, end, http, kafka};
use devstack::dice::Dice;
use devstack::producer::{Events, Ledger, create_topic};
use devstack::{Output, Server, process};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DEADLINE: Duration = Duration::from_secs(60);
const PARTITIONS: u64 = 3;
const DEAD_LETTER: &str = "TALLYHOUSE__KAFKA__TOPICS__DEAD_LETTER";

fn run(bench: &Bench, arguments: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String, String) {
    bench.run(&[&["rejects"], arguments].concat(), settings)
}

fn ok(bench: &Bench, arguments: &[&str]) -> String {
    let (status, output, error) = run(bench, arguments, &[]);
    assert_eq!(status, Some(0), "{arguments:?}: {output}{error}");
    output
}

/// Returns the summary of a replay that ends well.
fn replay(bench: &Bench, arguments: &[&str]) -> Value {
    serde_json::from_str(&ok(bench, &[&["replay", "--json"], arguments].concat())).unwrap()
}

fn start(bench: &Bench, arguments: &[&str], settings: &[(&str, &str)]) -> Server {
    let mut command = bench.command(&[&["rejects", "replay"], arguments].concat());
    command.envs(settings.iter().copied());
    process::spawn("replay", command, Output::Captured).unwrap()
}

/// Returns all committed records of a topic.
fn records(topic: &str) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka())
        .set("group.id", "nobody")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), DEADLINE).unwrap();
    let partitions = metadata.topics()[0].partitions().len();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition as i32, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut records, mut ended) = (Vec::new(), BTreeSet::new());
    while ended.len() < partitions {
        match consumer.poll(DEADLINE).expect("an answer in time") {
            Ok(message) => records.push(message.detach()),
            Err(KafkaError::PartitionEOF(partition)) => drop(ended.insert(partition)),
            Err(error) => panic!("{error}"),
        }
    }
    records
}

fn header(record: &OwnedMessage, name: &str) -> Option<String> {
    let headers = record.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    Some(String::from_utf8(found.value?.to_vec()).unwrap())
}

/// Rejected records of a fresh topic, with their corrected export in a file.
struct Mended {
    bench: Bench,
    folder: tempfile::TempDir,
    /// The ledger of everything, once all is replayed and counted.
    ledger: Ledger,
}

impl Mended {
    async fn new(url: &str, database: &str, count: u64) -> Mended {
        let bench = Bench::new(url, database).await;
        let mut producer = bench.producer();
        producer.send_events(&Events { broken_percent: 100, ..Events::default() }, 0..count).unwrap();
        let mut ledger = producer.finish().unwrap();
        assert_eq!(ledger.broken, count);
        bench.consume(count).await;
        let whole = Events { broken_percent: 0, ..Events::default() };
        (0..count).for_each(|n| ledger.note(&whole.payload(n)));
        let mended: String = ok(&bench, &["export"])
            .lines()
            .map(|line| {
                let mut line: Value = serde_json::from_str(line).unwrap();
                let partition = line["source"].as_str().unwrap().rsplit_once('/').unwrap().1.split('@').next().unwrap();
                let n = line["source_offset"].as_u64().unwrap() * PARTITIONS + partition.parse::<u64>().unwrap();
                line.as_object_mut().unwrap().remove("payload_base64");
                line["payload"] = String::from_utf8(whole.payload(n).bytes).unwrap().into();
                format!("{line}\n")
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mended.ndjson"), mended).unwrap();
        Mended { bench, folder, ledger }
    }

    fn file(&self) -> String {
        self.folder.path().join("mended.ndjson").to_str().unwrap().to_owned()
    }

    async fn assert_exact(&self, what: &str) {
        let member = self.bench.start(&[]);
        self.bench.await_stored(self.ledger.produced, &[&member]).await;
        await_http(&member, "/readyz", "\"ready\":true").await;
        end(&member);
        self.bench.assert_exact(&self.ledger, what).await;
        assert_clean(&self.bench, "after replays");
    }
}

/// An export is corrected and replayed: all of it counts, and a second replay counts nothing. Everything that looks
/// at rows reports the same.
pub async fn what_is_mended_counts_once(url: &str, database: &str) {
    const ROWS: u64 = 600;
    let mended = Mended::new(url, database, ROWS).await;
    let (bench, file) = (&mended.bench, mended.file());
    let counts: Value = serde_json::from_str(&ok(bench, &["count", "--json"])).unwrap();
    let by_reason = |field: &str| -> BTreeMap<String, u64> {
        let counts: Value = serde_json::from_str(&ok(bench, &["count", "--json"])).unwrap();
        let rows = counts["rows"].as_array().unwrap().iter();
        rows.map(|row| (row["reason"].as_str().unwrap().to_owned(), row[field].as_u64().unwrap())).collect()
    };
    let wanted: Vec<(String, u64)> =
        bench.rows("SELECT toString(reason), count() FROM rejected_events GROUP BY reason ORDER BY 1").await;
    assert_eq!(by_reason("rows").into_iter().collect::<Vec<_>>(), wanted, "{counts}");
    let only = ok(bench, &["export", "--reason", "not_utf8", "--limit", "3"]);
    assert!(only.lines().count() == 3 && only.contains("payload_base64"), "{only}");
    let (status, _, error) = run(bench, &["count", "--reason", "no_such"], &[]);
    assert!(status == Some(64) && error.contains("time_implausible"), "{error}");

    // This is one row, byte for byte.
    let first: Value = serde_json::from_str(only.lines().next().unwrap()).unwrap();
    let (source, offset) = (first["source"].as_str().unwrap(), first["source_offset"].to_string());
    let shown = ok(bench, &["show", source, &offset]);
    assert!(shown.contains("rejects it: not_utf8") && shown.contains("replayed         no"), "{shown}");
    let raw = bench.command(&["rejects", "show", source, &offset, "--raw"]).output().unwrap().stdout;
    let sql =
        format!("SELECT hex(payload) FROM rejected_events WHERE source = '{source}' AND source_offset = {offset}");
    let hex: Vec<String> = bench.rows(&sql).await;
    assert_eq!(raw.iter().map(|byte| format!("{byte:02X}")).collect::<String>(), hex[0]);

    // Without corrections they are no events. A dry run changes nothing, not even in Kafka.
    let unmended = replay(bench, &["--dry-run"]);
    assert_eq!((&unmended["replayed"], &unmended["refused"]), (&json!(0), &json!(ROWS)), "{unmended}");
    let dry = replay(bench, &["--from", &file, "--dry-run"]);
    assert_eq!((&dry["replayed"], &dry["fixed"]), (&json!(ROWS), &json!(ROWS)), "{dry}");
    assert_eq!(records(&bench.topic).len() as u64, ROWS);

    let done = replay(bench, &["--from", &file]);
    assert_eq!((&done["replayed"], &done["already_replayed"]), (&json!(ROWS), &json!(0)), "{done}");
    let again = replay(bench, &["--from", &file]);
    assert_eq!((&again["replayed"], &again["already_replayed"]), (&json!(0), &json!(ROWS)), "{again}");
    mended.assert_exact("after two replays").await;

    assert_eq!(by_reason("replayed"), by_reason("rows"));
    let listing: Value = serde_json::from_str(&ok(bench, &["list", "--limit", "1000", "--json"])).unwrap();
    let rows = listing["rows"].as_array().unwrap();
    assert!(rows.len() as u64 == ROWS && rows.iter().all(|row| row["replayed"]["fixed"] == true), "{listing:#}");
    assert!(ok(bench, &["list"]).contains(", fixed"));
    let records = records(&bench.topic);
    for row in rows {
        let replayed = &row["replayed"];
        let at = |record: &&OwnedMessage| {
            replayed["partition"] == record.partition() && replayed["offset"] == record.offset()
        };
        let record = records.iter().find(at).unwrap();
        let origin = format!("{}:{}", row["source"].as_str().unwrap(), row["source_offset"]);
        assert_eq!(header(record, "tallyhouse-origin"), Some(origin));
        let before = format!("/{}@", record.partition());
        assert!(row["source"].as_str().unwrap().contains(&before), "{row} is in another partition now: {record:?}");
        let first = records
            .iter()
            .find(|first| first.partition() == record.partition() && row["source_offset"] == first.offset());
        assert_eq!(record.timestamp(), first.unwrap().timestamp());
    }

    // A line without a row is named, left out, and shown by the exit status. A line of a row that was replayed is
    // nothing new.
    let lines = [("nowhere/0@x", "0", "x"), (source, &offset, "\u{1b}[2J")].map(|(source, offset, payload)| {
        format!(
            "{}\n",
            json!({ "source": source, "source_offset": offset.parse::<u64>().unwrap(), "payload": payload })
        )
    });
    std::fs::write(&file, lines.concat()).unwrap();
    let (status, output, error) = run(bench, &["replay", "--from", &file], &[]);
    assert!(status == Some(1) && error.contains("nowhere/0@x:0 has no row"), "{output}{error}");
    std::fs::write(&file, "{}\n").unwrap();
    let (status, _, error) = run(bench, &["replay", "--from", &file], &[]);
    assert!(status == Some(1) && error.contains("line 1: is no line of an export"), "{error}");
}

/// A bound that was too tight rejects events. They are replayed with their own bytes, and rejected again as rows of
/// their own. From those they are replayed once the members have the new bound as well.
pub async fn own_bytes_are_replayed_after_a_changed_bound(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let tight = [("TALLYHOUSE__DECODE__PAST_DAYS_MAX", "0")];
    let mut ledger = bench.produce(3_000);
    let consume = async |records: u64| {
        let member = bench.start(&tight);
        bench.await_stored(records, &[&member]).await;
        await_http(&member, "/readyz", "\"ready\":true").await;
        end(&member);
    };
    consume(ledger.produced).await;
    let late = bench.count("SELECT count() FROM rejected_events WHERE reason = 'time_implausible'").await;
    assert!(late > 1_000, "{late}");
    let first = replay(&bench, &[]);
    assert_eq!((&first["replayed"], &first["fixed"]), (&json!(late), &json!(0)), "{first}");
    assert_eq!(first["refused"], json!(ledger.broken));
    consume(ledger.produced + late).await;
    assert_eq!(bench.count("SELECT count() FROM rejected_events WHERE reason = 'time_implausible'").await, 2 * late);
    let second = replay(&bench, &["--reason", "time_implausible"]);
    assert_eq!((&second["replayed"], &second["already_replayed"]), (&json!(late), &json!(late)), "{second}");
    bench.consume(ledger.produced + 2 * late).await;
    ledger.produced += 2 * late;
    ledger.broken += 2 * late;
    bench.assert_exact(&ledger, "after two replays of the same events").await;
    assert_eq!(replay(&bench, &[])["replayed"], 0);
    assert_clean(&bench, "after replays");
}

/// kill -9 comes before and after each step of a transaction, early and late.
pub async fn a_replay_killed_anywhere_is_exact(url: &str, database: &str) {
    let mended = Mended::new(url, database, 2_400).await;
    let member = mended.bench.start(&[]);
    for passing in [1, 2] {
        for point in ["replay_produced", "replay_noted", "replay_committed"] {
            let point = format!("{point}:{passing}");
            let killed = start(&mended.bench, &["--from", &mended.file()], &[("TALLYHOUSE_FAILPOINT", &point)]);
            let status = killed.wait(DEADLINE).unwrap();
            assert_eq!(status.code(), None, "{point} was not reached: {}", killed.stderr());
        }
    }
    let last = replay(&mended.bench, &["--from", &mended.file()]);
    // These are five transactions: one of the third that was killed, one each of the fourth and the fifth, two of the
    // sixth.
    assert_eq!((&last["already_replayed"], &last["replayed"]), (&json!(2_400), &json!(0)), "{last}");
    mended.bench.await_stored(mended.ledger.produced, &[&member]).await;
    end(&member);
    mended.assert_exact("after kill -9 at every step").await;
}

/// kill -9 comes at random moments, over and over, until one replay comes through.
pub async fn random_interruptions_are_exact(url: &str, database: &str) {
    let from_environment = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = from_environment("TALLYHOUSE_REPLAY_SEED");
    let seed = seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    let rows = from_environment("TALLYHOUSE_REPLAY_ROWS").unwrap_or(8_000);
    println!("TALLYHOUSE_REPLAY_SEED={seed} TALLYHOUSE_REPLAY_ROWS={rows}");
    let mended = Mended::new(url, database, rows).await;
    let member = mended.bench.start(&[]);
    let mut dice = Dice::new(seed);
    let mut killed = 0;
    for _ in 0..100 {
        let replay = start(&mended.bench, &["--from", &mended.file()], &[]);
        if let Ok(status) = replay.wait(Duration::from_millis(dice.within(200..=1_600))) {
            assert!(status.success(), "seed {seed}: {}", replay.stderr());
            break;
        }
        replay.kill9().unwrap();
        killed += 1;
    }
    let last = replay(&mended.bench, &["--from", &mended.file()]);
    println!("seed {seed}: {killed} replays were killed; the last one: {last}");
    mended.bench.await_stored(mended.ledger.produced, &[&member]).await;
    end(&member);
    mended.assert_exact(&format!("seed {seed}")).await;
}

/// Replays that were stopped in the middle of a transaction wake up after another has ended. They are shut out, and
/// say so.
pub async fn of_two_replays_the_later_one_goes_on(url: &str, database: &str) {
    let mended = Mended::new(url, database, 1_400).await;
    let member = mended.bench.start(&[]);
    let mut stopped = Vec::new();
    // The first has committed nothing, the second one transaction.
    for point in ["replay_produced:1:stop", "replay_noted:2:stop"] {
        let earlier = start(&mended.bench, &["--from", &mended.file()], &[("TALLYHOUSE_FAILPOINT", point)]);
        await_frozen(&earlier).await;
        stopped.push(earlier);
    }
    let last = replay(&mended.bench, &["--from", &mended.file()]);
    assert_eq!((&last["already_replayed"], &last["replayed"]), (&json!(500), &json!(900)), "{last}");
    for earlier in stopped {
        earlier.cont().unwrap();
        let status = earlier.wait(DEADLINE).unwrap();
        let (output, error) = (earlier.stdout(), earlier.stderr());
        assert!(
            status.code() == Some(1) && error.contains("another replay has taken over"),
            "{status}: {output}{error}"
        );
    }
    mended.bench.await_stored(mended.ledger.produced, &[&member]).await;
    end(&member);
    mended.assert_exact("after three replays at once").await;
}

/// A ledger that may forget, or is not read whole, is refused before anything is sent. The replay reports what the
/// event topic does to timestamps.
pub async fn a_ledger_that_forgets_is_refused(url: &str, database: &str) {
    let mended = Mended::new(url, database, 30).await;
    let (bench, file) = (&mended.bench, mended.file());
    let (forgets, many) = (format!("{}.forgets", bench.topic), format!("{}.many", bench.topic));
    create_topic(kafka(), &forgets, 1).unwrap();
    create_topic(kafka(), &many, 2).unwrap();
    alter_topic(&many, "cleanup.policy", "compact").await;
    for (topic, text) in [(&forgets, "cleanup.policy=delete"), (&many, "2 partitions")] {
        let settings = [("TALLYHOUSE__KAFKA__TOPICS__REPLAYS", topic.as_str())];
        let (status, _, error) = run(bench, &["replay", "--from", &file], &settings);
        assert!(status == Some(1) && error.contains(text), "{error}");
    }
    assert_eq!(records(&bench.topic).len(), 30);
    let (status, _, error) = run(bench, &["replay"], &[("TALLYHOUSE__KAFKA__TOPICS__EVENTS", "nowhere")]);
    assert!(status == Some(1) && error.contains("the topic nowhere does not exist"), "{error}");
    // Without Kafka the rows can still be looked at.
    let (status, output, _) = run(bench, &["list"], &[("TALLYHOUSE__KAFKA__BROKERS", "127.0.0.1:1")]);
    assert!(status == Some(0) && output.contains("What was replayed is not known"), "{output}");
    alter_topic(&bench.topic, "message.timestamp.type", "LogAppendTime").await;
    let (status, _, error) = run(bench, &["replay", "--from", &file], &[]);
    assert!(status == Some(0) && error.contains("LogAppendTime"), "{error}");
    mended.assert_exact("with LogAppendTime").await;
}

/// A member is killed between the delivery and the row, and after each, with the committed offset or without. Every
/// reject is in the topic at least once, whole, and all counts are exact.
pub async fn every_reject_is_in_the_dead_letter_topic(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let dead_letter = format!("{}.dead", bench.topic);
    create_topic(kafka(), &dead_letter, 2).unwrap();
    let mut producer = bench.producer();
    let points = ["dead_letters_delivered:1", "rejected_inserted:2", "dead_letters_delivered:3", "end_committed:1"];
    for (number, point) in (0..).zip(points) {
        producer.send_events(&Events::default(), number * 4_000..(number + 1) * 4_000).unwrap();
        // With the second half the committed offset is lost as well. Rejects that the marks show applied must have
        // their letters.
        let group = format!("{}-{}", bench.topic, number / 2 * number);
        let settings =
            [(DEAD_LETTER, &*dead_letter), ("TALLYHOUSE_FAILPOINT", point), ("TALLYHOUSE__KAFKA__GROUP_ID", &*group)];
        let member = bench.start(&settings);
        member.wait(DEADLINE).unwrap_or_else(|_| panic!("{point} was not reached\n{}", member.stderr()));
    }
    producer.send(None).unwrap();
    let mut ledger = producer.finish().unwrap();
    (ledger.produced, ledger.broken) = (ledger.produced + 1, ledger.broken + 1);
    let member = bench.start(&[(DEAD_LETTER, &dead_letter)]);
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    assert!(http(&member, "/metrics").await.contains("tallyhouse_dead_letters_total "));
    end(&member);
    bench.assert_exact(&ledger, "with dead letters").await;

    let letters = records(&dead_letter);
    let text = |record: &OwnedMessage, name: &str| header(record, name).unwrap();
    let found: BTreeSet<[String; 5]> = letters
        .iter()
        .map(|letter| {
            let payload = letter.payload().unwrap_or_default().iter().map(|byte| format!("{byte:02X}")).collect();
            [
                text(letter, "tallyhouse-source"),
                text(letter, "tallyhouse-offset"),
                text(letter, "tallyhouse-reason"),
                text(letter, "tallyhouse-error"),
                payload,
            ]
        })
        .collect();
    let columns = "source, toString(source_offset), toString(reason), error, hex(payload)";
    let rows: Vec<Vec<String>> = bench.rows(&format!("SELECT [{columns}] FROM rejected_events")).await;
    let wanted: BTreeSet<[String; 5]> = rows.into_iter().map(|row| row.try_into().unwrap()).collect();
    assert_eq!(wanted.len() as u64, ledger.broken);
    assert!(found == wanted, "{} letters of {} rows", found.len(), wanted.len());
    println!("{} letters for {} rejected records", letters.len(), wanted.len());
    let tombstone = letters.iter().find(|letter| text(letter, "tallyhouse-reason") == "tombstone").unwrap();
    assert_eq!(tombstone.payload(), None);
}

/// A topic does not take one letter: its partition waits, uncommitted, the cause is named, and afterwards all is
/// exact. The letters that the topic has taken are not sent again.
pub async fn a_dead_letter_that_is_not_taken_holds_the_partition(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let dead_letter = format!("{}.dead", bench.topic);
    create_topic(kafka(), &dead_letter, 1).unwrap();
    // A batch of small letters is smaller than this.
    alter_topic(&dead_letter, "max.message.bytes", "80000").await;
    for command in ["check", "status"] {
        let missing = bench.command(&[command]).env(DEAD_LETTER, "no-such-topic").output().unwrap();
        let text = String::from_utf8(missing.stdout).unwrap();
        assert!(missing.status.code() == Some(1) && text.contains("no-such-topic"), "{text}");
        let there = bench.command(&[command]).env(DEAD_LETTER, &dead_letter).output().unwrap();
        assert!(there.status.success(), "{}", String::from_utf8_lossy(&there.stdout));
    }
    let (status, _, error) = run(&bench, &["count"], &[(DEAD_LETTER, &bench.topic)]);
    assert!(status == Some(64) && error.contains("must not be the topic of kafka.topics.events"), "{error}");
    let mut producer = bench.producer();
    producer.send(Some(&[b'x'; 100_000])).unwrap();
    producer.send_events(&Events { broken_percent: 20, ..Events::default() }, 0..2_000).unwrap();
    let ledger = producer.finish().unwrap().plus(&Ledger { produced: 1, broken: 1, ..Ledger::default() });
    let member = bench.start(&[(DEAD_LETTER, &dead_letter)]);
    await_http(&member, "/readyz", &format!("the dead-letter topic {dead_letter} does not take a rejected record"))
        .await;
    await_http(&member, "/metrics", "tallyhouse_retries_total{step=\"dead_letter\"} 5").await;
    assert!(member.stderr().contains("dead_letter"), "{}", member.stderr());
    assert!(bench.committed(0).is_none_or(|(offset, _)| offset == 0), "the partition is committed");
    let of_partition = format!("source = '{}'", bench.source(0).await);
    assert_eq!(bench.count(&format!("SELECT count() FROM rejected_events WHERE {of_partition}")).await, 0);
    alter_topic(&dead_letter, "max.message.bytes", "1048588").await;
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "after the dead-letter topic was mended").await;
    assert_eq!(records(&dead_letter).len() as u64, ledger.broken, "letters that were acknowledged were sent again");
}
