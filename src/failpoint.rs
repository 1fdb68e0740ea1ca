//! Fail points: places at which a test makes the process die as `kill -9` makes it die.
//!
//! `TALLYHOUSE_FAILPOINT=name` or `name:n` kills the process at the n-th passing. Compiled into debug builds only; in a
//! release build [`hit`] is empty.

/// Dies here if the environment says so.
#[cfg(debug_assertions)]
pub fn hit(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static WANTED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let text = std::env::var("TALLYHOUSE_FAILPOINT").ok()?;
        let (name, passing) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), passing.parse().ok()?))
    });
    static PASSINGS: AtomicU64 = AtomicU64::new(0);
    if let Some((wanted, passing)) = WANTED.as_ref()
        && wanted == name
        && PASSINGS.fetch_add(1, Ordering::Relaxed) + 1 == *passing
    {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing in a release build.
#[cfg(not(debug_assertions))]
pub fn hit(_name: &str) {}
