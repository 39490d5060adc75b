"""Show each step of the replacement of a simulated pod.

The real commands run against simulators of Headscale, Cloudflare and the tailscale container, on loopback.
"""

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
# The comment that the program writes into its records.
RECORD_COMMENT = "tailscale-lifecycle/1 demo"

# The time between two checks of whether a step has succeeded.
POLL_S = 0.1


class DemoError(Exception):
    """A step of the demo failed."""


class World:
    """The simulators, the pod's volume with the key file, and functions that run the commands.

    Args:
        folder: an empty folder, which is used as the volume.
        timeout_s: the maximum duration of a step.
    """

    def __init__(self, folder: Path, *, timeout_s: float = 15.0) -> None:
        self._timeout_s = timeout_s
        self.headscale = HeadscaleSimulator()
        self.cloudflare = CloudflareSimulator()
        self.headscale.add_user("services")
        self.zone = self.cloudflare.add_zone("example.com")
        self.key_file = folder / "authkey"
        self._folder = folder
        self._environment: dict[str, str] = {}

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve the simulators of Headscale and Cloudflare on loopback during the block."""
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
                "CLOUDFLARE_API_TOKEN": self.cloudflare.token,
                "AUTHKEY_OUTPUT_PATH": str(self.key_file),
                # The demo has no VPN interface.
                "TAILSCALE_INTERFACE": "",
                # With short intervals, the demo takes only seconds.
                "POLL_INTERVAL": "1s",
                "VERIFY_INTERVAL": "1s",
                "HEALTH_PORT": "0",
                "LOG_FORMAT": "console",
                "LOG_LEVEL": "warning",
            }
            yield

    def run(self, *arguments: str) -> str:
        """Run a command of the program until it exits, and return its output.

        Raises:
            DemoError: the exit status of the command is not 0.
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
                f"lifecycle {' '.join(arguments)} exited with status {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    @contextmanager
    def running(self, *arguments: str) -> Iterator[None]:
        """Run a command of the program during the block, and stop it afterwards.

        Raises:
            DemoError: the exit status of the command is not 0.
        """
        process = subprocess.Popen(self._command(*arguments), env=self._environment, cwd=self._folder)
        try:
            yield
        finally:
            process.terminate()
            status = process.wait(self._timeout_s)
        if status != 0:
            raise DemoError(f"lifecycle {' '.join(arguments)} exited with status {status}")

    def register(self) -> VpnClient:
        """Register a node with the pre-auth key in the key file, as the tailscale container does."""
        client = VpnClient(self.headscale, key_file=self.key_file, hostname=NAME)
        client.start()
        return client

    def addresses(self) -> list[str]:
        """Return the addresses in the A records of the workload."""
        return [record.content for record in self.cloudflare.records(self.zone, NAME)]

    def expect(self, result: str, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true, then print the text `result`.

        Raises:
            DemoError: the condition was not true within the maximum duration of a step.
        """
        deadline = time.monotonic() + self._timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise DemoError(f"this did not happen within {self._timeout_s:g} s: {result}")
            time.sleep(POLL_S)
        show(f"✓ {result}")

    def expect_published(self, node: VpnClient) -> None:
        """Wait until the workload has exactly one A record, and the record has the address of this node."""
        self.expect(f"{NAME} -> {node.addresses[0]}", lambda: self.addresses() == [node.addresses[0]])

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "lifecycle", *arguments]


def announce(text: str) -> None:
    """Print the heading of the next step."""
    print(f"\n{text}", flush=True)


def show(text: str) -> None:
    """Print the result of a step, indented."""
    print("\n".join(f"    {line}".rstrip() for line in text.splitlines()), flush=True)


def run_steps(world: World) -> None:
    """Run all steps of the demo.

    Raises:
        DemoError: a step failed.
    """
    headscale, cloudflare = world.headscale, world.cloudflare

    announce("An earlier Grafana pod was deleted. Its Headscale node and its DNS record still exist:")
    stale = headscale.add_node(NAME, user="services", online=False)
    cloudflare.add_record(
        world.zone, type="A", name=NAME, content=stale.address, ttl=60, proxied=False, comment=RECORD_COMMENT
    )
    laptop = headscale.add_node("anns-laptop", user=headscale.add_user("ann").name)
    website = cloudflare.add_record(world.zone, type="A", name="example.com", content="192.0.2.10", ttl=300)
    show(f"node {stale.id} {NAME} (offline), record {NAME} -> {stale.address}")

    announce("A dry run reports what `cleanup` and `dns-watch` would change:")
    show(world.run("--dry-run"))

    announce("A new pod starts. Its init container runs `lifecycle cleanup`:")
    world.run("cleanup")
    world.expect("the stale node is deleted", lambda: headscale.node(stale.id) is None)
    world.expect("the stale record is deleted", lambda: not world.addresses())
    world.expect("a new pre-auth key is in the shared volume", world.key_file.exists)

    announce("The tailscale container registers with this key. The sidecar runs `lifecycle dns-watch`:")
    with world.running("dns-watch"):
        node = world.register()
        world.expect_published(node)

        announce("The VPN address of the pod changes:")
        node.change_address()
        world.expect_published(node)

        announce("The record is deleted by hand:")
        for record in cloudflare.records(world.zone, NAME):
            cloudflare.remove_record(record.id)
        world.expect("the record is created again", lambda: world.addresses() == [node.addresses[0]])
    node.stop()

    announce("The pod is replaced. The new pod runs the same two commands:")
    world.run("cleanup")
    with world.running("dns-watch"):
        node = world.register()
        world.expect_published(node)
    names = [node.name for node in headscale.nodes]
    world.expect(f"only one node has the name {NAME}", lambda: names.count(NAME) == 1)

    announce("Nodes and records of other owners are unchanged:")
    world.expect("Ann's laptop is still registered", lambda: headscale.node(laptop.id) is not None)
    world.expect(
        "the record example.com is unchanged",
        lambda: website in {record.id for record in cloudflare.records(world.zone)},
    )


def main() -> int:
    """Run the demo. Return 0 if all steps succeeded, and 1 otherwise."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lifecycle-demo-") as folder:
        world = World(Path(folder))
        try:
            with world.served():
                run_steps(world)
        except DemoError as error:
            print(f"\n✗ {error}", file=sys.stderr)
            return 1
    announce(
        f"Done in {time.monotonic() - start:.0f} seconds. README.md describes how to install the program in a cluster."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
