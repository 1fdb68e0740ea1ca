-- The lifecycle topics: one row for each record of campaign.audience_ready and campaign.template_ready.
-- The table has no TTL, and none may be added: a row that goes away when it is inserted looks like a lost one.
--
-- Rules for every file here: see 0001_tables.sql.

CREATE TABLE IF NOT EXISTS {database}.campaign_lifecycle
(
    campaign_id UUID COMMENT 'Campaign that has reached the stage',
    workspace_id UUID COMMENT 'Customer that owns the campaign',
    stage Enum8('audience_ready' = 1, 'template_ready' = 2) COMMENT 'What is ready',
    event_time DateTime('UTC') COMMENT 'When it was ready, UTC, whole seconds',
    audience_size UInt64 COMMENT 'Number of recipients: a whole number audience_size, size or recipients in metadata of audience_ready; 0 if there is none',
    metadata String DEFAULT '' COMMENT 'JSON text exactly as the producer sent it; empty if it sent none',
    source LowCardinality(String) COMMENT 'Kafka origin "topic/partition@topic-id"; the id keeps a re-created topic apart',
    source_offset UInt64 COMMENT 'Kafka offset within source; (source, source_offset) is unique',
    end_offset UInt64 COMMENT 'Kafka offset up to which source is applied with this row, exclusive'
)
ENGINE = MergeTree
ORDER BY (campaign_id, event_time)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'One row per message of a lifecycle topic. Filter by campaign_id first. A producer may send a stage twice.';
