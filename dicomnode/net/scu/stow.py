"""STOW-RS: results to a DICOMweb service, one instance a request, so that every outcome is of one instance.

Source: PS3.18 10.5.
"""

import ssl
import time
import warnings
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from io import BytesIO

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from requests.auth import AuthBase, HTTPBasicAuth

from dicomnode.dicom.part10 import read_file_head, read_ref
from dicomnode.domain.delivery import Accepted, NoAnswer, Refused, StoreOutcome
from dicomnode.domain.errors import ConfigurationError, Permanent, Transient
from dicomnode.domain.instance import InstanceRef
from dicomnode.net.scu.http import LARGEST_ANSWER_BYTES, AnswerTooLong, BoundedSession, HttpAnswer
from dicomnode.net.scu.outgoing import BYTES_RAISE, MOST_ABORTS, MOST_SILENCES, Form, Outgoing, Report, encoded_file
from dicomnode.net.scu.storage import EchoResult
from dicomnode.net.scu.stow_response import read_response
from dicomnode.net.status import is_unsupported_form, outcome_of_failure
from dicomnode.settings.delivery import DeliverySettings, StowDestination

_JSON = "application/dicom+json"
_WHOLE_BODY_BYTES = 1 << 40
"""The library splits longer bodies into chunks, which not every server takes."""

_PASSING = {
    HTTPStatus.UNAUTHORIZED: "not authenticated, the secret may have to be renewed",
    HTTPStatus.REQUEST_TIMEOUT: "the request took too long",
    HTTPStatus.LOCKED: "locked",
    HTTPStatus.FAILED_DEPENDENCY: "what the service depends on has failed",
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
        self._session = _session(destination, settings.response_timeout_s)
        self._lost = 0
        self.failed = False
        self._timeouts = (settings.connect_timeout_s, settings.response_timeout_s)
        try:
            self._client = DICOMwebClient(
                destination.url,
                session=self._session,
                headers={"Accept": _JSON},
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
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom quotes values that break the standard
                self._client.store_instances([dcmread(BytesIO(part10))], ref.study)
        except (requests.RequestException, OSError) as error:
            return self._no_answer(error)
        except BYTES_RAISE:
            return Refused(status=None, cause="the object cannot be encoded for DICOMweb", permanent=True)
        answer = self._session.answer
        if answer is None:
            self.failed = True
            return NoAnswer(cause="the request could not be made")
        self._lost = 0
        self.failed = answer.code in _OF_THE_SERVICE
        return outcome_of(answer)

    def _no_answer(self, error: Exception) -> NoAnswer:
        """Return the outcome of a request without an answer; the instance may be to blame, or the service."""
        self._lost += 1
        most = MOST_SILENCES if isinstance(error, requests.exceptions.Timeout) else MOST_ABORTS
        self.failed = not self._session.was_sent or self._lost >= most
        return NoAnswer(cause=self._why(error))

    def options(self) -> str | None:
        """Ask for the service's capabilities (PS3.18 8.9); return why it is of no use, or None."""
        try:
            self._session.options(f"{self._url}/studies", timeout=self._timeouts)
        except (requests.RequestException, OSError) as error:
            return self._why(error)
        code = self._session.answer.code if self._session.answer is not None else 0
        # Not every service tells its capabilities; one that is there and lets the node in says so in some way.
        if code >= HTTPStatus.INTERNAL_SERVER_ERROR or code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return f"HTTP {code}: {_meaning(code)}"
        points_elsewhere = HTTPStatus.MULTIPLE_CHOICES <= code < HTTPStatus.BAD_REQUEST
        return f"HTTP {code}: it points elsewhere" if points_elsewhere else None

    def _why(self, error: Exception) -> str:
        if isinstance(error, requests.exceptions.SSLError):
            return f"TLS failed: {_tls_reason(error)}"
        if isinstance(error, requests.exceptions.ConnectTimeout):
            return f"no connection to {self._url} within {self._settings.connect_timeout_s:g} s"
        if isinstance(error, requests.exceptions.Timeout):
            return f"no response within {self._settings.response_timeout_s:g} s"
        if not isinstance(error, requests.RequestException):
            return f"a certificate file cannot be used: {getattr(error, 'strerror', None) or type(error).__name__}"
        return self._why_ended(error)

    def _why_ended(self, error: requests.RequestException) -> str:
        if isinstance(error, AnswerTooLong):
            return f"the answer has more than {LARGEST_ANSWER_BYTES} bytes"
        if self._session.was_sent:
            return f"the connection to {self._url} ended before the answer did"
        if isinstance(error, requests.exceptions.ConnectionError):
            return f"no connection to {self._url}"
        return f"the request failed: {type(error).__name__}"


class _Bearer(AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _session(destination: StowDestination, answer_within_s: float) -> BoundedSession:
    """Return a session with the destination's authentication and TLS, reading its secret anew.

    Raises: ConfigurationError.
    """
    session = BoundedSession(answer_within_s)
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


def outcome_of(answer: HttpAnswer) -> StoreOutcome:
    """Say what the answer to a request that held one instance means for it. Source: PS3.18 10.5.3."""
    response = read_response(answer)
    if response is not None and response.failure is not None and answer.code not in _OF_THE_SERVICE:
        return _refusal(answer, response.failure)
    if not HTTPStatus.OK <= answer.code < HTTPStatus.MULTIPLE_CHOICES:
        return _refusal(answer, None)
    if response is None:
        cause = f"HTTP {answer.code}, but no DICOMweb service answers there"
        return Refused(status=None, cause=cause, permanent=False)
    return Accepted(warning=response.warning)


def _refusal(answer: HttpAnswer, reason: int | None) -> StoreOutcome:
    code, retry_after_s = answer.code, _retry_after_s(answer)
    if reason:
        outcome = outcome_of_failure(reason)
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
    if code < HTTPStatus.MULTIPLE_CHOICES:
        return "not stored, without a reason"
    known = {int(status): meaning for status, meaning in (_PASSING | _LASTING).items()}
    return known.get(code, "refused")


def _retry_after_s(answer: HttpAnswer) -> float | None:
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
