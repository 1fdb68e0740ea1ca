-- The three tables on a cluster: rows are written to <table>_local of one shard and read through the Distributed <table>.
-- The Distributed tables have no sharding key on purpose: they are for reading.
-- {shard}, {replica} and {table} are ClickHouse's own macros: each server names the first two in its <macros>.
--
-- Rules for every file here: each statement is idempotent, ends with ";" at the end of a line, and names its database.
-- A file that has been released is never changed; the next change is the next number.

CREATE TABLE IF NOT EXISTS {database}.email_events_local ON CLUSTER `{cluster}`
(
    campaign_id UUID COMMENT 'Campaign the e-mail belongs to',
    workspace_id UUID COMMENT 'Customer that owns the campaign',
    email String COMMENT 'Address of the recipient',
    event_type Enum8('delivered' = 1, 'open' = 2, 'click' = 3, 'bounce' = 4, 'unsubscribe' = 5) COMMENT 'What happened',
    event_time DateTime('UTC') COMMENT 'When it happened, UTC, whole seconds',
    metadata String DEFAULT '' COMMENT 'JSON text exactly as the producer sent it; empty if it sent none',
    source LowCardinality(String) COMMENT 'Kafka origin "topic/partition@topic-id"; the id keeps a re-created topic apart',
    source_offset UInt64 COMMENT 'Kafka offset within source; (source, source_offset) is unique',
    INDEX source_offset_range source_offset TYPE minmax GRANULARITY 1
)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toYYYYMMDD(event_time)
ORDER BY (campaign_id, event_time)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800
COMMENT 'One row per e-mail event. Filter by campaign_id first, then event_time.';

CREATE TABLE IF NOT EXISTS {database}.email_events ON CLUSTER `{cluster}`
AS {database}.email_events_local
ENGINE = Distributed(`{cluster}`, {database}, email_events_local)
COMMENT 'One row per e-mail event. Filter by campaign_id first, then event_time.';

CREATE TABLE IF NOT EXISTS {database}.daily_local ON CLUSTER `{cluster}`
(
    day Date COMMENT 'UTC day of the events',
    event_type Enum8('delivered' = 1, 'open' = 2, 'click' = 3, 'bounce' = 4, 'unsubscribe' = 5) COMMENT 'What happened',
    campaign_id UUID COMMENT 'Campaign the e-mails belong to',
    workspace_id UUID COMMENT 'Customer that owns the campaign',
    source LowCardinality(String) COMMENT 'Kafka origin "topic/partition@topic-id"; the id keeps a re-created topic apart',
    total UInt64 COMMENT 'Number of events; one key can have several rows, so always sum(total)',
    end_offset SimpleAggregateFunction(max, UInt64) COMMENT 'Kafka offset up to which source is counted here, exclusive',
    level String ALIAS toString(event_type) COMMENT 'event_type as text'
)
ENGINE = ReplicatedSummingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toYYYYMM(day)
ORDER BY (day, event_type, campaign_id, workspace_id, source)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800
COMMENT 'Events counted per UTC day, type and campaign. Always read it with sum(total) and GROUP BY.';

CREATE TABLE IF NOT EXISTS {database}.daily ON CLUSTER `{cluster}`
AS {database}.daily_local
ENGINE = Distributed(`{cluster}`, {database}, daily_local)
COMMENT 'Events counted per UTC day, type and campaign. Always read it with sum(total) and GROUP BY.';

CREATE TABLE IF NOT EXISTS {database}.rejected_events_local ON CLUSTER `{cluster}`
(
    source LowCardinality(String) COMMENT 'Kafka origin "topic/partition@topic-id"; the id keeps a re-created topic apart',
    source_offset UInt64 COMMENT 'Kafka offset within source',
    kafka_timestamp DateTime64(3, 'UTC') COMMENT 'Timestamp of the Kafka record',
    reason LowCardinality(String) COMMENT 'Short code of why it was rejected; group by this',
    error String COMMENT 'What the decoder said',
    key String COMMENT 'Key of the Kafka record, as bytes',
    payload String COMMENT 'Value of the Kafka record, as bytes',
    rejected_at DateTime('UTC') DEFAULT now() COMMENT 'When this row was written'
)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
ORDER BY (source, source_offset)
TTL rejected_at + INTERVAL 30 DAY
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800
COMMENT 'Kafka records that are not valid events. Kept for 30 days.';

CREATE TABLE IF NOT EXISTS {database}.rejected_events ON CLUSTER `{cluster}`
AS {database}.rejected_events_local
ENGINE = Distributed(`{cluster}`, {database}, rejected_events_local)
COMMENT 'Kafka records that are not valid events. Kept for 30 days.';
