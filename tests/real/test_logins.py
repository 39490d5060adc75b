"""Compare which logins a real and a simulated Headscale accept from a client that may have logged in before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.real.pair import ServerPair
from tests.real.programs import Release
from tests.real.workload import OTHER_USER, USER
from tests.simulators.headscale import RegistrationRefusedError

HOSTNAME = "app.example.com"
TAG = "tag:web"


@dataclass(frozen=True, slots=True)
class Key:
    """The secrets of a pre-auth key on both servers."""

    real: str
    simulated: str


@dataclass(frozen=True, slots=True)
class Login:
    """The result of a login, and the nodes of the server after it.

    Attributes:
        accepted: the server accepted the login.
        nodes: the id, address, owner and key id of each node, as returned by the API.
        error: the message that the real client received.
    """

    accepted: bool
    nodes: list[tuple[str, str, str | None, str | None]]
    error: str | None = None


def _nodes(response: httpx.Response) -> list[tuple[str, str, str | None, str | None]]:
    nodes = response.raise_for_status().json()["nodes"]
    return [
        (
            node["id"],
            node["ipAddresses"][0],
            (node["user"] or {}).get("name"),
            (node["preAuthKey"] or {}).get("id"),
        )
        for node in sorted(nodes, key=lambda node: int(node["id"]))
    ]


class LoginPair(ServerPair):
    """A pair of servers, and a client that logs in on both.

    Args:
        key_kind: whether the keys have a user, tags or both, one of KEY_KINDS.
    """

    def __init__(self, release: Release, key_kind: str, folder: Path, stack: ExitStack) -> None:
        super().__init__(release, folder, stack)
        self.key_kind = key_kind
        self.client = self.start_client(HOSTNAME)

    def key(self, user: str = USER) -> Key:
        """Create a single-use key on both servers. Keys of the kind `tags` have no user."""
        key_user = None if self.key_kind == "tags" else user
        tags = () if self.key_kind == "user" else (TAG,)
        real = self.server.create_key(key_user, *(f"--tags={tag}" for tag in tags))
        return Key(real, self.simulator.create_key(key_user, tags=tags).key)

    def expire(self, key: Key) -> None:
        """Expire a key on both servers."""
        self.server.expire_key(key.real)
        self.simulator.expire_key(self._simulated_id(key))

    def delete(self, key: Key) -> None:
        """Delete a key on both servers."""
        self.server.delete_key(key.real)
        self.simulator.delete_key(self._simulated_id(key))

    def delete_nodes(self) -> None:
        """Delete all nodes on both servers, and restart the client, because not every release notifies it."""
        for node in self.server.nodes():
            self.server.delete_node(node["id"])
        for simulated_node in self.simulator.nodes:
            self.simulator.delete_node(simulated_node.id)
        self.client.restart()

    def expire_nodes(self) -> None:
        """Expire all nodes on both servers, and restart the client."""
        for node in self.server.nodes():
            self.server.expire_node(node["id"])
        for simulated_node in self.simulator.nodes:
            self.simulator.expire_node(simulated_node.id)
        self.client.restart()

    def restart_servers(self) -> None:
        """Restart both servers and the client, which logs in with its existing state."""
        self.server.restart()
        self.simulator.restart()
        self.client.restart_and_wait_for_login()

    def login(self, key: Key) -> tuple[Login, Login]:
        """Log in to both servers with a key, and return both results."""
        key_file = self.folder / "authkey"
        key_file.write_text(key.real)
        refused = self.client.login_error(key_file)
        real = Login(refused is None, _nodes(self.server.request("GET", "/api/v1/node")), refused)
        try:
            node = self.simulator.register(
                key=key.simulated, hostname=HOSTNAME, machine_key="mkey:" + "1" * 64, node_key="nodekey:" + "1" * 64
            )
            # A real client whose node is still expired logs in a second time with the same key, which the server then
            # refuses, because the key is used.
            accepted = node.expires_at is None
        except RegistrationRefusedError:
            accepted = False
        headers = {"Authorization": f"Bearer {self.simulator.api_key}"}
        return real, Login(accepted, _nodes(self.simulated_http.get("/api/v1/node", headers=headers)))

    def _simulated_id(self, key: Key) -> int:
        return next(created.id for created in self.simulator.keys if created.key == key.simulated)


KEY_KINDS = ("user", "user and tags", "tags")


@pytest.fixture(params=KEY_KINDS)
def servers(request: pytest.FixtureRequest, release: Release, temporary_folder: Path) -> Iterator[LoginPair]:
    """A client with both servers, for each kind of keys. Keys without a user exist from Headscale 0.28 on."""
    if request.param == "tags" and not release.has_keys_without_user:
        pytest.skip(f"Headscale {release.name} has no keys without a user")
    with ExitStack() as stack:
        yield LoginPair(release, request.param, temporary_folder, stack)


@pytest.mark.every_client
def test_real_and_simulated_server_accept_the_same_logins(servers: LoginPair, release: Release) -> None:
    """After each login, both servers have the same nodes."""
    different: list[str] = []

    def check(key: Key, situation: str, *, result_is_random: bool = False) -> None:
        real, simulated = servers.login(key)
        if real.nodes != simulated.nodes or (real.accepted != simulated.accepted and not result_is_random):
            different.append(f"{situation}\n  real      {real}\n  simulated {simulated}")
        if not real.accepted:
            # After a refused key, the client cannot log in without a restart.
            servers.client.restart()

    first = servers.key()
    check(first, "new key, new client")
    check(first, "same key, used")
    second = servers.key()
    check(second, "second new key")
    servers.expire(first)
    check(first, "first key, used and expired")
    servers.restart_servers()
    check(second, "second key, used, after a restart")
    # Older releases cannot delete a key.
    if release.identifies_keys_by_id:
        servers.delete(first)
        check(first, "deleted key")
    servers.expire_nodes()
    check(second, "used key, expired node")
    third = servers.key()
    # The client has three nodes with the same node key, and Headscale 0.28 selects one of them at random.
    has_several_nodes = servers.key_kind == "tags" and release.name.startswith("0.28.")
    check(third, "new key, expired node", result_is_random=has_several_nodes)
    servers.delete_nodes()
    check(third, "used key, deleted node")
    fourth = servers.key()
    servers.expire(fourth)
    check(fourth, "expired key, deleted node")
    fifth = servers.key()
    check(fifth, "new key, deleted node")
    check(servers.key(OTHER_USER), "key of another user")
    servers.restart_servers()
    check(fifth, "previous key, after a restart")
    if different:
        pytest.fail("\n".join(different), pytrace=False)
