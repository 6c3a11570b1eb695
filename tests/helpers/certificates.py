"""Certificates for servers on loopback, made anew for each test."""

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Authority"]

_DAY: Final = dt.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """A certificate authority of our own, whose files are kept in a folder."""

    folder: Path

    def server(self, host: str = "127.0.0.1", *, since: int = -1, days: int = 2) -> ssl.SSLContext:
        """What a server needs that is to be known as `host`; its certificate is valid from that day on."""
        certificate, key = self._signed(host, since, days)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(certificate, key)
        return made

    @property
    def file(self) -> Path:
        """The authority's own certificate, as it goes into SSL_CERT_FILE."""
        return self.folder / "authority.pem"

    def _signed(self, host: str, since: int, days: int) -> tuple[Path, Path]:
        now = dt.datetime.now(dt.UTC)
        authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An authority nobody knows")])
        root = (
            x509.CertificateBuilder()
            .subject_name(issuer)
            .issuer_name(issuer)
            .public_key(authority_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 100 * _DAY)
            .not_valid_after(now + 100 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(authority_key, hashes.SHA256())
        )
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + since * _DAY)
            .not_valid_after(now + (since + days) * _DAY)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.file.write_bytes(root.public_bytes(pem))
        certificate, private = self.folder / "server.pem", self.folder / "server.key"
        certificate.write_bytes(leaf.public_bytes(pem))
        private.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return certificate, private
