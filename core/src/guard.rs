//! The guards of the exactly-once protocol, each with a switch that only tests have.
//!
//! A test turns one off and shows that the simulation then finds a violation: a guard whose removal nothing notices is
//! either not needed or not tested. In every other build [`is_on`] is the constant `true`; no setting, no feature and no
//! environment variable may ever reach it.

/// One guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    /// A batch is announced in the committed offset's metadata before anything of it is inserted.
    Intent,
    /// Every attempt at an insert carries the same deduplication token.
    Token,
    /// Only what the marks say is missing is inserted.
    Mark,
    /// A repeated insert that was acknowledged counts only once the marks show its rows.
    Verify,
    /// An insert that was acknowledged and is not shown is looked for again, and repeated once at the most.
    Shown,
    /// Rows that were shown before and are hidden now are not inserted under another token.
    Hidden,
    /// An announced batch that the marks show to be overtaken is not replayed.
    Overtaken,
    /// One look that finds the log too short stops no partition.
    Doubt,
    /// A partition whose rows were shown and are gone stops.
    Behind,
    /// Later owners know as well which records may have been inserted before and taken away.
    Again,
    /// Rows of days that a time to live has reached are not missing.
    Expired,
    /// Counters are written last.
    CountersLast,
    /// Nothing is inserted by a member whose last commit is too old.
    Lease,
    /// A commit replaces only what the member knows to be committed.
    Compare,
    /// A replay is whole only when the reader has passed its end.
    End,
    /// A rebuilt batch is announced only with the number of records that its intent says.
    Whole,
    /// A partition whose position the reader has lost starts over.
    Position,
    /// A task takes windows of its own last fill only.
    Fill,
    /// One replay at a time is exempt from the pause.
    Permit,
    /// One partition holds no more memory than is free.
    Share,
    /// A topic id on one side only is the same topic.
    Identity,
    /// A smaller batch takes an announced one's place only when no insert of it can still arrive.
    Quiet,
}

/// Whether a guard is at work.
#[cfg(not(test))]
pub const fn is_on(_: Guard) -> bool {
    true
}

#[cfg(test)]
pub use switch::{is_on, with_off};

#[cfg(test)]
mod switch {
    use super::Guard;
    use std::cell::Cell;

    thread_local! {
        static OFF: Cell<Option<Guard>> = const { Cell::new(None) };
    }

    /// Whether a guard is at work on this thread.
    pub fn is_on(guard: Guard) -> bool {
        OFF.get() != Some(guard)
    }

    /// Runs something on this thread without a guard.
    pub fn with_off<T>(guard: Guard, run: impl FnOnce() -> T) -> T {
        OFF.set(Some(guard));
        let result = run();
        OFF.set(None);
        result
    }
}
