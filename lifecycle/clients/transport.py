"""Open httpx clients that use `network.Network` and the given proxy, and that ignore environment variables."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
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


class PooledTransport(httpx.BaseTransport):
    """Sends the requests of an httpx client over a pool of connections that `Network` opens."""

    def __init__(
        self, trust: ssl.SSLContext, *, proxy: Proxy | None = None, tls_server_name: str | None = None
    ) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=trust,
            proxy=_core_proxy(proxy) if proxy else None,
            keepalive_expiry=_KEEPALIVE_S,
            network_backend=Network(tls_server_name=tls_server_name),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its response before the body has arrived."""
        with httpx_errors():
            response = self._pool.handle_request(
                httpcore.Request(
                    request.method,
                    _core_url(request.url),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response), extensions=response.extensions
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    """The body of a response, as it arrives."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with httpx_errors():
            yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


@contextmanager
def httpx_errors() -> Iterator[None]:
    """Raise each exception of httpcore as the exception of httpx that has the same name."""
    try:
        yield
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    ) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _core_proxy(proxy: Proxy) -> httpcore.Proxy:
    """Return a proxy for httpcore. httpx parses the URL, and decodes the credentials in it."""
    parsed = httpx.Proxy(proxy.url)
    return httpcore.Proxy(_core_url(parsed.url), auth=parsed.raw_auth)
