//! Runs the real binary, as a person does.

use std::process::{Command, Output};

/// Runs `tallyhouse` in a clean environment, in which it finds no configuration file.
fn tallyhouse(arguments: &[&str]) -> Output {
    let mut command = Command::new(crate::program());
    command.env_clear().current_dir(std::env::temp_dir()).args(arguments).output().unwrap()
}

/// Runs the same as [`tallyhouse`], with a password.
fn with_password(arguments: &[&str]) -> Output {
    let mut command = Command::new(crate::program());
    command.env_clear().env("TALLYHOUSE__CLICKHOUSE__PASSWORD", "s3cret");
    command.current_dir(std::env::temp_dir()).args(arguments).output().unwrap()
}

fn error_of(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// `migrate` makes the tables, says so, and the second time finds them there. `--dry-run` touches nothing.
pub async fn migrate_makes_the_tables_once(url: &str, database: &str) {
    let (url, database) = (format!("clickhouse.url={url}"), format!("clickhouse.database={database}"));
    let migrate = ["migrate", "--set", &url, "--set", &database];
    let plan = tallyhouse(&[&migrate[..], &["--dry-run"]].concat());
    assert!(plan.status.success() && String::from_utf8_lossy(&plan.stdout).contains("CREATE TABLE"));
    for said in ["applied ", "already there"] {
        let output = tallyhouse(&migrate);
        assert!(output.status.success(), "{}", error_of(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains(said), "{output:?}");
    }
}

/// A wrong key, a wrong value, a wrong password and a server that is not there each get one clear message, and no
/// secret.
pub async fn mistakes_get_one_clear_message(url: &str, _database: &str) {
    let url = format!("clickhouse.url={url}");
    let cases: [(&[&str], i32, &str); 5] = [
        (&["--set", "kafka.broker=x"], 64, "kafka.broker"),
        (&["--set", "flush.age_ms=never"], 64, "flush.age_ms"),
        (&["--set", &url, "--set", "clickhouse.user=nobody"], 1, "nobody"),
        (&["--set", "clickhouse.password=s3cret"], 64, "process list"),
        (&["--set", "clickhouse.url=http://127.0.0.1:1"], 1, "http://127.0.0.1:1"),
    ];
    for (settings, status, said) in cases {
        let output = with_password(&[&["migrate"], settings].concat());
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(status), "{settings:?}: {error}");
        assert!(error.contains(said) && !error.contains("s3cret"), "{settings:?}: {error}");
    }
}

/// `config explain` names values and their origins and hides secrets.
pub async fn explain_hides_secrets(_url: &str, _database: &str) {
    let output = with_password(&["config", "explain", "--set", "clickhouse.database=other"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("clickhouse-writer") && text.contains("--set"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}
