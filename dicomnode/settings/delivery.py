"""The `[delivery]` section: destinations of two kinds, what each wants, and which studies' results go where."""

import glob
import os
import re
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from dicomnode.domain.answer import DEFAULT_OUTPUTS, ResultKind
from dicomnode.domain.delivery import Destination, PeerTls, RetryPolicy
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.routing import Recipient, Routing, Rule

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_SECRET_BYTES = 65_536


def _ae_title(value: str) -> str:
    """Check an AE title: 1 to 16 printable characters without backslash. Source: PS3.5 6.2."""
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not all(32 <= ord(c) < 127 for c in title):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


def _calling_ae_title(value: str) -> str:
    """Check an AE title that a peer calls with, which may be in Latin-1, as some devices write it."""
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not title.isprintable():
        raise ValueError("an AE title has 1 to 16 printable characters and no backslash")
    return title


def _service_root(value: str) -> str:
    """Check the root of a DICOMweb service: http or https, and nothing in it that is a secret or a query."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("the root of a DICOMweb service is an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL carries no user or password: name them with authentication and secret_file")
    if parts.query or parts.fragment:
        raise ValueError("the root of a DICOMweb service has no query and no fragment")
    return value.rstrip("/")


def _distinct(kinds: tuple[ResultKind, ...]) -> tuple[ResultKind, ...]:
    if len(set(kinds)) != len(kinds):
        raise ValueError("an output is named twice")
    return kinds


def _network(value: str) -> str:
    return str(ip_network(value))


AeTitle = Annotated[str, AfterValidator(_ae_title)]
CallingAeTitle = Annotated[str, AfterValidator(_calling_ae_title)]
Network = Annotated[str, AfterValidator(_network)]
Port = Annotated[int, Field(ge=1, le=65535)]
Outputs = Annotated[tuple[ResultKind, ...], Field(min_length=1), AfterValidator(_distinct)]


class Section(BaseModel):
    """A part of the configuration: frozen, and every key known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RetrySettings(Section):
    """Delays between attempts at a delivery."""

    first_delay_s: float = Field(default=30.0, gt=0)
    factor: float = Field(default=2.0, ge=1)
    max_delay_s: float = Field(default=600.0, gt=0)
    give_up_after_s: float = Field(default=604_800.0, gt=0)

    def policy(self) -> RetryPolicy:
        """Return the retry policy these settings describe."""
        return RetryPolicy(**self.model_dump())


class SrClass(StrEnum):
    """Under which SOP class a destination would best have the report."""

    COMPREHENSIVE_3D = "comprehensive3d"
    COMPREHENSIVE = "comprehensive"
    ENHANCED = "enhanced"


class PreferredEncoding(StrEnum):
    """In which transfer syntax a destination would best have results; the compressed ones are for images only."""

    EXPLICIT = "explicit"
    IMPLICIT = "implicit"
    RLE = "rle"
    JPEG_LS = "jpeg-ls"
    JPEG_2000 = "jpeg-2000"


class _Profile(Section):
    """What a destination wants, and how.

    `sr_class` and `transfer_syntax` are preferences: what the destination does not accept goes the next best way.
    """

    name: str = ""
    outputs: Outputs = tuple(sorted(DEFAULT_OUTPUTS, reverse=True))
    sr_class: SrClass = SrClass.COMPREHENSIVE_3D
    transfer_syntax: PreferredEncoding = PreferredEncoding.EXPLICIT
    series_description_prefix: str = Field(default="", max_length=16, pattern=r"^[^\\\x00-\x1f\x7f]*$")


class DimseDestination(_Profile):
    """A Storage SCP that receives results.

    `commitment`: ask it by Storage Commitment whether it keeps them; a result that it does not answer for within
    `commitment_timeout_s` is an alert. `commitment_linger_s`: how long the association stays open for the answer.
    An answer over an association of its own is believed from the calling AE titles of `commitment_ae_titles`, its own
    unless named, and, where `commitment_networks` names any, from addresses in these networks.
    `tls`: encrypt, and verify the peer by `ca_file` (the system's authorities without it) and, unless
    `check_hostname` is false, by `host`. The files are read anew for every association.
    """

    kind: Literal["dimse"] = "dimse"
    ae_title: AeTitle
    host: str = Field(min_length=1)
    port: Port
    commitment: bool = False
    commitment_timeout_s: float = Field(default=3600.0, gt=0)
    commitment_linger_s: float = Field(default=1.0, ge=0, le=60)
    commitment_ae_titles: tuple[CallingAeTitle, ...] = ()
    commitment_networks: tuple[Network, ...] = ()
    tls: bool = False
    ca_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    client_key_password_file: Path | None = None
    check_hostname: bool = True

    @model_validator(mode="after")
    def _tls_is_consistent(self) -> Self:
        files = (self.ca_file, self.client_certificate, self.client_key, self.client_key_password_file)
        if not self.tls and (any(file is not None for file in files) or not self.check_hostname):
            raise ValueError("settings of TLS without tls = true")
        if self.client_certificate is None and (self.client_key or self.client_key_password_file):
            raise ValueError("client_key without client_certificate")
        return self

    @property
    def label(self) -> str:
        """Return the name in the ledger; without one of its own the destination is called `AET@HOST:PORT`."""
        return self.name or f"{self.ae_title}@{self.host}:{self.port}"

    def destination(self) -> Destination:
        """Return the peer."""
        return Destination(name=self.label, ae_title=self.ae_title, host=self.host, port=self.port, tls=self._tls())

    def _tls(self) -> PeerTls | None:
        if not self.tls:
            return None
        return PeerTls(
            ca_file=self.ca_file,
            client_certificate=self.client_certificate,
            client_key=self.client_key,
            client_key_password_file=self.client_key_password_file,
            check_hostname=self.check_hostname,
        )


class StowDestination(_Profile):
    """A DICOMweb service that receives results by STOW-RS; `url` is its root, to which `/studies` is added.

    The password or token is read for every batch from `secret_file`, or from the environment variable `secret_env`: it
    never stands in the configuration. `ca_file` replaces the usual authorities.
    """

    kind: Literal["stow"]
    url: Annotated[str, AfterValidator(_service_root)]
    authentication: Literal["none", "basic", "bearer"] = "none"
    username: str = ""
    secret_file: Path | None = None
    secret_env: str | None = None
    verify_tls: bool = True
    ca_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        sources = (self.secret_file is not None) + (self.secret_env is not None)
        if self.authentication == "none" and (sources or self.username):
            raise ValueError("a username or secret without authentication = basic or bearer")
        if self.authentication != "none" and sources != 1:
            raise ValueError("this authentication needs its secret in either secret_file or secret_env")
        if (self.authentication == "basic") != bool(self.username) or ":" in self.username:
            raise ValueError("basic authentication, and no other, has a username, without a colon in it")
        if self.secret_env is not None and not _ENVIRONMENT_NAME.fullmatch(self.secret_env):
            raise ValueError("secret_env is the name of an environment variable, not the secret itself")
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError("client_key without client_certificate")
        if self.ca_file is not None and not self.verify_tls:
            raise ValueError("ca_file has no meaning while verify_tls is false")
        return self

    @property
    def label(self) -> str:
        """Return the name in the ledger; without one of its own the destination is called by its URL."""
        return self.name or self.url

    @property
    def exposes_secret(self) -> bool:
        """Whether the secret goes over the network in the clear, or to a server that nobody has verified."""
        return self.authentication != "none" and (self.url.startswith("http:") or not self.verify_tls)

    def secret(self) -> str:
        """Return the password or token as it is now.

        Raises: ConfigurationError, which names the file or variable and never what is in it.
        """
        if self.secret_env is not None:
            value, where = os.environ.get(self.secret_env, ""), f"environment variable {self.secret_env}"
        else:
            value, where = read_secret(self.secret_file), f"file {self.secret_file}"
        value = value.strip("\r\n")
        if not value or not value.isprintable():
            raise ConfigurationError(f"the secret of destination {self.label} is empty or unfit, in {where}")
        return value


def read_secret(file: Path | None) -> str:
    """Return the text of a file that holds a password or token.

    Raises: ConfigurationError, which never says what is in it.
    """
    try:
        with (file or Path()).open("rb") as opened:
            return opened.read(_LONGEST_SECRET_BYTES).decode("utf-8")
    except OSError as error:
        raise ConfigurationError(f"the secret in {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the secret in {file} is not text") from error


def _kind(value: Any) -> str:
    return str(value.get("kind", "dimse") if isinstance(value, dict) else getattr(value, "kind", "dimse"))


DestinationSettings = Annotated[
    Annotated[DimseDestination, Tag("dimse")] | Annotated[StowDestination, Tag("stow")], Discriminator(_kind)
]


class RouteSettings(Section):
    """A rule: studies from these AE titles (patterns with * and ?) go to these destinations."""

    calling_ae: str = Field(min_length=1, max_length=16)
    called_ae: str = Field(default="*", min_length=1, max_length=16)
    destinations: tuple[str, ...] = Field(min_length=1)


class DeliverySettings(Section):
    """Where results go and how the node insists.

    Every rule of `routes` and `return_to_sender` (calling AE title → destination) that matches a study's sender adds
    its destinations. A sender without a rule gets `default_destinations`: all of them unless named, and none if empty.
    """

    destinations: tuple[DestinationSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    return_to_sender: dict[CallingAeTitle, str] = Field(default_factory=dict)
    default_destinations: tuple[str, ...] | None = None
    retry: RetrySettings = RetrySettings()
    connect_timeout_s: float = Field(default=10.0, gt=0)
    response_timeout_s: float = Field(default=60.0, gt=0)
    batch: int = Field(default=50, ge=1, le=1000)

    @model_validator(mode="after")
    def _names_are_known_and_differ(self) -> Self:
        names = [entry.label for entry in self.destinations]
        if len(set(names)) != len(names):
            raise ValueError("two destinations have the same name")
        for where, name in self._named():
            if name not in names:
                raise ValueError(f"{where} names {name!r}, which is no destination")
        return self

    def routing(self) -> Routing:
        """Return the destinations with what they want, and the rules that choose among them."""
        recipients = tuple(
            Recipient(
                name=entry.label,
                outputs=frozenset(entry.outputs),
                series_description_prefix=entry.series_description_prefix,
            )
            for entry in self.destinations
        )
        default = self.default_destinations
        return Routing(
            recipients=recipients,
            rules=tuple(self._rules()),
            default=tuple(entry.name for entry in recipients) if default is None else default,
        )

    def _rules(self) -> list[Rule]:
        rules = [Rule(**entry.model_dump()) for entry in self.routes]
        returns = self.return_to_sender.items()
        return rules + [Rule(calling_ae=glob.escape(title), destinations=(name,)) for title, name in returns]

    def _named(self) -> list[tuple[str, str]]:
        """Return every place that names a destination, with the name."""
        routes = [
            (f"delivery.routes: the rule for calling_ae {rule.calling_ae!r}", name)
            for rule in self.routes
            for name in rule.destinations
        ]
        returns = [
            (f"delivery.return_to_sender: the entry for {title!r}", name)
            for title, name in self.return_to_sender.items()
        ]
        return routes + returns + [("delivery.default_destinations", name) for name in self.default_destinations or ()]
