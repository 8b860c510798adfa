"""Who a visitor is, what they may do, and the sessions of browsers.

A session is a random name in a cookie. Its contents are kept in memory and end with the process. Forms carry a token
that derives from the session, so a form made by another site is recognised. Guessing of tokens is slowed down by
address (`WrongTokens`).
"""

import hashlib
import hmac
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address, ip_network

from dicomnode.settings.http import HttpSettings, Role

_MOST_SESSIONS = 2000
_LASTS = timedelta(hours=12)
MOST_WRONG_TOKENS = 10
PAUSE = timedelta(minutes=1)
"""From an address that gave so many wrong tokens within this time, no token is taken for as long."""
_MOST_ADDRESSES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who sends a request. `patients`: whether they may see who patients are."""

    name: str
    role: Role
    patients: bool


NOBODY = Visitor(name="", role=Role.NOBODY, patients=False)
LOCAL = "(this machine)"


@dataclass(slots=True, kw_only=True)
class Session:
    """The state of one browser. `shows_patients`: whether its visitor asked to see who patients are.

    `searches`: the fields of searches by a random name. The name stands in addresses, so that no patient's number does.
    """

    id: str
    token: str | None = None
    shows_patients: bool = False
    message: str = ""
    searches: OrderedDict[str, Mapping[str, str]] = field(default_factory=OrderedDict)
    until: datetime


class Sessions:
    """The most recent sessions of browsers."""

    def __init__(self, clock: Callable[[], datetime], names: Callable[[], str], key: bytes) -> None:
        """Take a source of names that cannot be guessed, and the secret key of this process."""
        self._clock, self._names, self._key = clock, names, key
        self._held: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str | None) -> Session | None:
        """Return the session of that name; None if there is none or it has expired."""
        with self._lock:
            found = self._held.get(name or "")
            if found is None or found.until < self._clock():
                return None
            self._held.move_to_end(found.id)
            return found

    def begin(self, token: str | None = None) -> Session:
        """Begin a session; `token` is the name of the token that the visitor signed in with."""
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
        """Return the token that forms of this session carry."""
        return hmac.new(self._key, session.id.encode(), hashlib.sha256).hexdigest()

    def is_of(self, session: Session, form_token: str) -> bool:
        """Tell whether a form comes from a page of this session."""
        return hmac.compare_digest(self.form_token(session).encode(), form_token.encode())


class WrongTokens:
    """Counts wrong tokens by address, and says from which addresses none is taken for a while.

    An IPv6 client may take any address of its /64, so those count as one.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._times: OrderedDict[str, list[datetime]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, address: str) -> None:
        """Count a wrong token."""
        key = _network_of(address)
        with self._lock:
            self._times[key] = [*self._recent(key), self._clock()][-MOST_WRONG_TOKENS:]
            self._times.move_to_end(key)
            while len(self._times) > _MOST_ADDRESSES:
                self._times.popitem(last=False)

    def pause_s(self, address: str) -> int:
        """Return for how many seconds no token is taken from an address; 0 if tokens are taken."""
        key = _network_of(address)
        with self._lock:
            recent = self._recent(key)
            if len(recent) < MOST_WRONG_TOKENS:
                return 0
            return max(1, round((recent[-1] + PAUSE - self._clock()).total_seconds()))

    def _recent(self, key: str) -> list[datetime]:
        now = self._clock()
        return [at for at in self._times.get(key, []) if timedelta() <= now - at < PAUSE]


class Access:
    """Tells who a visitor is and what they may do, by the settings."""

    def __init__(self, settings: HttpSettings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Read every token once, so that a missing one stops the start.

        Raises: ConfigurationError.
        """
        settings.require_safe()
        self.wrong_tokens = WrongTokens(clock)
        self._settings = settings
        self._tokens = {token.name: (token, _digest(token.read())) for token in settings.tokens}
        self._proxies = tuple(ip_network(network) for network in settings.proxy_networks)

    @property
    def is_restricted(self) -> bool:
        """Whether a visitor has to say who they are."""
        return self._settings.is_restricted

    @property
    def has_tokens(self) -> bool:
        """Whether visitors can sign in with a token."""
        return bool(self._tokens)

    def token_of(self, secret: str) -> str | None:
        """Return the name of the token with this secret; all are compared, each in constant time."""
        given = _digest(secret)
        found = [name for name, (_, digest) in self._tokens.items() if hmac.compare_digest(digest, given)]
        return found[0] if found else None

    def visitor(self, headers: Mapping[str, str], address: str, session: Session | None) -> Visitor:
        """Return who sends a request: named by the proxy, by a token in the request, or by the session."""
        if not self.is_restricted:
            return Visitor(name=LOCAL, role=Role.OPERATE, patients=self._settings.local_patients)
        if (user := self._proxy_user(headers, address)) is not None:
            return self._user(user)
        if (secret := bearer_token(headers)) is not None:
            return self._holder(self.token_of(secret))
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


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """Return the token in a request's Authorization header, if there is one."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def _network_of(address: str) -> str:
    """Return what counts as one address: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
        return str(ip_network((int(found), 64), strict=False))
    return str(found)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _is_within(address: str, networks: tuple[object, ...]) -> bool:
    try:
        asked = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(asked, "ipv4_mapped", None)
    return any((mapped or asked) in network for network in networks)  # type: ignore[operator]
