"""Send one HTTP request that is described on standard input and print the response; runs in a network namespace.

The input is a JSON object with `url` and optionally: `source`, the local address to bind; `to`, the address to connect
to instead of resolving the host name; `headers`; `trust`, a file with a CA certificate; `version`, the highest TLS
version to offer; `echo`, data to send after a protocol upgrade; `method` and `body`.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 20.0


def tls_context(request: dict[str, Any]) -> ssl.SSLContext:
    """Return the TLS settings for a request."""
    context = ssl.create_default_context(cafile=request.get("trust"))
    if "trust" not in request:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if version := request.get("version"):
        # Otherwise this client refuses old versions itself, and the server's behaviour is not tested.
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = getattr(ssl.TLSVersion, version)
    return context


def send(request: dict[str, Any]) -> dict[str, Any]:
    """Send the request and return the parsed response."""
    url = urlsplit(request["url"])
    secure = url.scheme == "https"
    port = url.port or (443 if secure else 80)
    source = (request["source"], 0) if "source" in request else None
    result: dict[str, Any] = {}
    connection = http.client.HTTPConnection(url.hostname or "", port, timeout=TIMEOUT_S)
    connected = socket.create_connection((request.get("to", url.hostname), port), TIMEOUT_S, source)
    if secure:
        wrapped = tls_context(request).wrap_socket(connected, server_hostname=url.hostname)
        result["tls"] = wrapped.version()
        result["certificate"] = (wrapped.getpeercert(binary_form=True) or b"").hex()
        connected = wrapped
    connection.sock = connected
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    connection.request(
        request.get("method", "GET"),
        path,
        request.get("body"),
        headers={"Host": url.netloc} | request.get("headers", {}),
    )
    response = connection.getresponse()
    result |= {"status": response.status, "headers": dict(response.getheaders())}
    if "echo" in request and response.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
        connected.sendall(request["echo"].encode())
        result["echo"] = connected.recv(len(request["echo"])).decode()
    else:
        result["body"] = response.read().decode()
    return result


if __name__ == "__main__":
    try:
        outcome = send(json.load(sys.stdin))
    except (OSError, http.client.HTTPException) as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    json.dump(outcome, sys.stdout)
