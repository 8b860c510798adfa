"""The images that are sent: of the size of a hospital's images, each with UIDs of its own."""

import shutil
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
from pydicom import uid as uids

from dicomnode.bundle.phantom import draw_chest
from tests.support import make

SIDE = 2240

_serial = count(1)
_STUDY, _INSTANCE = "1.2.826.0.1.3680043.9.9999.2.1000000001", "1.2.826.0.1.3680043.9.9999.3.1000000001"


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Files on disk, divided among associations."""

    folder: Path
    parts: list[list[Path]]
    sop_class: str
    transfer_syntax: str
    size_bytes: int

    def remove(self) -> None:
        shutil.rmtree(self.folder)


@dataclass(frozen=True, slots=True)
class Images:
    """An image that can be copied any number of times; copies differ only in their UIDs."""

    name: str
    part10: bytes
    transfer_syntax: str
    sop_class: str = str(uids.ComputedRadiographyImageStorage)

    @classmethod
    def uncompressed(cls) -> "Images":
        syntax = str(uids.ExplicitVRLittleEndian)
        return cls("10 MB", _encoded(syntax), syntax)

    @classmethod
    def compressed(cls) -> "Images":
        """JPEG 2000 at a twentieth of the size."""
        syntax = str(uids.JPEG2000)
        return cls("500 kB", _encoded(syntax, ratio=20), syntax)

    def one(self) -> bytes:
        """Return the next image, of a study of its own."""
        number = 1_000_000_000 + next(_serial)
        changed = self.part10
        for uid in (_STUDY, _INSTANCE):
            changed = changed.replace(uid.encode(), f"{uid[:-10]}{number}".encode())
        return changed

    def write(self, folder: Path, files: int, parts: int) -> ImageFiles:
        folder.mkdir()
        paths = []
        for number in range(files):
            paths.append(folder / f"{number}.dcm")
            paths[-1].write_bytes(self.one())
        divided = [paths[part::parts] for part in range(parts)]
        return ImageFiles(folder, divided, self.sop_class, self.transfer_syntax, files * len(self.part10))


@cache
def _encoded(transfer_syntax: str, ratio: int | None = None) -> bytes:
    # A chest that the shipped model's gate takes for one, with a detector's noise, which a compression has to carry.
    random = np.random.default_rng(1)
    noisy = draw_chest(SIDE, SIDE, random) + random.normal(0, 0.006, (SIDE, SIDE)).astype(np.float32)
    pixels = make.stored(np.clip(noisy, 0, 1))
    ds = make.build("cr", pixels=pixels, study_uid=_STUDY, sop_uid=_INSTANCE)
    return make.encode(ds, transfer_syntax, **({} if ratio is None else {"j2k_cr": [ratio]}))
