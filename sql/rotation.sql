-- The protector rotates: the database encryption key is wrapped under the newest version of its key.
-- No page is touched, so it takes as long on any database, and other connections go on. Before it,
-- make a new version of the key where it is held; for the local keystore that is
--
--     sqlite-tde key rotate default
--
-- Then this prints rotation.expected:
--
--     sqlite-tde sql --format csv app.db < sql/rotation.sql

SELECT name, key_version AS before FROM tde_key_protectors;
SELECT json_extract(tde_rotate_protector(), '$.changed') AS rotated;
SELECT name, key_version AS after FROM tde_key_protectors;

-- Nothing is left to do. `PRAGMA tde_rotate_protector` does the same as the function.
SELECT json_extract(tde_rotate_protector(), '$.changed') AS rotated;

-- Does it open the database?
SELECT value ->> '$.name' AS name, value ->> '$.matches' AS opens FROM json_each(tde_check_protectors());

-- What is looked for by itself, once a day, when the database is opened or in use:
PRAGMA tde_auto_rotate;
