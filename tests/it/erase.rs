//! Tests `tallyhouse erase` on real servers: the person is gone from everything that can be read, and all counts
//! stay.

use crate::audit::assert_clean;
use crate::operator::HALF_APPLIED;
use crate::service::{Bench, end, kafka};
use chrono::{Days, Utc};
use clickhouse::Row;
use devstack::producer::{EVENT_TYPES, uuid};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The person, in the spelling of the events, and in two others.
const PERSON: &str = "maria.unique4711@example.com";
const SHOUTED: &str = "MARIA.Unique4711@Example.com";
const OTHER_ADDRESS: &str = "m.unique4711@work.example";

/// Erases the person. The output never names her.
fn erase(bench: &Bench, arguments: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let (status, output, error) =
        bench.run(&[&["erase", "--email", SHOUTED, "--email", OTHER_ADDRESS], arguments].concat(), settings);
    assert!(!format!("{output}{error}").to_lowercase().contains("unique4711"), "{output}{error}");
    (status, output + &error)
}

fn event(n: u64, email: &str, event_type: &str, metadata: &str) -> Vec<u8> {
    let day = Utc::now().date_naive() - Days::new(n % 3);
    format!(
        "{{\"campaign_id\": \"{}\", \"workspace_id\": \"{}\", \"email\": \"{email}\", \"event_type\": \"{event_type}\", \
         \"event_time\": \"{day}T00:00:{:02}\", \"metadata\": {metadata}}}",
        uuid(n / 100 % 20),
        uuid(100),
        n % 60,
    )
    .into_bytes()
}

/// The numbers that [`produce`] makes: records, the person's events, others' events that name her, rejected records
/// that do.
const PRODUCED: u64 = 6_004;
const EVENTS: u64 = 90;
const MENTIONS: u64 = 60;
const REJECTS: u64 = 33;

/// Produces events of 50 people, one of whom is the person, and rejected records of any kind.
fn produce(bench: &Bench) {
    let mut producer = bench.producer();
    for n in 0..6_000 {
        let email = match n % 100 {
            7 => PERSON.to_owned(),
            57 => OTHER_ADDRESS.to_owned(),
            _ => format!("person{}@example.com", n % 50),
        };
        let event_type = match n % 200 {
            7 => "reopen",
            _ => EVENT_TYPES[(n / 50 % 5) as usize],
        };
        let metadata = match n % 100 {
            11 => "{\"link\": \"https://example.com/?to=maria.unique4711%40EXAMPLE.com&x=1\"}",
            _ => "{\"ip\": \"203.0.113.7\"}",
        };
        producer.send(Some(&event(n, &email, event_type, metadata))).unwrap();
    }
    let cut = format!("{{\"email\": \"{}\", \"event_ty", PERSON.replace('@', "\\u0040"));
    for payload in [&b"\xff\xfe"[..], cut.as_bytes(), &[PERSON.as_bytes(), b"\xff"].concat()] {
        producer.send(Some(payload)).unwrap();
    }
    producer.finish().unwrap();
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", kafka()).create().unwrap();
    let keyed: BaseRecord<'_, str, str> = BaseRecord::to(&bench.topic).key(SHOUTED).payload("no event").partition(0);
    producer.send(keyed).map_err(|(error, _)| error).unwrap();
    producer.flush(DEADLINE).unwrap();
    producer.poll(Duration::ZERO);
}

/// Returns the number of values of any String column of any table that have the person's name in them.
async fn naming(bench: &Bench, database: &str) -> u64 {
    let columns: Vec<(String, String)> = bench
        .rows(&format!(
            "SELECT table, name FROM system.columns WHERE database = '{database}' AND type LIKE '%String%' AND table IN \
             (SELECT name FROM system.tables WHERE database = '{database}' AND engine LIKE '%MergeTree%')"
        ))
        .await;
    assert!(columns.len() > 10, "{columns:?}");
    let mut found = 0;
    for (table, column) in columns {
        let sql =
            format!("SELECT count() FROM {table} WHERE positionCaseInsensitive(toString({column}), 'unique4711') > 0");
        found += bench.count(&sql).await;
    }
    found
}

type Count = (String, String, String, u64);

/// Returns counters, and rows, by campaign and type.
async fn counts(bench: &Bench) -> (Vec<Count>, Vec<Count>) {
    let sql = |table: &str, day: &str, count: &str| {
        format!(
            "SELECT toString({day}), toString(event_type), toString(campaign_id), {count} FROM {table} GROUP BY ALL ORDER BY ALL"
        )
    };
    (
        bench.rows(&sql("daily", "day", "sum(total)")).await,
        bench.rows(&sql("email_events", "toDate(event_time)", "count()")).await,
    )
}

/// Returns the number of recipients of each campaign, in order.
async fn recipients(bench: &Bench) -> Vec<(String, u64)> {
    bench.rows("SELECT toString(campaign_id) AS campaign, recipients FROM campaign_recipients ORDER BY campaign").await
}

/// Returns the number of campaigns that still have the person as a recipient.
async fn recipient_of(bench: &Bench) -> u64 {
    let hash = |email: &str| format!("sipHash64Keyed((SELECT (any(k0), any(k1)) FROM recipient_key), '{email}')");
    let hashes = [hash(PERSON), hash(OTHER_ADDRESS)].join(", ");
    bench.count(&format!("SELECT count() FROM recipients WHERE recipient IN ({hashes})")).await
}

/// Returns the files below the folder that have these bytes.
fn files_with(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, needle));
        } else if std::fs::read(&path).unwrap_or_default().windows(needle.len()).any(|window| window == needle) {
            found.push(path);
        }
    }
    found
}

/// A line of `erasures`, without its times.
#[derive(Debug, PartialEq, Row, Deserialize)]
struct Line {
    state: String,
    reference: String,
    events: u64,
    mentions: u64,
    rejects: u64,
    campaigns: u64,
    days: u64,
    rows_left: u64,
}

async fn lines(bench: &Bench) -> Vec<Line> {
    let sql = "SELECT toString(state) AS state, reference, events, mentions, rejects, campaigns, \
               toUInt64(ifNull(last_day - first_day + 1, 0)) AS days, rows_left FROM erasures ORDER BY written_at, erasure_id, state";
    bench.rows(sql).await
}

/// One of fifty people is erased, by two addresses. She is in no table, no mutation and no file, and everything is
/// still counted.
pub async fn a_person_is_erased_and_counts_stay(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    for table in ["email_events", "rejected_events", "campaign_lifecycle", "recipients"] {
        bench.execute(&format!("ALTER TABLE {table} MODIFY SETTING old_parts_lifetime = 1")).await;
    }
    produce(&bench);
    bench.consume(PRODUCED).await;
    for (offset, name) in [(0, PERSON), (1, "somebody@example.com")] {
        let metadata = format!(r#"{{"reply_to": "{name}"}}"#);
        let sql = format!(
            "INSERT INTO campaign_lifecycle (stage, metadata, source, source_offset, end_offset) SETTINGS async_insert = 0 \
             VALUES ('audience_ready', '{metadata}', 'audience/0', {offset}, 2)"
        );
        bench.execute(&sql).await;
    }
    let (before, recipients_before) = (counts(&bench).await, recipients(&bench).await);
    assert!(recipient_of(&bench).await > 0);
    let folders: Vec<String> = bench
        .rows(&format!(
            "SELECT arrayJoin(data_paths) FROM system.tables WHERE database = '{database}' AND total_rows > 0"
        ))
        .await;
    let files = |needle: &str| -> usize {
        folders.iter().map(|folder| files_with(Path::new(folder), needle.as_bytes()).len()).sum()
    };
    // The files of a server on another machine cannot be looked at.
    let is_here = folders.iter().any(|folder| Path::new(folder).is_dir());
    assert!(naming(&bench, database).await > 0 && (!is_here || files("unique4711") > 0), "{folders:?}");

    let (status, plan) = erase(&bench, &["--json"], &[]);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let numbers = ["events", "mentions", "rejects", "lifecycle", "campaigns"].map(|name| plan[name].as_u64().unwrap());
    assert_eq!(status, Some(0));
    assert_eq!(numbers, [EVENTS, MENTIONS, REJECTS, 1, 20], "{plan:#}");
    assert_eq!(plan["recipients"].as_u64(), Some(30), "two addresses of 10 and 20 campaigns: {plan:#}");
    assert_eq!((&plan["carried_out"], &plan["rows_left"]), (&false.into(), &Value::Null));
    let (status, said) = erase(&bench, &[], &[]);
    assert!(status == Some(0) && said.contains("nothing was changed; --yes carries it out"), "{said}");
    assert!(naming(&bench, database).await > 0 && lines(&bench).await.is_empty());

    let (status, said) = erase(&bench, &["--yes", "--reference", "GDPR-17"], &[]);
    assert!(status == Some(0) && said.contains("no row has the address any more"), "{said}");
    assert!(said.contains("erased") && said.contains("reference=\"GDPR-17\""), "the log has a line: {said}");
    assert_eq!(naming(&bench, database).await, 0);
    let sql = format!(
        "SELECT countIf(positionCaseInsensitive(command, 'unique4711') > 0), count() FROM system.mutations WHERE database = '{database}'"
    );
    let mutations: Vec<(u64, u64)> = bench.rows(&sql).await;
    assert!(mutations[0].0 == 0 && mutations[0].1 >= 3, "{mutations:?}");
    let blank =
        "SELECT countIf(email = '' AND metadata = '') , countIf(email != '' AND metadata = '') FROM email_events";
    assert_eq!(bench.rows::<(u64, u64)>(blank).await, [(EVENTS, MENTIONS)], "nobody else's row was touched");
    let lifecycle = "SELECT countIf(metadata = ''), count() FROM campaign_lifecycle";
    assert_eq!(bench.rows::<(u64, u64)>(lifecycle).await, [(1, 2)]);
    let rejects = "SELECT countIf(payload = '' AND key = '' AND error = 'erased'), count() FROM rejected_events";
    assert_eq!(
        bench.rows::<(u64, u64)>(rejects).await,
        [(REJECTS, PRODUCED - before.1.iter().map(|row| row.3).sum::<u64>())]
    );
    assert_eq!((counts(&bench).await, recipients(&bench).await), (before, recipients_before));
    assert_eq!(recipient_of(&bench).await, 0);
    assert_clean(&bench, "after an erasure");
    bench.assert_consistent("after an erasure").await;
    let month = Utc::now().format("%Y%m").to_string();
    let (status, said, _) = bench.run(&["repair", "daily", "--month", &month], &[]);
    assert!(status == Some(0) && said.contains("0 counters differ"), "{said}");
    let line = |state: &str, counts: [u64; 4], days| Line {
        state: state.to_owned(),
        reference: "GDPR-17".to_owned(),
        events: counts[0],
        mentions: counts[1],
        rejects: counts[2],
        campaigns: counts[3],
        days,
        rows_left: 0,
    };
    let all = [EVENTS, MENTIONS, REJECTS, 20];
    assert_eq!(lines(&bench).await, [line("begun", all, 3), line("done", all, 3)]);

    let (status, said) = erase(&bench, &["--yes", "--reference", "GDPR-17"], &[]);
    assert!(status == Some(0) && said.contains("nothing was found"), "{said}");
    // Two erasures of one second have no order.
    let all_lines = lines(&bench).await;
    assert!(all_lines.contains(&line("done", [0; 4], 0)), "{all_lines:?}");

    let deadline = Instant::now() + DEADLINE;
    let old = format!("SELECT count() FROM system.parts WHERE database = '{database}' AND NOT active");
    // A part leaves system.parts a moment before its files leave the disk.
    while bench.count(&old).await > 0 || files("unique4711") > 0 {
        assert!(Instant::now() < deadline, "old parts are not removed");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    assert_eq!(files("unique4711"), 0, "the name is on the disk");
}

/// The erasure finds every spelling of an address. It does not find similar addresses, nor anything by texts that
/// would be SQL or a pattern.
pub async fn only_the_address_itself_is_found(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let texts = [
        // These are spellings of ann+x@example.com.
        "ANN+X@example.com",
        "{\"to\": \"ann\\u002bx\\u0040example.com\"}",
        "\"{\\\"to\\\": \\\"\\\\u0061nn+x@example.com\\\"}\"",
        "?to=%3Dann%2Bx%40example.com%26",
        "Ann <ann+x@example.com>, and others.",
        "ask ann+x@example.com.",
        // These belong to nobody who is searched.
        "joann+x@example.com",
        "ann+x@example.com.au",
        "ann@example.com",
        "annnnx@example.com",
        "person@example.com",
        // Each of these is found only by itself.
        "x' OR '1'='1@example.com",
        "x') OR 1=1 -- @example.com",
        ".*@example.com",
        "a\\@example.com",
        "{p:String}?@example.com",
        "(@example.com",
        "jürgen@münchen.example",
    ];
    for (offset, text) in texts.iter().enumerate() {
        let sql = "INSERT INTO email_events (campaign_id, workspace_id, email, event_type, event_time, source, source_offset) \
                   SETTINGS async_insert = 0 SELECT generateUUIDv4(), generateUUIDv4(), ?, 'open', now(), 't/0@i', ?";
        bench.client.query(sql).bind(text).bind(offset as u64).execute().await.unwrap();
    }
    let blank = async || -> Vec<u64> {
        bench.rows("SELECT source_offset FROM email_events WHERE email = '' ORDER BY source_offset").await
    };
    let erase = |address: &str| {
        let (status, output, error) = bench.run(&["erase", "--yes", "--email", address], &[]);
        assert_eq!(status, Some(0), "{output}{error}");
        assert!(!format!("{output}{error}").contains(address), "{output}{error}");
    };
    erase("ann+x@example.com");
    assert_eq!(blank().await, [0, 1, 2, 3, 4, 5]);
    for (number, text) in texts.iter().enumerate().skip(11) {
        erase(&if number == 17 { text.to_uppercase() } else { (*text).to_owned() });
        let wanted: Vec<u64> = (0..6).chain(11..=number as u64).collect();
        assert_eq!(blank().await, wanted, "{text}");
    }
    for (arguments, said) in [
        (&["--email", "no-address-4711"][..], "number 1"),
        (&["--email", "a@b.c", "--reference", "for A@B.C"], "--reference"),
        (&[][..], "--email"),
    ] {
        let (status, output, error) = bench.run(&[&["erase"], arguments].concat(), &[]);
        assert!(status == Some(64) && error.contains(said) && !error.contains("4711"), "{status:?} {output}{error}");
    }
    bench.execute("DROP TABLE erasures").await;
    let (status, output, error) = bench.run(&["erase", "--yes", "--email", "person@example.com"], &[]);
    assert!(status == Some(1) && error.contains("tallyhouse migrate"), "{output}{error}");
    assert_eq!(bench.count("SELECT count() FROM email_events WHERE email = 'person@example.com'").await, 1);
}

/// An erasure killed before the first row and between two statements is completed by running it again. Its notes say
/// so.
pub async fn an_erasure_that_was_killed_is_completed(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    produce(&bench);
    bench.consume(PRODUCED).await;
    let before = (counts(&bench).await, recipients(&bench).await);
    for (point, done) in [("erase_begun", 0), ("erase_recipients_added", 0), ("erase_part_blanked", EVENTS)] {
        let (status, said) = erase(&bench, &["--yes"], &[("TALLYHOUSE_FAILPOINT", point)]);
        assert_ne!(status, Some(0), "{said}");
        assert_eq!(bench.count("SELECT count() FROM email_events WHERE email = ''").await, done, "{point}");
    }
    let (status, said) = erase(&bench, &["--yes"], &[]);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(naming(&bench, database).await, 0);
    let states: Vec<(String, u64)> = lines(&bench).await.into_iter().map(|line| (line.state, line.events)).collect();
    assert_eq!(states.iter().filter(|(state, _)| state == "begun").count(), 4, "{states:?}");
    assert_eq!(states.iter().filter(|(state, _)| state == "done").count(), 1, "{states:?}");
    assert_eq!((counts(&bench).await, recipients(&bench).await), before, "nobody counts twice");
    assert_eq!(recipient_of(&bench).await, 0);
    assert_clean(&bench, "after an erasure");
}

/// A batch that is half applied while its rows are blanked is completed as if nothing had been.
pub async fn a_batch_blanked_half_applied_is_completed(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    produce(&bench);
    bench.die_at("raw_inserted:1", HALF_APPLIED, 3).await;
    let (status, said) = erase(&bench, &["--yes"], &[]);
    assert_eq!(status, Some(0), "{said}");
    let blanked = bench.count("SELECT count() FROM email_events WHERE email = ''").await;
    assert!(blanked > 0);
    let member = bench.start(&[]);
    bench.await_stored(PRODUCED, &[&member]).await;
    crate::service::await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    assert_clean(&bench, "after an erasure");
    assert!(naming(&bench, database).await > 0, "rows that came later have the address");
    let (status, said) = erase(&bench, &["--yes"], &[]);
    assert_eq!((status, naming(&bench, database).await), (Some(0), 0), "{said}");
    bench.assert_consistent("after two erasures").await;
}
