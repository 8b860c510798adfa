"""Who a visitor is, what they may do, and what a browser is told to remember of it.

A session is a random name in a cookie; what it stands for is kept here, and is forgotten when the node stops. The token
in forms derives from it, so a form that another site made has none.
"""

import hashlib
import hmac
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network

from dicomnode.settings.http import HttpSettings, Role

_MOST_SESSIONS = 2000
_LASTS = timedelta(hours=12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Somebody who asks for a page. `patients`: whether they may see who patients are."""

    name: str
    role: Role
    patients: bool


NOBODY = Visitor(name="", role=Role.NOBODY, patients=False)
LOCAL = "(this machine)"


@dataclass(slots=True, kw_only=True)
class Session:
    """What is remembered of a browser. `shows_patients`: whether its visitor, who may, asked to see who they are.

    `searches` are what was searched for, by a name that may stand in an address where a patient's may not.
    """

    id: str
    token: str | None = None
    shows_patients: bool = False
    message: str = ""
    searches: OrderedDict[str, Mapping[str, str]] = field(default_factory=OrderedDict)
    until: datetime


class Sessions:
    """The sessions of all browsers, the most recent of them."""

    def __init__(self, clock: Callable[[], datetime], names: Callable[[], str], key: bytes) -> None:
        """`names` gives one that cannot be guessed; `key` is this process's own."""
        self._clock, self._names, self._key = clock, names, key
        self._held: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str | None) -> Session | None:
        """Return the session of that name, unless there is none or its time is over."""
        with self._lock:
            found = self._held.get(name or "")
            if found is None or found.until < self._clock():
                return None
            self._held.move_to_end(found.id)
            return found

    def begin(self, token: str | None = None) -> Session:
        """Begin a session; `token` is the name of the token that its visitor gave."""
        session = Session(id=self._names(), token=token, until=self._clock() + _LASTS)
        with self._lock:
            self._held[session.id] = session
            while len(self._held) > _MOST_SESSIONS:
                self._held.popitem(last=False)
        return session

    def end(self, session: Session) -> None:
        """Forget a session."""
        with self._lock:
            self._held.pop(session.id, None)

    def form_token(self, session: Session) -> str:
        """Return what a form of this session carries."""
        return hmac.new(self._key, session.id.encode(), hashlib.sha256).hexdigest()

    def is_of(self, session: Session, form_token: str) -> bool:
        """Tell whether a form comes from a page of this session."""
        return hmac.compare_digest(self.form_token(session).encode(), form_token.encode())


class Access:
    """Tells who visitors are, by the settings."""

    def __init__(self, settings: HttpSettings) -> None:
        """Read every token once, so that one which is missing is said at the start.

        Raises: ConfigurationError.
        """
        settings.require_safe()
        self._settings = settings
        self._tokens = {token.name: (token, _digest(token.read())) for token in settings.tokens}
        self._proxies = tuple(ip_network(network) for network in settings.proxy_networks)

    @property
    def is_restricted(self) -> bool:
        """Whether a visitor has to say who they are."""
        return self._settings.is_restricted

    @property
    def has_tokens(self) -> bool:
        """Whether there is a token to sign in with."""
        return bool(self._tokens)

    def token_of(self, secret: str) -> str | None:
        """Return the name of the token with this secret; every one is compared, in constant time."""
        given = _digest(secret)
        found = [name for name, (_, digest) in self._tokens.items() if hmac.compare_digest(digest, given)]
        return found[0] if found else None

    def visitor(self, headers: Mapping[str, str], address: str, session: Session | None) -> Visitor:
        """Return who asks: by the proxy, by a token in the request, or by one that was given before."""
        if not self.is_restricted:
            return Visitor(name=LOCAL, role=Role.OPERATE, patients=self._settings.local_patients)
        if (user := self._proxy_user(headers, address)) is not None:
            return self._user(user)
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._holder(self.token_of(secret.strip()))
        return self._holder(session.token if session is not None else None)

    def _proxy_user(self, headers: Mapping[str, str], address: str) -> str | None:
        header = self._settings.proxy_user_header
        if not header or not _is_within(address, self._proxies):
            return None
        return headers.get(header.lower(), "").strip()[:128] or None

    def _user(self, user: str) -> Visitor:
        operators, seers = self._settings.proxy_operators, self._settings.proxy_patients
        role = Role.OPERATE if user in operators or "*" in operators else Role.VIEW
        return Visitor(name=user, role=role, patients=user in seers or "*" in seers)

    def _holder(self, name: str | None) -> Visitor:
        if name is None or name not in self._tokens:
            return NOBODY
        token, _ = self._tokens[name]
        return Visitor(name=token.name, role=token.grants, patients=token.patients)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _is_within(address: str, networks: tuple[object, ...]) -> bool:
    try:
        asked = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(asked, "ipv4_mapped", None)
    return any((mapped or asked) in network for network in networks)  # type: ignore[operator]
