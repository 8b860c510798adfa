"""The pages, asked without a socket: what they show, and what they mask."""

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from dicomnode.bundle.reader import open_bundle
from dicomnode.domain.errors import StoreUnavailable
from tests.support.bundles import make_bundle
from tests.support.make import CANARIES, CANARY_ACCESSION, CANARY_ID, build
from tests.support.web import HAND, HOSTILE, OTHER, STUDY, Page, Web, dead_delivery, image, is_whole, shown_curves

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, page_bundle: Path) -> Iterator[Web]:
    """A node with an answered study, one with a hostile sender, and a rejected one, at which nothing is changed."""
    with Web(tmp_path_factory.mktemp("web"), bundle=open_bundle(page_bundle)) as made:
        made.answer(image(STUDY))
        made.answer(image(OTHER, seed=2), calling_ae="<b>EVIL</b>", to=(HOSTILE,))
        made.answer(build("cr", seed=3, body_part="HAND", study_uid=HAND))
        yield made


@pytest.mark.parametrize("path", ["/", "/studies", f"/studies/{STUDY}", f"/studies/{HAND}", "/problems", "/model"])
def test_every_page_is_whole_and_has_nothing_inline(web: Web, path: str) -> None:
    answer = web.client.get(path)
    assert answer.status_code == 200
    is_whole(Page(answer.text))


def test_a_study_says_which_attribute_decided_on_view_and_body_part(web: Web) -> None:
    analysed = web.client.get(f"/studies/{STUDY}").text
    assert re.search(r"<dt>view</dt><dd>\w+ <span class=\"quiet\">View Position</span></dd>", analysed)
    rejected = web.client.get(f"/studies/{HAND}").text
    assert re.search(r"<dt>body part</dt><dd>[^<]+ <span class=\"quiet\">Body Part Examined</span></dd>", rejected)


def test_a_former_address_leads_to_the_present_one(web: Web) -> None:
    answer = web.client.get("/letters?x=1", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (308, "/problems?x=1")


def test_a_bundle_from_before_there_were_curves_says_so(web: Web) -> None:
    text = web.client.get("/model?output=Edema").text
    assert shown_curves(text) == {}
    assert "This bundle holds no ROC and reliability curves" in text
    assert "lines only join them" in text
    assert not [given for tag, given in Page(text).elements if "output=" in str(given.get("href"))]


def test_the_overview_tells_the_state_of_the_node(web: Web) -> None:
    text = web.client.get("/").text
    for said in ("Waiting", "Last hour", "Destinations", "Free disk", STUDY, "Other body part"):
        assert said in text


def test_the_overview_counts_what_has_not_reached_its_end(own: Web) -> None:
    own.answer(image())
    own.answer(image(OTHER, seed=2))
    dead_delivery(own)
    own.store.outbox.claim("pacs", 1, own.clock())
    own.receive(image(HAND, seed=3))
    own.clock.advance(minutes=5)
    text = own.client.get("/").text
    queues = dict(re.findall(r'<th scope="row">([^<]+)</th><td class="number">(\d+)</td>', text))
    assert (queues["Being received"], queues["Waiting to be sent"], queues["Being sent"]) == ("1", "2", "1")
    assert "oldest for 5 min" in text
    assert re.search(r'Dead letters</h2>\s*<p class="figure warn">1</p>', text)
    assert '<span class="state state-dead">down, 1 failures</span>' in text


def test_what_peers_wrote_is_text_and_no_markup(web: Web) -> None:
    for path in ("/", "/studies", f"/studies/{OTHER}", "/problems"):
        text = web.client.get(path).text
        assert "<b>EVIL" not in text
        assert "<script>alert" not in text
        assert "onerror=alert(1)>" not in text
        assert not [tag for tag, given in Page(text).elements if tag == "b" or given.get("src") == "x"]
    assert "&lt;b&gt;EVIL&lt;/b&gt;" in web.client.get(f"/studies/{OTHER}").text


def test_a_patients_name_that_is_markup_is_shown_as_text(own: Web) -> None:
    tags = {"StudyDescription": HOSTILE[:60], "PatientID": "<i>1</i>"}
    own.answer(image(patient_name="<b>A</b>^<script>alert(1)</script>", tags=tags))
    own.post("/patients", show="yes")
    text = own.client.get(f"/studies/{STUDY}").text
    assert "&lt;b&gt;A&lt;/b&gt;" in text
    assert not [tag for tag, given in Page(text).elements if tag in ("b", "i") or given.get("src") == "x"]
    assert "<script>alert" not in text


def test_a_study_of_two_patients_names_the_one_of_the_image_that_is_shown(own: Web) -> None:
    one, other = image(seed=1, patient_id="ID-OF-ONE"), image(seed=2, patient_id="ID-OF-ANOTHER")
    own.answer(one, other)
    own.post("/patients", show="yes")
    for shown, named, unnamed in ((one, "ID-OF-ONE", "ID-OF-ANOTHER"), (other, "ID-OF-ANOTHER", "ID-OF-ONE")):
        text = own.client.get(f"/studies/{STUDY}", params={"image": str(shown.SOPInstanceUID)}).text
        assert "The images of this study are of different patients." in text
        assert named in text
        assert unnamed not in text


def test_no_page_names_a_patient_unless_that_is_asked_and_allowed(own: Web, web: Web) -> None:
    for path in ("/", "/studies", f"/studies/{STUDY}", "/problems"):
        assert not [canary for canary in CANARIES if canary in web.client.get(path).text], path
    web.post("/patients", show="yes")
    assert CANARY_ID not in web.client.get(f"/studies/{STUDY}").text
    own.answer(image())
    assert CANARY_ID not in own.client.get(f"/studies/{STUDY}").text
    own.post("/patients", show="yes")
    assert CANARY_ID in own.client.get(f"/studies/{STUDY}").text
    own.post("/patients", show="no")
    assert CANARY_ID not in own.client.get(f"/studies/{STUDY}").text


def test_that_a_patient_was_shown_is_recorded_without_naming_them(own: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    own.answer(image())
    own.client.get(f"/studies/{STUDY}")
    own.post("/patients", show="yes")
    own.client.get(f"/studies/{STUDY}")
    shown = [record for record in caplog.records if record.message == "patient-shown"]
    assert [(record.study, record.visitor) for record in shown] == [(STUDY, "(this machine)")]  # type: ignore[attr-defined]
    assert not [canary for record in caplog.records for canary in CANARIES if canary in str(vars(record))]


def test_the_list_names_patients_to_those_who_may_and_asked_and_records_each(
    own: Web, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("dicomnode.web.studies.PER_PAGE", 2)
    for number, name in enumerate(("ALPHA^ANNA", "BETA^BEN", "<b>GAMMA</b>^GINA")):
        own.answer(image(f"1.2.826.5.{number}", seed=number, patient_name=name))
    assert "Patients are masked" in own.client.get("/studies").text
    own.post("/patients", show="yes")
    first = own.client.get("/studies")
    assert "BETA BEN" in first.text
    assert f"ID {CANARY_ID}" in first.text
    assert "&lt;b&gt;GAMMA&lt;/b&gt; GINA" in first.text
    assert "ALPHA" not in first.text
    onward = re.search(r'rel="next" href="([^"]+)"', first.text)
    assert onward is not None
    assert "ALPHA ANNA" in own.client.get(onward[1]).text
    shown = [vars(record)["study"] for record in caplog.records if record.message == "patient-shown"]
    assert sorted(shown[:2]) == ["1.2.826.5.1", "1.2.826.5.2"]
    assert shown[2:] == ["1.2.826.5.0"]
    assert not [record for record in caplog.records if re.search("ALPHA|BETA|GAMMA", str(vars(record)))]
    own.post("/patients", show="no")
    assert "BETA" not in own.client.get("/studies").text
    assert "BETA" not in own.client.get("/").text


def test_the_list_names_nobody_unless_that_is_recorded(own: Web) -> None:
    own.answer(image())
    own.post("/patients", show="yes")

    def in_trouble(*_: object) -> None:
        raise StoreUnavailable("the database refused")

    object.__setattr__(own.context, "record_shown", in_trouble)
    answer = own.client.get("/studies")
    assert answer.status_code == 503
    assert CANARY_ID not in answer.text


def test_the_list_says_of_whom_nothing_is_kept(own: Web) -> None:
    own.answer(build("cr", seed=3, body_part="HAND", study_uid=HAND))
    own.answer(image(), to=())
    own.clock.advance(days=40)
    own.store.retention.purge(own.clock())
    own.post("/patients", show="yes")
    text = own.client.get("/studies").text
    assert text.count("not kept") == 1
    assert CANARY_ID in text


def test_nobody_is_shown_a_patient_unless_that_is_recorded(own: Web) -> None:
    own.answer(image())
    own.post("/patients", show="yes")
    recorded: list[tuple[str, str, list[str]]] = []
    object.__setattr__(own.context, "record_shown", lambda *about: recorded.append(about))
    assert CANARY_ID in own.client.get(f"/studies/{STUDY}").text
    assert recorded == [("(this machine)", "127.0.0.1", [STUDY])]

    def in_trouble(*_: str) -> None:
        raise StoreUnavailable("the database refused")

    object.__setattr__(own.context, "record_shown", in_trouble)
    answer = own.client.get(f"/studies/{STUDY}")
    assert answer.status_code == 503
    assert CANARY_ID not in answer.text


@pytest.mark.parametrize("number", [CANARY_ID, CANARY_ACCESSION, CANARY_ID.lower()])
def test_a_study_is_found_by_its_numbers_and_no_address_holds_them(web: Web, number: str) -> None:
    answer = web.post("/studies", number=number)
    assert f"/studies/{STUDY}" in answer.text
    addresses = [str(step.url) for step in (*answer.history, answer)]
    addresses += re.findall(r'(?:href|action)="([^"]*)"', answer.text)
    assert not [address for address in addresses if "CANARY" in address.upper()]


def test_a_search_by_uid_outcome_and_date(web: Web) -> None:
    def found(**fields: str) -> set[str]:
        return set(re.findall(r'class="uid" href="/studies/([0-9.]+)"', web.post("/studies", **fields).text))

    assert found(number=OTHER) == {OTHER}
    assert found(outcome="rejected") == {HAND}
    assert found(outcome="answered") == {STUDY, OTHER}
    assert found(since="2026-03-01", until="2026-03-03") == {STUDY, OTHER, HAND}
    assert found(since="2026-03-04") == set()
    assert found(number="absent") == found(number="1.2.3.4") == set()
    assert found(since="nonsense", outcome="nonsense") == {STUDY, OTHER, HAND}


def test_a_search_belongs_to_the_browser_that_made_it(web: Web) -> None:
    address = str(web.post("/studies", number=CANARY_ID).url)
    assert CANARY_ID in web.client.get(address).text
    web.client.cookies.clear()
    assert CANARY_ID not in web.client.get(address).text


def test_pages_of_studies_follow_each_other(own: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomnode.web.studies.PER_PAGE", 2)
    for number in range(5):
        own.receive(image(f"1.2.826.5.{number}", seed=number))
    seen, path = [], "/studies"
    while path:
        text = own.client.get(path).text
        seen += re.findall(r'class="uid" href="/studies/([0-9.]+)"', text)
        onward = re.search(r'rel="next" href="([^"]+)"', text)
        path = onward[1].replace("&amp;", "&") if onward else ""
    assert seen == [f"1.2.826.5.{number}" for number in reversed(range(5))]


def test_a_study_shows_pictures_bars_report_and_story(web: Web) -> None:
    text = web.client.get(f"/studies/{STUDY}").text
    for said in ("What happened", "An image was received", "Imaging Measurements", "Cardiomegaly", "2 of 2 deliveries"):
        assert said in text
    pictures = {given["src"] for tag, given in Page(text).elements if tag == "img" and "/studies/" in str(given["src"])}
    assert len(pictures) == 3
    for address in pictures:
        picture = web.client.get(str(address))
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png"), address
        assert picture.content.startswith(PNG)
        assert "no-store" in picture.headers["cache-control"]
    (heat,) = [str(given["src"]) for tag, given in Page(text).elements if given.get("id") == "heat"]
    with Image.open(BytesIO(web.client.get(heat).content)) as drawn:
        assert drawn.mode == "RGBA"
        assert drawn.getchannel("A").getextrema() == (0, 255)


def test_only_what_is_above_its_threshold_has_a_map(web: Web) -> None:
    text = web.client.get(f"/studies/{STUDY}").text
    (heat,) = [str(given["src"]) for tag, given in Page(text).elements if given.get("id") == "heat"]
    offered = {
        str(given["data-number"]) for tag, given in Page(text).elements if tag == "option" and "data-number" in given
    }
    statuses = {str(at): web.client.get(f"{heat.rsplit('/', 1)[0]}/{at}.png").status_code for at in range(15)}
    assert offered
    assert {at for at, status in statuses.items() if status == 200} == offered
    assert set(statuses.values()) == {200, 404}


def test_a_study_shows_its_impression_and_what_is_known_of_left_and_right(web: Web) -> None:
    text = web.client.get(f"/studies/{STUDY}").text
    assert re.search(r'class="impression"><strong>.* above threshold', text)
    assert "The image does not state left and right" in text or "as the image states" in text


def test_a_finding_is_chosen_without_a_script(web: Web) -> None:
    text = web.client.get(f"/studies/{STUDY}?finding=Edema&opacity=30").text
    (heat,) = [given for tag, given in Page(text).elements if given.get("id") == "heat"]
    assert heat["class"] == "heat o3"
    assert "Edema" in str(heat["alt"])
    for hostile in ("?finding=%22%3E%3Cscript%3E&opacity=-1", "?opacity=9999999999999&image=..%2F", "?image=1.2.3"):
        assert web.client.get(f"/studies/{STUDY}{hostile}").status_code == 200


def test_what_another_model_said_gets_no_maps_of_this_one(own: Web, tmp_path: Path) -> None:
    own.answer(image())
    newer = open_bundle(make_bundle(tmp_path / "newer", seed=9))
    object.__setattr__(own.context, "bundle", newer)
    text = own.client.get(f"/studies/{STUDY}").text
    assert "read by another model than the one in use now" in text
    assert 'id="heat"' not in text


def test_a_rejected_study_says_why_and_shows_the_picture(web: Web) -> None:
    text = web.client.get(f"/studies/{HAND}").text
    assert "Other body part" in text
    assert "<h2>Findings</h2>" in text
    assert f"/studies/{HAND}/images/" in text


@pytest.mark.parametrize("tags", [{"BurnedInAnnotation": "YES"}, {"BurnedInAnnotation": None, "ConversionType": "DF"}])
def test_a_picture_that_may_name_the_patient_is_withheld_where_patients_are_masked(
    own: Web, tags: dict[str, str]
) -> None:
    own.answer(image(tags=tags))
    uid = own.store.studies.images_of(STUDY)[0].instance.ref.sop_instance
    assert "may have the patient" in own.client.get(f"/studies/{STUDY}").text
    assert own.client.get(f"/studies/{STUDY}/images/{uid}.png").status_code == 403
    assert own.client.get(f"/studies/{STUDY}/images/{uid}/1.png").status_code == 403
    own.post("/patients", show="yes")
    assert own.client.get(f"/studies/{STUDY}/images/{uid}.png").status_code == 200


@pytest.mark.parametrize("tags", [{"BurnedInAnnotation": None}, {"BurnedInAnnotation": "NO", "ConversionType": "DF"}])
def test_a_picture_that_is_said_or_made_to_name_nobody_is_shown(own: Web, tags: dict[str, str]) -> None:
    own.answer(image(tags=tags))
    uid = own.store.studies.images_of(STUDY)[0].instance.ref.sop_instance
    assert own.client.get(f"/studies/{STUDY}/images/{uid}.png").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/absent",
        "/studies/1.2.3",
        "/studies/nonsense",
        "/studies/..%2f..%2fetc",
        f"/studies/{STUDY}/images/1.2.3.png",
        f"/studies/{STUDY}/images/1.2.3/99.png",
        f"/studies/{STUDY}/results/1.2.3.png",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
    ],
)
def test_what_is_not_there_is_said(web: Web, path: str) -> None:
    assert web.client.get(path).status_code == 404


def test_a_store_in_trouble_is_said(own: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    own.client.get("/")
    monkeypatch.setattr(own.store.studies._database, "_closed", True)
    answer = own.client.get("/studies")
    monkeypatch.undo()
    assert answer.status_code == 503
    assert "the store is closed" in answer.text
