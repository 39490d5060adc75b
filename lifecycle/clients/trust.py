"""TLS contexts, and the certificate authorities that they trust.

From Python 3.13 on, verification is strict by default (VERIFY_X509_STRICT): it refuses authorities without a key usage
extension (RFC 5280). Private authorities often lack it, for example those of Kubernetes clusters, so a context with a
private authority is not strict. Certificates and host names are always verified.

Each function raises OSError if a file is missing or contains no certificate.
"""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

# The folder of the public authorities in the image. build/certificates.py writes it.
AUTHORITIES_OF_THE_IMAGE = Path(sys.prefix, "etc/ssl/certs")


def public_trust() -> ssl.SSLContext:
    """Return a context that trusts the public authorities: those in the image, or those of certifi outside it."""
    if AUTHORITIES_OF_THE_IMAGE.is_dir():
        return ssl.create_default_context(capath=AUTHORITIES_OF_THE_IMAGE)
    import certifi  # noqa: PLC0415 - takes 5 ms, and is not needed in the image

    return ssl.create_default_context(cafile=certifi.where())


def private_trust(cafile: str | Path | None) -> ssl.SSLContext:
    """Return a context that trusts only the authorities in a file; None = those of the operating system."""
    context = ssl.create_default_context(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def add_authorities(context: ssl.SSLContext, cafile: Path) -> None:
    """Make a context also trust the authorities in a file."""
    context.load_verify_locations(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
