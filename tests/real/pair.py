"""Run a real Headscale and the simulator of its release with the same users, keys and nodes, to compare them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import httpx

from tests.real.programs import Release, eventually
from tests.real.tailscale_client import TailscaleClient
from tests.real.workload import OTHER_USER, USER, server_with_users
from tests.simulators.headscale import HeadscaleSimulator


class ServerPair:
    """A real server and a simulator, both with the users USER and OTHER_USER.

    Args:
        folder: an existing folder with a short path, because Unix sockets are created in it.
        stack: stops the server and the clients when it is closed.

    Attributes:
        simulated_http: sends requests to the API of the simulator.
    """

    def __init__(self, release: Release, folder: Path, stack: ExitStack) -> None:
        self.release = release
        self.folder = folder
        self.server = stack.enter_context(server_with_users(release, folder / "server"))
        self.simulator = HeadscaleSimulator(release.simulator_version)
        for user in (USER, OTHER_USER):
            self.simulator.add_user(user)
        transport = httpx.WSGITransport(app=self.simulator)
        self.simulated_http = stack.enter_context(httpx.Client(transport=transport, base_url="http://headscale.test"))
        self._stack = stack

    def start_client(self, hostname: str) -> TailscaleClient:
        """Start a client of the real server."""
        folder = self.folder / hostname.partition(".")[0]
        client = TailscaleClient(self.release, folder, hostname=hostname, url=self.server.url)
        self._stack.callback(client.stop)
        return client

    def register(self, hostname: str, *tags: str) -> None:
        """Register a node of USER on both servers, and wait until it is online."""
        key_file = self.folder / "authkey"
        key_file.write_text(self.server.create_key(USER, *(f"--tags={tag}" for tag in tags)))
        self.start_client(hostname).log_in(key_file)
        eventually(lambda: self.server.nodes(hostname)[0]["online"], "the client to be online")
        key = self.simulator.create_key(USER, tags=tags)
        self.simulator.connect(self.simulator.register(key=key.key, hostname=hostname).id)
