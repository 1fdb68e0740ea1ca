//! Runs the protocol in a simulated world, with the faults of the real one, driven by seeds.
//!
//! One seed makes one world (log, members, number of faults) and one order of events, so any failure replays.
//! `TALLYHOUSE_SIM_SEED=7 cargo test -p tallyhouse-core simulation::every_seed_is_exact -- --exact --nocapture` runs that seed alone
//! and prints every move.
//! `TALLYHOUSE_SIM_SEEDS=1000000` runs that number of seeds. `TALLYHOUSE_SIM_GUARD=Group` searches for the need of these guards alone.
//!
//! Must never draw anything from outside of the seed. The generator is named, as `rand` may change its `StdRng` with a version.

mod log;
mod model;
mod server;
mod sink;
mod world;

use crate::guard::{Guard, with_off};
use crate::stream::{Stage, Stream};
use log::{DAYS, EMAIL_MAX, Log, Record};
use rand::distr::weighted::WeightedIndex;
use rand::{Rng, SeedableRng, distr::Distribution};
use rand_chacha::ChaCha12Rng;
use std::collections::{BTreeMap, HashMap};
use world::{Hides, Memory, Move, PLENTY, Rules, World};

const SEEDS: u64 = 10_000;
/// Number of moves after which a world without faults must have reached its end.
const MOVES_MAX: usize = 100_000;

/// The course of one seed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Run {
    /// All moves, each with its kind.
    moves: Vec<(Move, String)>,
    violation: Option<String>,
}

fn random_log(rules: Rules, random: &mut ChaCha12Rng) -> Log {
    let one_month = random.random_bool(0.3);
    let length = if rules.refuses { 40 } else { random.random_range(2..12) };
    let mut records: Vec<Record> = (0..length)
        .map(|_| match random.random_range(0..10) {
            0 | 1 => Record::Broken,
            2 => Record::Gap,
            _ => Record::Event { day: DAYS[random.random_range(0..if one_month { 2 } else { 3 })].0 },
        })
        .collect();
    records.push(Record::Broken);
    records.extend((0..random.random_range(0..=2)).map(|_| Record::Gap));
    let produced = random.random_range(0..=records.len());
    let mut log = Log::new(records, produced);
    if rules.refuses {
        log.email_bytes = EMAIL_MAX;
    }
    log
}

/// Returns the number of bytes that the windows of each of two or three members may hold. That is plenty, the first rows of a few
/// days, or a different share each.
fn random_shares(rules: Rules, random: &mut ChaCha12Rng) -> Vec<usize> {
    const SHARES: [usize; 4] = [16 << 10, 24 << 10, 48 << 10, PLENTY];
    // It is less than one partition has. It is large enough that three records are no more than the eighth that is lent.
    if rules.refuses {
        return vec![24 * (EMAIL_MAX + (8 << 10)); 2];
    }
    let drawn = SHARES[random.random_range(0..SHARES.len())];
    let same = random.random_bool(0.7);
    let members = random.random_range(2..=3);
    match rules.memory {
        Memory::Any => {}
        Memory::Plenty => return vec![PLENTY; members],
        Memory::Unequal => return [vec![PLENTY], vec![SHARES[0]; members - 1]].concat(),
    }
    (0..members).map(|_| if same { drawn } else { SHARES[random.random_range(0..SHARES.len())] }).collect()
}

/// The weights of the kinds of moves: a greater weight makes a kind more likely. Each seed draws them again, so that each has its
/// own habits. A kind that is rare in one seed is common in another ("swarm testing").
struct Weights {
    of_kind: HashMap<String, f64>,
    /// The only kinds of faults that happen, if any are named.
    focus: &'static [&'static str],
}

impl Weights {
    fn of(&mut self, chosen: Move, kind: &str, random: &mut ChaCha12Rng) -> f64 {
        let drawn = *self.of_kind.entry(kind.to_owned()).or_insert_with(|| {
            let rare = matches!(chosen, Move::Fault(_)) && random.random_bool(0.5);
            if rare { 0.0 } else { [0.02, 0.2, 1.0, 1.0, 1.0, 5.0][random.random_range(0..6)] }
        });
        match chosen {
            // With few kinds of faults, a late event must come late, or it has no effect.
            _ if kind.starts_with("late ") && !self.focus.is_empty() => 0.02,
            Move::Fault(_) if !self.focus.is_empty() => f64::from(u8::from(self.focus.contains(&kind))),
            _ => drawn,
        }
    }

    fn draw(&mut self, world: &World, moves: &[Move], random: &mut ChaCha12Rng) -> Option<(Move, String)> {
        let mut kinds: Vec<(Move, String)> = moves.iter().map(|&m| (m, world.kind(m))).collect();
        let weights: Vec<f64> = kinds.iter().map(|(chosen, kind)| self.of(*chosen, kind, random)).collect();
        let at = WeightedIndex::new(weights).ok()?.sample(random);
        Some(kinds.swap_remove(at))
    }
}

/// Runs one seed to its end: first with faults, then until everything is applied and committed.
fn run(seed: u64, rules: Rules) -> Run {
    run_telling(seed, rules, &[], |_, _| {})
}

fn run_telling(seed: u64, rules: Rules, focus: &'static [&'static str], notice: impl Fn(&World, Move)) -> Run {
    let mut random = ChaCha12Rng::seed_from_u64(seed);
    let logs = (0..random.random_range(if rules.gathers { 2..=3 } else { 1..=3 }))
        .map(|_| random_log(rules, &mut random))
        .collect();
    let faults = random.random_range(0..=12);
    let share = random.random_range(0.02..0.3);
    let rows_max = if rules.memory == Memory::Any && !rules.refuses { random.random_range(2..12) } else { 40 };
    let shares = random_shares(rules, &mut random);
    let mut world = World::new(rules, &shares, rows_max, logs, faults);
    let (mut weights, mut run) = (Weights { of_kind: HashMap::new(), focus }, Run::default());
    while world.violation.is_none() && !(rules.refuses && world.is_done()) {
        let moves = world.moves();
        let (faults, others): (Vec<Move>, Vec<Move>) = moves.iter().partition(|m| matches!(m, Move::Fault(_)));
        let fault = match others.is_empty() || random.random_bool(share) {
            true => weights.draw(&world, &faults, &mut random),
            false => None,
        };
        let Some((chosen, kind)) = fault.or_else(|| weights.draw(&world, &others, &mut random)) else { break };
        notice(&world, chosen);
        world.make(chosen);
        run.moves.push((chosen, kind));
        if run.moves.len() > MOVES_MAX {
            world.violation = Some(format!("no end after {MOVES_MAX} moves"));
        }
    }
    if world.violation.is_none() && !world.is_done() {
        world.violation = Some("nothing can happen any more, and not everything is committed".to_owned());
    }
    run.violation = world.violation;
    run
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Runs all seeds, or the one of the environment.
fn assert_every_seed_is_exact(rules: Rules, test: &str) {
    if let Some(seed) = from_environment("TALLYHOUSE_SIM_SEED") {
        let run = run_telling(seed, rules, &[], |world, chosen| println!("{}", world.describe(chosen)));
        assert_eq!(run.violation, None, "seed {seed}");
        return;
    }
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..from_environment("TALLYHOUSE_SIM_SEEDS").unwrap_or(SEEDS) {
        let run = run(seed, rules);
        let replay = format!(
            "TALLYHOUSE_SIM_SEED={seed} cargo test -p tallyhouse-core simulation::{test} -- --exact --nocapture"
        );
        assert_eq!(run.violation, None, "after {} moves; {replay}", run.moves.len());
        run.moves.into_iter().for_each(|(_, kind)| *counts.entry(kind).or_default() += 1);
    }
    println!("moves by kind: {counts:?}");
}

/// No seed loses, doubles or blocks anything.
#[test]
fn every_seed_is_exact() {
    assert_every_seed_is_exact(Rules::REAL, "every_seed_is_exact");
}

/// Returns the first seed that ends in a violation without a guard, and in none with it.
fn first_violation(
    off: Option<Guard>,
    rules: Rules,
    with: Rules,
    focus: &'static [&'static str],
) -> Option<(u64, String)> {
    let violation = |seed, rules| run_telling(seed, rules, focus, |_, _| {}).violation;
    let without = |seed| off.map_or_else(|| violation(seed, rules), |guard| with_off(guard, || violation(seed, rules)));
    let shown = |seed: &u64| violation(*seed, with).is_none();
    (0..10 * SEEDS).filter_map(|seed| Some((seed, without(seed)?))).find(|(seed, _)| shown(seed))
}

/// A guard is either not needed or not tested if nothing notices its removal. If only a rare meeting of faults needs a guard, the
/// test uses those faults.
#[test]
fn without_any_one_guard_a_violation_is_found() {
    let real = Rules::REAL;
    let (plenty, unequal) = (Rules { memory: Memory::Plenty, ..real }, Rules { memory: Memory::Unequal, ..real });
    let groups = Rules { gathers: true, ..plenty };
    let replicas = Rules { replicas: 2, ..plenty };
    let confirms = Rules { confirms: true, ..replicas };
    let for_good = Rules { hides: Hides::ForGood, ..real };
    let lifecycle = Rules { stream: Stream::Lifecycle(Stage::AudienceReady), ..real };
    let ours: [(Guard, Rules, &'static [&'static str]); 38] = [
        (Guard::Mark, lifecycle, &[]),
        (Guard::Behind, lifecycle, &["Restore", "Crash"]),
        (Guard::CountersLast, lifecycle, &["LoseCommitted", "Crash"]),
        (Guard::Overtaken, Rules { memory: Memory::Plenty, ..lifecycle }, &["Restamp", "Revoke"]),
        (Guard::Intent, real, &[]),
        (Guard::Token, real, &[]),
        (Guard::Mark, real, &[]),
        (Guard::Verify, real, &[]),
        (Guard::Shown, real, &[]),
        (Guard::Hidden, real, &["KillSink", "HideTable"]),
        (Guard::Shown, for_good, &["Hide", "Crash"]),
        (Guard::Shown, for_good, &["HideTable", "Crash"]),
        (Guard::Shown, for_good, &["ShowOld", "Crash"]),
        (Guard::Behind, real, &["Restore", "Crash"]),
        (Guard::Again, real, &["Restore", "Crash"]),
        (Guard::Doubt, real, &["ShowOld", "Crash"]),
        (Guard::Verify, real, &["Restore", "Crash"]),
        (Guard::Expired, real, &["Age", "RemoveExpired", "Crash"]),
        (Guard::CountersLast, real, &[]),
        (Guard::Overtaken, plenty, &["Restamp", "Revoke"]),
        (Guard::Doubt, real, &["StaleLog", "Crash"]),
        (Guard::Lease, real, &["Expire", "ForgetTokens"]),
        (Guard::Compare, plenty, &["AbandonCommit", "Crash", "AbandonInsert"]),
        (Guard::End, real, &["StaleEnd", "Crash", "LoseCommitted"]),
        (Guard::Whole, real, &["CutShort", "Crash"]),
        (Guard::Position, real, &["LosePosition"]),
        (Guard::Fill, real, &["LosePosition", "Crash", "LoseCommitAnswer"]),
        (Guard::Fill, real, &["LoseWindow"]),
        (Guard::Permit, real, &["Crash"]),
        (Guard::Identity, real, &["TellIds", "Crash"]),
        (Guard::Quiet, unequal, &["Crash", "Expire", "ForgetTokens"]),
        (Guard::GroupToken, groups, &["Revoke"]),
        (Guard::Leave, groups, &["Revoke", "Crash"]),
        (Guard::WholeGroup, groups, &["Revoke"]),
        (Guard::Sync, replicas, &["Switch", "Crash"]),
        (Guard::OneReplica, replicas, &["Switch", "Crash"]),
        (Guard::Confirm, confirms, &["LoseDisk"]),
        (Guard::Quarantine, confirms, &["LoseDisk", "AbandonInsert"]),
    ];
    let only = std::env::var("TALLYHOUSE_SIM_GUARD").unwrap_or_default();
    let mut found: Vec<(String, Option<(u64, String)>)> = ours
        .into_iter()
        .filter(|(guard, ..)| format!("{guard:?}").contains(&only))
        .map(|(guard, rules, focus)| (format!("{guard:?}"), first_violation(Some(guard), rules, rules, focus)))
        .collect();
    found.push(("the broker's fence".into(), first_violation(None, Rules { fence: false, ..real }, real, &[])));
    let refuses = Rules { refuses: true, ..real };
    let share = first_violation(Some(Guard::Share), refuses, refuses, &[]);
    found.push(("the share of one partition that waits".into(), share));
    let no_tokens = Rules { tokens: false, ..real };
    let no_wait = Rules { await_ended: false, ..no_tokens };
    found.push(("waiting for running inserts".into(), first_violation(None, no_wait, no_tokens, &[])));
    let believes = Rules { proves_answers: false, ..real };
    found.push(("proof of an acknowledgement".into(), first_violation(None, believes, real, &["Answer"])));
    let gives_up = Rules { outlasts_keeper: false, ..replicas };
    let phantom = first_violation(None, gives_up, replicas, &["GiveUpKeeper"]);
    found.push(("an insert that outlasts Keeper".into(), phantom));
    for (guard, violation) in &found {
        println!("without {guard}: {violation:?}");
    }
    let unnoticed: Vec<_> = found.iter().filter(|(_, violation)| violation.is_none()).map(|(guard, _)| guard).collect();
    assert!(unnoticed.is_empty(), "no violation is found without {unnoticed:?}");
}

/// With a deduplication window of 0 the marks alone keep the counts exact, as long as no insert begins after its sender is gone.
#[test]
fn every_seed_is_exact_without_tokens() {
    let rules = Rules { tokens: false, ..Rules::REAL };
    for seed in 0..SEEDS {
        assert_eq!(run(seed, rules).violation, None, "seed {seed}");
    }
}

/// A partition whose inserts are refused permanently stops no other.
#[test]
fn one_that_waits_stops_no_other() {
    let rules = Rules { refuses: true, ..Rules::REAL };
    if from_environment("TALLYHOUSE_SIM_SEED").is_some() {
        return assert_every_seed_is_exact(rules, "");
    }
    for seed in 0..SEEDS / 20 {
        assert_eq!(run(seed, rules).violation, None, "seed {seed}");
    }
}

/// Rows that are hidden permanently stop their partition after one repeat.
#[test]
fn what_is_hidden_for_good_stops_its_partition() {
    let rules = Rules { hides: Hides::ForGood, ..Rules::REAL };
    let mut stopped = 0;
    for seed in 0..SEEDS / 10 {
        let is_stopped = std::cell::Cell::new(false);
        let run = run_telling(seed, rules, &["Hide", "Crash"], |world, _| {
            is_stopped.set(is_stopped.get() || world.has_not_shown())
        });
        assert_eq!(run.violation, None, "seed {seed}");
        stopped += u64::from(is_stopped.get());
    }
    assert!(stopped > 0, "no partition stopped");
}

/// Groups of all partitions of a member, which are rare if each window may also be taken alone.
#[test]
fn every_seed_is_exact_with_groups() {
    let rules = Rules { memory: Memory::Plenty, gathers: true, ..Rules::REAL };
    assert_every_seed_is_exact(rules, "every_seed_is_exact_with_groups");
}

/// Members use any of two replicas, each of which shows what it has fetched.
#[test]
fn every_seed_is_exact_on_replicas() {
    let rules = Rules { replicas: 2, ..Rules::REAL };
    assert_every_seed_is_exact(rules, "every_seed_is_exact_on_replicas");
}

/// Groups of members that use any of two replicas.
#[test]
fn every_seed_is_exact_with_groups_on_replicas() {
    let rules = Rules { memory: Memory::Plenty, gathers: true, replicas: 2, ..Rules::REAL };
    assert_every_seed_is_exact(rules, "every_seed_is_exact_with_groups_on_replicas");
}

/// A replica loses its disk at any moment, and each end was confirmed by the other one before.
#[test]
fn every_seed_is_exact_if_a_second_replica_confirms() {
    let rules = Rules { replicas: 2, confirms: true, ..Rules::REAL };
    assert_every_seed_is_exact(rules, "every_seed_is_exact_if_a_second_replica_confirms");
}

/// A lifecycle topic has no counters. Its rows are written last, and each has the end of its batch.
#[test]
fn every_seed_is_exact_on_a_lifecycle_topic() {
    let rules = Rules { stream: Stream::Lifecycle(Stage::AudienceReady), ..Rules::REAL };
    assert_every_seed_is_exact(rules, "every_seed_is_exact_on_a_lifecycle_topic");
}

/// The same with groups of all partitions of a member.
#[test]
fn every_seed_is_exact_on_a_lifecycle_topic_with_groups() {
    let stream = Stream::Lifecycle(Stage::AudienceReady);
    let rules = Rules { stream, memory: Memory::Plenty, gathers: true, ..Rules::REAL };
    assert_every_seed_is_exact(rules, "every_seed_is_exact_on_a_lifecycle_topic_with_groups");
}

#[test]
fn a_seed_replays() {
    for seed in 0..100 {
        assert_eq!(run(seed, Rules::REAL), run(seed, Rules::REAL));
    }
}
