//! The bare consume loop that `cargo peers` measures Tallyhouse against: librdkafka, well tuned, and nothing else.
//!
//! With `--decode` Tallyhouse's own decoder also reads each value. It prints one line of JSON at the end. Must never
//! do anything per record beyond what its name says: it is the floor of what a consumer costs.

use clap::Parser;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};
use tallyhouse_core::decode::{TimeBounds, decode};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// The bounds of event times, with the defaults of `decode.*`: ten years back and two days ahead.
const BOUNDS: TimeBounds = TimeBounds { past_seconds_max: 3_650 * 86_400, future_seconds_max: 2 * 86_400 };

/// Reads a topic from its beginning, and does nothing with it.
#[derive(Parser)]
struct Arguments {
    /// Brokers: host:port, separated by commas.
    #[arg(long)]
    brokers: String,
    /// The topic that is read.
    #[arg(long)]
    topic: String,
    /// Number of records to read.
    #[arg(long)]
    events: u64,
    /// Also decode each value, as Tallyhouse does.
    #[arg(long)]
    decode: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &arguments.brokers)
        .set("group.id", "consume-loop")
        .set("enable.auto.commit", "false")
        .set("queued.min.messages", "1000000")
        .set("fetch.queue.backoff.ms", "5")
        .create()?;
    consumer.assign(&beginning(&consumer, &arguments.topic)?)?;
    let (mut records, mut bytes, mut events) = (0, 0, 0);
    let mut first = None;
    while records < arguments.events {
        let Some(message) = consumer.poll(POLL_TIMEOUT) else { continue };
        let message = message?;
        first.get_or_insert_with(Instant::now);
        records += 1;
        bytes += message.payload_len();
        if arguments.decode {
            events += u64::from(decode(message.payload(), message.timestamp().to_millis(), &BOUNDS).is_ok());
        }
    }
    let read_seconds = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    println!(r#"{{"records":{records},"bytes":{bytes},"events":{events},"read_seconds":{read_seconds:.6}}}"#);
    Ok(())
}

fn beginning(consumer: &BaseConsumer, topic: &str) -> Result<TopicPartitionList, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
    }
    Ok(list)
}
