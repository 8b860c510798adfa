"""TLS as PS3.15 asks for it, on both sides of a connection.

Source: PS3.15 B.12, BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile; RFC 9325 4.2.
"""

import select
import socket
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from dicomnode.certificates import RenewedContext, load_certificate, tls_reason
from dicomnode.domain.delivery import PeerTls
from dicomnode.domain.errors import ConfigurationError
from dicomnode.settings.delivery import read_secret
from dicomnode.settings.node import TlsSettings

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
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT_CERTIFICATES = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
# What OpenSSL says when the other side talks something else.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})


def listener_tls(settings: TlsSettings, clock: Callable[[], datetime]) -> RenewedContext:
    """Return the listener's certificate and what it asks of clients, read again whenever a file has changed.

    Raises: ConfigurationError if the files cannot be used.
    """
    return RenewedContext(lambda: listener_context(settings), settings.files(), clock)


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
    load_certificate(context, certificate or Path(), key, password)


def _load_authorities(context: ssl.SSLContext, file: Path | None) -> None:
    if file is None:
        return
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError as error:
        raise ConfigurationError(f"the authorities in {file} cannot be used: {tls_reason(error)}") from error
    except OSError as error:
        raise ConfigurationError(f"the authorities in {file} cannot be read: {error.strerror}") from error


def _wait(wire: socket.socket, deadline: float, *, writing: bool) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    select.select([] if writing else [wire], [wire] if writing else [], [], left)
