"""A simulated pod: its volume, its tailscale client, its VPN interface and its `dns-watch`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lifecycle.dns_watch.loop import DnsWatch
from tests.builders import NAME
from tests.simulators.vpn_client import VpnClient
from tests.world import Interface, World


class Nodez(NamedTuple):
    """What the endpoint `/nodez` of dns-watch reports.

    Attributes:
        state: the state of the node.
        restart_helps: a restart of the tailscale container would register a node again.
    """

    state: str
    restart_helps: bool


# `waiting` means that dns-watch has not found its node. `superseded` means that another pod owns the name. `gone`
# means that the node was deleted. A pre-auth key is usable if a node can register with it.
WAITING = Nodez("waiting", restart_helps=False)
REGISTERED = Nodez("registered", restart_helps=False)
SUPERSEDED = Nodez("superseded", restart_helps=False)
GONE = Nodez("gone", restart_helps=False)
GONE_WITH_USABLE_KEY = Nodez("gone", restart_helps=True)
EXPIRED_WITH_USABLE_KEY = Nodez("expired", restart_helps=True)


class Pod:
    """A pod of the workload, whose containers do not run at first.

    Args:
        world: the simulators of Headscale and Cloudflare, and the clock.
        folder: a folder to create, for the volume of the pod and the state of the client.
        settings: settings of cleanup and dns-watch.
        has_interface: the client creates a VPN interface; False in userspace mode.
    """

    def __init__(
        self, world: World, folder: Path, settings: Mapping[str, str] | None = None, *, has_interface: bool = True
    ) -> None:
        self.world = world
        folder.mkdir()
        self.key_file = folder / "authkey"
        self.interface = Interface(None)
        self.settings = {"AUTHKEY_OUTPUT_PATH": str(self.key_file), **(settings or {})}
        self.client = VpnClient(world.headscale, key_file=self.key_file, hostname=NAME, state_dir=folder)
        self._has_interface = has_interface
        self.watch = self.new_watch()

    def new_watch(self, **settings: str) -> DnsWatch:
        """Replace the pod's dns-watch by a new one without a state, as after a restart of the container."""
        self.watch = self.world.watch(self.interface, **(self.settings | settings))
        return self.watch

    def cleanup(self) -> None:
        """Run the init container."""
        self.world.cleanup(**self.settings).run()

    def start_tailscale(self) -> None:
        """Start or restart the tailscale client, which registers a node unless it has one."""
        registered = self.client.start()
        if self._has_interface:
            self.interface.set_addresses(*registered.addresses)

    def start(self) -> None:
        """Run cleanup and start the tailscale client. dns-watch does not run yet."""
        self.cleanup()
        self.start_tailscale()

    def run(self, seconds: float) -> None:
        """Run dns-watch for this many simulated seconds."""
        self.world.run(self.watch, seconds)

    def run_until(self, nodez: Nodez, *, within_s: float) -> None:
        """Run dns-watch until `/nodez` reports this state, and fail if this takes too long."""
        until = self.world.clock.elapsed_s + within_s
        while self.nodez != nodez:
            assert self.world.clock.elapsed_s < until, self.nodez
            self.run(10)

    @property
    def node_id(self) -> int:
        """The id of the pod's node."""
        assert self.client.node_id is not None
        return self.client.node_id

    @property
    def address(self) -> str:
        """The IPv4 address of the pod's node."""
        return self.client.addresses[0]

    @property
    def restart_marker(self) -> Path:
        """The file that makes the liveness probe of the tailscale container fail."""
        return self.key_file.with_name("authkey.restart")

    @property
    def key(self) -> str:
        """Return the content of the key file."""
        return self.key_file.read_text()

    @property
    def nodez(self) -> Nodez:
        """Return what `/nodez` reports."""
        status = self.watch.status
        return Nodez(status.node_state, status.restart_helps)


def published_addresses(world: World) -> list[str]:
    """Return the contents of the records at the workload's name."""
    return [record.content for record in world.cloudflare.records(world.zone_id, NAME)]


def start_two_pods(world: World, folder: Path, *, has_interface: bool = True) -> tuple[Pod, Pod]:
    """Start two pods at the same time, and return them. The second one registers its node later."""
    pods = (
        Pod(world, folder / "earlier", has_interface=has_interface),
        Pod(world, folder / "later", has_interface=has_interface),
    )
    for pod in pods:
        pod.cleanup()
    for pod in pods:
        pod.start_tailscale()
    return pods
