//! Tests the service end to end: the real binary, real Kafka, real ClickHouse, real signals.

use devstack::producer::{Events, Ledger, Producer, create_topic};
use devstack::{ClickHouse, ClickHouseOptions, Output, Server, Stack, process};
use std::process::Command;
use std::time::{Duration, Instant};
use tallyhouse::clickhouse::client::Client;
use tallyhouse::clickhouse::error::ClickHouseError;
use tallyhouse::clickhouse::recipients;

const DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const PARTITIONS: i32 = 3;

/// One topic, one migrated database, one consumer group.
pub struct Bench {
    url: String,
    database: String,
    brokers: String,
    pub topic: String,
    pub client: Client,
}

impl Bench {
    pub async fn new(url: &str, database: &str) -> Bench {
        Bench::at(kafka(), url, database).await
    }

    /// Makes a bench on another Kafka than the one of all tests.
    pub async fn at(brokers: &str, url: &str, database: &str) -> Bench {
        Bench::with(brokers, url, database, crate::schema::migrated(url, database).await)
    }

    /// Makes a bench on tables that are there. `client` reads them.
    pub fn with(brokers: &str, url: &str, database: &str, client: Client) -> Bench {
        let topic = Stack::shared().fresh_topic_name("events");
        create_topic(brokers, &topic, PARTITIONS).unwrap();
        Bench { url: url.to_owned(), database: database.to_owned(), brokers: brokers.to_owned(), topic, client }
    }

    pub fn producer(&self) -> Producer {
        Producer::new(&self.brokers, &self.topic, PARTITIONS).unwrap()
    }

    pub fn produce(&self, count: u64) -> Ledger {
        let mut producer = self.producer();
        producer.send_events(&Events::default(), 0..count).unwrap();
        producer.finish().unwrap()
    }

    /// Starts a member with small batches and a short session, and more settings.
    pub fn start(&self, settings: &[(&str, &str)]) -> Server {
        let mut command = self.command(&["run"]);
        command.envs(settings.iter().copied());
        process::spawn("tallyhouse", command, Output::Captured).unwrap()
    }

    /// Starts a member that dies at its fail point, and waits for that. Then it takes the dead member out of the group,
    /// as Kafka does at the end of its session. Tests of sessions must not use this.
    pub fn die(&self, settings: &[(&str, &str)]) -> Server {
        let member = self.start(settings);
        let ended = tokio::task::block_in_place(|| member.wait(DEADLINE));
        ended.unwrap_or_else(|_| panic!("{settings:?}: no fail point was reached\n{}", member.stderr()));
        self.bury();
        member
    }

    /// Takes all members out of the group. They are dead, and Kafka does not know it yet.
    pub fn bury(&self) {
        devstack::kafka::remove_members(&self.brokers, &self.topic).unwrap();
    }

    /// Returns the program with this bench's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(crate::program());
        command.env_clear().current_dir(std::env::temp_dir()).args(arguments);
        for (key, value) in [
            ("KAFKA__BROKERS", self.brokers.as_str()),
            ("KAFKA__GROUP_ID", self.topic.as_str()),
            ("KAFKA__TOPICS__EVENTS", self.topic.as_str()),
            ("KAFKA__SESSION_TIMEOUT_MS", "6000"),
            ("CLICKHOUSE__URL", self.url.as_str()),
            ("CLICKHOUSE__DATABASE", self.database.as_str()),
            ("CLICKHOUSE__RECIPIENTS", "true"),
            ("FLUSH__AGE_MS", "300"),
            ("FLUSH__ROWS_MAX", "700"),
            ("ADMIN__LISTEN", "127.0.0.1:0"),
            ("RETRY__BACKOFF_MAX_MS", "500"),
        ] {
            command.env(format!("TALLYHOUSE__{key}"), value);
        }
        command
    }

    /// Runs the program to its end. Returns exit status, standard output and standard error.
    pub fn run(&self, arguments: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String, String) {
        let output = self.command(arguments).envs(settings.iter().copied()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Runs the program beside other work. Returns its exit status and all that it says.
    pub async fn run_beside(&self, arguments: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut command = self.command(arguments);
        command.envs(settings.iter().copied());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    pub async fn execute(&self, sql: &str) {
        self.try_execute(sql).await.unwrap();
    }

    pub async fn try_execute(&self, sql: &str) -> Result<(), ClickHouseError> {
        self.client.query(sql).execute().await
    }

    pub async fn rows<T: clickhouse::RowOwned + clickhouse::RowRead>(&self, sql: &str) -> Vec<T> {
        self.client.query(sql).rows().await.unwrap()
    }

    pub async fn count(&self, sql: &str) -> u64 {
        self.client.query(sql).scalar_u64().await.unwrap()
    }

    /// Returns the number of records whose batch is applied to its last table: counters are written last.
    pub async fn stored(&self) -> u64 {
        let sql = "(SELECT sum(total) FROM daily) + (SELECT count() FROM rejected_events)";
        self.count(&format!("SELECT assumeNotNull({sql})")).await
    }

    /// Waits until at least this number of records is counted or rejected.
    pub async fn await_stored(&self, records: u64, members: &[&Server]) {
        let deadline = Instant::now() + DEADLINE;
        while self.stored().await < records {
            if Instant::now() > deadline {
                let logs: Vec<String> = members.iter().map(|member| member.stderr()).collect();
                panic!("{} of {records} records after {DEADLINE:?}\n{}", self.stored().await, logs.join("\n---\n"));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Runs a member until at least this number of records is counted or rejected, and ends it.
    pub async fn consume(&self, records: u64) {
        self.consume_with(records, &[]).await;
    }

    /// Runs the same as [`Bench::consume`], with settings.
    pub async fn consume_with(&self, records: u64, settings: &[(&str, &str)]) {
        let member = self.start(settings);
        self.await_stored(records, &[&member]).await;
        // All may be stored before this member is up. But a signal before it listens to signals would end it the hard
        // way.
        await_http(&member, "/readyz", "\"ready\":true").await;
        end(&member);
    }

    /// Checks that every record is a row or a reject exactly once, and that the counters are the GROUP BY of the
    /// rows.
    pub async fn assert_exact(&self, ledger: &Ledger, what: &str) {
        let rows = self.count("SELECT count() FROM email_events").await;
        let rejects = self.count("SELECT count() FROM rejected_events").await;
        assert_eq!((rows + rejects, rejects), (ledger.produced, ledger.broken), "{what}");
        self.assert_consistent(what).await;
        for (event_type, wanted) in devstack::producer::EVENT_TYPES.iter().zip(ledger.by_type) {
            let found = self.count(&format!("SELECT sum(total) FROM daily WHERE level = '{event_type}'")).await;
            assert_eq!(found, wanted, "{what}: {event_type}");
        }
        let (recounted, stored) = (recipients::recount("true"), recipients::stored("true"));
        let sql = format!(
            "SELECT count() FROM (SELECT * FROM ({recounted} UNION ALL {stored}) GROUP BY ALL HAVING count() != 2)"
        );
        assert_eq!(self.count(&sql).await, 0, "{what}: recipients is not the GROUP BY of the rows");
    }

    /// Checks that no row is there twice, and that the counters are the GROUP BY of the rows.
    pub async fn assert_consistent(&self, what: &str) {
        let rows = self.count("SELECT count() FROM email_events").await;
        let distinct = self.count("SELECT uniqExact(source, source_offset) FROM email_events").await;
        let total = self.count("SELECT sum(total) FROM daily").await;
        assert_eq!((distinct, total), (rows, rows), "{what}");
        let key = "toDate(event_time) AS day, event_type, campaign_id, workspace_id";
        let differences = self
            .count(&format!(
                "SELECT count() FROM (SELECT {key}, count() AS n FROM email_events GROUP BY ALL) AS r FULL JOIN \
                 (SELECT day, event_type, campaign_id, workspace_id, sum(total) AS n FROM daily GROUP BY ALL) AS d \
                 USING (day, event_type, campaign_id, workspace_id) WHERE r.n != d.n"
            ))
            .await;
        assert_eq!(differences, 0, "{what}: daily is not the GROUP BY of the rows");
    }
}

pub fn kafka() -> &'static str {
    Stack::shared().kafka().unwrap().bootstrap()
}

pub fn end(member: &Server) -> String {
    let status = member.terminate(Duration::from_secs(30)).unwrap();
    assert!(status.success(), "{status}: {}", member.stderr());
    member.stdout()
}

/// Returns the address of a member's endpoint, from its log once it listens.
pub fn address(member: &Server) -> String {
    let log = member.stderr();
    log.split("health at http://").nth(1).and_then(|rest| rest.split([' ', '"', '\n']).next()).unwrap().to_owned()
}

pub async fn http(member: &Server, path: &str) -> String {
    let (address, path) = (address(member), path.to_owned());
    let answer = tokio::task::spawn_blocking(move || devstack::http::get(address, &path, DEADLINE)).await.unwrap();
    answer.unwrap_or_else(|error| panic!("{error}: {}", member.stderr()))
}

/// Waits until the member's answer at `path` contains `text`.
pub async fn await_http(member: &Server, path: &str, text: &str) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if member.stderr().contains("health at http://") {
            let answer = http(member, path).await;
            if answer.contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "{path} never contained {text}: {answer}\n{}", member.stderr());
        }
        assert!(Instant::now() < deadline, "no endpoint: {}", member.stderr());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Checks that a running member serves every metric that the dashboard asks for.
fn assert_dashboard_is_served(metrics: &str) {
    // These appear only when something goes wrong.
    let rare = ["tallyhouse_stopped_partitions", "tallyhouse_retries_total", "tallyhouse_replays_total"];
    let dashboard = include_str!("../../grafana/dashboards/tallyhouse.json");
    let names =
        dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|n| n.starts_with("tallyhouse_"));
    let mut asked = 0;
    for name in names.filter(|name| !rare.contains(name)) {
        asked += 1;
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name} is in the dashboard, not in /metrics");
    }
    assert!(asked > 10);
}

/// Everything produced is counted, the endpoint reports it, and SIGTERM ends it with a summary and status 0.
pub async fn what_is_produced_is_counted(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(20_000);
    let member = bench.start(&[]);
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    await_http(&member, "/livez", "alive").await;
    await_http(&member, "/metrics", &format!("tallyhouse_consumed_records_total {}", ledger.produced)).await;
    await_http(&member, "/metrics", "tallyhouse_rejected_records_total{reason=\"unknown_event_type\"}").await;
    await_http(&member, "/metrics", "tallyhouse_event_to_queryable_seconds_bucket").await;
    await_http(&member, "/windows", "\"start\"").await;
    await_http(
        &member,
        "/metrics",
        &format!("tallyhouse_committed_lag_records{{partition=\"0\",topic=\"{}\"}} 0", bench.topic),
    )
    .await;
    assert_dashboard_is_served(&http(&member, "/metrics").await);
    let summary = end(&member);
    assert!(summary.contains(&format!("consumed {}, rejected {}", ledger.produced, ledger.broken)), "{summary}");
    bench.assert_exact(&ledger, "end to end").await;
}

/// SIGTERM flushes the consumed records that were not yet due.
pub async fn sigterm_flushes_what_was_consumed(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(600);
    let member = bench.start(&[("TALLYHOUSE__FLUSH__AGE_MS", "600000")]);
    await_http(&member, "/metrics", &format!("tallyhouse_consumed_records_total {}", ledger.produced)).await;
    end(&member);
    bench.assert_exact(&ledger, "after SIGTERM").await;
}

/// A restart in the middle goes on where it ended.
pub async fn a_restart_in_the_middle_is_exact(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(30_000);
    bench.consume(2_000).await;
    bench.consume(ledger.produced).await;
    bench.assert_exact(&ledger, "after a restart").await;
}

/// kill -9 after every step of a flush, early and late in the run, loses and doubles nothing. Any timing reaches the
/// third passing, as there are three partitions: a commit that carries the next intent is no `end_committed`.
pub async fn kill9_at_every_step_is_exact(url: &str, database: &str) {
    let points = [
        "committed_read",
        "batch_frozen",
        "intent_committed",
        "raw_inserted",
        "daily_inserted",
        "rejected_inserted",
        "end_committed",
    ];
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    for (number, (passing, point)) in (0..).zip(points.iter().flat_map(|point| [(1, point), (3, point)])) {
        producer.send_events(&Events::default(), number * 5_000..(number + 1) * 5_000).unwrap();
        bench.die(&[("TALLYHOUSE_FAILPOINT", &format!("{point}:{passing}"))]);
    }
    let ledger = producer.finish().unwrap();
    let member = bench.start(&[]);
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "after kill -9 at every step").await;
}

/// A second member joins, the first leaves, a third joins: nothing is lost or doubled.
pub async fn members_come_and_go(url: &str, database: &str) {
    for (suffix, assignment) in ["cooperative-sticky", "eager"].into_iter().enumerate() {
        let bench = Bench::new(url, &format!("{database}_{suffix}")).await;
        let settings = [("TALLYHOUSE__KAFKA__ASSIGNMENT", assignment)];
        let mut producer = bench.producer();
        let events = Events::default();
        producer.send_events(&events, 0..10_000).unwrap();
        let first = bench.start(&settings);
        bench.await_stored(1_000, &[&first]).await;
        let second = bench.start(&settings);
        producer.send_events(&events, 10_000..20_000).unwrap();
        await_http(&second, "/readyz", "\"ready\":true").await;
        producer.send_events(&events, 20_000..30_000).unwrap();
        end(&first);
        let third = bench.start(&settings);
        producer.send_events(&events, 30_000..40_000).unwrap();
        let ledger = producer.finish().unwrap();
        bench.await_stored(ledger.produced, &[&second, &third]).await;
        end(&second);
        end(&third);
        bench.assert_exact(&ledger, assignment).await;
    }
}

/// With ClickHouse away the service waits, says so and bounds its memory. Afterwards everything is there once.
pub async fn clickhouse_away_for_a_while(_url: &str, database: &str) {
    let clickhouse = ClickHouse::start(ClickHouseOptions::default()).unwrap();
    let bench = Bench::new(clickhouse.url(), database).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..5_000).unwrap();
    let member = bench.start(&[]);
    bench.await_stored(2_000, &[&member]).await;
    clickhouse.server().unwrap().kill9().unwrap();
    producer.send_events(&Events::default(), 5_000..20_000).unwrap();
    let ledger = producer.finish().unwrap();
    await_http(&member, "/readyz", "does not answer").await;
    let cause = format!("ClickHouse at {}/ does not answer", clickhouse.url());
    assert!(http(&member, "/readyz").await.contains(&cause));
    assert!(member.stderr().contains(&cause), "{}", member.stderr());
    let status = bench.command(&["status"]).output().unwrap();
    let told = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.code() == Some(1) && told.starts_with(&format!("WRONG: {cause}")), "{told}");
    clickhouse.server().unwrap().restart().unwrap();
    clickhouse.server().unwrap().wait_healthy(DEADLINE).unwrap();
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "after an outage of ClickHouse").await;
}

/// The service starts before ClickHouse is there, with the schema missing or with a wrong broker. It waits or ends,
/// and says why.
pub async fn what_is_missing_at_the_start_is_named(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let nobody = bench.start(&[("TALLYHOUSE__KAFKA__BROKERS", "127.0.0.1:1")]);
    await_http(&nobody, "/readyz", "Kafka at 127.0.0.1:1 does not answer").await;
    end(&nobody);
    let no_topic = bench.start(&[("TALLYHOUSE__KAFKA__TOPICS__EVENTS", "nowhere")]);
    await_http(&no_topic, "/readyz", "the topic nowhere does not exist").await;
    end(&no_topic);
    let no_database = bench.start(&[("TALLYHOUSE__CLICKHOUSE__DATABASE", "nowhere")]);
    assert_eq!(no_database.wait(DEADLINE).unwrap().code(), Some(1));
    assert!(no_database.stderr().contains("tallyhouse migrate"), "{}", no_database.stderr());
}

/// Consumption pauses at the memory limit and goes on, and nothing is lost.
pub async fn the_memory_limit_pauses_consumption(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    let email = "x".repeat(500_000);
    let event = String::from_utf8(Events { broken_percent: 0, ..Events::default() }.payload(1).bytes).unwrap();
    let event = event.replace("person", &email);
    for _ in 0..300 {
        producer.send(Some(event.as_bytes())).unwrap();
    }
    producer.finish().unwrap();
    let settings = [
        ("TALLYHOUSE__MEMORY__LIMIT_BYTES", "64MiB"),
        ("TALLYHOUSE__FLUSH__BYTES_MAX", "30MiB"),
        ("TALLYHOUSE__FLUSH__AGE_MS", "600000"),
    ];
    let member = bench.start(&settings);
    bench.await_stored(200, &[&member]).await;
    assert!(member.stderr().contains("consumption pauses"), "{}", member.stderr());
    end(&member);
    let distinct = bench.count("SELECT uniqExact(source, source_offset) FROM email_events").await;
    assert_eq!((bench.stored().await, distinct), (distinct, distinct));
    bench.consume(300).await;
    assert_eq!(bench.count("SELECT sum(total) FROM daily").await, 300);
    assert_eq!(bench.stored().await, 300);
}

/// The output of `examples/producer.py` (kept beside this file, byte for byte) is read as Python meant it.
pub async fn the_python_producers_bytes_are_read(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let payloads: Vec<&str> = include_str!("python_payloads.ndjson").lines().collect();
    let mut producer = bench.producer();
    payloads.iter().for_each(|payload| producer.send(Some(payload.as_bytes())).unwrap());
    producer.finish().unwrap();
    bench.consume(payloads.len() as u64).await;
    let mut stored: Vec<[String; 6]> = bench
        .client
        .query(
            "SELECT [toString(campaign_id), toString(workspace_id), email, toString(event_type), \
             replaceOne(toString(event_time), ' ', 'T'), metadata] FROM email_events",
        )
        .rows::<Vec<String>>()
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.try_into().unwrap())
        .collect();
    let mut wanted: Vec<[String; 6]> = payloads
        .iter()
        .map(|payload| {
            let value: serde_json::Value = serde_json::from_str(payload).unwrap();
            let text = |key: &str| value[key].as_str().unwrap().to_owned();
            let metadata = payload.split_once("\"metadata\": ").unwrap().1.strip_suffix('}').unwrap();
            let seconds = text("event_time")[..19].to_owned();
            [text("campaign_id"), text("workspace_id"), text("email"), text("event_type"), seconds, metadata.to_owned()]
        })
        .collect();
    stored.sort();
    wanted.sort();
    assert_eq!(stored, wanted);
}

/// The first and the last moment of a day count for that day.
pub async fn the_edges_of_a_day_are_that_days(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let good = String::from_utf8(Events { broken_percent: 0, ..Events::default() }.payload(1).bytes).unwrap();
    let time = good.split("\"event_time\": ").nth(1).unwrap().split(", \"metadata").next().unwrap();
    let day = &time[1..11];
    let edges = [
        format!("\"{day}T00:00:00\""),
        format!("\"{day}T23:59:59.999999\""),
        format!("\"{day}T01:30:00+02:00\""),
        format!("\"{day} 22:30:00-02:00\""),
        format!("\"{day}T12:00:00Z\""),
    ];
    let mut producer = bench.producer();
    edges.iter().for_each(|edge| producer.send(Some(good.replace(time, edge).as_bytes())).unwrap());
    producer.finish().unwrap();
    bench.consume(edges.len() as u64).await;
    let days = format!(
        "SELECT assumeNotNull((SELECT sum(total) FROM daily WHERE day = '{day}') * 100 \
         + (SELECT sum(total) FROM daily WHERE day = toDate('{day}') - 1) * 10 \
         + (SELECT sum(total) FROM daily WHERE day = toDate('{day}') + 1))"
    );
    assert_eq!(bench.count(&days).await, 311, "three on the day, one before, one after");
}

/// A member that was stopped past its session, while another took over, wakes up and writes nothing twice.
pub async fn a_zombie_that_wakes_up_doubles_nothing(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    let events = Events::default();
    producer.send_events(&events, 0..20_000).unwrap();
    let zombie = bench.start(&[]);
    bench.await_stored(2_000, &[&zombie]).await;
    zombie.stop().unwrap();
    let heir = bench.start(&[]);
    bench.await_stored(20_000, &[&zombie, &heir]).await;
    zombie.cont().unwrap();
    producer.send_events(&events, 20_000..40_000).unwrap();
    let ledger = producer.finish().unwrap();
    await_http(&zombie, "/readyz", "ready").await;
    bench.await_stored(ledger.produced, &[&zombie, &heir]).await;
    end(&heir);
    end(&zombie);
    bench.assert_exact(&ledger, "after a zombie woke up").await;
}
