-- What an auditor asks once a year: is everything encrypted, with what, by whose keys, how old are
-- they, do they still open the database, and is it whole? Attach what belongs to the application
-- first. On a new database with a protector that ends this prints yearly_audit.expected:
--
--     sqlite-tde key create auditor
--     sqlite-tde protector add app.db auditor --read-only --not-after 2100-01-01
--     sqlite-tde sql --format csv app.db < sql/yearly_audit.sql

-- Every database, encrypted or not. An encryption_state other than 3 has to be explained.
SELECT database_name, encryption_state, encryption_state_desc, key_algorithm, key_length,
       percent_complete, error
FROM tde_database_encryption_keys;

-- Keys that were not changed for a year: rotate the protector.
SELECT database_name, coalesce(modify_date, create_date) < datetime('now', '-1 year') AS overdue
FROM tde_database_encryption_keys WHERE encryption_state = 3;

-- Who can open it, with which rights, and until when.
SELECT database_name, name, provider, encryptor_type, key_version, read_only,
       coalesce(not_after, 'open end') AS until
FROM tde_key_protectors;

-- A single protector is a single point of failure.
SELECT database_name, count(*) AS protectors, sum(NOT read_only) AS may_write
FROM tde_key_protectors GROUP BY database_name;

-- Does each of them open it?
SELECT value ->> '$.name' AS name, value ->> '$.matches' AS opens,
       coalesce(value ->> '$.error', 'none') AS error
FROM json_each(tde_check_protectors());

-- `sqlite-tde verify app.db` authenticates every page, `sqlite-tde audit verify` the audit log.
PRAGMA integrity_check;
