"""Which destinations get a study, by who sent it."""

import pytest

from dicomnode.domain.answer import ResultKind, Wanted
from dicomnode.domain.instance import StudySender
from dicomnode.settings.delivery import DeliverySettings

SR, SC = ResultKind.STRUCTURED_REPORT, ResultKind.SECONDARY_CAPTURE
DESTINATIONS = [
    {"name": name, "ae_title": name.upper(), "host": "host", "port": 104, **profile}
    for name, profile in (("a", {}), ("b", {"outputs": ["sr"]}), ("c", {"series_description_prefix": "AI "}))
]


def routed(*senders: str, **rules: object) -> list[str]:
    return [recipient.name for recipient in route(*senders, **rules).recipients]


def route(*senders: str, **rules: object):
    settings = DeliverySettings.model_validate({"destinations": DESTINATIONS, **rules})
    pairs = (sender.split(">") if ">" in sender else (sender, "CXRNODE") for sender in senders)
    return settings.routing().route(
        frozenset(StudySender(calling_ae=calling, called_ae=called) for calling, called in pairs)
    )


def test_without_rules_every_destination_gets_everything() -> None:
    assert routed("PACS") == ["a", "b", "c"]
    assert routed() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("sender", "expected"),
    [("CT_1", ["b"]), ("CT", ["a"]), ("ct_1", ["a"]), ("MR", ["c"]), ("CT_1>OTHER", ["b", "c"]), ("[X]", ["b"])],
)
def test_every_rule_that_matches_adds_its_destinations(sender: str, expected: list[str]) -> None:
    rules = [
        {"calling_ae": "CT_*", "destinations": ["b"]},
        {"calling_ae": "M?", "destinations": ["c"]},
        {"calling_ae": "*", "called_ae": "OTHER", "destinations": ["c"]},
    ]
    returns = {"[X]": "b"}
    assert routed(sender, routes=rules, return_to_sender=returns, default_destinations=["a"]) == expected


def test_results_return_to_the_sender_and_to_nobody_elses() -> None:
    returns = {"PACS_A": "a", "PACS_B": "b"}
    assert routed("PACS_A", return_to_sender=returns) == ["a"]
    assert routed("PACS_B", return_to_sender=returns) == ["b"]


def test_a_study_from_two_senders_goes_to_the_union() -> None:
    returns = {"PACS_A": "a", "PACS_B": "b"}
    assert routed("PACS_A", "PACS_B", return_to_sender=returns) == ["a", "b"]
    assert routed("PACS_A", "UNKNOWN", return_to_sender=returns, default_destinations=["c"]) == ["a", "c"]


def test_a_sender_without_a_rule_and_without_a_default_is_unrouted() -> None:
    missing = route("UNKNOWN", return_to_sender={"PACS_A": "a"}, default_destinations=[])
    assert missing.is_missing
    assert [sender.calling_ae for sender in missing.unrouted] == ["UNKNOWN"]
    partly = route("UNKNOWN", "PACS_A", return_to_sender={"PACS_A": "a"}, default_destinations=[])
    assert not partly.is_missing


def test_no_destination_at_all_is_not_a_missing_route() -> None:
    assert not DeliverySettings().routing().route(frozenset()).is_missing


def test_the_wanted_sets_are_the_union_of_the_outputs_for_each_prefix() -> None:
    assert route("PACS").wanted() == (
        Wanted(outputs=frozenset({SR, SC}), series_description_prefix=""),
        Wanted(outputs=frozenset({SR, SC}), series_description_prefix="AI "),
    )
    assert route("PACS", default_destinations=["b"]).wanted() == (Wanted(outputs=frozenset({SR})),)
    assert route("PACS", default_destinations=[]).wanted() == (Wanted(),)


def test_a_recipient_wants_its_outputs_from_the_set_with_its_prefix() -> None:
    a, b, c = route("PACS").recipients
    assert [entry.wants(SC, "") for entry in (a, b, c)] == [True, False, False]
    assert [entry.wants(SR, "AI ") for entry in (a, b, c)] == [False, False, True]
