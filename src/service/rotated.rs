//! Detects that passwords, certificates or keys were changed since the start while this member is not ready.
//!
//! Both clients keep the credentials with which they were made. So after a rotation the servers would refuse a member forever. It
//! ends in order, and the supervisor starts it with the present content of the files. Must never end a member that counts: its
//! credentials are still accepted.

use crate::config::Config;
use crate::service::health::Health;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// Reads the configuration again, from the same sources and the present content of the files. `None` if it is not valid now.
pub type Reload = Arc<dyn Fn() -> Option<Config> + Send + Sync>;

/// Interval at which a member that is not ready looks.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Number of looks in a row that must find it. The files of one rotation are not written in one moment.
const LOOKS: u32 = 2;

/// Credentials of this member: each key, with a hash of its value or of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials(Vec<(&'static str, u64)>);

impl Credentials {
    /// Reads the files that the configuration names.
    pub fn read(config: &Config) -> Credentials {
        let (tls, sasl, clickhouse) = (&config.kafka.tls, &config.kafka.sasl, &config.clickhouse);
        let text = |key, text: Option<&str>| (key, hash(text));
        let file = |key, path: &Option<String>| (key, hash(path.as_ref().map(|path| std::fs::read(path).ok())));
        Credentials(vec![
            text("kafka.sasl.username", sasl.username.as_deref()),
            text("kafka.sasl.password", Some(sasl.password.expose())),
            file("kafka.tls.ca_file", &tls.ca_file),
            file("kafka.tls.cert_file", &tls.cert_file),
            file("kafka.tls.key_file", &tls.key_file),
            text("kafka.tls.key_password", Some(tls.key_password.expose())),
            text("clickhouse.user", Some(&clickhouse.user)),
            text("clickhouse.password", Some(clickhouse.password.expose())),
            file("clickhouse.ca_file", &clickhouse.ca_file),
            file("clickhouse.cert_file", &clickhouse.cert_file),
            file("clickhouse.key_file", &clickhouse.key_file),
        ])
    }

    /// Returns the keys whose values have changed.
    fn changed(&self, now: &Credentials) -> Vec<&'static str> {
        let pairs = self.0.iter().zip(&now.0);
        pairs.filter(|(then, now)| then != now).map(|((key, _), _)| *key).collect()
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Returns the changed keys, once some have changed and the member is not ready. Until then it continues to look.
pub async fn found(started_with: &Credentials, health: &Health, reload: &Reload, interval: Duration) -> String {
    let mut looks = 0;
    loop {
        tokio::time::sleep(interval).await;
        let mut changed = Vec::new();
        if !health.reasons().is_empty() {
            let reload = Arc::clone(reload);
            let now = tokio::task::spawn_blocking(move || reload().map(|config| Credentials::read(&config))).await;
            changed = now.ok().flatten().map(|now| started_with.changed(&now)).unwrap_or_default();
        }
        looks = if changed.is_empty() { 0 } else { looks + 1 };
        if looks == LOOKS {
            return changed.join(", ");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Sources};
    use std::path::Path;

    fn configured(folder: &Path) -> Config {
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let env = [
            ("TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE", path("password")),
            ("TALLYHOUSE__KAFKA__TLS__ENABLED", "true".to_owned()),
            ("TALLYHOUSE__KAFKA__TLS__CA_FILE", path("ca.pem")),
        ];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let file = Some(folder.join("tallyhouse.toml"));
        config::load(&Sources { file, env, ..Sources::default() }).unwrap().config
    }

    /// A rotation ends the member only if it is not ready and logs in with the changed keys. The message has the names of the
    /// keys, not the values.
    #[tokio::test]
    async fn a_rotation_ends_a_member_that_is_not_ready() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("tallyhouse.toml", "");
        write("password", "old");
        write("ca.pem", "old");
        let started_with = Credentials::read(&configured(folder.path()));
        let at = folder.path().to_owned();
        let reload: Reload = Arc::new(move || Some(configured(&at)));
        let health = Health::default();
        let found = || found(&started_with, &health, &reload, Duration::from_millis(1));
        // It is the number of looks that fit into a moment.
        let found_at_once = || tokio::time::timeout(Duration::from_millis(100), found());
        health.set("clickhouse", "does not answer");
        assert!(found_at_once().await.is_err(), "nothing was changed");
        write("password", "new");
        health.clear("clickhouse");
        assert!(found_at_once().await.is_err(), "it counts");
        health.set("partition 0, marks", "refuses to log in");
        assert_eq!(found().await, "clickhouse.password");
        write("ca.pem", "new");
        assert_eq!(found().await, "kafka.tls.ca_file, clickhouse.password");
    }
}
