"""The web page over a store, asked without a socket."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from httpx2 import Response
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from starlette.testclient import TestClient

from dicomnode.bundle.reader import Bundle, open_bundle
from dicomnode.domain.instance import AssociationInfo
from dicomnode.domain.routing import Recipient, Route
from dicomnode.http_settings import HttpSettings
from dicomnode.inference.predictor import Predictor
from dicomnode.pipeline import Pipeline
from dicomnode.settings import Settings, StoreSettings
from dicomnode.store import Store
from dicomnode.web.app import create_app
from dicomnode.web.imagery import Gallery
from dicomnode.web.parts import Parts, Site
from tests.bundles import make_bundle
from tests.make import encode, ref_of

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


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
            predictor=Predictor(bundle, threads=1),
            manifest=bundle.manifest,
            identity=bundle.identity,
            operating_point=bundle.manifest.default_operating_point,
            eligibility=settings.eligibility,
            pixels=settings.pixels,
            results=settings.results,
        )
        gallery = Gallery(self.pipeline, self.store.blobs.read_instance)
        self.parts = Parts(settings=settings, store=self.store, bundle=bundle, gallery=gallery, clock=self.clock)
        app = create_app(self.parts)
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
