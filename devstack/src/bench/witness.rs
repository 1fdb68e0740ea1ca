//! The witness: sees how far each partition is counted, again and again, and knows for each offset when it was due.
//!
//! Independent of what Tallyhouse tells of itself. Must never take an event for queryable before an answer has shown it.

use super::figures::Delays;
use super::{AnyError, Pace};
use std::time::Duration;

/// Events of a steady producer that were seen.
pub struct Witness {
    pace: Pace,
    /// The first event whose delay counts; those before it are the warm-up.
    first: u64,
    /// One past the last offset seen, by partition.
    ends: Vec<u64>,
    /// The delays of the first and of the second half of the events that count.
    halves: [Delays; 2],
}

impl Witness {
    /// Nothing is seen yet. Event `n` is in partition `n % partitions`, at offset `n / partitions`.
    pub fn new(pace: Pace, partitions: usize) -> Witness {
        Witness { pace, first: 0, ends: vec![0; partitions], halves: Default::default() }
    }

    /// The same, without the delays of what is due earlier than this after the start.
    #[must_use]
    pub fn after_warm_up(self, warm_up: Duration) -> Witness {
        Witness { first: self.pace.due(warm_up), ..self }
    }

    /// Takes the answer of a query with a source (`topic/partition` or `topic/partition@topic-id`) and its end in each line, so long
    /// after the start.
    ///
    /// # Errors
    /// The answer is something else.
    pub fn see(&mut self, answer: &str, elapsed: Duration) -> Result<(), AnyError> {
        for line in answer.lines() {
            let read = || {
                let (source, end) = line.split_once('\t')?;
                let partition = source.rsplit_once('/')?.1;
                let partition = partition.split_once('@').map_or(partition, |(number, _)| number);
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
            if event < self.first {
                continue;
            }
            let delay = elapsed.saturating_sub(self.pace.due_at(event));
            let half = usize::from(event * 2 >= self.first + self.pace.events);
            self.halves[half].record(delay.as_millis() as u64);
        }
        self.ends[partition] = self.ends[partition].max(end);
    }

    /// Events that were seen.
    pub fn seen(&self) -> u64 {
        self.ends.iter().sum()
    }

    /// Returns the progress, for people.
    pub fn progress(&self) -> String {
        let (least, most) = (self.ends.iter().min().unwrap_or(&0), self.ends.iter().max().unwrap_or(&0));
        format!("{} of {} events are counted, {least} to {most} of each partition", self.seen(), self.pace.events)
    }

    /// The delays of the first and of the second half of the events that count.
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

    #[test]
    fn a_warm_up_is_seen_and_does_not_count() {
        let mut witness =
            Witness::new(Pace::new(10, Duration::from_secs(1)), 1).after_warm_up(Duration::from_millis(550));
        // Events 6 to 9 count, due after 600 to 900 ms.
        witness.see("a/0\t10", Duration::from_millis(2_000)).unwrap();
        let [first, second] = witness.halves();
        assert_eq!((witness.seen(), first.quantile_ms(1.0), second.quantile_ms(1.0)), (10, Some(1_410), Some(1_210)));
        assert_eq!(first.plus(second).quantile_ms(0.0), Some(1_110));
    }
}
