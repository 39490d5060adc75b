"""Compare which logins a real and a simulated Headscale accept from a client with existing state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.real.programs import Release
from tests.real.server import HeadscaleServer
from tests.real.tailscale_client import TailscaleClient
from tests.real.workload import OTHER_USER, USER
from tests.simulators.headscale import HeadscaleSimulator, RegistrationRefusedError

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
        error: the message that the client received.
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


class ServerPair:
    """A real server and a simulator, on which the same client logs in.

    Args:
        owner: the owner of the keys, one of OWNERS.
    """

    def __init__(self, release: Release, owner: str, folder: Path, stack: ExitStack) -> None:
        self.owner = owner
        self._folder = folder
        self._server = stack.enter_context(HeadscaleServer(release, folder))
        self._simulator = HeadscaleSimulator(release.simulator_version)
        self._http = stack.enter_context(
            httpx.Client(
                transport=httpx.WSGITransport(app=self._simulator),
                base_url="http://headscale.test",
                headers={"Authorization": f"Bearer {self._simulator.api_key}"},
            )
        )
        for user in (USER, OTHER_USER):
            self._server.create_user(user)
            self._simulator.add_user(user)
        self._client = TailscaleClient(release, folder / "ts", hostname=HOSTNAME, url=self._server.url)
        stack.callback(self._client.stop)

    def key(self, user: str = USER) -> Key:
        """Create a single-use key on both servers. With the owner `tags`, it has no user."""
        owner = None if self.owner == "tags" else user
        tags = () if self.owner == "user" else (TAG,)
        real = self._server.create_key(owner, *(f"--tags={tag}" for tag in tags))
        return Key(real, self._simulator.create_key(owner, tags=tags).key)

    def expire(self, key: Key) -> None:
        """Expire a key on both servers."""
        self._server.expire_key(key.real)
        self._simulator.expire_key(self._simulated_id(key))

    def delete(self, key: Key) -> None:
        """Delete a key on both servers."""
        self._server.delete_key(key.real)
        self._simulator.delete_key(self._simulated_id(key))

    def delete_nodes(self) -> None:
        """Delete all nodes on both servers, and restart the client, which is not notified."""
        for node in self._server.nodes():
            self._server.delete_node(node["id"])
        for simulated_node in self._simulator.nodes:
            self._simulator.delete_node(simulated_node.id)
        self._client.restart()

    def expire_nodes(self) -> None:
        """Expire all nodes on both servers, and restart the client."""
        for node in self._server.nodes():
            self._server.request("POST", f"/api/v1/node/{node['id']}/expire").raise_for_status()
        for simulated_node in self._simulator.nodes:
            self._simulator.expire_node(simulated_node.id)
        self._client.restart()

    def restart_servers(self) -> None:
        """Restart both servers and the client, which logs in with its existing state."""
        self._server.restart()
        self._simulator.restart()
        self._client.restart_and_wait_for_login()

    def login(self, key: Key) -> tuple[Login, Login]:
        """Log in to both servers with a key, and return both results."""
        key_file = self._folder / "authkey"
        key_file.write_text(key.real)
        refused = self._client.login_error(key_file)
        real = Login(refused is None, _nodes(self._server.request("GET", "/api/v1/node")), refused)
        try:
            node = self._simulator.register(
                key=key.simulated, hostname=HOSTNAME, machine_key="mkey:" + "1" * 64, node_key="nodekey:" + "1" * 64
            )
            # If the node is still expired, a real client logs in again with the key. The server then refuses the key,
            # because it is already used.
            accepted = node.expires_at is None
        except RegistrationRefusedError:
            accepted = False
        return real, Login(accepted, _nodes(self._http.get("/api/v1/node")))

    def restart_client(self) -> None:
        """Restart the client with its state. After a refused key, the client cannot log in without a restart."""
        self._client.restart()

    def _simulated_id(self, key: Key) -> int:
        return next(created.id for created in self._simulator.keys if created.key == key.simulated)


OWNERS = ("user", "user and tags", "tags")


@pytest.fixture(params=OWNERS)
def servers(request: pytest.FixtureRequest, release: Release, temporary_folder: Path) -> Iterator[ServerPair]:
    """A client with both servers, for each owner of the keys. Keys without a user exist from Headscale 0.28 on."""
    if request.param == "tags" and not release.has_keys_without_user:
        pytest.skip(f"Headscale {release.name} has no keys without a user")
    with ExitStack() as stack:
        yield ServerPair(release, request.param, temporary_folder, stack)


@pytest.mark.every_client
def test_real_and_simulated_server_accept_the_same_logins(servers: ServerPair, release: Release) -> None:
    """After each login, both servers have the same nodes."""
    different: list[str] = []

    def check(key: Key, situation: str, *, result_is_random: bool = False) -> None:
        real, simulated = servers.login(key)
        if real.nodes != simulated.nodes or (real.accepted != simulated.accepted and not result_is_random):
            different.append(f"{situation}\n  real      {real}\n  simulated {simulated}")
        if not real.accepted:
            servers.restart_client()

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
    has_several_nodes = servers.owner == "tags" and release.name.startswith("0.28.")
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
