//! Checks that the example file and the configuration table agree with the keys.

use std::fmt::Write as _;
use std::path::Path;

use super::*;

/// Returns the example file: every key, commented out, under its section.
fn example() -> String {
    let mut text = String::from(
        "# Tallyhouse: every key with its default. Later layers win over this file: the environment\n\
         # (TALLYHOUSE__SECTION__KEY, such as TALLYHOUSE__KAFKA__BROKERS), then flags (--set kafka.brokers=host:9092).\n\
         # A password may be kept in a file of its own: password_file = \"/run/secrets/password\".\n",
    );
    let mut section = "";
    for key in keys() {
        let (in_section, field) = key.name.rsplit_once('.').unwrap();
        if in_section != section {
            section = in_section;
            write!(text, "\n[{section}]\n").unwrap();
        }
        let default = match key.kind {
            Kind::Bool | Kind::Integer(_) | Kind::Float(_) => key.default.to_owned(),
            Kind::Properties => "{}".to_owned(),
            _ => format!("{:?}", key.default),
        };
        write!(text, "# {}\n# Must be {}.\n#{field} = {default}\n", key.help, key.allowed()).unwrap();
    }
    text
}

/// `UPDATE=1 cargo test -p tallyhouse --lib config` writes the file again.
#[test]
fn the_example_file_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tallyhouse.toml");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, example()).unwrap();
    }
    let example = fs::read_to_string(&path).unwrap();
    assert_eq!(example, self::example(), "run again with UPDATE=1");

    let uncommented = example.lines().map(|line| match line.strip_prefix('#') {
        Some(assignment) if !assignment.starts_with(' ') => assignment,
        _ => line,
    });
    let uncommented = given(&uncommented.collect::<Vec<_>>().join("\n")).load();
    assert_eq!(format!("{:?}", uncommented.config), format!("{:?}", given(&example).load().config));
    assert_eq!(uncommented.explain().matches(" default\n").count(), 1, "only the table of properties");
}

/// Returns the table in the documentation: every key with its default, its allowed values and its help.
fn table() -> String {
    let mut text = String::from("# Configuration\n\n| key | default | must be | what it does |\n|---|---|---|---|\n");
    for key in keys() {
        let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
        let cell = |text: &str| text.replace('|', "\\|");
        writeln!(text, "| `{}` | {default} | {} | {} |", key.name, cell(&key.allowed()), cell(key.help)).unwrap();
    }
    text
}

#[test]
fn the_table_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, table()).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), table(), "run again with UPDATE=1");
}
