"""What is done from the page: dead letters, studies given up, brought back or analysed again, and who may not."""

import logging
import re
from pathlib import Path

import pytest

from dicomnode.bundle.reader import open_bundle
from dicomnode.domain.delivery import DeliveryState
from dicomnode.domain.job import JobState
from dicomnode.settings.http import HttpSettings, HttpToken
from dicomnode.store.ledger import describe
from tests.support.make import build
from tests.support.web import HAND, OTHER, STUDY, Web, dead_delivery, image


def test_the_page_of_problems_counts_dead_letters_and_studies_not_analysed(own: Web) -> None:
    own.answer(image())
    dead_delivery(own)
    own.answer(build("cr", seed=3, body_part="HAND", study_uid=HAND))
    counted = dict(re.findall(r'>([^<]+) <span class="count">(\d+)</span></h2>', own.client.get("/problems").text))
    assert (counted["Dead letters"], counted["Studies not analysed"]) == ("1", "1")


def test_a_dead_letter_is_tried_again(own: Web) -> None:
    own.answer(image())
    number = dead_delivery(own)
    assert "refused for good" in own.client.get("/problems").text
    answer = own.post("/problems", act="retry", entry=f"D{number}")
    assert "1 entry will be tried again" in answer.text
    assert own.store.watching.operations().dead == 0


def test_all_dead_letters_are_tried_again_and_chosen_ones_given_up(own: Web) -> None:
    own.answer(image())
    number = dead_delivery(own)
    own.post("/problems", act="retry-all")
    assert own.store.watching.operations().dead == 0
    assert "Nothing was chosen" in own.post("/problems", act="retry").text
    assert "Nothing was chosen" in own.post("/problems", act="drop", entry="X1; DROP TABLE job").text
    own.post("/problems", act="drop", entry=f"D{number}")
    assert [entry.delivery_id for entry in own.store.ledger.deliveries([DeliveryState.DROPPED])] == [number]


def test_a_study_is_given_up_and_brought_back(own: Web) -> None:
    own.receive(image())
    assert "1 analyses and 0 deliveries given up" in own.post(f"/studies/{STUDY}", act="drop").text
    assert [entry.study for entry in own.store.ledger.jobs([JobState.DROPPED])] == [STUDY]
    assert "will be tried again" in own.post(f"/studies/{STUDY}", act="retry").text
    assert own.store.watching.operations().jobs[JobState.WAITING].count == 1


def test_a_finished_study_is_analysed_again_and_who_asked_is_recorded(
    own: Web, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own.receive(image())
    assert "Analyse again" not in own.client.get(f"/studies/{STUDY}").text, "it is not finished"
    own.answer()
    assert "Analyse again" in own.client.get(f"/studies/{STUDY}").text
    said = own.post(f"/studies/{STUDY}", act="reanalyse").text
    assert "that will be version 2" in said
    assert "(this machine), on the page, asked for another analysis" in said
    assert "Analyse again" not in said
    assert "It is not analysed again" in own.post(f"/studies/{STUDY}", act="reanalyse").text
    (told,) = [record for record in caplog.records if record.message == "study-reanalysed"]
    assert told.__dict__["study"] == STUDY
    own.answer()
    (told_of,) = [event for event in own.store.ledger.explain(STUDY) if "made before" in describe(event)]
    assert told_of.version == 2


def test_a_study_whose_images_are_gone_shows_no_button_and_says_why(own: Web) -> None:
    own.answer(build("cr", seed=3, body_part="HAND", study_uid=HAND))
    own.clock.advance(days=40)
    own.store.retention.purge(own.clock())
    assert "Analyse again" not in own.client.get(f"/studies/{HAND}").text
    assert "removed by the rules of retention" in own.post(f"/studies/{HAND}", act="reanalyse").text
    assert f'value="{HAND}"' not in own.client.get("/problems").text
    assert own.post("/studies/1.2.3", act="reanalyse").status_code == 404


def test_rejected_studies_are_analysed_again_together(own: Web) -> None:
    for number, uid in enumerate((HAND, OTHER)):
        own.answer(build("cr", seed=number, body_part="HAND", study_uid=uid))
    assert "Nothing was chosen" in own.post("/problems", act="reanalyse").text
    said = own.post("/problems", act="reanalyse", study=[HAND, OTHER, "'; DROP TABLE job"]).text
    assert "2 studies will be analysed again" in said
    assert own.store.watching.operations().jobs[JobState.WAITING].count == 2
    said = own.post("/problems", act="reanalyse", study=HAND).text
    assert "0 studies will be analysed again. 1 not: it is being received or analysed now." in said


def test_who_may_only_look_cannot_act(tmp_path: Path, page_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWER", "v" * 20)
    http = HttpSettings(tokens=(HttpToken(name="ward", role="view", env="VIEWER"),))
    with Web(tmp_path, bundle=open_bundle(page_bundle), http=http) as web:
        web.receive(image())
        web.client.headers["authorization"] = f"Bearer {'v' * 20}"
        assert "Give up" not in web.client.get(f"/studies/{STUDY}").text
        assert web.post(f"/studies/{STUDY}", act="drop").status_code == 403
        assert web.post(f"/studies/{STUDY}", act="reanalyse").status_code == 403
        assert web.post("/problems", act="retry-all").status_code == 403
        assert web.post("/problems", act="reanalyse", study=STUDY).status_code == 403
        assert web.store.ledger.jobs([JobState.DROPPED]) == ()


def test_nobody_is_sent_elsewhere(own: Web) -> None:
    for back in ("https://evil.example.org/", "//evil.example.org", "/\\evil.example.org", "", "/\nx"):
        assert own.post("/patients", show="no", back=back).url.path == "/"
