"""The real program as a process, in the environment of a pod."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator

PROGRAM = str(Path(sys.executable).with_name("lifecycle"))

# Far more than anything here takes; a process that needs it hangs.
HANGS_AFTER_S = 60.0
# Far more lines than a command logs before what it is waited for.
MANY_LINES = 200


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ended by itself."""

    status: int
    out: str
    errors: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it logged; each line of standard output is one event."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        """The last event."""
        return self.events[-1]

    def named(self, name: str) -> list[dict[str, Any]]:
        """The events of one name."""
        return [event for event in self.events if event["event"] == name]


class Running:
    """A process while it runs."""

    def __init__(self, command: Iterable[str], *, environment: Mapping[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            list(command),
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._said = ""

    def kill(self) -> None:
        """End it, should it still run."""
        with self._process:
            self._process.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def until(self, name: str) -> dict[str, Any]:
        """Read on until it logs an event of this name."""
        assert self._process.stdout is not None
        for _ in range(MANY_LINES):
            line = self._process.stdout.readline()
            self._said += line
            if not line:
                break
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"it never logged {name}:\n{self._said}{self.end().errors}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Ask it to stop, and wait until it has."""
        self._process.send_signal(number)
        return self.end()

    def end(self) -> Ended:
        """Wait until it has ended."""
        try:
            out, errors = self._process.communicate(timeout=HANGS_AFTER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, errors = self._process.communicate()
            raise AssertionError(f"it did not end:\n{self._said}{out}{errors}") from None
        return Ended(self._process.returncode, self._said + out, errors)


class Pod:
    """The environment of one pod, and both services that it can reach.

    Args:
        headscale: served at `headscale_url`.
        cloudflare: served at `cloudflare_url`, with the zone example.com.
        base: what every process needs, such as PATH.
        folder: for the key file, and to run in.
    """

    def __init__(
        self,
        headscale: HeadscaleSimulator,
        cloudflare: CloudflareSimulator,
        *,
        headscale_url: str,
        cloudflare_url: str,
        base: Mapping[str, str],
        folder: Path,
    ) -> None:
        self.headscale = headscale
        self.cloudflare = cloudflare
        self.zone_id = cloudflare.add_zone("example.com")
        self.folder = folder
        self._started: list[Running] = []
        self.volume = folder / "volume"
        self.volume.mkdir()
        self.key_file = self.volume / "authkey"
        self.environment = {
            **base,
            # What manifests have that were there before this program.
            "HEADSCALE_NAMESPACE": "headscale",
            "CLOUDFLARE_API_TOKEN": cloudflare.token,
            "CLOUDFLARE_ZONE_ID": self.zone_id,
            "DOMAIN_NAME": "example.com",
            "AUTHKEY_OUTPUT_PATH": str(self.key_file),
            # How Headscale is reached, and the simulator in Cloudflare's place.
            "HEADSCALE_URL": headscale_url,
            "HEADSCALE_API_KEY": headscale.api_key,
            "CLOUDFLARE_API_URL": f"{cloudflare_url}/client/v4",
            # From the kubelet.
            "HOSTNAME": "grafana-0",
        }

    def start(self, *arguments: str, **variables: str) -> Running:
        """Start the program; "" unsets a variable."""
        return self.start_command(PROGRAM, *arguments, **variables)

    def start_command(self, *command: str, **variables: str) -> Running:
        """Start any program in this environment."""
        running = Running(command, environment=self.environment | variables, folder=self.folder)
        self._started.append(running)
        return running

    def end_all(self) -> None:
        """End what still runs."""
        for running in self._started:
            running.kill()

    def run(self, *arguments: str, **variables: str) -> Ended:
        """Run the program to its end."""
        return self.start(*arguments, **variables).end()

    def secrets_in(self, *texts: str) -> list[str]:
        """Which secrets of either service stand in what was said."""
        return [
            secret
            for secret in (*self.headscale.secrets(), *self.cloudflare.secrets())
            if any(secret in text for text in texts)
        ]

    @property
    def untouched(self) -> bool:
        """Whether neither service was asked for any change, and no file was written."""
        return not self.headscale.writes and not self.cloudflare.writes and self.files == []

    @property
    def files(self) -> list[str]:
        """What stands in the volume that is shared with the tailscale container."""
        return sorted(path.name for path in self.volume.iterdir())

    def records(self, name: str = "grafana.example.com") -> dict[str, str]:
        """Type and content of what stands at a name, and its comment."""
        return {
            f"{record.type} {record.content}": record.comment for record in self.cloudflare.records(self.zone_id, name)
        }


class Doorbell:
    """An application that rings when a request comes in."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application
        self.rang = Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Ring, and pass the request on."""
        self.rang.set()
        return self._application(environ, start_response)
