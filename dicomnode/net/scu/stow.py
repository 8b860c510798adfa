"""STOW-RS: results to a DICOMweb service, one instance a request, so that every outcome is of one instance.

Source: PS3.18 10.5.
"""

import ssl
import time
import warnings
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from io import BytesIO
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from requests.auth import AuthBase, HTTPBasicAuth

from dicomnode.dicom.part10 import read_file_head, read_ref
from dicomnode.domain.delivery import Accepted, NoAnswer, Refused, StoreOutcome
from dicomnode.domain.errors import ConfigurationError, Permanent, Transient
from dicomnode.domain.instance import InstanceRef
from dicomnode.net.scu.outgoing import Form, Outgoing, Report, encoded_file
from dicomnode.net.scu.storage import EchoResult
from dicomnode.net.status import is_unsupported_form, outcome_for
from dicomnode.settings.delivery import DeliverySettings, StowDestination

_JSON = ("application/dicom+json", "application/json")
_XML = ("application/dicom+xml", "application/xml", "multipart/related")
_WHOLE_BODY_BYTES = 1 << 40
"""The library splits longer bodies into chunks, which not every server takes."""

# What the library and pydicom raise on an answer that they cannot make sense of.
_READ_ERRORS = (AttributeError, KeyError, NotImplementedError, SyntaxError, TypeError, ValueError)

_PASSING = {
    HTTPStatus.UNAUTHORIZED: "not authenticated, the secret may have to be renewed",
    HTTPStatus.REQUEST_TIMEOUT: "the request took too long",
    HTTPStatus.TOO_EARLY: "too early",
    HTTPStatus.TOO_MANY_REQUESTS: "too many requests",
    HTTPStatus.INTERNAL_SERVER_ERROR: "the server failed",
    HTTPStatus.BAD_GATEWAY: "the server behind the gateway failed",
    HTTPStatus.SERVICE_UNAVAILABLE: "the service is busy or down",
    HTTPStatus.GATEWAY_TIMEOUT: "the server behind the gateway is silent",
    HTTPStatus.INSUFFICIENT_STORAGE: "out of storage",
}
_LASTING = {
    HTTPStatus.BAD_REQUEST: "the server does not understand the object",
    HTTPStatus.FORBIDDEN: "not authorised",
    HTTPStatus.NOT_FOUND: "there is no such service",
    HTTPStatus.CONFLICT: "not stored",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too large for the server",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "the server does not take DICOM objects",
}
# Said of the service rather than of the object: what follows in the batch would hear the same.
_OF_THE_SERVICE = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


class StowTransfer:
    """The way to one DICOMweb service."""

    def __init__(self, destination: StowDestination, settings: DeliverySettings, form: Form) -> None:
        self._destination, self._settings, self._form = destination, settings, form

    def __call__(self, items: Sequence[Outgoing], *, report: Report) -> list[StoreOutcome]:
        """Send a batch over one connection, and report each outcome.

        When the service itself fails, the rest of the batch has the same outcome, and nothing is lost.
        """
        outcomes: list[StoreOutcome] = []
        try:
            service = _Service(self._destination, self._settings)
        except ConfigurationError as error:
            service, outcomes = None, [NoAnswer(cause=str(error))]
            report(0, outcomes[0], None)
        for position in range(len(outcomes), len(items)):
            if service is None or service.failed:
                outcome, sent_as = outcomes[-1], None
            else:
                outcome, sent_as = self._store(service, items[position])
            outcomes.append(outcome)
            report(position, outcome, sent_as if isinstance(outcome, Accepted) else None)
        if service is not None:
            service.close()
        return outcomes

    def _store(self, service: "_Service", item: Outgoing) -> tuple[StoreOutcome, InstanceRef | None]:
        """Store one instance in the best form that the service takes."""
        outcome: StoreOutcome = Refused(status=None, cause="there is no form in which it could go", permanent=True)
        sent_as = None
        try:
            for part10, variant in self._forms(item.read()):
                outcome, sent_as = service.store(part10), variant
                if not (isinstance(outcome, Refused) and is_unsupported_form(outcome.status)):
                    break
        except Permanent as error:
            outcome = Refused(status=None, cause=str(error), permanent=True)
        except Transient as error:
            outcome = NoAnswer(cause=str(error))
        return outcome, sent_as

    def _forms(self, part10: bytes) -> Iterator[tuple[bytes, InstanceRef | None]]:
        sop_class = read_file_head(part10).sop_class
        for entry in self._form.classes(sop_class):
            found = self._form.under(part10, entry)
            if found is None:
                continue
            own, variant = found
            syntax = self._form.syntax(entry)
            if syntax is not None and syntax != read_file_head(own).transfer_syntax:
                yield encoded_file(own, syntax), variant
            yield own, variant


def probe(destination: StowDestination, settings: DeliverySettings) -> EchoResult:
    """Try the way to a service and the authentication there, without storing or asking for anything."""
    try:
        service = _Service(destination, settings)
        began = time.perf_counter()
        try:
            cause = service.options()
        finally:
            service.close()
    except ConfigurationError as error:
        return EchoResult(succeeded=False, cause=str(error), round_trip_ms=None)
    if cause is not None:
        return EchoResult(succeeded=False, cause=cause, round_trip_ms=None)
    return EchoResult(succeeded=True, cause="", round_trip_ms=(time.perf_counter() - began) * 1000)


class _Service:
    """One connection to a service; `failed` once it is of no use to ask for more."""

    def __init__(self, destination: StowDestination, settings: DeliverySettings) -> None:
        self._url, self._settings = destination.url, settings
        self._session = _session(destination)
        self._answer: requests.Response | None = None
        self.failed = False
        self._timeouts = (settings.connect_timeout_s, settings.response_timeout_s)
        try:
            self._client = DICOMwebClient(
                destination.url,
                session=self._session,
                headers={"Accept": _JSON[0]},
                callback=self._keep,
                chunk_size=_WHOLE_BODY_BYTES,
                timeout=self._timeouts,
            )
        except ValueError as error:
            raise ConfigurationError(f"the URL of destination {destination.label} is not understood") from error
        # The outbox tries again, with its own patience.
        self._client.set_http_retry_params(retry=False)

    def close(self) -> None:
        self._session.close()

    def store(self, part10: bytes) -> StoreOutcome:
        """Send one instance and say what became of it."""
        head = read_file_head(part10)
        ref = read_ref(part10[head.offset :], head.transfer_syntax)
        self._answer = None
        module: Dataset | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom quotes values that break the standard
                module = self._client.store_instances([dcmread(BytesIO(part10))], ref.study)
        except (requests.HTTPError, requests.exceptions.InvalidJSONError):
            pass  # the answer itself is judged below
        except (requests.RequestException, OSError) as error:
            self.failed = True
            return NoAnswer(cause=self._why(error))
        except _READ_ERRORS:
            pass  # an answer that cannot be read is judged by its status
        if self._answer is None:
            self.failed = True
            return NoAnswer(cause="the request could not be made")
        self.failed = self._answer.status_code in _OF_THE_SERVICE
        return outcome_of(self._answer, module)

    def options(self) -> str | None:
        """Ask for the service's capabilities (PS3.18 8.9); return why it is of no use, or None."""
        try:
            answer = self._session.options(f"{self._url}/studies", timeout=self._timeouts)
        except (requests.RequestException, OSError) as error:
            return self._why(error)
        # Not every service tells its capabilities; one that is there and lets the node in says so in some way.
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status_code in (
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.FORBIDDEN,
        ):
            return f"HTTP {answer.status_code}: {_meaning(answer.status_code)}"
        return f"HTTP {answer.status_code}: it points elsewhere" if answer.is_redirect else None

    def _keep(self, answer: requests.Response, **_: Any) -> None:
        self._answer = answer

    def _why(self, error: Exception) -> str:
        if isinstance(error, requests.exceptions.SSLError):
            return f"TLS failed: {_tls_reason(error)}"
        if isinstance(error, requests.exceptions.ConnectTimeout):
            return f"no connection to {self._url} within {self._settings.connect_timeout_s:g} s"
        if isinstance(error, requests.exceptions.Timeout):
            return f"no response within {self._settings.response_timeout_s:g} s"
        if isinstance(error, requests.exceptions.ConnectionError):
            return f"no connection to {self._url}"
        if not isinstance(error, requests.RequestException):
            return f"a certificate file cannot be used: {getattr(error, 'strerror', None) or type(error).__name__}"
        return f"the request failed: {type(error).__name__}"


class _Bearer(AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _StowSession(requests.Session):
    """A session that goes where it is told: a POST that follows a redirect would be a GET, and its 200 a lie."""

    def send(self, request: requests.PreparedRequest, **arguments: Any) -> requests.Response:
        arguments["allow_redirects"] = False
        # dicomweb-client sets a Host without the port; without a header of its own, the right one is made.
        request.headers.pop("Host", None)
        return super().send(request, **arguments)


def _session(destination: StowDestination) -> _StowSession:
    """Return a session with the destination's authentication and TLS, reading its secret anew.

    Raises: ConfigurationError.
    """
    session = _StowSession()
    # The environment could replace the certificate authorities (REQUESTS_CA_BUNDLE) and the authentication (.netrc);
    # proxies alone are taken from there.
    session.trust_env = False
    session.proxies = dict(requests.utils.get_environ_proxies(destination.url, no_proxy=None))
    session.verify = str(destination.ca_file) if destination.ca_file is not None else destination.verify_tls
    if destination.client_certificate is not None:
        certificate, key = str(destination.client_certificate), destination.client_key
        session.cert = certificate if key is None else (certificate, str(key))
    if destination.authentication == "basic":
        session.auth = HTTPBasicAuth(destination.username.encode(), destination.secret().encode())
    elif destination.authentication == "bearer":
        token = destination.secret()
        if not token.isascii():
            raise ConfigurationError(f"the token of destination {destination.label} is not ASCII")
        session.auth = _Bearer(token)
    return session


def outcome_of(answer: requests.Response, module: Dataset | None) -> StoreOutcome:
    """Say what the answer to a request that held one instance means for it.

    `module`: the Store Instances Response Module, if the library could read it. Source: PS3.18 10.5.3.
    """
    code = answer.status_code
    media_type = answer.headers.get("Content-Type", "").split(";")[0].strip().lower()
    if answer.content and media_type in _JSON:
        module = _read_json(answer)
    if (reason := _failure(module)) is not None:
        return _refusal(code, reason, answer)
    if not HTTPStatus.OK <= code < HTTPStatus.MULTIPLE_CHOICES:
        return _refusal(code, None, answer)
    if answer.content and (media_type not in (*_JSON, *_XML) or (media_type in _JSON and module is None)):
        return Refused(status=None, cause=f"HTTP {code}, but no DICOMweb service answers there", permanent=False)
    for item in (module.get("ReferencedSOPSequence") or ()) if module is not None else ():
        if item.get("WarningReason") is not None:
            return Accepted(warning=int(item.WarningReason))
    return Accepted()


def _read_json(answer: requests.Response) -> Dataset | None:
    try:
        body = answer.json()
        # Some servers wrap the module in an array, as answers to queries are.
        return Dataset.from_json(body[0] if isinstance(body, list) else body)
    except (*_READ_ERRORS, IndexError):
        return None


def _failure(module: Dataset | None) -> int | None:
    """Return the Failure Reason of the one instance, 0 if it failed without one, None if it did not fail."""
    if module is None:
        return None
    failed = [*(module.get("FailedSOPSequence") or ()), *(module.get("OtherFailuresSequence") or ())]
    return int(failed[0].get("FailureReason") or 0) if failed else None


def _refusal(code: int, reason: int | None, answer: requests.Response) -> StoreOutcome:
    retry_after_s = _retry_after_s(answer)
    if reason:
        outcome = outcome_for(reason)
        if isinstance(outcome, Refused):
            cause = f"HTTP {code}, {outcome.cause}"
            return Refused(status=reason, cause=cause, permanent=outcome.permanent, retry_after_s=retry_after_s)
        return outcome
    passing = code in _PASSING or code > HTTPStatus.NOT_IMPLEMENTED
    cause = f"HTTP {code}: {_meaning(code)}"
    return Refused(status=None, cause=cause, permanent=not passing, retry_after_s=retry_after_s)


def _meaning(code: int) -> str:
    if HTTPStatus.MULTIPLE_CHOICES <= code < HTTPStatus.BAD_REQUEST:
        return "it points elsewhere, which is not followed"
    known = {int(status): meaning for status, meaning in (_PASSING | _LASTING).items()}
    return known.get(code, "refused")


def _retry_after_s(answer: requests.Response) -> float | None:
    """Return how long the server wants to be left alone; the form with a date is not heeded."""
    value = answer.headers.get("Retry-After", "").strip()
    return float(value) if value.isascii() and value.isdigit() else None


def _tls_reason(error: BaseException) -> str:
    """Return what TLS itself says of a failure, such as `self-signed certificate`."""
    seen: BaseException | None = error
    for _ in range(8):
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"the server's certificate is not trusted, {seen.verify_message}"
        if isinstance(seen, ssl.SSLError):
            return str(seen.reason or "handshake refused").lower().replace("_", " ")
        inner = getattr(seen, "reason", None) or (seen.args[0] if seen and seen.args else None)
        seen = inner if isinstance(inner, BaseException) else (seen.__cause__ or seen.__context__ if seen else None)
    return "handshake refused"
