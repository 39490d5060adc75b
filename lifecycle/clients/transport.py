"""HTTP clients on our own connections: one time budget, an explicit proxy, nothing from the environment."""

from __future__ import annotations

import ssl

import httpcore
import httpx

import lifecycle
from lifecycle.clients.network import Network
from lifecycle.domain.proxy import Proxy

# Idle connections are given up before the server closes them.
# Source: Headscale's HTTP server closes an idle connection after its read time-out of 30 s.
_KEEPALIVE_S = 20.0


def open_http(
    base_url: str, *, trust: ssl.SSLContext, proxy: Proxy | None = None, tls_server_name: str | None = None
) -> httpx.Client:
    """Return a client of one upstream; no connection is opened yet.

    Args:
        proxy: used for every request, if given.
        tls_server_name: the name that the upstream's certificate has to be for; None = the host of the address.
    """
    return httpx.Client(
        base_url=base_url,
        transport=Transport(trust, proxy=proxy, tls_server_name=tls_server_name),
        trust_env=False,
        headers={"User-Agent": f"tailscale-lifecycle/{lifecycle.__version__}"},
    )


class Transport(httpx.HTTPTransport):
    """httpx's transport over our connections. Only its pool is ours, since httpx does not let a client choose it."""

    def __init__(
        self, trust: ssl.SSLContext, *, proxy: Proxy | None = None, tls_server_name: str | None = None
    ) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=trust,
            proxy=_core_proxy(proxy) if proxy else None,
            keepalive_expiry=_KEEPALIVE_S,
            network_backend=Network(tls_server_name=tls_server_name),
        )


def _core_proxy(proxy: Proxy) -> httpcore.Proxy:
    """Return a proxy as httpcore takes it; httpx decodes its credentials."""
    parsed = httpx.Proxy(proxy.url)
    url = parsed.url
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/")
    return httpcore.Proxy(target, auth=parsed.raw_auth)
