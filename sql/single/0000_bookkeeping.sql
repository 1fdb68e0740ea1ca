-- Where migrations are recorded. Run by every `tallyhouse migrate`, before it looks what is missing.

CREATE DATABASE IF NOT EXISTS {database};

CREATE TABLE IF NOT EXISTS {database}.schema_migrations
(
    version UInt32 COMMENT 'Number of the file in sql/',
    name String COMMENT 'Form and name of the file in sql/',
    checksum String COMMENT 'FNV-1a 64 of the file, before its placeholders are filled in',
    applied_at DateTime('UTC') DEFAULT now() COMMENT 'When it was completed',
    oldest_binary UInt32 DEFAULT version COMMENT 'Binaries may run that know the migrations up to this number, or more'
)
ENGINE = MergeTree
ORDER BY version
COMMENT 'Migrations completed by `tallyhouse migrate`. Two migrators at once may record one twice; that is harmless.';

ALTER TABLE {database}.schema_migrations ADD COLUMN IF NOT EXISTS oldest_binary UInt32 DEFAULT version
    COMMENT 'Binaries may run that know the migrations up to this number, or more';
