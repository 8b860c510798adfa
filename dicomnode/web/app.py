"""The application: which address shows what, and to whom.

Another package adds pages by `Extra`: an address, a view, and the role it takes. A view gets Starlette's request, and
`parts.site_of(request)` what the node's own views read; `site.pages.page` renders a template that extends `base.html`.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dicomnode.domain.errors import CxrNodeError, UnknownStudy
from dicomnode.settings.http import Role
from dicomnode.web.access import Access, Sessions
from dicomnode.web.actions import act_on_study
from dicomnode.web.context import Parts, Site, site_of
from dicomnode.web.guard import Guard, guarded
from dicomnode.web.identity import switch
from dicomnode.web.model import model
from dicomnode.web.overview import overview
from dicomnode.web.problems import act_on_letters, letters
from dicomnode.web.sign_in import sign_in, sign_in_page, sign_out
from dicomnode.web.studies import search_studies, studies
from dicomnode.web.study import capture, heat, radiograph, study
from dicomnode.web.templating import NavEntry, Pages

log = logging.getLogger(__name__)

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


_STUDY = "/studies/{study}"
_OWN = (
    Extra(path="/", view=overview, title="Overview"),
    Extra(path="/studies", view=studies, title="Studies"),
    Extra(path="/studies", view=search_studies, methods=("POST",)),
    Extra(path=_STUDY, view=study),
    Extra(path=_STUDY, view=act_on_study, role=Role.OPERATE, methods=("POST",)),
    Extra(path=_STUDY + "/images/{image}.png", view=radiograph),
    Extra(path=_STUDY + "/images/{image}/{label:int}.png", view=heat),
    Extra(path=_STUDY + "/results/{result}.png", view=capture),
    Extra(path="/letters", view=letters, title="Problems"),
    Extra(path="/letters", view=act_on_letters, role=Role.OPERATE, methods=("POST",)),
    Extra(path="/model", view=model, title="Model"),
    Extra(path="/patients", view=switch, methods=("POST",)),
)
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
        Route(
            entry.path,
            guarded(
                entry.view, entry.role, sessions, settings, keeps_session=entry.role > Role.METRICS or entry in _SIGNING
            ),
            methods=list(entry.methods),
        )
        for entry in (*shown, *_SIGNING)
    ]
    routes.append(Mount("/static", StaticFiles(directory=Path(str(files("dicomnode.web") / "static")))))
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _not_there, UnknownStudy: _unknown, CxrNodeError: _in_trouble},
        middleware=[Middleware(Guard, settings=settings, access=access, sessions=sessions)],
    )
    app.state.site = Site(parts=parts, pages=pages, access=access, sessions=sessions)
    return app


async def _not_there(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = {403: "You may not see this.", 404: "There is nothing at this address.", 405: "This cannot be done here."}
    return _trouble(request, said.get(status, "This cannot be answered."), status)


async def _unknown(request: Request, error: Exception) -> Response:
    return _trouble(request, str(error), 404)


async def _in_trouble(request: Request, error: Exception) -> Response:
    log.warning("page-failed", extra={"cause": f"{type(error).__name__}: {error}"})
    return _trouble(request, f"The node cannot answer now: {error}", 503)


def _trouble(request: Request, said: str, status: int) -> Response:
    if request.state.visitor.role < Role.VIEW:
        return PlainTextResponse(said + "\n", status_code=status)
    return site_of(request).pages.page(request, "trouble.html", status=status, said=said)
