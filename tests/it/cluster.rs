//! Tests the cluster form of the schema on two servers, as the two shards of one cluster.
//!
//! The shards have no interserver port and no ON CLUSTER. So every statement runs on each server, and the local tables are
//! Replicated ones without replication. The Distributed tables and the views are those of `sql/cluster/`, word for word.
//! A test of its own runs `sql/cluster/` as it stands on real replicas.

use crate::audit::{assert_clean, double_a_counter};
use crate::group::await_log;
use crate::operate::{check, json};
use crate::service::{Bench, await_http, end, kafka};
use devstack::clickhouse::CLUSTER;
use devstack::producer::{Events, Ledger};
use devstack::proxy::{Proxy, Trouble};
use devstack::{ClickHouse, ClickHouseOptions, Replicas, Server, Stack};
use std::time::{Duration, Instant};
use tallyhouse::clickhouse::client::Client;
use tallyhouse::clickhouse::schema::{Form, Schema};
use tokio::sync::{Mutex, MutexGuard};

const DEADLINE: Duration = Duration::from_secs(60);

/// Tests on the replicas run one after the other, because most of them disturb a server.
static TURN: Mutex<()> = Mutex::const_new(());

/// Tables on the shared replicas `a` and `b`, with a topic of their own.
struct Shard {
    bench: Bench,
    replicas: &'static Replicas,
    database: String,
    _turn: MutexGuard<'static, ()>,
}

/// A test that fails leaves no trouble to the next one.
impl Drop for Shard {
    fn drop(&mut self) {
        for number in [0, 1] {
            let replica = self.replicas.replica(0, number);
            let proxies = [replica.fetches(), replica.keeper()];
            proxies.into_iter().flatten().for_each(Proxy::end_all);
        }
    }
}

impl Shard {
    async fn new(database: &str) -> Shard {
        Shard::of(database, Form::Cluster(CLUSTER.to_owned())).await
    }

    /// Makes tables of this form.
    async fn of(database: &str, form: Form) -> Shard {
        let _turn = TURN.lock().await;
        let replicas = Stack::shared().replicas().unwrap();
        let url = replicas.replica(0, 0).clickhouse().url();
        if form == Form::ReplicatedDatabase {
            replicas.make_replicated_database(database).unwrap();
        }
        Schema::of(&form).unwrap().migrate(&crate::schema::client(url, database)).await.unwrap();
        let bench = Bench::with(kafka(), url, database, Shard::client(url, database).await);
        Shard { bench, replicas, database: database.to_owned(), _turn }
    }

    /// Returns a client that reads the rows of this server alone.
    async fn client(url: &str, database: &str) -> Client {
        Schema::found(&crate::schema::client(url, database)).await.unwrap().0
    }

    /// Checks that each replica has every record exactly once.
    async fn assert_exact(&mut self, ledger: &Ledger, what: &str) {
        for number in [1, 0] {
            let replica = self.replicas.replica(0, number);
            self.bench.client = Shard::client(replica.clickhouse().url(), &self.database).await;
            self.bench.client.sync().await.unwrap();
            self.bench.assert_exact(ledger, &format!("{what}, replica {}", replica.name())).await;
        }
    }
}

/// Returns the statements of `tallyhouse migrate --cluster`, in a form that these servers can run.
fn statements(database: &str) -> Vec<String> {
    let plan = Schema::cluster(CLUSTER).unwrap().plan(database).unwrap();
    let code: String = plan.lines().filter(|line| !line.starts_with("--")).map(|line| format!("{line}\n")).collect();
    let path = "ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')";
    let alone = [
        (format!(" ON CLUSTER `{CLUSTER}`"), ""),
        (path.replace("{database}", database), "MergeTree"),
        (path.replace("{database}", database).replace("Replicated", "ReplicatedSumming"), "SummingMergeTree"),
        (path.replace("{database}", database).replace("Replicated", "ReplicatedAggregating"), "AggregatingMergeTree"),
        ("replicated_deduplication_window_seconds = 604800".into(), "min_age_to_force_merge_seconds = 0"),
        ("replicated_deduplication_window".into(), "non_replicated_deduplication_window"),
    ];
    let code = alone.iter().fold(code, |code, (from, to)| {
        assert!(code.contains(from), "{from} is not in the plan");
        code.replace(from, to)
    });
    assert!(!code.contains("Replicated"), "{code}");
    code.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()).map(str::to_owned).collect()
}

/// Each server reads rows of both shards: tables, published queries, views and their sums.
pub async fn two_shards_are_read_as_one(_url: &str, database: &str) {
    let shards = ClickHouse::start_cluster(2, &ClickHouseOptions::default()).unwrap();
    for shard in &shards {
        statements(database).iter().for_each(|statement| drop(shard.query(statement).unwrap()));
    }
    // One campaign is on both shards, one on the second alone; on different days.
    let [both, second] = ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"];
    let rows: [&[(&str, &str, &str, u32)]; 2] = [
        &[(both, "2026-11-24", "delivered", 8), (both, "2026-11-24", "open", 3)],
        &[(both, "2026-11-24", "delivered", 2), (both, "2026-11-25", "open", 1), (second, "2026-11-25", "bounce", 4)],
    ];
    for (number, (shard, rows)) in shards.iter().zip(rows).enumerate() {
        for (offset, (campaign, day, event_type, total)) in rows.iter().enumerate() {
            let source = format!("t/{number}@id");
            shard
                .query(&format!(
                    "INSERT INTO {database}.daily_local (day, event_type, campaign_id, workspace_id, source, total, \
                     end_offset) SETTINGS async_insert = 0 VALUES ('{day}', '{event_type}', '{campaign}', '{both}', \
                     '{source}', {total}, {offset} + 1)"
                ))
                .unwrap();
            shard
                .query(&format!(
                    "INSERT INTO {database}.email_events_local (campaign_id, workspace_id, email, event_type, event_time, \
                     source, source_offset) SETTINGS async_insert = 0 VALUES ('{campaign}', '{both}', 'a@b.c', \
                     '{event_type}', '{day} 12:00:00', '{source}', {offset})"
                ))
                .unwrap();
        }
    }
    for shard in &shards {
        let ask = |sql: &str| {
            let url = format!("{}/?database={database}", shard.url());
            ClickHouse::external(url).query(sql).unwrap()
        };
        let levels = ask("SELECT level, sum(total) AS total_count FROM daily GROUP BY level ORDER BY level");
        assert_eq!(levels, "bounce\t4\ndelivered\t10\nopen\t4");
        let opens = ask(&format!(
            "SELECT email, event_time FROM email_events WHERE campaign_id = '{both}' AND event_type = 'open' \
             ORDER BY event_time DESC"
        ));
        assert_eq!(opens, "a@b.c\t2026-11-25 12:00:00\na@b.c\t2026-11-24 12:00:00");
        // A campaign on both shards is one row, and its rates are of the sums.
        let report = "SELECT first_day, last_day, delivered, opens, open_rate, bounce_rate FROM campaign_report \
                      ORDER BY campaign_id";
        assert_eq!(ask(report), "2026-11-24\t2026-11-25\t10\t4\t0.4\t0\n2026-11-25\t2026-11-25\t0\t0\t\\N\t1");
        assert_eq!(
            ask("SELECT day, opens FROM campaign_daily WHERE opens > 0 ORDER BY day"),
            "2026-11-24\t3\n2026-11-25\t1"
        );
        assert_eq!(ask("SELECT day, campaigns FROM workspace_daily ORDER BY day"), "2026-11-24\t1\n2026-11-25\t2");
        assert_eq!(ask(&format!("SELECT count() FROM daily WHERE campaign_id = '{second}'")), "1");
    }
    // These tables are for reading: a batch that went through them would be torn apart, and its marks with it.
    let torn = format!("INSERT INTO {database}.daily (day, total) VALUES ('2026-11-24', 1)");
    let refused = shards[0].query(&torn).unwrap_err().to_string();
    assert!(refused.contains("sharding key"), "{refused}");
}

/// `migrate --cluster` makes tables on two real replicas, again without a change, and later finds their form by itself. Rows
/// of one replica show on the other. `run` refuses an address behind which both answer.
pub async fn replicas_get_the_same_tables(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let _turn = TURN.lock().await;
    let replicas = Stack::shared().replicas().unwrap();
    let [a, b] = [0, 1].map(|number| replicas.replica(0, number).clickhouse());
    let database = format!("{database}_replicas");
    let settings = [("TALLYHOUSE__CLICKHOUSE__URL", a.url()), ("TALLYHOUSE__CLICKHOUSE__DATABASE", database.as_str())];
    let named = format!("replicated tables on the cluster {CLUSTER}");
    let on_cluster: &[&str] = &["migrate", "--cluster", CLUSTER];
    for (arguments, said) in [(on_cluster, "applied "), (on_cluster, "already there"), (&["migrate"], "already there")]
    {
        let (status, output, error) = bench.run(arguments, &settings);
        assert!(status == Some(0) && output.contains(said) && output.contains(&named), "{status:?} {output}{error}");
        assert_eq!(output.contains("applied "), said == "applied ", "{output}");
    }
    let engine = format!("SELECT engine FROM system.tables WHERE database = '{database}' AND name = 'daily_local'");
    assert_eq!(b.query(&engine).unwrap(), "ReplicatedSummingMergeTree");
    let row = "(day, total, source, end_offset) VALUES ('2026-11-24', 5, 't/0', 9)";
    a.query(&format!("INSERT INTO {database}.daily_local {row}")).unwrap();
    b.query(&format!("SYSTEM SYNC REPLICA {database}.daily_local LIGHTWEIGHT")).unwrap();
    assert_eq!(b.query(&format!("SELECT sum(total), max(end_offset) FROM {database}.daily_local")).unwrap(), "5\t9");
    // A Distributed table asks one replica of each shard.
    assert_eq!(b.query(&format!("SELECT sum(total) FROM {database}.daily")).unwrap(), "5");

    // An address behind which both replicas answer is refused.
    let balancer = Proxy::new(0).unwrap();
    balancer.lead_to_each(&[a, b].map(|replica| replica.http_addr().unwrap().parse().unwrap()));
    let balanced = format!("http://{}", balancer.address());
    let both = [("TALLYHOUSE__CLICKHOUSE__URL", balanced.as_str()), settings[1]];
    let (status, _, log) = bench.run(&["run"], &both);
    assert!(status == Some(1) && log.contains("different ClickHouse servers answer"), "{status:?} {log}");
    // Several servers must be replicas.
    let plain = format!("{url},http://127.0.0.1:1");
    let (status, _, log) = bench.run(&["run"], &[("TALLYHOUSE__CLICKHOUSE__URL", plain.as_str())]);
    assert!(status == Some(1) && log.contains("its tables are not replicated"), "{status:?} {log}");
    a.query(&format!("DROP DATABASE {database} ON CLUSTER {CLUSTER} SYNC")).unwrap();
}

/// A member writes through one replica, which loses Keeper for a while. It waits and names the replica, and both replicas have
/// everything once. `check`, `status` and `audit` accept the form.
pub async fn a_member_counts_on_replicas(_url: &str, database: &str) {
    let mut shard = Shard::new(database).await;
    let bench = &shard.bench;
    let (status, report) = json(bench, "check", &[]);
    assert_eq!((status, check(&report, "schema").0.as_str()), (Some(0), "ok"), "{report:#}");
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..3_000).unwrap();
    let member = bench.start(&[("TALLYHOUSE__CLICKHOUSE__INSERT_TIMEOUT_MS", "3000")]);
    bench.await_stored(2_000, &[&member]).await;

    let keeper = shard.replicas.replica(0, 0).keeper().unwrap();
    let cut = keeper.begin(Trouble::Cut, 100);
    producer.send_events(&Events::default(), 3_000..6_000).unwrap();
    let ledger = producer.finish().unwrap();
    let named = "the replica \\\"1-a\\\" at ";
    await_http(&member, "/readyz", named).await;
    keeper.end(cut);
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    shard.assert_exact(&ledger, "after Keeper was away").await;
    assert_clean(&shard.bench, "after Keeper was away");
    let (status, report) = json(&shard.bench, "status", &[]);
    assert_eq!(status, Some(0), "{report:#}");
    assert!(report.to_string().contains("\"outlook\""), "{report:#}");
}

/// Returns the setting of all replicas' addresses in order of preference.
fn in_order(shard: &Shard) -> (&'static str, String) {
    let url = |number| shard.replicas.replica(0, number).clickhouse().url();
    ("TALLYHOUSE__CLICKHOUSE__URL", format!("{},{}", url(0), url(1)))
}

/// Waits until a member uses this replica.
async fn await_use(shard: &Shard, member: &Server, number: usize) {
    let url = shard.replicas.replica(0, number).clickhouse().url();
    await_http(member, "/metrics", &format!("tallyhouse_clickhouse_server_in_use{{server=\"{url}/\"}} 1")).await;
}

/// A member changes to the second server when the preferred one dies, and returns to it. Then the preferred one dies in the middle
/// of batches, with parts that nobody else has.
pub async fn a_member_changes_to_the_next_server_and_back(_url: &str, database: &str) {
    let mut shard = Shard::new(database).await;
    let (key, urls) = in_order(&shard);
    let [a, b] = [0, 1].map(|number| shard.replicas.replica(0, number).clickhouse());
    let mut producer = shard.bench.producer();
    producer.send_events(&Events::default(), 0..2_000).unwrap();
    let member = shard.bench.start(&[(key, &urls), ("TALLYHOUSE__CLICKHOUSE__QUERY_TIMEOUT_MS", "3000")]);
    await_use(&shard, &member, 0).await;
    shard.bench.await_stored(2_000, &[&member]).await;

    shard.bench.client = Shard::client(b.url(), database).await;
    shard.bench.client.sync().await.unwrap();
    a.server().unwrap().kill9().unwrap();
    producer.send_events(&Events::default(), 2_000..4_000).unwrap();
    shard.bench.await_stored(4_000, &[&member]).await;
    await_use(&shard, &member, 1).await;
    let (status, report) = json(&shard.bench, "status", &[(key, &urls)]);
    assert_eq!(status, Some(0), "{report:#}");

    // While the preferred server is back and lacks rows, it is not used.
    let fetches = shard.replicas.replica(0, 1).fetches().unwrap();
    let cut = fetches.begin(Trouble::Cut, 100);
    a.server().unwrap().restart().unwrap();
    a.server().unwrap().wait_healthy(DEADLINE).unwrap();
    await_log(&member, "is not used: the replica \"1-a\" at ").await;
    await_use(&shard, &member, 1).await;
    fetches.end(cut);
    await_use(&shard, &member, 0).await;
    producer.send_events(&Events::default(), 4_000..20_000).unwrap();
    a.server().unwrap().kill9().unwrap();
    a.server().unwrap().restart().unwrap();
    a.server().unwrap().wait_healthy(DEADLINE).unwrap();
    let ledger = producer.finish().unwrap();
    shard.bench.await_stored(ledger.produced, &[&member]).await;
    end(&member);
    shard.assert_exact(&ledger, "after a replica died twice").await;
}

/// `migrate`, `run` and the other commands work in a database with the engine Replicated. The preferred server dies in the middle of
/// batches and comes back.
pub async fn a_replicated_database_is_exact(_url: &str, database: &str) {
    let mut shard = Shard::of(database, Form::ReplicatedDatabase).await;
    let (key, urls) = in_order(&shard);
    let a = shard.replicas.replica(0, 0).clickhouse();
    let (status, said, error) = shard.bench.run(&["migrate"], &[]);
    assert!(status == Some(0) && said.contains("in a Replicated database"), "{said}{error}");
    let (status, report) = json(&shard.bench, "check", &[(key, &urls)]);
    let seen = ["schema", "replicas", "settings", "one_server"].map(|code| check(&report, code).0);
    assert_eq!((status, seen), (Some(0), ["ok"; 4].map(str::to_owned)), "{report:#}");
    let mut producer = shard.bench.producer();
    producer.send_events(&Events::default(), 0..2_000).unwrap();
    let member = shard.bench.start(&[(key, &urls), ("TALLYHOUSE__CLICKHOUSE__QUERY_TIMEOUT_MS", "3000")]);
    await_use(&shard, &member, 0).await;
    shard.bench.await_stored(1_000, &[&member]).await;
    shard.bench.client = Shard::client(shard.replicas.replica(0, 1).clickhouse().url(), database).await;
    a.server().unwrap().kill9().unwrap();
    producer.send_events(&Events::default(), 2_000..4_000).unwrap();
    await_use(&shard, &member, 1).await;
    a.server().unwrap().restart().unwrap();
    a.server().unwrap().wait_healthy(DEADLINE).unwrap();
    await_use(&shard, &member, 0).await;
    producer.send_events(&Events::default(), 4_000..6_000).unwrap();
    let ledger = producer.finish().unwrap();
    shard.bench.await_stored(ledger.produced, &[&member]).await;
    end(&member);
    shard.assert_exact(&ledger, "in a Replicated database").await;
    assert_clean(&shard.bench, "in a Replicated database");
    let (status, report) = json(&shard.bench, "status", &[(key, &urls)]);
    assert!(status == Some(0) && report.to_string().contains("\"outlook\""), "{report:#}");
}

/// Two members write through different replicas, which lag behind each other. One dies in a batch. The other completes it on its own
/// replica, once that has all rows.
pub async fn members_on_different_replicas_are_exact(_url: &str, database: &str) {
    let mut shard = Shard::new(database).await;
    let url = |number| [("TALLYHOUSE__CLICKHOUSE__URL", shard.replicas.replica(0, number).clickhouse().url())];
    let mut lags = Vec::new();
    for number in [0, 1] {
        let fetches = shard.replicas.replica(0, number).fetches().unwrap();
        lags.push((fetches, fetches.begin(Trouble::Delay(Duration::from_millis(300)), 100)));
    }
    let (mut producer, mut sent) = (shard.bench.producer(), 0);
    for step in ["raw_inserted", "daily_inserted"] {
        producer.send_events(&Events::default(), sent..sent + 3_000).unwrap();
        let fetches = shard.replicas.replica(0, 0).fetches().unwrap();
        let cut = fetches.begin(Trouble::Cut, 100);
        shard.bench.die(&[url(0)[0], ("TALLYHOUSE_FAILPOINT", step)]);
        // The other replica has nothing of the batch, and would acknowledge a repeat.
        let lagging = shard.bench.start(&[url(1)[0], ("TALLYHOUSE__CLICKHOUSE__QUERY_TIMEOUT_MS", "2000")]);
        await_log(&lagging, "does not have all rows").await;
        fetches.end(cut);
        let members = [lagging, shard.bench.start(&url(0))];
        sent += 6_000;
        producer.send_events(&Events::default(), sent - 3_000..sent).unwrap();
        shard.bench.await_stored(sent, &[&members[0], &members[1]]).await;
        members.iter().for_each(|member| drop(end(member)));
    }
    let ledger = producer.finish().unwrap();
    lags.into_iter().for_each(|(fetches, lag)| fetches.end(lag));
    shard.assert_exact(&ledger, "members on both replicas").await;
}

/// A replica that lags does not show the last migration nor the recipients' key yet. A member waits for it, and does not ask for `migrate`.
pub async fn a_replica_that_lacks_the_last_migration_is_waited_for(_url: &str, database: &str) {
    let mut shard = Shard::new(database).await;
    let [a, b] = [0, 1].map(|number| shard.replicas.replica(0, number).clickhouse());
    for table in ["schema_migrations", "recipient_key"] {
        a.query(&format!("TRUNCATE TABLE {database}.{table}_local SETTINGS alter_sync = 2")).unwrap();
    }
    let fetches = shard.replicas.replica(0, 0).fetches().unwrap();
    let cut = fetches.begin(Trouble::Cut, 100);
    let (status, said, error) = shard.bench.run(&["migrate"], &[]);
    assert!(status == Some(0) && said.contains("applied "), "{said}{error}");
    let settings = [("TALLYHOUSE__CLICKHOUSE__URL", b.url()), ("TALLYHOUSE__CLICKHOUSE__QUERY_TIMEOUT_MS", "2000")];
    let member = shard.bench.start(&settings);
    await_log(&member, "schema_migrations_local").await;
    fetches.end(cut);
    let mut producer = shard.bench.producer();
    producer.send_events(&Events::default(), 0..300).unwrap();
    let ledger = producer.finish().unwrap();
    shard.bench.await_stored(ledger.produced, &[&member]).await;
    assert!(!member.stderr().contains("tallyhouse migrate"), "{}", member.stderr());
    end(&member);
    shard.assert_exact(&ledger, "after a migration came late").await;
}

/// With `clickhouse.replicas_confirmed = 2`, the end of a batch is not committed while only one replica has its rows. The disk of
/// that replica is lost then, and the member inserts nothing before older inserts are over. The batch is inserted again on the other one.
pub async fn a_lost_disk_loses_nothing_that_was_committed(_url: &str, database: &str) {
    let mut shard = Shard::new(database).await;
    let (key, urls) = in_order(&shard);
    let settings = [
        (key, urls.as_str()),
        ("TALLYHOUSE__CLICKHOUSE__REPLICAS_CONFIRMED", "2"),
        ("TALLYHOUSE__CLICKHOUSE__INSERT_TIMEOUT_MS", "1000"),
        ("TALLYHOUSE__CLICKHOUSE__QUERY_TIMEOUT_MS", "3000"),
    ];
    let [a, b] = [0, 1].map(|number| shard.replicas.replica(0, number).clickhouse());
    let mut producer = shard.bench.producer();
    producer.send_events(&Events::default(), 0..1_000).unwrap();
    let member = shard.bench.start(&settings);
    shard.bench.await_stored(1_000, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;

    let fetches = shard.replicas.replica(0, 0).fetches().unwrap();
    let cut = fetches.begin(Trouble::Cut, 100);
    producer.send_events(&Events::default(), 1_000..2_000).unwrap();
    await_http(&member, "/readyz", "no second replica confirms a batch").await;
    shard.bench.client = Shard::client(b.url(), database).await;
    let raw = "SELECT count() FROM email_events";
    let before = shard.bench.count(raw).await;
    a.server().unwrap().kill9().unwrap();
    fetches.end(cut);
    // Until its session has expired, Keeper takes the dead replica for an active one.
    let (drop, deadline) = (format!("SYSTEM DROP REPLICA 'a' FROM DATABASE {database}"), Instant::now() + DEADLINE);
    while let Err(error) = b.query(&drop) {
        assert!(error.to_string().contains("it's active") && Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    await_http(&member, "/readyz", "parts of the tables were lost with a replica").await;
    assert!(shard.bench.count(raw).await <= before + 1_000);
    member.kill9().unwrap();
    shard.bench.bury();
    // One replica is left, so no second one can confirm. This member starts after the loss.
    let ledger = producer.finish().unwrap();
    let member = shard.bench.start(&[(key, b.url())]);
    shard.bench.await_stored(ledger.produced, &[&member]).await;
    end(&member);
    shard.bench.assert_exact(&ledger, "after a disk was lost").await;
    a.server().unwrap().restart().unwrap();
    a.server().unwrap().wait_healthy(DEADLINE).unwrap();
}

/// `repair daily` counts a month again through one replica, beside a member that inserts through the other one. A second repair changes
/// nothing. On a cluster, another repair dies after its swap and is taken over through the other replica.
pub async fn a_repair_on_replicas_is_exact(_url: &str, database: &str) {
    let mut shard = Shard::of(database, Form::ReplicatedDatabase).await;
    let replicas = shard.replicas;
    let [a, b] = [0, 1].map(|number| replicas.replica(0, number).clickhouse());
    // The constraint stays for both of these and a session. No sender is stopped here, so a second takes the place of 30.
    let insert_timeout = ("TALLYHOUSE__CLICKHOUSE__INSERT_TIMEOUT_MS", "1000");
    let receive_timeout = ("TALLYHOUSE_RECEIVE_TIMEOUT_MS", "1000");
    let [through_a, through_b] =
        [a, b].map(|server| [("TALLYHOUSE__CLICKHOUSE__URL", server.url()), insert_timeout, receive_timeout]);
    let killed_database = format!("{database}_killed");
    Schema::cluster(CLUSTER).unwrap().migrate(&crate::schema::client(a.url(), &killed_database)).await.unwrap();
    let client = Shard::client(a.url(), &killed_database).await;
    let mut killed = Bench::with(kafka(), a.url(), &killed_database, client);
    let fetches = replicas.replica(0, 1).fetches().unwrap();
    let month = async |bench: &Bench| bench.count("SELECT toUInt64(max(toYYYYMM(day))) FROM daily").await as u32;

    let beside_a_member = async {
        let bench = &shard.bench;
        let mut producer = bench.producer();
        producer.send_events(&Events::default(), 0..600).unwrap();
        let member = bench.start(&through_b);
        bench.await_stored(600, &[&member]).await;
        let month = month(bench).await;
        double_a_counter(bench, month).await;
        // The repair counts on `a`, which gets the rows of the member late.
        let lag = fetches.begin(Trouble::Delay(Duration::from_millis(200)), 100);
        producer.send_events(&Events::default(), 600..1_200).unwrap();
        let repair = ["repair", "daily", "--month", &month.to_string()];
        let (status, said) = bench.run_beside(&repair, &through_a).await;
        let is_repaired = said.contains("stands for another 8 s") && said.contains("0 counters differ now");
        assert!(status == Some(0) && is_repaired, "{status:?} {said}");
        fetches.end(lag);
        let ledger = producer.finish().unwrap();
        bench.await_stored(ledger.produced, &[&member]).await;
        end(&member);
        let (status, said) = bench.run_beside(&repair, &through_a).await;
        assert!(status == Some(0) && said.contains(": 0 counters differ") && !said.contains("stands"), "{said}");
        ledger
    };
    let taken_over = async {
        let ledger = killed.produce(600);
        killed.consume_with(ledger.produced, &through_a).await;
        let month = month(&killed).await;
        double_a_counter(&killed, month).await;
        let repair = ["repair", "daily", "--month", &month.to_string()];
        let dying = [&through_a[..], &[("TALLYHOUSE_FAILPOINT", "repair_swapped")]].concat();
        let (status, said) = killed.run_beside(&repair, &dying).await;
        assert_eq!(status, None, "{said}");
        let late = format!("INSERT INTO {killed_database}.daily_local (day, total) SELECT toDate('{month}01'), 1");
        let refused = b.query(&late).unwrap_err().to_string();
        assert!(refused.contains("VIOLATED_CONSTRAINT"), "{refused}");
        let (status, said) = killed.run_beside(&repair, &through_b).await;
        let is_clean = said.contains("dropped the table") && said.contains("dropped the constraint");
        assert!(status == Some(0) && is_clean && said.contains(": 0 counters differ"), "{status:?} {said}");
        ledger
    };
    let (ledger, killed_ledger) = tokio::join!(beside_a_member, taken_over);
    for bench in [&shard.bench, &killed] {
        let (status, said) = bench.run_beside(&["audit"], &through_b).await;
        assert_eq!(status, Some(0), "{said}");
    }
    shard.assert_exact(&ledger, "after a repair").await;
    for server in [a, b] {
        killed.client = Shard::client(server.url(), &killed_database).await;
        killed.client.sync().await.unwrap();
        killed.assert_exact(&killed_ledger, "after a repair that was killed").await;
    }

    // A replica that is away could come back without the constraint.
    let keeper = replicas.replica(0, 1).keeper().unwrap();
    let cut = keeper.begin(Trouble::Cut, 100);
    let repair = ["repair", "daily", "--month", &month(&killed).await.to_string()];
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (status, said) = killed.run_beside(&repair, &through_a).await;
        if said.contains("1 of the 2 replicas of daily are active") {
            assert_eq!(status, Some(1), "{said}");
            break;
        }
        assert!(status == Some(0) && Instant::now() < deadline, "{status:?} {said}");
    }
    keeper.end(cut);
}
