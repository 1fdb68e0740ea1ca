//! Checks every order of events, not a sample: stateright explores the world of [`super::world`] exhaustively.
//!
//! Two members share the partitions. Each world allows a fixed number of faults of any kind, at any moment. Worlds that end
//! within minutes run in `cargo test`. `cargo test --release -p tallyhouse-core model -- --ignored --nocapture` runs the larger ones.
//! `TALLYHOUSE_MODEL=partitions,records,faults` runs one of them.

use super::log::{Log, Record};
use super::world::scenarios::drive;
use super::world::{Move, PLENTY, Rules, World};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::time::Instant;

const FIRST: Record = Record::Event { day: 20_261_031 };
const SECOND: Record = Record::Event { day: 20_261_101 };

/// All runs of one world.
struct Every(World);

impl Model for Every {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        vec![self.0.clone()]
    }

    fn actions(&self, world: &World, moves: &mut Vec<Move>) {
        moves.extend(world.moves());
    }

    fn next_state(&self, world: &World, chosen: Move) -> Option<World> {
        let mut next = world.clone();
        next.make(chosen);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is lost, doubled or stopped", |_, world: &World| world.violation.is_none()),
            Property::always("something can happen until all is done", |_, world: &World| {
                world.violation.is_some() || world.is_done() || !world.moves().is_empty()
            }),
            Property::sometimes("all is done", |_, world: &World| world.is_done()),
        ]
    }
}

fn check(rules: Rules, logs: Vec<Vec<Record>>, faults: u32) {
    check_some(rules, logs, faults, &[]);
}

fn check_some(rules: Rules, logs: Vec<Vec<Record>>, faults: u32, focus: &'static [&'static str]) {
    let sizes: Vec<usize> = logs.iter().map(Vec::len).collect();
    println!("2 members, logs of {sizes:?} records, {faults} faults {focus:?}:");
    check_from(world(rules, logs, faults), focus);
}

/// Creates a world of two members whose memory is plenty.
fn world(rules: Rules, logs: Vec<Vec<Record>>, faults: u32) -> World {
    let rows_max = logs.iter().map(Vec::len).max().map_or(1, |records| records as u64);
    let produced = |records: Vec<Record>| Log::new(records.clone(), records.len());
    World::new(rules, &[PLENTY; 2], rows_max, logs.into_iter().map(produced).collect(), faults)
}

/// Checks all runs that begin with a world. `focus`: the only kinds of faults, if any are named.
fn check_from(mut world: World, focus: &'static [&'static str]) {
    let started = Instant::now();
    world.focus = focus;
    let checker = Every(world).checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    let (states, took) = (checker.unique_state_count(), started.elapsed());
    println!("{states} states in {took:.1?}");
    if let Some((name, path)) = checker.discoveries().into_iter().find(|(name, _)| *name != "all is done") {
        let last = path.last_state().violation.clone();
        let moves = path.into_actions();
        panic!("{name}: {last:?}\nafter {moves:#?}");
    }
    checker.assert_any_discovery("all is done");
}

#[test]
fn one_partition_with_two_batches() {
    check(Rules::REAL, vec![vec![FIRST, Record::Broken]], 1);
    check(Rules::REAL, vec![vec![FIRST, SECOND]], 1);
    check(Rules::REAL, vec![vec![FIRST, Record::Broken, SECOND]], 1);
}

/// If the protocol did not read what is counted, the counters of October would come twice.
#[test]
#[ignore = "large: some minutes, in release"]
fn an_old_announcement_over_two_months() {
    check_some(Rules::REAL, vec![vec![FIRST, SECOND, Record::Broken]], 2, &["Restamp", "Expire"]);
}

/// One member has taken the batches of two partitions as a group. Then a process dies at any moment, and each partition gets
/// any owner, any time later. Before the group is taken nothing is announced or inserted, so the steps until then have one order.
#[test]
#[ignore = "large: some minutes, in release"]
fn a_group_and_two_owners_after_a_death() {
    let rules = Rules { gathers: true, ..Rules::REAL };
    let mut world = world(rules, vec![vec![FIRST], vec![FIRST]], 0);
    world.make(Move::Assign(0, 0));
    world.make(Move::Assign(1, 0));
    let gather = Move::Gather(0);
    drive(&mut world, |_, next| !matches!(next, Move::Take(..)), |world| world.moves().contains(&gather));
    world.make(gather);
    world.faults_left = 1;
    check_from(world, &["Crash"]);
}

#[test]
#[ignore = "large: some minutes, in release"]
fn larger_worlds() {
    if let Ok(text) = std::env::var("TALLYHOUSE_MODEL") {
        let numbers: Vec<usize> = text.split(',').map(|n| n.parse().expect("partitions,records,faults")).collect();
        let [partitions, records, faults] = numbers[..] else { panic!("TALLYHOUSE_MODEL=partitions,records,faults") };
        let log = [FIRST, Record::Broken, SECOND, Record::Gap, FIRST, SECOND][..records].to_vec();
        return check(Rules::REAL, vec![log; partitions], faults as u32);
    }
    check(Rules::REAL, vec![vec![FIRST, Record::Broken]], 2);
    check(Rules::REAL, vec![vec![FIRST, SECOND]], 2);
    check(Rules::REAL, vec![vec![FIRST], vec![Record::Broken]], 1);
}
