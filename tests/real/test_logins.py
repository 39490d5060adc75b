"""Which key a client with kept state may show, on real servers and on the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.real.machine import Machine
from tests.real.programs import Release
from tests.real.server import HeadscaleServer
from tests.real.service import OTHER_USER, USER
from tests.simulators.headscale import HeadscaleSimulator, RegistrationRefusedError

HOSTNAME = "app.example.com"
TAG = "tag:web"


@dataclass(frozen=True, slots=True)
class Key:
    """One pre-auth key on both servers: its secrets."""

    real: str
    simulated: str


@dataclass(frozen=True, slots=True)
class Login:
    """How a login ended, and which nodes are there then.

    Attributes:
        accepted: the client is in.
        nodes: of each its id, address, owner, and the id of the key that the API shows in it.
        error: what the client was told, for a person to read.
    """

    accepted: bool
    nodes: list[tuple[str, str, str | None, str | None]]
    error: str | None = field(default=None, compare=False)


def _nodes(answer: httpx.Response) -> list[tuple[str, str, str | None, str | None]]:
    nodes = answer.raise_for_status().json()["nodes"]
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
    """One machine on a real server, and the same on a simulator.

    Args:
        owner: `user`, `user and tags` or `tags`: what its keys give to its node.
    """

    def __init__(self, release: Release, owner: str, folder: Path, stack: ExitStack) -> None:
        self._owner = owner
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
        """A fresh single-use key; tags alone belong to nobody."""
        owner = None if self._owner == "tags" else user
        tags = () if self._owner == "user" else (TAG,)
        real = self._server.create_key(owner, *(f"--tags={tag}" for tag in tags))
        return Key(real, self._simulator.create_key(owner, tags=tags).key)

    def expire(self, key: Key) -> None:
        """Expire a key on both."""
        self._server.expire_key(key.real)
        self._simulator.expire_key(self._simulated_id(key))

    def delete(self, key: Key) -> None:
        """Delete a key on both."""
        self._server.delete_key(key.real)
        self._simulator.delete_key(self._simulated_id(key))

    def delete_nodes(self) -> None:
        """Delete all nodes on both, and restart the client, which is not told."""
        for node in self._server.nodes():
            self._server.delete_node(node["id"])
        for known in self._simulator.nodes:
            self._simulator.delete_node(known.id)
        self._machine.restart()

    def expire_nodes(self) -> None:
        """Expire all nodes on both, and restart the client."""
        for node in self._server.nodes():
            self._server.ask("POST", f"/api/v1/node/{node['id']}/expire").raise_for_status()
        for known in self._simulator.nodes:
            self._simulator.expire_node(known.id)
        self._machine.restart()

    def restart_servers(self) -> None:
        """Restart both, and the client, which comes back with its kept state."""
        self._server.restart()
        self._simulator.restart()
        self._machine.restart_logged_in()

    def login(self, key: Key) -> tuple[Login, Login]:
        """Show a key to both."""
        key_file = self._folder / "authkey"
        key_file.write_text(key.real)
        refused = self._machine.login_error(key_file)
        real = Login(refused is None, _nodes(self._server.ask("GET", "/api/v1/node")), refused)
        try:
            self._simulator.register(
                key=key.simulated, hostname=HOSTNAME, machine_key="mkey:" + "1" * 64, node_key="nodekey:" + "1" * 64
            )
            # With a node of its own that is still expired the machine has to log in again, with a key that is used.
            accepted = all(node.expires_at is None for node in self._simulator.nodes)
        except RegistrationRefusedError:
            accepted = False
        return real, Login(accepted, _nodes(self._http.get("/api/v1/node")))

    def come_back(self) -> None:
        """Restart the client after a refused key: with the state that it kept it is in, or not."""
        self._machine.restart()

    def _simulated_id(self, key: Key) -> int:
        return next(known.id for known in self._simulator.keys if known.key == key.simulated)


OWNERS = ("user", "user and tags", "tags")


@pytest.fixture(params=OWNERS)
def twins(request: pytest.FixtureRequest, release: Release, short_folder: Path) -> Iterator[Twins]:
    """A machine on both servers, its keys a user's, a user's with tags, or from 0.28 on of tags alone."""
    if request.param == "tags" and not release.keys_by_id:
        pytest.skip(f"Headscale {release.name} has no keys without a user")
    with ExitStack() as stack:
        yield Twins(release, request.param, short_folder, stack)


def test_same_logins(twins: Twins, release: Release) -> None:
    """Key after key, both let the machine in, or refuse it, and show the same nodes then."""
    different: list[str] = []

    def show(key: Key, situation: str) -> None:
        real, simulated = twins.login(key)
        if real != simulated:
            different.append(f"{situation}\n  real      {real}\n  simulated {simulated}")
        if not real.accepted:
            twins.come_back()

    first = twins.key()
    show(first, "a fresh key, a new machine")
    show(first, "the same key, used")
    second = twins.key()
    show(second, "another fresh key")
    twins.expire(first)
    show(first, "the first key, used and expired")
    twins.restart_servers()
    show(second, "the second key, used, after a restart")
    if release.keys_by_id:
        twins.delete(first)
        show(first, "a deleted key")
    twins.expire_nodes()
    show(second, "a used key, and the node has expired")
    third = twins.key()
    show(third, "a fresh key, and the node has expired")
    twins.delete_nodes()
    show(third, "a used key, and the node is gone")
    fourth = twins.key()
    twins.expire(fourth)
    show(fourth, "an expired key, and the node is gone")
    fifth = twins.key()
    show(fifth, "a fresh key, and the node is gone")
    show(twins.key(OTHER_USER), "another user's key")
    twins.restart_servers()
    show(fifth, "the key before, after a restart")
    assert not different, "\n".join(different)
