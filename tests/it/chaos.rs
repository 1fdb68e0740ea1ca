//! A short `cargo chaos`: every kind of fault once, on servers of its own, with the program under test.

use devstack::chaos::plan::{Kind, Plan};
use devstack::chaos::{Options, run};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Kinds of faults in a round.
const FROM_DECK: u64 = 4;

/// Every kind of fault takes its turn, and every record is there once. The faults are the same in each run.
pub async fn every_kind_of_fault_once(_url: &str, database: &str) {
    let rounds = (Kind::ALL.len() as u64).div_ceil(FROM_DECK);
    // Kinds that do not go together drop one another: the first seed whose rounds have all of them.
    let seed = (0..).find(|&seed| drawn(seed, rounds).len() == Kind::ALL.len()).unwrap();
    let options = Options {
        program: crate::program(),
        seed,
        first: 0,
        rounds,
        lanes: 1,
        kinds: Kind::ALL.to_vec(),
        from_deck: FROM_DECK,
        folder: std::env::temp_dir().join(database),
        stop: Arc::new(AtomicBool::new(false)),
    };
    // The harness blocks, and is no place for this runtime's threads.
    let report = tokio::task::spawn_blocking(move || run(&options)).await.unwrap().unwrap();
    println!("{report}");
    assert_eq!((report.rounds(), report.violations()), (rounds, 0), "the logs are named above");
}

fn drawn(seed: u64, rounds: u64) -> BTreeSet<Kind> {
    let plans = (0..rounds).map(|round| Plan::of(seed, round, Kind::ALL, FROM_DECK));
    plans.flat_map(|plan| plan.faults.into_iter().map(|fault| fault.kind)).collect()
}
