"""Certificate authorities, as TLS contexts.

Python 3.13 verifies strictly by default, which refuses authorities without a key usage extension (RFC 5280).
Private authorities often lack it, those of Kubernetes clusters included. For contexts with a private authority only
this strictness is dropped: certificates and host names are always verified.

Each function raises OSError if a file or folder is missing, or contains no certificate.
"""

from __future__ import annotations

import ssl
import sys
from os import PathLike
from pathlib import Path

AnyPath = str | PathLike[str]

BUILT_IN = Path(sys.prefix, "etc/ssl/certs")
"""The public authorities, which build/certificates.py writes for the image."""


def public_trust(*, cafile: AnyPath | None = None, capath: AnyPath | None = None) -> ssl.SSLContext:
    """Return a context for public authorities: the usual ones, or those given."""
    if cafile is None and capath is None:
        if BUILT_IN.is_dir():
            capath = BUILT_IN
        else:
            import certifi  # noqa: PLC0415 - takes 5 ms, and is not needed in the image

            cafile = certifi.where()
    return ssl.create_default_context(cafile=cafile, capath=capath)


def private_trust(cafile: AnyPath | None) -> ssl.SSLContext:
    """Return a context for the authorities in a file alone."""
    context = ssl.create_default_context(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def add_authorities(context: ssl.SSLContext, cafile: AnyPath) -> None:
    """Let a context trust the authorities in a file as well."""
    context.load_verify_locations(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
