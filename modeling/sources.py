"""What a run is made of, before any training code is loaded."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a run was given, as paths: images and labels, a warm start, images of known kind to measure the gate on."""

    images: Path
    labels: Path | None = None
    warm_start: Path | None = None
    gate_images: Path | None = None
