"""The certificates by which the node is known, read again whenever their files have changed."""

import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from dicomnode.domain.errors import ConfigurationError

log = logging.getLogger(__name__)

_EXPIRES_SOON = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCertificate:
    """The certificate that new connections are shown; `is_current`: whether it is the one in the files as they are."""

    expires_at: datetime
    is_current: bool


class RenewedContext:
    """The TLS context of a server, made again whenever one of its files has changed.

    Used by many threads. Raises: ConfigurationError when the files do not serve at the start.
    """

    def __init__(
        self, make: Callable[[], ssl.SSLContext], files: Sequence[Path], clock: Callable[[], datetime]
    ) -> None:
        """`make` reads the `files`, of which the first is the certificate, and raises ConfigurationError."""
        self._make, self._files, self._clock = make, tuple(files), clock
        self._lock = threading.Lock()
        self._state = self._files_state()
        self._context = make()
        self._served = self._tell()

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is to be served with; the former, as long as changed files do not serve."""
        with self._lock:
            state = self._files_state()
            if state != self._state:
                self._state = state
                self._reload()
            return self._context

    def served(self) -> ServedCertificate:
        """Return what the next connection is to be shown."""
        self.context()
        with self._lock:
            return self._served

    def _reload(self) -> None:
        try:
            self._context = self._make()
        except ConfigurationError as error:
            log.error("tls-not-reloaded", extra={"cause": str(error)})  # noqa: TRY400 the cause is all there is to say
            self._served = replace(self._served, is_current=False)
        else:
            log.info("tls-reloaded", extra={"certificate": str(self._files[0])})
            self._served = self._tell()

    def _tell(self) -> ServedCertificate:
        expires = certificate_expires(self._files[0])
        soon = expires - self._clock() < _EXPIRES_SOON
        log.log(
            logging.WARNING if soon else logging.INFO,
            "certificate-expires-soon" if soon else "certificate-read",
            extra={"certificate": str(self._files[0]), "expires_at": expires.isoformat()},
        )
        return ServedCertificate(expires_at=expires, is_current=True)

    def _files_state(self) -> tuple[object, ...]:
        return tuple(_state_of(file) for file in self._files)


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


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None, password: str = "") -> None:
    """Have a context show a certificate; its key stands in the same file if it has none of its own.

    Raises: ConfigurationError.
    """
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: password)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"the certificate {certificate} and its key do not serve: {tls_reason(error)}"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the certificate {certificate} or its key cannot be read: {error.strerror}"
        ) from error


def tls_reason(error: ssl.SSLError) -> str:
    """Say why a file does not serve."""
    return (error.reason or "not in PEM, or the password is wrong").replace("_", " ").lower()


def _state_of(file: Path) -> object:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
