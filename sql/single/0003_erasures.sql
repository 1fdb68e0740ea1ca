-- What `tallyhouse erase` has done: the proof for whoever asked, without the address.
--
-- Rules for every file here: see 0001_tables.sql.

CREATE TABLE IF NOT EXISTS {database}.erasures
(
    erasure_id UUID COMMENT 'One run of `tallyhouse erase --yes`',
    written_at DateTime('UTC') DEFAULT now() COMMENT 'When this line was written',
    state Enum8('begun' = 1, 'done' = 2) COMMENT 'begun: rows are about to be blanked; done: looked again, see rows_left',
    reference String COMMENT 'Ticket or the like, as given; never an address',
    events UInt64 COMMENT 'Rows of email_events of which e-mail and metadata are blanked',
    mentions UInt64 COMMENT 'Other rows of email_events, of which only metadata is blanked',
    rejects UInt64 COMMENT 'Rows of rejected_events of which key, payload and error are blanked',
    campaigns UInt64 COMMENT 'Distinct campaigns of these rows',
    first_day Nullable(Date) COMMENT 'First UTC day of these rows of email_events',
    last_day Nullable(Date) COMMENT 'Last UTC day of these rows of email_events',
    rows_left UInt64 COMMENT 'Rows found when looked again; more than 0: it has to be run again',
    version String COMMENT 'Version of Tallyhouse'
)
ENGINE = MergeTree
ORDER BY written_at
COMMENT 'One line when an erasure begins and one when it is done. No address, and nothing made of one.';
