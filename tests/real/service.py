"""One service as its pod has it: the two commands, the client between them, and the zone they keep."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.real.command import Ended, Watch, lifecycle
from tests.real.machine import Machine
from tests.real.programs import eventually
from tests.real.server import HeadscaleServer
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.dns import Record

USER: Final = "services"
"""The Headscale user that owns our nodes."""

OTHER_USER: Final = "people"
"""A user whose nodes are not ours, whatever they are called."""

NAMESPACE: Final = "apps"

MARK: Final = f"tailscale-lifecycle/1 {NAMESPACE}"
"""The comment on a record of ours."""


class Service:
    """One service, named as its node and record are.

    Args:
        name: hostname and record in one.
        server: where they are.
        cloudflare: where its record is.
        cloudflare_url: where that is served.
        folder: for its files.

    Attributes:
        within: a command that runs each of ours, such as one that makes a mount namespace.
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
        self.within: Sequence[str | Path] = ()
        self.server = server
        self.cloudflare = cloudflare
        self.zone_id = cloudflare.add_zone("example.com")
        self.folder = folder
        self.key_file = folder / "authkey"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HEADSCALE_URL": server.url,
            "HEADSCALE_API_KEY": server.api_key,
            "HEADSCALE_USER": USER,
            "CLOUDFLARE_API_URL": f"{cloudflare_url}/client/v4",
            "CLOUDFLARE_API_TOKEN": cloudflare.token,
            "CLOUDFLARE_ZONE_ID": self.zone_id,
            "DOMAIN_NAME": "example.com",
            "TS_HOSTNAME": name,
            "POD_NAMESPACE": NAMESPACE,
            "AUTHKEY_OUTPUT_PATH": str(self.key_file),
            # Userspace networking has no interface; and this machine may have one of its own.
            "TAILSCALE_INTERFACE": "",
            "MAX_RETRIES": "0",
            "RETRY_INTERVAL": "1s",
            "POLL_INTERVAL": "1s",
            "VERIFY_INTERVAL": "1s",
            "HEALTH_PORT": "0",
            "LOG_LEVEL": "debug",
        }
        self._cleared = ExitStack()
        self._started = 0
        self._watches: list[Watch] = []

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all that was started, the last first."""
        self._cleared.close()

    # --- The pod ------------------------------------------------------------------------------------

    def run(self, *arguments: str, **settings: str) -> Ended:
        """Run a command to its end, some settings changed."""
        return lifecycle(*arguments, environment=self._with(settings), folder=self.folder, within=self.within)

    def cleanup(self, **settings: str) -> Ended:
        """Run `cleanup`, which has to succeed."""
        ended = self.run("cleanup", **settings)
        assert (ended.exit_status, ended.errors) == (0, ""), ended.out + ended.errors
        return ended

    def watch(self, **settings: str) -> Watch:
        """Start `dns-watch`."""
        log = self.folder / f"watch{self._number()}"
        watch = Watch(environment=self._with(settings), folder=self.folder, log=log, within=self.within)
        self._cleared.callback(watch.stop)
        self._watches.append(watch)
        return watch

    def new_machine(self) -> Machine:
        """Start a client of the service's hostname that has not logged in."""
        folder = self.folder / f"ts{self._number()}"
        machine = Machine(
            self.server.release,
            folder,
            hostname=self.name,
            url=self.server.url,
            interface=self.environment["TAILSCALE_INTERFACE"],
        )
        self._cleared.callback(machine.stop)
        return machine

    def machine(self, *, key_file: Path | None = None) -> Machine:
        """Start a client of the service's hostname and log it in with the key file, or with another one."""
        machine = self.new_machine()
        machine.up(key_file or self.key_file)
        return machine

    def write_key(self, key: str) -> Path:
        """Put a key into a file of its own."""
        path = self.folder / f"key{self._number()}"
        path.write_text(key)
        return path

    def _with(self, settings: Mapping[str, str]) -> dict[str, str]:
        return {**self.environment, **settings}

    def _number(self) -> int:
        self._started += 1
        return self._started

    # --- What can be seen ---------------------------------------------------------------------------

    def publishes(self, machine: Machine, *, ipv6: bool = False) -> None:
        """Wait until the name says what the machine's addresses are, and nothing else."""

        def look() -> bool:
            # Asked again each time: a client that comes back shows its old address until it has been let in.
            addresses = machine.addresses
            return sorted(self.contents) == sorted(addresses if ipv6 else addresses[:1])

        eventually(look, "the record to follow the client", tell=self._story)
        assert {record.comment for record in self.records} == {MARK}

    def _story(self) -> str:
        """What is there and what was said, for a test that failed."""
        lines = [f"records: {self.contents}", f"nodes: {self.server.nodes(self.name)}"]
        for watch in self._watches:
            lines += ["dns-watch:", watch.words()]
        return "\n".join(lines)

    @property
    def records(self) -> list[Record]:
        """The records at the service's name, oldest first."""
        return self.cloudflare.records(self.zone_id, self.name)

    @property
    def contents(self) -> list[str]:
        """Their contents."""
        return [record.content for record in self.records]

    @property
    def ids(self) -> list[str]:
        """The ids of the nodes that bear the service's name."""
        return self.server.ids(self.name)
