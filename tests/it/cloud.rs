//! Tests the commands against an imitation of ClickHouse Cloud.
//!
//! A proxy before a plain server stands for a service with two servers. It asks views in the place of `system.tables` and
//! `system.databases`, which show the tables as Shared ones. It drops from DDL what a plain server does not know, and gives each answer
//! the name and the id of another server. The server shows everything at once, so the test proves that the setting is sent, and
//! nothing about its effect.

use crate::audit::{assert_clean, double_a_counter};
use crate::group::await_log;
use crate::operate::{check, json};
use crate::service::{Bench, await_http, end, kafka};
use crate::versions::pass_all;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

const URL: &str = "TALLYHOUSE__CLICKHOUSE__URL";

/// The service, and the requests that it got.
#[derive(Clone, Default)]
struct Service {
    url: String,
    database: String,
    requests: Arc<Mutex<Vec<String>>>,
    turns: Arc<AtomicU64>,
}

impl Service {
    fn new(url: &str, database: &str) -> Service {
        Service { url: url.to_owned(), database: database.to_owned(), ..Service::default() }
    }

    /// Lets the service answer at an address.
    fn wake(&self, listener: TcpListener) {
        let service = self.clone();
        let rewrite = move |head: &str, body: &str| {
            service.requests.lock().unwrap().push(format!("{head}{body}"));
            let turn = 1 + service.turns.fetch_add(1, Ordering::Relaxed) % 2;
            (service.rewrite(head, turn), service.rewrite(body, turn))
        };
        pass_all(listener, &self.url, Arc::new(rewrite));
    }

    fn rewrite(&self, text: &str, turn: u64) -> String {
        let id = format!("00000000-0000-0000-0000-00000000000{turn}");
        text.replace("system.tables", &format!("{}_cloud.tables", self.database))
            .replace("system.databases", &format!("{}_cloud.databases", self.database))
            .replace("displayName()", &format!("'cloud-{turn}'"))
            .replace("displayName%28%29", &format!("%27cloud-{turn}%27"))
            .replace("serverUUID()", &format!("'{id}'"))
            .replace("serverUUID%28%29", &format!("%27{id}%27"))
            .replace("ENGINE = Replicated", "ENGINE = ")
            .replace(
                "replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800",
                "non_replicated_deduplication_window = 10000",
            )
    }

    /// Returns the statements that make the views.
    fn views(&self) -> [String; 4] {
        let Service { database, .. } = self;
        let is_own = format!("database = '{database}' AND match(engine_full, '^[A-Za-z]*MergeTree')");
        let shared = "'Shared\\\\0(\\'/clickhouse/tables/{uuid}/{shard}\\', \\'{replica}\\')'";
        let full = format!(
            "replaceAll(replaceRegexpOne(engine_full, '^[A-Za-z]+', {shared}), 'non_replicated_dedup', 'replicated_dedup')"
        );
        [
            format!("CREATE DATABASE {database}"),
            format!("CREATE DATABASE {database}_cloud"),
            format!(
                "CREATE VIEW {database}_cloud.tables AS SELECT * REPLACE (if({is_own}, concat('Shared', engine), engine) AS engine, \
                 if({is_own}, {full}, engine_full) AS engine_full) FROM system.tables"
            ),
            format!(
                "CREATE VIEW {database}_cloud.databases AS SELECT * REPLACE (if(name = '{database}', 'Shared', engine) AS engine) \
                 FROM system.databases"
            ),
        ]
    }
}

/// Returns an address at which the service does not answer yet.
async fn asleep() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// Every command works on Shared tables. `run` bears a service that wakes up slowly and whose servers take turns. Each read that decides asks
/// for what every server has inserted, and no statement needs the rights of SYSTEM.
pub async fn shared_tables_are_exact(url: &str, database: &str) {
    let service = Service::new(url, database);
    let client = crate::schema::client(url, database);
    for statement in service.views() {
        client.server_query(&statement).execute().await.unwrap();
    }
    let (listener, awake) = asleep().await;
    service.wake(listener);
    let bench = Bench::with(kafka(), &awake, database, client);
    let (status, said, error) = bench.run(&["migrate"], &[]);
    assert!(status == Some(0) && said.contains("shared tables of ClickHouse Cloud"), "{said}{error}");
    let (status, report) = json(&bench, "check", &[]);
    assert_eq!(status, Some(0), "{report:#}");
    assert_eq!(["schema", "one_server", "settings"].map(|code| check(&report, code).0), ["ok", "ok", "ok"]);

    let ledger = bench.produce(3_000);
    bench.die(&[("TALLYHOUSE_FAILPOINT", "raw_inserted:2")]);
    let (listener, late) = asleep().await;
    let member = bench.start(&[(URL, &late), ("TALLYHOUSE__CLICKHOUSE__QUERY_TIMEOUT_MS", "3000")]);
    await_http(&member, "/readyz", "takes up to a minute to wake up").await;
    service.wake(listener);
    await_log(&member, "the schema fits").await;
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    assert!(!member.stderr().contains("trying again"), "{}", member.stderr());
    end(&member);
    bench.assert_exact(&ledger, "on shared tables").await;
    assert_clean(&bench, "on shared tables");
    let (status, report) = json(&bench, "status", &[]);
    assert!(status == Some(0) && report.to_string().contains("\"outlook\""), "{report:#}");
    let email = bench.rows::<String>("SELECT any(email) FROM email_events").await.remove(0);
    let (status, said, error) = bench.run(&["erase", "--email", &email, "--yes"], &[]);
    assert_eq!(status, Some(0), "{said}{error}");
    assert_eq!(bench.count(&format!("SELECT count() FROM email_events WHERE email = '{email}'")).await, 0);

    let month = bench.count("SELECT toUInt64(max(toYYYYMM(day))) FROM daily").await as u32;
    double_a_counter(&bench, month).await;
    let (status, said, error) = bench.run(&["repair", "daily", "--month", &month.to_string()], &[]);
    assert!(status == Some(1) && error.contains("shared tables of ClickHouse Cloud"), "{status:?} {said}{error}");
    let two = format!("{awake},{awake}/");
    let confirmed = [(URL, two.as_str()), ("TALLYHOUSE__CLICKHOUSE__REPLICAS_CONFIRMED", "2")];
    let (status, said, error) = bench.run(&["run"], &confirmed);
    assert!(status == Some(1) && error.contains("clickhouse.replicas_confirmed is 1"), "{status:?} {said}{error}");

    let requests = service.requests.lock().unwrap();
    let reads: Vec<_> = requests.iter().filter(|request| request.contains(" AS answer FROM (")).collect();
    assert!(
        reads.len() > 20 && reads.iter().all(|read| read.contains("select_sequential_consistency=1")),
        "{reads:#?}"
    );
    let inserts: Vec<_> = requests.iter().filter(|request| request.contains("query=INSERT+INTO+daily")).collect();
    assert!(!inserts.is_empty() && inserts.iter().all(|insert| insert.contains("insert_keeper_max_retries=1000000")));
    assert!(requests.iter().all(|request| !request.contains("SYSTEM ") && !request.contains("SYSTEM+")));
}
