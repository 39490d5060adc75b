"""Logins of a client with existing state and various keys, on real and simulated servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.real.machine import Machine
from tests.real.programs import Release
from tests.real.server import HeadscaleServer
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
    """The result of a login, and the nodes after it.

    Attributes:
        accepted: the server accepted the login.
        nodes: id, address, owner and key id of each node, as in the API.
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


class Twins:
    """The same client on a real server and a simulator.

    Args:
        owner: `user`, `user and tags` or `tags`: the owner of the keys.
    """

    def __init__(self, release: Release, owner: str, folder: Path, stack: ExitStack) -> None:
        self.owner = owner
        self._folder = folder
        self._server = stack.enter_context(HeadscaleServer(release, folder))
        self._simulator = HeadscaleSimulator(release.simulated)
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
        self._machine = Machine(release, folder / "ts", hostname=HOSTNAME, url=self._server.url)
        stack.callback(self._machine.stop)

    def key(self, user: str = USER) -> Key:
        """Create a single-use key. A key with only tags has no user."""
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
        for known in self._simulator.nodes:
            self._simulator.delete_node(known.id)
        self._machine.restart()

    def expire_nodes(self) -> None:
        """Expire all nodes on both servers, and restart the client."""
        for node in self._server.nodes():
            self._server.request("POST", f"/api/v1/node/{node['id']}/expire").raise_for_status()
        for known in self._simulator.nodes:
            self._simulator.expire_node(known.id)
        self._machine.restart()

    def restart_servers(self) -> None:
        """Restart both servers and the client, which logs in with its existing state."""
        self._server.restart()
        self._simulator.restart()
        self._machine.restart_logged_in()

    def login(self, key: Key) -> tuple[Login, Login]:
        """Log in to both servers with a key."""
        key_file = self._folder / "authkey"
        key_file.write_text(key.real)
        refused = self._machine.login_error(key_file)
        real = Login(refused is None, _nodes(self._server.request("GET", "/api/v1/node")), refused)
        try:
            node = self._simulator.register(
                key=key.simulated, hostname=HOSTNAME, machine_key="mkey:" + "1" * 64, node_key="nodekey:" + "1" * 64
            )
            # If its node is still expired, the client has to log in again, with a key that is used.
            accepted = node.expires_at is None
        except RegistrationRefusedError:
            accepted = False
        return real, Login(accepted, _nodes(self._http.get("/api/v1/node")))

    def restart_client(self) -> None:
        """Restart the client with its state after a refused key."""
        self._machine.restart()

    def _simulated_id(self, key: Key) -> int:
        return next(known.id for known in self._simulator.keys if known.key == key.simulated)


OWNERS = ("user", "user and tags", "tags")


@pytest.fixture(params=OWNERS)
def twins(request: pytest.FixtureRequest, release: Release, short_folder: Path) -> Iterator[Twins]:
    """A client on both servers, for each kind of owner. Keys without a user exist from 0.28 on."""
    if request.param == "tags" and not release.keys_by_id:
        pytest.skip(f"Headscale {release.name} has no keys without a user")
    with ExitStack() as stack:
        yield Twins(release, request.param, short_folder, stack)


@pytest.mark.every_client
def test_real_and_simulated_server_accept_the_same_logins(twins: Twins, release: Release) -> None:
    """After each login, the servers also have the same nodes."""
    different: list[str] = []

    def check(key: Key, situation: str, *, is_random: bool = False) -> None:
        real, simulated = twins.login(key)
        if real.nodes != simulated.nodes or (real.accepted != simulated.accepted and not is_random):
            different.append(f"{situation}\n  real      {real}\n  simulated {simulated}")
        if not real.accepted:
            twins.restart_client()

    first = twins.key()
    check(first, "new key, new client")
    check(first, "same key, used")
    second = twins.key()
    check(second, "second new key")
    twins.expire(first)
    check(first, "first key, used and expired")
    twins.restart_servers()
    check(second, "second key, used, after a restart")
    if release.keys_by_id:
        twins.delete(first)
        check(first, "deleted key")
    twins.expire_nodes()
    check(second, "used key, expired node")
    third = twins.key()
    # The machine has three nodes with one node key, and 0.28.0 selects one of them at random.
    has_several_nodes = twins.owner == "tags" and release.name.startswith("0.28.")
    check(third, "new key, expired node", is_random=has_several_nodes)
    twins.delete_nodes()
    check(third, "used key, deleted node")
    fourth = twins.key()
    twins.expire(fourth)
    check(fourth, "expired key, deleted node")
    fifth = twins.key()
    check(fifth, "new key, deleted node")
    check(twins.key(OTHER_USER), "key of another user")
    twins.restart_servers()
    check(fifth, "previous key, after a restart")
    if different:
        pytest.fail("\n".join(different), pytrace=False)
