//! Checks that secrets are read and used, and never shown.

use super::*;

#[test]
fn a_wrong_file_is_told_by_place_without_quoting_it() {
    for password in [format!("\"{SECRET}"), SECRET.into(), format!("'' '{SECRET}'"), format!("'a'\n{SECRET}")] {
        let error = given(&format!("[clickhouse]\npassword = {password}\n")).error();
        let place = "file DIR/tallyhouse.toml (flag --config): cannot be read: line ";
        assert!(error.contains(place) && !error.contains(SECRET), "{error}");
    }
}

#[test]
fn secrets_come_from_files() {
    let g = given("");
    let path = g.write("password", &format!("{SECRET}\n"));
    let g = g.env("TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE", &path);
    let resolved = g.load();
    assert_eq!(resolved.config.clickhouse.password.expose(), SECRET);
    let origin = "environment TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE, from DIR/password";
    assert!(g.stable(&resolved.explain()).contains(origin));

    let g = given("");
    let path = g.write("password", SECRET);
    fs::write(g.sources.file.as_ref().unwrap(), format!("clickhouse.password_file = '{path}'")).unwrap();
    assert_eq!(g.load().config.clickhouse.password.expose(), SECRET);
    let g = g.env("TALLYHOUSE__CLICKHOUSE__PASSWORD", "");
    assert!(g.load().config.clickhouse.password.is_empty(), "a later layer wins in either form");
}

#[test]
fn a_secret_given_twice_or_unreadable_is_refused() {
    let g = given("clickhouse.password_file = 3")
        .env("TALLYHOUSE__CLICKHOUSE__PASSWORD", SECRET)
        .env("TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE", "p")
        .set("kafka.sasl.mechanism=PLAIN")
        .set("kafka.sasl.username=u")
        .set("kafka.sasl.password_file=DIR/none");
    insta::assert_snapshot!(g.error(), @r#"
    the configuration has 3 problems:
      clickhouse.password_file = 3 (file DIR/tallyhouse.toml): must be the path of a file
      clickhouse.password_file = "p" (environment TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE): give either clickhouse.password (environment TALLYHOUSE__CLICKHOUSE__PASSWORD) or clickhouse.password_file, not both
      kafka.sasl.password_file = "DIR/none" (flag --set): cannot be read: No such file or directory (os error 2)
    "#);
}

#[test]
fn secrets_are_refused_on_the_command_line() {
    let g = given("")
        .set(&format!("clickhouse.password={SECRET}"))
        .set(&format!("kafka.properties.ssl.key.pem={SECRET}"))
        .set("kafka.tls.key_password=");
    insta::assert_snapshot!(g.error(), @r"
    the configuration has 2 problems:
      clickhouse.password (flag --set): a command line shows in the process list: give it in the environment as TALLYHOUSE__CLICKHOUSE__PASSWORD, or the path of its file as clickhouse.password_file, or in the configuration file
      kafka.properties.ssl.key.pem (flag --set): a command line shows in the process list: give it in the environment, or in the configuration file
    ");
}

#[test]
fn secrets_are_used_but_never_shown() {
    let misspelt = "TALLYHOUSE__KAFKA__PROPERTIES__SASL_PASWORD";
    let resolved = full_of_secrets().env(misspelt, SECRET).load();
    assert_eq!(property(&resolved, "sasl.password").as_deref(), Some(SECRET));
    assert_eq!(property(&resolved, "ssl.key.password").as_deref(), Some(SECRET));
    for shown in [resolved.explain(), format!("{resolved:?}"), format!("{:#?}", resolved.config)] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

#[test]
fn errors_do_not_show_secrets() {
    let wrong = full_of_secrets()
        .env("TALLYHOUSE__CLICKHOUSE__PASSWRD", SECRET)
        .env("TALLYHOUSE__KAFKA__PROPERTIES", SECRET)
        .env("TALLYHOUSE__KAFKA__PROPERTIES__SSL_KEY_PASSWORD", SECRET)
        .env("TALLYHOUSE__KAFKA__SASL__MECHANISM", "")
        .env("TALLYHOUSE__KAFKA__TLS__KEY_FILE", "")
        .set(&format!("clickhouse.url=http://u:{SECRET}@h"))
        .env("TALLYHOUSE__CLICKHOUSE__PASSWORD", &format!("\0{SECRET}"));
    let error = load(&wrong.sources).unwrap_err();
    assert_eq!(error.problems.len(), 9, "{error}");
    assert!(!format!("{error}{error:?}").contains(SECRET), "{error}");
    let listed = given(&format!("clickhouse.password = ['{SECRET}']\nclickhouse.user = 3")).error();
    assert!(!listed.contains(SECRET), "{listed}");
}
