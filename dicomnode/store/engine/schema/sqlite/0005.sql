-- What people search studies by. A patient's number and an accession number stand here as digests under a key that lies
-- in a file beside the database, so the database itself still names no patient.

CREATE TABLE study_key (
    kind   TEXT NOT NULL CHECK (kind IN ('patient', 'accession')),
    digest TEXT NOT NULL,
    study  TEXT NOT NULL,
    PRIMARY KEY (kind, digest, study)
) STRICT, WITHOUT ROWID;

CREATE INDEX study_key_study ON study_key (study);

-- For a search by date.
CREATE INDEX job_arrival ON job (first_instance_at);
