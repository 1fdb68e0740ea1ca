//! Shows the configuration as a table for people: each key, its value, and the origin of the value.
//!
//! Secrets are masked when the rows are made, so that no row can leak one.

use toml::Value;

use super::Resolved;
use super::kafka_properties::is_secret;
use super::keys::{Kind, show};
use super::layers::{PROPERTY_PREFIX, Settings};
use super::schema::{find, keys};
use super::secret::mask;

/// A line of the table: key, value and origin.
pub(super) type Row = [String; 3];

/// Returns one row for each key. For the table of properties it returns one row for each entry, if it has any.
pub(super) fn rows(settings: &Settings) -> Vec<Row> {
    let passed = || settings.keys().filter(|name| name.starts_with(PROPERTY_PREFIX)).map(String::as_str);
    let names = keys().flat_map(|key| match key.kind {
        Kind::Properties if passed().next().is_some() => passed().collect(),
        _ => vec![key.name],
    });
    let row = |name: &str| settings.get(name).map(|s| [name.to_owned(), shown(name, &s.value), s.origin.clone()]);
    names.filter_map(row).collect()
}

/// Returns the value of any key as people may see it.
pub(super) fn shown(name: &str, value: &Value) -> String {
    match find(name) {
        Some(key) => key.show(value),
        None => show_property(name.strip_prefix(PROPERTY_PREFIX).unwrap_or(name), &show(value)),
    }
}

/// Returns the value of a librdkafka property, masked if it may be a credential.
fn show_property(property: &str, value: &str) -> String {
    if is_secret(property) { mask(value).to_owned() } else { value.to_owned() }
}

impl Resolved {
    /// Returns every key with its value and origin, then the effective librdkafka properties. Secrets are masked.
    pub fn explain(&self) -> String {
        let properties = self.config.kafka_properties();
        let effective: Vec<_> =
            properties.iter().map(|(name, value)| [name.clone(), show_property(name, value)]).collect();
        format!(
            "{}\nEffective librdkafka properties\n\n{}",
            table(["KEY", "VALUE", "ORIGIN"], &self.rows),
            table(["PROPERTY", "VALUE"], &effective)
        )
    }
}

fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let header = header.map(str::to_owned);
    let lines = || std::iter::once(&header).chain(rows);
    let widths: [usize; N] =
        std::array::from_fn(|column| lines().map(|line| line[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for line in lines() {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
