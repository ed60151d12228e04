"""The listener's certificate: the operator's own, or one of a small authority of this platform.

The authority (`<data>/tls/ca.pem`, its key `ca.key` mode 0600) is made at the first start and lives
ten years; clients on this machine trust it by that file. The leaf names localhost, 127.0.0.1, ::1,
the domain and every name directly below it; it lives 397 days (the most that browsers accept) and
is made anew when less than 30 are left, or when the domain has changed.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ironworks.model.errors import FailedPrecondition
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.runtime.identity.keys import write_private

AUTHORITY_DAYS = 3650
LEAF_DAYS = 397
RENEW_DAYS = 30
_BACKDATE = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate chain, leaf first, and its key; PEM."""

    chain_pem: str
    private_key_pem: str


def authority_path(data_dir: Path) -> Path:
    """The certificate that clients of this platform trust."""
    return data_dir / "tls" / "ca.pem"


def _now(clock: Clock) -> dt.datetime:
    seconds = clock.now_ns() / NS_PER_SECOND
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FailedPrecondition(f"{path.name} is not a key that this platform made.")
    return key


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _make_authority(data_dir: Path, now: dt.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Ironworks authority of this platform")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    # The key first: an authority without its key would be of no use for ever.
    write_private(data_dir / "tls" / "ca.key", _key_pem(key))
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    write_private(authority_path(data_dir), pem, mode=0o644)


def _names(domain: str) -> list[x509.GeneralName]:
    texts = ["localhost", domain, f"*.{domain}"]
    addresses = ["127.0.0.1", "::1"]
    return [
        *(x509.DNSName(text) for text in texts),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
    ]


def _make_leaf(data_dir: Path, domain: str, now: dt.datetime) -> None:
    authority = x509.load_pem_x509_certificate(authority_path(data_dir).read_bytes())
    authority_key = _load_key(data_dir / "tls" / "ca.key")
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    server_use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(domain))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(days=LEAF_DAYS))
        .add_extension(x509.SubjectAlternativeName(_names(domain)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(server_use, critical=False)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    # Key and certificate in one file: they cannot get out of step.
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    write_private(data_dir / "tls" / "edge.pem", pem + _key_pem(key))


def _leaf_serves(data_dir: Path, domain: str, now: dt.datetime) -> bool:
    try:
        leaf = x509.load_pem_x509_certificate((data_dir / "tls" / "edge.pem").read_bytes())
        authority = x509.load_pem_x509_certificate(authority_path(data_dir).read_bytes())
        leaf.verify_directly_issued_by(authority)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    renew_at = leaf.not_valid_after_utc - dt.timedelta(days=RENEW_DAYS)
    return list(names) == _names(domain) and leaf.not_valid_before_utc <= now < renew_at


def ensure_certificate(data_dir: Path, domain: str, clock: Clock) -> Certificate:
    """The platform's own certificate, made or renewed where that is needed. Safe to repeat."""
    now = _now(clock)
    if not (authority_path(data_dir).exists() and (data_dir / "tls" / "ca.key").exists()):
        _make_authority(data_dir, now)
    if not _leaf_serves(data_dir, domain, now):
        _make_leaf(data_dir, domain, now)
    text = (data_dir / "tls" / "edge.pem").read_text()
    start = text.index("-----BEGIN PRIVATE KEY-----")
    return Certificate(chain_pem=text[:start], private_key_pem=text[start:])


def read_certificate(chain: Path, private_key: Path) -> Certificate:
    """The operator's own certificate.

    Raises:
        FailedPrecondition: a file cannot be read, or is not what it should be.
    """
    try:
        certificate = Certificate(
            chain_pem=chain.read_text(), private_key_pem=private_key.read_text()
        )
        leaf = x509.load_pem_x509_certificate(certificate.chain_pem.encode())
        key = serialization.load_pem_private_key(certificate.private_key_pem.encode(), None)
    except (OSError, ValueError, TypeError) as error:
        raise FailedPrecondition(
            f"The certificate {chain} or its key {private_key} cannot be read: {error}.",
            hint="Correct edge_certificate_file and edge_private_key_file in the settings.",
        ) from None
    if key.public_key() != leaf.public_key():
        raise FailedPrecondition(
            f"The key {private_key} does not belong to the certificate {chain}.",
            hint="Correct edge_certificate_file and edge_private_key_file in the settings.",
        )
    return certificate
