"""Open httpx clients that use `network.Network` and the given proxy, and that ignore environment variables."""

from __future__ import annotations

import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpcore
import httpx

import lifecycle
from lifecycle.clients.network import Network
from lifecycle.domain.proxy import Proxy

# Idle connections are closed after this time, before the server closes them.
# Source: Headscale's HTTP server closes an idle connection after its read time-out of 30 s.
_KEEPALIVE_S = 20.0


def open_http(
    base_url: str, *, trust: ssl.SSLContext, proxy: Proxy | None = None, tls_server_name: str | None = None
) -> httpx.Client:
    """Return a client of one server; no connection is opened yet.

    Args:
        trust: the certificate authorities that are trusted.
        tls_server_name: the host name that the server's certificate has to contain; None = the host of the URL.
    """
    return httpx.Client(
        base_url=base_url,
        transport=PooledTransport(trust, proxy=proxy, tls_server_name=tls_server_name),
        # Cookies, for example of an ingress, are ignored. httpx cannot send those that are not ASCII.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        trust_env=False,
        timeout=None,  # noqa: S113 - http.py limits the time of each request
        headers={"User-Agent": f"tailscale-lifecycle/{lifecycle.__version__}"},
    )


class PooledTransport(httpx.HTTPTransport):
    """The transport of httpx, with a pool of connections that `Network` opens."""

    def __init__(
        self, trust: ssl.SSLContext, *, proxy: Proxy | None = None, tls_server_name: str | None = None
    ) -> None:
        # `HTTPTransport` has no argument for the network backend, so its pool is created here.
        self._pool = httpcore.ConnectionPool(
            ssl_context=trust,
            proxy=_core_proxy(proxy) if proxy else None,
            keepalive_expiry=_KEEPALIVE_S,
            network_backend=Network(tls_server_name=tls_server_name),
        )


def _core_proxy(proxy: Proxy) -> httpcore.Proxy:
    """Return a proxy for httpcore. httpx parses the URL, and decodes the credentials in it."""
    parsed = httpx.Proxy(proxy.url)
    return httpcore.Proxy(str(parsed.url), auth=parsed.raw_auth)
