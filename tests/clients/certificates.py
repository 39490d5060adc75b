"""Create a private certificate authority, and certificates of servers on loopback."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(*arguments: str | Path) -> None:
    """Run the program `openssl`."""
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class PrivateAuthority:
    """A private certificate authority.

    Args:
        folder: an existing folder for the keys and certificates.
        has_key_usage: whether the authority's certificate has the key usage extension. RFC 5280 requires it.
    """

    def __init__(self, folder: Path, *, has_key_usage: bool = True) -> None:
        self._folder = folder
        self.certificate = folder / "ca.crt"
        usage = ("-addext", "keyUsage=critical,keyCertSign") if has_key_usage else ()
        openssl(
            *("req", "-x509", *_KEY, "-days", "2", "-subj", "/CN=private authority", *usage),
            *("-keyout", folder / "ca.key", "-out", self.certificate),
        )

    def server_context(self, *, name: str = "IP:127.0.0.1", days: int = 2) -> ssl.SSLContext:
        """Issue a certificate for a server, and return the TLS context of the server.

        Args:
            name: the host name or address that the certificate is for, after its type: `DNS:` or `IP:`.
            days: how long the certificate is valid; with a negative number, it has already expired.
        """
        key, request, certificate = (self._folder / f"server.{suffix}" for suffix in ("key", "csr", "crt"))
        openssl("req", *_KEY, "-subj", "/CN=server", "-keyout", key, "-out", request)
        extensions = self._folder / "extensions"
        # Clients that verify strictly, as Python 3.13 does by default, require the two key identifiers.
        extensions.write_text(f"subjectAltName={name}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._folder / "ca.key"),
            *("-days", str(days), "-extfile", extensions, "-out", certificate),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context
