//! Prints a line for each round, and the table at the end.

use super::announced::Seen;
use super::inherited::Inherited;
use super::lane::Lane;
use super::plan::{Fault, Kind, LARGE_BATCH, Plan};
use super::still;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The result of a round.
pub(super) struct RoundResult {
    /// For each fault of the plan: true if it took effect.
    pub effects: Vec<bool>,
    /// The violations, in words.
    pub violations: Vec<String>,
    /// Number of records produced.
    pub records: u64,
    /// Time from the first fault to the last check.
    pub took: Duration,
    /// True if two replicas took inserts of batches in the same second.
    pub both_written: bool,
    /// True if a member changed to another ClickHouse server.
    pub changed_server: bool,
    /// True if ClickHouse lost parts with the only replica that had them.
    pub lost_parts: bool,
    /// The longest time that a partition with records stood still after the last fault.
    pub still: Duration,
    /// Number of static members that Kafka fenced.
    pub fenced: u64,
    /// Number of members that librdkafka left behind.
    pub left_behind: u64,
    /// Maximum of the bytes in a member's windows and batches.
    pub held_bytes: u64,
    /// Maximum of a member's resident memory, in bytes.
    pub rss_bytes: u64,
    /// The batches that were announced.
    pub seen: Seen,
    /// The batches that a next owner completed.
    pub inherited: Inherited,
    /// Number of inserts that a member broke off, as its lease expired while it sent them.
    pub late_inserts: u64,
    /// Number of times that a source left its group before its batch was committed.
    pub broken_groups: u64,
    /// Number of times that the memory limit began to pause a member's partitions.
    pub pauses: u64,
    /// Number of letters that were delivered more than once, in the group so far.
    pub repeated_letters: u64,
}

/// Number of sources of a group that counts as large.
const LARGE_GROUP: u64 = 4;

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    injected: u64,
    took_effect: u64,
    violated: u64,
}

/// The result of all rounds.
#[derive(Debug)]
pub struct Report {
    is_cluster: bool,
    both_written: u64,
    changed_server: u64,
    lost_parts: u64,
    kinds: BTreeMap<Kind, Tally>,
    rounds: u64,
    violated: u64,
    records: u64,
    fenced: u64,
    left_behind: u64,
    held_bytes: u64,
    rss_bytes: u64,
    slowest: Duration,
    still: Duration,
    /// Numbers of rounds with a large batch, with a pause, and with both.
    large: u64,
    paused: u64,
    /// Numbers of rounds with a group of four sources, and with a group that a source left early.
    grouped: u64,
    broken_groups: u64,
    /// Number of rounds in which a next owner completed a batch of a group.
    inherited_groups: u64,
    /// Number of rounds in which two owners or more began to complete one batch.
    in_a_row: u64,
    /// Number of rounds in which a member broke an insert off.
    late_inserts: u64,
    large_and_paused: u64,
    largest_batch: u64,
    large_took: Duration,
    /// Number of repeated letters of each group.
    repeated_letters: BTreeMap<String, u64>,
    /// Number of times that ClickHouse ended by itself and was restarted.
    pub(super) clickhouse_deaths: u64,
}

impl Report {
    pub(super) fn new(kinds: &[Kind], is_cluster: bool) -> Report {
        Report {
            is_cluster,
            both_written: 0,
            changed_server: 0,
            lost_parts: 0,
            kinds: kinds.iter().map(|&kind| (kind, Tally::default())).collect(),
            rounds: 0,
            violated: 0,
            records: 0,
            fenced: 0,
            left_behind: 0,
            held_bytes: 0,
            rss_bytes: 0,
            slowest: Duration::ZERO,
            still: Duration::ZERO,
            large: 0,
            paused: 0,
            grouped: 0,
            broken_groups: 0,
            inherited_groups: 0,
            in_a_row: 0,
            late_inserts: 0,
            large_and_paused: 0,
            largest_batch: 0,
            large_took: Duration::ZERO,
            repeated_letters: BTreeMap::new(),
            clickhouse_deaths: 0,
        }
    }

    /// Takes a round in and prints its line.
    pub(super) fn note(&mut self, result: &RoundResult, plan: &Plan, lane: &Lane<'_>, seed: u64) {
        let violated = !result.violations.is_empty();
        for (fault, &took_effect) in plan.faults.iter().zip(&result.effects) {
            let tally = self.kinds.entry(fault.kind).or_default();
            tally.injected += 1;
            tally.took_effect += u64::from(took_effect);
            tally.violated += u64::from(violated);
        }
        self.rounds += 1;
        self.violated += u64::from(violated);
        self.records += result.records;
        self.fenced += result.fenced;
        self.left_behind += result.left_behind;
        self.held_bytes = self.held_bytes.max(result.held_bytes);
        self.rss_bytes = self.rss_bytes.max(result.rss_bytes);
        self.slowest = self.slowest.max(result.took);
        self.still = self.still.max(result.still);
        let (is_large, is_paused) = (result.seen.records >= LARGE_BATCH, result.pauses > 0);
        self.large += u64::from(is_large);
        self.paused += u64::from(is_paused);
        self.grouped += u64::from(result.seen.sources >= LARGE_GROUP);
        self.broken_groups += u64::from(result.broken_groups > 0);
        self.inherited_groups += u64::from(result.inherited.of_groups > 0);
        self.both_written += u64::from(result.both_written);
        self.changed_server += u64::from(result.changed_server);
        self.lost_parts += u64::from(result.lost_parts);
        self.in_a_row += u64::from(result.inherited.in_a_row > 0);
        self.late_inserts += u64::from(result.late_inserts > 0);
        self.large_and_paused += u64::from(is_large && is_paused);
        self.largest_batch = self.largest_batch.max(result.seen.records);
        self.repeated_letters.insert(lane.name.clone(), result.repeated_letters);
        self.large_took += if is_large { result.took } else { Duration::ZERO };
        let faults: Vec<String> =
            plan.faults.iter().zip(&result.effects).map(|(fault, &took)| describe(fault, took)).collect();
        let settings = match lane.membership.is_static {
            true => format!("{}, static", lane.membership.assignment),
            false => lane.membership.assignment.to_owned(),
        };
        println!(
            "round {:>5}  {}  {:>6} records  batches up to {:>6}  groups up to {:>2}  pauses {:>2}  {:>5.1} s  still {:>4.1} s  {}  [{settings}]{}",
            plan.round,
            if violated { "VIOLATED" } else { "exact" },
            result.records,
            result.seen.records,
            result.seen.sources,
            result.pauses,
            result.took.as_secs_f64(),
            result.still.as_secs_f64(),
            faults.join(", "),
            if result.left_behind > 0 { "  a member was left behind and ended" } else { "" },
        );
        if violated {
            for violation in &result.violations {
                println!("  {violation}");
            }
            println!("  logs: {} (data beside it)", lane.folder.display());
            println!(
                "  again: cargo chaos --seed {seed} --round {0}, or with the rounds before it: --from {0} --rounds 1",
                plan.round
            );
        }
    }

    /// Returns the number of rounds with a violation.
    pub fn violations(&self) -> u64 {
        self.violated
    }

    /// Returns the number of rounds that were run and verified.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Returns the kinds that never took effect.
    pub fn without_effect(&self) -> Vec<Kind> {
        self.kinds.iter().filter(|(_, tally)| tally.took_effect == 0).map(|(&kind, _)| kind).collect()
    }
}

fn describe(fault: &Fault, took_effect: bool) -> String {
    let detail = match fault.kind {
        Kind::KillAtPoint | Kind::EvictTokens => format!("({}:{})", fault.point, fault.times),
        _ => String::new(),
    };
    format!("{}{detail}{}", fault.kind.name(), if took_effect { "" } else { " (no effect)" })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| fault | injected | took effect | in rounds with a violation |")?;
        writeln!(f, "|---|--:|--:|--:|")?;
        for (kind, Tally { injected, took_effect, violated }) in &self.kinds {
            writeln!(f, "| {} | {injected} | {took_effect} | {violated} |", kind.name())?;
        }
        let total = |of: fn(&Tally) -> u64| self.kinds.values().map(of).sum::<u64>();
        let (injected, took_effect) = (total(|tally| tally.injected), total(|tally| tally.took_effect));
        writeln!(f, "| **all** | {injected} | {took_effect} | |\n")?;
        self.sizes(f)?;
        let mib = |bytes: u64| bytes >> 20;
        write!(
            f,
            "{} rounds, {} records, {} rounds with a violation. Slowest round {:.1} s. A partition with records stood still for at most \
             {:.1} s after a round's last fault, of {}. Windows and batches held at most {} MiB, a member's resident memory \
             was at most {} MiB. ClickHouse ended by itself {} times. {} static members were fenced and started again. {} members were \
             left behind by librdkafka, ended and were started again. {} dead letters were delivered again.",
            self.rounds,
            self.records,
            self.violated,
            self.slowest.as_secs_f64(),
            self.still.as_secs_f64(),
            still::described(self.is_cluster),
            mib(self.held_bytes),
            mib(self.rss_bytes),
            self.clickhouse_deaths,
            self.fenced,
            self.left_behind,
            self.repeated_letters.values().sum::<u64>(),
        )
    }
}

impl Report {
    /// Prints the rounds by the sizes that were measured in them, and a remark where they are too few.
    fn sizes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| measured | rounds |")?;
        writeln!(f, "|---|--:|")?;
        writeln!(f, "| an announced batch had {LARGE_BATCH} records or more | {} |", self.large)?;
        writeln!(f, "| consumption was paused for want of memory | {} |", self.paused)?;
        writeln!(f, "| both | {} |", self.large_and_paused)?;
        writeln!(f, "| an open group had {LARGE_GROUP} partitions or more | {} |", self.grouped)?;
        writeln!(f, "| a partition left its group before its end | {} |", self.broken_groups)?;
        writeln!(f, "| a next owner completed a batch of a group | {} |", self.inherited_groups)?;
        writeln!(f, "| owners in a row began to complete one batch | {} |", self.in_a_row)?;
        writeln!(f, "| a member that woke up broke its insert off | {} |", self.late_inserts)?;
        if self.is_cluster {
            writeln!(f, "| both replicas took inserts of batches in the same second | {} |", self.both_written)?;
            writeln!(f, "| a member changed to another replica | {} |", self.changed_server)?;
            writeln!(f, "| parts were lost with the only replica that had them | {} |", self.lost_parts)?;
        }
        writeln!(f)?;
        if self.large > 0 {
            let mean = self.large_took.as_secs_f64() / self.large as f64;
            writeln!(
                f,
                "The largest batch had {} records. A round with a large one took {mean:.1} s.",
                self.largest_batch
            )?;
        }
        if self.large * 4 < self.rounds {
            writeln!(f, "Fewer than a quarter of the rounds had a large batch.")?;
        }
        if self.paused * 10 < self.rounds {
            writeln!(f, "Consumption was paused in fewer than a tenth of the rounds.")?;
        }
        Ok(())
    }
}
