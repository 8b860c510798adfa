-- Events carry facts; an operator's retry and a lost result are columns; counts are called counters.

-- An event's facts are one JSON object of plain values (dicomnode/store/events.py lists their names by kind).
-- former_text is what a former version wrote of an event; an event that was written with its facts has none.
CREATE TABLE next_event (
    event_id    INTEGER PRIMARY KEY AUTOINCREMENT,
    at          TEXT NOT NULL,
    study       TEXT NOT NULL,
    version     INTEGER,
    kind        TEXT NOT NULL,
    facts       TEXT NOT NULL DEFAULT '{}',
    former_text TEXT
) STRICT;

INSERT INTO next_event (event_id, at, study, version, kind, former_text)
SELECT event_id, at, study, version, kind, detail FROM event;

-- The texts of former versions are taken apart once, here. A text that does not have the expected form keeps no facts.

-- "<uid>[,] … from <AE title> at <address>". An address holds no space, so it begins after the last one.
UPDATE next_event SET facts = json_object('sop_instance', found.uid,
    'calling_ae', substr(found.text, found.title, found.last_space - 3 - found.title),
    'peer_address', substr(found.text, found.last_space + 1),
    'after_purge', json(CASE WHEN found.text LIKE '% came again after it was purged %' THEN 'true' ELSE 'null' END))
FROM (
    SELECT event_id, former_text AS text, rtrim(substr(former_text, 1, instr(former_text, ' ') - 1), ',') AS uid,
        instr(former_text, ' from ') + 6 AS title,
        length(rtrim(former_text, replace(former_text, ' ', ''))) AS last_space
    FROM next_event WHERE kind IN ('received', 'replaced', 'duplicate', 'own-result-returned')
) AS found
WHERE found.event_id = next_event.event_id AND found.title > 6 AND found.last_space - 3 > found.title
    AND substr(found.text, found.last_space - 3, 4) = ' at ';

-- "<uid> is already held in study <uid>"
UPDATE next_event SET facts = json_object('sop_instance', substr(former_text, 1, instr(former_text, ' ') - 1),
    'held_in_study', substr(former_text, instr(former_text, ' in study ') + 10))
WHERE kind = 'refused' AND instr(former_text, ' in study ') > 0;

-- "<kind> <uid> for <destination>", and with "to" or "at" in place of "for" and ": <what came of it>" at the end.
CREATE TEMP TABLE told_of_delivery AS
WITH first (event_id, result_kind, rest) AS (
    SELECT event_id, substr(former_text, 1, instr(former_text, ' ') - 1),
        substr(former_text, instr(former_text, ' ') + 1)
    FROM next_event WHERE kind IN ('queued', 'delivered', 'delivery-deferred', 'delivery-dead',
        'commitment-requested', 'commitment-deferred', 'commitment-overdue', 'commitment-failed', 'committed')
), second (event_id, result_kind, uid, rest) AS (
    SELECT event_id, result_kind, substr(rest, 1, instr(rest, ' ') - 1), substr(rest, instr(rest, ' ') + 1) FROM first
    WHERE result_kind IN ('sr', 'sc', 'sc-finding', 'gsps', 'pm', 'pdf')
), third (event_id, result_kind, uid, rest) AS (
    SELECT event_id, result_kind, uid, substr(rest, instr(rest, ' ') + 1) FROM second
    WHERE rest LIKE 'for %' OR rest LIKE 'to %' OR rest LIKE 'at %'
)
SELECT event_id, result_kind, uid,
    CASE instr(rest, ': ') WHEN 0 THEN rest ELSE substr(rest, 1, instr(rest, ': ') - 1) END AS destination,
    CASE instr(rest, ': ') WHEN 0 THEN '' ELSE substr(rest, instr(rest, ': ') + 2) END AS outcome
FROM third;

UPDATE next_event SET facts = json_object('result_kind', told.result_kind, 'sop_instance', told.uid,
    'destination', told.destination)
FROM told_of_delivery AS told WHERE told.event_id = next_event.event_id;

UPDATE next_event SET facts = json_set(facts, '$.cause', told.outcome)
FROM told_of_delivery AS told WHERE told.event_id = next_event.event_id AND kind = 'delivery-dead';

UPDATE next_event SET facts = json_set(facts, '$.transaction_uid', substr(told.outcome, 22))
FROM told_of_delivery AS told
WHERE told.event_id = next_event.event_id AND kind = 'commitment-requested'
    AND told.outcome LIKE 'asked in transaction %';

-- "stored, with warning B007H": SQLite reads no hexadecimal digits out of a text, so each is looked up.
UPDATE next_event SET facts = json_set(facts, '$.warning',
    (instr('123456789ABCDEF', substr(warned.digits, 1, 1)) * 4096)
    + (instr('123456789ABCDEF', substr(warned.digits, 2, 1)) * 256)
    + (instr('123456789ABCDEF', substr(warned.digits, 3, 1)) * 16)
    + instr('123456789ABCDEF', substr(warned.digits, 4, 1)))
FROM (
    SELECT event_id, substr(outcome, instr(outcome, ', with warning ') + 15, 4) AS digits FROM told_of_delivery
    WHERE outcome LIKE 'stored, with warning ____H%'
) AS warned
WHERE warned.event_id = next_event.event_id AND kind = 'delivered';

-- "stored…, as <SOP class> <uid>"
UPDATE next_event SET facts = json_set(facts,
    '$.sent_sop_class', substr(sent.names, 1, instr(sent.names, ' ') - 1),
    '$.sent_sop_instance', substr(sent.names, instr(sent.names, ' ') + 1))
FROM (
    SELECT event_id, substr(outcome, instr(outcome, ', as ') + 5) AS names FROM told_of_delivery
    WHERE outcome LIKE 'stored%, as % %'
) AS sent
WHERE sent.event_id = next_event.event_id AND kind = 'delivered';

DROP TABLE told_of_delivery;

-- "<uid> to <destination>: the node stopped during attempt <n>"
UPDATE next_event SET facts = json_object('sop_instance', substr(former_text, 1, instr(former_text, ' to ') - 1),
    'destination', substr(former_text, instr(former_text, ' to ') + 4,
        instr(former_text, ': the node stopped during attempt ') - instr(former_text, ' to ') - 4),
    'attempt', CAST(substr(former_text, instr(former_text, ' during attempt ') + 16) AS INTEGER))
WHERE kind = 'delivery-interrupted' AND former_text LIKE '% to %: the node stopped during attempt %';

-- "attempt <n>, <n> instance(s)"
UPDATE next_event SET facts = json_object('attempt', CAST(substr(former_text, 9) AS INTEGER),
    'instances', CAST(substr(former_text, instr(former_text, ', ') + 2) AS INTEGER))
WHERE kind = 'claimed' AND former_text LIKE 'attempt %, % instance(s)';

-- "the node stopped during attempt <n>"
UPDATE next_event SET facts = json_object('attempt', CAST(substr(former_text, 33) AS INTEGER))
WHERE kind = 'interrupted' AND former_text LIKE 'the node stopped during attempt %';

-- "version <n> takes over its images"
UPDATE next_event SET facts = json_object('by_version', CAST(substr(former_text, 9) AS INTEGER))
WHERE kind = 'superseded' AND former_text LIKE 'version % takes over its images';

-- "<uid>: <reason>: <detail>"
UPDATE next_event SET facts = json_object('sop_instance', substr(former_text, 1, instr(former_text, ': ') - 1),
    'reason', substr(rest.text, 1, instr(rest.text, ': ') - 1),
    'detail', substr(rest.text, instr(rest.text, ': ') + 2))
FROM (
    SELECT event_id, substr(former_text, instr(former_text, ': ') + 2) AS text FROM next_event
    WHERE kind = 'image-rejected' AND former_text LIKE '%: %: %'
) AS rest
WHERE rest.event_id = next_event.event_id;

UPDATE next_event SET facts = json_object('sop_instance', substr(former_text, 1, instr(former_text, ' ') - 1))
WHERE kind = 'image-unmentioned' AND instr(former_text, ' ') > 0;

UPDATE next_event SET facts = json_object('cause', former_text) WHERE kind = 'dead';

DROP TABLE event;
ALTER TABLE next_event RENAME TO event;

CREATE INDEX event_study ON event (study, event_id);

CREATE TRIGGER event_is_not_changed BEFORE UPDATE ON event
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

CREATE TRIGGER event_is_not_removed BEFORE DELETE ON event
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

-- When an operator asked for another try that has not begun yet.
ALTER TABLE delivery ADD COLUMN retry_requested_at TEXT;
ALTER TABLE commitment ADD COLUMN retry_requested_at TEXT;

UPDATE delivery SET retry_requested_at = waiting_since
WHERE state = 'waiting' AND next_attempt_at = waiting_since AND waiting_since > created_at;
UPDATE commitment SET retry_requested_at = begun_at WHERE state = 'overdue' AND next_at = begun_at;

-- When the bytes of a result were found missing or damaged before everybody had them. The next answer that has the
-- same result replaces them.
ALTER TABLE result ADD COLUMN lost_at TEXT;

CREATE INDEX result_lost ON result (study) WHERE lost_at IS NOT NULL;

ALTER TABLE instance RENAME COLUMN tallied TO counted;
ALTER TABLE destination_tally RENAME TO destination_counter;
