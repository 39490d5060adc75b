"""Test this project's API client for Headscale on real servers, also when a response is lost or comes from a proxy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.headscale.http import HttpTransport
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.clients.http import HttpClient
from lifecycle.clients.json_client import JsonClient
from lifecycle.clients.transport import PooledTransport
from lifecycle.clients.trust import public_trust
from lifecycle.domain.errors import NotFoundError
from lifecycle.domain.model import KeySpec, User
from lifecycle.domain.ownership import choose_user
from lifecycle.runtime.retry import RetryPolicy
from tests.conftest import FakeStop
from tests.real.server import HeadscaleServer
from tests.real.workload import USER


class LosingTransport(PooledTransport):
    """A transport that loses the first response to each of the given requests (method and path)."""

    def __init__(self, *lost: tuple[str, str]) -> None:
        super().__init__(public_trust())
        self._lost = [*lost]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if (request.method, request.url.path) in self._lost:
            self._lost.remove((request.method, request.url.path))
            response.close()
            raise httpx.RemoteProtocolError("the connection was closed")
        return response


class MisleadingTransport(PooledTransport):
    """A transport on which the first four responses come from a proxy, and look like those of Headscale 0.28.

    Four, because the client sends four requests to detect the version of a server that has no version document.
    """

    def __init__(self) -> None:
        super().__init__(public_trust())
        self._remaining_misleading = 4

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self._remaining_misleading:
            return super().handle_request(request)
        self._remaining_misleading -= 1
        # The client reads the body as a stream, which is not possible with httpx.Response(json=...).
        body = httpx.ByteStream(b'{"preAuthKeys": []}')
        return httpx.Response(200, headers={"Content-Type": "application/json"}, stream=body)


@pytest.fixture
def headscale(server: HeadscaleServer) -> Iterator[HeadscaleWriter]:
    """A client that does not receive the response to its first request to create a pre-auth key."""
    with client_of(server, LosingTransport(("POST", "/api/v1/preauthkey"))) as headscale:
        yield headscale


@contextmanager
def client_of(server: HeadscaleServer, transport: httpx.BaseTransport) -> Iterator[HeadscaleWriter]:
    with httpx.Client(transport=transport, base_url=server.url) as http:
        client = JsonClient(
            HttpClient(http, upstream=HEADSCALE, timeout=timedelta(seconds=10)),
            read_token=lambda: server.api_key,
        )
        yield HeadscaleWriter(HttpTransport(client), RetryPolicy(timedelta(minutes=1), FakeStop()))


def configured_user(headscale: HeadscaleWriter) -> User:
    return choose_user(headscale.users(), USER)


@pytest.mark.parametrize("tags", [frozenset[str](), frozenset({"tag:web"})], ids=["no tags", "tags"])
def test_key_with_lost_response_is_expired_and_replaced(headscale: HeadscaleWriter, tags: frozenset[str]) -> None:
    user = configured_user(headscale)
    before = {key.id for key in headscale.pre_auth_keys(user)}
    spec = KeySpec(user, timedelta(hours=1), tags=tags)
    created = headscale.create_pre_auth_key(spec, now=datetime.now(UTC))
    lost, replacement = sorted(
        (key for key in headscale.pre_auth_keys(user) if key.id not in before), key=lambda key: int(key.id)
    )
    assert replacement.id == created.id
    assert (lost.is_usable(datetime.now(UTC)), replacement.is_usable(datetime.now(UTC))) == (False, True)
    assert (lost.tags, replacement.tags) == (tags, tags)


def test_key_can_be_expired_twice(headscale: HeadscaleWriter) -> None:
    user = configured_user(headscale)
    created = headscale.create_pre_auth_key(KeySpec(user, timedelta(hours=1)), now=datetime.now(UTC))
    for _ in range(2):
        headscale.expire_pre_auth_key(created, user)
    (listed,) = (key for key in headscale.pre_auth_keys(user) if key.id == created.id)
    assert not listed.is_usable(datetime.now(UTC))


def test_missing_node_is_not_found(headscale: HeadscaleWriter) -> None:
    """Releases of Headscale return different responses for an unknown node."""
    with pytest.raises(NotFoundError):
        headscale.node("424242")


def test_wrongly_detected_version_is_detected_again(server: HeadscaleServer) -> None:
    """The client detects the version again after Headscale has rejected a request as malformed."""
    with client_of(server, MisleadingTransport()) as headscale:
        assert headscale.version() == "0.28 or newer"
        user = configured_user(headscale)
        created = headscale.create_pre_auth_key(KeySpec(user, timedelta(hours=1)), now=datetime.now(UTC))
    with client_of(server, MisleadingTransport()) as headscale:
        assert headscale.version() == "0.28 or newer"
        assert created.id in {key.id for key in headscale.pre_auth_keys(user)}
