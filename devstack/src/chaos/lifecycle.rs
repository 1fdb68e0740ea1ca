//! The messages of a lifecycle topic, which members store beside the events under the same faults.
//!
//! All messages are good ones. So the rejected rows and the letters of a lane belong to its events alone.

use super::AnyError;
use super::cluster::Topic;
use super::feed::{Feed, SharedLedger};
use super::ledger::EVENT;
use super::store::Tables;
use super::verify::{self, Ends, LOOK_INTERVAL, Stored};
use crate::producer::Events;
use std::time::{Duration, Instant};

/// Number of partitions of the topic.
const PARTITIONS: i32 = 2;

/// The lifecycle topic of a lane with its producer.
pub struct Lifecycle {
    topic: Topic,
    feed: Feed,
    ledger: SharedLedger,
}

impl Lifecycle {
    /// Makes the topic.
    ///
    /// # Errors
    /// Kafka does not make it.
    pub fn create(bootstrap: &str, name: &str, seed: u64) -> Result<Lifecycle, AnyError> {
        let ledger = SharedLedger::default();
        let topic = Topic::create(bootstrap, name, PARTITIONS)?;
        Ok(Lifecycle { topic, feed: Feed::new(bootstrap, name, seed, false, &ledger)?, ledger })
    }

    /// Sends the message of the next campaign; does not wait for the acknowledgement.
    ///
    /// # Errors
    /// The producer does not take it.
    pub fn send(&mut self) -> Result<(), AnyError> {
        let number = self.feed.sent;
        let message = Events::default().announcement(number, 30, "{\"size\": 3}");
        let partition = i32::try_from(number % u64::from(PARTITIONS.unsigned_abs()))?;
        self.feed.send_one(partition, message.as_bytes(), EVENT)
    }

    /// Waits until Kafka has acknowledged all messages. Returns the ends of the partitions.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn settle(&self) -> Result<Ends, AnyError> {
        self.feed.settle()?;
        verify::ends(&self.topic, &self.ledger)
    }

    /// Checks that a server stores each message exactly once, within this time.
    ///
    /// # Errors
    /// A server does not answer.
    pub fn check(&self, tables: &Tables<'_>, ends: &Ends, within: Duration) -> Result<Vec<String>, AnyError> {
        let (wanted, deadline) = (ends.values().sum::<i64>(), Instant::now() + within);
        let count = || -> Result<i64, AnyError> {
            Ok(tables.ask("SELECT count() FROM {db}.campaign_lifecycle{local}")?.parse()?)
        };
        while count()? < wanted && Instant::now() < deadline {
            std::thread::sleep(LOOK_INTERVAL);
        }
        tables.sync()?;
        let stored = Stored::of_lifecycle(tables)?;
        let found = verify::rows(&self.ledger.lock(), ends, &stored);
        Ok(found.into_iter().map(|violation| format!("of the lifecycle topic: {violation}")).collect())
    }

    /// Deletes the topic.
    ///
    /// # Errors
    /// Kafka does not do it.
    pub fn delete(&self) -> Result<(), AnyError> {
        self.topic.delete()
    }
}
