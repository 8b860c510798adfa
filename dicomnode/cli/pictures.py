"""Frames for the model from PNG, JPEG and DICOM files."""

import hashlib
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from dicomnode.dicom.header import read_radiograph
from dicomnode.domain.errors import UndecodablePixels
from dicomnode.domain.frame import FloatArray, Frame
from dicomnode.domain.identifiers import derive_uid
from dicomnode.domain.instance import InstanceRef
from dicomnode.imaging.codecs.process import CodecProcess
from dicomnode.imaging.pixels import render
from dicomnode.settings.node import PixelSettings

_MAGIC_AT, _MAGIC = 128, b"DICM"
_FORMATS = ("PNG", "JPEG")
# What Pillow raises on damaged or hostile files.
_UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def frame_of(raw: bytes, settings: PixelSettings, codecs: CodecProcess) -> Frame:
    """Decode a file. In PNG and JPEG the largest value is white.

    Raises: UnreadableObject, UndecodablePixels.
    """
    if raw[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC:
        return render(read_radiograph(raw), settings, codecs)
    pixels = _picture(raw, settings.maximum_pixels)
    pixels.setflags(write=False)
    digest = hashlib.sha256(raw).hexdigest()
    # A frame needs UIDs, and a picture has none: these derive from its bytes.
    uids = {part: derive_uid("picture", digest, part) for part in ("study", "series", "sop_class", "sop_instance")}
    return Frame(source=InstanceRef(**uids), pixels=pixels)


def _picture(raw: bytes, maximum_pixels: int) -> FloatArray:
    try:
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as image:
            if image.width * image.height > maximum_pixels:
                raise UndecodablePixels(f"more than {maximum_pixels} pixels")
            # Pillow converts 16-bit images to 8 bits by clipping instead of scaling.
            deep = image.mode.startswith("I")
            values = np.asarray(image if deep else image.convert("L"), dtype=np.float32)
    except UnidentifiedImageError:
        raise UndecodablePixels("no PNG, JPEG or DICOM file") from None
    except _UNDECODABLE as error:
        raise UndecodablePixels(f"the image is damaged ({type(error).__name__})") from None
    return np.asarray(np.clip(values / (65535.0 if deep else 255.0), 0.0, 1.0), dtype=np.float32)
