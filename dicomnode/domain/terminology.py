"""The terminology table: each label of the shipped model with its code, its site, and where the code comes from.

A test checks the Verhoeff digit of every SNOMED CT identifier here: invented ones circulate in public code.
"""

from dataclasses import dataclass

from dicomnode.domain.finding import Code

ABNORMALITY = "Abnormal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A label's coded concept and anatomical site, with the source that vouches for the code."""

    label: str
    code: Code
    site: Code
    source: str


def _sct(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="SCT", meaning=meaning)


LUNG = _sct("39607008", "Lung")
HEART = _sct("80891009", "Heart")
PLEURA = _sct("3120008", "Pleura")
DIAPHRAGM = _sct("5798000", "Diaphragm")

_TABLE: tuple[tuple[str, Code, Code, str], ...] = (
    ("Atelectasis", _sct("46621007", "Atelectasis"), LUNG, "SNOMED CT"),
    ("Cardiomegaly", _sct("8186001", "Cardiomegaly"), HEART, "SNOMED CT"),
    ("Consolidation", _sct("95436008", "Lung consolidation"), LUNG, "SNOMED CT"),
    ("Edema", _sct("19242006", "Pulmonary edema"), LUNG, "PS3.16 CID 3700"),
    ("Effusion", _sct("60046008", "Pleural effusion"), PLEURA, "PS3.16 CID 8134"),
    ("Emphysema", _sct("87433001", "Pulmonary emphysema"), LUNG, "SNOMED CT"),
    ("Fibrosis", _sct("51615001", "Fibrosis of lung"), LUNG, "SNOMED CT"),
    ("Hernia", _sct("39839004", "Diaphragmatic hernia"), DIAPHRAGM, "SNOMED CT; NIH's label names no kind of hernia"),
    ("Infiltration", Code(value="112121", scheme="DCM", meaning="Infiltrate"), LUNG, "PS3.16 CID 6104"),
    ("Mass", _sct("4147007", "Mass"), LUNG, "PS3.16 CID 6104"),
    ("Nodule", _sct("27925004", "Nodule"), LUNG, "PS3.16 CID 6104"),
    # No SNOMED CT concept could be verified for pleural thickening, so the site carries the pleura.
    ("Pleural_Thickening", Code(value="RID28509", scheme="RADLEX", meaning="thickening"), PLEURA, "RadLex"),
    ("Pneumonia", _sct("233604007", "Pneumonia"), LUNG, "SNOMED CT"),
    ("Pneumothorax", _sct("36118008", "Pneumothorax"), PLEURA, "PS3.16 CID 6105"),
)

NIH_TERMS: dict[str, Term] = {
    label: Term(label=label, code=code, site=site, source=source) for label, code, site, source in _TABLE
}
"""The 14 labels of NIH ChestX-ray14 (Wang et al., CVPR 2017), in the order of the model's outputs 1 to 14."""
