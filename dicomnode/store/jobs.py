"""A version of a study's answer as it is worked on: its images, who sent them, and the reports it follows."""

import sqlite3
from datetime import datetime

from dicomnode.domain.instance import StudySender
from dicomnode.domain.job import Expected, Job
from dicomnode.store.rows import to_ref, to_stored_instance, to_text

SENDERS = "SELECT calling_ae, called_ae FROM study_sender WHERE study = ?"

CONTENTS = """
SELECT instance.*, association.calling_ae FROM instance JOIN association USING (association_id)
WHERE instance.study = ? AND instance.current = 1 AND instance.purged_at IS NULL
ORDER BY instance.instance_id
"""

PREDECESSORS = """
SELECT result.* FROM job_result JOIN result USING (result_id)
WHERE result.kind = 'sr' AND job_result.job_id = (
    SELECT former.job_id FROM job AS former
    JOIN job_result AS link ON link.job_id = former.job_id
    JOIN result AS report ON report.result_id = link.result_id AND report.kind = 'sr'
    WHERE former.study = :study AND former.version < :version
    ORDER BY former.version DESC
    LIMIT 1
)
ORDER BY result.result_id
"""

EXPECTED = """
SELECT job.job_id, job.study, job.version, job.attempts + 1 AS attempts,
    MAX(association.released_at IS NULL) AS is_held
FROM job JOIN instance ON instance.study = job.study AND instance.current = 1 AND instance.purged_at IS NULL
JOIN association USING (association_id)
WHERE job.state = 'collecting'
GROUP BY job.job_id
HAVING MIN(instance.received_at) >= :since AND COUNT(*) <= :most_images
ORDER BY job.due_at
LIMIT :most
"""

_MOST_EXPECTED = 16
_MOST_IMAGES = 64


def read_job(connection: sqlite3.Connection, row: sqlite3.Row) -> Job:
    """Return the version that a row names by `job_id`, `study`, `version` and `attempts`."""
    instances = connection.execute(CONTENTS, (row["study"],)).fetchall()
    former = connection.execute(PREDECESSORS, {"study": row["study"], "version": row["version"]}).fetchall()
    senders = connection.execute(SENDERS, (row["study"],)).fetchall()
    return Job(
        job_id=row["job_id"],
        study=row["study"],
        version=row["version"],
        attempts=row["attempts"],
        instances=tuple(to_stored_instance(found) for found in instances),
        predecessors=tuple(to_ref(found) for found in former),
        prefixes={found["sop_instance"]: found["prefix"] for found in former if found["prefix"]},
        senders=frozenset(StudySender(calling_ae=who["calling_ae"], called_ae=who["called_ae"]) for who in senders),
    )


def read_expected(connection: sqlite3.Connection, since: datetime) -> tuple[Expected, ...]:
    """Return versions that are not complete, in the order they will be claimed, all of whose images came `since` then.

    There may be more: so many are enough to be ahead of the next claims. A study of very many images is no study of
    radiographs, and waits for its claim.
    """
    facts = {"since": to_text(since), "most": _MOST_EXPECTED, "most_images": _MOST_IMAGES}
    found = connection.execute(EXPECTED, facts).fetchall()
    return tuple(Expected(job=read_job(connection, row), is_quiet=not row["is_held"]) for row in found)
