"""Whatever can happen to a study can be told."""

from dicomnode.store.ledger import _SENTENCES
from dicomnode.store.row_mapping import EventKind


def test_there_is_a_sentence_for_everything_that_can_happen() -> None:
    assert set(_SENTENCES) == set(EventKind)
    assert all("{}" in sentence for sentence in _SENTENCES.values())
