//! The readiness of the service, and the reasons if it is not ready: one reason per cause, in words.
//!
//! Must never be ready while a partition of this member is stopped or a server is known to be away.

use crate::platform::lock::locked;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The reasons for not being ready, and the reader's pulse.
#[derive(Debug, Default)]
pub struct Health {
    reasons: Mutex<BTreeMap<String, String>>,
    /// Time of the last poll. It is `None` until the reader polls for the first time: before that the service waits for servers,
    /// and does not hang.
    pulse: Mutex<Option<Instant>>,
    /// Health of the pipelines of the lifecycle topics, by topic.
    parts: Mutex<BTreeMap<String, Arc<Health>>>,
}

impl Health {
    fn reasons_locked(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        locked(&self.reasons)
    }

    /// Returns the health of the pipeline of a topic. Its causes are those of the service, with the topic before them.
    pub fn part(&self, topic: &str) -> Arc<Health> {
        Arc::clone(locked(&self.parts).entry(topic.to_owned()).or_default())
    }

    /// Adds a cause that keeps the service from being ready.
    pub fn set(&self, cause: &str, reason: impl Into<String>) {
        self.reasons_locked().insert(cause.to_owned(), reason.into());
    }

    /// Removes a cause that has ended.
    pub fn clear(&self, cause: &str) {
        self.reasons_locked().remove(cause);
    }

    /// Returns every cause with its reason. If there is none, the service is ready.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        let mut reasons = self.reasons_locked().clone();
        for (topic, part) in locked(&self.parts).iter() {
            let of_topic = |(cause, reason)| (format!("{topic}: {cause}"), reason);
            reasons.extend(part.reasons().into_iter().map(of_topic));
        }
        reasons
    }

    /// Notes that the reader has polled.
    pub fn beat(&self) {
        *locked(&self.pulse) = Some(Instant::now());
    }

    /// Returns the time since the reader polled last; zero while it has not started. Of several readers, the longest time counts.
    pub fn pulse_age(&self) -> Duration {
        let pulse = *locked(&self.pulse);
        let of_parts = locked(&self.parts).values().map(|part| part.pulse_age()).max().unwrap_or_default();
        pulse.map_or(Duration::ZERO, |last| last.elapsed()).max(of_parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_ready_when_all_its_parts_are() {
        let health = Health::default();
        let part = health.part("campaign.audience_ready");
        part.set("partition 0", "no");
        let reasons: Vec<String> = health.reasons().into_keys().collect();
        assert_eq!(reasons, ["campaign.audience_ready: partition 0"]);
        health.part("campaign.audience_ready").clear("partition 0");
        assert!(health.reasons().is_empty() && part.reasons().is_empty());
    }

    #[test]
    fn the_pulse_ages_only_once_the_reader_has_started() {
        let health = Health::default();
        assert_eq!(health.pulse_age(), Duration::ZERO);
        health.beat();
        // The loop waits until the clock has moved.
        assert!((0..1_000_000).any(|_| health.pulse_age() > Duration::ZERO));
    }
}
