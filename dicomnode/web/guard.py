"""What every request passes: the host name it was sent to, the visitor, forms, and the security headers."""

import logging
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicomnode.settings.http import HttpSettings, Role
from dicomnode.web.access import Access, Session, Sessions, bearer_token

log = logging.getLogger(__name__)

COOKIE = "cxrnode"
SIGN_IN = ("POST", "/login")
LONGEST_FORM_BYTES = 16_384
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_STRICT_TRANSPORT = "max-age=31536000"

View = Callable[[Request], Awaitable[Response]]


class Guard:
    """Middleware that refuses a request, or passes it on with its visitor and session."""

    def __init__(self, app: ASGIApp, *, settings: HttpSettings, access: Access, sessions: Sessions) -> None:
        self._app, self._settings, self._access, self._sessions = app, settings, access, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        request = Request(scope)
        send = self._with_headers(send, is_static=request.url.path.startswith("/static/"))
        if (refusal := self._refusal(request)) is not None:
            await refusal(scope, receive, send)
            return
        session = self._sessions.find(request.cookies.get(COOKIE))
        address = request.client.host if request.client is not None else ""
        scope.setdefault("state", {})
        scope["state"]["session"] = session
        if (paused := self._paused(request, address)) is not None:
            await paused(scope, receive, send)
            return
        visitor = self._access.visitor(request.headers, address, session)
        if visitor.role is Role.NOBODY and bearer_token(request.headers) is not None:
            note_wrong_token(self._access, address)
        scope["state"]["visitor"] = visitor
        await self._app(scope, receive, send)

    def _paused(self, request: Request, address: str) -> Response | None:
        """Refuse to look at a token from an address that gave too many wrong ones."""
        gives_token = bearer_token(request.headers) is not None or (request.method, request.url.path) == SIGN_IN
        if not self._access.is_restricted or not gives_token:
            return None
        if not (pause_s := self._access.wrong_tokens.pause_s(address)):
            return None
        text = f"Too many wrong tokens came from this address. Try again in {pause_s} seconds.\n"
        return PlainTextResponse(text, status_code=429, headers={"Retry-After": str(pause_s)})

    def _refusal(self, request: Request) -> Response | None:
        host = _host_of(request.headers.get("host", ""))
        if not self._is_ours(host):
            # The page of another site may have its own name resolve to this machine (DNS rebinding).
            text = f"This node is not known as {host[:255]!r}. Add the name to http.host_names if it is meant to be.\n"
            return PlainTextResponse(text, status_code=421)
        if not self._access.is_restricted and any(name in request.headers for name in _FORWARDED):
            text = (
                "This request came through a proxy, and the page is for this machine alone. Set http.proxy_user_header "
                "and http.proxy_networks, or http.tokens.\n"
            )
            return PlainTextResponse(text, status_code=403)
        return None

    def _is_ours(self, host: str) -> bool:
        named = {name.lower() for name in self._settings.host_names} | {"localhost", self._settings.bind.lower()}
        return host in named or _is_address(host)

    def _with_headers(self, send: Send, *, is_static: bool) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                if self._settings.certificate is not None:
                    headers["strict-transport-security"] = _STRICT_TRANSPORT
                headers.setdefault("cache-control", "public, max-age=3600" if is_static else "no-store")
            await send(message)

        return sending


def note_wrong_token(access: Access, address: str) -> None:
    """Count and log a wrong token; the log names the address, for a firewall or an administrator to act on."""
    access.wrong_tokens.note(address)
    log.warning("web-login-refused", extra={"peer": address, "paused_s": access.wrong_tokens.pause_s(address)})


def guarded(view: View, needed: Role, sessions: Sessions, settings: HttpSettings, *, keeps_session: bool) -> View:
    """Return a view that checks the visitor's role, and that a form comes from a page of this node.

    `keeps_session`: begin a session for a visitor without one. Views for programs do not, since sessions are bounded
    and those of programs would push out those of people.
    """

    async def checked(request: Request) -> Response:
        if request.state.visitor.role < needed:
            return _turned_away(request)
        session: Session | None = request.state.session
        if request.method == "POST" and (refusal := await _foreign(request, session, sessions, settings)) is not None:
            return refusal
        if session is not None or not keeps_session:
            return await view(request)
        request.state.session = sessions.begin()
        response = await view(request)
        remember(response, request.state.session, is_secure=settings.certificate is not None)
        return response

    return checked


def remember(response: Response, session: Session, *, is_secure: bool) -> None:
    """Set the session's cookie."""
    response.set_cookie(COOKIE, session.id, httponly=True, samesite="strict", secure=is_secure, path="/")


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form; of a repeated name, the last value."""
    return dict(await _fields_of(request))


async def values_of(request: Request, name: str) -> list[str]:
    """Return all values of one name in a form."""
    return [value for given, value in await _fields_of(request) if given == name]


async def _fields_of(request: Request) -> list[tuple[str, str]]:
    if not hasattr(request.state, "form"):
        request.state.form = await _read_form(request)
    fields: list[tuple[str, str]] = request.state.form
    return fields


async def _read_form(request: Request) -> list[tuple[str, str]]:
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST_FORM_BYTES:
                return []
        return parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=300)
    except (ValueError, ClientDisconnect):  # not UTF-8, too many fields, or the client has gone
        return []


async def _foreign(
    request: Request, session: Session | None, sessions: Sessions, settings: HttpSettings
) -> Response | None:
    """Return a refusal if a form does not come from a page of this node."""
    origin = request.headers.get("origin") or request.headers.get("referer")
    if origin is not None and not _same_origin(origin, request.headers, settings):
        log.warning("web-form-refused", extra={"reason": "origin"})
        return PlainTextResponse("This form comes from another site.\n", status_code=403)
    form = await form_of(request)
    if session is None or not sessions.is_of(session, form.get("form_token", "")):
        text = "This form is too old, or not from a page of this node. Go back, reload the page and try again.\n"
        return PlainTextResponse(text, status_code=403)
    return None


def _same_origin(origin: str, headers: Headers, settings: HttpSettings) -> bool:
    """Tell whether a page's origin is this node, by the request's host name or one of `http.host_names`."""
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https"):
        return False
    return parts.netloc.lower() == headers.get("host", "").lower() or _host_of(parts.netloc) in {
        name.lower() for name in settings.host_names
    }


def _turned_away(request: Request) -> Response:
    wants_page = "text/html" in request.headers.get("accept", "")
    if request.state.visitor.role > Role.NOBODY:
        return PlainTextResponse("Your role does not allow this.\n", status_code=403)
    if request.method == "GET" and wants_page:
        return RedirectResponse("/login", status_code=303)
    return PlainTextResponse("Sign in first.\n", status_code=401, headers={"WWW-Authenticate": "Bearer"})


def _host_of(authority: str) -> str:
    """Return the host of an authority in lower case, without its port."""
    try:
        return (urlsplit(f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
