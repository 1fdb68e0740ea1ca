//! The one memory limit: how much windows and batches hold, and when consumption must pause.
//!
//! A quarter of `memory.limit_bytes` is librdkafka's queue (a third of that is in `queued.max.messages.kbytes`, which counts
//! values only), a quarter is left for what is being sent and for the process itself; windows and batches may hold the half
//! that remains.

use metrics::gauge;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::metrics::{MEMORY_LIMIT, MEMORY_USED, PAUSED};

/// What windows and batches hold.
#[derive(Debug)]
pub struct Memory {
    limit_bytes: usize,
    used_bytes: AtomicUsize,
    pressed: AtomicBool,
}

impl Memory {
    /// The share of windows and batches in the configured limit.
    pub fn new(configured_bytes: usize) -> Memory {
        let limit_bytes = configured_bytes / 2;
        gauge!(MEMORY_LIMIT).set(limit_bytes as f64);
        gauge!(PAUSED).set(0.0);
        Memory { limit_bytes, used_bytes: AtomicUsize::new(0), pressed: AtomicBool::new(false) }
    }

    /// Bytes held now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Bytes were taken.
    pub fn add(&self, bytes: usize) {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes were given back.
    pub fn sub(&self, bytes: usize) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// At the limit: consumption pauses.
    pub fn is_full(&self) -> bool {
        self.used_bytes() >= self.limit_bytes
    }

    /// Low enough again for consumption to go on after a pause.
    pub fn has_room(&self) -> bool {
        self.used_bytes() < self.limit_bytes / 2
    }

    /// Consumption is paused, or goes on: while it is paused every window is due, however young, as nothing else frees memory.
    pub fn set_pressed(&self, pressed: bool) {
        self.pressed.store(pressed, Ordering::Relaxed);
    }

    /// Whether consumption is paused.
    pub fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// Sets the gauge.
    pub fn report(&self) {
        gauge!(MEMORY_USED).set(self.used_bytes() as f64);
    }
}
