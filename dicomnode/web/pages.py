"""From facts to HTML: the templates, and what every page shows around its own content."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from dicomnode import __version__
from dicomnode.http_settings import Role
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


def shown_time(at: datetime | None) -> str:
    """Return a time as the clock on the wall shows it."""
    return "" if at is None else f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def shown_clock(at: datetime | None) -> str:
    """Return the time of day."""
    return "" if at is None else f"{at.astimezone():%H:%M:%S}"


def shown_number(number: int) -> str:
    """Return a number with its thousands set apart."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def shown_size(size_bytes: float) -> str:
    """Return a size in the unit that people would use."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit in ("B", "KiB") else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


_FILTERS = {"time": shown_time, "clock": shown_clock, "size": shown_size, "number": shown_number}
