CREATE DATABASE {database};

CREATE TABLE {database}.email_events
(
    campaign_id UUID,
    workspace_id UUID,
    email String,
    event_type Enum8('delivered' = 1, 'open' = 2, 'click' = 3, 'bounce' = 4, 'unsubscribe' = 5),
    event_time DateTime('UTC'),
    metadata String,
    source LowCardinality(String),
    source_offset UInt64
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(event_time)
ORDER BY (campaign_id, event_time);

CREATE TABLE {database}.daily
(
    day Date,
    event_type Enum8('delivered' = 1, 'open' = 2, 'click' = 3, 'bounce' = 4, 'unsubscribe' = 5),
    campaign_id UUID,
    workspace_id UUID,
    source LowCardinality(String),
    total UInt64,
    end_offset SimpleAggregateFunction(max, UInt64),
    level String ALIAS toString(event_type)
)
ENGINE = SummingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (day, event_type, campaign_id, workspace_id, source);
