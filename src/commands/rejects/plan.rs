//! Decides which rows may be replayed, and under which timestamp. Pure.

use super::{Origin, Rejected};
use bytes::Bytes;
use std::collections::HashMap;
use tallyhouse_core::decode::mapped::Decoder;
use tallyhouse_core::decode::reject::Rejection;

/// The facts about the event topic that a replay into it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Name of the event topic.
    pub topic: String,
    /// Number of its partitions.
    pub partitions: i32,
    /// Number of replicas of each.
    pub replicas: i32,
    /// Time for which it keeps records, in ms; `None` if it keeps them permanently.
    pub retention_ms: Option<i64>,
    /// True if the broker puts its own timestamp on each record.
    pub append_time: bool,
    /// True if records are removed by key.
    pub compacted: bool,
}

/// A row with the value to replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The row of `rejected_events`.
    pub row: Rejected,
    /// The value to replay; `None` for a tombstone.
    pub payload: Option<Bytes>,
}

impl Candidate {
    /// True if its value differs from the row's.
    pub fn is_fixed(&self) -> bool {
        self.payload != self.row.payload
    }

    /// Returns the size of its record in bytes.
    pub fn bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len) + self.row.key.len() + self.row.origin.source.len()
    }
}

impl Target {
    /// Reads the topic's settings, with the names that the brokers use.
    pub fn new(topic: &str, partitions: i32, replicas: i32, settings: &HashMap<String, String>) -> Target {
        let setting = |name: &str| settings.get(name).map(String::as_str);
        Target {
            topic: topic.to_owned(),
            partitions,
            replicas,
            retention_ms: setting("retention.ms").and_then(|text| text.parse().ok()).filter(|&ms| ms >= 0),
            append_time: setting("message.timestamp.type") == Some("LogAppendTime"),
            compacted: setting("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
        }
    }

    /// Returns the facts to know before anything is replayed into it.
    pub fn remarks(&self) -> Vec<String> {
        let Target { topic, .. } = self;
        let append_time = format!(
            "{topic} has message.timestamp.type=LogAppendTime: replayed records get the time of their replay, and event times are \
             judged by that"
        );
        let compacted = format!(
            "{topic} is compacted: a replayed record may remove others of its key. `tallyhouse explain limits` says more"
        );
        let all = [(self.append_time, append_time), (self.compacted, compacted)];
        all.into_iter().filter(|(applies, _)| *applies).map(|(_, remark)| remark).collect()
    }

    /// Returns the new record's timestamp: normally the row's own. Where the row has none, it is the time of the
    /// replay.
    ///
    /// It is also the time of the replay if the topic's retention could remove the record before it is consumed. A
    /// segment may hold only a log's old end.
    pub fn timestamp_ms(&self, row: &Rejected, now_ms: i64) -> i64 {
        let is_young = |time: &i64| self.retention_ms.is_none_or(|kept_ms| now_ms - time < kept_ms / 2);
        row.timestamp_ms.filter(|time| !self.append_time && is_young(time)).unwrap_or(now_ms)
    }

    /// Returns the partition of the new record: the origin's. It is `None`, and the key decides, where the topic has
    /// no such partition any more.
    pub fn partition(&self, origin: &Origin) -> Option<i32> {
        let (_, partition) = origin.topic_and_partition()?;
        (0..self.partitions).contains(&partition).then_some(partition)
    }
}

/// Checks that this version takes the value for an event, under the row's own timestamp and under its new one.
pub(super) fn judge(candidate: &Candidate, timestamp_ms: i64, decoder: &Decoder) -> Result<(), Rejection> {
    let payload = candidate.payload.as_deref();
    let own_ms = candidate.row.timestamp_ms.unwrap_or(timestamp_ms);
    decoder.decode(payload, Some(own_ms))?;
    decoder.decode(payload, Some(timestamp_ms)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tallyhouse_core::decode::TimeBounds;
    use tallyhouse_core::decode::reject::Reason;

    const NOW_MS: i64 = 1_795_576_200_000;
    const DAY_MS: i64 = 86_400_000;

    fn row(age_days: i64) -> Rejected {
        Rejected {
            origin: Origin { source: "events/2@x".into(), offset: 1 },
            timestamp_ms: Some(NOW_MS - age_days * DAY_MS),
            reason: "bad_time".into(),
            error: String::new(),
            key: Bytes::new(),
            payload: None,
        }
    }

    fn target(settings: &[(&str, &str)]) -> Target {
        let settings = settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Target::new("events", 3, 1, &settings)
    }

    #[test]
    fn a_record_that_retention_may_take_gets_the_time_of_the_replay() {
        let week = target(&[("retention.ms", "604800000"), ("cleanup.policy", "delete")]);
        assert_eq!(week.timestamp_ms(&row(3), NOW_MS), NOW_MS - 3 * DAY_MS);
        assert_eq!(week.timestamp_ms(&row(4), NOW_MS), NOW_MS);
        assert!(week.remarks().is_empty());
        let ever = target(&[("retention.ms", "-1")]);
        assert_eq!(ever.timestamp_ms(&row(400), NOW_MS), NOW_MS - 400 * DAY_MS);
        assert_eq!(ever.timestamp_ms(&Rejected { timestamp_ms: None, ..row(0) }, NOW_MS), NOW_MS);
        let append = target(&[("message.timestamp.type", "LogAppendTime"), ("cleanup.policy", "compact,delete")]);
        assert_eq!(append.timestamp_ms(&row(1), NOW_MS), NOW_MS);
        assert_eq!(append.remarks().len(), 2);
    }

    #[test]
    fn a_partition_that_is_gone_is_left_to_the_key() {
        let of = |source: &str| target(&[]).partition(&Origin { source: source.into(), offset: 0 });
        assert_eq!((of("events/2@x"), of("events/3@x"), of("nonsense")), (Some(2), None, None));
    }

    /// An event that was too far ahead of its record stays wrong, however long one waits.
    #[test]
    fn the_own_timestamp_judges_as_well() {
        let bounds = TimeBounds { past_seconds_max: 10 * 86_400, future_seconds_max: 86_400 };
        let decoder = Decoder::new(bounds, None);
        let event = format!(
            r#"{{"campaign_id":"{0:032x}","workspace_id":"{0:032x}","email":"a","event_type":"open","event_time":{1}}}"#,
            1,
            (NOW_MS - 4 * DAY_MS) / 1_000
        );
        let of_age = |age_days| Candidate { row: row(age_days), payload: Some(event.clone().into()) };
        let judged =
            |age_days, now_ms| judge(&of_age(age_days), now_ms, &decoder).map_err(|rejection| rejection.reason);
        assert_eq!(judged(4, NOW_MS), Ok(()));
        assert_eq!(judged(6, NOW_MS), Err(Reason::TimeImplausible), "two days after its record");
        assert_eq!(judged(4, NOW_MS + 7 * DAY_MS), Err(Reason::TimeImplausible), "too old by now");
        assert!(of_age(4).is_fixed());
    }
}
