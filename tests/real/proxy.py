"""Run nginx as a TLS proxy for a real Headscale. The proxy can also respond with an error in place of Headscale."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Final, Self

import httpx

from tests.clients.certificates import PrivateAuthority
from tests.real.programs import TIMEOUT_S, BackgroundProcess, eventually, free_ports

NGINX_START: Final = """
worker_processes 1;
error_log stderr warn;
pid nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        "" close;
    }}
    proxy_http_version 1.1;
    proxy_set_header Host $host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_buffering off;
    proxy_read_timeout 1h;
"""
"""The start of an nginx configuration, up to the first `server` block.

The text is a format string, so braces are doubled.
"""

_CONFIGURATION: Final = (
    NGINX_START
    + """
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.crt;
        ssl_certificate_key {folder}/server.key;
        location / {{
            {response}
        }}
    }}
}}
"""
)

FAULTS: Final = {
    "page with status 404": 'default_type text/html; return 404 "<h1>Not Found</h1>";',
    "status 502": "return 502;",
    "page with status 200": 'default_type text/html; return 200 "<html><body>Welcome to nginx</body></html>";',
    "empty object": 'default_type application/json; return 200 "{}";',
    "redirect to a login page": "return 302 https://login.example.com/?next=$uri;",
    "page with status 401": 'default_type text/html; return 401 "<h1>Authorization Required</h1>";',
}
"""nginx directives for the responses of a proxy that does not reach Headscale, or that requires a login."""


def start_nginx(folder: Path, configuration: str) -> BackgroundProcess:
    """Run nginx with this configuration in a folder."""
    (folder / "nginx.conf").write_text(configuration)
    return BackgroundProcess(
        ["nginx", "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"],
        log=folder / "nginx.log",
        environment={"PATH": os.environ["PATH"]},
        folder=folder,
    )


class TlsProxy:
    """A proxy with a certificate of a private authority. nginx starts with `forward_to` or `respond_with`.

    Args:
        folder: an existing folder for its configuration and log.

    Attributes:
        url: the URL of the proxy.
        certificate: the certificate of the private authority.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        authority = PrivateAuthority(folder)
        # This writes server.crt and server.key.
        authority.server_context(name="DNS:localhost")
        self.certificate = authority.certificate
        (self._port,) = free_ports(1)
        self.url = f"https://localhost:{self._port}"
        self._process: BackgroundProcess | None = None

    def __enter__(self) -> Self:
        """Return the proxy."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop nginx."""
        self._stop()

    def forward_to(self, upstream: str) -> None:
        """Forward every request to a server."""
        self._serve(f"proxy_pass {upstream};")

    def respond_with(self, fault: str) -> None:
        """Respond to every request with one of `FAULTS`."""
        self._serve(FAULTS[fault])

    def _serve(self, response: str) -> None:
        """Restart nginx with a configuration. This closes the connections of clients."""
        self._stop()
        text = _CONFIGURATION.format(port=self._port, folder=self._folder, response=response)
        process = self._process = start_nginx(self._folder, text)
        eventually(self._responds, "nginx to respond", details=process.output)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def _responds(self) -> bool:
        context = ssl.create_default_context(cafile=self.certificate)
        try:
            httpx.get(f"{self.url}/health", verify=context, timeout=TIMEOUT_S)
        except httpx.TransportError:
            return False
        return True
