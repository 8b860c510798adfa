-- What the node counts as it goes, so that operations and quality are watched without reading every study again.
-- Nothing here names a patient, a study or an image. Weeks begin on Monday (UTC) and are named by that day.

-- Whether an image is in the counts, which it enters once, whatever number of versions speak of it.
ALTER TABLE instance ADD COLUMN tallied INTEGER NOT NULL DEFAULT 0 CHECK (tallied IN (0, 1));

-- How many images of a week came from whom, and to what end: 'analysed', or a reason of rejection.
CREATE TABLE weekly_image (
    week       TEXT NOT NULL,
    calling_ae TEXT NOT NULL,
    outcome    TEXT NOT NULL,
    images     INTEGER NOT NULL,
    PRIMARY KEY (week, calling_ae, outcome)
) STRICT, WITHOUT ROWID;

-- How many versions of answers ended in which way.
CREATE TABLE weekly_study (
    week    TEXT NOT NULL,
    outcome TEXT NOT NULL,
    studies INTEGER NOT NULL,
    PRIMARY KEY (week, outcome)
) STRICT, WITHOUT ROWID;

-- The scores of a week by bundle, operating point and label, in bins of the probability.
CREATE TABLE weekly_score (
    week         TEXT NOT NULL,
    bundle       TEXT NOT NULL,     -- its hash
    point        TEXT NOT NULL,     -- the operating point's name
    label        TEXT NOT NULL,
    bound        REAL NOT NULL,     -- the bin's upper bound, which belongs to it
    images       INTEGER NOT NULL,
    above        INTEGER NOT NULL,  -- at the operating point's threshold or beyond
    undetermined INTEGER NOT NULL,
    total        REAL NOT NULL,     -- the sum of the probabilities
    PRIMARY KEY (week, bundle, point, label, bound)
) STRICT, WITHOUT ROWID;

-- How long each stage took, as a histogram since the store was made, or came to this schema.
CREATE TABLE latency (
    stage   TEXT NOT NULL,
    bound   REAL NOT NULL,  -- the bin's upper bound in seconds; infinite in the last
    count   INTEGER NOT NULL,
    seconds REAL NOT NULL,  -- their sum
    PRIMARY KEY (stage, bound)
) STRICT, WITHOUT ROWID;

-- What came of the attempts to deliver to a destination.
CREATE TABLE destination_tally (
    destination       TEXT PRIMARY KEY,
    delivered         INTEGER NOT NULL DEFAULT 0,
    failed            INTEGER NOT NULL DEFAULT 0,
    failures_in_row   INTEGER NOT NULL DEFAULT 0,
    last_delivered_at TEXT,
    last_failed_at    TEXT
) STRICT, WITHOUT ROWID;

-- What was there before is counted too, by when its answer was written down.

INSERT INTO weekly_image (week, calling_ae, outcome, images)
SELECT date(substr(job.changed_at, 1, 10), 'weekday 0', '-6 days'), association.calling_ae,
    COALESCE(rejection.reason, 'analysed'), COUNT(*)
FROM instance JOIN job USING (job_id) JOIN association USING (association_id)
LEFT JOIN rejection ON rejection.job_id = instance.job_id AND rejection.sop_instance = instance.sop_instance
WHERE instance.fate IN ('answered', 'rejected')
GROUP BY 1, 2, 3;

INSERT INTO weekly_study (week, outcome, studies)
SELECT date(substr(changed_at, 1, 10), 'weekday 0', '-6 days'),
    CASE state WHEN 'done' THEN 'answered' ELSE state END, COUNT(*)
FROM job WHERE state IN ('done', 'rejected', 'dead')
GROUP BY 1, 2;

INSERT INTO weekly_score (week, bundle, point, label, bound, images, above, undetermined, total)
WITH image (week, bundle, said) AS (
    SELECT date(substr(job.changed_at, 1, 10), 'weekday 0', '-6 days'),
        json_extract(job.summary, '$.model.bundle_hash'), each.value
    FROM instance JOIN job USING (job_id), json_each(job.summary, '$.images') AS each
    WHERE instance.fate = 'answered' AND json_extract(each.value, '$.sop_instance') = instance.sop_instance
), finding (week, bundle, said) AS (
    SELECT week, bundle, json_extract(said, '$.abnormality') FROM image
    UNION ALL
    SELECT week, bundle, each.value FROM image, json_each(said, '$.findings') AS each
), score (week, bundle, point, label, probability, threshold, presence) AS (
    SELECT week, bundle, json_extract(said, '$.operating_point'), json_extract(said, '$.label'),
        json_extract(said, '$.probability'), json_extract(said, '$.threshold'), json_extract(said, '$.presence')
    FROM finding
)
SELECT week, bundle, point, label, CASE
        WHEN probability <= 0.001 THEN 0.001 WHEN probability <= 0.002 THEN 0.002 WHEN probability <= 0.005 THEN 0.005
        WHEN probability <= 0.01 THEN 0.01 WHEN probability <= 0.02 THEN 0.02 WHEN probability <= 0.03 THEN 0.03
        WHEN probability <= 0.05 THEN 0.05 WHEN probability <= 0.075 THEN 0.075 WHEN probability <= 0.1 THEN 0.1
        WHEN probability <= 0.15 THEN 0.15 WHEN probability <= 0.2 THEN 0.2 WHEN probability <= 0.3 THEN 0.3
        WHEN probability <= 0.4 THEN 0.4 WHEN probability <= 0.5 THEN 0.5 WHEN probability <= 0.6 THEN 0.6
        WHEN probability <= 0.7 THEN 0.7 WHEN probability <= 0.8 THEN 0.8 WHEN probability <= 0.9 THEN 0.9
        WHEN probability <= 0.95 THEN 0.95 ELSE 1.0 END,
    COUNT(*), SUM(probability >= threshold), SUM(presence = 'undetermined'), SUM(CAST(probability AS REAL))
FROM score
WHERE bundle IS NOT NULL AND point IS NOT NULL AND label IS NOT NULL AND probability IS NOT NULL
    AND threshold IS NOT NULL
GROUP BY 1, 2, 3, 4, 5;

UPDATE instance SET tallied = 1 WHERE fate IN ('answered', 'rejected');

INSERT INTO destination_tally (destination, delivered, failed, last_delivered_at)
SELECT destination, SUM(state = 'delivered'), SUM(attempts) - SUM(state = 'delivered'),
    MAX(CASE WHEN state = 'delivered' THEN changed_at END)
FROM delivery WHERE attempts > 0
GROUP BY destination;
