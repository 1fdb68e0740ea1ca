CREATE MATERIALIZED VIEW {database}.to_daily TO {database}.daily AS
SELECT toDate(event_time) AS day, event_type, campaign_id, workspace_id, '' AS source, count() AS total,
       max(source_offset) + 1 AS end_offset
FROM {database}.email_events
GROUP BY day, event_type, campaign_id, workspace_id;

CREATE MATERIALIZED VIEW {database}.to_raw TO {database}.email_events AS
SELECT campaign_id, workspace_id, email, event_type, event_time, metadata,
       concat(_topic, '/', toString(_partition)) AS source, _offset AS source_offset
FROM {database}.queue;
