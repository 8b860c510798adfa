"""The web page over a store, asked without a socket."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from httpx2 import Response
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from starlette.testclient import TestClient

from dicomnode.analysis.pipeline import Pipeline
from dicomnode.bundle.reader import Bundle, open_bundle
from dicomnode.domain.delivery import DeliveryState, NoAnswer, RetryPolicy
from dicomnode.domain.instance import AssociationInfo
from dicomnode.domain.routing import Recipient, Route
from dicomnode.inference.predictor import Predictor
from dicomnode.settings.http import HttpSettings
from dicomnode.settings.node import Settings, StoreSettings
from dicomnode.store import Store
from dicomnode.web.app import create_app
from dicomnode.web.context import PageContext, Site
from dicomnode.web.imagery import Gallery
from tests.support.bundles import make_bundle
from tests.support.decoding import CODECS
from tests.support.make import build, encode, ref_of

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
STUDY, OTHER, HAND = "1.2.826.0.1.1", "1.2.826.0.1.2", "1.2.826.0.1.3"
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{7*7}}"


@dataclass
class Clock:
    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


def no_gallery() -> Gallery:
    """Return what stands where no picture is asked for."""
    return cast("Gallery", None)


def form_token(page: str) -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', page)
    assert found is not None, page
    return found[1]


@dataclass
class Web:
    """A page on a store of its own; `client` asks it, from `address`."""

    folder: Path
    http: HttpSettings = field(default_factory=HttpSettings)
    address: str = "127.0.0.1"
    clock: Clock = field(default_factory=Clock)
    bundle: Bundle | None = None

    def __enter__(self) -> Self:
        settings = Settings(store=StoreSettings(path=self.folder / "store", minimum_free_bytes=0), http=self.http)
        self.store = Store.open(settings.store, settings.assembly, exclusive=True)
        bundle = self.bundle or open_bundle(make_bundle(self.folder / "bundle"))
        self.pipeline = Pipeline(
            codecs=CODECS,
            predictor=Predictor(bundle, threads=1),
            manifest=bundle.manifest,
            identity=bundle.identity,
            operating_point=bundle.manifest.default_operating_point,
            eligibility=settings.eligibility,
            pixels=settings.pixels,
            results=settings.results,
        )
        gallery = Gallery(self.pipeline, self.store.blobs.read_instance)
        self.context = PageContext(
            settings=settings, store=self.store, bundle=bundle, gallery=gallery, clock=self.clock
        )
        app = create_app(self.context)
        self.site: Site = app.state.site
        base = "https://127.0.0.1" if self.http.certificate else "http://127.0.0.1"
        self.client = TestClient(app, base_url=base, client=(self.address, 50_000))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.client.close()
        self.store.close()

    def receive(self, *datasets: Dataset, calling_ae: str = "MODALITY") -> None:
        """Store images as they come over an association."""
        name = f"a{self.clock.now.timestamp()}"
        who = AssociationInfo(association_id=name, calling_ae=calling_ae, called_ae="N", peer_address="::1")
        self.store.reception.association_opened(name, self.clock())
        for dataset in datasets:
            self.store.reception.accept(ref_of(dataset), ExplicitVRLittleEndian, encode(dataset), who, self.clock())
        self.clock.advance(seconds=1)
        self.store.reception.association_released(name, self.clock())
        self.clock.advance(seconds=10)

    def answer(self, *datasets: Dataset, to: tuple[str, ...] = ("pacs",), calling_ae: str = "MODALITY") -> None:
        """Store images and answer their studies."""
        self.receive(*datasets, calling_ae=calling_ae)
        while (job := self.store.inbox.claim(self.clock())) is not None:
            route = Route(recipients=tuple(Recipient(name=name) for name in to))
            given = self.pipeline.answer(job, self.store.blobs.read_instance, self.clock(), route.wanted())
            self.store.inbox.finish(job, given, route, self.clock())

    def post(self, path: str, **fields: object) -> Response:
        """Send a form from a page of this node."""
        return self.client.post(path, data={"form_token": self.form_token(), **fields})

    def form_token(self) -> str:
        """Return what forms of the client's session carry, which begins one."""
        self.client.get("/")
        session = self.site.sessions.find(self.client.cookies["cxrnode"])
        assert session is not None
        return self.site.sessions.form_token(session)


def image(study: str = STUDY, *, seed: int = 1, **more: object) -> Dataset:
    return build("dx", rows=256, columns=224, study_uid=study, seed=seed, **more)  # type: ignore[arg-type]


def dead_delivery(web: Web) -> int:
    """Let a delivery of the study be a dead letter."""
    policy = RetryPolicy(give_up_after_s=0)
    for delivery in web.store.outbox.claim("pacs", 1, web.clock()):
        outcome = NoAnswer(cause="refused for good", permanent=True)
        web.store.outbox.record(delivery, outcome, web.clock(), policy, 0.0)
    (dead,) = web.store.ledger.deliveries((DeliveryState.DEAD,))
    return dead.delivery_id


class Page(HTMLParser):
    """What stands in a page: elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def is_whole(page: Page) -> None:
    """Check that a page has nothing inline, and that what is no text has a name."""
    for tag, attributes in page.elements:
        assert "style" not in attributes, (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert tag != "style"
        assert tag != "script" or attributes.get("src", "").startswith("/static/")
    labelled = {attributes.get("for") for tag, attributes in page.elements if tag == "label"}
    for tag, attributes in page.elements:
        if tag in ("select", "input") and attributes.get("type") != "hidden":
            assert attributes.get("id") in labelled or attributes.get("aria-label"), attributes
        if tag == "img":
            assert "alt" in attributes
        if tag == "svg":
            named = attributes.get("aria-label") or is_named_by(page, attributes.get("aria-labelledby"))
            assert attributes.get("aria-hidden") == "true" or named


def shown_curves(text: str) -> dict[str, list[str]]:
    """Return what a model page draws large, by class."""
    drawn: dict[str, list[str]] = {}
    for tag, given in Page(text[text.index('id="h-curves"') : text.index('id="h-points"')]).elements:
        if tag in ("polygon", "polyline", "path", "circle"):
            drawn.setdefault(str(given["class"]).split()[0], []).append(tag)
    return drawn


def is_named_by(page: Page, ids: str | None) -> bool:
    held = [given["id"] for _, given in page.elements if "id" in given]
    assert len(set(held)) == len(held)
    return ids is not None and set(ids.split()) <= set(held)
