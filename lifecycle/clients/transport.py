"""Open httpx clients that use `network.Network` and the given proxy, and that ignore environment variables."""

from __future__ import annotations

import ssl

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
        trust_env=False,
        timeout=None,  # noqa: S113 - the time budget limits each request
        headers={"User-Agent": f"tailscale-lifecycle/{lifecycle.__version__}"},
    )


class PooledTransport(httpx.HTTPTransport):
    """Sends the requests of an httpx client over a pool of connections that `Network` opens."""

    def __init__(
        self, trust: ssl.SSLContext, *, proxy: Proxy | None = None, tls_server_name: str | None = None
    ) -> None:
        # The constructor of the base class is not called, because the pool that it creates cannot use another network
        # backend. It would also import certifi, which takes 5 ms.
        self._pool = httpcore.ConnectionPool(
            ssl_context=trust,
            proxy=_core_proxy(proxy) if proxy else None,
            keepalive_expiry=_KEEPALIVE_S,
            network_backend=Network(tls_server_name=tls_server_name),
        )


def _core_proxy(proxy: Proxy) -> httpcore.Proxy:
    """Return a proxy for httpcore. httpx parses the URL, and decodes the credentials in it."""
    parsed = httpx.Proxy(proxy.url)
    url = parsed.url
    core_url = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return httpcore.Proxy(core_url, auth=parsed.raw_auth)
