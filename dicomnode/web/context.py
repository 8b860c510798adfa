"""What the views of the page read, and how they get at it from a request."""

import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request

from dicomnode.bundle.reader import Bundle
from dicomnode.settings.node import Settings
from dicomnode.store import Store
from dicomnode.web.access import Access, Session, Sessions, Visitor
from dicomnode.web.alarms import Alarm, alarms
from dicomnode.web.imagery import Gallery
from dicomnode.web.templating import Pages


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContext:
    """What the node gives to its page. `clock` is the node's.

    `record_shown(visitor, address, studies)` is called before a visitor is shown the patients of these studies.
    `quality_alarms` gives the alarms that monitoring adds to those of the store.
    """

    settings: Settings
    store: Store
    bundle: Bundle
    gallery: Gallery
    clock: Callable[[], datetime]
    record_shown: Callable[[str, str, Sequence[str]], None] = lambda _visitor, _address, _studies: None
    quality_alarms: Callable[[], Sequence[Alarm]] = tuple

    @property
    def destinations(self) -> tuple[str, ...]:
        """The names of the configured destinations, in their order."""
        return tuple(entry.label for entry in self.settings.delivery.destinations)

    @property
    def peer(self) -> str:
        """The node as a peer on this machine names it: AET@HOST:PORT."""
        bind = self.settings.scp.bind
        host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(bind, bind)
        return f"{self.settings.scp.ae_title}@{f'[{host}]' if ':' in host else host}:{self.settings.scp.port}"

    def alarms(self) -> tuple[Alarm, ...]:
        """Return what needs an operator now.

        Raises: StoreUnavailable.
        """
        of_store = alarms(
            self.store.watching.operations(),
            self.destinations,
            self.clock(),
            free_bytes=shutil.disk_usage(self.settings.store.path).free,
            minimum_free_bytes=self.settings.store.minimum_free_bytes,
        )
        return (*of_store, *self.quality_alarms())


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Everything that a view needs besides its request."""

    context: PageContext
    pages: Pages
    access: Access
    sessions: Sessions

    @property
    def is_secure(self) -> bool:
        """Whether the node itself serves the page over TLS."""
        return self.context.settings.http.certificate is not None


def site_of(request: Request) -> Site:
    """Return the site that a request belongs to."""
    site: Site = request.app.state.site
    return site


def visitor_of(request: Request) -> Visitor:
    """Return the visitor who sent a request."""
    visitor: Visitor = request.state.visitor
    return visitor


def session_of(request: Request) -> Session:
    """Return the session of a request."""
    session: Session = request.state.session
    return session
