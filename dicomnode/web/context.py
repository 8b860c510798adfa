"""What views read, and where they find it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request

from dicomnode.bundle.reader import Bundle
from dicomnode.settings.node import Settings
from dicomnode.store import Store
from dicomnode.web.access import Access, Session, Sessions, Visitor
from dicomnode.web.imagery import Gallery
from dicomnode.web.templating import Pages


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContext:
    """What the node gives to its page. `clock` is the node's.

    `record_shown` is told who, at which address, is about to be shown whom which studies are of.
    """

    settings: Settings
    store: Store
    bundle: Bundle
    gallery: Gallery
    clock: Callable[[], datetime]
    record_shown: Callable[[str, str, Sequence[str]], None] = lambda _visitor, _address, _studies: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Everything a view needs besides its request."""

    context: PageContext
    pages: Pages
    access: Access
    sessions: Sessions

    @property
    def is_secure(self) -> bool:
        """Whether the page is served over TLS by the node itself."""
        return self.context.settings.http.certificate is not None


def site_of(request: Request) -> Site:
    """Return what the view of this request needs."""
    site: Site = request.app.state.site
    return site


def visitor_of(request: Request) -> Visitor:
    """Return who asks."""
    visitor: Visitor = request.state.visitor
    return visitor


def session_of(request: Request) -> Session:
    """Return the session of who asks."""
    session: Session = request.state.session
    return session
