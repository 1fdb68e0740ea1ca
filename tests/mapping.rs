//! Decodes payloads in the form of other producers with the presets and with the mappings of `docs/mapping.md`.
//!
//! Nothing is started here. The page's own text is the configuration, so that a mapping in it cannot be wrong.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use tallyhouse::commands::decode;
use tallyhouse::config::{self, Config, FlagValue, Sources};

const CAMPAIGN: &str = "6f9619ff-8b86-d011-b42d-00cf4fc964ff";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the TOML of a section of the page.
fn toml_of(heading: &str) -> String {
    let page = fs::read_to_string(root().join("docs/mapping.md")).unwrap();
    let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    let block = section.split("\n## ").next().unwrap().split("```toml\n").nth(1).unwrap();
    block.split("```").next().unwrap().to_owned()
}

fn config_of(toml: &str, folder: &Path) -> Config {
    let file = folder.join("tallyhouse.toml");
    fs::write(&file, toml).unwrap();
    config::load(&Sources { file: Some(file), ..Sources::default() }).unwrap().config
}

/// Returns the event's type, or the reason, of each line of a file of payloads. Every event is that of one person.
fn outcomes(config: &Config, name: &str) -> Vec<String> {
    let path = root().join("tests/payloads").join(name);
    let text = fs::read(&path).unwrap();
    let decoded = decode::read(&config.decoder(), text.as_slice(), 100).unwrap();
    let lines = decoded.json().unwrap();
    lines
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let event = &line["event"];
            if event.is_null() {
                return line["reason"].as_str().unwrap().to_owned();
            }
            assert_eq!(event["email"], "ada@example.com", "{line}");
            assert_eq!(event["campaign_id"], CAMPAIGN, "{line}");
            let time = event["event_time"].as_str().unwrap();
            assert!(["2026-11-24T06:30:00.000Z", "2026-11-24T06:29:00.000Z"].contains(&time), "{line}");
            event["event_type"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn the_pages_mappings_read_the_providers_payloads() {
    let folder = tempfile::tempdir().unwrap();
    let unknown = "unknown_event_type";
    for (heading, file, wanted) in [
        (
            "SendGrid",
            "sendgrid.ndjson",
            &[
                "sent",
                "deferred",
                "delivered",
                "open",
                "click",
                "bounce",
                "complaint",
                "unsubscribe",
                "unsubscribe",
                unknown,
                unknown,
            ][..],
        ),
        (
            "Mailgun",
            "mailgun.ndjson",
            &["sent", "delivered", "open", "click", "bounce", "deferred", "unsubscribe", "complaint", "open", unknown],
        ),
        (
            "Postmark",
            "postmark.ndjson",
            &["delivered", "bounce", "bounce", "complaint", "open", "click", "unsubscribe", unknown, unknown],
        ),
        (
            "Amazon SES",
            "ses.ndjson",
            &["sent", "delivered", "open", "click", "bounce", "complaint", "deferred", "unsubscribe", unknown, unknown],
        ),
    ] {
        let config = config_of(&toml_of(heading), folder.path());
        assert_eq!(outcomes(&config, file), wanted, "{heading}");
        // The default form reads none of them.
        let default = config_of("", folder.path());
        assert!(outcomes(&default, file).iter().all(|outcome| outcome == "missing_field"), "{heading}");
    }
}

#[test]
fn the_second_form_is_counted_by_day_and_level() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_of("[mapping]\npreset = \"level\"", folder.path());
    let path = root().join("tests/payloads/level.ndjson");
    let text = fs::read(path).unwrap();
    let decoded = decode::read(&config.decoder(), text.as_slice(), 100).unwrap().json().unwrap();
    let events: Vec<serde_json::Value> = decoded.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |line: usize, name: &str| events[line]["event"][name].as_str().unwrap();
    assert_eq!((of(0, "event_type"), of(0, "event_time")), ("open", "2025-11-26T00:00:00.000Z"));
    assert_eq!((of(0, "metadata"), of(0, "email")), ("\"opened the newsletter\"", ""));
    assert_eq!((of(1, "event_type"), of(2, "event_time")), ("click", "2025-11-27T00:00:00.000Z"));
    assert_eq!(of(0, "campaign_id"), "00000000-0000-0000-0000-000000000000");
    assert_eq!(events[3]["reason"], "unknown_event_type");
}

/// The message names the key and its origin. A key that is right is not named.
#[test]
fn a_mapping_that_cannot_work_ends_the_start() {
    let set = |key: &str, value: &str| FlagValue { key: key.into(), value: value.into(), flag: "--set".into() };
    for (key, value, said) in [
        ("mapping.preset", "mailgun", "must be one of django, level, sendgrid"),
        ("mapping.campaign_id", "=news", "the constant \"news\" is not a UUID"),
        ("mapping.event_time", "=0", "each event has a time of its own"),
        ("mapping.words", "opened=opened", "is none of delivered, open,"),
        ("mapping.email", "a..b", "has an empty name"),
        ("mapping.other_ids", "hash", "must be one of reject, uuid5"),
        ("mapping.word", "a=open", "did you mean mapping.words?"),
    ] {
        let flags = vec![set(key, value)];
        let error = config::load(&Sources { flags, ..Sources::default() }).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("(flag --set)") && error.contains(said), "{error}");
        assert!(error.starts_with("the configuration has 1 problem:"), "{error}");
    }
    let flags = vec![set("mapping.campaign_id", "=news"), set("mapping.other_ids", "uuid5")];
    assert!(config::load(&Sources { flags, ..Sources::default() }).is_ok());
}
