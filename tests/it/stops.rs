//! Tests every state in which a partition stops, made on real servers, and the remedy of its page in `docs/stops/`,
//! carried out.

use crate::operator::{ANNOUNCED, APPLIED, HALF_APPLIED, OpenBatch, await_stop};
use crate::service::{Bench, await_http, end};
use devstack::producer::Events;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PARTITIONS: i32 = 3;
const RECORDS: u64 = 6_000;
const PER_PARTITION: u64 = RECORDS / PARTITIONS as u64;

/// Records were removed before they were consumed. The remedy goes on with the remaining records.
pub async fn a_retention_gap_is_left_behind(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    bench.produce(RECORDS);
    bench.consume(RECORDS).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), RECORDS..2 * RECORDS).unwrap();
    producer.finish().unwrap();
    bench.delete_records(1, PER_PARTITION + 500).await;
    let member = bench.start(&[]);
    bench.await_stored(2 * RECORDS - PER_PARTITION, &[&member]).await;
    await_stop(&member, "retention_gap", "offsets 2000 up to 2500 were removed").await;
    end(&member);
    // While the member is there, and without --yes, nothing is changed.
    let before = bench.committed(1);
    let (status, plan, _) = bench.run(&["resume", "--partition", "1", "--continue"], &[]);
    assert_eq!(status, Some(1), "{plan}");
    assert_eq!(bench.committed(1), before);
    let told = bench.resume("1", "--continue").await;
    assert!(
        told.contains("partition 1 is stopped, retention_gap") && told.contains("reads on from offset 2500"),
        "{told}"
    );
    let member = bench.start(&[]);
    bench.await_stored(2 * RECORDS - 500, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    assert_eq!(bench.stored().await, 2 * RECORDS - 500);
    bench.assert_consistent("behind the gap").await;
}

/// Records of an announced batch were removed before it was applied: the partition stops, the others go on. The
/// remedy leaves the batch behind and counts its rows in the tables.
pub async fn an_announced_batch_that_is_gone_stops(url: &str, database: &str) {
    for (point, applied) in [("intent_committed:1", ANNOUNCED), ("raw_inserted:2", HALF_APPLIED)] {
        let bench = Bench::new(url, &format!("{database}_{}", &point[..3])).await;
        bench.produce(RECORDS);
        let OpenBatch { partition, start, end: batch_end, .. } = bench.die_at(point, applied, PARTITIONS).await;
        bench.delete_records(partition, start + 1).await;
        let member = bench.start(&[]);
        await_stop(&member, "intent_gone", &format!("batch [{start}, {batch_end}) was begun and its records are gone"))
            .await;
        // These are the records of this partition that came before the batch.
        bench.await_stored(RECORDS - PER_PARTITION + start, &[&member]).await;
        end(&member);

        bench.resume(&partition.to_string(), "--continue").await;
        assert_eq!(bench.committed(partition).unwrap().0, batch_end);
        if applied == HALF_APPLIED {
            let source = bench.source(partition).await;
            bench.count_leftovers(&source, start, batch_end).await;
        }
        let member = bench.start(&[]);
        let lost = match applied {
            HALF_APPLIED => 0,
            _ => batch_end - start,
        };
        // The rejects of a half applied batch are lost.
        bench.await_stored(RECORDS - lost.max(100), &[&member]).await;
        await_http(&member, "/readyz", "\"ready\":true").await;
        await_http(
            &member,
            "/metrics",
            &format!("tallyhouse_committed_lag_records{{partition=\"{partition}\",topic=\"{}\"}} 0", bench.topic),
        )
        .await;
        end(&member);
        bench.assert_consistent(point).await;
        assert!(bench.stored().await <= RECORDS - lost);
    }
}

/// Records of an announced batch were removed after it was applied. It is committed, and nothing stops.
pub async fn an_applied_batch_that_is_gone_goes_on(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(RECORDS);
    let batch = bench.die_at("daily_inserted:2", APPLIED, PARTITIONS).await;
    bench.delete_records(batch.partition, batch.end).await;
    let member = bench.start(&[]);
    bench.await_stored(RECORDS, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "with an applied batch gone").await;
}

/// An offset was committed beyond the log's end by hand. After it is deleted, the marks say where to go on.
pub async fn an_offset_ahead_of_the_log_is_deleted(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..RECORDS).unwrap();
    bench.consume(RECORDS).await;
    bench.commit_by_hand(1, 50_000, b"").await;
    producer.send_events(&Events::default(), RECORDS..2 * RECORDS).unwrap();
    let ledger = producer.finish().unwrap();
    let member = bench.start(&[]);
    bench.await_stored(2 * RECORDS - PER_PARTITION, &[&member]).await;
    await_stop(&member, "ahead_of_log", "the committed offset is 50000, but the log ends at 4000").await;
    end(&member);
    bench.delete_offsets("1").await;
    bench.consume(2 * RECORDS).await;
    bench.assert_exact(&ledger, "after the offset was deleted").await;
}

/// ClickHouse was restored from a backup: all partitions stop. Two are counted again, and nothing of them is missing
/// or doubled. The batches that are read again are cut as before, and ClickHouse remembers their tokens. The third
/// goes on without the lost events.
pub async fn a_restored_backup_stops(url: &str, database: &str) {
    // These are two batches more in each partition. Each insert under a used token waits for looks at what it left.
    const LOST: u64 = 2_000;
    const ALL: u64 = RECORDS + 3 * LOST;
    const TABLES: [&str; 3] = ["email_events", "rejected_events", "daily"];
    let bench = Bench::new(url, database).await;
    let rows_max = [("TALLYHOUSE__FLUSH__ROWS_MAX", "1000"), ("TALLYHOUSE__FLUSH__AGE_MS", "600000")];
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..RECORDS).unwrap();
    bench.consume_with(RECORDS, &rows_max).await;
    for table in TABLES {
        bench.execute(&format!("CREATE TABLE backup_{table} AS {table}")).await;
        bench.execute(&format!("INSERT INTO backup_{table} SELECT * FROM {table}")).await;
    }
    producer.send_events(&Events::default(), RECORDS..ALL).unwrap();
    producer.finish().unwrap();
    bench.consume_with(ALL, &rows_max).await;
    for table in TABLES {
        bench.execute(&format!("ALTER TABLE {table} DELETE WHERE 1 SETTINGS mutations_sync = 2")).await;
        bench.execute(&format!("INSERT INTO {table} SELECT * FROM backup_{table}")).await;
    }
    let member = bench.start(&rows_max);
    await_stop(&member, "sink_behind", "up to offset 4000, and shows them no more").await;
    await_http(
        &member,
        "/metrics",
        &format!("tallyhouse_stopped_partitions{{reason=\"sink_behind\",topic=\"{}\"}} 3", bench.topic),
    )
    .await;
    end(&member);
    // The other commands foretell it as well.
    let (status, audit, error) = bench.run(&["audit", "--json"], &[]);
    assert!(status == Some(2) && audit.contains("up to offset 4000, and shows them no more"), "{audit}{error}");
    let (status, told, error) = bench.run(&["status", "--json", "--interval-s", "0"], &[]);
    assert!(status == Some(1) && told.contains("up to offset 4000, and shows them no more"), "{told}{error}");
    bench.resume("0,1", "--count-anew").await;
    bench.resume("2", "--continue").await;
    let member = bench.start(&rows_max);
    bench.await_stored(ALL - LOST, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    // Partition 2 has nothing to commit, and reports its lag as well.
    for partition in 0..PARTITIONS {
        await_http(
            &member,
            "/metrics",
            &format!("tallyhouse_committed_lag_records{{partition=\"{partition}\",topic=\"{}\"}} 0", bench.topic),
        )
        .await;
    }
    end(&member);
    bench.assert_consistent("after a restored backup").await;
    assert_eq!(bench.stored().await, ALL - LOST);
}

/// The counters of one month of a partition's last batch are gone, and those of another month are there. `repair daily` counts
/// them again, and `resume --continue` goes on without them for good.
pub async fn lost_counters_of_a_month_stop(url: &str, database: &str) {
    const ALL: u64 = 3_000;
    let bench = Bench::new(url, database).await;
    let one_batch = [("TALLYHOUSE__FLUSH__ROWS_MAX", "1000"), ("TALLYHOUSE__FLUSH__AGE_MS", "600000")];
    let mut producer = bench.producer();
    producer.send_events(&Events { days: 60, broken_percent: 0, ..Events::default() }, 0..ALL).unwrap();
    let ledger = producer.finish().unwrap();
    bench.consume_with(ALL, &one_batch).await;
    let mut months = BTreeSet::new();
    for partition in [0, 1] {
        let source = bench.source(partition).await;
        let last =
            format!("SELECT argMax(toYYYYMM(event_time), source_offset) FROM email_events WHERE source = '{source}'");
        let month = bench.rows::<u32>(&last).await[0];
        let gone = format!("source = '{source}' AND toYYYYMM(day) = {month}");
        bench.execute(&format!("ALTER TABLE daily DELETE WHERE {gone} SETTINGS mutations_sync = 2")).await;
        months.insert(month);
    }
    let member = bench.start(&one_batch);
    await_stop(&member, "sink_behind", "`tallyhouse repair daily` counts that month again").await;
    await_http(
        &member,
        "/metrics",
        &format!("tallyhouse_stopped_partitions{{reason=\"sink_behind\",topic=\"{}\"}} 2", bench.topic),
    )
    .await;
    end(&member);
    bench.resume("0", "--continue").await;
    let (status, said, error) = bench.run(&["resume", "--partition", "1", "--count-anew"], &[]);
    assert!(status == Some(1) && error.contains("`tallyhouse repair daily`"), "{status:?} {said}{error}");
    let member = bench.start(&one_batch);
    await_http(
        &member,
        "/metrics",
        &format!("tallyhouse_stopped_partitions{{reason=\"sink_behind\",topic=\"{}\"}} 1", bench.topic),
    )
    .await;
    end(&member);
    for month in months {
        let (status, said, error) = bench.run(&["repair", "daily", "--month", &month.to_string()], &[]);
        assert_eq!(status, Some(0), "{said}{error}");
    }
    let member = bench.start(&one_batch);
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "after the counters were repaired").await;
}

/// Offsets were copied from another cluster: nothing is consumed until somebody says what they mean. The log of
/// partition 1 is a copy; partition 2 is counted from its beginning.
pub async fn offsets_of_another_cluster_stop(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..RECORDS).unwrap();
    bench.consume(RECORDS).await;
    producer.send_events(&Events::default(), RECORDS..2 * RECORDS).unwrap();
    let ledger = producer.finish().unwrap();
    let old_id = "o".repeat(22);
    for partition in [1, 2] {
        let (offset, metadata) = bench.committed(partition).unwrap();
        let words = metadata.split(' ').map(|word| match word.split_once('=') {
            Some(("cluster", _)) => "cluster=another".to_owned(),
            Some(("topic", _)) => format!("topic={old_id}"),
            _ => word.to_owned(),
        });
        let copied = words.collect::<Vec<_>>().join(" ");
        assert_ne!(copied, metadata);
        bench.rename_rows(partition, &old_id).await;
        bench.commit_by_hand(partition, offset, copied.as_bytes()).await;
    }
    let member = bench.start(&[]);
    bench.await_stored(2 * RECORDS - 2 * PER_PARTITION, &[&member]).await;
    await_stop(&member, "other_cluster", "belongs to the Kafka cluster another").await;
    end(&member);
    bench.resume("1", "--continue").await;
    bench.resume("2", "--count-anew").await;
    let all = ledger.produced + PER_PARTITION;
    bench.consume(all).await;
    bench.assert_consistent("after both remedies").await;
    assert_eq!(bench.stored().await, all);
    let name = format!("{}/2@", bench.topic);
    let of_new =
        format!("SELECT count() FROM email_events WHERE startsWith(source, '{name}') AND source != '{name}{old_id}'");
    let rejects = of_new.replace("email_events", "rejected_events");
    assert_eq!(bench.count(&of_new).await + bench.count(&rejects).await, 2 * PER_PARTITION);
}

/// Brokers begin to report topic ids, and the existing rows have a name without one. Partition 0 goes on at a
/// committed offset, partition 1 completes a batch, and partition 2 has lost its offset. Each event is counted once.
pub async fn brokers_that_begin_to_tell_topic_ids_change_nothing(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..RECORDS).unwrap();
    bench.consume(RECORDS).await;
    producer.send_events(&Events::default(), RECORDS..2 * RECORDS).unwrap();
    let ledger = producer.finish().unwrap();
    for partition in 0..PARTITIONS {
        bench.rename_rows(partition, "").await;
    }
    bench.commit_by_hand(0, PER_PARTITION, b"tallyhouse/1").await;
    bench.commit_by_hand(1, PER_PARTITION, b"tallyhouse/1 end=2500 rows=500 rejects=0").await;
    bench.delete_offsets("2").await;
    bench.consume(2 * RECORDS).await;
    bench.assert_exact(&ledger, "with a name without a topic id").await;
    assert_eq!(bench.count("SELECT count() FROM daily WHERE source LIKE '%@%'").await, 0);
    assert!(bench.committed(0).unwrap().1.contains(" source=plain cluster="), "{:?}", bench.committed(0));
    let (status, audit, error) = bench.run(&["audit"], &[]);
    assert_eq!(status, Some(0), "{audit}{error}");
    let (status, told, error) = bench.run(&["resume", "--partition", "0", "--continue", "--yes"], &[]);
    assert!(status == Some(1) && error.contains("partition 0 does not stop"), "{told}{error}");
}

/// Marks are beyond the log's end. Rows written by hand under this source are deleted, and it goes on.
pub async fn marks_ahead_of_the_log_stop(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..RECORDS).unwrap();
    bench.consume(RECORDS).await;
    let source = bench.source(2).await;
    bench
        .execute(&format!(
            "INSERT INTO daily (day, event_type, source, total, end_offset) VALUES (today(), 'open', '{source}', 1, 90000)"
        ))
        .await;
    producer.send_events(&Events::default(), RECORDS..2 * RECORDS).unwrap();
    let ledger = producer.finish().unwrap();
    let member = bench.start(&[]);
    await_stop(&member, "ahead_of_log", "the mark in `daily` is 90000, but the log ends at 4000").await;
    bench.await_stored(2 * RECORDS - PER_PARTITION + 1, &[&member]).await;
    end(&member);
    bench.execute(&format!("DELETE FROM daily WHERE source = '{source}' AND end_offset > 4000")).await;
    bench.consume(2 * RECORDS).await;
    bench.assert_exact(&ledger, "after the marks were deleted").await;
}

/// The log ends before an announced batch does, as after an unclean leader election. The topic that is made again is
/// another source.
pub async fn a_log_cut_before_an_announced_end_stops(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let first = bench.produce(RECORDS);
    bench.consume(RECORDS).await;
    let (offset, metadata) = bench.committed(0).unwrap();
    bench.commit_by_hand(0, offset, format!("{metadata} end={} rows=7 rejects=0", offset + 7).as_bytes()).await;
    let member = bench.start(&[]);
    await_stop(&member, "ahead_of_log", "the announced batch's end is 2007, but the log ends at 2000").await;
    end(&member);
    bench.recreate_topic(PARTITIONS).await;
    let second = bench.produce(RECORDS);
    bench.delete_offsets("0,1,2").await;
    let member = bench.start(&[]);
    bench.await_stored(first.produced + second.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_consistent("with the topic made anew").await;
    assert_eq!(bench.stored().await, first.produced + second.produced);
}

/// Metadata is not Tallyhouse's, damaged, of a later version or not text at all. Nothing is guessed, and without the
/// offset the marks say where to go on.
pub async fn metadata_that_cannot_be_read_stops(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    let events = Events::default();
    producer.send_events(&events, 0..RECORDS).unwrap();
    bench.consume(RECORDS).await;
    producer.send_events(&events, RECORDS..2 * RECORDS).unwrap();
    let bad: [(u64, &[u8], &str); 4] = [
        (500, b"flink:7", "was not written by Tallyhouse: flink:7"),
        // This is further than the consumed records: going on from here would lose 1,000 records.
        (3_000, b"tallyhouse/1 end=5", "the metadata is damaged"),
        (2_000, b"tallyhouse/3 whatever", "format version 3, this build reads versions 1 and 2"),
        (2_000, b"\xff\xfe\x00", "was not written by Tallyhouse"),
    ];
    for (number, (offset, metadata, text)) in bad.into_iter().enumerate() {
        let partition = (number % 3) as i32;
        bench.commit_by_hand(partition, offset, metadata).await;
        let member = bench.start(&[]);
        await_stop(&member, "bad_metadata", text).await;
        end(&member);
        bench.delete_offsets(&partition.to_string()).await;
    }
    let ledger = producer.finish().unwrap();
    bench.consume(2 * RECORDS).await;
    bench.assert_exact(&ledger, "after the offsets were deleted").await;
}

/// The commit of an old member arrives after the topic was made again. Its batch cannot be completed, and the new
/// topic is consumed.
pub async fn a_topic_recreated_under_an_open_batch_stops(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    bench.produce(RECORDS);
    let batch = bench.die_at("raw_inserted:2", HALF_APPLIED, PARTITIONS).await;
    let olds: Vec<String> = bench.client.query("SELECT DISTINCT source FROM email_events").rows().await.unwrap();
    bench.recreate_topic(PARTITIONS).await;
    let second = bench.produce(RECORDS);
    // Kafka deletes the offsets with the topic, which would be harmless. But a commit may be under way.
    bench.commit_by_hand(batch.partition, batch.start, batch.metadata.as_bytes()).await;
    let member = bench.start(&[]);
    let text = format!("while batch [{}, {}) of the old topic was open", batch.start, batch.end);
    await_stop(&member, "topic_recreated", &text).await;
    end(&member);
    bench.resume(&batch.partition.to_string(), "--count-anew").await;
    for old in &olds {
        let counted = bench.count(&format!("SELECT max(end_offset) FROM daily WHERE source = '{old}'")).await;
        let stored = bench.count(&format!("SELECT max(source_offset) FROM email_events WHERE source = '{old}'")).await;
        bench.count_leftovers(old, counted, stored + 1).await;
    }
    bench.assert_consistent("of the old topic").await;
    let (of_old, before) = (olds.join("', '"), bench.stored().await);
    let of_new = bench.count(&format!("SELECT count() FROM email_events WHERE source NOT IN ('{of_old}')")).await;
    assert!(of_new < second.produced - second.broken, "the stopped partition is not consumed");
    let rejects_of_old =
        bench.count(&format!("SELECT count() FROM rejected_events WHERE source IN ('{of_old}')")).await;
    let total_of_old =
        bench.count(&format!("SELECT count() FROM email_events WHERE source IN ('{of_old}')")).await + rejects_of_old;
    let member = bench.start(&[]);
    bench.await_stored(total_of_old + second.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    assert!(before < bench.stored().await);
    assert_eq!(bench.stored().await, total_of_old + second.produced);
    bench.assert_consistent("with the topic made anew").await;
}

/// A row of a half applied batch is deleted by hand: the partition stops. Once the batch's rows of that day are gone
/// and their token is forgotten, they are written again.
pub async fn a_row_deleted_by_hand_is_a_conflict(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(RECORDS);
    let OpenBatch { partition, start, end: batch_end, .. } =
        bench.die_at("raw_inserted:2", HALF_APPLIED, PARTITIONS).await;
    let source = bench.source(partition).await;
    let of_batch = format!("source = '{source}' AND source_offset >= {start} AND source_offset < {batch_end}");
    let row = bench.count(&format!("SELECT min(source_offset) FROM email_events WHERE {of_batch}")).await;
    let day =
        format!("SELECT toYYYYMMDD(event_time) FROM email_events WHERE source = '{source}' AND source_offset = {row}");
    let day: u32 = bench.client.query(&day).rows().await.unwrap()[0];
    bench.execute(&format!("DELETE FROM email_events WHERE source = '{source}' AND source_offset = {row}")).await;
    let member = bench.start(&[]);
    await_stop(&member, "conflict", &format!("rows for partition {day} of `email_events`, ClickHouse has")).await;
    end(&member);

    // The table remembers the token of the removed rows. This also happens when it dies between writing down the two.
    bench.execute(&format!("DELETE FROM email_events WHERE {of_batch} AND toYYYYMMDD(event_time) = {day}")).await;
    bench.consume(RECORDS).await;
    bench.assert_exact(&ledger, "after the conflict").await;
}

/// Another `decode.*` setting comes with a batch open. It is harmless while nothing of it is applied, and a stop
/// where part of it is.
pub async fn a_batch_rebuilt_with_other_counts_stops(url: &str, database: &str) {
    let other = [("TALLYHOUSE__DECODE__PAST_DAYS_MAX", "1")];
    let bench = Bench::new(url, &format!("{database}_none")).await;
    bench.produce(RECORDS);
    bench.die(&[("TALLYHOUSE_FAILPOINT", "intent_committed:1")]);
    assert_eq!(bench.count("SELECT count() FROM email_events").await, 0);
    let member = bench.start(&other);
    bench.await_stored(RECORDS, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    assert_eq!(bench.stored().await, RECORDS);
    assert!(bench.count("SELECT count() FROM rejected_events WHERE reason = 'time_implausible'").await > RECORDS / 10);
    bench.assert_consistent("made anew").await;

    let bench = Bench::new(url, &format!("{database}_part")).await;
    let ledger = bench.produce(RECORDS);
    let batch = bench.die_at("raw_inserted:1", HALF_APPLIED, PARTITIONS).await;
    let member = bench.start(&other);
    await_stop(&member, "rebuilt_differs", &format!("batch [{}, {}) was rebuilt with", batch.start, batch.end)).await;
    end(&member);
    // The other partitions were consumed with the other setting meanwhile.
    let stored = bench.stored().await;
    let member = bench.start(&[]);
    bench.await_stored(RECORDS, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    assert!(stored < RECORDS && bench.stored().await == ledger.produced);
    bench.assert_consistent("with the first setting again").await;
}

/// Every statement of the pages runs on empty tables, and changes nothing there.
pub async fn the_pages_statements_run(url: &str, database: &str) {
    let client = crate::schema::migrated(url, database).await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/stops");
    let mut run = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let page = fs::read_to_string(entry.unwrap().path()).unwrap();
        let blocks = page.split("```sql").skip(1).map(|part| part.split("```").next().unwrap());
        for statement in blocks.flat_map(|block| block.split(";\n")).map(str::trim).filter(|sql| !sql.is_empty()) {
            let mut sql = statement.replace("<source>", "a/1@b").replace("<day>", "20261101");
            for offset in ["<start>", "<end>", "<log_end>"] {
                sql = sql.replace(offset, "7");
            }
            if let Err(error) = client.query(&sql.replace('?', "??")).execute().await {
                panic!("{statement}: {error}");
            }
            run += 1;
        }
    }
    assert!(run > 15, "{run}");
}
