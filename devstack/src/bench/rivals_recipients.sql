CREATE TABLE {database}.recipients
(
    campaign_id UUID,
    recipient UInt64,
    flags SimpleAggregateFunction(groupBitOr, UInt16),
    first_delivered SimpleAggregateFunction(min, DateTime('UTC')),
    first_open SimpleAggregateFunction(min, DateTime('UTC')),
    first_click SimpleAggregateFunction(min, DateTime('UTC')),
    first_bounce SimpleAggregateFunction(min, DateTime('UTC')),
    first_unsubscribe SimpleAggregateFunction(min, DateTime('UTC'))
)
ENGINE = AggregatingMergeTree
ORDER BY (campaign_id, recipient);

CREATE MATERIALIZED VIEW {database}.to_recipients TO {database}.recipients AS
WITH splitByChar('@', email)[-1] AS domain, toDateTime(4294967295, 'UTC') AS never
SELECT campaign_id,
       sipHash64Keyed((toUInt64(1), toUInt64(2)), concat(substring(email, 1, length(email) - length(domain)), lower(domain))) AS recipient,
       groupBitOr(bitShiftLeft(toUInt16(1), toUInt8(event_type) - 1)) AS flags,
       min(if(event_type = 'delivered', event_time, never)) AS first_delivered,
       min(if(event_type = 'open', event_time, never)) AS first_open,
       min(if(event_type = 'click', event_time, never)) AS first_click,
       min(if(event_type = 'bounce', event_time, never)) AS first_bounce,
       min(if(event_type = 'unsubscribe', event_time, never)) AS first_unsubscribe
FROM {database}.email_events
WHERE email != ''
GROUP BY campaign_id, recipient;
