//! Turns the data that was read into findings. Pure.

use super::finding::{Code, Finding};
use std::collections::BTreeMap;
use tallyhouse_core::protocol::marks::Marks;
use tallyhouse_core::protocol::outlook::{Outlook, Position};
use tallyhouse_core::source::OffsetRange;

/// Number of offsets that are counted together in the search for gaps.
pub const BUCKET: u64 = 1 << 20;

/// Ranges of the log that lie nearer than this, in offsets, are read in one go. Otherwise each would need a new
/// fetch.
const NEAR: u64 = 10_000;

/// Compares Kafka's committed offset and the log's bounds with the tables.
pub fn offsets(position: &Position, group: &str) -> Vec<Finding> {
    let name = position.source.name();
    let outlook = position.outlook();
    let next = match &outlook {
        Outlook::GoesOn(words) => format!("`tallyhouse run` {words}"),
        Outlook::Stops(_) => "`tallyhouse run` stops the partition, see there".to_owned(),
    };
    let mut findings = Vec::new();
    if let Outlook::Stops(reason) = &outlook {
        let mut finding = Finding::new(Code::Stops, format!("`tallyhouse run` stops this partition: {reason}"));
        finding.reason = Some(reason.code());
        findings.push(finding.of(&name));
    }
    let (counted, stored) = (position.progress.counted_end, position.progress.stored_end);
    let Some(committed) = position.committed() else {
        if let Some(end) = counted.max(stored).filter(|_| position.metadata().is_ok()) {
            let marks = counted.map_or("none".to_owned(), |end| end.to_string());
            let message = format!(
                "the group {group} has no committed offset, but the tables have rows up to offset {end} (mark in daily: \
                 {marks}). {next}"
            );
            findings.push(Finding::new(Code::LostOffset, message).of(&name).at(end, end));
        }
        return findings;
    };
    let end = position.intent().map_or(committed, |(range, _)| range.end);
    if let Some(mark) = counted.filter(|&mark| mark > end) {
        let message =
            format!("the group {group} has committed offset {committed}, but daily is counted up to {mark}. {next}");
        findings.push(Finding::new(Code::OffsetBehindMarks, message).of(&name).at(committed, mark));
    }
    if let Some(stored) = stored.filter(|&stored| stored > end) {
        let message =
            format!("there are rows up to offset {stored}, and no intent announces any from {end} on. {next}");
        findings.push(Finding::new(Code::UnannouncedRows, message).of(&name).at(end, stored));
    }
    findings
}

/// Returns a finding about the open batch of a partition, with the part of it that is in the tables.
pub fn intent(position: &Position) -> Option<Finding> {
    let (range, counts) = position.intent()?;
    let none = Marks::default();
    let marks = position.marks.as_ref().unwrap_or(&none);
    let found = marks.counts();
    let months = marks.daily.values().filter(|&&end| end >= range.end).count();
    let state = match marks.show_applied(range, counts) {
        true => "applied, and about to be committed",
        false if found.rows + found.rejects + months as u64 == 0 => "not applied yet",
        false => "partly applied; the member that owns the partition completes it",
    };
    let message = format!(
        "batch {range} is announced with {} rows and {} rejects; the tables have {} and {}, and counters in {months} months: \
         {state}",
        counts.rows, counts.rejects, found.rows, found.rejects
    );
    let mut finding = Finding::new(Code::OpenIntent, message).of(position.source.name()).at(range.start, range.end);
    finding.rows = Some(counts.rows + counts.rejects);
    Some(finding)
}

/// Part of a range that holds fewer distinct offsets than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The part. It never crosses a bucket border unless nothing of it is stored.
    pub range: OffsetRange,
    /// True if nothing of it is stored at all.
    pub empty: bool,
}

/// Returns the parts of `range` that lack offsets, from the number of distinct offsets stored in each bucket.
pub fn suspects(range: OffsetRange, stored: &BTreeMap<u64, u64>) -> Vec<Suspect> {
    let mut suspects: Vec<Suspect> = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let bucket = start / BUCKET;
        // Far beyond the last stored offset one step replaces the steps from bucket to bucket.
        let next_stored = stored.range(bucket..).next().map_or(range.end, |(&bucket, _)| bucket * BUCKET);
        let end = if next_stored > start { next_stored } else { (bucket + 1) * BUCKET }.min(range.end);
        let found = stored.get(&bucket).copied().unwrap_or(0);
        let empty = found == 0;
        if found < end - start {
            match suspects.last_mut().filter(|last| last.empty && empty && last.range.end == start) {
                Some(last) => last.range.end = end,
                None => suspects.push(Suspect { range: OffsetRange { start, end }, empty }),
            }
        }
        start = end;
    }
    suspects
}

/// Joins sorted ranges that lie near each other, so that the log is read in few, long pieces.
pub fn spans(ranges: &[OffsetRange]) -> Vec<OffsetRange> {
    let mut spans: Vec<OffsetRange> = Vec::new();
    for &range in ranges {
        match spans.last_mut().filter(|span| range.start <= span.end + NEAR) {
            Some(span) => span.end = span.end.max(range.end),
            None => spans.push(range),
        }
    }
    spans
}

/// Offsets, kept as ranges of neighbours. They must be given in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// The first ranges, [`Runs::RANGES_MAX`] at most.
    pub ranges: Vec<OffsetRange>,
    /// Number of offsets, including those beyond the kept ranges.
    pub offsets: u64,
}

impl Runs {
    /// Maximum number of ranges that are kept.
    pub const RANGES_MAX: usize = 10_000;

    /// Takes the next offset.
    pub fn push(&mut self, offset: u64) {
        self.offsets += 1;
        let is_full = self.ranges.len() >= Self::RANGES_MAX;
        match self.ranges.last_mut().filter(|last| last.end == offset) {
            Some(last) => last.end += 1,
            None if !is_full => {
                self.ranges.push(OffsetRange { start: offset, end: offset + 1 });
            }
            None => {}
        }
    }
}

/// True if `offset` is in one of the sorted, separate ranges.
pub fn contains(ranges: &[OffsetRange], offset: u64) -> bool {
    let after = ranges.partition_point(|range| range.start <= offset);
    after > 0 && offset < ranges[after - 1].end
}
