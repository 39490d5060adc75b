"""Ask for one page, as told on standard input, and print what came back; runs in a network namespace by itself.

Asked for is a JSON object: `url`; optionally `source`, the address to ask from; `to`, the address to ask at whatever
the URL's name; `headers`; `trust`, a file with a certificate authority; `version`, the newest TLS version to offer;
`echo`, what to send when the connection was upgraded; `method` and `body`, for another request than a GET.
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


def tls(asked: dict[str, Any]) -> ssl.SSLContext:
    """What to offer and whom to trust."""
    context = ssl.create_default_context(cafile=asked.get("trust"))
    if "trust" not in asked:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if version := asked.get("version"):
        # Else this side refuses, and nothing is learnt of the other.
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = getattr(ssl.TLSVersion, version)
    return context


def ask(asked: dict[str, Any]) -> dict[str, Any]:
    """Send the request and take the answer apart."""
    url = urlsplit(asked["url"])
    secure = url.scheme == "https"
    port = url.port or (443 if secure else 80)
    source = (asked["source"], 0) if "source" in asked else None
    answer: dict[str, Any] = {}
    connection = http.client.HTTPConnection(url.hostname or "", port, timeout=TIMEOUT_S)
    connected = socket.create_connection((asked.get("to", url.hostname), port), TIMEOUT_S, source)
    if secure:
        wrapped = tls(asked).wrap_socket(connected, server_hostname=url.hostname)
        answer["tls"] = wrapped.version()
        answer["certificate"] = (wrapped.getpeercert(binary_form=True) or b"").hex()
        connected = wrapped
    connection.sock = connected
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    connection.request(
        asked.get("method", "GET"), path, asked.get("body"), headers={"Host": url.netloc} | asked.get("headers", {})
    )
    response = connection.getresponse()
    answer |= {"status": response.status, "headers": dict(response.getheaders())}
    if "echo" in asked and response.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
        connected.sendall(asked["echo"].encode())
        answer["echo"] = connected.recv(len(asked["echo"])).decode()
    else:
        answer["body"] = response.read().decode()
    return answer


if __name__ == "__main__":
    try:
        found = ask(json.load(sys.stdin))
    except (OSError, http.client.HTTPException) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    json.dump(found, sys.stdout)
