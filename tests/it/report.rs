//! Tests the views for people and `tallyhouse report`, on a known set in a real ClickHouse.

use crate::schema::migrated;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use tallyhouse::clickhouse::client::Client;
use tallyhouse_core::days::Day;

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
    run(url, database, &[&["report"], arguments].concat(), None)
}

/// Runs the program, which dies at the failpoint if there is one. Returns status, standard output and standard error.
fn run(url: &str, database: &str, arguments: &[&str], failpoint: Option<&str>) -> (Option<i32>, String, String) {
    let mut command = Command::new(crate::program());
    command.env_clear().current_dir(std::env::temp_dir()).args(arguments);
    command.env("TALLYHOUSE__CLICKHOUSE__URL", url).env("TALLYHOUSE__CLICKHOUSE__DATABASE", database);
    command.envs(failpoint.map(|name| ("TALLYHOUSE_FAILPOINT", name)));
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

/// A change of the offset: its time, and the new offset, in seconds.
type Change = (i64, i64);
/// A time zone: its name, its offset at the beginning of 2026, and its changes in that year.
type Zone = (&'static str, i64, &'static [Change]);

/// The last zone changes by half an hour, and four zones do not change.
const ZONES: [Zone; 7] = [
    ("UTC", 0, &[]),
    ("Europe/Paris", 3_600, &[(1_774_746_000, 7_200), (1_792_890_000, 3_600)]),
    ("America/New_York", -18_000, &[(1_772_953_200, -14_400), (1_793_512_800, -18_000)]),
    ("Asia/Kathmandu", 20_700, &[]),
    ("Pacific/Kiritimati", 50_400, &[]),
    ("Etc/GMT+12", -43_200, &[]),
    ("Australia/Lord_Howe", 39_600, &[(1_775_314_800, 37_800), (1_791_041_400, 39_600)]),
];

const TYPES: [(&str, &str); 8] = [
    ("delivered", "delivered"),
    ("open", "opens"),
    ("click", "clicks"),
    ("bounce", "bounces"),
    ("unsubscribe", "unsubscribes"),
    ("sent", "sent"),
    ("complaint", "complaints"),
    ("deferred", "deferred"),
];

/// An event: its campaign, its type and its time.
type Event = (usize, usize, i64);
/// The counts of each day, by type.
type ByDay = BTreeMap<String, [u64; 8]>;

/// Returns random events of the three days around each change, and events at the change, at midnight there, and beside both.
fn events_around_changes() -> Vec<Event> {
    let mut dice = devstack::dice::Dice::new(20);
    let mut times = Vec::new();
    for (_, first, changes) in ZONES {
        let offsets = std::iter::once(first).chain(changes.iter().map(|(_, offset)| *offset));
        for ((change, after), before) in changes.iter().zip(offsets) {
            let midnights = [before, *after].map(|offset| (change + offset) / 86_400 * 86_400 - offset);
            let edges = [*change, midnights[0], midnights[1], midnights[1] + 86_400];
            times.extend(edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]));
            times.extend((0..100).map(|_| change - 129_600 + dice.within(0..=259_200).cast_signed()));
        }
    }
    times.into_iter().map(|time| (dice.within(0..=1) as usize, dice.within(0..=7) as usize, time)).collect()
}

fn recount(events: &[Event], first: i64, changes: &[Change]) -> ByDay {
    let mut days = ByDay::new();
    for (_, event_type, time) in events {
        let offset = changes.iter().rev().find(|(from, _)| from <= time).map_or(first, |(_, offset)| *offset);
        let day = Day::of(u32::try_from(time + offset).unwrap()).to_string();
        days.entry(day).or_default()[*event_type] += 1;
    }
    days
}

fn by_day(found: &Value) -> ByDay {
    let rows = found["rows"].as_array().unwrap().iter().filter(|row| row["kept"] == true);
    rows.map(|row| (row["day"].as_str().unwrap().to_owned(), counts_of(row))).collect()
}

fn counts_of(row: &Value) -> [u64; 8] {
    TYPES.map(|(_, name)| row.get(name).map_or(0, |count| count.as_u64().unwrap()))
}

fn sum<'d>(days: impl IntoIterator<Item = &'d [u64; 8]>) -> [u64; 8] {
    days.into_iter().fold([0; 8], |sum, day| std::array::from_fn(|n| sum[n] + day[n]))
}

/// Inserts raw rows, and their counters.
async fn store(client: &Client, rows: Vec<String>) {
    let columns = "campaign_id, workspace_id, email, event_type, event_time, source, source_offset";
    let sql = format!("INSERT INTO email_events ({columns}) SETTINGS async_insert = 0 VALUES {}", rows.join(", "));
    client.query(&sql).execute().await.unwrap();
    let counters = "INSERT INTO daily (day, event_type, campaign_id, workspace_id, source, total, end_offset) SETTINGS async_insert = 0 \
                    SELECT toDate(event_time), event_type, campaign_id, workspace_id, source, count(), max(source_offset) + 1 \
                    FROM email_events GROUP BY ALL";
    client.query(counters).execute().await.unwrap();
}

/// The counts of each zone's days are those of a plain recount over both changes of daylight saving. Days with expired rows have none.
pub async fn days_of_any_zone_are_a_recount(url: &str, database: &str) {
    let client = migrated(url, database).await;
    let events = events_around_changes();
    let row = |(n, (campaign, event_type, time)): (usize, &Event)| {
        let (campaign, event_type) = (CAMPAIGNS[*campaign], TYPES[*event_type].0);
        format!("('{campaign}', '{}', 'a@b.c', '{event_type}', {time}, 't/0@id', {n})", WORKSPACES[0])
    };
    store(&client, events.iter().enumerate().map(row).collect()).await;
    for (zone, first, changes) in ZONES {
        let found = json(url, database, &["--zone", zone]);
        let wanted = recount(&events, first, changes);
        assert_eq!(by_day(&found), wanted, "{zone}");
        assert_eq!((counts_of(&found["total"]), &found["days_not_kept"]), (sum(wanted.values()), &0.into()), "{zone}");
        let of_one = |campaign| events.iter().filter(|event| event.0 == campaign).copied().collect::<Vec<_>>();
        let (since, until) = ("2026-03-29", "2026-10-25");
        let mut wanted = recount(&of_one(1), first, changes);
        wanted.retain(|day, _| (since..=until).contains(&day.as_str()));
        let found = json(
            url,
            database,
            &["--zone", zone, "--campaign", CAMPAIGNS[1], "--since", since, "--until", until, "--by", "day"],
        );
        assert_eq!(by_day(&found), wanted, "{zone}");
    }
    // Rows expire by UTC days. Each zone but UTC has two days with a part of this one.
    client.query("ALTER TABLE email_events DROP PARTITION 20261025").execute().await.unwrap();
    for (zone, first, changes) in ZONES {
        let not_kept: &[&str] = match zone {
            "UTC" => &[],
            "America/New_York" | "Etc/GMT+12" => &["2026-10-24", "2026-10-25"],
            _ => &["2026-10-25", "2026-10-26"],
        };
        let mut wanted = recount(&events, first, changes);
        wanted.retain(|day, _| !not_kept.contains(&day.as_str()));
        let found = json(url, database, &["--zone", zone]);
        assert_eq!((by_day(&found), counts_of(&found["total"])), (wanted.clone(), sum(wanted.values())), "{zone}");
        let rows = found["rows"].as_array().unwrap().iter().filter(|row| row["kept"] == false);
        let found: Vec<&str> = rows.map(|row| row["day"].as_str().unwrap()).collect();
        assert_eq!(found, not_kept, "{zone}");
    }
    let printed = |format: &str| {
        let arguments =
            ["--zone", "Europe/Paris", "--since", "2026-10-24", "--until", "2026-10-26", "--format", format];
        let (status, output, error) = report(url, database, &arguments);
        assert_eq!(status, Some(0), "{error}");
        output.replace(database, "campaigns")
    };
    insta::assert_snapshot!("report_zone", printed("table"));
    insta::assert_snapshot!("report_zone_csv", printed("csv"));
    assert!(!printed("json").contains("rate"));
    for (arguments, said) in [
        (&["--zone", "Europe/Pari"][..], "ClickHouse knows no time zone of this name. Give an IANA name"),
        (&["--zone", "UTC') OR ('1' = '1"], "ClickHouse knows no time zone"),
        (&["--zone", "Europe/Paris", "--by", "campaign"], "leave out --by campaign"),
        (&["--zone", "Europe/Paris", "--format", "html"], "needs --campaign ID --in-depth"),
        (&["--zone", "Europe/Paris", "--campaign", CAMPAIGNS[0], "--in-depth"], "cannot be used with"),
    ] {
        let (status, _, error) = report(url, database, arguments);
        assert!(status == Some(64) && error.contains(said) && error.lines().count() <= 5, "{arguments:?}: {error}");
    }
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

/// A row of `email_events`: type, address, seconds after the start, and metadata.
type RawRow = (&'static str, &'static str, u32, &'static str);

const APPLE: &str = r#"{"user_agent": "Mozilla/5.0"}"#;
const FIREFOX: &str = r#"{"user_agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"}"#;
const GMAIL: &str = r#"{"user_agent": "Mozilla/5.0 (via ggpht.com GoogleImageProxy)"}"#;
const START: u32 = 1_795_501_800;

const RAW_ROWS: [RawRow; 16] = [
    ("delivered", "ada@gmail.com", 0, ""),
    ("delivered", "Bob@GMAIL.com", 10, ""),
    ("delivered", "cy@example.com", 20, ""),
    ("delivered", "di@example.com", 30, ""),
    ("open", "ada@gmail.com", 40, GMAIL),
    ("open", "ada@gmail.com", 7_200, FIREFOX),
    ("open", "bob@gmail.com", 5, APPLE),
    ("open", "Bob@gmail.com", 90, APPLE),
    ("open", "cy@example.com", 3_620, FIREFOX),
    // This one was never delivered: it is in no rate.
    ("open", "eve@example.com", 100, FIREFOX),
    // An event without an address is an event, and no recipient.
    ("open", "", 100, "not JSON"),
    ("click", "cy@example.com", 3_700, r#"{"url": "https://example.com/a?x=1&y=<b>"}"#),
    ("click", "cy@example.com", 3_700, r#"{"url": "https://example.com/a?x=1&y=<b>"}"#),
    ("click", "ada@gmail.com", 7_300, r#"{"nothing": 1}"#),
    ("bounce", "fay@example.com", 50, r#"{"status": "5.1.1"}"#),
    ("bounce", "guy@example.com", 50, r#"{"bounce": {"bounceType": "Transient"}}"#),
];

/// Inserts the known rows of one campaign, and one row of another.
async fn raw_rows(client: &Client) {
    for (n, (event, email, after, metadata)) in RAW_ROWS.into_iter().enumerate() {
        for campaign in &CAMPAIGNS[..if n == 0 { 2 } else { 1 }] {
            let sql = "INSERT INTO email_events (campaign_id, workspace_id, email, event_type, event_time, metadata, source, \
                       source_offset) SETTINGS async_insert = 0 VALUES (?, ?, ?, ?, fromUnixTimestamp(?), ?, 't/0@id', ?)";
            let row = client.query(sql).bind(campaign).bind(WORKSPACES[0]).bind(email).bind(event).bind(START + after);
            row.bind(metadata).bind(n as u64).execute().await.unwrap();
        }
    }
}

/// A row of `campaign_timeline`: audience ready, template ready, size, first delivery, half of the opens.
type TimelineRow = (Option<u32>, Option<u32>, Option<u64>, Option<u32>, Option<u32>);

/// Inserts messages of the lifecycle topics about the same campaign. Its audience was announced twice.
async fn announced(client: &Client) {
    for (n, (stage, after, size)) in
        [("audience_ready", -600i64, 9), ("audience_ready", -300, 8), ("template_ready", -60, 0)]
            .into_iter()
            .enumerate()
    {
        let sql = "INSERT INTO campaign_lifecycle (campaign_id, workspace_id, stage, event_time, audience_size, source, source_offset, end_offset) \
                   SETTINGS async_insert = 0 VALUES (?, ?, ?, fromUnixTimestamp(?), ?, 'a/0@id', ?, 3)";
        let row = client.query(sql).bind(CAMPAIGNS[0]).bind(WORKSPACES[0]).bind(stage).bind(i64::from(START) + after);
        row.bind(size).bind(n as u64).execute().await.unwrap();
    }
}

/// Every figure of the known rows, in JSON, in the page and in CSV. Another campaign's rows are in none of them.
pub async fn a_campaign_in_depth_is_a_recount_of_its_rows(url: &str, database: &str) {
    let client = migrated(url, database).await;
    raw_rows(&client).await;
    announced(&client).await;
    let arguments = ["--campaign", CAMPAIGNS[0], "--in-depth"];
    let found = json(url, database, &arguments);
    let is = |pointer: &str, wanted: Value| assert_eq!(found.pointer(pointer), Some(&wanted), "{pointer}: {found:#}");
    is("/rows", 16.into());
    is("/counted", 0.into());
    is("/first_delivery", START.into());
    // Of the opens after 5, 40, 90, 100, 100, 3620 and 7200 s, the fourth is the first with half of them.
    is(
        "/timeline",
        serde_json::json!({
            "audience_ready": START - 600,
            "template_ready": START - 60,
            "first_delivery": START,
            "half_of_opens": START + 100,
        }),
    );
    is("/audience_size", 8.into());
    is("/delivered_of_audience", 0.5.into());
    let view = "SELECT toUInt32(audience_ready), toUInt32(template_ready), audience_size, toUInt32(first_delivery), toUInt32(half_of_opens) \
                FROM campaign_timeline WHERE campaign_id = toUUID(?)";
    let rows: Vec<TimelineRow> = client.query(view).bind(CAMPAIGNS[0]).rows().await.unwrap();
    assert_eq!(rows, [(Some(START - 600), Some(START - 60), Some(8), Some(START), Some(START + 100))]);
    let rows: Vec<TimelineRow> = client.query(view).bind(CAMPAIGNS[1]).rows().await.unwrap();
    assert_eq!(rows, [(None, None, None, Some(START), None)]);
    is(
        "/events",
        serde_json::json!([
            {"event_type": "delivered", "events": 4, "recipients": 4},
            {"event_type": "open", "events": 7, "recipients": 5},
            {"event_type": "click", "events": 3, "recipients": 2},
            {"event_type": "bounce", "events": 2, "recipients": 2},
        ]),
    );
    // The local part counts as it was sent: Bob and bob are two. Only Bob was delivered to.
    for (name, wanted) in [
        ("delivered", 4),
        ("opened", 5),
        ("opened_unnamed", 3),
        ("clicked", 2),
        ("bounced", 2),
        ("delivered_and_opened", 3),
        ("delivered_and_opened_unnamed", 2),
        ("delivered_and_clicked", 2),
    ] {
        is(&format!("/recipients/{name}"), wanted.into());
    }
    is("/recipients/unique_open_rate", 0.75.into());
    is("/recipients/unique_open_rate_unnamed", 0.5.into());
    is("/recipients/unique_complaint_rate", 0.0.into());
    is(
        "/hours",
        serde_json::json!([
            {"hour": 0, "opens": 5, "machine_opens": 3, "clicks": 0},
            {"hour": 1, "opens": 1, "machine_opens": 0, "clicks": 2},
            {"hour": 2, "opens": 1, "machine_opens": 0, "clicks": 1},
        ]),
    );
    is(
        "/links",
        serde_json::json!([
            {"link": "https://example.com/a?x=1&y=<b>", "clicks": 2, "recipients": 1},
            {"link": "", "clicks": 1, "recipients": 1},
        ]),
    );
    is("/providers/0/provider", "other".into());
    is("/providers/1/provider", "Gmail".into());
    is("/providers/1/delivered", 2.into());
    is("/providers/1/unique_open_rate", 1.0.into());
    is("/opens_by_machine/0/rule", "".into());
    is("/opens_by_machine/0/opens", 4.into());
    is("/opens_by_machine/1/rule", "Apple Mail Privacy Protection".into());
    is("/opens_by_machine/1/opens", 2.into());
    is(
        "/bounces",
        serde_json::json!([
            {"kind": "hard", "bounces": 1, "recipients": 1},
            {"kind": "soft", "bounces": 1, "recipients": 1},
        ]),
    );
    // Of ada 40 s, of Bob 80 s, of cy one hour; without the rules' opens ada 2 h and cy one hour.
    is("/time_to_open/0/recipients", 3.into());
    is("/time_to_open/0/median_s", 80.into());
    is("/time_to_open/0/within/0", 1.into());
    is("/time_to_open/1/recipients", 2.into());
    is("/time_to_open/1/within/2", 1.into());

    let printed = |format: &str| {
        let (status, output, error) = report(url, database, &[&arguments[..], &["--format", format]].concat());
        assert_eq!(status, Some(0), "{error}");
        output
    };
    let (page, table, csv) = (printed("html"), printed("table"), printed("csv"));
    for figure in ["75.00 %", "https://example.com/a?x=1", "Apple Mail Privacy Protection", "Gmail", "16 rows"] {
        assert!(page.contains(figure) && table.contains(figure), "{figure}\n{table}");
    }
    assert!(page.contains("&amp;y=&lt;b&gt;") && !page.contains("y=<b>"));
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("src=") && !page.contains("href="));
    assert!(csv.lines().any(|line| line == "hours,1,clicks,2"), "{csv}");
    assert!([&page, &table, &csv].iter().all(|text| !text.contains('@')), "an address is shown");
    let none = ["--campaign", CAMPAIGNS[2], "--in-depth"];
    let (status, output, _) = report(url, database, &none);
    assert!(status == Some(0) && output.contains("has no rows of this campaign"), "{output}");
    for (arguments, said) in [
        (&["--in-depth"][..], "--campaign"),
        (&["--format", "html"], "needs --campaign ID --in-depth"),
        (&["--campaign", CAMPAIGNS[0], "--in-depth", "--by", "day"], "cannot be used with"),
    ] {
        let (status, _, error) = report(url, database, arguments);
        assert!(status == Some(64) && error.contains(said), "{arguments:?}: {error}");
    }
}

/// Returns the tables of the page: for each section its id, and each row as the texts of its cells.
const TABLES: &str = "[...document.querySelectorAll('section')].map(section => [section.id, \
                      [...section.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))])";

/// Returns the bars of a section's chart: for each the text of its title or of the number behind it, and its width and height.
fn bars_of(section: &str) -> String {
    format!(
        "[...document.querySelectorAll('#{section} svg rect')].map(bar => [bar.textContent || bar.nextElementSibling.textContent, \
         bar.getBBox().width, bar.getBBox().height])"
    )
}

/// Returns the texts of charts that do not fit into their chart, and the number of pixels that the page is too wide.
const TOO_WIDE: &str = "[[...document.querySelectorAll('svg text')].filter(text => text.getBBox().x < 0 || \
                        text.getBBox().x + text.getBBox().width > text.ownerSVGElement.viewBox.baseVal.width).map(text => text.textContent), \
                        document.documentElement.scrollWidth - document.documentElement.clientWidth]";

/// Returns a section's rows as the page has to show them: the named figures of each object in the JSON.
fn expected(found: &Value, list: &str, figures: &[&str]) -> Vec<Vec<String>> {
    let shown = |row: &Value, name: &&str| match &row[*name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        rate if name.ends_with("_rate") => format!("{:.2} %", rate.as_f64().unwrap() * 100.0),
        number => number.to_string(),
    };
    let rows = found[list].as_array().unwrap();
    rows.iter().map(|row| figures.iter().map(|name| shown(row, name)).collect()).collect()
}

/// A browser shows each figure of the JSON in the page's tables, draws bars in proportion to them, and asks nobody for anything else.
pub async fn a_browser_shows_the_figures_of_the_json(url: &str, database: &str) {
    let client = migrated(url, database).await;
    raw_rows(&client).await;
    announced(&client).await;
    // The chart has to shorten this link.
    let link = format!(r#"{{"url": "https://example.com/{}"}}"#, "W".repeat(80));
    let sql = "INSERT INTO email_events (campaign_id, workspace_id, event_type, event_time, metadata, source, source_offset) \
               SETTINGS async_insert = 0 VALUES (?, ?, 'click', fromUnixTimestamp(?), ?, 't/0@id', 99)";
    let row = client.query(sql).bind(CAMPAIGNS[0]).bind(WORKSPACES[0]).bind(START + 8_000);
    row.bind(link).execute().await.unwrap();
    let arguments = ["--campaign", CAMPAIGNS[0], "--in-depth"];
    let found = json(url, database, &arguments);
    let (_, html, _) = report(url, database, &[&arguments[..], &["--format", "html"]].concat());
    let file = tempfile::Builder::new().suffix(".html").tempfile().unwrap();
    std::fs::write(file.path(), html).unwrap();
    let mut browser = devstack::Browser::start().unwrap();
    let mut page = browser.open(file.path()).unwrap();
    assert_eq!(page.requested().len(), 1, "{:?}", page.requested());

    let tables: Vec<(String, Vec<Vec<String>>)> = serde_json::from_value(page.evaluate(TABLES).unwrap()).unwrap();
    let reached = ["delivered", "opened", "opened_unnamed", "clicked", "bounced", "unsubscribed"];
    let figures = [&["provider"], &reached[..], &["unique_open_rate", "unique_click_rate"]].concat();
    let mut all = found["recipients"].clone();
    all["provider"] = "all".into();
    let all = serde_json::json!({"recipients": [all]});
    let or = |rows: Vec<Vec<String>>, absent: &str| {
        let named = |mut row: Vec<String>| {
            if row[0].is_empty() {
                absent.clone_into(&mut row[0]);
            }
            row
        };
        rows.into_iter().map(named).collect::<Vec<_>>()
    };
    let [times, times_unnamed] = [0, 1].map(|which| &found["time_to_open"][which]);
    let limits = ["1 minute", "10 minutes", "1 hour", "6 hours", "1 day", "3 days", "7 days"];
    let within = limits.iter().enumerate().map(|(n, limit)| {
        vec![(*limit).to_owned(), times["within"][n].to_string(), times_unnamed["within"][n].to_string()]
    });
    let ends = [("any time", "recipients", ""), ("median", "median_s", " s"), ("nine in ten", "nine_in_ten_s", " s")];
    let ends = ends.map(|(name, figure, unit)| {
        vec![name.to_owned(), format!("{}{unit}", times[figure]), format!("{}{unit}", times_unnamed[figure])]
    });
    let time = |name: &str| {
        let seconds = found["timeline"][name].as_i64().unwrap();
        tallyhouse_core::days::utc_text(seconds * 1_000)
    };
    let timeline = [
        ("audience ready", time("audience_ready")),
        ("template ready", time("template_ready")),
        ("first delivery", time("first_delivery")),
        ("half of the opens", time("half_of_opens")),
        ("recipients of the audience", found["audience_size"].to_string()),
        ("unique delivered, as a share of the audience", "50.00 %".to_owned()),
    ];
    let timeline = timeline.map(|(name, value)| vec![name.to_owned(), value]);
    let wanted = [
        ("timeline", timeline.to_vec()),
        ("events", expected(&found, "events", &["event_type", "events", "recipients"])),
        ("recipients", [expected(&all, "recipients", &figures), expected(&found, "providers", &figures)].concat()),
        ("hours", expected(&found, "hours", &["hour", "opens", "machine_opens", "clicks"])),
        ("links", or(expected(&found, "links", &["link", "clicks", "recipients"]), "(no link in metadata)")),
        ("opens", or(expected(&found, "opens_by_machine", &["rule", "opens", "recipients"]), "(no rule)")),
        ("bounces", expected(&found, "bounces", &["kind", "bounces", "recipients"])),
        ("time_to_open", within.chain(ends).collect()),
    ];
    assert_eq!(tables, wanted.map(|(id, rows)| (id.to_owned(), rows)));

    let mut bars = |section: &str| -> Vec<(String, f64, f64)> {
        serde_json::from_value(page.evaluate(&bars_of(section)).unwrap()).unwrap()
    };
    for (section, list, figure) in
        [("recipients", "providers", "opened"), ("links", "links", "clicks"), ("opens", "opens_by_machine", "opens")]
    {
        let counts: Vec<u64> = expected(&found, list, &[figure]).iter().map(|row| row[0].parse().unwrap()).collect();
        let (drawn, most) = (bars(section), *counts.iter().max().unwrap());
        assert_eq!(drawn.len(), counts.len(), "{section}");
        let longest = drawn.iter().map(|bar| bar.1).fold(0.0, f64::max);
        for ((text, width, _), count) in drawn.into_iter().zip(counts) {
            let share = count as f64 / most as f64;
            assert!(text == count.to_string() && (width / longest - share).abs() < 0.01, "{section} {text} {width}");
        }
    }
    let drawn = bars("hours");
    let highest = drawn.iter().map(|bar| bar.2).fold(0.0, f64::max);
    let most = 5.0;
    let of_hour = |row: Vec<String>| {
        let names = ["opens", "opens by a machine", "clicks"].into_iter().zip(row[1..].to_vec());
        names
            .filter(|(_, count)| count != "0")
            .map(|(name, count)| (format!("hour {}: {count} {name}", row[0]), count))
            .collect::<Vec<_>>()
    };
    let rows = expected(&found, "hours", &["hour", "opens", "machine_opens", "clicks"]);
    let wanted: Vec<_> = rows.into_iter().flat_map(of_hour).collect();
    assert_eq!(drawn.len(), wanted.len(), "{drawn:?}");
    for ((text, _, height), (title, count)) in drawn.into_iter().zip(wanted) {
        let share = count.parse::<f64>().unwrap() / most;
        assert!(text == title && (height / highest - share).abs() < 0.01, "{title}: {text} {height} of {highest}");
    }
    assert_eq!(page.evaluate(TOO_WIDE).unwrap(), serde_json::json!([[], 0]));
}

/// A condition on the flags of a recipient.
type Holds = fn(u8) -> bool;
/// The conditions of the figures of recipients, in the order of their names below.
const FIGURES: [(&str, Holds); 9] = [
    ("recipients", |_| true),
    ("delivered", |flags| flags & 1 != 0),
    ("opened", |flags| flags & 2 != 0),
    ("clicked", |flags| flags & 4 != 0),
    ("opened_or_clicked", |flags| flags & 6 != 0),
    ("bounced", |flags| flags & 8 != 0),
    ("unsubscribed", |flags| flags & 16 != 0),
    ("complained", |flags| flags & 64 != 0),
    ("opened_or_clicked_undelivered", |flags| flags & 6 != 0 && flags & 1 == 0),
];
/// The rates of recipients: what is counted, and of whom.
const RECIPIENT_RATES: [(&str, Holds, Holds); 7] = [
    ("open_rate_of_delivered", |flags| flags & 3 == 3, |flags| flags & 1 != 0),
    ("click_rate_of_delivered", |flags| flags & 5 == 5, |flags| flags & 1 != 0),
    ("open_or_click_rate_of_delivered", |flags| flags & 1 != 0 && flags & 6 != 0, |flags| flags & 1 != 0),
    ("click_rate_of_opened", |flags| flags & 6 == 6, |flags| flags & 2 != 0),
    ("unsubscribe_rate_of_delivered", |flags| flags & 17 == 17, |flags| flags & 1 != 0),
    ("complaint_rate_of_delivered", |flags| flags & 65 == 65, |flags| flags & 1 != 0),
    ("bounce_rate_of_delivered_or_bounced", |flags| flags & 8 != 0, |flags| flags & 9 != 0),
];

/// A row of a view: its campaign or day, its numbers and its rates.
#[derive(clickhouse::Row, serde::Deserialize)]
struct Viewed {
    key: String,
    numbers: Vec<u64>,
    rates: Vec<Option<f64>>,
}

/// Every figure of recipients is a plain recount, by campaign and by the days of each zone. `repair recipients` adds them to rows that
/// were there before, once or several times. No rate is above 1.
pub async fn recipients_are_a_recount(url: &str, database: &str) {
    let client = migrated(url, database).await;
    let mut dice = devstack::dice::Dice::new(23);
    // The number of a person is its address; person 0 has none.
    let events: Vec<(u64, Event)> =
        events_around_changes().into_iter().map(|event| (dice.within(0..=60), event)).collect();
    let row = |(n, (person, (campaign, event_type, time))): (usize, &(u64, Event))| {
        let (campaign, event_type) = (CAMPAIGNS[*campaign], TYPES[*event_type].0);
        let domain = ["example.com", "Example.COM"][n % 2];
        let email = if *person == 0 { String::new() } else { format!("p{person}@{domain}") };
        format!("('{campaign}', '{}', '{email}', '{event_type}', {time}, 't/0@id', {n})", WORKSPACES[0])
    };
    store(&client, events.iter().enumerate().map(row).collect()).await;
    for arguments in [&["--dry-run"][..], &[], &["--campaign", CAMPAIGNS[1]], &[]] {
        let (status, said) = repair_recipients(url, database, arguments, None);
        assert_eq!(status, Some(0), "{said}");
        let added = client.query("SELECT count() FROM recipients").scalar_u64().await.unwrap();
        assert_eq!(added == 0, arguments == ["--dry-run"], "{arguments:?}");
    }
    let mut flags: BTreeMap<(usize, u64), u8> = BTreeMap::new();
    let mut firsts: BTreeMap<(usize, u64, usize), i64> = BTreeMap::new();
    for &(person, (campaign, event_type, time)) in events.iter().filter(|(person, _)| *person > 0) {
        *flags.entry((campaign, person)).or_default() |= 1 << event_type;
        let first = firsts.entry((campaign, person, event_type)).or_insert(time);
        *first = time.min(*first);
    }
    let found = json(url, database, &[]);
    let figures = FIGURES.map(|(name, _)| name).join(", ");
    let rates = RECIPIENT_RATES.map(|(name, ..)| name).join(", ");
    let sql = format!(
        "SELECT toString(campaign_id) AS key, [{figures}] AS numbers, [{rates}] AS rates FROM campaign_recipients ORDER BY key"
    );
    let viewed: Vec<Viewed> = client.query(&sql).rows().await.unwrap();
    for (campaign, id) in CAMPAIGNS.iter().enumerate().take(2) {
        let row = found["rows"].as_array().unwrap().iter().find(|row| row["campaign_id"] == *id).unwrap();
        let count =
            |holds: fn(u8) -> bool| flags.iter().filter(|((of, _), flags)| *of == campaign && holds(**flags)).count();
        for (place, (name, holds)) in FIGURES.into_iter().enumerate() {
            assert_eq!(row["recipients"][name], count(holds), "{name}");
            assert_eq!(viewed[campaign].numbers[place], count(holds) as u64, "{name}");
        }
        for (place, (name, part, whole)) in RECIPIENT_RATES.into_iter().enumerate() {
            let rate = count(part) as f64 / count(whole) as f64;
            let (reported, viewed) =
                (row["recipients"][name].as_f64().unwrap(), viewed[campaign].rates[place].unwrap());
            assert!(
                (0.0..=1.0).contains(&rate) && (rate - reported).abs() < 1e-9 && (rate - viewed).abs() < 1e-9,
                "{name}"
            );
        }
    }
    let total = |holds: fn(u8) -> bool| flags.values().filter(|flags| holds(**flags)).count();
    assert!(FIGURES.into_iter().all(|(name, holds)| found["total_recipients"][name] == total(holds)), "{found}");
    for (zone, first, changes) in ZONES {
        let mut wanted: BTreeMap<String, [u64; 5]> = BTreeMap::new();
        for ((.., event_type), time) in firsts.iter().filter(|((.., event_type), _)| *event_type < 5) {
            let day = recount(&[(0, 0, *time)], first, changes).into_keys().next().unwrap();
            wanted.entry(day).or_default()[*event_type] += 1;
        }
        let found = json(url, database, &["--zone", zone]);
        let rows = found["rows"].as_array().unwrap().iter().filter(|row| !row["recipients"].is_null());
        let names = ["delivered", "opened", "clicked", "bounced", "unsubscribed"];
        let count = |row: &Value| names.map(|name| row["recipients"][name].as_u64().unwrap());
        let found: BTreeMap<String, [u64; 5]> =
            rows.map(|row| (row["day"].as_str().unwrap().to_owned(), count(row))).collect();
        assert_eq!(found, wanted, "{zone}");
    }
    let sql = "SELECT toString(day) AS key, [delivered, opened, clicked, bounced, unsubscribed] AS numbers, [NULL, 0.5] AS rates FROM \
               (SELECT day, sum(delivered) AS delivered, sum(opened) AS opened, sum(clicked) AS clicked, sum(bounced) AS bounced, \
               sum(unsubscribed) AS unsubscribed FROM campaign_recipients_daily GROUP BY day)";
    let viewed: Vec<Viewed> = client.query(sql).rows().await.unwrap();
    let viewed: BTreeMap<String, Vec<u64>> = viewed.into_iter().map(|row| (row.key, row.numbers)).collect();
    let by_day = json(url, database, &["--by", "day"]);
    let rows = by_day["rows"].as_array().unwrap().iter().filter(|row| !row["recipients"].is_null());
    for row in rows {
        let day = &viewed[row["first_day"].as_str().unwrap()];
        assert_eq!((&row["recipients"]["opened"], &row["recipients"]["clicked"]), (&day[1].into(), &day[2].into()));
    }
    let printed = |arguments: &[&str]| {
        let (status, output, error) = report(url, database, arguments);
        assert_eq!(status, Some(0), "{error}");
        output.replace(database, "campaigns")
    };
    insta::assert_snapshot!("report_recipients", printed(&[]));
    insta::assert_snapshot!("report_recipients_csv", printed(&["--format", "csv"]));
    insta::assert_snapshot!(
        "report_recipients_zone",
        printed(&["--zone", "Europe/Paris", "--since", "2026-10-24", "--until", "2026-10-25"])
    );
}

/// Runs `tallyhouse repair recipients`. Returns its status, and all that it printed.
fn repair_recipients(url: &str, database: &str, arguments: &[&str], failpoint: Option<&str>) -> (Option<i32>, String) {
    let (status, output, error) = run(url, database, &[&["repair", "recipients"], arguments].concat(), failpoint);
    (status, output + &error)
}

/// Recipients that no row shows are removed where all rows of the campaign are kept, and nowhere else. A removal that was cut short is
/// completed by adding.
pub async fn wrong_recipients_are_removed_where_all_rows_are_kept(url: &str, database: &str) {
    let client = migrated(url, database).await;
    let row = |n: usize, campaign: usize, email: &str| {
        let (time, campaign) = (1_764_115_200 + n, CAMPAIGNS[campaign]);
        format!("('{campaign}', '{}', '{email}', '{}', {time}, 't/0@id', {n})", WORKSPACES[0], TYPES[n % 3].0)
    };
    let mut rows: Vec<String> = (0..30).map(|n| row(n, n % 3, &format!("p{}@example.com", n % 7))).collect();
    // An erasure has blanked a row of the second campaign, and a row of the third has expired.
    rows.push(row(30, 1, ""));
    store(&client, rows).await;
    let expired = "INSERT INTO daily (day, event_type, campaign_id, workspace_id, source, total, end_offset) SETTINGS async_insert = 0 \
                   VALUES ('2025-11-26', 'open', ?, ?, 't/0@id', 1, 32)";
    client.query(expired).bind(CAMPAIGNS[2]).bind(WORKSPACES[0]).execute().await.unwrap();
    assert_eq!(repair_recipients(url, database, &[], None).0, Some(0));
    let stored = async || -> Vec<(String, u64, u16, u32)> {
        let sql = "SELECT toString(campaign_id) AS campaign, recipient, groupBitOr(flags) AS flags, toUInt32(min(first_open)) FROM recipients \
                   GROUP BY campaign, recipient ORDER BY campaign, recipient";
        client.query(sql).rows().await.unwrap()
    };
    let right = stored().await;
    let damage = async || {
        let columns = "campaign_id, recipient, flags, first_open";
        for sql in [
            "SELECT DISTINCT campaign_id, toUInt64(7), toUInt16(2), toDateTime(9, 'UTC') FROM recipients",
            "SELECT campaign_id, max(recipient), toUInt16(16), toDateTime(10, 'UTC') FROM recipients GROUP BY campaign_id",
        ] {
            let sql = format!("INSERT INTO recipients ({columns}) SETTINGS async_insert = 0 {sql}");
            client.query(&sql).execute().await.unwrap();
        }
    };
    damage().await;
    let damaged = stored().await;
    let wrong = ["--remove-wrong"];
    let (status, said) = repair_recipients(url, database, &wrong, None);
    assert!(status == Some(2) && said.contains("nothing was changed; --yes carries it out"), "{said}");
    for (campaign, what) in [(0, "would be deleted"), (1, "left as it is"), (2, "left as it is")] {
        assert!(
            said.contains(&format!("campaign {}: 2 recipients; ", CAMPAIGNS[campaign])) && said.contains(what),
            "{said}"
        );
    }
    assert_eq!(stored().await, damaged);

    let carry_out = ["--remove-wrong", "--yes"];
    let of_first = |rows: &[(String, u64, u16, u32)]| -> Vec<_> {
        rows.iter().filter(|row| row.0 == CAMPAIGNS[0]).cloned().collect()
    };
    let (status, said) = repair_recipients(url, database, &carry_out, Some("repair_recipients_deleted"));
    assert!(status != Some(0) && of_first(&stored().await).is_empty(), "{said}");
    assert_eq!(repair_recipients(url, database, &[], None).0, Some(0));
    assert_eq!(of_first(&stored().await), of_first(&right));

    damage().await;
    let (status, said) = repair_recipients(url, database, &carry_out, None);
    assert!(status == Some(2) && said.contains("removed; 0 wrong recipients are left"), "{said}");
    let repaired = stored().await;
    assert_eq!(of_first(&repaired), of_first(&right));
    assert_eq!(repaired.len(), damaged.len() - 1, "the other campaigns stay as they are");
    let (status, said) = repair_recipients(url, database, &["--remove-wrong", "--campaign", CAMPAIGNS[0]], None);
    assert!(status == Some(0) && said.contains("nothing to remove"), "{said}");
}
