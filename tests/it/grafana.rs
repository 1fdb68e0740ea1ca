//! Tests dashboards and alerts on a real Prometheus and ClickHouse: an expression that is wrong, or shows nothing,
//! fails here.

use crate::service::{Bench, address, await_http, end, http};
use devstack::Prometheus;
use devstack::producer::Events;
use devstack::prometheus::promtool;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(500);

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap()
}

/// Returns the queries of a dashboard's panels, each with its panel's title.
fn asked(dashboard: &str, field: &str) -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read(dashboard)).unwrap();
    let mut asked = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap().to_owned();
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{title} says not what it shows");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        for target in panel["targets"].as_array().unwrap() {
            asked.push((title.clone(), target[field].as_str().unwrap().to_owned()));
        }
    }
    assert!(!asked.is_empty());
    asked
}

/// Returns the queries of a dashboard's annotations or variables (`field` of each that has it), with their names.
fn asked_beside(dashboard: &str, list: &str, field: &str) -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read(dashboard)).unwrap();
    let all = dashboard.pointer(&format!("/{list}/list")).unwrap().as_array().unwrap();
    let named = |one: &Value| Some((one["name"].as_str()?.to_owned(), one.pointer(field)?.as_str()?.to_owned()));
    let asked: Vec<_> = all.iter().filter_map(named).collect();
    assert!(!asked.is_empty(), "{list} ask nothing");
    asked
}

/// Returns `label_values(series, label)`, which is Grafana's own, as an expression with a series for each value.
fn values_of_variable(query: &str) -> String {
    let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
    let (series, label) = inside.rsplit_once(", ").unwrap();
    format!("count by ({label}) ({series})")
}

/// Returns the rules' fields of that name. Each stands on a line of its own.
fn of_rules(field: &str) -> Vec<String> {
    let rules = read("deploy/prometheus/alerts.yml");
    let prefix = format!("{field}: ");
    let lines = rules.lines().map(|line| line.trim().trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix(&prefix)).map(|value| value.trim().to_owned()).collect()
}

/// promtool accepts the rules, each fires and is silent where its test says, and each has its page.
pub async fn alerts_fire_and_are_silent(_url: &str, _database: &str) {
    let path = |name| file(name).to_str().unwrap().to_owned();
    promtool(&["check", "rules", &path("deploy/prometheus/alerts.yml")]).unwrap();
    promtool(&["check", "config", &path("deploy/prometheus/prometheus.yml")]).unwrap();
    promtool(&["test", "rules", &path("deploy/prometheus/alerts_test.yml")]).unwrap();
    let tests = read("deploy/prometheus/alerts_test.yml");
    let alerts = of_rules("alert");
    assert!(!alerts.is_empty());
    for alert in &alerts {
        let cases: Vec<&str> = tests.split("alertname: ").skip(1).filter(|case| case.starts_with(alert)).collect();
        assert!(cases.iter().any(|case| case.contains("exp_alerts: []")), "{alert} is never tested to be silent");
        assert!(cases.iter().any(|case| case.contains("exp_labels")), "{alert} is never tested to fire");
        assert!(file(&format!("docs/runbooks/{alert}.md")).is_file(), "{alert} has no runbook");
    }
    let severities = of_rules("severity").len();
    assert_eq!((of_rules("runbook_url").len(), severities), (alerts.len(), alerts.len()));
}

fn result_count(answer: &str) -> usize {
    let answer: Value = serde_json::from_str(answer).unwrap();
    assert_eq!(answer["status"], "success", "{answer}");
    // A quantile over no observation is NaN: the panel would be empty.
    let shown = |series: &&Value| series["value"][1] != "NaN";
    answer["data"]["result"].as_array().unwrap().iter().filter(shown).count()
}

/// Every expression of every panel and rule, and every SQL of the campaign figures, has an answer after a real run.
pub async fn every_panel_and_rule_has_an_answer(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let member = bench.start(&[]);
    await_http(&member, "/readyz", "\"ready\":true").await;
    let prometheus = Prometheus::start(&address(&member), &file("deploy/prometheus/alerts.yml")).unwrap();
    let panels = asked("grafana/dashboards/tallyhouse.json", "expr");
    let substituted =
        |text: &str| text.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$topic", ".*");
    // There are few campaigns, so that some are large enough for the panel of campaigns that bounce.
    let mut producer = bench.producer();
    producer.send_events(&Events { campaigns: 5, ..Events::default() }, 0..3_000).unwrap();
    let mut ledger = producer.finish().unwrap();
    let deadline = Instant::now() + DEADLINE;
    // Rates need two scrapes with work between them, so events go on coming until all is shown.
    loop {
        let empty: Vec<&str> = panels
            .iter()
            .filter(|(_, expression)| result_count(&prometheus.query(&substituted(expression)).unwrap()) == 0)
            .map(|(_, expression)| expression.as_str())
            .collect();
        if empty.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "panels stay empty: {empty:#?}\n{}", http(&member, "/metrics").await);
        ledger.produced += bench.produce(300).produced;
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    for expression in of_rules("expr") {
        prometheus.query(&expression).unwrap();
    }
    let dashboard = "grafana/dashboards/tallyhouse.json";
    for (name, expression) in asked_beside(dashboard, "annotations", "/expr") {
        let answer = prometheus.query(&substituted(&expression)).unwrap();
        assert!(answer.contains("\"success\""), "{name}: {answer}");
    }
    for (name, query) in asked_beside(dashboard, "templating", "/query/query") {
        let answer = prometheus.query(&values_of_variable(&substituted(&query))).unwrap();
        // A label that no series has comes out as a series without labels.
        assert!(result_count(&answer) > 0 && !answer.contains("\"metric\":{}"), "{name}: {answer}");
    }
    bench.await_stored(ledger.produced, &[&member]).await;
    bench
        .execute(
            "INSERT INTO campaign_lifecycle (campaign_id, workspace_id, stage, event_time) SETTINGS async_insert = 0 \
             SELECT campaign_id, workspace_id, 'audience_ready', event_time FROM email_events LIMIT 1",
        )
        .await;
    let dashboard = "grafana/dashboards/campaigns.json";
    let variables = asked_beside(dashboard, "templating", "/query/rawSql");
    for (title, sql) in asked(dashboard, "rawSql").into_iter().chain(variables) {
        // Grafana puts in these for all days and for the variable's All.
        let sql = sql.replace("$__dateFilter(day)", "day >= toDate('1970-01-01')");
        let sql = sql.replace("${workspace:sqlstring}", "SELECT workspace_id FROM workspace_daily");
        let rows = bench.count(&format!("SELECT count() FROM ({sql})")).await;
        assert!(rows > 0, "{title} is empty");
    }
    end(&member);
}
