//! Tests the views for people and `tallyhouse report`, on a known set in a real ClickHouse.

use crate::schema::migrated;
use serde_json::Value;
use std::process::Command;
use tallyhouse::clickhouse::client::Client;

const WORKSPACES: [&str; 2] = ["00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"];
const CAMPAIGNS: [&str; 3] = [
    "00000000-0000-0000-0000-000000000001",
    "00000000-0000-0000-0000-000000000002",
    "00000000-0000-0000-0000-000000000003",
];

/// Inserts two campaigns of one workspace on two days, in unmerged rows of two sources, and one of another of which
/// all bounced.
///
/// No two rows are the same insert: without a token ClickHouse drops the second as a repetition.
async fn known_set(client: &Client) {
    for (day, event, campaign, workspace, source, total) in [
        ("2026-11-01", "delivered", 0, 0, "t/0@id", 600),
        ("2026-11-01", "delivered", 0, 0, "t/1@id", 400),
        ("2026-11-01", "open", 0, 0, "t/0@id", 250),
        ("2026-11-01", "click", 0, 0, "t/0@id", 50),
        ("2026-11-01", "bounce", 0, 0, "t/1@id", 20),
        ("2026-11-02", "open", 0, 0, "t/0@id", 75),
        ("2026-11-02", "unsubscribe", 0, 0, "t/0@id", 4),
        ("2026-11-02", "delivered", 1, 0, "t/0@id", 3),
        ("2026-11-02", "open", 1, 0, "t/0@id", 4),
        ("2026-11-02", "bounce", 2, 1, "t/0@id", 7),
        ("2026-11-02", "unsubscribe", 2, 1, "t/0@id", 1),
    ] {
        let sql = "INSERT INTO daily (day, event_type, campaign_id, workspace_id, source, total, end_offset) \
                   SETTINGS async_insert = 0 VALUES (?, ?, ?, ?, ?, ?, 0)";
        let row = client.query(sql).bind(day).bind(event).bind(CAMPAIGNS[campaign]).bind(WORKSPACES[workspace]);
        row.bind(source).bind(total).execute().await.unwrap();
    }
}

/// Returns status, standard output and standard error.
fn report(url: &str, database: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(crate::program());
    command.env_clear().current_dir(std::env::temp_dir()).arg("report").args(arguments);
    command.env("TALLYHOUSE__CLICKHOUSE__URL", url).env("TALLYHOUSE__CLICKHOUSE__DATABASE", database);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn json(url: &str, database: &str, arguments: &[&str]) -> Value {
    let (status, output, error) = report(url, database, &[&["--format", "json"], arguments].concat());
    assert_eq!(status, Some(0), "{error}");
    serde_json::from_str(&output).unwrap()
}

/// The test reads the three forms of the whole set, and each filter.
pub async fn the_report_is_the_known_set(url: &str, database: &str) {
    known_set(&migrated(url, database).await).await;
    let printed = |arguments: &[&str]| {
        let (status, output, error) = report(url, database, arguments);
        assert_eq!(status, Some(0), "{error}");
        output.replace(database, "campaigns")
    };
    insta::assert_snapshot!("report_by_campaign", printed(&[]));
    insta::assert_snapshot!("report_by_day", printed(&["--by", "day", "--workspace", WORKSPACES[0]]));
    insta::assert_snapshot!("report_csv", printed(&["--format", "csv"]));
    insta::assert_snapshot!("report_csv_by_day", printed(&["--format", "csv", "--by", "day"]));
    insta::assert_snapshot!(
        "report_json",
        printed(&["--format", "json", "--since", "2026-11-02", "--campaign", CAMPAIGNS[0]])
    );
    let delivered = |arguments: &[&str]| json(url, database, arguments)["total"]["delivered"].as_u64().unwrap();
    for (arguments, wanted) in [
        (&[][..], 1_003),
        (&["--until", "2026-11-01"], 1_000),
        (&["--since", "2026-11-02"], 3),
        (&["--campaign", CAMPAIGNS[1]], 3),
        (&["--workspace", WORKSPACES[0], "--campaign", CAMPAIGNS[0]], 1_000),
        (&["--workspace", WORKSPACES[1]], 0),
        (&["--since", "2026-11-03"], 0),
    ] {
        assert_eq!(delivered(arguments), wanted, "{arguments:?}");
    }
    assert!(printed(&["--since", "2027-01-01"]).contains("no events counted"));
}

type Rates = (String, Option<f64>, Option<f64>, Option<f64>, Option<f64>, Option<f64>);

/// The view's rates are the report's, both other views add up to the same, and every column has its description.
pub async fn the_views_count_as_the_report_does(url: &str, database: &str) {
    let client = migrated(url, database).await;
    known_set(&client).await;
    let sql = "SELECT toString(campaign_id), open_rate, click_rate, click_to_open_rate, bounce_rate, unsubscribe_rate \
               FROM campaign_report ORDER BY delivered DESC";
    let viewed: Vec<Rates> = client.query(sql).rows().await.unwrap();
    let viewed: Vec<Rates> = viewed.into_iter().map(rounded).collect();
    let reported = json(url, database, &[]);
    let reported: Vec<Rates> = reported["rows"].as_array().unwrap().iter().map(|row| rounded(rates(row))).collect();
    assert_eq!(viewed, reported);
    let open_rate = 0.325;
    assert_eq!((viewed.len(), viewed[0].1, viewed[2].1), (3, Some(open_rate), None));
    for view in ["campaign_daily", "workspace_daily", "campaign_report"] {
        let sql = format!("SELECT sum(delivered + opens + clicks + bounces + unsubscribes) FROM {view}");
        assert_eq!(client.query(&sql).scalar_u64().await.unwrap(), 1_414, "{view}");
        let sql = "SELECT count() FROM system.columns WHERE database = ? AND table = ? AND comment = ''";
        assert_eq!(client.query(sql).bind(database).bind(view).scalar_u64().await.unwrap(), 0, "{view}");
    }
    let sql = "SELECT sum(campaigns) FROM workspace_daily WHERE day = '2026-11-02'";
    assert_eq!(client.query(sql).scalar_u64().await.unwrap(), 3);
}

/// Rounds the rates: serde_json reads a number up to one bit beside the written one.
fn rounded((campaign, open, click, click_to_open, bounce, unsubscribe): Rates) -> Rates {
    let round = |rate: Option<f64>| rate.map(|rate| (rate * 1e9).round() / 1e9);
    (campaign, round(open), round(click), round(click_to_open), round(bounce), round(unsubscribe))
}

fn rates(row: &Value) -> Rates {
    let rate = |name: &str| row[name].as_f64();
    let campaign = row["campaign_id"].as_str().unwrap().to_owned();
    let (open, click, click_to_open) = (rate("open_rate"), rate("click_rate"), rate("click_to_open_rate"));
    (campaign, open, click, click_to_open, rate("bounce_rate"), rate("unsubscribe_rate"))
}

/// A text that is no UUID or no day, and days in the wrong order, end with 64 and name it. Missing views say what to
/// run.
pub async fn a_report_that_cannot_be_made_says_why(url: &str, database: &str) {
    for (arguments, said) in [
        (&["--workspace", "1' OR '1'='1"][..], "--workspace"),
        (&["--campaign", "12"], "--campaign"),
        (&["--since", "2026-11-31"], "write it as 2026-11-24"),
        (&["--until", "yesterday"], "write it as 2026-11-24"),
        (&["--since", "2026-11-02", "--until", "2026-11-01"], "--since 2026-11-02 is after --until 2026-11-01"),
        (&["--by", "week"], "campaign, day"),
    ] {
        let (status, _, error) = report(url, database, arguments);
        assert!(status == Some(64) && error.contains(said), "{arguments:?}: {status:?} {error}");
    }
    let client = migrated(url, database).await;
    client.query("DROP VIEW campaign_daily").execute().await.unwrap();
    let (status, _, error) = report(url, database, &[]);
    assert!(status == Some(1) && error.contains("tallyhouse migrate"), "{status:?} {error}");
}
