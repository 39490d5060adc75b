"""Certificate authorities, as TLS contexts.

Python 3.13 verifies strictly by default, which refuses authorities without a key usage extension (RFC 5280).
Private authorities often lack it, those of Kubernetes clusters included. For contexts with a private authority only
this strictness is dropped: certificates and host names are always verified.

Each function raises OSError if a file or folder is missing, or contains no certificate.
"""

from __future__ import annotations

import ssl
from os import PathLike

import certifi

Path = str | PathLike[str]


def public_trust(*, cafile: Path | None = None, capath: Path | None = None) -> ssl.SSLContext:
    """Return a context for public authorities: the usual ones, or those given."""
    if cafile is None and capath is None:
        cafile = certifi.where()
    return ssl.create_default_context(cafile=cafile, capath=capath)


def private_trust(cafile: Path | None) -> ssl.SSLContext:
    """Return a context for the authorities in a file alone."""
    context = ssl.create_default_context(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def add_authorities(context: ssl.SSLContext, cafile: Path) -> None:
    """Let a context trust the authorities in a file as well."""
    context.load_verify_locations(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
