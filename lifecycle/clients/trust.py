"""TLS contexts that trust the given certificate authorities.

From Python 3.13 on, verification is strict by default (VERIFY_X509_STRICT): it refuses authorities without a key usage
extension (RFC 5280). Private authorities often lack it, for example those of Kubernetes clusters, so a context with a
private authority is not strict. Certificates and host names are always verified.

Each function raises OSError if a file or folder is missing, or contains no certificate.
"""

from __future__ import annotations

import ssl
import sys
from os import PathLike
from pathlib import Path

AnyPath = str | PathLike[str]

BUILT_IN = Path(sys.prefix, "etc/ssl/certs")
"""The public authorities in the image, which build/certificates.py writes."""


def public_trust(*, cafile: AnyPath | None = None, capath: AnyPath | None = None) -> ssl.SSLContext:
    """Return a context that trusts the given authorities.

    Without arguments, it trusts the public authorities: those in the image, or outside of the image those of certifi.
    """
    if cafile is None and capath is None:
        if BUILT_IN.is_dir():
            capath = BUILT_IN
        else:
            import certifi  # noqa: PLC0415 - takes 5 ms, and is not needed in the image

            cafile = certifi.where()
    return ssl.create_default_context(cafile=cafile, capath=capath)


def private_trust(cafile: AnyPath | None) -> ssl.SSLContext:
    """Return a context that trusts only the authorities in a file."""
    context = ssl.create_default_context(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def add_authorities(context: ssl.SSLContext, cafile: AnyPath) -> None:
    """Make a context also trust the authorities in a file."""
    context.load_verify_locations(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
