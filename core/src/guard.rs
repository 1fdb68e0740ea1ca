//! Guards of the exactly-once protocol. Only tests can switch them off.
//!
//! A test switches one off and shows that the simulation then finds a violation. A guard is either not needed or not tested if
//! nothing notices its removal. In every other build [`is_on`] is the constant `true`; no setting, no feature and no environment
//! variable may ever reach it.

/// One guard of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    /// A batch is announced in the committed offset's metadata before anything of it is inserted.
    Intent,
    /// Every attempt at an insert carries the same deduplication token.
    Token,
    /// Only the rows that are missing by the marks are inserted.
    Mark,
    /// After a repeated insert was acknowledged, it counts only once the marks show its rows.
    Verify,
    /// If an insert was acknowledged and its rows are not shown, Tallyhouse looks for them again, and repeats the insert once at
    /// most.
    Shown,
    /// Rows that were shown before and are hidden now are not inserted under another token.
    Hidden,
    /// If the marks show that an announced batch is overtaken, it is not replayed.
    Overtaken,
    /// A single look that finds the log too short stops no partition.
    Doubt,
    /// A partition stops if its rows were shown and are gone.
    Behind,
    /// Later owners also know which records may have been inserted before and taken away.
    Again,
    /// Rows of days that a TTL has reached are not missing.
    Expired,
    /// Counters are written last.
    CountersLast,
    /// A member whose last commit is too old inserts nothing.
    Lease,
    /// A commit replaces only the offset that the member knows to be committed.
    Compare,
    /// A replay is whole only when the reader has passed its end.
    End,
    /// A rebuilt batch is announced only with the number of records in its intent.
    Whole,
    /// A partition starts over if the reader has lost its position.
    Position,
    /// A task takes only windows of its own last fill, and a batch begins where the last one ended.
    Fill,
    /// One replay at a time is exempt from the pause.
    Permit,
    /// One partition holds no more memory than there is free memory.
    Share,
    /// If one side has no topic id, it is the same topic.
    Identity,
    /// A smaller batch replaces an announced one only when no insert of the announced one can still arrive.
    Quiet,
    /// A member that completes a batch of a group tries the group's token first.
    GroupToken,
    /// A batch leaves its group by a commit, before it inserts under tokens of its own into later tables.
    Leave,
    /// The acknowledgement of a group's insert counts only while every source of the group is still in it.
    WholeGroup,
    /// The acknowledgement of a group's insert counts only while the lease holds.
    LeaseOfGroup,
    /// Marks are read on a replica only after it has fetched everything that the shard has.
    Sync,
    /// The sync and all reads of the marks are on one replica.
    OneReplica,
    /// An end is committed only after a second replica has fetched everything, and no rows were lost since.
    Confirm,
    /// Nothing is inserted after tokens were lost, until no older insert can arrive.
    Quarantine,
}

/// True if a guard is on.
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

    /// True if a guard is on, on this thread.
    pub fn is_on(guard: Guard) -> bool {
        OFF.get() != Some(guard)
    }

    /// Runs a function on this thread with a guard switched off.
    pub fn with_off<T>(guard: Guard, run: impl FnOnce() -> T) -> T {
        OFF.set(Some(guard));
        let result = run();
        OFF.set(None);
        result
    }
}
