"""Names are read in the character set that they are in, whatever the object says, and results keep them."""

import functools
import warnings
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from dicomnode.dicom.character_set import correct_character_set
from dicomnode.dicom.reader import read
from tests.support.make import build
from tests.support.names import DECLARED, NAMES, named, with_raw
from tests.support.products import report_on

_REWRITTEN = {name for name, of in NAMES.items() if of.written == "ISO_IR 192" and of.declared != "ISO_IR 192"}


_TERMS = (None, "ISO_IR 192", "ISO_IR 100", "ISO_IR 126", "GB18030")


def _small(declared: str | None) -> Dataset:
    return build("cr", rows=8, columns=8, character_set=declared)


@functools.cache
def report_of(name: str) -> Dataset:
    return _opened(report_on(read(named(name)), institution="General Hospital").part10)


def _opened(part10: bytes) -> Dataset:
    ds: Dataset = dcmread(BytesIO(part10))
    return ds


@pytest.mark.parametrize("name", NAMES)
def test_a_report_carries_the_name_in_a_character_set_that_holds_it(name: str) -> None:
    ds = report_of(name)
    assert str(ds.PatientName) == NAMES[name].says
    assert ds.get("SpecificCharacterSet") == NAMES[name].written


@pytest.mark.parametrize("name", sorted(set(NAMES) - _REWRITTEN - {"japanese-roman", "korean-without-escapes"}))
def test_where_the_character_set_can_stay_the_bytes_do(name: str) -> None:
    assert bytes(report_of(name)["PatientName"].value.original_string) == NAMES[name].raw


@pytest.mark.parametrize("name", DECLARED)
def test_an_object_that_declares_its_character_set_is_not_touched(name: str) -> None:
    ds = _opened(named(name))
    correct_character_set(ds)
    assert ds.get("SpecificCharacterSet") == NAMES[name].declared


def test_the_name_decides_where_texts_are_in_different_character_sets() -> None:
    source = build("cr", character_set="ISO_IR 192")
    ds = read(with_raw(source, PatientName="山田^太郎".encode(), StudyDescription=b"Th\xf4rax"))
    assert (ds.SpecificCharacterSet, str(ds.PatientName)) == ("ISO_IR 192", "山田^太郎")


def test_a_description_alone_shows_the_character_set_too() -> None:
    ds = read(with_raw(build("cr", character_set="ISO_IR 192"), StudyDescription=b"Th\xf4rax"))
    assert (ds.SpecificCharacterSet, ds.StudyDescription) == ("ISO_IR 100", "Thôrax")


@given(raw=st.binary(min_size=1, max_size=16), declared=st.sampled_from(_TERMS))
@settings(max_examples=60, deadline=None)
def test_no_name_is_lost_in_reading_whatever_its_bytes_and_declaration(raw: bytes, declared: str | None) -> None:
    ds = _opened(with_raw(_small(declared), PatientName=raw))
    correct_character_set(ds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stray escape is no text, and pydicom says so
        assert "\ufffd" not in str(ds.PatientName) or "\ufffd".encode() in raw
