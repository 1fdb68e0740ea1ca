-- A user for Grafana that can read what people read, and nothing else. Run it once as an administrator, with a password of
-- your own and the database's name if it is not campaigns. Views read with the rights of who asks, so SELECT on daily and on
-- recipients is needed; no e-mail address is in them. readonly = 2 lets Grafana's plugin set limits for its own queries.

CREATE USER IF NOT EXISTS grafana IDENTIFIED WITH sha256_password BY 'change-me'
    SETTINGS readonly = 2, max_execution_time = 30, max_memory_usage = 2000000000;
GRANT SELECT ON campaigns.daily TO grafana;
GRANT SELECT ON campaigns.campaign_daily TO grafana;
GRANT SELECT ON campaigns.campaign_report TO grafana;
GRANT SELECT ON campaigns.workspace_daily TO grafana;
GRANT SELECT ON campaigns.recipients TO grafana;
GRANT SELECT ON campaigns.campaign_recipients TO grafana;
GRANT SELECT ON campaigns.campaign_recipients_daily TO grafana;
-- For the timeline of a campaign. These columns have no address.
GRANT SELECT ON campaigns.campaign_timeline TO grafana;
GRANT SELECT (campaign_id, event_type, event_time) ON campaigns.email_events TO grafana;
GRANT SELECT (campaign_id, workspace_id, stage, event_time, audience_size) ON campaigns.campaign_lifecycle TO grafana;
