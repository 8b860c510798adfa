"""The node's TLS certificates, which are read again when their files change."""

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
    """The certificate that new connections get; `is_current`: whether it is the one that the files hold now."""

    expires_at: datetime
    is_current: bool


class RenewedContext:
    """The TLS context of a server, made again when one of its files changes. Many threads may use it.

    Raises: ConfigurationError if the files cannot be used at the start.
    """

    def __init__(
        self, make: Callable[[], ssl.SSLContext], files: Sequence[Path], clock: Callable[[], datetime]
    ) -> None:
        """Take a function that makes the context, and the files that it reads; the first of them is the certificate."""
        self._make, self._files, self._clock = make, tuple(files), clock
        self._lock = threading.Lock()
        self._state = self._files_state()
        self._context = make()
        self._served = self._tell()

    def context(self) -> ssl.SSLContext:
        """Return the context for the next connection; the former one while changed files cannot be used."""
        with self._lock:
            state = self._files_state()
            if state != self._state:
                self._state = state
                self._reload()
            return self._context

    def served(self) -> ServedCertificate:
        """Return the certificate that the next connection gets."""
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
    """Return the end of a certificate's validity.

    Raises: ConfigurationError.
    """
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())[0].not_valid_after_utc
    except OSError as error:
        raise ConfigurationError(f"the certificate {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{file} holds no certificate in PEM") from error


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None, password: str = "") -> None:
    """Load a certificate and its key into a context; without `key`, the certificate's file holds it.

    Raises: ConfigurationError.
    """
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: password)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"the certificate {certificate} and its key cannot be used: {tls_reason(error)}"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the certificate {certificate} or its key cannot be read: {error.strerror}"
        ) from error


def tls_reason(error: ssl.SSLError) -> str:
    """Return why a certificate or key cannot be used."""
    return (error.reason or "not in PEM, or the password is wrong").replace("_", " ").lower()


def _state_of(file: Path) -> object:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
