"""What a model might have said of an image: assessments for tests of the results, without a model."""

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from dicomnode.domain.finding import Assessment, Code, Finding, ModelIdentity, OperatingPoint, Presence, SaliencyMap
from dicomnode.domain.frame import FloatArray, Frame
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.terminology import ABNORMALITY, NIH_TERMS
from dicomnode.results.context import Equipment, ResultIdentity
from dicomnode.settings.node import ResultSettings

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
MODEL = ModelIdentity(name="test-model", version="1.2.0", bundle_hash="0123456789abcdef" * 4)
THRESHOLD = 0.3


def equipment(**settings: object) -> Equipment:
    return Equipment(settings=ResultSettings.model_validate(settings), model=MODEL, software_version="0.1.0")


def identity(study: str, inputs: str = "inputs") -> ResultIdentity:
    return ResultIdentity(
        study=study,
        inputs_digest=inputs,
        bundle_hash=MODEL.bundle_hash,
        settings_digest=equipment().settings_digest(),
    )


def finding(
    label: str, probability: float, *, presence: Presence | None = None, threshold: float = THRESHOLD
) -> Finding:
    term = NIH_TERMS.get(label)
    default = Presence.PRESENT if probability >= threshold else Presence.ABSENT
    return Finding(
        label=label,
        code=term.code if term else Code(value="263654008", scheme="SCT", meaning="Abnormal"),
        site=term.site if term else None,
        probability=probability,
        spread=0.04,
        operating_point=OperatingPoint(
            name="balanced",
            threshold=threshold,
            sensitivity=0.81,
            specificity=0.79,
            derived_on="out of fold",
            chosen_by="Youden's index",
        ),
        presence=presence or default,
    )


def saliency(label: str, row: int, column: int) -> SaliencyMap:
    """Return a 7 by 7 map whose evidence lies around one cell; the rest speaks against the label."""
    y, x = np.mgrid[0:7, 0:7]
    values = (4 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2) - 0.5).astype(np.float32)
    values.setflags(write=False)
    return SaliencyMap(label=label, values=values)


def assessment(
    source: InstanceRef,
    probabilities: Mapping[str, float] | None = None,
    *,
    undetermined: tuple[str, ...] = (),
    abnormality: float = 0.1,
) -> Assessment:
    """Return an assessment in which every label not named in `probabilities` has probability 0.05."""
    given = probabilities or {}
    findings = tuple(
        finding(label, given.get(label, 0.05), presence=Presence.UNDETERMINED if label in undetermined else None)
        for label in NIH_TERMS
    )
    return Assessment(
        source=source,
        model=MODEL,
        abnormality=finding(ABNORMALITY, abnormality),
        findings=findings,
        saliency=tuple(saliency(label, 1 + i % 5, 1 + i // 5) for i, label in enumerate((ABNORMALITY, *NIH_TERMS))),
        assessed_at=NOW,
    )


def frame(
    source: InstanceRef,
    pixels: FloatArray,
    *,
    turns: int = 0,
    inverted: bool = False,
    window: tuple[float, float] | None = None,
    mirrored: bool = False,
) -> Frame:
    still = np.ascontiguousarray(pixels, dtype=np.float32)
    still.setflags(write=False)
    return Frame(
        source=source,
        pixels=still,
        window=window,
        turned_from_source=turns,
        inverted_from_source=inverted,
        mirrored_from_source=mirrored,
    )
