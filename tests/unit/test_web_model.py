"""The page of the model: its curves, chosen without a script, and its card."""

from collections.abc import Iterator

import pytest

from dicomnode.bundle.reader import open_bundle
from dicomnode.web.model import render_card
from tests.support.bundles import make_bundle
from tests.support.web import HOSTILE, Page, Web, is_whole, shown_curves


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A node whose bundle holds curves of every output but the last."""
    bundle = open_bundle(make_bundle(tmp_path_factory.mktemp("bundle"), curves=True))
    with Web(tmp_path_factory.mktemp("curved"), bundle=bundle) as made:
        yield made


def test_the_model_page_draws_roc_and_reliability_and_says_of_what(curved: Web) -> None:
    text = curved.client.get("/model").text
    is_whole(Page(text))
    drawn = shown_curves(text)
    assert drawn["curve"] == ["polyline"] * 2
    assert drawn["band"] == ["polygon"]
    assert drawn["point"] == ["circle"] * 11, "an operating point and ten bins"
    assert len(drawn["interval"]) == 12
    plain = " ".join(text.replace("\u202f", " ").split())
    assert "Abnormal: ROC and reliability" in plain
    assert "drawn chests, out of fold: 1 000 images of 400 patients, 200 of the images with the label." in plain
    assert "<strong>AUC 0.785</strong> (0.760–0.820)" in plain
    assert "10 bins by probability, each of about 100 images" in plain
    assert plain.count("<summary>") == 2
    assert (
        '<td class="number">0.100</td><td class="number">0.500</td><td class="number quiet">0.420–0.570</td>' in plain
    )
    assert "More of these images" in plain


def test_an_output_is_chosen_by_address_and_an_unknown_one_is_the_first(curved: Web) -> None:
    for asked, name in (("Edema", "Edema"), ("Pleural_Thickening", "Pleural Thickening"), (HOSTILE, "Abnormal")):
        text = curved.client.get("/model", params={"output": asked}).text
        assert f"{name}: ROC and reliability" in text
        assert "<script>alert" not in text
        (chosen,) = [given["value"] for tag, given in Page(text).elements if tag == "option" and "selected" in given]
        assert str(chosen).replace("_", " ") == name
    (form,) = [given for tag, given in Page(text).elements if tag == "form" and given.get("action", "") != "/patients"]
    assert (form["method"], form["action"]) == ("get", "/model#h-curves")


def test_an_output_without_curves_says_so_beside_others_that_have_them(curved: Web) -> None:
    text = curved.client.get("/model", params={"output": "Pneumothorax"}).text
    assert shown_curves(text) == {}
    assert "The bundle holds no curves of Pneumothorax" in text
    is_whole(Page(text))


def test_a_model_card_brings_no_markup_of_its_own() -> None:
    made = render_card(
        "# A <b>card</b>\n\nText **bold** `code<i>` [x](javascript:alert(1)) [y](https://example.org/a?b&c)\n\n"
        "- one\n- two <script>\n\n| a | b |\n|---|--:|\n| 1 | <img src=x> |\n"
    )
    page = Page(str(made))
    assert {tag for tag, _ in page.elements} == {
        "h3", "p", "strong", "code", "a", "ul", "li", "div", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert [given["href"] for tag, given in page.elements if tag == "a"] == ["https://example.org/a?b&c"]
