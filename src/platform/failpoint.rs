//! Fail points are places at which a test makes the process die as with `kill -9`, or freezes it.
//!
//! `TALLYHOUSE_FAILPOINT=name` or `name:n` kills the process at the n-th passing. `name:n:stop` stops it there as SIGSTOP does,
//! until SIGCONT. Fail points are compiled into debug builds only. In a release build [`hit`] is empty.
//!
//! `TALLYHOUSE_RECEIVE_TIMEOUT_MS` shortens a wait of 30 s, also in debug builds only.

use std::time::Duration;

/// Dies or stops here if the environment requests it.
#[cfg(debug_assertions)]
pub fn hit(name: &str) {
    use rustix::process::Signal;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static WANTED: LazyLock<Option<(String, u64, Signal)>> = LazyLock::new(|| {
        let text = std::env::var("TALLYHOUSE_FAILPOINT").ok()?;
        let mut words = text.split(':');
        let name = words.next()?.to_owned();
        let passing = words.next().unwrap_or("1").parse().ok()?;
        let signal = if words.next() == Some("stop") { Signal::STOP } else { Signal::KILL };
        Some((name, passing, signal))
    });
    static PASSINGS: AtomicU64 = AtomicU64::new(0);
    if let Some((wanted, passing, signal)) = WANTED.as_ref()
        && wanted == name
        && PASSINGS.fetch_add(1, Ordering::Relaxed) + 1 == *passing
    {
        let _ = rustix::process::kill_process(rustix::process::getpid(), *signal);
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub fn hit(_name: &str) {}

/// Returns the time for which ClickHouse waits for a sender, or the one that the environment requests in its place.
#[cfg(debug_assertions)]
pub fn receive_timeout(usual: Duration) -> Duration {
    let wanted = std::env::var("TALLYHOUSE_RECEIVE_TIMEOUT_MS").ok().and_then(|text| text.parse().ok());
    wanted.map_or(usual, Duration::from_millis)
}

/// Returns the usual time in a release build.
#[cfg(not(debug_assertions))]
pub fn receive_timeout(usual: Duration) -> Duration {
    usual
}
