//! Counts the bytes that windows and batches hold. [`Intake`](tallyhouse_core::window::intake::Intake) uses these figures to
//! decide which partition pauses. `config/memory.rs` defines their part of `memory.limit_bytes`.

use crate::platform::metrics::{MEMORY_LIMIT, MEMORY_USED, PAUSED};
use metrics::gauge;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tallyhouse_core::window::intake::Intake;

/// The number of bytes that all windows and batches hold.
#[derive(Debug, Default)]
pub struct Memory(AtomicUsize);

impl Memory {
    /// Creates an empty count. The gauges show the limit.
    pub fn new(share_bytes: usize) -> Memory {
        gauge!(MEMORY_LIMIT).set(Intake::most_bytes(share_bytes) as f64);
        gauge!(PAUSED).set(0.0);
        Memory::default()
    }

    /// Returns the bytes held now.
    pub fn used_bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Updates the gauge of the held bytes.
    pub fn report(&self) {
        gauge!(MEMORY_USED).set(self.used_bytes() as f64);
    }
}

/// The bytes that one partition holds since its last fill. The remaining bytes are given back when the last holder is gone.
#[derive(Debug)]
pub struct Account {
    held: AtomicUsize,
    all: Arc<Memory>,
}

impl Account {
    /// Opens an empty account.
    pub fn open(all: &Arc<Memory>) -> Arc<Account> {
        Arc::new(Account { held: AtomicUsize::new(0), all: Arc::clone(all) })
    }

    /// Returns the bytes held now, of this partition and of all.
    pub fn held_bytes(&self) -> (usize, usize) {
        (self.held.load(Ordering::Relaxed), self.all.used_bytes())
    }

    /// Adds bytes. Returns the bytes held now.
    pub fn add(&self, bytes: usize) -> (usize, usize) {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (held, self.all.0.fetch_add(bytes, Ordering::Relaxed) + bytes)
    }

    /// Subtracts bytes that were given back.
    pub fn sub(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.all.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_the_sum_of_the_accounts() {
        let memory = Arc::new(Memory::default());
        let (a, b) = (Account::open(&memory), Account::open(&memory));
        assert_eq!(a.add(5), (5, 5));
        assert_eq!(b.add(7), (7, 12));
        a.sub(4);
        assert_eq!((a.held_bytes(), b.held_bytes()), ((1, 8), (7, 8)));
    }
}
