"""DICOM unique identifiers: validity, and UIDs derived from content so that a repeat is the same object."""

import hashlib
import re
import uuid

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
# A fixed name space: derived UIDs must not change between releases, or a re-run would duplicate results.
_NAMESPACE = uuid.UUID("6b1c7a52-5d0e-5b6f-9a39-0c1f9e0c7d11")

OWN_MODEL_NAME = "cxrnode"
"""Manufacturer's Model Name of every result: the mark by which the node knows its own results when they come back.

The manufacturer is the operator's to configure; this is not.
"""


def is_valid_uid(value: str) -> bool:
    """Tell whether `value` is a well-formed UID of at most 64 characters.

    Source: PS3.5 9.1.
    """
    return 0 < len(value) <= 64 and _UID.fullmatch(value) is not None


def derive_uid(*parts: str) -> str:
    """Return the UID, under the UUID root 2.25, that belongs to these parts and to no others.

    Source: PS3.5 B.2; RFC 4122 version 5 (name-based).
    """
    name = "\x00".join(parts)
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


def digest_of(*parts: str) -> str:
    """Return the SHA-256, in hexadecimal, over the parts in the order given."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


IMPLEMENTATION_CLASS_UID = derive_uid("cxrnode", "implementation class")
"""Source: PS3.7 D.3.3.2."""
