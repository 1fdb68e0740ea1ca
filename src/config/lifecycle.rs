//! The configuration of the pipelines that consume the lifecycle topics.
//!
//! Such a pipeline has the code of the event topic's. It gets a configuration in which the lifecycle topic stands in the place of the
//! event topic.

use super::memory;
use super::schema::{Config, Mapping, Preset, Topics};
use tallyhouse_core::stream::{Stage, Stream};

impl Topics {
    /// Returns the configured lifecycle topics with the stages that they announce.
    pub fn lifecycle(&self) -> Vec<(Stage, &str)> {
        let topic = |stage| match stage {
            Stage::AudienceReady => (stage, self.audience_ready.as_str()),
            Stage::TemplateReady => (stage, self.template_ready.as_str()),
        };
        Stage::ALL.map(topic).into_iter().filter(|(_, topic)| !topic.is_empty()).collect()
    }
}

impl Config {
    /// Returns the content of the topic that stands in the place of the event topic.
    pub fn stream(&self) -> Stream {
        let topics = self.kafka.topics.lifecycle().into_iter();
        let stage = topics.filter(|(_, topic)| *topic == self.kafka.topics.events).map(|(stage, _)| stage).next();
        stage.map_or(Stream::Events, Stream::Lifecycle)
    }

    /// Returns the configuration of the pipeline of a lifecycle topic.
    ///
    /// Its group is one of its own, so that its rebalances hold up no event. Its records have no address and no type, and always the
    /// names of the default form.
    #[must_use]
    pub fn for_lifecycle(&self, stage: Stage, topic: &str) -> Config {
        let mut config = self.clone();
        topic.clone_into(&mut config.kafka.topics.events);
        config.kafka.group_id = format!("{}-{}", self.kafka.group_id, stage.name());
        // Such a topic has a small share of the memory.
        config.kafka.properties.remove("queued.max.messages.kbytes");
        config.memory.limit_bytes = memory::lifecycle(self.memory.limit_bytes);
        config.flush.bytes_max = self.flush.bytes_max.min(memory::windows(config.memory.limit_bytes) / 2);
        config.mapping = Mapping {
            preset: Preset::Django,
            campaign_id: None,
            workspace_id: None,
            email: Some("=".to_owned()),
            event_type: Some("=sent".to_owned()),
            event_time: None,
            metadata: None,
            words: None,
            other_ids: self.mapping.other_ids,
        };
        config
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{self, Config, Sources};
    use tallyhouse_core::decode::reject::Reason;
    use tallyhouse_core::stream::{Stage, Stream};

    fn config(settings: &[&str]) -> Config {
        let flags = settings.iter().map(|flag| flag.parse().unwrap()).collect();
        config::load(&Sources { flags, ..Sources::default() }).unwrap().config
    }

    #[test]
    fn an_empty_name_leaves_a_topic_out() {
        let names = |config: &Config| config.kafka.topics.lifecycle().into_iter().map(|(_, t)| t.to_owned()).collect();
        let all: Vec<String> = names(&config(&[]));
        assert_eq!(all, ["campaign.audience_ready", "campaign.template_ready"]);
        let one: Vec<String> = names(&config(&["kafka.topics.audience_ready="]));
        assert_eq!(one, ["campaign.template_ready"]);
    }

    /// A lifecycle record has neither address nor type. Fields of these names are ignored as any other.
    #[test]
    fn a_lifecycle_record_needs_four_fields_at_most() {
        let config = config(&["mapping.preset=sendgrid", "kafka.group_id=g", "kafka.topics.template_ready=t"]);
        let lifecycle = config.for_lifecycle(Stage::TemplateReady, "t");
        assert_eq!(
            (lifecycle.kafka.group_id.as_str(), lifecycle.kafka.topics.events.as_str()),
            ("g-template_ready", "t")
        );
        let streams = [config.stream(), lifecycle.stream()];
        assert_eq!(streams, [Stream::Events, Stream::Lifecycle(Stage::TemplateReady)]);
        let decoder = lifecycle.decoder();
        let ids = r#""campaign_id":"00000000-0000-0000-0000-000000000001","workspace_id":"00000000-0000-0000-0000-000000000002""#;
        let whole =
            format!(r#"{{{ids},"event_time":1795501800,"event_type":"audience_ready","metadata":{{"size":3}}}}"#);
        let event = decoder.decode(Some(whole.as_bytes()), None).unwrap();
        assert_eq!((event.event_time, event.metadata, event.email.as_ref()), (1_795_501_800, r#"{"size":3}"#, ""));
        let timeless = format!("{{{ids}}}");
        let rejection = decoder.decode(Some(timeless.as_bytes()), None).unwrap_err();
        assert_eq!(rejection.reason, Reason::MissingField);
    }
}
