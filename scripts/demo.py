"""A pod's life, told while it happens: the real commands, and stand-ins of the services on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve
from tests.simulators.vpn_client import VpnClient

NAME = "grafana.example.com"
MARK = "tailscale-lifecycle/1 demo"

LOOK_S = 0.1


class DemoError(Exception):
    """Something that was to happen did not."""


class World:
    """Both services, the pod's volume, and the commands.

    Args:
        folder: an empty one.
        patience_s: how long a step may take, on a slow machine.
    """

    def __init__(self, folder: Path, *, patience_s: float = 15.0) -> None:
        self._patience_s = patience_s
        self.headscale = HeadscaleSimulator()
        self.cloudflare = CloudflareSimulator()
        self.headscale.add_user("services")
        self.zone = self.cloudflare.add_zone("example.com")
        self.key_file = folder / "authkey"
        self._folder = folder
        self._environment: dict[str, str] = {}

    @contextmanager
    def served(self) -> Iterator[None]:
        """Let both services listen on loopback."""
        with serve(self.headscale) as headscale, serve(self.cloudflare) as cloudflare:
            self._environment = {
                "PATH": os.environ["PATH"],
                "HOSTNAME": "grafana-0",
                "POD_NAMESPACE": "demo",
                "DOMAIN_NAME": "example.com",
                "HEADSCALE_URL": headscale,
                "HEADSCALE_API_KEY": self.headscale.api_key,
                "HEADSCALE_USER": "services",
                "CLOUDFLARE_API_URL": f"{cloudflare}/client/v4",
                "CLOUDFLARE_API_TOKEN": self.cloudflare.secrets()[0],
                "AUTHKEY_OUTPUT_PATH": str(self.key_file),
                # A demonstration has no VPN interface and little time.
                "TAILSCALE_INTERFACE": "",
                "POLL_INTERVAL": "1s",
                "VERIFY_INTERVAL": "1s",
                "HEALTH_PORT": "0",
                "LOG_FORMAT": "console",
                "LOG_LEVEL": "warning",
            }
            yield

    def run(self, *arguments: str) -> str:
        """Run a command to its end, and give what it printed.

        Raises:
            DemoError: it failed.
        """
        done = subprocess.run(
            self._command(*arguments),
            env=self._environment,
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise DemoError(
                f"lifecycle {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    @contextmanager
    def running(self, *arguments: str) -> Iterator[None]:
        """Let a command run for as long as the block lasts, then ask it to stop.

        Raises:
            DemoError: it did not stop well.
        """
        process = subprocess.Popen(self._command(*arguments), env=self._environment, cwd=self._folder)
        try:
            yield
        finally:
            process.terminate()
            status = process.wait(self._patience_s)
        if status != 0:
            raise DemoError(f"lifecycle {' '.join(arguments)} ended with {status}")

    def pod_joins(self) -> VpnClient:
        """Let the pod's tailscale container join with the key from the file."""
        client = VpnClient(self.headscale, key_file=self.key_file, hostname=NAME)
        client.start()
        return client

    def contents(self) -> list[str]:
        """What the name resolves to."""
        return [record.content for record in self.cloudflare.records(self.zone, NAME)]

    def expect(self, what: str, seen: Callable[[], bool]) -> None:
        """Wait until something can be seen.

        Raises:
            DemoError: it did not happen in time.
        """
        until = time.monotonic() + self._patience_s
        while not seen():
            if time.monotonic() > until:
                raise DemoError(f"this did not happen: {what}")
            time.sleep(LOOK_S)
        show(f"✓ {what}")

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "lifecycle", *arguments]


def tell(text: str) -> None:
    """Say what happens."""
    print(f"\n{text}", flush=True)


def show(text: str) -> None:
    """Show what can be seen now."""
    print("\n".join(f"    {line}" for line in text.splitlines()), flush=True)


def play(world: World) -> None:
    """Tell the story.

    Raises:
        DemoError: something did not happen.
    """
    headscale, cloudflare = world.headscale, world.cloudflare

    tell("Yesterday's Grafana pod died. Headscale still has its node, and DNS still points at its address:")
    stale = headscale.add_node(NAME, user="services", online=False)
    cloudflare.add_record(world.zone, type="A", name=NAME, content=stale.address, ttl=60, proxied=False, comment=MARK)
    laptop = headscale.add_node("anns-laptop", user=headscale.add_user("ann").name)
    website = cloudflare.add_record(world.zone, type="A", name="example.com", content="192.0.2.10", ttl=300)
    show(f"node {stale.id} {NAME} (offline), record {NAME} -> {stale.address}")

    tell("Before anything happens, a dry run tells what both commands would do:")
    show(world.run("--dry-run"))

    tell("A new pod starts. Its init container runs `lifecycle cleanup`:")
    world.run("cleanup")
    world.expect("the old node is gone", lambda: headscale.node(stale.id) is None)
    world.expect("the record that pointed at it is gone", lambda: not world.contents())
    world.expect("a fresh pre-auth key is in the shared volume", world.key_file.exists)

    tell("The tailscale container joins with that key, while the sidecar runs `lifecycle dns-watch`:")
    with world.running("dns-watch"):
        pod = world.pod_joins()
        world.expect(f"{NAME} -> {pod.addresses[0]}", lambda: world.contents() == [pod.addresses[0]])

        tell("The VPN gives the pod another address:")
        pod.change_address()
        world.expect(f"{NAME} -> {pod.addresses[0]}", lambda: world.contents() == [pod.addresses[0]])

        tell("Somebody deletes the record by hand:")
        for record in cloudflare.records(world.zone, NAME):
            cloudflare.remove_record(record.id)
        world.expect("it is back", lambda: world.contents() == [pod.addresses[0]])
    pod.die()

    tell("The pod is replaced by another one: the same two commands again.")
    world.run("cleanup")
    with world.running("dns-watch"):
        pod = world.pod_joins()
        world.expect(f"{NAME} -> {pod.addresses[0]}", lambda: world.contents() == [pod.addresses[0]])
    ours = [node for node in headscale.nodes if node.name == NAME]
    world.expect(f"one node is called {NAME}, and none {NAME}-1", lambda: len(ours) == 1)

    tell("And what was never ours:")
    world.expect("Ann's laptop is still there", lambda: headscale.node(laptop.id) is not None)
    world.expect(
        "the record of example.com was not touched",
        lambda: website in {record.id for record in cloudflare.records(world.zone)},
    )


def main() -> int:
    """Play the story; 0 when all of it happened."""
    with tempfile.TemporaryDirectory(prefix="lifecycle-demo-") as folder:
        world = World(Path(folder))
        try:
            with world.served():
                play(world)
        except DemoError as error:
            print(f"\n✗ {error}", file=sys.stderr)
            return 1
    tell("That was a pod's life. README.md tells how to give one to yours.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
