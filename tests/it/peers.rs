//! A short `cargo peers --steady`: both systems count what a steady producer sends.

use devstack::Stack;
use devstack::bench::Interrupt;
use devstack::bench::rivals::{Load, Servers, SteadyRun, System};
use std::time::Duration;

const LOAD: Load = Load {
    partitions: 4,
    per_second: 2_000,
    members: 1,
    flush_age: Duration::from_secs(1),
    warm_up: Duration::from_secs(1),
    measured: Duration::from_secs(4),
    idle: Duration::ZERO,
    campaigns: 100,
};

/// A run whose counts are wrong gives no figures.
pub async fn a_steady_rate_is_counted_alike(_url: &str, _database: &str) {
    let runs = tokio::task::spawn_blocking(|| {
        let (stack, interrupt, program) = (Stack::shared(), Interrupt::never(), crate::program());
        let (kafka, clickhouse) = (stack.kafka().unwrap(), stack.clickhouse().unwrap());
        let servers = Servers { kafka, clickhouse, stack, interrupt: &interrupt };
        [System::Tallyhouse { program: &program, set: &[] }, System::KafkaEngine { recipients: true }]
            .map(|system| servers.run(&LOAD, system).unwrap())
    });
    for SteadyRun { events, inserts, delays, .. } in runs.await.unwrap() {
        // Both tables, once in each flush age or so.
        assert!(events == 10_000 && (2..=100).contains(&inserts), "{events} events, {inserts} inserts");
        assert!(delays.quantile_ms(0.5).is_some(), "no event was seen");
    }
}
