//! Finds in the members' logs the batches that a next owner completed.

use std::collections::{BTreeMap, BTreeSet};

/// A member's line about a batch that it found announced.
const COMPLETING: &str = "completing an announced batch";
/// A member's line about its assignment. Each begins another ownership.
const ASSIGNED: &str = "assigned partitions=";

/// Batches of one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inherited {
    /// Number of batches of groups that a next owner completed.
    pub of_groups: u64,
    /// Number of batches that two owners or more began to complete, one after the other.
    pub in_a_row: u64,
}

/// Counts the batches. `logs`: what each slot's members wrote in the round; `of_groups`: partition and end of the batches that were in
/// a group.
pub fn count(logs: &[String], of_groups: &BTreeSet<(i32, i64)>) -> Inherited {
    let mut owners: BTreeMap<(i32, i64), BTreeSet<(usize, u32)>> = BTreeMap::new();
    for (slot, log) in logs.iter().enumerate() {
        let mut assignment = 0;
        for line in log.lines() {
            assignment += u32::from(line.contains(ASSIGNED));
            let batch = || Some((field(line, "partition=")?, field(line, "until=")?));
            if line.contains(COMPLETING)
                && let Some(batch) = batch()
            {
                owners.entry(batch).or_default().insert((slot, assignment));
            }
        }
    }
    Inherited {
        of_groups: owners.keys().filter(|batch| of_groups.contains(batch)).count() as u64,
        in_a_row: owners.values().filter(|owners| owners.len() > 1).count() as u64,
    }
}

fn field<T: std::str::FromStr>(line: &str, name: &str) -> Option<T> {
    line.split_once(name)?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_in_a_row_are_told_from_one_that_tries_again() {
        let line = |partition, until| {
            format!("INFO {COMPLETING}: its records are read again partition={partition} from=1 until={until}\n")
        };
        let first = format!("INFO {ASSIGNED}[0, 1]\n{}{}", line(0, 7), line(0, 7));
        let second = format!("INFO {ASSIGNED}[1]\n{}INFO {ASSIGNED}[]\nINFO {ASSIGNED}[1]\n{}", line(1, 9), line(1, 9));
        let of_groups = BTreeSet::from([(0, 7), (2, 9)]);
        assert_eq!(count(&[first, second], &of_groups), Inherited { of_groups: 1, in_a_row: 1 });
    }
}
