"""Test how the client of Headscale's REST API creates and expires pre-auth keys on real servers."""

from __future__ import annotations

from collections.abc import Iterator
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
from lifecycle.domain.model import KeySpec, User
from lifecycle.domain.ownership import choose_user
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.retry import RetryPolicy
from tests.conftest import FakeStop
from tests.real.server import HeadscaleServer
from tests.real.workload import USER

HOUR = timedelta(hours=1)


class ConnectionsThatLoseTheFirstKey(PooledTransport):
    """Connections to a server. The response to the first request that creates a pre-auth key is lost."""

    def __init__(self) -> None:
        super().__init__(public_trust())
        self._has_lost_a_key = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if not self._has_lost_a_key and (request.method, request.url.path) == ("POST", "/api/v1/preauthkey"):
            self._has_lost_a_key = True
            response.close()
            raise httpx.RemoteProtocolError("the connection was closed")
        return response


@pytest.fixture
def client(server: HeadscaleServer) -> Iterator[HeadscaleWriter]:
    """A client that does not receive the response to its first request for a pre-auth key, and retries the request."""
    with httpx.Client(transport=ConnectionsThatLoseTheFirstKey(), base_url=server.url) as http:
        json_client = JsonClient(
            HttpClient(http, upstream=HEADSCALE, timeout=timedelta(seconds=10)),
            read_token=lambda: server.api_key,
        )
        yield HeadscaleWriter(HttpTransport(json_client), RetryPolicy(timedelta(minutes=1), FakeStop()))


@pytest.fixture
def user(client: HeadscaleWriter) -> User:
    return choose_user(client.users(), USER)


@pytest.mark.parametrize("tags", [frozenset[str](), frozenset({"tag:web"})], ids=["no tags", "tags"])
def test_lost_key_is_expired_and_replaced(client: HeadscaleWriter, user: User, tags: frozenset[str]) -> None:
    before = {key.id for key in client.pre_auth_keys(user)}
    created = client.create_pre_auth_key(KeySpec(user, HOUR, tags=tags), now=utc_now)
    new_keys = [key for key in client.pre_auth_keys(user) if key.id not in before]
    lost, replacement = sorted(new_keys, key=lambda key: int(key.id))
    assert replacement.id == created.id
    assert (lost.is_usable(datetime.now(UTC)), replacement.is_usable(datetime.now(UTC))) == (False, True)
    assert (lost.tags, replacement.tags) == (tags, tags)


def test_key_can_be_expired_twice(client: HeadscaleWriter, user: User) -> None:
    created = client.create_pre_auth_key(KeySpec(user, HOUR), now=utc_now)
    for _ in range(2):
        client.expire_pre_auth_key(created, user)
    (listed,) = (key for key in client.pre_auth_keys(user) if key.id == created.id)
    assert not listed.is_usable(datetime.now(UTC))
