//! Courses of events that are too rare for the seeds to find.

use super::{Fault, Move, PLENTY, Rules, Task, World};
use crate::guard::{Guard, with_off};
use crate::protocol::Action;
use crate::simulation::log::{DAYS, Log, Record};
use crate::simulation::world::Doing;
use crate::source::Table;

/// Makes moves that `may` be made, in their order, until `done`.
pub fn drive(world: &mut World, may: impl Fn(&World, Move) -> bool, done: impl Fn(&World) -> bool) {
    for _ in 0..1_000 {
        if done(world) {
            return;
        }
        let next = world.moves().into_iter().find(|&next| !matches!(next, Move::Fault(_)) && may(world, next));
        world.make(next.expect("a move"));
    }
    panic!("no end");
}

fn is_daily(world: &World, i: usize, joint: bool) -> bool {
    world.server.sent.get(i).is_some_and(|sent| sent.table == Table::Daily && sent.joint == joint)
}

/// Two partitions are in a group. Its counters are on their way when the member is expelled. A new owner of the first partition
/// uses the group's token, so the group's counters are dropped and acknowledged. The old member commits the end of the second
/// partition, and librdkafka sends that commit late, with a new generation.
fn an_expelled_member_is_acknowledged() -> Option<String> {
    let logs = vec![Log::new(vec![Record::Event { day: DAYS[0].0 }; 2], 1); 2];
    let mut world = World::new(Rules { gathers: true, ..Rules::REAL }, &[PLENTY; 2], 40, logs, 2);
    world.make(Move::Assign(0, 0));
    world.make(Move::Assign(1, 0));
    let together = |_: &World, next| !matches!(next, Move::Take(..) | Move::LeaveAbsent(_) | Move::Produce(_));
    // The member verifies its first batches anyway.
    let first = |world: &World| {
        world
            .partitions
            .iter()
            .all(|p| p.tasks.iter().all(Task::awaits) && p.committed.as_ref().is_some_and(|c| c.offset == 1))
    };
    drive(&mut world, together, first);
    world.make(Move::Produce(0));
    world.make(Move::Produce(1));
    drive(&mut world, together, |world| is_daily(world, 0, true));
    world.make(Move::Fault(Fault::Expire(0)));
    world.make(Move::Assign(0, 1));
    // Only the new owner does something.
    let by_new_owner = |world: &World, next| match next {
        Move::Step(p, t) | Move::Take(p, t) | Move::Read(p, t) => (p, t) == (0, 1),
        Move::End(..) => world.partitions[0].tasks[1].position == Some(2),
        Move::Fill(m) => m == 1,
        Move::Compare(p, _) | Move::Deliver(p, _) => p == 0,
        Move::Begin(i) | Move::Apply(i, _) | Move::Acknowledge(i) => i > 0,
        _ => false,
    };
    drive(&mut world, by_new_owner, |world| is_daily(world, 1, false) && world.server.sent[1].left.is_empty());
    let by_old_owner = |world: &World, next| match next {
        Move::Begin(i) | Move::Apply(i, _) | Move::Acknowledge(i) => is_daily(world, i, true),
        Move::Step(p, t) => (p, t) == (1, 0),
        Move::Compare(p, _) => p == 1,
        _ => false,
    };
    let ended = |world: &World| {
        let stamped = world.partitions[1].commits.iter().any(|commit| commit.stamp.is_some());
        stamped || matches!(world.partitions[1].tasks[0].doing, Doing::Next(Action::ReadMarks { .. }))
    };
    drive(&mut world, by_old_owner, ended);
    world.make(Move::Rejoin(0));
    if world.moves().contains(&Move::Fault(Fault::Restamp(1, 0))) {
        world.make(Move::Fault(Fault::Restamp(1, 0)));
    }
    world.violation
}

#[test]
fn an_expelled_member_does_not_believe_an_acknowledgement() {
    assert_eq!(an_expelled_member_is_acknowledged(), None);
    let lost = with_off(Guard::LeaseOfGroup, an_expelled_member_is_acknowledged);
    assert_eq!(lost.as_deref(), Some("partition 1: committed 2, but 1 is not in daily"));
}
