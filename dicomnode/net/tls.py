"""TLS as PS3.15 asks for it, on both sides of a connection.

Source: PS3.15 B.12, BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile; RFC 9325 4.2.
"""

import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from dicomnode.delivery_settings import read_secret
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.job import PeerTls
from dicomnode.settings import TlsSettings

log = logging.getLogger(__name__)

PROFILE = "BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile"
# RFC 9325 4.2: forward secrecy and authenticated encryption only. TLS 1.3 has no other suites.
CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
# Refuses RSA keys below 2048 bits and signatures with SHA-1.
_SECURITY_LEVEL = "@SECLEVEL=2"
_EXPIRES_SOON = timedelta(days=30)
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT_CERTIFICATES = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
# What OpenSSL says when the other side talks something else.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})


class ListenerTls:
    """The listener's certificate and what it asks of clients, read again whenever a file has changed.

    Used by many threads. Raises: ConfigurationError when the files do not serve.
    """

    def __init__(self, settings: TlsSettings, clock: Callable[[], datetime]) -> None:
        self._settings, self._clock = settings, clock
        self._lock = threading.Lock()
        self._state = self._files_state()
        self._context = listener_context(settings)
        self._tell()

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is to be served with; the former, as long as changed files do not serve."""
        with self._lock:
            state = self._files_state()
            if state != self._state:
                self._state = state
                self._reload()
            return self._context

    def _reload(self) -> None:
        try:
            self._context = listener_context(self._settings)
        except ConfigurationError as error:
            log.error("tls-not-reloaded", extra={"cause": str(error)})  # noqa: TRY400 the cause is all there is to say
        else:
            log.info("tls-reloaded")
            self._tell()

    def _tell(self) -> None:
        expires = certificate_expires(self._settings.certificate or Path())
        soon = expires - self._clock() < _EXPIRES_SOON
        log.log(
            logging.WARNING if soon else logging.INFO,
            "certificate-expires-soon" if soon else "certificate-read",
            extra={"certificate": str(self._settings.certificate), "expires_at": expires.isoformat()},
        )

    def _files_state(self) -> tuple[object, ...]:
        return tuple(_state_of(file) for file in self._settings.files())


def listener_context(settings: TlsSettings) -> ssl.SSLContext:
    """Return the TLS context of a listener with these settings.

    Raises: ConfigurationError.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings.minimum_version)
    _load_certificate(context, settings.certificate, settings.key, settings.key_password_file)
    _load_authorities(context, settings.client_ca_file)
    context.verify_mode = _CLIENT_CERTIFICATES[settings.client_certificates]
    # A certificate that is no longer accepted is not to live on in a session.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return context


def requestor_context(peer: PeerTls) -> ssl.SSLContext:
    """Return the TLS context for connections to a peer, from its files as they are now.

    Raises: ConfigurationError.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, "1.2")
    context.check_hostname = peer.check_hostname
    context.verify_mode = ssl.CERT_REQUIRED
    if peer.ca_file is None:
        context.load_default_certs()
    _load_authorities(context, peer.ca_file)
    if peer.client_certificate is not None:
        _load_certificate(context, peer.client_certificate, peer.client_key, peer.client_key_password_file)
    return context


def shake_hands(wire: ssl.SSLSocket, deadline: float) -> None:
    """Agree on a session; `deadline` is on the monotonic clock, for the whole handshake.

    Raises: OSError, of which TimeoutError at the deadline and ssl.SSLError when there is no agreement.
    """
    wire.settimeout(0)
    while True:
        try:
            wire.do_handshake()
        except ssl.SSLWantReadError:
            _wait(wire, deadline, writing=False)
        except ssl.SSLWantWriteError:
            _wait(wire, deadline, writing=True)
        else:
            return


def tls_cause(error: OSError) -> str:
    """Say why a handshake failed, in words that the peer did not choose."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError):
        return "the connection ended within the TLS handshake"
    if error.reason in _NO_TLS:
        return "it does not speak TLS"
    return f"no TLS session: {(error.reason or 'unknown cause').replace('_', ' ').lower()}"


def certificate_expires(file: Path) -> datetime:
    """Return until when a certificate is valid.

    Raises: ConfigurationError.
    """
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())[0].not_valid_after_utc
    except OSError as error:
        raise ConfigurationError(f"the certificate {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{file} holds no certificate in PEM") from error


def _context(protocol: int, minimum_version: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = _VERSIONS[minimum_version]
    context.set_ciphers(":".join((*CIPHERS, _SECURITY_LEVEL)))
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return context


def _load_certificate(
    context: ssl.SSLContext, certificate: Path | None, key: Path | None, password_file: Path | None
) -> None:
    password = read_secret(password_file).strip("\r\n") if password_file is not None else ""
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate or Path(), key, password=lambda: password)
    except ssl.SSLError as error:
        raise ConfigurationError(f"the certificate {certificate} and its key do not serve: {_reason(error)}") from error
    except OSError as error:
        raise ConfigurationError(
            f"the certificate {certificate} or its key cannot be read: {error.strerror}"
        ) from error


def _load_authorities(context: ssl.SSLContext, file: Path | None) -> None:
    if file is None:
        return
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError as error:
        raise ConfigurationError(f"the authorities in {file} do not serve: {_reason(error)}") from error
    except OSError as error:
        raise ConfigurationError(f"the authorities in {file} cannot be read: {error.strerror}") from error


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "not in PEM, or the password is wrong").replace("_", " ").lower()


def _wait(wire: socket.socket, deadline: float, *, writing: bool) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    select.select([] if writing else [wire], [wire] if writing else [], [], left)


def _state_of(file: Path) -> object:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
