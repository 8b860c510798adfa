"""HTML from templates, with what every page shows around its own content: navigation, visitor, alarms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from dicomnode import __version__
from dicomnode.domain.errors import CxrNodeError
from dicomnode.formatting import format_age, format_clock, format_due, format_number, format_size, format_time
from dicomnode.settings.http import Role
from dicomnode.web.access import Session, Sessions, Visitor
from dicomnode.web.alarms import Alarm


@dataclass(frozen=True, slots=True, kw_only=True)
class NavEntry:
    """An entry of the navigation."""

    path: str
    title: str


class Pages:
    """Renders the templates of this package and of packages that add pages to it."""

    def __init__(
        self,
        *,
        nav: Sequence[NavEntry],
        sessions: Sessions,
        alarms: Callable[[], Sequence[Alarm]],
        restricted: bool,
        packages: Sequence[str] = (),
    ) -> None:
        """Find templates here and in the folder `templates` of `packages`; `restricted`: whether visitors sign in."""
        loaders = [jinja2.PackageLoader(package) for package in ("dicomnode.web", *packages)]
        self._templates = jinja2.Environment(
            loader=jinja2.ChoiceLoader(loaders),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= _FILTERS
        self._templates.globals |= {"version": __version__, "nav": tuple(nav), "restricted": restricted}
        self._sessions, self._alarms = sessions, alarms

    async def page(self, request: Request, template: str, *, status: int = 200, **facts: Any) -> Response:
        """Return a page of a template, which extends `base.html`; `facts` are what it shows."""
        session: Session | None = request.state.session
        visitor: Visitor = request.state.visitor
        message = ""
        if session is not None:
            message, session.message = session.message, ""
        around: Mapping[str, Any] = {
            "path": request.url.path,
            "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            "visitor": visitor,
            "may_operate": visitor.role >= Role.OPERATE,
            "shows_patients": visitor.patients and session is not None and session.shows_patients,
            "form_token": "" if session is None else self._sessions.form_token(session),
            "message": message,
            "alarms": await run_in_threadpool(self._alarms_for, visitor),
        }
        return HTMLResponse(self._templates.get_template(template).render(**around, **facts), status_code=status)

    def _alarms_for(self, visitor: Visitor) -> Sequence[Alarm]:
        """Return what the visitor is told in the banner; a page without its banner is better than none."""
        if visitor.role < Role.VIEW:
            return ()
        try:
            return self._alarms()
        except (CxrNodeError, OSError):
            return ()


_FILTERS = {
    "time": format_time,
    "due": format_due,
    "clock": format_clock,
    "age": format_age,
    "size": format_size,
    "number": format_number,
}
