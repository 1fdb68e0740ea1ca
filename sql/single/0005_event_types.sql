-- Three more types of events: sent, complaint and deferred. The views get a column for each, behind the columns that they had.
-- ClickHouse only changes the description of the column, so this takes no time however many rows there are.
-- A binary that knows no migration 5 compares the column exactly, so it does not run on this schema.
--
-- Rules for every file here: see 0001_tables.sql.

ALTER TABLE {database}.email_events MODIFY COLUMN event_type
    Enum8('delivered' = 1, 'open' = 2, 'click' = 3, 'bounce' = 4, 'unsubscribe' = 5, 'sent' = 6, 'complaint' = 7, 'deferred' = 8) COMMENT 'What happened';

ALTER TABLE {database}.daily MODIFY COLUMN event_type
    Enum8('delivered' = 1, 'open' = 2, 'click' = 3, 'bounce' = 4, 'unsubscribe' = 5, 'sent' = 6, 'complaint' = 7, 'deferred' = 8) COMMENT 'What happened';

CREATE OR REPLACE VIEW {database}.campaign_daily
(
    day Date COMMENT 'UTC day of the events',
    campaign_id UUID COMMENT 'Campaign the e-mails belong to',
    workspace_id UUID COMMENT 'Customer that owns the campaign',
    delivered UInt64 COMMENT 'E-mails that were delivered',
    opens UInt64 COMMENT 'Opens, each one counted: not distinct recipients',
    clicks UInt64 COMMENT 'Clicks, each one counted: not distinct recipients',
    bounces UInt64 COMMENT 'E-mails that came back',
    unsubscribes UInt64 COMMENT 'Unsubscriptions',
    sent UInt64 COMMENT 'E-mails that were handed over for delivery',
    complaints UInt64 COMMENT 'Reports as spam',
    deferred UInt64 COMMENT 'Attempts that the servers of recipients put off'
)
AS SELECT
    day,
    campaign_id,
    workspace_id,
    sumIf(total, event_type = 'delivered') AS delivered,
    sumIf(total, event_type = 'open') AS opens,
    sumIf(total, event_type = 'click') AS clicks,
    sumIf(total, event_type = 'bounce') AS bounces,
    sumIf(total, event_type = 'unsubscribe') AS unsubscribes,
    sumIf(total, event_type = 'sent') AS sent,
    sumIf(total, event_type = 'complaint') AS complaints,
    sumIf(total, event_type = 'deferred') AS deferred
FROM {database}.daily
GROUP BY day, campaign_id, workspace_id
COMMENT 'Events per UTC day and campaign, one row each. Filter by day first.';

CREATE OR REPLACE VIEW {database}.campaign_report
(
    campaign_id UUID COMMENT 'Campaign the e-mails belong to',
    workspace_id UUID COMMENT 'Customer that owns the campaign',
    first_day Date COMMENT 'First UTC day with an event',
    last_day Date COMMENT 'Last UTC day with an event',
    delivered UInt64 COMMENT 'E-mails that were delivered',
    opens UInt64 COMMENT 'Opens, each one counted: not distinct recipients',
    clicks UInt64 COMMENT 'Clicks, each one counted: not distinct recipients',
    bounces UInt64 COMMENT 'E-mails that came back',
    unsubscribes UInt64 COMMENT 'Unsubscriptions',
    open_rate Nullable(Float64) COMMENT 'opens / delivered; above 1 where recipients open more than once; NULL if the denominator is 0',
    click_rate Nullable(Float64) COMMENT 'clicks / delivered; above 1 where recipients click more than once; NULL if the denominator is 0',
    click_to_open_rate Nullable(Float64) COMMENT 'clicks / opens; NULL if the denominator is 0',
    bounce_rate Nullable(Float64) COMMENT 'bounces / (delivered + bounces): the share of what was sent, where an e-mail is delivered or bounced; NULL if the denominator is 0',
    unsubscribe_rate Nullable(Float64) COMMENT 'unsubscribes / delivered; NULL if the denominator is 0',
    sent UInt64 COMMENT 'E-mails that were handed over for delivery',
    complaints UInt64 COMMENT 'Reports as spam',
    deferred UInt64 COMMENT 'Attempts that the servers of recipients put off',
    complaint_rate Nullable(Float64) COMMENT 'complaints / delivered; NULL if the denominator is 0'
)
AS SELECT
    campaign_id,
    workspace_id,
    min(day) AS first_day,
    max(day) AS last_day,
    sumIf(total, event_type = 'delivered') AS delivered,
    sumIf(total, event_type = 'open') AS opens,
    sumIf(total, event_type = 'click') AS clicks,
    sumIf(total, event_type = 'bounce') AS bounces,
    sumIf(total, event_type = 'unsubscribe') AS unsubscribes,
    opens / nullIf(delivered, 0) AS open_rate,
    clicks / nullIf(delivered, 0) AS click_rate,
    clicks / nullIf(opens, 0) AS click_to_open_rate,
    bounces / nullIf(delivered + bounces, 0) AS bounce_rate,
    unsubscribes / nullIf(delivered, 0) AS unsubscribe_rate,
    sumIf(total, event_type = 'sent') AS sent,
    sumIf(total, event_type = 'complaint') AS complaints,
    sumIf(total, event_type = 'deferred') AS deferred,
    complaints / nullIf(delivered, 0) AS complaint_rate
FROM {database}.daily
GROUP BY campaign_id, workspace_id
COMMENT 'Counts and rates per campaign over all days. A rate whose denominator is 0 is NULL.';

CREATE OR REPLACE VIEW {database}.workspace_daily
(
    day Date COMMENT 'UTC day of the events',
    workspace_id UUID COMMENT 'Customer that owns the campaign',
    campaigns UInt64 COMMENT 'Distinct campaigns with an event on that day',
    delivered UInt64 COMMENT 'E-mails that were delivered',
    opens UInt64 COMMENT 'Opens, each one counted: not distinct recipients',
    clicks UInt64 COMMENT 'Clicks, each one counted: not distinct recipients',
    bounces UInt64 COMMENT 'E-mails that came back',
    unsubscribes UInt64 COMMENT 'Unsubscriptions',
    sent UInt64 COMMENT 'E-mails that were handed over for delivery',
    complaints UInt64 COMMENT 'Reports as spam',
    deferred UInt64 COMMENT 'Attempts that the servers of recipients put off'
)
AS SELECT
    day,
    workspace_id,
    uniqExact(campaign_id) AS campaigns,
    sumIf(total, event_type = 'delivered') AS delivered,
    sumIf(total, event_type = 'open') AS opens,
    sumIf(total, event_type = 'click') AS clicks,
    sumIf(total, event_type = 'bounce') AS bounces,
    sumIf(total, event_type = 'unsubscribe') AS unsubscribes,
    sumIf(total, event_type = 'sent') AS sent,
    sumIf(total, event_type = 'complaint') AS complaints,
    sumIf(total, event_type = 'deferred') AS deferred
FROM {database}.daily
GROUP BY day, workspace_id
COMMENT 'Events per UTC day and workspace, one row each. Filter by day first.';
