-- The user of `tallyhouse run`, `check`, `status`, `audit` and `report`: it may read and add, and change or remove nothing. Run it once as
-- an administrator, after `tallyhouse migrate`, with a password of your own and the database's name if it is not campaigns.
-- `migrate`, `repair` and `erase` are an administrator's and take more (CREATE, ALTER, DROP on the database).
-- All members of a group need the same user: one looks in system.processes for inserts of another, and a user sees only its own.

CREATE USER IF NOT EXISTS tallyhouse IDENTIFIED WITH sha256_password BY 'change-me';
GRANT SELECT, INSERT ON campaigns.email_events TO tallyhouse;
GRANT SELECT, INSERT ON campaigns.daily TO tallyhouse;
GRANT SELECT, INSERT ON campaigns.rejected_events TO tallyhouse;
GRANT SELECT, INSERT ON campaigns.recipients TO tallyhouse;
GRANT SELECT ON campaigns.recipient_key TO tallyhouse;
GRANT SELECT, INSERT ON campaigns.campaign_lifecycle TO tallyhouse;
GRANT SELECT ON campaigns.schema_migrations TO tallyhouse;
-- For `report`, and for `check`, which looks whether they are there.
GRANT SELECT ON campaigns.campaign_daily TO tallyhouse;
GRANT SELECT ON campaigns.campaign_report TO tallyhouse;
GRANT SELECT ON campaigns.workspace_daily TO tallyhouse;
GRANT SELECT ON campaigns.campaign_recipients TO tallyhouse;
GRANT SELECT ON campaigns.campaign_recipients_daily TO tallyhouse;
GRANT SELECT ON campaigns.campaign_timeline TO tallyhouse;
GRANT SELECT ON campaigns.erasures TO tallyhouse;
-- In a database with the engine Replicated, also SYSTEM SYNC REPLICA, and with migrate --cluster all of these:
-- GRANT SELECT, INSERT ON campaigns.email_events_local TO tallyhouse;
-- GRANT SELECT, INSERT ON campaigns.daily_local TO tallyhouse;
-- GRANT SELECT, INSERT ON campaigns.rejected_events_local TO tallyhouse;
-- GRANT SELECT, INSERT ON campaigns.recipients_local TO tallyhouse;
-- GRANT SELECT ON campaigns.recipient_key_local TO tallyhouse;
-- GRANT SELECT, INSERT ON campaigns.campaign_lifecycle_local TO tallyhouse;
-- GRANT SELECT ON campaigns.schema_migrations_local TO tallyhouse;
-- GRANT SELECT ON campaigns.erasures_local TO tallyhouse;
-- GRANT SYSTEM SYNC REPLICA ON campaigns.* TO tallyhouse;
-- Only where select_from_system_db_requires_grant is on, as it is in a packaged server; the other system tables are open to all.
GRANT SELECT ON system.parts TO tallyhouse;
GRANT SELECT ON system.processes TO tallyhouse;
-- GRANT SELECT ON system.clusters TO tallyhouse;
-- GRANT SELECT ON system.replicas TO tallyhouse;
