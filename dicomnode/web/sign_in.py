"""Sign in with a token, and sign out."""

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dicomnode.web.context import session_of, site_of
from dicomnode.web.guard import form_of, note_wrong_token, remember

log = logging.getLogger(__name__)

_PAUSE_S = 1.0
"""The pause before a wrong token is answered; it slows guessing and costs the node nothing."""


async def sign_in_page(request: Request) -> Response:
    """Ask for a token."""
    site = site_of(request)
    return await site.pages.page(request, "login.html", has_tokens=site.access.has_tokens)


async def sign_in(request: Request) -> Response:
    """Begin a new session for the holder of a token; the former one ends, since others may know its name."""
    site = site_of(request)
    name = site.access.token_of((await form_of(request)).get("token", ""))
    if name is None:
        note_wrong_token(site.access, request.client.host if request.client is not None else "")
        await asyncio.sleep(_PAUSE_S)
        session_of(request).message = "That token is not known here."
        return RedirectResponse("/login", status_code=303)
    log.info("web-login", extra={"token": name})
    site.sessions.end(session_of(request))
    response = RedirectResponse("/", status_code=303)
    remember(response, site.sessions.begin(name), is_secure=site.is_secure)
    return response


async def sign_out(request: Request) -> Response:
    """End the session."""
    site_of(request).sessions.end(session_of(request))
    return RedirectResponse("/", status_code=303)
