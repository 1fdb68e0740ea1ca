//! The witness: looks at `daily` again and again, and knows for each offset when it was due.
//!
//! It does not depend on Tallyhouse's own reports. Must never take an event for queryable before an answer has shown
//! it.

use devstack::bench::figures::Delays;
use devstack::bench::{AnyError, Pace};
use std::time::Duration;

/// The events of a steady producer that were seen.
pub struct Witness {
    pace: Pace,
    /// One past the last offset seen, by partition.
    ends: Vec<u64>,
    /// The delays of the first and of the second half of the events.
    halves: [Delays; 2],
}

impl Witness {
    /// Makes a witness that has seen nothing yet. Event `n` is in partition `n % partitions`, at offset
    /// `n / partitions`.
    pub fn new(pace: Pace, partitions: usize) -> Witness {
        Witness { pace, ends: vec![0; partitions], halves: Default::default() }
    }

    /// Takes a query's answer, with `source` and `max(end_offset)` in each line, and the time since the start.
    ///
    /// # Errors
    /// The answer has another form.
    pub fn see(&mut self, answer: &str, elapsed: Duration) -> Result<(), AnyError> {
        for line in answer.lines() {
            // topic/partition@topic-id
            let read = || {
                let (source, end) = line.split_once('\t')?;
                let (partition, _) = source.rsplit_once('/')?.1.split_once('@')?;
                Some((partition.parse().ok()?, end.parse().ok()?))
            };
            let (partition, end) = read().ok_or_else(|| format!("{line:?} is not a source and an offset"))?;
            self.see_end(partition, end, elapsed);
        }
        Ok(())
    }

    fn see_end(&mut self, partition: usize, end: u64, elapsed: Duration) {
        let partitions = self.ends.len() as u64;
        for offset in self.ends[partition]..end {
            let event = offset * partitions + partition as u64;
            let delay = elapsed.saturating_sub(self.pace.due_at(event));
            let half = usize::from(event * 2 >= self.pace.events);
            self.halves[half].record(delay.as_millis() as u64);
        }
        self.ends[partition] = self.ends[partition].max(end);
    }

    /// Returns the number of events that were seen.
    pub fn seen(&self) -> u64 {
        self.ends.iter().sum()
    }

    /// Returns the progress, for people.
    pub fn progress(&self) -> String {
        let (least, most) = (self.ends.iter().min().unwrap_or(&0), self.ends.iter().max().unwrap_or(&0));
        format!("{} of {} events are counted, {least} to {most} of each partition", self.seen(), self.pace.events)
    }

    /// Returns the delays of the first and of the second half of the events.
    pub fn halves(&self) -> &[Delays; 2] {
        &self.halves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_offset_is_seen_once_and_its_delay_counts_from_when_it_was_due() {
        let pace = Pace::new(10, Duration::from_secs(1));
        let mut witness = Witness::new(pace, 2);
        // Partition 1 has events 1, 3, 5, 7, 9, due after 100 to 900 ms.
        witness.see("a.b/1@x-y_z\t2", Duration::from_millis(1_000)).unwrap();
        witness.see("a.b/1@x-y_z\t3\na.b/0@x-y_z\t5", Duration::from_millis(2_000)).unwrap();
        assert_eq!(witness.seen(), 8);
        let [first, second] = witness.halves();
        assert_eq!((first.quantile_ms(0.0), first.quantile_ms(1.0)), (Some(710), Some(2_010)));
        assert_eq!((second.quantile_ms(0.0), second.quantile_ms(1.0)), (Some(1_210), Some(1_510)));
        assert!(witness.see("x", Duration::ZERO).is_err());
    }
}
