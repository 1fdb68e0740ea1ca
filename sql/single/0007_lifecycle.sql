-- The lifecycle topics: one row for each record of campaign.audience_ready and campaign.template_ready.
-- The table has no TTL, and none may be added: a row that goes away when it is inserted looks like a lost one.
-- The view needs SELECT on campaign_lifecycle, and on campaign_id, event_type and event_time of email_events.
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

CREATE VIEW IF NOT EXISTS {database}.campaign_timeline
(
    campaign_id UUID COMMENT 'Campaign the e-mails belong to',
    audience_ready Nullable(DateTime('UTC')) COMMENT 'First message that the audience is ready',
    template_ready Nullable(DateTime('UTC')) COMMENT 'First message that the template is ready',
    audience_size Nullable(UInt64) COMMENT 'Number of recipients by the last message that has it',
    first_delivery Nullable(DateTime('UTC')) COMMENT 'First event of the type delivered',
    half_of_opens Nullable(DateTime('UTC')) COMMENT 'When half of the opens had happened, of those that have a row'
)
AS SELECT
    campaign_id,
    minOrNullIf(at, stage = 'audience_ready') AS audience_ready,
    minOrNullIf(at, stage = 'template_ready') AS template_ready,
    nullIf(argMaxIf(size, at, size > 0), 0) AS audience_size,
    minOrNullIf(at, stage = 'delivered') AS first_delivery,
    if(countIf(stage = 'open') > 0, quantileExactLowIf(0.5)(at, stage = 'open'), NULL) AS half_of_opens
FROM
(
    SELECT campaign_id, event_time AS at, toString(stage) AS stage, audience_size AS size
    FROM {database}.campaign_lifecycle
    UNION ALL
    SELECT campaign_id, event_time AS at, toString(event_type) AS stage, toUInt64(0) AS size
    FROM {database}.email_events
    WHERE event_type IN ('delivered', 'open')
)
GROUP BY campaign_id
COMMENT 'Stages of a campaign. It reads raw rows, so always filter by campaign_id.';

ALTER TABLE {database}.erasures ADD COLUMN IF NOT EXISTS lifecycle UInt64
    COMMENT 'Rows of campaign_lifecycle of which metadata is blanked' AFTER rejects;
