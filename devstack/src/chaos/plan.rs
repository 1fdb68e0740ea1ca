//! The plan of a round: a function of the seed and the round's number, and of nothing else.
//!
//! Must never look at a clock or at the system: the draw for a round can be repeated.

use crate::dice::{Dice, mix};
use clap::ValueEnum;

/// Number of rounds that share a topic, a group, a database and the members' settings.
pub const ROUNDS_PER_EPOCH: u64 = 10;
/// Milliseconds after which a silent member loses its partitions.
pub const SESSION_TIMEOUT_MS: u64 = 6_000;
/// Milliseconds for which a revocation waits for the batch in flight.
pub const REBALANCE_GRACE_MS: u64 = 5_000;
/// Number of members of the group.
pub const MEMBERS: usize = 3;
/// Number of records from which a batch is a large one.
pub const LARGE_BATCH: u64 = 100_000;
/// Number of large rounds of ten that have a kind that needs one.
const LARGE_KIND_OF_TEN: u64 = 7;
/// Kinds that produce a large round's backlog themselves. The first of them in a round does.
const BACKLOG_KINDS: [Kind; 4] = [Kind::InheritBatches, Kind::SlowConsumers, Kind::KillAtPoint, Kind::EvictTokens];
/// Number of nodes of the Kafka cluster.
pub const BROKERS: usize = 3;

/// Returns the first round of the epoch that a round belongs to.
pub fn epoch_start(round: u64) -> u64 {
    round - round % ROUNDS_PER_EPOCH
}

/// The fail points of `tallyhouse` that every batch passes.
const POINTS: [&str; 7] = [
    "committed_read",
    "batch_frozen",
    "intent_committed",
    "raw_inserted",
    "rejected_inserted",
    "daily_inserted",
    "end_committed",
];
/// The fail points between the first insert and the commit of the batch's end.
const POINTS_WITHIN: [&str; 3] = ["raw_inserted", "rejected_inserted", "daily_inserted"];

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Kind {
    /// kill -9 of a member at a named step of the protocol
    KillAtPoint,
    /// kill -9 of a member at any moment
    KillMember,
    /// A member is stopped past its session (SIGSTOP), others take over, it wakes up (SIGCONT)
    Zombie,
    /// A member is stopped for less than its session
    Pause,
    /// Members leave (SIGTERM) and join in quick succession
    Storm,
    /// kill -9 of ClickHouse, then a restart on its data
    KillClickhouse,
    /// ClickHouse is stopped for some seconds, longer than an insert's timeout at times
    PauseClickhouse,
    /// kill -9 of one of three brokers, then a restart on its data
    KillBroker,
    /// One of three brokers is stopped, loses its leaderships, and wakes up
    PauseBroker,
    /// Connections to ClickHouse are cut
    CutClickhouse,
    /// Bytes to and from ClickHouse arrive late, also after the sender is gone
    DelayClickhouse,
    /// The beginning of a request reaches ClickHouse, the rest does not
    HalfClickhouse,
    /// ClickHouse receives requests, the answers are lost
    LoseClickhouse,
    /// Something in the place of ClickHouse answers every request with status 200
    AnswerForClickhouse,
    /// A cache answers repeated reads with what was true a while ago
    StaleClickhouse,
    /// INSERTs are held, and reach ClickHouse after their sender has given them up
    HoldClickhouse,
    /// Connections to Kafka are cut
    CutKafka,
    /// Bytes to and from Kafka arrive late
    DelayKafka,
    /// The beginning of a request reaches Kafka, the rest does not
    HalfKafka,
    /// Kafka receives requests (commits, say), the answers are lost
    LoseKafka,
    /// Records below the committed offsets are deleted, as retention does
    DeleteRecords,
    /// A member dies between two inserts, and ClickHouse forgets every deduplication token before the batch is completed
    EvictTokens,
    /// The topic gets another partition
    AddPartition,
    /// Members are stopped, and records beyond a committed offset are deleted: the partition stops, and its remedy is carried out
    RetentionGap,
    /// Some records come in Kafka transactions, of which a part is aborted
    Transactions,
    /// The dead-letter topic refuses a large record for a time
    RefuseDeadLetters,
    /// A backlog, and a ClickHouse so slow that the members' memory is full (large groups only)
    SlowConsumers,
    /// Two of three members die with large batches announced, and one member completes them (large groups only)
    InheritBatches,
    /// kill -9 of one of two replicas, then a restart on its data (--cluster)
    KillReplica,
    /// One of two replicas is stopped (--cluster)
    PauseReplica,
    /// Members do not reach one of two replicas (--cluster)
    CutReplica,
    /// A replica cannot fetch the other one's parts (--cluster)
    StopFetches,
    /// kill -9 of ZooKeeper, then a restart on its data (--cluster)
    KillKeeper,
    /// Keeper gets a commit, its answer is lost, and Keeper is away for longer than an insert takes (--cluster)
    CutKeeper,
    /// A member leaves its preferred server while an insert is on the way there, which arrives later (--cluster)
    SwitchServer,
    /// kill -9 of a replica with parts that the other one has not fetched, then a restart on its data (--cluster)
    KillUnfetched,
    /// A replica dies with parts that the other one has not fetched, loses its disk, and is made anew (--cluster, one lane)
    LoseDisk,
}

impl Kind {
    /// Every kind that one ClickHouse server can meet.
    pub const ALL: &[Kind] = &[
        Kind::KillAtPoint,
        Kind::KillMember,
        Kind::Zombie,
        Kind::Pause,
        Kind::Storm,
        Kind::KillClickhouse,
        Kind::PauseClickhouse,
        Kind::KillBroker,
        Kind::PauseBroker,
        Kind::CutClickhouse,
        Kind::DelayClickhouse,
        Kind::HalfClickhouse,
        Kind::LoseClickhouse,
        Kind::AnswerForClickhouse,
        Kind::StaleClickhouse,
        Kind::HoldClickhouse,
        Kind::CutKafka,
        Kind::DelayKafka,
        Kind::HalfKafka,
        Kind::LoseKafka,
        Kind::DeleteRecords,
        Kind::EvictTokens,
        Kind::AddPartition,
        Kind::RetentionGap,
        Kind::Transactions,
        Kind::RefuseDeadLetters,
        Kind::SlowConsumers,
        Kind::InheritBatches,
    ];

    /// The kinds that need two replicas.
    pub const OF_REPLICAS: &[Kind] = &[
        Kind::KillReplica,
        Kind::PauseReplica,
        Kind::CutReplica,
        Kind::StopFetches,
        Kind::KillKeeper,
        Kind::CutKeeper,
        Kind::SwitchServer,
        Kind::KillUnfetched,
        Kind::LoseDisk,
    ];

    /// Returns every kind for one server, or for replicas. Tokens of replicas are in Keeper, and ClickHouse forgets them only in a
    /// clean-up that nobody can await. A disk is lost for all databases on it, so that needs one lane.
    pub fn all(is_cluster: bool, lanes: u64) -> Vec<Kind> {
        let of_replicas = if is_cluster { Kind::OF_REPLICAS } else { &[] };
        let all = Kind::ALL.iter().chain(of_replicas).copied();
        all.filter(|kind| match kind {
            Kind::EvictTokens => !is_cluster,
            Kind::LoseDisk => lanes == 1,
            _ => true,
        })
        .collect()
    }

    /// Returns its name on the command line and in the table.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Returns its description, in a line.
    pub fn help(self) -> String {
        self.to_possible_value().and_then(|value| Some(value.get_help()?.to_string())).unwrap_or_default()
    }

    /// True if it needs batches of [`LARGE_BATCH`] records.
    pub fn needs_large(self) -> bool {
        matches!(self, Kind::SlowConsumers | Kind::InheritBatches)
    }

    /// True if both may happen in one round.
    fn goes_with(self, other: Kind) -> bool {
        self != other && !self.excludes(other) && !other.excludes(self)
    }

    fn excludes(self, other: Kind) -> bool {
        use Kind::*;
        match self {
            // An insert that arrives after its token is forgotten is applied again. Only the deduplication window is
            // promised there (docs/reliability.md), so nothing may delay an insert past it.
            EvictTokens => {
                matches!(other, DelayClickhouse | HoldClickhouse | Pause | PauseClickhouse | Zombie)
                    || matches!(other, SlowConsumers | InheritBatches)
            }
            // The log shows which offsets are control records, as long as it has them.
            Transactions => matches!(other, DeleteRecords | RetentionGap),
            // They have all members to themselves, one after the other.
            RetentionGap => matches!(other, SlowConsumers | InheritBatches),
            InheritBatches => matches!(other, SlowConsumers | RefuseDeadLetters),
            // The rows that are left are on one replica, and nothing may be said of a second fault.
            LoseDisk => true,
            _ => false,
        }
    }
}

/// One fault and its details. The kind decides which of them matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind of the fault.
    pub kind: Kind,
    /// Milliseconds from the round's start.
    pub at_ms: u64,
    /// Its duration in milliseconds.
    pub lasts_ms: u64,
    /// The member or broker that it hits.
    pub victim: usize,
    /// The fail point at which the member dies.
    pub point: &'static str,
    /// The passing of the fail point at which the member dies; also how often members come and go.
    pub times: u64,
    /// Percentage of the chunks of bytes that are hit.
    pub percent: u64,
    /// True if this fault produces the large round's backlog, at the moment that suits it.
    pub has_backlog: bool,
}

/// The faults of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Number of the round.
    pub round: u64,
    /// The seed of the round itself. All other random values of the round follow from it.
    pub seed: u64,
    /// True if the members make large batches.
    pub is_large: bool,
    /// The faults, in no order.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// Returns the plan of a round. The kinds are drawn as from a shuffled deck, `from_deck` of them in each round,
    /// so that all appear equally often. With one, up to two more are drawn freely. Most large rounds have one of the
    /// kinds that need it.
    pub fn of(seed: u64, round: u64, kinds: &[Kind], from_deck: u64) -> Plan {
        let own_seed = mix(seed ^ mix(round));
        let is_large = is_large(seed, round / ROUNDS_PER_EPOCH, kinds);
        let (large, usual): (Vec<Kind>, Vec<Kind>) = kinds.iter().partition(|kind| kind.needs_large());
        let mut dice = Dice::new(own_seed);
        let mut wanted = Vec::new();
        let needs_large = (seed.wrapping_add(round * 3)) % 10 < LARGE_KIND_OF_TEN;
        if is_large && !large.is_empty() && (usual.is_empty() || needs_large) {
            wanted.push(dice.pick(&large));
        }
        if !usual.is_empty() {
            wanted.extend((0..from_deck).map(|n| deck(seed, &usual, round * from_deck + n)));
            let free = if from_deck > 1 { 0 } else { dice.within(0..=2 - u64::from(is_large)) };
            wanted.extend((0..free).map(|_| dice.pick(&usual)));
        }
        let mut drawn: Vec<Kind> = Vec::new();
        for kind in wanted {
            if drawn.iter().all(|&other| kind.goes_with(other)) {
                drawn.push(kind);
            }
        }
        let mut faults: Vec<Fault> = drawn.into_iter().map(|kind| draw(kind, &mut dice)).collect();
        if is_large
            && let Some(first) = BACKLOG_KINDS.iter().find_map(|kind| faults.iter().position(|f| f.kind == *kind))
        {
            faults[first].has_backlog = true;
            faults[first].at_ms = 0;
        }
        Plan { round, seed: own_seed, is_large, faults }
    }
}

/// True if the groups of an epoch make large batches: one in three does, or all if the kinds need it.
pub fn is_large(seed: u64, epoch: u64, kinds: &[Kind]) -> bool {
    // This is not in step with the three memberships.
    (seed.wrapping_add(epoch).wrapping_add(epoch / 3)) % 3 == 1 || kinds.iter().all(|kind| kind.needs_large())
}

fn deck(seed: u64, kinds: &[Kind], position: u64) -> Kind {
    let size = kinds.len() as u64;
    let mut deck = kinds.to_vec();
    Dice::new(mix(seed) ^ (position / size)).shuffle(&mut deck);
    deck[(position % size) as usize]
}

fn draw(kind: Kind, dice: &mut Dice) -> Fault {
    let lasts_ms = match kind {
        Kind::Zombie => dice.within(SESSION_TIMEOUT_MS + 500..=SESSION_TIMEOUT_MS + 3_000),
        Kind::Pause => dice.within(100..=SESSION_TIMEOUT_MS - 1_000),
        Kind::KillMember => dice.within(0..=1_500),
        Kind::KillClickhouse | Kind::KillBroker => dice.within(0..=2_500),
        Kind::PauseClickhouse | Kind::PauseBroker => dice.within(1_000..=5_000),
        Kind::SlowConsumers | Kind::AnswerForClickhouse | Kind::StaleClickhouse => dice.within(3_000..=5_000),
        Kind::HoldClickhouse => dice.within(4_000..=6_000),
        // A member changes its server after three looks without an answer. Each takes a second, or five while a server is stopped.
        Kind::KillReplica | Kind::KillKeeper => dice.within(0..=8_000),
        Kind::PauseReplica => dice.within(1_000..=10_000),
        Kind::CutReplica => dice.within(3_000..=9_000),
        Kind::StopFetches => dice.within(1_000..=6_000),
        // An insert takes 3 s at most, and Keeper ends a session after 5 s.
        Kind::CutKeeper => dice.within(4_000..=10_000),
        _ => dice.within(300..=2_500),
    };
    let point = if kind == Kind::EvictTokens { dice.pick(&POINTS_WITHIN) } else { dice.pick(&POINTS) };
    // A member reads the committed offset once for each of its partitions, and it has one for sure.
    let times = if point == "committed_read" { 1 } else { dice.within(1..=4) };
    Fault {
        kind,
        at_ms: dice.within(0..=1_500),
        lasts_ms,
        victim: dice.within(0..=MEMBERS.min(BROKERS) as u64 - 1) as usize,
        point,
        times,
        percent: dice.within(5..=50),
        has_backlog: false,
    }
}

/// The members' settings, the same for all rounds of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// Value of the key `kafka.assignment`.
    pub assignment: &'static str,
    /// True if each member has a `kafka.group_instance_id`.
    pub is_static: bool,
}

impl Membership {
    /// Returns the settings of an epoch. Any three epochs have all three combinations. A static member cannot be
    /// cooperative.
    pub fn of(seed: u64, epoch: u64) -> Membership {
        match seed.wrapping_add(epoch) % 3 {
            0 => Membership { assignment: "cooperative-sticky", is_static: false },
            1 => Membership { assignment: "eager", is_static: false },
            _ => Membership { assignment: "eager", is_static: true },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn plans(seed: u64, rounds: u64) -> Vec<Plan> {
        (0..rounds).map(|round| Plan::of(seed, round, Kind::ALL, 1)).collect()
    }

    #[test]
    fn a_round_is_drawn_again_alike_and_every_usual_kind_comes_up_in_one_pass_of_the_deck() {
        assert_eq!(plans(1, 30), plans(1, 30));
        assert_ne!(plans(1, 30), plans(2, 30));
        let drawn: BTreeSet<Kind> = plans(3, 30).iter().flat_map(|plan| &plan.faults).map(|fault| fault.kind).collect();
        assert_eq!(drawn.len(), Kind::ALL.len());
        assert!(plans(1, 300).iter().all(|plan| (1..=3).contains(&plan.faults.len())));
    }

    #[test]
    fn a_disk_is_lost_in_a_round_of_its_own() {
        let kinds = Kind::all(true, 1);
        assert!(!kinds.contains(&Kind::EvictTokens) && !Kind::all(true, 2).contains(&Kind::LoseDisk));
        let plans: Vec<Plan> = (0..200).map(|round| Plan::of(1, round, &kinds, 1)).collect();
        let drawn: BTreeSet<Kind> = plans.iter().flat_map(|plan| &plan.faults).map(|fault| fault.kind).collect();
        assert_eq!(drawn.len(), kinds.len());
        let loses = |plan: &&Plan| plan.faults.iter().any(|fault| fault.kind == Kind::LoseDisk);
        assert!(plans.iter().filter(loses).all(|plan| plan.faults.len() == 1));
    }

    /// A third of the rounds is large, most of them have a kind that needs it, and one fault at most makes the backlog.
    #[test]
    fn large_rounds_are_a_third_and_meet_every_membership() {
        for seed in 0..4 {
            let large: Vec<Plan> = plans(seed, 300).into_iter().filter(|plan| plan.is_large).collect();
            assert_eq!(large.len(), 100);
            let needs_large = |plan: &&Plan| plan.faults.iter().any(|fault| fault.kind.needs_large());
            assert_eq!(large.iter().filter(needs_large).count(), 70);
            let memberships: Vec<Membership> =
                large.iter().map(|plan| Membership::of(seed, plan.round / ROUNDS_PER_EPOCH)).collect();
            assert!((0..3).all(|epoch| memberships.contains(&Membership::of(seed, epoch))));
        }
        let makes_backlog = |plan: &Plan| plan.faults.iter().filter(|fault| fault.has_backlog).count();
        for plan in plans(1, 300) {
            assert!(makes_backlog(&plan) <= usize::from(plan.is_large), "{plan:?}");
            assert!(plan.is_large || plan.faults.iter().all(|fault| !fault.kind.needs_large()), "{plan:?}");
        }
        let only = [Kind::SlowConsumers];
        assert!((0..20).all(|round| Plan::of(1, round, &only, 1).is_large));
    }

    #[test]
    fn tokens_are_not_forgotten_while_inserts_are_delayed() {
        for round in 0..2_000 {
            for from_deck in [1, 3] {
                let plan = Plan::of(7, round, Kind::ALL, from_deck);
                let has = |kind| plan.faults.iter().any(|fault| fault.kind == kind);
                let delays = [
                    Kind::DelayClickhouse,
                    Kind::HoldClickhouse,
                    Kind::Zombie,
                    Kind::SlowConsumers,
                    Kind::InheritBatches,
                ];
                assert!(!(has(Kind::EvictTokens) && delays.into_iter().any(has)), "{plan:?}");
            }
        }
    }

    #[test]
    fn all_settings_come_up_in_three_epochs() {
        let settings: Vec<Membership> = (0..3).map(|epoch| Membership::of(3, epoch)).collect();
        assert!(settings.iter().enumerate().all(|(n, one)| !settings[..n].contains(one)));
    }
}
