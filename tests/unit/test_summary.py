"""The summary is written to JSON and read back, by this version and by others."""

import json

from dicomnode.domain.answer import Rejection, RejectionReason
from dicomnode.domain.evidence import Evidence
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.summary import StudySummary
from dicomnode.results.summary import read_summary, summarise, summary_to_json
from tests.support.assessments import MODEL, assessment

REF = InstanceRef(study="1.2.1", series="1.2.2", sop_class="1.2.840.10008.5.1.4.1.1.1", sop_instance="1.2.3")

VIEW = Evidence(fact="view", value="lateral", attribute="ViewPosition")


def made() -> StudySummary:
    rejection = Rejection(source=REF, reason=RejectionReason.LATERAL_VIEW, detail="View Position is LL")
    said = assessment(REF, {"Mass": 0.7}, undetermined=("Nodule",))
    return summarise("1.2.1", [said], [rejection], {"1.2.3": (VIEW,)})


def test_a_summary_survives_json() -> None:
    assert read_summary(json.loads(json.dumps(summary_to_json(made())))) == made()


def test_the_json_has_the_fields_that_readers_know() -> None:
    values = summary_to_json(made())
    assert values["model"] == {"name": MODEL.name, "version": MODEL.version, "bundle_hash": MODEL.bundle_hash}
    (rejected,), (image,) = (json.loads(json.dumps(values))[kind] for kind in ("rejected", "images"))
    evidence = [{"fact": "view", "value": "lateral", "attribute": "ViewPosition"}]
    assert rejected == {
        "sop_instance": "1.2.3",
        "reason": "lateral-view",
        "detail": "View Position is LL",
        "evidence": evidence,
    }
    assert image["evidence"] == evidence
    mass = next(finding for finding in image["findings"] if finding["label"] == "Mass")
    assert (image["sop_instance"], mass["probability"], mass["presence"], mass["threshold"]) == (
        "1.2.3",
        0.7,
        "present",
        0.3,
    )


def test_an_answer_of_a_former_version_is_read_and_unknown_fields_are_left_out() -> None:
    finding = {
        "label": "Abnormal",
        "probability": 0.8,
        "spread": 0.1,
        "presence": "present",
        "operating_point": "youden",
        "threshold": 0.4,
    }
    former = {"images": [{"sop_instance": "1.2.3", "abnormality": finding, "later": 1}], "rejected": [], "later": {}}
    (image,) = read_summary(former).images
    assert (image.abnormality.probability, image.abnormality.base_rate, image.is_unusual) == (0.8, None, False)
    assert image.evidence == ()


def test_values_of_another_form_are_an_empty_summary() -> None:
    assert read_summary({"images": 3}) == read_summary(None) == read_summary([]) == StudySummary()
