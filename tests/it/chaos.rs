//! A short `cargo chaos`: every kind of fault once, on servers of its own, with the program under test.

use devstack::chaos::plan::{Kind, Plan, ROUNDS_PER_EPOCH, is_large};
use devstack::chaos::{Options, run};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Number of kinds of faults in a round.
const FROM_DECK: u64 = 4;
/// The last rounds of a group with small batches, and the first of one with large ones.
const ROUNDS: Range<u64> = ROUNDS_PER_EPOCH - 5..ROUNDS_PER_EPOCH + 2;

/// Every kind of fault takes its turn, and every record is there once. The faults are the same in each run.
pub async fn every_kind_of_fault_once(_url: &str, database: &str) {
    // Kinds that do not go together drop one another. So this takes the first seed whose rounds have all of them.
    let seed = (0..).find(|&seed| has_all(seed)).unwrap();
    let options = Options {
        program: crate::program(),
        seed,
        first: ROUNDS.start,
        rounds: ROUNDS.end - ROUNDS.start,
        lanes: 1,
        kinds: Kind::ALL.to_vec(),
        is_cluster: false,
        from_deck: FROM_DECK,
        folder: std::env::temp_dir().join(database),
        stop: Arc::new(AtomicBool::new(false)),
    };
    // The harness blocks, so it must not run on this runtime's threads.
    let report = tokio::task::spawn_blocking(move || run(&options)).await.unwrap().unwrap();
    println!("{report}");
    assert_eq!((report.rounds(), report.violations()), (ROUNDS.end - ROUNDS.start, 0), "the logs are named above");
}

fn has_all(seed: u64) -> bool {
    let plans: Vec<Plan> = ROUNDS.map(|round| Plan::of(seed, round, Kind::ALL, FROM_DECK)).collect();
    let drawn: BTreeSet<Kind> = plans.iter().flat_map(|plan| &plan.faults).map(|fault| fault.kind).collect();
    let sizes = [0, 1].map(|epoch| is_large(seed, epoch, Kind::ALL));
    sizes == [false, true] && drawn.len() == Kind::ALL.len() && plans.last().is_some_and(inherits_undisturbed)
}

/// True if the last round has batches to inherit, and no fault that disturbs this. Such a fault keeps members from
/// announcing batches, or has a member to itself for long.
fn inherits_undisturbed(plan: &Plan) -> bool {
    use Kind::*;
    let has = |kind: &Kind| plan.faults.iter().any(|fault| fault.kind == *kind);
    let disturb = [KillBroker, PauseBroker, AddPartition, LoseKafka, HalfKafka, Zombie, KillAtPoint, Storm, Pause];
    has(&InheritBatches) && !disturb.iter().any(has)
}
