"""The application: which address shows what, and to whom.

Another package adds pages by `Extra`: an address, a view, and the role it takes. A view gets Starlette's request, and
`parts.site_of(request)` what the node's own views read; `site.pages.page` renders a template that extends `base.html`.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dicomnode.http_settings import Role
from dicomnode.web.access import Access, Sessions
from dicomnode.web.guard import Guard, guarded
from dicomnode.web.overview import overview
from dicomnode.web.pages import NavEntry, Pages
from dicomnode.web.parts import Parts, Site
from dicomnode.web.signing import sign_in, sign_in_page, sign_out

View = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """A page or an answer that another package adds. `title`: in the navigation, if it is given.

    `role`: who may ask for it; `NOBODY`: everybody, such as a probe. `package`: whose templates it uses.
    """

    path: str
    view: View
    role: Role = Role.VIEW
    title: str = ""
    methods: tuple[str, ...] = ("GET",)
    package: str | None = None


_OWN = (Extra(path="/", view=overview, title="Overview"),)
_SIGNING = (
    Extra(path="/login", view=sign_in_page, role=Role.NOBODY),
    Extra(path="/login", view=sign_in, role=Role.NOBODY, methods=("POST",)),
    Extra(path="/logout", view=sign_out, role=Role.NOBODY, methods=("POST",)),
)


def create_app(
    parts: Parts,
    *,
    extra: Sequence[Extra] = (),
    names: Callable[[], str] = lambda: secrets.token_urlsafe(32),
) -> Starlette:
    """Return the application; `names` gives session names that cannot be guessed.

    Raises: ConfigurationError, if the settings would let in whom they should not.
    """
    settings = parts.settings.http
    access = Access(settings)
    sessions = Sessions(parts.clock, names, names().encode())
    shown = (*_OWN, *extra)
    entries = [NavEntry(path=entry.path, title=entry.title) for entry in shown if entry.title]
    packages = sorted({entry.package for entry in shown if entry.package})
    pages = Pages(nav=entries, sessions=sessions, restricted=access.has_tokens, packages=packages)
    routes: list[Any] = [
        Route(entry.path, guarded(entry.view, entry.role, sessions, settings), methods=list(entry.methods))
        for entry in (*shown, *_SIGNING)
    ]
    routes.append(Mount("/static", StaticFiles(directory=Path(str(files("dicomnode.web") / "static")))))
    app = Starlette(routes=routes, middleware=[Middleware(Guard, settings=settings, access=access, sessions=sessions)])
    app.state.site = Site(parts=parts, pages=pages, access=access, sessions=sessions)
    return app
