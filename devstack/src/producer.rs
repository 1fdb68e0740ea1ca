//! Makes events as the Django app does: the same JSON, a known share of it broken, and a count of all that was
//! produced.
//!
//! The n-th payload is a function of `n` and the seed alone, so a run can be repeated and its outcome is known
//! beforehand. Must write exactly what `json.dumps` of the producer writes, separators and all.

use crate::dice::mix;
use chrono::{Days, NaiveDate, Utc};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use std::time::Duration;

/// The five event types; index 0 is by far the most frequent, as in a real campaign.
pub const EVENT_TYPES: [&str; 5] = ["delivered", "open", "click", "bounce", "unsubscribe"];

const FLUSH_TIMEOUT: Duration = Duration::from_secs(120);
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(10);

/// The source of the events, with its settings.
#[derive(Debug, Clone)]
pub struct Events {
    /// Other seeds give other events.
    pub seed: u64,
    /// Number of distinct campaigns.
    pub campaigns: u64,
    /// The days end with this one.
    pub last_day: NaiveDate,
    /// Number of distinct days.
    pub days: u64,
    /// Average percentage of broken records.
    pub broken_percent: u64,
    /// Size of an event in bytes. `metadata` is grown to reach it, or left out where the event is too large already.
    /// None: the size of the app's events, about 290.
    pub size_bytes: Option<usize>,
}

impl Default for Events {
    fn default() -> Events {
        Events {
            seed: 1,
            campaigns: 1_000,
            last_day: Utc::now().date_naive(),
            days: 3,
            broken_percent: 3,
            size_bytes: None,
        }
    }
}

/// One record's value and its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The bytes of the value.
    pub bytes: Vec<u8>,
    /// The event type; `None` for a broken record.
    pub event_type: Option<&'static str>,
}

impl Events {
    /// Returns the n-th payload.
    pub fn payload(&self, n: u64) -> Payload {
        let dice = mix(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n);
        let event_type = match dice % 100 {
            0..=59 => 0,
            60..=84 => 1,
            85..=93 => 2,
            94..=97 => 3,
            _ => 4,
        };
        let event_type = EVENT_TYPES[event_type];
        let json = self.json(mix(dice), event_type);
        if mix(dice ^ 1) % 100 < self.broken_percent {
            return Payload { bytes: broken(&json, dice), event_type: None };
        }
        Payload { bytes: json.into_bytes(), event_type: Some(event_type) }
    }

    /// Returns the message of a lifecycle topic about a campaign, as the app publishes it: a stage and its metadata. It lies this
    /// number of minutes before the first day of the events.
    pub fn announcement(&self, campaign: u64, minutes_before: u64, metadata: &str) -> String {
        let first = (self.last_day - Days::new(self.days.saturating_sub(1))).and_time(chrono::NaiveTime::MIN);
        let time = (first - Duration::from_secs(60 * minutes_before)).format("%Y-%m-%dT%H:%M:%S");
        let (campaign_id, workspace_id) = (uuid(campaign), uuid(1_000_000 + campaign % 50));
        format!(
            "{{\"campaign_id\": \"{campaign_id}\", \"workspace_id\": \"{workspace_id}\", \"event_time\": \"{time}\", \
             \"metadata\": {metadata}}}"
        )
    }

    fn json(&self, dice: u64, event_type: &str) -> String {
        let campaign = dice % self.campaigns;
        let day = self.last_day - Days::new(mix(dice) % self.days);
        let second = mix(dice ^ 2) % 86_400;
        let time = day.and_time(chrono::NaiveTime::MIN) + Duration::from_secs(second);
        // isoformat() leaves the microseconds out when they are zero.
        let micros = if dice.is_multiple_of(64) { String::new() } else { format!(".{:06}", mix(dice ^ 3) % 1_000_000) };
        let (campaign_id, workspace_id) = (uuid(campaign), uuid(1_000_000 + campaign % 50));
        let person = mix(dice ^ 4) % 100_000;
        let head = format!(
            "{{\"campaign_id\": \"{campaign_id}\", \"workspace_id\": \"{workspace_id}\", \
             \"email\": \"person{person}@example.com\", \"event_type\": \"{event_type}\", \
             \"event_time\": \"{}{micros}\"",
            time.format("%Y-%m-%dT%H:%M:%S"),
        );
        let agent = format!("\"ip\": \"203.0.113.{}\", \"user_agent\": \"Mozilla/5.0\"", dice % 256);
        match self.size_bytes {
            None => format!("{head}, \"metadata\": {{{agent}}}}}"),
            Some(bytes) => padded(&head, dice, bytes),
        }
    }
}

/// Returns an event of this size, with a text in `metadata` that compresses to about half.
fn padded(head: &str, dice: u64, bytes: usize) -> String {
    const AROUND: &str = ", \"metadata\": {\"text\": \"\"}}";
    let Some(missing) = bytes.checked_sub(head.len() + AROUND.len()) else { return format!("{head}}}") };
    let mut text = String::with_capacity(missing + 16);
    for n in 0.. {
        if text.len() >= missing {
            break;
        }
        text.push_str(&format!("{:016x}", mix(dice ^ n)));
    }
    format!("{head}, \"metadata\": {{\"text\": \"{}\"}}}}", &text[..missing])
}

/// Breaks an event in one of many ways.
fn broken(json: &str, dice: u64) -> Vec<u8> {
    match dice / 100 % 16 {
        0 => json.as_bytes()[..json.len() / 2].to_vec(),
        1 => json.replace("event_type\": \"", "event_type\": \"re").into_bytes(),
        2 => json.replace("event_time", "time").into_bytes(),
        3 => json.replace("campaign_id\": \"", "campaign_id\": \"x").into_bytes(),
        4 => [json.as_bytes(), b"\xff"].concat(),
        5 => json.replace("event_time\": \"20", "event_time\": \"20x").into_bytes(),
        6 => format!("[{json}, {json}]").into_bytes(),
        7 => json.replace("{\"campaign", "{\"email\": \"x\", \"campaign").into_bytes(),
        8 => vec![b'['; 2_000],
        9 => vec![0; 200],
        10 => json.replace("\"Mozilla/5.0\"", "NaN").into_bytes(),
        11 => json.replace("person", "\\ud83d").into_bytes(),
        12 => json.replace("\"email\": \"", "\"email\": null, \"x\": \"").into_bytes(),
        13 => json.replace("event_time\": \"20", "event_time\": \"19").into_bytes(),
        14 => Vec::new(),
        _ => json.replace("\"event_time\": \"", "\"event_time\": 1e999, \"x\": \"").into_bytes(),
    }
}

/// Returns a UUID's text, the same for the same number.
pub fn uuid(number: u64) -> String {
    let (high, low) = (mix(number), mix(number ^ 0x5555));
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 48 & 0xfff,
        low & 0xffff_ffff_ffff
    )
}

/// The numbers of produced records and events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Records, broken ones included.
    pub produced: u64,
    /// Number of broken records.
    pub broken: u64,
    /// Events by type, in the order of [`EVENT_TYPES`].
    pub by_type: [u64; 5],
}

impl Ledger {
    /// Returns the sums of both ledgers.
    pub fn plus(&self, other: &Ledger) -> Ledger {
        Ledger {
            produced: self.produced + other.produced,
            broken: self.broken + other.broken,
            by_type: std::array::from_fn(|index| self.by_type[index] + other.by_type[index]),
        }
    }

    /// Notes a record that was produced by other means than a [`Producer`].
    pub fn note(&mut self, payload: &Payload) {
        self.produced += 1;
        match payload.event_type.and_then(|name| EVENT_TYPES.iter().position(|t| *t == name)) {
            Some(index) => self.by_type[index] += 1,
            None => self.broken += 1,
        }
    }
}

/// Creates a topic and waits until it is there.
///
/// # Errors
/// Kafka does not answer, or refuses.
pub fn create_topic(bootstrap: &str, topic: &str, partitions: i32) -> Result<(), KafkaError> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", bootstrap).create()?;
    let wanted = [NewTopic::new(topic, partitions, TopicReplication::Fixed(1))];
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let create = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|_| KafkaError::Canceled)?;
        runtime.block_on(admin.create_topics(&wanted, &options))
    };
    // It runs on a thread of its own, as the caller may be in a runtime already.
    let created = std::thread::scope(|scope| scope.spawn(create).join().unwrap_or(Err(KafkaError::Canceled)))?;
    match created.into_iter().next() {
        Some(Err((_, code))) => Err(KafkaError::AdminOp(code)),
        _ => Ok(()),
    }
}

/// Produces payloads of any kind to partitions in turn, and waits for the acknowledgement of all.
pub struct Producer {
    topic: String,
    partitions: i32,
    producer: ThreadedProducer<DefaultProducerContext>,
    sent: u64,
    ledger: Ledger,
}

impl Producer {
    /// Makes a producer as fast as the machine allows, acknowledged by all replicas and idempotent.
    ///
    /// # Errors
    /// librdkafka cannot start.
    pub fn new(bootstrap: &str, topic: &str, partitions: i32) -> Result<Producer, KafkaError> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            .set("linger.ms", "20")
            .set("batch.size", "1000000")
            .set("queue.buffering.max.messages", "500000")
            .create()?;
        Ok(Producer { topic: topic.to_owned(), partitions, producer, sent: 0, ledger: Ledger::default() })
    }

    /// Sends one value; waits while the queue is full.
    ///
    /// # Errors
    /// Kafka refuses the record.
    pub fn send(&mut self, value: Option<&[u8]>) -> Result<(), KafkaError> {
        let partition = i32::try_from(self.sent % self.partitions.unsigned_abs().max(1) as u64).unwrap_or(0);
        self.sent += 1;
        loop {
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.topic).partition(partition);
            record.payload = value;
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    self.producer.poll(QUEUE_FULL_WAIT);
                    std::thread::sleep(QUEUE_FULL_WAIT);
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Sends the events with these numbers.
    ///
    /// # Errors
    /// Kafka refuses a record.
    pub fn send_events(&mut self, events: &Events, numbers: std::ops::Range<u64>) -> Result<(), KafkaError> {
        numbers.map(|n| events.payload(n)).try_for_each(|payload| self.send_event(&payload))
    }

    /// Sends one event.
    ///
    /// # Errors
    /// Kafka refuses the record.
    pub fn send_event(&mut self, payload: &Payload) -> Result<(), KafkaError> {
        self.send(Some(&payload.bytes))?;
        self.ledger.note(payload);
        Ok(())
    }

    /// Waits until all is acknowledged. Returns the ledger of the events.
    ///
    /// # Errors
    /// Not all was acknowledged in time.
    pub fn finish(self) -> Result<Ledger, KafkaError> {
        self.producer.flush(FLUSH_TIMEOUT)?;
        Ok(self.ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_gives_the_same_payload_and_some_are_broken() {
        let events = Events::default();
        let mut ledger = Ledger::default();
        for n in 0..10_000 {
            assert_eq!(events.payload(n), events.payload(n));
            ledger.note(&events.payload(n));
        }
        assert!((200..400).contains(&ledger.broken), "{ledger:?}");
        assert!(ledger.by_type.is_sorted_by(|a, b| a > b), "{ledger:?}");
    }

    #[test]
    fn events_have_the_size_asked_for_unless_they_are_larger_without_metadata() {
        for bytes in [10, 300, 1_000, 100_000] {
            let events = Events { broken_percent: 0, size_bytes: Some(bytes), ..Events::default() };
            let json = events.payload(3).bytes;
            assert!(json.len() == bytes || (bytes == 10 && json.len() < 250), "{} bytes", json.len());
            let event: serde_json::Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(event.get("metadata").is_some(), bytes > 10);
        }
    }

    #[test]
    fn the_text_is_what_python_writes() {
        let last_day = NaiveDate::from_ymd_opt(2026, 11, 24).unwrap();
        let events = Events { last_day, broken_percent: 0, ..Events::default() };
        let text = String::from_utf8(events.payload(7).bytes).unwrap();
        assert!(text.starts_with("{\"campaign_id\": \"") && text.contains("\", \"event_time\": \"2026-11-2"), "{text}");
    }
}
