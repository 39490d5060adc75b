"""One service's pod on a simulated world: its volume, its client, its interface and its `dns-watch`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lifecycle.dns_watch.loop import DnsWatch
from tests.builders import NAME
from tests.simulators.vpn_client import VpnClient
from tests.world import Interface, World


class Pod:
    """A pod of the workload; nothing happens before `start`.

    Args:
        world: where it lives.
        folder: holds its volume and its client's state; not there yet.
        settings: of both commands.
        kernel: whether its client has an interface; in user space it has none.
    """

    def __init__(
        self, world: World, folder: Path, settings: Mapping[str, str] | None = None, *, kernel: bool = True
    ) -> None:
        self.world = world
        folder.mkdir()
        self.key_file = folder / "authkey"
        self.interface = Interface(None)
        self.settings = {"AUTHKEY_OUTPUT_PATH": str(self.key_file), **(settings or {})}
        self.client = VpnClient(world.headscale, key_file=self.key_file, hostname=NAME, state_dir=folder)
        self._kernel = kernel
        self.watch = self.new_watch()

    def new_watch(self, **settings: str) -> DnsWatch:
        """Replace its dns-watch with one that remembers nothing."""
        self.watch = self.world.watch(self.interface, **(self.settings | settings))
        return self.watch

    def cleanup(self) -> None:
        """Run the init container."""
        self.world.cleanup(**self.settings).run()

    def join(self) -> None:
        """Start the client, or start it again."""
        registered = self.client.start()
        if self._kernel:
            self.interface.show(*registered.addresses)

    def start(self) -> None:
        """Run cleanup, and start the client. dns-watch does not run yet."""
        self.cleanup()
        self.join()

    def run(self, seconds: float) -> None:
        """Run dns-watch for this long."""
        self.world.run(self.watch, seconds)

    def run_until(self, nodez: tuple[str, bool], *, within_s: float) -> None:
        """Run it until `/nodez` reports this."""
        until = self.world.clock.elapsed_s + within_s
        while self.nodez != nodez:
            assert self.world.clock.elapsed_s < until, self.nodez
            self.run(10)

    @property
    def node_id(self) -> int:
        """Its client's node."""
        assert self.client.node_id is not None
        return self.client.node_id

    @property
    def address(self) -> str:
        """Its client's IPv4 address."""
        return self.client.addresses[0]

    @property
    def restart_marker(self) -> Path:
        """The file that makes the tailscale container's probe fail."""
        return self.key_file.with_name("authkey.restart")

    @property
    def key(self) -> str:
        """Return the content of its key file."""
        return self.key_file.read_text()

    @property
    def nodez(self) -> tuple[str, bool]:
        """Return what `/nodez` reports: the state, and whether a restart of the client helps."""
        status = self.watch.status
        return status.node_state, status.restart_helps
