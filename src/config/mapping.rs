//! The presets of the mapping, and the decoder that a configuration asks for.
//!
//! A mapping must be whole when it leaves here: `validate` reports its faults by key, and no other module has to check it.

use super::schema::{Config, Mapping, OtherIds, Preset};
use tallyhouse_core::decode::mapped::{self, Decoder, MappingError, MappingText, OWN_WORDS, WHOLE};

/// Words of SendGrid's webhook. `dropped` and `group_resubscribe` are none of the types: SendGrid can leave them out.
const SENDGRID_WORDS: &str = "processed=sent, deferred=deferred, delivered=delivered, open=open, click=click, bounce=bounce, \
                              spamreport=complaint, unsubscribe=unsubscribe, group_unsubscribe=unsubscribe";

impl Preset {
    fn text(self) -> MappingText<'static> {
        match self {
            Preset::Django => MappingText::default(),
            Preset::Level => MappingText {
                campaign_id: "campaign_id, =00000000-0000-0000-0000-000000000000",
                workspace_id: "workspace_id, =00000000-0000-0000-0000-000000000000",
                email: "email, =",
                event_type: "level",
                event_time: "timestamp",
                metadata: "message",
                words: OWN_WORDS,
                ..MappingText::default()
            },
            Preset::Sendgrid => MappingText {
                campaign_id: "campaign_id, singlesend_id, marketing_campaign_id",
                workspace_id: "workspace_id, =00000000-0000-0000-0000-000000000000",
                event_type: "event",
                event_time: "timestamp",
                metadata: WHOLE,
                words: SENDGRID_WORDS,
                ..MappingText::default()
            },
        }
    }
}

impl Mapping {
    /// Returns the preset with the keys that replace parts of it.
    fn text(&self) -> MappingText<'_> {
        let preset = self.preset.text();
        MappingText {
            campaign_id: self.campaign_id.as_deref().unwrap_or(preset.campaign_id),
            workspace_id: self.workspace_id.as_deref().unwrap_or(preset.workspace_id),
            email: self.email.as_deref().unwrap_or(preset.email),
            event_type: self.event_type.as_deref().unwrap_or(preset.event_type),
            event_time: self.event_time.as_deref().unwrap_or(preset.event_time),
            metadata: self.metadata.as_deref().unwrap_or(preset.metadata),
            words: self.words.as_deref().unwrap_or(preset.words),
            other_ids: match self.other_ids {
                OtherIds::Reject => mapped::OtherIds::Reject,
                OtherIds::Uuid5 => mapped::OtherIds::Uuid5,
            },
        }
    }

    /// Returns the reasons why the mapping cannot work.
    pub(super) fn faults(&self) -> Vec<MappingError> {
        mapped::Mapping::new(&self.text()).err().unwrap_or_default()
    }
}

impl Config {
    /// Returns the decoder of the event topic's records. The default form needs no mapping and has the fast path.
    pub fn decoder(&self) -> Decoder {
        let text = self.mapping.text();
        let mapping = (text != MappingText::default()).then(|| mapped::Mapping::new(&text));
        let mapping = mapping.map(|mapping| match mapping {
            Ok(mapping) => mapping,
            Err(faults) => unreachable!("`load` refuses such a mapping: {faults:?}"),
        });
        Decoder::new(self.time_bounds(), mapping)
    }
}
