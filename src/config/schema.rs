//! Every key, declared once: its field and type, documentation, default and allowed values.
//!
//! `section!` makes of one declaration both the typed struct and its [`Key`]s, so that the structs, `--help`, the
//! README and the example file cannot disagree. A default or a range must never be written anywhere else.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Deserialize;

use super::Secret;
use super::keys::Key;
use super::keys::Kind::{
    self, Address, Bool, Bytes, Float, HttpUrls, Identifier, Integer, LogFilter, OneOf, Properties, Text, Topic,
    TopicOrNone,
};

macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $section:ident $prefix:literal {
            $( $(#[doc = $help:literal])+ $field:ident: $type:ty = $default:literal, $kind:expr; )+
        }
        $( sections { $( $(#[doc = $sub_about:literal])+ $sub:ident: $sub_type:ty; )+ } )?
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $section {
            $(
                $(#[doc = $help])+
                #[doc = ""]
                #[doc = concat!("Default `", $default, "`; allowed: `", stringify!($kind), "`.")]
                pub $field: $type,
            )+
            $( $( $(#[doc = $sub_about])+ pub $sub: $sub_type, )+ )?
        }

        impl $section {
            const KEYS: &[Key] = &[$( Key {
                name: concat!($prefix, ".", stringify!($field)),
                default: $default,
                help: concat!($($help),+).trim_ascii(),
                kind: $kind,
            } ),+];
        }
    };
}

/// The whole configuration, checked and typed: made by [`super::load`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The Kafka cluster that is consumed.
    pub kafka: Kafka,
    /// The ClickHouse server that is written to.
    pub clickhouse: ClickHouse,
    /// When a batch is written.
    pub flush: Flush,
    /// The limit of the process's memory.
    pub memory: Memory,
    /// Which events are accepted.
    pub decode: Decode,
    /// The producer's fields and words.
    pub mapping: Mapping,
    /// The HTTP endpoint for operators.
    pub admin: Admin,
    /// Filter and form of the log.
    pub log: Log,
    /// The end of the process.
    pub shutdown: Shutdown,
    /// The handover of partitions.
    pub rebalance: Rebalance,
    /// The repetition of failed work.
    pub retry: Retry,
    /// Settings that weaken security, and need saying twice.
    pub security: Security,
}

/// Every key with its default, help and allowed values, grouped by section.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    [
        Kafka::KEYS,
        Topics::KEYS,
        Tls::KEYS,
        Sasl::KEYS,
        ClickHouse::KEYS,
        Flush::KEYS,
        Memory::KEYS,
        Decode::KEYS,
        Mapping::KEYS,
        Admin::KEYS,
        Log::KEYS,
        Shutdown::KEYS,
        Rebalance::KEYS,
        Retry::KEYS,
        Security::KEYS,
    ]
    .into_iter()
    .flatten()
}

/// The key of that name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    keys().find(|key| key.name == name)
}

section! {
    /// The Kafka consumer and its group.
    Kafka "kafka" {
        /// Brokers to start from: host:port, separated by commas.
        brokers: String = "localhost:9092", Text;
        /// Consumer group. All instances of one pipeline share it. A lifecycle topic has a group of its own, with -audience_ready or
        /// -template_ready behind this name.
        group_id: String = "clickhouse-writer", Text;
        /// Name of this client in the brokers' logs and quotas.
        client_id: String = "tallyhouse", Text;
        /// Milliseconds without a heartbeat after which the broker gives the partitions to another instance. With
        /// group_protocol = consumer the member asks the broker for its own value, and the smaller one counts.
        session_timeout_ms: u64 = "45000", Integer(1_000..=1_800_000);
        /// Group protocol: classic, or consumer (KIP-848, Kafka 4.0), in which the broker shares the partitions out. classic
        /// is the default as librdkafka before 2.15 has known stalls with the other; 2.12.1 is built in.
        /// From classic to consumer, stop all members first.
        group_protocol: GroupProtocol = "classic", OneOf(&["classic", "consumer"]);
        /// Strategy by which the group shares out partitions. cooperative-sticky moves only those that must move. eager (range) revokes all, and is
        /// needed with group_instance_id. It is the same for all members of a group: stop all of them before you change it.
        assignment: Assignment = "cooperative-sticky", OneOf(&["cooperative-sticky", "eager"]);
        /// Static membership: a name unique in the group, kept over restarts. Not set: dynamic membership.
        group_instance_id: Option<String> = "", Text;
        /// Other librdkafka properties, which pass through. The configuration refuses those that have a key of their own or belong to the
        /// protocol.
        /// In the environment, fetch.min.bytes is TALLYHOUSE__KAFKA__PROPERTIES__FETCH_MIN_BYTES.
        properties: BTreeMap<String, Secret> = "", Properties;
    }
    sections {
        /// Names of the topics.
        topics: Topics;
        /// Encryption of the connections to Kafka.
        tls: Tls;
        /// Authentication at the Kafka brokers.
        sasl: Sasl;
    }
}

/// Who shares out a group's partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupProtocol {
    /// One of the members.
    Classic,
    /// The broker assigns the partitions (KIP-848).
    Consumer,
}

/// Strategy by which a group shares out its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assignment {
    /// Partitions that stay are never revoked.
    CooperativeSticky,
    /// All partitions are revoked and shared out by range.
    Eager,
}

section! {
    /// Names of the topics.
    Topics "kafka.topics" {
        /// Topic of the event stream.
        events: String = "campaign.event_tracking", Topic;
        /// Topic with one message for each campaign whose audience is ready, counted into campaign_lifecycle. A member waits for it without
        /// holding up the events. Empty: none.
        audience_ready: String = "campaign.audience_ready", TopicOrNone;
        /// Topic with one message for each campaign whose template is ready. Empty: none.
        template_ready: String = "campaign.template_ready", TopicOrNone;
        /// Topic that gets each rejected record, with headers that say why, before its row is written. Not set: none does. It
        /// should take records at least 1 KiB larger than the event topic does.
        dead_letter: Option<String> = "", Topic;
        /// Topic in which `tallyhouse rejects replay` notes what it has replayed. Not set: the event topic's name with .replays
        /// behind it.
        replays: Option<String> = "", Topic;
    }
}

section! {
    /// TLS to the Kafka brokers.
    Tls "kafka.tls" {
        /// Encrypts the connections to the brokers.
        enabled: bool = "false", Bool;
        /// PEM file of the authorities to trust. Not set: those of the system, or of SSL_CERT_FILE or SSL_CERT_DIR in the environment.
        ca_file: Option<String> = "", Text;
        /// PEM file of the client certificate (mutual TLS). Needs key_file.
        cert_file: Option<String> = "", Text;
        /// PEM file of the client certificate's private key. Needs cert_file.
        key_file: Option<String> = "", Text;
        /// Password of key_file. Empty: the key is not encrypted.
        key_password: Secret = "", Kind::Secret;
        /// Verifies the brokers' certificates. false needs security.allow_insecure_tls.
        verify: bool = "true", Bool;
    }
}

section! {
    /// SASL authentication to the Kafka brokers.
    Sasl "kafka.sasl" {
        /// Mechanism. Not set: no SASL.
        mechanism: Option<Mechanism> = "", OneOf(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]);
        /// User name. Needs a mechanism.
        username: Option<String> = "", Text;
        /// Password. Needs a mechanism.
        password: Secret = "", Kind::Secret;
    }
}

/// A SASL mechanism that `kafka.sasl.mechanism` may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    /// User and password as they are: use it over TLS only.
    #[serde(rename = "PLAIN")]
    Plain,
    /// Challenge and response with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// Challenge and response with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

section! {
    /// The ClickHouse server, spoken to over HTTP.
    ClickHouse "clickhouse" {
        /// Address of the HTTP interface. https is always verified. Several name replicas of one shard in order of preference: a list, or
        /// text with commas. A member uses one at a time.
        url: String = "http://localhost:8123", HttpUrls;
        /// User that logs in to ClickHouse.
        user: String = "default", Text;
        /// Password of the ClickHouse user.
        password: Secret = "", Kind::Secret;
        /// Database of the tables.
        database: String = "campaigns", Identifier;
        /// PEM file of the authorities to trust for https. Not set: those of the system.
        ca_file: Option<String> = "", Text;
        /// PEM file of a client certificate, for a server or proxy that demands one. Needs key_file and https.
        cert_file: Option<String> = "", Text;
        /// PEM file of the client certificate's private key, not encrypted. Needs cert_file.
        key_file: Option<String> = "", Text;
        /// Milliseconds an INSERT may take before its outcome counts as unknown.
        insert_timeout_ms: u64 = "120000", Integer(1_000..=3_600_000);
        /// Milliseconds any other query may take.
        query_timeout_ms: u64 = "30000", Integer(100..=3_600_000);
        /// Number of replicas that have a batch before its end is committed. With 2, a lost disk loses nothing, and members wait while
        /// no second server of url answers.
        replicas_confirmed: u64 = "1", Integer(1..=2);
        /// Writes the table recipients too, from which unique figures come. An event then takes about a fifth more CPU. All members need the
        /// same value. After a time without it, `tallyhouse repair recipients` adds what raw rows show.
        recipients: bool = "false", Bool;
        /// Compression of the data of inserts.
        compression: Compression = "lz4", OneOf(&["lz4", "none"]);
    }
}

/// Compression of the data of inserts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Inserts are compressed with LZ4.
    Lz4,
    /// Inserts are sent without compression.
    None,
}

section! {
    /// When a partition's window becomes a batch. The first limit that is reached decides.
    Flush "flush" {
        /// Milliseconds from a window's first event to its flush. A window of 1,000 records or more is flushed earlier when its
        /// partition has had no more for half a second.
        age_ms: u64 = "5000", Integer(50..=600_000);
        /// Rows in one batch. Stays below ClickHouse's max_insert_block_size of 1048449.
        rows_max: usize = "300000", Integer(1..=1_000_000);
        /// Bytes in one batch.
        bytes_max: usize = "128MiB", Bytes(1 << 10..=1 << 30);
        /// Distinct days in one batch; the first event of one more day closes it. Each day is a part of email_events.
        days_max: usize = "1000", Integer(1..=5_000);
        /// Flushes of this instance per second and topic at most, so that ClickHouse has time to merge parts. A flush of many
        /// partitions is one insert for each table.
        batches_per_second_max: f64 = "4.0", Float(0.01..=1_000.0);
    }
}

section! {
    /// The one memory limit.
    Memory "memory" {
        /// Bytes for events: half of it in windows and batches, a quarter in librdkafka, a quarter on their way out. Consumption pauses
        /// at the limit. The process takes up to 96MiB more, and each lifecycle topic a 32nd of it. In a container with less than 683MiB of memory
        /// (cgroup) the default is three quarters of that, at least 96MiB less than that. The default of flush.bytes_max is then a quarter of this limit.
        limit_bytes: usize = "512MiB", Bytes(64 << 20..=1 << 40);
    }
}

section! {
    /// Which event times are believed. The measure is the Kafka record's timestamp, never the clock.
    Decode "decode" {
        /// Days that an event may lie before its record; older ones are rejected.
        past_days_max: u32 = "3650", Integer(0..=36_500);
        /// Days that an event may lie after its record; later ones are rejected.
        future_days_max: u32 = "2", Integer(0..=36_500);
    }
}

section! {
    /// Names of the producer's fields and words. `tallyhouse decode` tries them, and `tallyhouse explain mapping` has examples. Each
    /// field is a list of paths, such as mail.to.0; the first with a value counts. A last part such as =text is a constant.
    Mapping "mapping" {
        /// Form of the events: django has the six fields by their names, and level has timestamp, level and message. sendgrid is the
        /// form of its webhook, one event to a record. The keys below replace parts of it.
        preset: Preset = "django", OneOf(&["django", "level", "sendgrid"]);
        /// Paths of campaign_id. Not set: those of the preset.
        campaign_id: Option<String> = "", Text;
        /// Paths of workspace_id. Not set: those of the preset.
        workspace_id: Option<String> = "", Text;
        /// Paths of email. Not set: those of the preset.
        email: Option<String> = "", Text;
        /// Paths of event_type. Not set: those of the preset.
        event_type: Option<String> = "", Text;
        /// Paths of event_time. Not set: those of the preset.
        event_time: Option<String> = "", Text;
        /// Paths of metadata, or * for the whole record. Not set: those of the preset.
        metadata: Option<String> = "", Text;
        /// Words of event_type with their types, such as opened=open, complained=complaint. Not set: those of the preset.
        words: Option<String> = "", Text;
        /// Treatment of a campaign_id or workspace_id that is no UUID: reject, or uuid5 for a UUID made of its text.
        other_ids: OtherIds = "reject", OneOf(&["reject", "uuid5"]);
    }
}

/// A known form of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// The six fields by their names.
    Django,
    /// `timestamp`, `level` and `message`.
    Level,
    /// SendGrid's event webhook, with one event to a record.
    Sendgrid,
}

/// Treatment of an id that is no UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherIds {
    /// The record is rejected.
    Reject,
    /// The id becomes a UUIDv5.
    Uuid5,
}

section! {
    /// The HTTP endpoint with health, metrics and live counters.
    Admin "admin" {
        /// IP address and port to listen on. It has no authentication.
        listen: SocketAddr = "127.0.0.1:9464", Address;
    }
}

section! {
    /// The log, on standard error.
    Log "log" {
        /// One line of text or one JSON object per event.
        format: LogFormat = "text", OneOf(&["text", "json"]);
        /// Level, or a list of target=level.
        level: String = "info", LogFilter;
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines of text for people.
    Text,
    /// One JSON object for each line.
    Json,
}

section! {
    /// The end of the process.
    Shutdown "shutdown" {
        /// Milliseconds to finish batches in flight after SIGTERM. The member does not wait for a step that is refused permanently.
        grace_ms: u64 = "30000", Integer(0..=3_600_000);
    }
}

section! {
    /// The handover of partitions in a rebalance.
    Rebalance "rebalance" {
        /// Milliseconds that a revocation waits for the batch in flight. The group waits for a member for this, session_timeout_ms and 30 s (max.poll.interval.ms of kafka.properties).
        grace_ms: u64 = "5000", Integer(0..=600_000);
    }
}

section! {
    /// Repeating what failed: the pause doubles from the minimum to the maximum.
    Retry "retry" {
        /// Milliseconds of the first pause.
        backoff_min_ms: u64 = "100", Integer(1..=600_000);
        /// Milliseconds of the longest pause. Not less than backoff_min_ms.
        backoff_max_ms: u64 = "10000", Integer(1..=3_600_000);
    }
}

section! {
    /// Settings that weaken security, and need saying twice.
    Security "security" {
        /// Allows kafka.tls.verify = false: anyone on the network can then pose as the brokers.
        allow_insecure_tls: bool = "false", Bool;
        /// Allows a password to travel unencrypted: clickhouse.password over http to another host, or kafka.sasl.mechanism =
        /// PLAIN without TLS. Anyone on the network can then read it.
        allow_cleartext_passwords: bool = "false", Bool;
    }
}
