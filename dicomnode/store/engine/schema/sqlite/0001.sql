-- What the node remembers. Bytes lie in the blob folder; here are the facts about them.
-- Every time is UTC in one fixed-width form (2025-01-31T12:00:00.000000+00:00), so that text order is time order.

PRAGMA application_id = 1129861710;  -- 'CXRN'

-- Who sent something: one row per association over which at least one instance was accepted.
CREATE TABLE association (
    association_id TEXT PRIMARY KEY,
    calling_ae     TEXT NOT NULL,
    called_ae      TEXT NOT NULL,
    peer_address   TEXT NOT NULL,
    opened_at      TEXT NOT NULL,
    released_at    TEXT  -- absent while it is open
) STRICT, WITHOUT ROWID;

CREATE INDEX association_open ON association (association_id) WHERE released_at IS NULL;

-- A job is one version of one study's answer.
CREATE TABLE job (
    job_id            INTEGER PRIMARY KEY,
    study             TEXT NOT NULL,
    version           INTEGER NOT NULL CHECK (version >= 1),
    state             TEXT NOT NULL CHECK (state IN
        ('collecting', 'waiting', 'working', 'done', 'rejected', 'dead', 'dropped', 'superseded')),
    attempts          INTEGER NOT NULL DEFAULT 0,
    due_at            TEXT,           -- when it may be claimed; present exactly while it may be
    first_instance_at TEXT NOT NULL,  -- assembly began
    last_instance_at  TEXT NOT NULL,
    changed_at        TEXT NOT NULL,
    last_error        TEXT,
    summary           TEXT,           -- JSON, from the pipeline
    UNIQUE (study, version),
    CHECK ((state IN ('collecting', 'waiting')) = (due_at IS NOT NULL))
) STRICT;

-- A study has at most one version that gathers or waits, and at most one in work.
CREATE UNIQUE INDEX job_open ON job (study) WHERE state IN ('collecting', 'waiting');
CREATE UNIQUE INDEX job_working ON job (study) WHERE state = 'working';
CREATE INDEX job_due ON job (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX job_state ON job (state, job_id);

-- An instance as received. A later one of the same SOP Instance UID with other bytes makes the former not current.
CREATE TABLE instance (
    instance_id     INTEGER PRIMARY KEY,
    job_id          INTEGER NOT NULL REFERENCES job (job_id),  -- the version that owes it an answer, or gave it
    study           TEXT NOT NULL,
    series          TEXT NOT NULL,
    sop_class       TEXT NOT NULL,
    sop_instance    TEXT NOT NULL,
    transfer_syntax TEXT NOT NULL,
    blob            TEXT NOT NULL,  -- the SHA-256 of the bytes, which is also their name
    size_bytes      INTEGER NOT NULL,
    association_id  TEXT NOT NULL REFERENCES association (association_id),
    received_at     TEXT NOT NULL,
    current         INTEGER NOT NULL DEFAULT 1 CHECK (current IN (0, 1)),
    fate            TEXT CHECK (fate IN ('answered', 'rejected', 'unmentioned'))
) STRICT;

CREATE UNIQUE INDEX instance_current ON instance (sop_instance) WHERE current = 1;
CREATE INDEX instance_study ON instance (study, current);
CREATE INDEX instance_job ON instance (job_id, association_id);
CREATE INDEX instance_association ON instance (association_id, job_id);
CREATE INDEX instance_blob ON instance (blob);

-- Why an image got no findings, per version.
CREATE TABLE rejection (
    job_id       INTEGER NOT NULL REFERENCES job (job_id),
    sop_instance TEXT NOT NULL,
    reason       TEXT NOT NULL,
    detail       TEXT NOT NULL,
    PRIMARY KEY (job_id, sop_instance)
) STRICT, WITHOUT ROWID;

-- A result object. Its UID derives from what it was made of, so the same answer made twice is one row.
CREATE TABLE result (
    result_id       INTEGER PRIMARY KEY,
    study           TEXT NOT NULL,
    series          TEXT NOT NULL,
    sop_class       TEXT NOT NULL,
    sop_instance    TEXT NOT NULL UNIQUE,
    kind            TEXT NOT NULL CHECK (kind IN ('sr', 'sc')),
    transfer_syntax TEXT NOT NULL,
    blob            TEXT NOT NULL,
    size_bytes      INTEGER NOT NULL,
    derived_from    TEXT NOT NULL,  -- JSON list of SOP Instance UIDs
    created_at      TEXT NOT NULL
) STRICT;

CREATE INDEX result_study ON result (study);
CREATE INDEX result_blob ON result (blob);

CREATE TABLE job_result (
    job_id    INTEGER NOT NULL REFERENCES job (job_id),
    result_id INTEGER NOT NULL REFERENCES result (result_id),
    PRIMARY KEY (job_id, result_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX job_result_result ON job_result (result_id, job_id);

-- A delivery is one result on its way to one destination.
CREATE TABLE delivery (
    delivery_id       INTEGER PRIMARY KEY,
    result_id         INTEGER NOT NULL REFERENCES result (result_id),
    destination       TEXT NOT NULL,
    state             TEXT NOT NULL CHECK (state IN ('waiting', 'sending', 'delivered', 'dead', 'dropped')),
    attempts          INTEGER NOT NULL DEFAULT 0,
    next_attempt_at   TEXT,           -- present exactly while it waits
    created_at        TEXT NOT NULL,
    waiting_since     TEXT NOT NULL,  -- its age for giving up counts from here; an operator's retry begins anew
    changed_at        TEXT NOT NULL,
    last_error        TEXT,
    last_status       INTEGER,        -- the DIMSE status of the last answer, if one was given
    sent_sop_class    TEXT,           -- what was really stored there, when a fallback went instead
    sent_sop_instance TEXT,
    UNIQUE (result_id, destination),
    CHECK ((state = 'waiting') = (next_attempt_at IS NOT NULL))
) STRICT;

CREATE INDEX delivery_due ON delivery (destination, next_attempt_at, delivery_id) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX delivery_state ON delivery (state, delivery_id);
CREATE INDEX delivery_sent ON delivery (sent_sop_instance) WHERE sent_sop_instance IS NOT NULL;

-- What happened, in order; nothing is ever changed or removed.
CREATE TABLE event (
    event_id INTEGER PRIMARY KEY AUTOINCREMENT,
    at       TEXT NOT NULL,
    study    TEXT NOT NULL,
    version  INTEGER,
    kind     TEXT NOT NULL,
    detail   TEXT NOT NULL
) STRICT;

CREATE INDEX event_study ON event (study, event_id);

CREATE TRIGGER event_is_not_changed BEFORE UPDATE ON event
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

CREATE TRIGGER event_is_not_removed BEFORE DELETE ON event
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

-- The moves a state may make: the one table, which the database itself enforces.
CREATE TABLE move (
    machine TEXT NOT NULL CHECK (machine IN ('job', 'delivery')),
    before  TEXT NOT NULL,
    after   TEXT NOT NULL,
    cause   TEXT NOT NULL,
    PRIMARY KEY (machine, before, after)
) STRICT, WITHOUT ROWID;

INSERT INTO move (machine, before, after, cause) VALUES
    ('job', 'collecting', 'working',    'the study is complete and was claimed'),
    ('job', 'collecting', 'dropped',    'an operator dropped it'),
    ('job', 'collecting', 'superseded', 'an operator brought back a newer version'),
    ('job', 'waiting',    'working',    'the next attempt is due'),
    ('job', 'waiting',    'collecting', 'another image arrived before the next attempt'),
    ('job', 'waiting',    'dropped',    'an operator dropped it'),
    ('job', 'waiting',    'superseded', 'an operator brought back a newer version'),
    ('job', 'working',    'done',       'there is an answer'),
    ('job', 'working',    'rejected',   'every image was rejected'),
    ('job', 'working',    'waiting',    'the attempt failed, or was interrupted'),
    ('job', 'working',    'dead',       'the last attempt failed'),
    ('job', 'working',    'superseded', 'the attempt failed and a newer version has its images'),
    ('job', 'dead',       'waiting',    'an operator asked for another try'),
    ('job', 'dead',       'dropped',    'an operator dropped it'),
    ('job', 'dead',       'superseded', 'a newer version took over its images'),
    ('job', 'dropped',    'waiting',    'an operator brought it back'),
    ('job', 'dropped',    'superseded', 'a newer version took over its images'),
    ('delivery', 'waiting', 'sending',   'it is due and was claimed'),
    ('delivery', 'waiting', 'dropped',   'an operator dropped it'),
    ('delivery', 'sending', 'delivered', 'the destination stored it'),
    ('delivery', 'sending', 'waiting',   'the attempt failed for a passing reason, or was interrupted'),
    ('delivery', 'sending', 'dead',      'refused for good, or too old'),
    ('delivery', 'dead',    'waiting',   'an operator asked for another try'),
    ('delivery', 'dead',    'dropped',   'an operator dropped it'),
    ('delivery', 'dropped', 'waiting',   'an operator brought it back');

CREATE TRIGGER job_moves_by_the_table BEFORE UPDATE OF state ON job
WHEN OLD.state <> NEW.state
    AND NOT EXISTS (SELECT 1 FROM move WHERE machine = 'job' AND before = OLD.state AND after = NEW.state)
BEGIN
    SELECT RAISE(ABORT, 'a job may not make this move');
END;

CREATE TRIGGER delivery_moves_by_the_table BEFORE UPDATE OF state ON delivery
WHEN OLD.state <> NEW.state
    AND NOT EXISTS (SELECT 1 FROM move WHERE machine = 'delivery' AND before = OLD.state AND after = NEW.state)
BEGIN
    SELECT RAISE(ABORT, 'a delivery may not make this move');
END;
