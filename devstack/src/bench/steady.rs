//! The steady producer: it sends events at a given rate, independent of the system's answers (an open loop).
//!
//! Each event has a time at which it is due, and its delay counts from there. So a delayed producer cannot make the
//! system look faster. Must never slow down silently: its result includes its own delay.

use super::figures::Delays;
use super::{AnyError, Interrupt};
use crate::producer::{Events, Ledger, Payload, Producer};
use std::time::{Duration, Instant};

/// Number of distinct payloads. They are made before the clock starts and sent again and again: making one takes as
/// long as sending it.
const PAYLOADS: u64 = 1 << 16;
/// Time between two looks at the events that are due.
const TICK: Duration = Duration::from_millis(2);

/// A steady rate: event `n` is due `n / rate` after the start.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Number of events per second.
    pub per_second: f64,
    /// Number of events in all.
    pub events: u64,
}

impl Pace {
    /// Makes a pace from a rate in events per second, and from its duration.
    pub fn new(per_second: u64, lasts: Duration) -> Pace {
        let per_second = per_second as f64;
        Pace { per_second, events: (per_second * lasts.as_secs_f64()).round() as u64 }
    }

    /// Returns the time after the start at which an event is due.
    pub fn due_at(&self, event: u64) -> Duration {
        Duration::from_secs_f64(event as f64 / self.per_second)
    }

    /// Returns the number of events that are due at this time after the start.
    pub fn due(&self, elapsed: Duration) -> u64 {
        // The first event is due at once.
        ((elapsed.as_secs_f64() * self.per_second) as u64 + 1).min(self.events)
    }
}

/// The result of a steady producer.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// The ledger of its events.
    pub ledger: Ledger,
    /// Delay between the due time of events and their hand-over to librdkafka, one figure for each tick.
    pub late: Delays,
}

/// Sends the events of a pace to a topic's partitions in turn, event 0 at `started`, and waits until all are
/// acknowledged. Event `n` goes to partition `n % partitions`, and has the index `n / partitions` there.
///
/// # Errors
/// Kafka refuses a record, or a signal came.
pub fn produce_steadily(
    mut producer: Producer,
    shape: &Events,
    pace: Pace,
    started: Instant,
    interrupt: &Interrupt,
) -> Result<Sent, AnyError> {
    let payloads: Vec<Payload> = (0..PAYLOADS.min(pace.events)).map(|n| shape.payload(n)).collect();
    let mut late = Delays::default();
    let mut sent = 0;
    std::thread::sleep(started.saturating_duration_since(Instant::now()));
    while sent < pace.events {
        interrupt.check(started)?;
        let elapsed = started.elapsed();
        let due = pace.due(elapsed);
        if due > sent {
            late.record(elapsed.saturating_sub(pace.due_at(sent)).as_millis() as u64);
        }
        for n in sent..due {
            producer.send_event(&payloads[(n % PAYLOADS) as usize])?;
        }
        sent = due;
        std::thread::sleep(TICK);
    }
    Ok(Sent { ledger: producer.finish()?, late })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_does_not_depend_on_what_was_sent() {
        let pace = Pace::new(1_000, Duration::from_secs(2));
        assert_eq!(
            (pace.due(Duration::ZERO), pace.due(Duration::from_millis(10)), pace.due(Duration::from_secs(9))),
            (1, 11, 2_000)
        );
        // An event is due exactly when it is counted as due.
        for event in [0, 1, 999, 1_999] {
            let at = pace.due_at(event);
            assert!(
                pace.due(at + Duration::from_nanos(1)) > event
                    && pace.due(at.saturating_sub(Duration::from_micros(1))) <= event + u64::from(event == 0)
            );
        }
    }
}
