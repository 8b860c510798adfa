"""The web page over a store, asked without a socket."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from starlette.testclient import TestClient

from dicomnode.bundle.reader import Bundle, open_bundle
from dicomnode.http_settings import HttpSettings
from dicomnode.settings import Settings, StoreSettings
from dicomnode.store import Store
from dicomnode.web.app import create_app
from dicomnode.web.parts import Parts, Site
from tests.bundles import make_bundle

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


@dataclass
class Clock:
    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


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
    more: Callable[[], dict[str, Any]] = dict

    def __enter__(self) -> Self:
        settings = Settings(store=StoreSettings(path=self.folder / "store", minimum_free_bytes=0), http=self.http)
        self.store = Store.open(settings.store, settings.assembly, exclusive=True)
        bundle = self.bundle or open_bundle(make_bundle(self.folder / "bundle"))
        self.parts = Parts(settings=settings, store=self.store, bundle=bundle, clock=self.clock, **self.more())
        app = create_app(self.parts)
        self.site: Site = app.state.site
        base = "https://127.0.0.1" if self.http.certificate else "http://127.0.0.1"
        self.client = TestClient(app, base_url=base, client=(self.address, 50_000))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.client.close()
        self.store.close()

    def form_token(self) -> str:
        """Return what forms of the client's session carry, which begins one."""
        self.client.get("/")
        session = self.site.sessions.find(self.client.cookies["cxrnode"])
        assert session is not None
        return self.site.sessions.form_token(session)
