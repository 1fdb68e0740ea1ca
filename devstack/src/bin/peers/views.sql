CREATE MATERIALIZED VIEW {database}.to_daily TO {database}.daily AS
SELECT toDate(event_time) AS day, event_type, campaign_id, workspace_id, count() AS total
FROM {database}.email_events
GROUP BY day, event_type, campaign_id, workspace_id;

CREATE MATERIALIZED VIEW {database}.to_raw TO {database}.email_events AS
SELECT campaign_id, workspace_id, email, event_type, event_time, metadata
FROM {database}.queue;
