"""Image files of any kind that users have, PNG, JPEG or DICOM, to frames as the model should see them."""

import hashlib
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from dicomnode.dicom.reader import read, ref_of
from dicomnode.domain.errors import UndecodablePixels
from dicomnode.domain.frame import FloatArray, Frame
from dicomnode.domain.identifiers import derive_uid
from dicomnode.domain.instance import InstanceRef
from dicomnode.imaging.pixels import render
from dicomnode.settings.node import PixelSettings

_MAGIC_AT, _MAGIC = 128, b"DICM"
_FORMATS = ("PNG", "JPEG")
# What Pillow raises on damaged or hostile files.
_UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def frame_of(raw: bytes, settings: PixelSettings) -> Frame:
    """Decode a file; PNG and JPEG are taken as they look, their largest value being white.

    Raises: UnreadableObject, UndecodablePixels.
    """
    if raw[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC:
        dataset = read(raw)
        return render(dataset, ref_of(dataset), settings)
    pixels = _picture(raw, settings.maximum_pixels)
    pixels.setflags(write=False)
    digest = hashlib.sha256(raw).hexdigest()
    # A picture has no UIDs, and a frame needs some: these belong to its bytes.
    uids = {part: derive_uid("picture", digest, part) for part in ("study", "series", "sop_class", "sop_instance")}
    return Frame(source=InstanceRef(**uids), pixels=pixels)


def _picture(raw: bytes, maximum_pixels: int) -> FloatArray:
    try:
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as image:
            if image.width * image.height > maximum_pixels:
                raise UndecodablePixels(f"more than {maximum_pixels} pixels")
            # Pillow's own conversion of 16-bit images to 8 bits cuts instead of scaling.
            deep = image.mode.startswith("I")
            values = np.asarray(image if deep else image.convert("L"), dtype=np.float32)
    except UnidentifiedImageError:
        raise UndecodablePixels("no PNG, JPEG or DICOM file") from None
    except _UNDECODABLE as error:
        raise UndecodablePixels(f"the image is damaged ({type(error).__name__})") from None
    return np.asarray(np.clip(values / (65535.0 if deep else 255.0), 0.0, 1.0), dtype=np.float32)
