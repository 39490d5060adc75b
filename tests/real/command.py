"""The commands as processes: exit status and log."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.real.programs import TIMEOUT_S, Background, eventually

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    exit_status: int
    out: str
    errors: str

    @property
    def events(self) -> list[Event]:
        """The logged events."""
        return events_in(self.out)


def events_in(text: str) -> list[Event]:
    """Return the events of a log, without an incomplete last line."""
    lines = text.split("\n")[:-1]
    # Other lines are usually a traceback, so the message shows all of the text.
    assert all(line.startswith("{") for line in lines), text
    return [json.loads(line) for line in lines]


def named(events: list[Event], name: str) -> list[Event]:
    """Return the events with a name."""
    return [event for event in events if event["event"] == name]


def lifecycle(
    *arguments: str, environment: Mapping[str, str], folder: Path, within: Sequence[str | Path] = ()
) -> Ended:
    """Run a command and wait until it has ended.

    Args:
        arguments: arguments of the command.
        environment: the complete environment.
        folder: the working directory, without an `.env` file.
        within: prefix of the command, such as one that creates a mount namespace.
    """
    done = subprocess.run(
        [*within, sys.executable, "-m", "lifecycle", *arguments],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Watch(Background):
    """A running `dns-watch`."""

    def __init__(
        self, *, environment: Mapping[str, str], folder: Path, log: Path, within: Sequence[str | Path] = ()
    ) -> None:
        command = [*within, sys.executable, "-m", "lifecycle", "dns-watch"]
        super().__init__(command, log=log, environment=environment, folder=folder)

    @property
    def events(self) -> list[Event]:
        """The events logged so far."""
        return events_in(self.output())

    def named(self, name: str) -> list[Event]:
        """Return the events logged so far with a name."""
        return named(self.events, name)

    def wait_for(self, name: str, *, timeout_s: float = TIMEOUT_S, **keys: object) -> Event:
        """Wait until an event with these values has been logged, and return the latest."""

        def find() -> Event | None:
            assert self.exit_status is None, self.output()
            found = [event for event in self.named(name) if keys.items() <= event.items()]
            return found[-1] if found else None

        return eventually(find, f"{name} {keys}", details=self.output, timeout_s=timeout_s)

    def wait_for_next(self, name: str, *, timeout_s: float = TIMEOUT_S, **keys: object) -> Event:
        """Wait for an event that has not been logged yet."""
        before = len(self.events)

        def find() -> Event | None:
            assert self.exit_status is None, self.output()
            new = self.events[before:]
            return next((event for event in named(new, name) if keys.items() <= event.items()), None)

        return eventually(find, f"another {name} {keys}", details=self.output, timeout_s=timeout_s)

    def terminate(self) -> int:
        """Send SIGTERM, as the kubelet does, and return the exit status."""
        return self.stop(signal.SIGTERM)
