"""Tests of requests through an HTTP proxy to an upstream: Headscale, Cloudflare or the Kubernetes API.

Errors must name the proxy's setting, and must not contain the password of the proxy.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle.clients.cloudflare.errors import CLOUDFLARE
from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.kubernetes.api import Cluster
from lifecycle.clients.trust import private_trust
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ApiError, AuthError, ResponseError, TransientError
from lifecycle.domain.proxy import Proxy
from tests.clients import servers
from tests.clients.certificates import PrivateAuthority
from tests.clients.servers import API, StaticApi, all_texts_of, respond, serve_connection
from tests.in_cluster import HEADSCALE_NAMESPACE, HEADSCALE_POD, MAY_EXEC, access_to
from tests.simulators.headscale_cli import Finished
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.proxy import ProxySimulator
from tests.simulators.serve import serve

CREDENTIALS = "me:p@ss/word"
ENCODED_CREDENTIALS = "me:p%40ss%2Fword"
# The password as it is, as it is written in a URL, and with the user name in Base64.
FORMS_OF_THE_PASSWORD = ("p@ss/word", "p%40ss%2Fword", "bWU6cEBzcy93b3Jk")


def send(url: str, proxy: str, **options: Any) -> object:
    return servers.send(url, proxy=Proxy(proxy, "HTTPS_PROXY"), **options)


def failure(url: str, proxy: str, **options: Any) -> ApiError:
    """Return the error of a request, which must name the proxy's setting and reveal no password."""
    error = servers.failure(url, proxy=Proxy(proxy, "HTTPS_PROXY"), **options)
    revealed = all_texts_of(error)
    assert not [password for password in FORMS_OF_THE_PASSWORD if password in revealed]
    assert "HTTPS_PROXY" in str(error)
    return error


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def serve_proxy(stack: ExitStack, url: str, name: str, **settings: Any) -> tuple[ProxySimulator, str]:
    """Serve a proxy that forwards requests for a name to a URL. Return the proxy, and its URL with credentials."""
    proxy = ProxySimulator({name: url.partition("://")[2]}, credentials=CREDENTIALS, **settings)
    return proxy, stack.enter_context(proxy.serve()).replace("http://", f"http://{ENCODED_CREDENTIALS}@")


def proxy_that_sends(stack: ExitStack, raw: bytes) -> str:
    """Return the URL of a proxy that sends these bytes to its first client."""
    return f"http://{ENCODED_CREDENTIALS}@{stack.enter_context(serve_connection(respond(raw, stay_open=True)))}"


# --- Requests ------------------------------------------------------------------------------------------


def test_plain_http_is_forwarded(stack: ExitStack) -> None:
    api = StaticApi()
    proxy, url = serve_proxy(stack, stack.enter_context(serve(api)), "api.example:80")
    assert send("http://api.example", url) == {"ok": True}
    assert proxy.requested == ["api.example:80"]
    # The API does not receive the proxy's credentials.
    assert api.proxy_authorizations == [None]


@pytest.mark.parametrize(
    ("encoded", "credentials"),
    [("me:100%2541", "me:100%41"), ("m%C3%A4:p%C3%A4ss", "mä:päss")],
    ids=["percent-sign", "non-ascii"],
)
def test_credentials_are_decoded_once(stack: ExitStack, encoded: str, credentials: str) -> None:
    server = stack.enter_context(serve(StaticApi())).partition("://")[2]
    proxy = ProxySimulator({"api.example:80": server}, credentials=credentials)
    url = stack.enter_context(proxy.serve()).replace("http://", f"http://{encoded}@")
    assert send("http://api.example", url) == {"ok": True}


def test_https_is_tunnelled_and_verified_end_to_end(stack: ExitStack, tmp_path: Path) -> None:
    authority = PrivateAuthority(tmp_path)
    server = authority.server_context(name="DNS:api.example")
    proxy, url = serve_proxy(stack, stack.enter_context(serve(StaticApi(), tls=server)), "api.example:443")
    assert send("https://api.example", url, trust=private_trust(authority.certificate)) == {"ok": True}
    assert proxy.requested == ["api.example:443"]
    with pytest.raises(TransientError, match=API.ca_setting):
        send("https://api.example", url)


def test_command_in_a_pod_runs_through_the_proxy(stack: ExitStack, tmp_path: Path) -> None:
    """The certificate of the API server is not for the host of its URL, but for the name `kubernetes`."""
    authority = PrivateAuthority(tmp_path)
    kubernetes = KubernetesSimulator()
    kubernetes.add_pod("headscale-0", {"headscale": {"echo": lambda _arguments: Finished(stdout=b"out")}})
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_EXEC)
    server = stack.enter_context(serve(kubernetes, tls=authority.server_context(name="DNS:kubernetes")))
    proxy, url = serve_proxy(stack, server, "10.0.0.1:443")
    access = access_to(
        "https://10.0.0.1",
        kubernetes.token,
        trust=private_trust(authority.certificate),
        proxy=Proxy(url, "HTTPS_PROXY"),
        tls_server_name="kubernetes",
    )
    with access.client:
        cluster = Cluster(access, timeout=timedelta(seconds=10))
        assert cluster.run(HEADSCALE_POD, "headscale", ["echo"]).stdout == b"out"
    assert set(proxy.requested) == {"10.0.0.1:443"}


# --- Errors --------------------------------------------------------------------------------------------

SCHEMES = pytest.mark.parametrize("scheme", ["http", "https"])


def unknown_name(host: str, *_args: Any, **_options: Any) -> list[Any]:
    raise socket.gaierror(socket.EAI_NONAME, f"{host} is unknown")


@SCHEMES
def test_unreachable_proxy_is_named_instead_of_the_upstream(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    unreachable = failure(f"{scheme}://api.example", f"http://{ENCODED_CREDENTIALS}@{address}")
    monkeypatch.setattr(socket, "getaddrinfo", unknown_name)
    unknown = failure(f"{scheme}://api.example", f"http://{ENCODED_CREDENTIALS}@proxy.example:3128")
    for error, reason in ((unreachable, f"http://{address}"), (unknown, "proxy.example is unknown")):
        assert type(error) is TransientError
        assert reason in str(error)
        assert API.url_setting not in str(error)


@pytest.mark.parametrize(
    ("scheme", "accepted_name", "accepted_credentials"),
    [
        pytest.param("http", "api.example:80", "me:wrong", id="http-wrong-credentials"),
        pytest.param("https", "api.example:443", "me:wrong", id="https-wrong-credentials"),
        pytest.param("http", "other.example:80", CREDENTIALS, id="http-other-host"),
        pytest.param("https", "other.example:443", CREDENTIALS, id="https-other-host"),
    ],
)
def test_refusal_by_the_proxy_is_permanent(
    stack: ExitStack, scheme: str, accepted_name: str, accepted_credentials: str
) -> None:
    """A `ResponseError` is not retried, unlike a `TransientError`."""
    proxy, url = serve_proxy(stack, "http://127.0.0.1:1", accepted_name)
    proxy.credentials = accepted_credentials
    error = failure(f"{scheme}://api.example", url)
    assert type(error) is ResponseError
    assert proxy.url in str(error)


def test_refusal_by_the_upstream_does_not_name_the_proxy(stack: ExitStack) -> None:
    _, url = serve_proxy(stack, stack.enter_context(serve(StaticApi(401))), "api.example:80")
    with pytest.raises(AuthError, match="API key"):
        send("http://api.example", url, upstream=HEADSCALE)


@pytest.mark.parametrize("upstream", [HEADSCALE, CLOUDFLARE], ids=["headscale", "cloudflare"])
@pytest.mark.parametrize("status", [401, 403, 407])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param("text/html", "<title>Access denied</title>", id="page"),
        pytest.param("text/plain", "denied", id="text"),
        pytest.param("application/json", '{"error": "denied", "code": 403, "message": "denied"}', id="json"),
    ],
)
def test_refusal_that_does_not_come_from_the_upstream_names_the_proxy(
    stack: ExitStack, upstream: Upstream, status: int, content_type: str, body: str
) -> None:
    raw = f"HTTP/1.1 {status} No\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    error = failure("http://api.example", proxy_that_sends(stack, raw.encode()), upstream=upstream)
    assert type(error) is ResponseError
    assert "denied" in str(error)
    # The credentials for the upstream are not the cause.
    assert not re.search("API key|token|TOKEN", str(error))


@SCHEMES
@pytest.mark.parametrize("status", [502, 503, 504])
def test_outage_behind_the_proxy_is_transient(stack: ExitStack, scheme: str, status: int) -> None:
    proxy = proxy_that_sends(stack, f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    error = failure(f"{scheme}://api.example", proxy)
    assert type(error) is TransientError
    assert str(status) in str(error)


@SCHEMES
@pytest.mark.parametrize("raw", [b"", b"SSH-2.0-OpenSSH_10.0\r\n"], ids=["no-response", "other-protocol"])
def test_malfunctioning_proxy_is_named(stack: ExitStack, scheme: str, raw: bytes) -> None:
    error = failure(f"{scheme}://api.example", proxy_that_sends(stack, raw), timeout_s=0.5)
    assert type(error) is TransientError
