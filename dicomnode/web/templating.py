"""From facts to HTML: the templates, and what every page shows around its own content."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from dicomnode import __version__
from dicomnode.formatting import format_age, format_clock, format_number, format_size, format_time
from dicomnode.settings.http import Role
from dicomnode.web.access import Session, Sessions, Visitor


@dataclass(frozen=True, slots=True, kw_only=True)
class NavEntry:
    """A page that every page leads to."""

    path: str
    title: str


class Pages:
    """Renders templates of this package, and of those that add pages to it."""

    def __init__(
        self, *, nav: Sequence[NavEntry], sessions: Sessions, restricted: bool, packages: Sequence[str] = ()
    ) -> None:
        """Find templates here and in `packages`, which hold further templates, each in a folder `templates`."""
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
        self._sessions = sessions

    def page(self, request: Request, template: str, *, status: int = 200, **facts: Any) -> Response:
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
        }
        return HTMLResponse(self._templates.get_template(template).render(**around, **facts), status_code=status)


_FILTERS = {"time": format_time, "clock": format_clock, "age": format_age, "size": format_size, "number": format_number}
