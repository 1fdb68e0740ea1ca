//! Ports on 127.0.0.1 that stay reserved for a server while it is down.
//!
//! They lie below the kernel's ephemeral range: a port inside it could be handed to anybody's outgoing connection
//! while its server is being restarted. A lock file for each block keeps other devstack processes off.
//!
//! Must never hand out a port that something listens on.

use crate::{
    cache::Cache,
    error::{Context, Error, Result},
};
use std::{
    fs,
    fs::File,
    net::{Ipv4Addr, TcpListener},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Number of ports in a block: enough for a cluster of three Kafka nodes with two ports each.
const BLOCK_SIZE: u16 = 8;
const BLOCKS: u16 = 1_000;
const DEFAULT_EPHEMERAL_START: u16 = 32_768;

/// Blocks already tried by this process, so that a port is not given out twice soon.
static TRIED: AtomicU16 = AtomicU16::new(0);

/// A few ports in a row, held until dropped.
#[derive(Debug)]
pub(crate) struct PortBlock {
    first: u16,
    _lock: File,
}

impl PortBlock {
    /// Finds and holds a block. Fails when the lock folder cannot be written or every block is taken.
    pub(crate) fn reserve() -> Result<PortBlock> {
        let folder = Cache::open()?.root().join("ports");
        fs::create_dir_all(&folder).context("make", &folder)?;
        let base = ephemeral_start().saturating_sub(BLOCKS * BLOCK_SIZE).max(10_000);
        let spread = (process::id() % u32::from(BLOCKS)) as u16;
        for _ in 0..BLOCKS {
            let block = (spread + TRIED.fetch_add(1, Ordering::Relaxed)) % BLOCKS;
            let first = base + block * BLOCK_SIZE;
            let path = folder.join(format!("{first}.lock"));
            let lock = File::create(&path).context("create", &path)?;
            if lock.try_lock().is_ok() && (first..first + BLOCK_SIZE).all(is_free) {
                return Ok(PortBlock { first, _lock: lock });
            }
        }
        Err(Error::NoFreePorts { count: BLOCK_SIZE })
    }

    /// Returns the port at `index` of the block.
    pub(crate) fn port(&self, index: u16) -> u16 {
        assert!(index < BLOCK_SIZE, "a block holds {BLOCK_SIZE} ports");
        self.first + index
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn ephemeral_start() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(DEFAULT_EPHEMERAL_START)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_stay_below_the_ephemeral_range() {
        let (one, two) = (PortBlock::reserve().unwrap(), PortBlock::reserve().unwrap());
        assert!(one.first.abs_diff(two.first) >= BLOCK_SIZE);
        assert!(one.port(BLOCK_SIZE - 1) < ephemeral_start());
    }
}
