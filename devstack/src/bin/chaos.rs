//! `cargo chaos`: injects thousands of faults into real servers and real members, and verifies the result after each
//! round.
//!
//! Must never exit with 0 unless every round was verified and held.

use clap::Parser;
use devstack::chaos::plan::{Kind, epoch_start};
use devstack::chaos::{AnyError, Options, run};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Hurts a running Tallyhouse in every way this machine allows, and proves after each round that nothing is lost or doubled.
///
/// Starts a Kafka of three nodes, a ClickHouse (or two replicas of it) and groups of three `tallyhouse run`, with TCP proxies in
/// between. A producer keeps a ledger of what Kafka acknowledged. Each round draws one to three faults from the seed, and carries
/// them out while records flow. Then it waits until everything is stored, and compares every offset.
#[derive(Parser)]
#[command(
    name = "cargo chaos",
    after_help = "\
Examples:
  cargo chaos --rounds 20                         a first look: every kind of fault once
  cargo chaos --rounds 1000 --seed 7 --lanes 3    the long run, three groups side by side
  cargo chaos --seed 7 --round 412                the faults of one round again, on a fresh group
  cargo chaos --seed 7 --from 412 --rounds 1      the same on the group that rounds 410 and 411 have left
  cargo chaos --kinds zombie,kill-broker          only these
  cargo chaos --cluster --rounds 40               on two replicas of ClickHouse with ZooKeeper

A round's faults and their times follow from seed and round alone. What they meet does not: the processes are real and race,
so a violation may need several attempts to come again. Exit status 0 means that every round held, 1 that one did not."
)]
struct Arguments {
    /// Number of rounds to run.
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run this round alone.
    #[arg(long, conflicts_with = "rounds")]
    round: Option<u64>,
    /// Begin with this round, in the group that the rounds before it have left: those of its ten are run first and count too.
    #[arg(long, value_name = "ROUND", conflicts_with = "round")]
    from: Option<u64>,
    /// Groups that run side by side on the same servers, each with rounds of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=16))]
    lanes: u64,
    /// Write to a shard of two ClickHouse replicas, each batch confirmed by both, instead of one server. Members prefer different ones.
    #[arg(long)]
    cluster: bool,
    /// Only these kinds of faults, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "KIND", hide_possible_values = true)]
    kinds: Vec<Kind>,
    /// Print the kinds of faults and end.
    #[arg(long)]
    list: bool,
    /// The tallyhouse under test, a build with debug assertions. Built now if not given.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// New folder for data and logs, which stays after a violation. Default: one in the system's temporary folder.
    #[arg(long, value_name = "PATH")]
    folder: Option<PathBuf>,
}

fn main() -> ExitCode {
    devstack::init();
    let arguments = Arguments::parse();
    if arguments.list {
        Kind::ALL.iter().chain(Kind::OF_REPLICAS).for_each(|kind| println!("{:<18} {}", kind.name(), kind.help()));
        return ExitCode::SUCCESS;
    }
    match chaos(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

fn chaos(arguments: Arguments) -> Result<bool, AnyError> {
    let program = match arguments.program {
        Some(program) => program,
        // Without --release: its fail points need debug assertions.
        None => devstack::build::tallyhouse(&["--bin", "tallyhouse"])?,
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second signal ends it at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let default_folder = std::env::temp_dir().join(format!("tallyhouse-chaos-{}", std::process::id()));
    let folder = arguments.folder.unwrap_or(default_folder);
    if folder.exists() {
        return Err(format!("{} exists already: name a new folder", folder.display()).into());
    }
    let (first, rounds) = match (arguments.round, arguments.from) {
        (Some(round), _) => (round, 1),
        (None, Some(from)) => (epoch_start(from), from - epoch_start(from) + arguments.rounds),
        (None, None) => (0, arguments.rounds),
    };
    let possible = Kind::all(arguments.cluster, arguments.lanes);
    if let Some(kind) = arguments.kinds.iter().find(|kind| !possible.contains(kind)) {
        let here = if arguments.cluster { "with --cluster and these --lanes" } else { "without --cluster" };
        return Err(format!("the kind {} is not possible {here}", kind.name()).into());
    }
    let options = Options {
        program: program.canonicalize()?,
        seed: arguments.seed,
        first,
        rounds,
        lanes: arguments.lanes,
        kinds: if arguments.kinds.is_empty() { possible } else { arguments.kinds },
        is_cluster: arguments.cluster,
        from_deck: 1,
        folder,
        stop,
    };
    let report = run(&options)?;
    println!("\n{report}");
    Ok(report.violations() == 0 && report.rounds() > 0)
}
