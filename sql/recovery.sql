-- A second protector, so that a lost key is not lost data. It opens the database by itself: keep its
-- key elsewhere, with somebody else. Here it is a key of the local keystore,
--
--     sqlite-tde key create recovery
--     sqlite-tde key create replacement
--
-- (the other one is for the end), and any provider of config.toml will do, such as a passphrase: 'recovery:paper'. This prints
-- recovery.expected:
--
--     sqlite-tde sql --format csv app.db < sql/recovery.sql

SELECT json_extract(tde_add_protector('recovery'), '$.changed') AS added;
SELECT position, name, provider, key_id, read_only, opened_through FROM tde_key_protectors;

-- Try it before it is needed. All but the name must be 1.
SELECT value ->> '$.name' AS name, value ->> '$.configured' AS configured,
       value ->> '$.reachable' AS reachable, value ->> '$.present' AS present,
       value ->> '$.unwraps' AS unwraps, value ->> '$.matches' AS matches
FROM json_each(tde_check_protectors());

-- The day the first key is lost: another one takes its place, and the recovery key stays.
SELECT json_extract(tde_rotate_protector('replacement', 'main', 'default'), '$.changed') AS replaced;
SELECT position, name FROM tde_key_protectors;
