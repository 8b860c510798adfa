"""The `[http]` section: the page's address, and the visitors' tokens and roles."""

import os
from enum import IntEnum
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dicomnode.domain.errors import ConfigurationError
from dicomnode.settings.delivery import Section

_SHORTEST_TOKEN = 16
_LONGEST_TOKEN = 512


class Role(IntEnum):
    """What a visitor may do; each includes the former ones."""

    NOBODY = 0
    METRICS = 1
    VIEW = 2
    OPERATE = 3


_ROLES = {"metrics": Role.METRICS, "view": Role.VIEW, "operate": Role.OPERATE}


def _network(value: str) -> str:
    return str(ip_network(value))


class HttpToken(Section):
    """A token that visitors sign in with. `patients`: whether its holder may see who patients are."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[ -~]+$")
    role: Literal["metrics", "view", "operate"] = "view"
    patients: bool = False
    file: Path | None = None
    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise ValueError("a token needs either file or env")
        return self

    @property
    def grants(self) -> Role:
        """What its holder may do."""
        return _ROLES[self.role]

    def read(self) -> str:
        """Read the secret from its file or environment variable.

        Raises: ConfigurationError, which does not quote it.
        """
        if self.env is not None:
            secret, where = os.environ.get(self.env, ""), f"the environment variable {self.env}"
        else:
            secret, where = _content(self.file), f"the file {self.file}"
        secret = secret.strip()
        if not _SHORTEST_TOKEN <= len(secret) <= _LONGEST_TOKEN or not secret.isascii() or not secret.isprintable():
            raise ConfigurationError(
                f"http.tokens {self.name!r}: {where} must hold {_SHORTEST_TOKEN} to {_LONGEST_TOKEN} printable ASCII "
                "characters; `openssl rand -hex 32` makes a good token"
            )
        return secret


def _content(file: Path | None) -> str:
    try:
        return "" if file is None else file.read_text(encoding="utf-8", errors="replace")[: 2 * _LONGEST_TOKEN]
    except OSError as error:
        raise ConfigurationError(f"the token file {file} cannot be read: {error.strerror}") from error


class HttpSettings(Section):
    """The web page. `port` 0: any free port. `host_names`: names that requests may use, besides addresses.

    If neither `bind` nor `port` is set and another program has the default address, the node runs without its page. If
    one of them is set and the address cannot be had, the node does not start.

    Without tokens and without a proxy, the page is for this machine alone, and all its users may operate the node. With
    `local_patients` they may also see who patients are. `allow_unencrypted`: tokens may cross a network without TLS,
    for a container's port that is published on the host's loopback only, or a network that encrypts by itself.

    `proxy_user_header`: the header in which a reverse proxy in `proxy_networks` names the user who has signed in.
    `proxy_operators` and `proxy_patients` list the users who may operate and who may see patients; `*` means all.
    """

    enabled: bool = True
    bind: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    host_names: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    allow_unencrypted: bool = False
    local_patients: bool = False
    tokens: tuple[HttpToken, ...] = ()
    proxy_user_header: str = Field(default="", pattern=r"^[A-Za-z0-9-]*$")
    proxy_networks: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    proxy_operators: tuple[str, ...] = ()
    proxy_patients: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.key is not None and self.certificate is None:
            raise ValueError("key without certificate")
        if bool(self.proxy_user_header) != bool(self.proxy_networks):
            raise ValueError("proxy_user_header and proxy_networks go together")
        if (self.proxy_operators or self.proxy_patients) and not self.proxy_user_header:
            raise ValueError("proxy_operators and proxy_patients need proxy_user_header")
        if len({token.name for token in self.tokens}) != len(self.tokens):
            raise ValueError("two tokens have the same name")
        if self.local_patients and self.is_restricted:
            raise ValueError("local_patients is for a page without tokens and proxy: give a token patients = true")
        return self

    @property
    def has_default_address(self) -> bool:
        """Whether neither bind nor port is set."""
        return self.model_fields_set.isdisjoint({"bind", "port"})

    @property
    def is_restricted(self) -> bool:
        """Whether visitors have to sign in, with a token or at a proxy."""
        return bool(self.tokens or self.proxy_user_header)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.bind == "localhost":
            return True
        try:
            return ip_address(self.bind).is_loopback
        except ValueError:
            return False

    def require_safe(self) -> None:
        """Refuse settings by which other machines could open the page without a token, or read the traffic.

        Raises: ConfigurationError.
        """
        if self.is_local:
            return
        if not self.is_restricted:
            raise ConfigurationError(
                f"http.bind = {self.bind!r} lets other machines in, and nothing asks them who they are: set "
                "http.tokens or http.proxy_user_header, or bind to 127.0.0.1, or switch the page off "
                "(http.enabled = false, --http off)"
            )
        if self.certificate is None and not self.proxy_user_header and not self.allow_unencrypted:
            raise ConfigurationError(
                f"http.bind = {self.bind!r} lets other machines in, and tokens would cross the network unencrypted: "
                "set http.certificate, or put a reverse proxy with TLS in front (http.proxy_user_header, "
                "http.proxy_networks), or bind to 127.0.0.1; in a container whose port is published on the host's "
                "loopback only, set http.allow_unencrypted"
            )
