//! Wakes librdkafka's fetchers after a resumption, from a thread of its own.
//!
//! librdkafka's fetcher of a broker sleeps for up to a second (`rd_kafka_max_block_ms`) while all its partitions are paused, and nobody
//! tells it of a resumption. Any request to the broker wakes it; the answer does not matter. But a broker answers a connection's requests
//! in turn, and this one waits behind a fetch that waits for records (`fetch.wait.max.ms`). So the reader must not wait for it.
//!
//! Must never let a request time out before such a fetch ends: librdkafka closes the connection then, and all requests on it fail.

use crate::kafka::consumer::Consumer;
use rdkafka::consumer::Consumer as _;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// No further request is made for the same resumption after this long. Where brokers answer at once, all are woken by then.
const ROUND: Duration = Duration::from_millis(100);

/// The thread. Dropping it waits for the request under way.
pub struct Waker {
    resumed: Option<Sender<Vec<i32>>>,
    thread: Option<JoinHandle<()>>,
}

impl Waker {
    /// Starts the thread. It holds the consumer until it is dropped.
    pub fn start(consumer: Arc<Consumer>, topic: String) -> Waker {
        let (resumed, partitions) = channel::<Vec<i32>>();
        let thread = std::thread::spawn(move || {
            while let Ok(first) = partitions.recv() {
                let all: BTreeSet<i32> = partitions.try_iter().flatten().chain(first).collect();
                wake(&consumer, &topic, all);
            }
        });
        Waker { resumed: Some(resumed), thread: Some(thread) }
    }

    /// These partitions were resumed.
    pub fn wake(&self, partitions: &[i32]) {
        if let Some(resumed) = &self.resumed {
            // A thread that has ended wakes nobody, and the fetchers wake up by themselves.
            let _ = resumed.send(partitions.to_vec());
        }
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        self.resumed = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn wake(consumer: &Consumer, topic: &str, partitions: BTreeSet<i32>) {
    let begun = Instant::now();
    for partition in partitions {
        if consumer.fetch_watermarks(topic, partition, TIMEOUT).is_err() || begun.elapsed() > ROUND {
            break;
        }
    }
}
