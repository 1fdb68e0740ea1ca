//! The common parts of the measuring programs (`cargo peers`, `cargo measure`): they fill topics, start members, read
//! meters, compare counts, and write the figures.
//!
//! Must never hand on a figure of a run whose counts are not those of the ledger, nor switch off a guard of
//! Tallyhouse.

mod counts;
pub mod figures;
mod members;
mod meter;
mod metrics;
pub mod plot;
pub mod rivals;
mod steady;
pub mod table;
mod witness;

pub use counts::{compare, counted, parts_written};
pub use members::{CatchUp, Deployment, Member, Until, catch_up, end_all, finish, settle};
pub use meter::{Cost, Meter};
pub use metrics::Metrics;
pub use steady::{Pace, Sent, produce_steadily};
pub use witness::Witness;

use crate::producer::{Events, Ledger, Producer, create_topic};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Any error, in words for the person who waits for the figures.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Time between two looks during a wait.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const RUN_TIMEOUT: Duration = Duration::from_secs(1_800);

/// The signal to end: Ctrl-C ends a program in order.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens to SIGINT and SIGTERM from now on. A second signal ends the process at once; the kernel then ends its children.
    ///
    /// # Errors
    /// The signals cannot be listened to.
    pub fn listen() -> Result<Interrupt, AnyError> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupted))?;
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        Ok(Interrupt(interrupted))
    }

    /// Listens to nothing, for tests.
    pub fn never() -> Interrupt {
        Interrupt(Arc::default())
    }

    /// Checks that a run that `started` then may go on.
    ///
    /// # Errors
    /// A signal came, or the run takes longer than half an hour.
    pub fn check(&self, started: Instant) -> Result<(), AnyError> {
        if self.0.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        if started.elapsed() > RUN_TIMEOUT {
            return Err(format!("it is not done after {RUN_TIMEOUT:?}").into());
        }
        Ok(())
    }
}

/// A topic and its content.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Name of the topic.
    pub name: String,
    /// Number of its partitions.
    pub partitions: i32,
    /// The ledger of its events.
    pub ledger: Ledger,
}

impl Topic {
    /// Makes a topic and produces `events` events to it.
    ///
    /// # Errors
    /// Kafka refuses, or a signal came.
    pub fn fill(
        brokers: &str,
        name: &str,
        partitions: i32,
        (shape, events): (&Events, u64),
        interrupt: &Interrupt,
    ) -> Result<Topic, AnyError> {
        /// Number of events between two checks for a signal.
        const STEP: u64 = 10_000;
        let started = Instant::now();
        create_topic(brokers, name, partitions)?;
        let mut producer = Producer::new(brokers, name, partitions)?;
        for start in (0..events).step_by(STEP as usize) {
            interrupt.check(started)?;
            producer.send_events(shape, start..(start + STEP).min(events))?;
        }
        Ok(Topic { name: name.to_owned(), partitions, ledger: producer.finish()? })
    }
}
