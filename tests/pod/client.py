"""A program that sends one HTTP request and prints the response as JSON. Tests run it in a network namespace.

It reads the request from standard input, as a JSON object. Only `url` is required:

- `source`: the local address to bind;
- `to`: the address to connect to, instead of resolving the host name;
- `trust`: a file with a CA certificate; without it, certificates are not verified;
- `version`: the highest TLS version to offer;
- `echo`: data to send after a protocol upgrade;
- `method`, `body` and `headers`.
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
        # By default, OpenSSL does not offer old TLS versions, and the server could not refuse them.
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
    stream = socket.create_connection((request.get("to", url.hostname), port), TIMEOUT_S, source)
    if secure:
        tls_stream = tls_context(request).wrap_socket(stream, server_hostname=url.hostname)
        result["tls"] = tls_stream.version()
        result["certificate"] = (tls_stream.getpeercert(binary_form=True) or b"").hex()
        stream = tls_stream
    connection.sock = stream
    connection.request(
        request.get("method", "GET"),
        (url.path or "/") + (f"?{url.query}" if url.query else ""),
        request.get("body"),
        headers={"Host": url.netloc} | request.get("headers", {}),
    )
    response = connection.getresponse()
    result |= {"status": response.status, "headers": dict(response.getheaders())}
    if "echo" in request and response.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
        stream.sendall(request["echo"].encode())
        result["echo"] = stream.recv(len(request["echo"])).decode()
    else:
        result["body"] = response.read().decode()
    return result


if __name__ == "__main__":
    try:
        outcome = send(json.load(sys.stdin))
    except (OSError, http.client.HTTPException) as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    json.dump(outcome, sys.stdout)
