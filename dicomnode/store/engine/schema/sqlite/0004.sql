-- What is to be said to an audit repository (PS3.15 A.5), until it is said. Of a patient nothing stands here: who it is
-- is read from the stored objects when a message is made.

CREATE TABLE audit_record (
    record_id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: it numbers the messages
    at        TEXT NOT NULL,
    kind      TEXT NOT NULL,  -- a value of AuditKind
    facts     TEXT NOT NULL   -- JSON
) STRICT;

-- Up to which event of the ledger records were made; no row as long as nobody wanted any.
CREATE TABLE audit_cursor (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    event_id INTEGER NOT NULL
) STRICT;
