"""A certificate for a Tub that nobody connects to: it only has to be there.

Foolscap would make an RSA key, which takes a tenth of a second of every `put`; one on an elliptic curve takes none.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

#: Foolscap knows a Tub by the hash of its certificate, and looks neither at the name nor at the dates.
NAME = "newpb_thingy"  # foolscap.crypto
FROM, UNTIL = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


def new_certificate() -> bytes:
    """Certificate and private key, new ones, in PEM, as `Tub(certData=...)` takes them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), FROM, UNTIL)
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
