-- Results of more kinds and of sets with a prefix; who sent a study; Storage Commitment.
--
-- A CHECK cannot be changed in place, so four tables are copied into their successors: first those that refer to
-- others, so that no reference is ever left without its row.

DROP TRIGGER job_moves_by_the_table;
DROP TRIGGER delivery_moves_by_the_table;

CREATE TABLE next_result (
    result_id       INTEGER PRIMARY KEY,
    study           TEXT NOT NULL,
    series          TEXT NOT NULL,
    sop_class       TEXT NOT NULL,
    sop_instance    TEXT NOT NULL UNIQUE,
    kind            TEXT NOT NULL,  -- a value of ResultKind
    prefix          TEXT NOT NULL DEFAULT '',  -- of the set it belongs to
    transfer_syntax TEXT NOT NULL,
    blob            TEXT NOT NULL,
    size_bytes      INTEGER NOT NULL,
    derived_from    TEXT NOT NULL,  -- JSON list of SOP Instance UIDs
    created_at      TEXT NOT NULL
) STRICT;

INSERT INTO next_result (result_id, study, series, sop_class, sop_instance, kind, transfer_syntax, blob, size_bytes,
    derived_from, created_at)
SELECT result_id, study, series, sop_class, sop_instance, kind, transfer_syntax, blob, size_bytes, derived_from,
    created_at FROM result;

CREATE TABLE next_job_result (
    job_id    INTEGER NOT NULL REFERENCES job (job_id),
    result_id INTEGER NOT NULL REFERENCES next_result (result_id),
    PRIMARY KEY (job_id, result_id)
) STRICT, WITHOUT ROWID;

INSERT INTO next_job_result (job_id, result_id) SELECT job_id, result_id FROM job_result;

CREATE TABLE next_delivery (
    delivery_id       INTEGER PRIMARY KEY,
    result_id         INTEGER NOT NULL REFERENCES next_result (result_id),
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

INSERT INTO next_delivery (delivery_id, result_id, destination, state, attempts, next_attempt_at, created_at,
    waiting_since, changed_at, last_error, last_status, sent_sop_class, sent_sop_instance)
SELECT delivery_id, result_id, destination, state, attempts, next_attempt_at, created_at, waiting_since, changed_at,
    last_error, last_status, sent_sop_class, sent_sop_instance FROM delivery;

CREATE TABLE next_move (
    machine TEXT NOT NULL CHECK (machine IN ('job', 'delivery', 'commitment')),
    before  TEXT NOT NULL,
    after   TEXT NOT NULL,
    cause   TEXT NOT NULL,
    PRIMARY KEY (machine, before, after)
) STRICT, WITHOUT ROWID;

INSERT INTO next_move (machine, before, after, cause) SELECT machine, before, after, cause FROM move;

DROP TABLE delivery;
DROP TABLE job_result;
DROP TABLE result;
DROP TABLE move;

ALTER TABLE next_result RENAME TO result;
ALTER TABLE next_job_result RENAME TO job_result;
ALTER TABLE next_delivery RENAME TO delivery;
ALTER TABLE next_move RENAME TO move;

CREATE INDEX result_study ON result (study);
CREATE INDEX result_blob ON result (blob);
CREATE INDEX job_result_result ON job_result (result_id, job_id);
CREATE INDEX delivery_due ON delivery (destination, next_attempt_at, delivery_id) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX delivery_state ON delivery (state, delivery_id);
CREATE INDEX delivery_sent ON delivery (sent_sop_instance) WHERE sent_sop_instance IS NOT NULL;

-- Who sent something of a study, be it a duplicate: the routes of its results follow from it.
CREATE TABLE study_sender (
    study      TEXT NOT NULL,
    calling_ae TEXT NOT NULL,
    called_ae  TEXT NOT NULL,
    since      TEXT NOT NULL,
    PRIMARY KEY (study, calling_ae, called_ae)
) STRICT, WITHOUT ROWID;

INSERT INTO study_sender (study, calling_ae, called_ae, since)
SELECT instance.study, association.calling_ae, association.called_ae, MIN(instance.received_at)
FROM instance JOIN association USING (association_id)
GROUP BY instance.study, association.calling_ae, association.called_ae;

-- Whether a destination has answered for keeping what was delivered to it; one row per delivery that it is asked about.
-- due: it is to be asked; requested: it was asked; overdue: it has not answered in time, and is asked again.
CREATE TABLE commitment (
    delivery_id     INTEGER PRIMARY KEY REFERENCES delivery (delivery_id),
    destination     TEXT NOT NULL,
    sop_class       TEXT NOT NULL,  -- what was really stored there
    sop_instance    TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('due', 'requested', 'overdue', 'committed', 'failed')),
    transaction_uid TEXT,           -- of the last request
    requests        INTEGER NOT NULL DEFAULT 0,
    failures        INTEGER NOT NULL DEFAULT 0,
    next_at         TEXT,           -- when it is to be asked, or asked again
    deadline_at     TEXT,           -- when it is overdue; absent once it is, or is answered
    begun_at        TEXT NOT NULL,  -- its age for giving up counts from here; an operator's retry begins anew
    requested_at    TEXT,
    answered_at     TEXT,
    failure_reason  INTEGER,        -- PS3.3 C.14.1.1
    last_error      TEXT,
    changed_at      TEXT NOT NULL
) STRICT;

CREATE INDEX commitment_next ON commitment (destination, next_at, delivery_id) WHERE next_at IS NOT NULL;
CREATE INDEX commitment_deadline ON commitment (destination, deadline_at) WHERE deadline_at IS NOT NULL;
CREATE INDEX commitment_state ON commitment (state, delivery_id);

-- Every request ever made, since an answer may come late.
CREATE TABLE commitment_request (
    transaction_uid TEXT NOT NULL,
    delivery_id     INTEGER NOT NULL REFERENCES delivery (delivery_id),
    requested_at    TEXT NOT NULL,
    PRIMARY KEY (transaction_uid, delivery_id)
) STRICT, WITHOUT ROWID;

INSERT INTO move (machine, before, after, cause) VALUES
    ('delivery', 'delivered', 'waiting', 'the destination does not answer for keeping it'),
    ('delivery', 'delivered', 'dead',    'the destination does not answer for keeping it, and sending again is no use'),
    ('commitment', 'due',       'requested', 'the destination was asked'),
    ('commitment', 'due',       'overdue',   'it was not answered in time'),
    ('commitment', 'due',       'committed', 'an answer came although asking had seemed to fail'),
    ('commitment', 'due',       'failed',    'an answer came although asking had seemed to fail'),
    ('commitment', 'requested', 'due',       'asking failed, or is to be repeated'),
    ('commitment', 'requested', 'overdue',   'it was not answered in time'),
    ('commitment', 'requested', 'committed', 'the destination keeps it'),
    ('commitment', 'requested', 'failed',    'the destination does not keep it'),
    ('commitment', 'overdue',   'committed', 'the destination keeps it'),
    ('commitment', 'overdue',   'failed',    'the destination does not keep it'),
    ('commitment', 'failed',    'due',       'it was delivered again'),
    ('commitment', 'failed',    'committed', 'the answer to another request came late');

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

CREATE TRIGGER commitment_moves_by_the_table BEFORE UPDATE OF state ON commitment
WHEN OLD.state <> NEW.state
    AND NOT EXISTS (SELECT 1 FROM move WHERE machine = 'commitment' AND before = OLD.state AND after = NEW.state)
BEGIN
    SELECT RAISE(ABORT, 'a commitment may not make this move');
END;
