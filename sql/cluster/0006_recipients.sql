-- Unique figures: each recipient of a campaign once, and views that count recipients, for rates that are never above 100 %.
-- `tallyhouse migrate` puts the key into recipient_key once. A recipient is sipHash64Keyed((k0, k1), address with its domain in lower case).
-- A binary that knows no migration 6 may run on this schema. It writes no recipients: `tallyhouse repair recipients` adds them later.
--
-- Rules for every file here: see 0001_tables.sql.

CREATE TABLE IF NOT EXISTS {database}.recipients_local ON CLUSTER `{cluster}`
(
    campaign_id UUID COMMENT 'Campaign the e-mails belong to',
    recipient UInt64 COMMENT 'Keyed hash of the address, domain in lower case; after an erasure another number',
    flags SimpleAggregateFunction(groupBitOr, UInt16) COMMENT 'Bits by type: 1 delivered, 2 open, 4 click, 8 bounce, 16 unsubscribe, 32 sent, 64 complaint, 128 deferred',
    first_delivered SimpleAggregateFunction(min, DateTime('UTC')) COMMENT 'Time of the first delivery, UTC; 2106-02-07 06:28:15 if there is none',
    first_open SimpleAggregateFunction(min, DateTime('UTC')) COMMENT 'Time of the first open, UTC; 2106-02-07 06:28:15 if there is none',
    first_click SimpleAggregateFunction(min, DateTime('UTC')) COMMENT 'Time of the first click, UTC; 2106-02-07 06:28:15 if there is none',
    first_bounce SimpleAggregateFunction(min, DateTime('UTC')) COMMENT 'Time of the first bounce, UTC; 2106-02-07 06:28:15 if there is none',
    first_unsubscribe SimpleAggregateFunction(min, DateTime('UTC')) COMMENT 'Time of the first unsubscription, UTC; 2106-02-07 06:28:15 if there is none'
)
ENGINE = ReplicatedAggregatingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
ORDER BY (campaign_id, recipient)
COMMENT 'One row per campaign and recipient after merges. Always read it with GROUP BY campaign_id, recipient.';

CREATE TABLE IF NOT EXISTS {database}.recipients ON CLUSTER `{cluster}`
AS {database}.recipients_local
ENGINE = Distributed(`{cluster}`, {database}, recipients_local)
COMMENT 'One row per campaign and recipient after merges. Always read it with GROUP BY campaign_id, recipient.';

CREATE TABLE IF NOT EXISTS {database}.recipient_key_local ON CLUSTER `{cluster}`
(
    k0 UInt64 COMMENT 'First half of the key',
    k1 UInt64 COMMENT 'Second half of the key'
)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
ORDER BY k0
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800
COMMENT 'The secret key of the hashes in recipients, one row. Who has it can find out if an address is in a campaign.';

CREATE TABLE IF NOT EXISTS {database}.recipient_key ON CLUSTER `{cluster}`
AS {database}.recipient_key_local
ENGINE = Distributed(`{cluster}`, {database}, recipient_key_local)
COMMENT 'The secret key of the hashes in recipients, one row. Who has it can find out if an address is in a campaign.';

ALTER TABLE {database}.erasures_local ON CLUSTER `{cluster}` ADD COLUMN IF NOT EXISTS recipients UInt64 DEFAULT 0 COMMENT 'Rows of recipients of which the number was replaced';

ALTER TABLE {database}.erasures ON CLUSTER `{cluster}` ADD COLUMN IF NOT EXISTS recipients UInt64 DEFAULT 0 COMMENT 'Rows of recipients of which the number was replaced';

CREATE OR REPLACE VIEW {database}.campaign_recipients ON CLUSTER `{cluster}`
(
    campaign_id UUID COMMENT 'Campaign the e-mails belong to',
    recipients UInt64 COMMENT 'Distinct recipients with any event',
    delivered UInt64 COMMENT 'Recipients with a delivered event',
    opened UInt64 COMMENT 'Recipients with an open',
    clicked UInt64 COMMENT 'Recipients with a click',
    opened_or_clicked UInt64 COMMENT 'Recipients with an open or a click: who clicks has read, even if images are blocked',
    bounced UInt64 COMMENT 'Recipients with a bounce',
    unsubscribed UInt64 COMMENT 'Recipients with an unsubscription',
    complained UInt64 COMMENT 'Recipients with a report as spam',
    opened_or_clicked_undelivered UInt64 COMMENT 'Of opened_or_clicked: those without a delivered event, who are in no rate',
    open_rate_of_delivered Nullable(Float64) COMMENT 'Share of delivered that opened; NULL if the denominator is 0',
    click_rate_of_delivered Nullable(Float64) COMMENT 'Share of delivered that clicked; NULL if the denominator is 0',
    open_or_click_rate_of_delivered Nullable(Float64) COMMENT 'Share of delivered that opened or clicked; NULL if the denominator is 0',
    click_rate_of_opened Nullable(Float64) COMMENT 'Share of opened that clicked; NULL if the denominator is 0',
    unsubscribe_rate_of_delivered Nullable(Float64) COMMENT 'Share of delivered that unsubscribed; NULL if the denominator is 0',
    complaint_rate_of_delivered Nullable(Float64) COMMENT 'Share of delivered that complained; NULL if the denominator is 0',
    bounce_rate_of_delivered_or_bounced Nullable(Float64) COMMENT 'Share of delivered or bounced that bounced; NULL if the denominator is 0'
)
AS SELECT
    campaign_id,
    count() AS recipients,
    countIf(bitTest(bits, 0)) AS delivered,
    countIf(bitTest(bits, 1)) AS opened,
    countIf(bitTest(bits, 2)) AS clicked,
    countIf(bitTest(bits, 1) OR bitTest(bits, 2)) AS opened_or_clicked,
    countIf(bitTest(bits, 3)) AS bounced,
    countIf(bitTest(bits, 4)) AS unsubscribed,
    countIf(bitTest(bits, 6)) AS complained,
    countIf((bitTest(bits, 1) OR bitTest(bits, 2)) AND NOT bitTest(bits, 0)) AS opened_or_clicked_undelivered,
    countIf(bitTest(bits, 0) AND bitTest(bits, 1)) / nullIf(delivered, 0) AS open_rate_of_delivered,
    countIf(bitTest(bits, 0) AND bitTest(bits, 2)) / nullIf(delivered, 0) AS click_rate_of_delivered,
    countIf(bitTest(bits, 0) AND (bitTest(bits, 1) OR bitTest(bits, 2))) / nullIf(delivered, 0) AS open_or_click_rate_of_delivered,
    countIf(bitTest(bits, 1) AND bitTest(bits, 2)) / nullIf(opened, 0) AS click_rate_of_opened,
    countIf(bitTest(bits, 0) AND bitTest(bits, 4)) / nullIf(delivered, 0) AS unsubscribe_rate_of_delivered,
    countIf(bitTest(bits, 0) AND bitTest(bits, 6)) / nullIf(delivered, 0) AS complaint_rate_of_delivered,
    bounced / nullIf(countIf(bitTest(bits, 0) OR bitTest(bits, 3)), 0) AS bounce_rate_of_delivered_or_bounced
FROM (SELECT campaign_id, recipient, groupBitOr(flags) AS bits FROM {database}.recipients GROUP BY campaign_id, recipient)
GROUP BY campaign_id
COMMENT 'Distinct recipients and rates per campaign over its life. Filter by campaign_id.';

CREATE OR REPLACE VIEW {database}.campaign_recipients_daily ON CLUSTER `{cluster}`
(
    day Date COMMENT 'UTC day of the first event of a type',
    campaign_id UUID COMMENT 'Campaign the e-mails belong to',
    delivered UInt64 COMMENT 'Recipients whose first delivered event is of that day',
    opened UInt64 COMMENT 'Recipients whose first open is of that day',
    clicked UInt64 COMMENT 'Recipients whose first click is of that day',
    bounced UInt64 COMMENT 'Recipients whose first bounce is of that day',
    unsubscribed UInt64 COMMENT 'Recipients whose first unsubscription is of that day'
)
AS SELECT
    toDate(first.2) AS day,
    campaign_id,
    countIf(first.1 = 0) AS delivered,
    countIf(first.1 = 1) AS opened,
    countIf(first.1 = 2) AS clicked,
    countIf(first.1 = 3) AS bounced,
    countIf(first.1 = 4) AS unsubscribed
FROM
(
    SELECT
        campaign_id,
        recipient,
        arrayJoin([(0, min(first_delivered)), (1, min(first_open)), (2, min(first_click)), (3, min(first_bounce)), (4, min(first_unsubscribe))]) AS first
    FROM {database}.recipients
    GROUP BY campaign_id, recipient
)
WHERE toUInt32(first.2) != 4294967295
GROUP BY day, campaign_id
COMMENT 'Distinct recipients per UTC day of their first event of each type: days add up to the campaign. Filter by campaign_id.';
