-- An index for the question how far a source is counted: at 10^8 rows of daily it would read all of them, at each start of a member.
-- The index of parts that exist is built in the background, and until then the question is slow and right.
--
-- Rules for every file here: see 0001_tables.sql.

ALTER TABLE {database}.daily_local ON CLUSTER `{cluster}` ADD INDEX IF NOT EXISTS end_offset_range end_offset TYPE minmax GRANULARITY 1;

ALTER TABLE {database}.daily_local ON CLUSTER `{cluster}` MATERIALIZE INDEX end_offset_range;
