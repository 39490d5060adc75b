"""Run the pod of a workload on a real Headscale: the commands of this project and a real Tailscale client.

The DNS zone of the workload is simulated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tests.real.command import CompletedCommand, DnsWatch
from tests.real.programs import Release, eventually, run_program
from tests.real.server import HeadscaleServer
from tests.real.tailscale_client import TailscaleClient
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.dns import Record
from tests.simulators.serve import serve

USER: Final = "services"
"""The Headscale user that owns the nodes of the workloads."""

OTHER_USER: Final = "people"
"""Another Headscale user. This project must not touch its nodes."""

NAMESPACE: Final = "apps"

RECORD_COMMENT: Final = f"tailscale-lifecycle/1 {NAMESPACE}"
"""The comment by which the program recognizes its records."""

CONFIRM_TIMEOUT_S: Final = 150.0
"""The time limit for `dns-watch` to confirm that a node is gone. This takes a minute, and longer under load."""


@dataclass(frozen=True, slots=True)
class State:
    """The nodes, the records and the pre-auth key of a workload."""

    node_ids: list[str]
    record_contents: list[str]
    writes: int
    """The number of writes to the DNS zone."""
    key: str


class Workload:
    """A workload: its pod's processes, its node on a real server, and its record in a simulated zone.

    Args:
        name: the hostname of its node, and the name of its record.
        server: the server on which its node registers.
        cloudflare: the Cloudflare simulator.
        cloudflare_url: the URL of the Cloudflare simulator.
        folder: the folder for the files of the pod.

    Attributes:
        command_prefix: the start of each command line, such as `unshare --mount`.
        environment: the environment of each command.
        watches: the instances of `dns-watch` that were started.
    """

    def __init__(
        self,
        name: str,
        *,
        server: HeadscaleServer,
        cloudflare: CloudflareSimulator,
        cloudflare_url: str,
        folder: Path,
    ) -> None:
        self.name = name
        self.command_prefix: Sequence[str | Path] = ()
        self.server = server
        self.cloudflare = cloudflare
        self.zone_id = cloudflare.add_zone("example.com")
        self.folder = folder
        self.key_file = folder / "authkey"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HEADSCALE_URL": server.public_url,
            "HEADSCALE_API_KEY": server.api_key,
            "HEADSCALE_USER": USER,
            "CLOUDFLARE_API_URL": f"{cloudflare_url}/client/v4",
            "CLOUDFLARE_API_TOKEN": cloudflare.token,
            "CLOUDFLARE_ZONE_ID": self.zone_id,
            "DOMAIN_NAME": "example.com",
            "TS_HOSTNAME": name,
            "POD_NAMESPACE": NAMESPACE,
            "AUTHKEY_OUTPUT_PATH": str(self.key_file),
            # With userspace networking, the client has no interface. By default, `dns-watch` would read the addresses
            # of an interface of the test machine.
            "TAILSCALE_INTERFACE": "",
            "MAX_RETRIES": "0",
            "RETRY_INTERVAL": "1s",
            "POLL_INTERVAL": "1s",
            "VERIFY_INTERVAL": "1s",
            "HEALTH_PORT": "0",
            "LOG_LEVEL": "debug",
        }
        self._exit_stack = ExitStack()
        self._started = 0
        self.watches: list[DnsWatch] = []

    def __enter__(self) -> Self:
        """Return the workload."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all processes in reverse order."""
        self._exit_stack.close()

    # --- The pod ------------------------------------------------------------------------------------

    def run(self, *arguments: str, **settings: str) -> CompletedCommand:
        """Run a command, and wait until it has ended."""
        command = [*self.command_prefix, sys.executable, "-m", "lifecycle", *arguments]
        done = run_program(command, environment=self.environment | settings, folder=self.folder)
        return CompletedCommand(done.returncode, done.stdout, done.stderr)

    def run_cleanup(self, **settings: str) -> CompletedCommand:
        """Run `cleanup`, and check that it succeeds."""
        ended = self.run("cleanup", **settings)
        assert (ended.exit_status, ended.errors) == (0, ""), ended.out + ended.errors
        return ended

    def start_dns_watch(self, **settings: str) -> DnsWatch:
        """Start `dns-watch`."""
        log = self.folder / f"watch{self._next_number()}"
        watch = DnsWatch(
            environment=self.environment | settings, folder=self.folder, log=log, prefix=self.command_prefix
        )
        self._exit_stack.callback(watch.stop)
        self.watches.append(watch)
        return watch

    def start_client_without_login(self) -> TailscaleClient:
        """Start a client with the hostname of the workload, without logging in."""
        folder = self.folder / f"ts{self._next_number()}"
        client = TailscaleClient(
            self.server.release,
            folder,
            hostname=self.name,
            url=self.server.public_url,
            interface=self.environment["TAILSCALE_INTERFACE"],
            trust=Path(trust) if (trust := self.environment.get("HEADSCALE_CA_FILE")) else None,
        )
        self._exit_stack.callback(client.stop)
        return client

    def start_client(self, *, key_file: Path | None = None) -> TailscaleClient:
        """Start a client with the hostname of the workload, and log in with a key file."""
        client = self.start_client_without_login()
        client.log_in(key_file or self.key_file)
        return client

    def start_pod(self, *, ipv6: bool = False) -> tuple[TailscaleClient, DnsWatch]:
        """Run `cleanup`, start a client and `dns-watch`, and wait until the record is published."""
        self.run_cleanup()
        client = self.start_client()
        watch = self.start_dns_watch()
        self.wait_until_published(client, ipv6=ipv6)
        return client, watch

    def write_key(self, key: str) -> Path:
        """Write a key to a new file."""
        path = self.folder / f"key{self._next_number()}"
        path.write_text(key)
        return path

    def _next_number(self) -> int:
        self._started += 1
        return self._started

    # --- Observed state -----------------------------------------------------------------------------

    def wait_until_published(self, client: TailscaleClient, *, ipv6: bool = False) -> None:
        """Wait until the client's IPv4 address, and with `ipv6` also its IPv6 address, are published."""

        def is_published() -> bool:
            # A restarted client reports its old address until it has logged in, so the address is read each time.
            addresses = client.addresses
            return sorted(self.record_contents) == sorted(addresses if ipv6 else addresses[:1])

        eventually(is_published, "the records to have the client's addresses", details=self._describe)
        assert {record.comment for record in self.records} == {RECORD_COMMENT}

    def state(self) -> State:
        """Return the current state, which tests compare with a later one."""
        return State(self.node_ids, self.record_contents, len(self.cloudflare.writes), self.key_file.read_text())

    def _describe(self) -> str:
        """Return records, nodes and logs, for the message of a failed test."""
        lines = [f"records: {self.record_contents}", f"nodes: {self.server.nodes(self.name)}"]
        for watch in self.watches:
            lines += ["dns-watch:", watch.output()]
        return "\n".join(lines)

    @property
    def records(self) -> list[Record]:
        """The records of the workload, oldest first."""
        return self.cloudflare.records(self.zone_id, self.name)

    @property
    def record_contents(self) -> list[str]:
        """The contents of the records."""
        return [record.content for record in self.records]

    @property
    def node_ids(self) -> list[str]:
        """The ids of the nodes of the workload."""
        return self.server.node_ids(self.name)


@contextmanager
def server_with_users(release: Release, folder: Path, **options: Any) -> Iterator[HeadscaleServer]:
    """Start a server with the users USER and OTHER_USER.

    Args:
        release: the release to run.
        folder: a folder to create. Its path has to be short enough for Unix sockets.
        options: options of `HeadscaleServer`.
    """
    folder.mkdir()
    with HeadscaleServer(release, folder, **options) as server:
        for user in (USER, OTHER_USER):
            server.create_user(user)
        yield server


@contextmanager
def workload_on(
    server: HeadscaleServer, folder: Path, name: str = "app.example.com", **settings: str
) -> Iterator[Workload]:
    """Yield a workload with its own DNS zone, and stop its processes at the end.

    Args:
        server: the server on which the node of the workload registers.
        folder: a folder to create. Its path has to be short enough for Unix sockets.
        name: the hostname of the node.
        settings: additional settings for the commands of the workload.
    """
    folder.mkdir()
    cloudflare = CloudflareSimulator()
    with (
        serve(cloudflare) as url,
        Workload(name, server=server, cloudflare=cloudflare, cloudflare_url=url, folder=folder) as workload,
    ):
        workload.environment |= settings
        yield workload
