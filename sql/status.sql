-- What a connection can ask of its encrypted database. On a new one this prints status.expected:
--
--     sqlite-tde sql --create --format csv new.db < sql/status.sql
--
-- `PRAGMA tde_status` tells the rest as JSON; its file id and times differ for each database.

CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT);
INSERT INTO note(text) VALUES('a'), ('b'), ('c');

PRAGMA tde_cipher;
SELECT count(*) AS notes FROM note;
PRAGMA page_size;
PRAGMA journal_mode;
PRAGMA integrity_check;
SELECT ifnull(tde_last_error(), 'none') AS last_error;
