"""A certificate authority for tests, made anew for each."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    """Signs certificates for addresses and clients; `file` is its own certificate."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key())
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        own = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self._identifier = own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def issue(self, address: str, file: Path, *, expired: bool = False, password: bytes | None = None) -> Path:
        """Write a certificate for an IP address, as server and as client, with its key, and return the file."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = self._builder(subject, key.public_key(), timedelta(minutes=-1 if expired else 24 * 60))
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier)
        builder = builder.add_extension(issuer, critical=False)
        signed = builder.add_extension(names, critical=False).add_extension(uses, critical=False)
        pem = serialization.Encoding.PEM
        encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        form = (serialization.PrivateFormat.PKCS8, encryption)
        certificate = signed.sign(self._key, hashes.SHA256()).public_bytes(pem)
        file.write_bytes(certificate + key.private_bytes(pem, *form))
        return file

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, validity: timedelta = timedelta(days=1)
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + validity)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
