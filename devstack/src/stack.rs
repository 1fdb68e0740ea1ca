//! The servers that all tests of one process share.
//!
//! Must never be emptied between tests: each test makes names of its own instead.

use crate::{
    clickhouse::{self, ClickHouse, ClickHouseOptions},
    error::{Error, Result},
    kafka::{self, Kafka, KafkaOptions, secure::SecureKafka},
    replicas::Replicas,
};
use std::{
    env,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// One Kafka, one secured Kafka, one ClickHouse, and two replicas. Each starts when it is first asked for, so a run that needs one
/// does not wait for both.
///
/// `TALLYHOUSE_TEST_KAFKA` (`host:port,…`) and `TALLYHOUSE_TEST_CLICKHOUSE` (URL) name servers to use instead of
/// starting any; asking for their processes then fails with [`Error::NotOurs`].
#[derive(Debug, Default)]
pub struct Stack {
    kafka: OnceLock<Result<Kafka>>,
    secure_kafka: OnceLock<Result<SecureKafka>>,
    clickhouse: OnceLock<Result<ClickHouse>>,
    replicas: OnceLock<Result<Replicas>>,
}

static SHARED: Stack = Stack {
    kafka: OnceLock::new(),
    secure_kafka: OnceLock::new(),
    clickhouse: OnceLock::new(),
    replicas: OnceLock::new(),
};

impl Stack {
    /// Returns the stack of this process. Its servers end, and their temporary data goes, when the process exits.
    pub fn shared() -> &'static Stack {
        static AT_EXIT: OnceLock<()> = OnceLock::new();
        AT_EXIT.get_or_init(|| {
            // SAFETY: atexit only stores the function, which is a plain `extern "C"` function that does not unwind.
            // Should it fail, the kernel still ends the servers and the next run sweeps their data.
            unsafe { libc::atexit(dispose_shared) };
        });
        &SHARED
    }

    /// Returns Kafka, started now if this is the first call. Fails, each time in the same way, when it could not be
    /// started.
    pub fn kafka(&self) -> Result<&Kafka, &Error> {
        let start = || match set_variable(kafka::EXTERNAL_VARIABLE) {
            Some(bootstrap) => Ok(Kafka::external(bootstrap)),
            None => Kafka::start(KafkaOptions::default()),
        };
        self.kafka.get_or_init(start).as_ref()
    }

    /// Returns the secured Kafka, started now if this is the first call. It is never an external one. Fails as
    /// [`Stack::kafka`] does.
    pub fn secure_kafka(&self) -> Result<&SecureKafka, &Error> {
        self.secure_kafka.get_or_init(SecureKafka::start).as_ref()
    }

    /// Returns ClickHouse, started now if this is the first call. Fails, each time in the same way, when it could not
    /// be started.
    pub fn clickhouse(&self) -> Result<&ClickHouse, &Error> {
        let start = || match set_variable(clickhouse::EXTERNAL_VARIABLE) {
            Some(url) => Ok(ClickHouse::external(url)),
            None => ClickHouse::start(ClickHouseOptions::default()),
        };
        self.clickhouse.get_or_init(start).as_ref()
    }

    /// Returns a shard of two replicas, started now if this is the first call. Fails, each time in the same way, when it
    /// could not be started. `TALLYHOUSE_TEST_CLICKHOUSE_REPLICAS` names others.
    pub fn replicas(&self) -> Result<&Replicas, &Error> {
        let start = || match Replicas::external() {
            Some(replicas) => Ok(replicas),
            None => Replicas::start(1, 2, &ClickHouseOptions::default()),
        };
        self.replicas.get_or_init(start).as_ref()
    }

    /// Returns a topic name that nobody else uses, on a shared server either. Does not create the topic.
    pub fn fresh_topic_name(&self, prefix: &str) -> String {
        fresh_name(prefix)
    }

    /// Returns a database name that nobody else uses, fit to stand unquoted. Does not create the database.
    pub fn fresh_database_name(&self, prefix: &str) -> String {
        fresh_name(&prefix.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
    }
}

extern "C" fn dispose_shared() {
    if let Some(Ok(kafka)) = SHARED.kafka.get() {
        kafka.dispose();
    }
    if let Some(Ok(kafka)) = SHARED.secure_kafka.get() {
        kafka.dispose();
    }
    if let Some(Ok(clickhouse)) = SHARED.clickhouse.get() {
        clickhouse.dispose();
    }
    if let Some(Ok(replicas)) = SHARED.replicas.get() {
        replicas.dispose();
    }
}

fn set_variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns a name that is unique in this process by a counter, and among processes by a random number.
fn fresh_name(prefix: &str) -> String {
    static RUN: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let run = RUN.get_or_init(|| RandomState::new().build_hasher().finish());
    format!("{prefix}_{run:016x}_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_names_differ_and_database_names_need_no_quotes() {
        let stack = Stack::default();
        assert_ne!(stack.fresh_topic_name("a.b"), stack.fresh_topic_name("a.b"));
        assert!(stack.fresh_topic_name("a.b").starts_with("a.b_"));
        assert!(stack.fresh_database_name("a.b-c").starts_with("a_b_c_"));
    }
}
