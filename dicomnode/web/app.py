"""The application: which address shows what, and to whom.

Another package adds pages by `PageRoute`. A view takes Starlette's request; `context.site_of(request)` gives it what
the node's own views read, and `site.pages.page` renders a template that extends `base.html`.
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
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dicomnode.domain.errors import CxrNodeError, UnknownStudy
from dicomnode.settings.http import Role
from dicomnode.web.access import Access, Sessions
from dicomnode.web.actions import act_on_study
from dicomnode.web.context import PageContext, Site, site_of
from dicomnode.web.guard import Guard, guarded
from dicomnode.web.identity import switch
from dicomnode.web.model import model
from dicomnode.web.overview import overview
from dicomnode.web.problems import act_on_problems, problems
from dicomnode.web.sign_in import sign_in, sign_in_page, sign_out
from dicomnode.web.studies import search_studies, studies
from dicomnode.web.study import capture, heat, radiograph, study
from dicomnode.web.templating import NavEntry, Pages

log = logging.getLogger(__name__)

View = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRoute:
    """One address of the page: its view, and the role that a visitor needs.

    `role`: `NOBODY` admits everybody, which probes need. `title`: the entry in the navigation; without one there is no
    entry. `package`: the package whose folder `templates` the view uses. `former_path`: an address that the page had in
    an earlier release; it redirects to `path`.
    """

    path: str
    view: View
    role: Role = Role.VIEW
    title: str = ""
    methods: tuple[str, ...] = ("GET",)
    package: str | None = None
    former_path: str = ""


_STUDY = "/studies/{study}"
_OWN = (
    PageRoute(path="/", view=overview, title="Overview"),
    PageRoute(path="/studies", view=studies, title="Studies"),
    PageRoute(path="/studies", view=search_studies, methods=("POST",)),
    PageRoute(path=_STUDY, view=study),
    PageRoute(path=_STUDY, view=act_on_study, role=Role.OPERATE, methods=("POST",)),
    PageRoute(path=_STUDY + "/images/{image}.png", view=radiograph),
    PageRoute(path=_STUDY + "/images/{image}/{label:int}.png", view=heat),
    PageRoute(path=_STUDY + "/results/{result}.png", view=capture),
    PageRoute(path="/problems", view=problems, title="Problems", former_path="/letters"),
    PageRoute(path="/problems", view=act_on_problems, role=Role.OPERATE, methods=("POST",)),
    PageRoute(path="/model", view=model, title="Model"),
    PageRoute(path="/patients", view=switch, methods=("POST",)),
)
_SIGNING = (
    PageRoute(path="/login", view=sign_in_page, role=Role.NOBODY),
    PageRoute(path="/login", view=sign_in, role=Role.NOBODY, methods=("POST",)),
    PageRoute(path="/logout", view=sign_out, role=Role.NOBODY, methods=("POST",)),
)


def create_app(
    context: PageContext,
    *,
    extra: Sequence[PageRoute] = (),
    names: Callable[[], str] = lambda: secrets.token_urlsafe(32),
) -> Starlette:
    """Return the application; `names` gives session names that cannot be guessed.

    Raises: ConfigurationError, if the settings would let in whom they should not.
    """
    settings = context.settings.http
    access = Access(settings, context.clock)
    sessions = Sessions(context.clock, names, names().encode())
    shown = (*_OWN, *extra)
    entries = [NavEntry(path=entry.path, title=entry.title) for entry in shown if entry.title]
    packages = sorted({entry.package for entry in shown if entry.package})
    pages = Pages(
        nav=entries, sessions=sessions, alarms=context.alarms, restricted=access.has_tokens, packages=packages
    )
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
    routes += [Route(entry.former_path, _moved_to(entry.path)) for entry in shown if entry.former_path]
    routes.append(Mount("/static", StaticFiles(directory=Path(str(files("dicomnode.web") / "static")))))
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _not_there, UnknownStudy: _unknown, CxrNodeError: _in_trouble},
        middleware=[Middleware(Guard, settings=settings, access=access, sessions=sessions)],
    )
    app.state.site = Site(context=context, pages=pages, access=access, sessions=sessions)
    return app


def _moved_to(path: str) -> View:
    """Return a view that redirects to the present address of a page."""

    async def moved(request: Request) -> Response:
        return RedirectResponse(path + (f"?{request.url.query}" if request.url.query else ""), status_code=308)

    return moved


async def _not_there(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = {403: "You may not see this.", 404: "There is nothing at this address.", 405: "This cannot be done here."}
    return await _trouble(request, text.get(status, "This cannot be answered."), status)


async def _unknown(request: Request, error: Exception) -> Response:
    return await _trouble(request, str(error), 404)


async def _in_trouble(request: Request, error: Exception) -> Response:
    log.warning("page-failed", extra={"cause": f"{type(error).__name__}: {error}"})
    return await _trouble(request, f"The node cannot answer now: {error}", 503)


async def _trouble(request: Request, text: str, status: int) -> Response:
    if request.state.visitor.role < Role.VIEW:
        return PlainTextResponse(text + "\n", status_code=status)
    return await site_of(request).pages.page(request, "trouble.html", status=status, text=text)
