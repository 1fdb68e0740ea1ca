//! The librdkafka properties that result from a configuration.
//!
//! A user may set any property, except those on which exactly-once depends and those that have a key of their own. Those must
//! never come from `kafka.properties`: they are refused by name. In addition they are written last.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::memory;
use super::schema::{Assignment, Config, GroupProtocol, Mechanism, Topics};

/// Properties on which the protocol depends: name, value, and the reason why it cannot be another.
const PROTOCOL: &[(&str, &str, &str)] = &[
    ("enable.auto.commit", "false", "offsets are committed only after ClickHouse has the batch"),
    ("enable.auto.offset.store", "false", "offsets are committed only after ClickHouse has the batch"),
    ("auto.offset.reset", "error", "a lost position must stop the partition, not skip or repeat events"),
    ("isolation.level", "read_committed", "events of aborted transactions never happened"),
    ("enable.partition.eof", "true", "a replay ends at its end offset or at the end of the partition"),
    ("check.crcs", "true", "a damaged message must not be counted"),
];

/// Makes librdkafka look for the system's authorities in the usual places. Tallyhouse's OpenSSL is linked statically and would
/// look only in the place where it was built.
pub const SYSTEM_AUTHORITIES: &str = "probe";

/// Properties that are set by a key of their own.
const KEYED: &[(&str, &str)] = &[
    ("bootstrap.servers", "kafka.brokers"),
    ("metadata.broker.list", "kafka.brokers"),
    ("group.id", "kafka.group_id"),
    ("group.instance.id", "kafka.group_instance_id"),
    ("client.id", "kafka.client_id"),
    ("group.protocol", "kafka.group_protocol"),
    ("session.timeout.ms", "kafka.session_timeout_ms"),
    ("partition.assignment.strategy", "kafka.assignment"),
    ("security.protocol", "kafka.tls.enabled and kafka.sasl.mechanism"),
    ("ssl.ca.location", "kafka.tls.ca_file"),
    ("ssl.certificate.location", "kafka.tls.cert_file"),
    ("ssl.key.location", "kafka.tls.key_file"),
    ("ssl.key.password", "kafka.tls.key_password"),
    ("enable.ssl.certificate.verification", "kafka.tls.verify"),
    ("ssl.endpoint.identification.algorithm", "kafka.tls.verify"),
    ("sasl.mechanism", "kafka.sasl.mechanism"),
    ("sasl.mechanisms", "kafka.sasl.mechanism"),
    ("sasl.username", "kafka.sasl.username"),
    ("sasl.password", "kafka.sasl.password"),
];

/// Properties that would conflict with one of the others, with the reason.
const CONTENDING: &[(&str, &str)] = &[
    ("auto.commit.enable", "is another name of enable.auto.commit"),
    ("offset.store.method", "offsets are committed to Kafka, by the protocol"),
    ("max.partition.fetch.bytes", "is another name of fetch.message.max.bytes: set that instead"),
];

/// Properties on which the producers of dead letters and replays depend.
const PRODUCER: &[(&str, &str)] = &[("acks", "all"), ("enable.idempotence", "true")];

/// Properties with which a member's brokers wait for more records before they answer. A reader of a few records, or of a range,
/// would wait for nothing.
const WAITING: [&str; 2] = ["fetch.min.bytes", "fetch.wait.max.ms"];

/// Less than this many bytes in an answer are mostly the work of asking for it.
const FETCH_MIN_BYTES: u64 = 200_000;
/// librdkafka's default, and the longest time that a broker waits for [`FETCH_MIN_BYTES`].
const FETCH_WAIT_MS_MAX: u64 = 500;

/// Range of a consumer's `message.max.bytes`: from librdkafka's least value to its default.
const MESSAGE_MAX_BYTES: RangeInclusive<u64> = 1_000..=1_000_000;

/// Properties that no producer gets: those of a group, and the name of transactions, which replays set themselves.
const NOT_OF_PRODUCERS: &[&str] = &[
    "group.id",
    "group.instance.id",
    "group.protocol",
    "session.timeout.ms",
    "partition.assignment.strategy",
    "transactional.id",
];

/// Time for a member to come back in a rebalance, in ms, in addition to its session and the grace of a revocation. A commit takes
/// some of it.
const REBALANCE_MARGIN_MS: u64 = 30_000;

/// Returns the reason why `property` cannot be set by the user, if there is one.
pub(super) fn refusal(property: &str) -> Option<String> {
    let protocol = PROTOCOL.iter().map(|(name, value, why)| (name, format!("is always {value}: {why}")));
    let keyed = KEYED.iter().map(|(name, key)| (name, format!("set {key} instead")));
    let contending = CONTENDING.iter().map(|(name, why)| (name, why.to_string()));
    protocol.chain(keyed).chain(contending).find_map(|(name, reason)| (*name == property).then_some(reason))
}

/// Returns the keys to which a text refers. The text names the keys or librdkafka's properties.
pub fn keys_named_in(text: &str) -> Vec<&'static str> {
    const KEY_FILE: &str = "ssl.key.location";
    let named =
        |(property, key): &(&str, &'static str)| (text.contains(property) || text.contains(key)).then_some(*key);
    let mut keys: Vec<_> = KEYED.iter().filter_map(named).collect();
    // An encrypted key cannot be read without its password, and librdkafka reports no more than that.
    keys.extend(text.contains(KEY_FILE).then_some("kafka.tls.key_password"));
    keys
}

/// True if the value of `property` may be a credential. A misspelt one counts too. So this covers all of `sasl.` except the known
/// harmless properties.
pub(super) fn is_secret(property: &str) -> bool {
    let property = property.to_ascii_lowercase();
    property.starts_with("sasl.")
        && !["sasl.mechanism", "sasl.mechanisms", "sasl.username"].contains(&property.as_str())
        || ["pass", "pwd", "secret", "token", "key.pem"].iter().any(|word| property.contains(word))
}

impl Config {
    /// Returns all properties of the consumer, by name. Credentials are in clear: never log them.
    pub fn kafka_properties(&self) -> Vec<(String, String)> {
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        let classic = self.kafka.group_protocol == GroupProtocol::Classic;
        // In the consumer protocol librdkafka refuses the properties that the broker decides.
        let tuning = self.tuning().into_iter().filter(|(name, _)| classic || *name != "heartbeat.interval.ms");
        all.extend(tuning.map(|(name, value)| (name.to_owned(), value.to_string())));
        all.extend(self.kafka.properties.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
        // This is a limit of produced records, and the largest buffer that librdkafka makes at first to unpack a batch with LZ4. With a
        // small one it copies each batch several times as it grows. librdkafka refuses a consumer whose `fetch.max.bytes` is below it.
        let fetched = all.get("fetch.max.bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(u64::MAX);
        let unpacked = fetched.clamp(*MESSAGE_MAX_BYTES.start(), *MESSAGE_MAX_BYTES.end());
        all.insert("message.max.bytes".to_owned(), unpacked.to_string());
        all.extend(self.keyed().into_iter().map(|(name, value)| (name.to_owned(), value)));
        all.extend(PROTOCOL.iter().map(|(name, value, _)| (name.to_string(), value.to_string())));
        all.into_iter().collect()
    }

    /// Returns [`Config::kafka_properties`] for a consumer that is no member of the group: a broker answers it at once.
    pub fn reader_properties(&self) -> Vec<(String, String)> {
        let passes = |name: &str| !WAITING.contains(&name) || self.kafka.properties.contains_key(name);
        self.kafka_properties().into_iter().filter(|(name, _)| passes(name)).collect()
    }

    /// Returns all properties of a producer, by name. Credentials are in clear: never log them.
    pub fn producer_properties(&self) -> Vec<(String, String)> {
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        // The broker decides if a record is too large: it knows the topic's limit.
        all.insert("message.max.bytes".to_owned(), "1000000000".to_owned());
        // The topic's limit is one of batches. librdkafka does not make a batch smaller that is refused for its size.
        all.insert("batch.size".to_owned(), "65536".to_owned());
        let queue_kbytes = kbytes(memory::produced(self.memory.limit_bytes));
        all.insert("queue.buffering.max.kbytes".to_owned(), queue_kbytes.to_string());
        all.extend(self.kafka.properties.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
        all.extend(self.keyed().into_iter().map(|(name, value)| (name.to_owned(), value)));
        all.extend(PRODUCER.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        all.into_iter().filter(|(name, _)| !NOT_OF_PRODUCERS.contains(&name.as_str())).collect()
    }

    /// Returns the defaults that `kafka.properties` may override.
    fn tuning(&self) -> [(&'static str, u64); 11] {
        let limit_bytes = self.memory.limit_bytes;
        let session_timeout_ms = self.kafka.session_timeout_ms;
        [
            ("heartbeat.interval.ms", (session_timeout_ms / 3).min(3_000)),
            // Kafka calls it the rebalance timeout: one member that does not come back delays the whole group for this time.
            ("max.poll.interval.ms", session_timeout_ms + self.rebalance.grace_ms + REBALANCE_MARGIN_MS),
            // The defaults of librdkafka throttle. With these two, a member reads a backlog about ten times faster.
            ("queued.min.messages", 1_000_000),
            ("fetch.queue.backoff.ms", 5),
            // A broker of a quiet topic would answer for each record. A backlog has more than this, so that nothing waits there. A record waits
            // for a tenth of the flush age at most.
            ("fetch.min.bytes", FETCH_MIN_BYTES.min(memory::fetch(limit_bytes) as u64 / 2)),
            ("fetch.wait.max.ms", (self.flush.age_ms / 10).min(FETCH_WAIT_MS_MAX)),
            // librdkafka asks a broker for more while its queue is below the first, and takes an answer whole.
            ("queued.max.messages.kbytes", kbytes(memory::queued_values(limit_bytes))),
            ("fetch.max.bytes", memory::fetch(limit_bytes) as u64),
            ("fetch.message.max.bytes", 1_048_576),
            // A batch is always sent whole, however large. librdkafka also refuses zstd batches that unpack to more than this.
            // Its guess of the size grows threefold each time, so it may refuse those that unpack to more than a third of it. A
            // partition with a refused batch stands still.
            ("receive.message.max.bytes", 1_000_000_000),
            ("statistics.interval.ms", 5_000),
        ]
    }

    /// Returns the properties that have a key.
    fn keyed(&self) -> Vec<(&'static str, String)> {
        let kafka = &self.kafka;
        let security_protocol = match (kafka.tls.enabled, kafka.sasl.mechanism.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        let mut properties = vec![
            ("bootstrap.servers", kafka.brokers.clone()),
            ("group.id", kafka.group_id.clone()),
            ("client.id", kafka.client_id.clone()),
            ("security.protocol", security_protocol.to_owned()),
        ];
        match kafka.group_protocol {
            GroupProtocol::Classic => properties.extend([
                ("group.protocol", "classic".to_owned()),
                ("session.timeout.ms", kafka.session_timeout_ms.to_string()),
                ("partition.assignment.strategy", kafka.assignment.strategy().to_owned()),
            ]),
            GroupProtocol::Consumer => properties.push(("group.protocol", "consumer".to_owned())),
        }
        let mut set = |name, value: Option<&str>| properties.extend(value.map(|value| (name, value.to_owned())));
        set("group.instance.id", kafka.group_instance_id.as_deref());
        if kafka.tls.enabled {
            let key_password = &kafka.tls.key_password;
            set("ssl.ca.location", Some(kafka.tls.ca_file.as_deref().unwrap_or(SYSTEM_AUTHORITIES)));
            set("ssl.certificate.location", kafka.tls.cert_file.as_deref());
            set("ssl.key.location", kafka.tls.key_file.as_deref());
            set("ssl.key.password", (!key_password.is_empty()).then(|| key_password.expose()));
            set("enable.ssl.certificate.verification", Some(if kafka.tls.verify { "true" } else { "false" }));
        }
        if let Some(mechanism) = kafka.sasl.mechanism {
            set("sasl.mechanism", Some(mechanism.name()));
            set("sasl.username", kafka.sasl.username.as_deref());
            set("sasl.password", Some(kafka.sasl.password.expose()));
        }
        properties
    }
}

/// Returns the size in the unit of librdkafka's queue sizes, within their range.
fn kbytes(bytes: usize) -> u64 {
    (bytes as u64 / 1024).min(2_097_151)
}

impl Topics {
    /// Returns `kafka.topics.replays`, or the default name that replaces it.
    pub fn replays(&self) -> String {
        self.replays.clone().unwrap_or_else(|| format!("{}.replays", self.events))
    }
}

impl Assignment {
    /// Returns the strategy's name in Kafka.
    pub fn strategy(self) -> &'static str {
        match self {
            Assignment::CooperativeSticky => "cooperative-sticky",
            Assignment::Eager => "range",
        }
    }
}

impl Mechanism {
    /// Returns the mechanism's name in SASL.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}
