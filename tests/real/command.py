"""Run the commands of this project as processes, and read the events that the commands log."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.real.programs import TIMEOUT_S, BackgroundProcess, eventually

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """The result of a command."""

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
    # A line that is not JSON is usually part of a traceback, so the error message contains the whole log.
    assert all(line.startswith("{") for line in lines), text
    return [json.loads(line) for line in lines]


def events_named(events: list[Event], name: str) -> list[Event]:
    """Return the events with this name."""
    return [event for event in events if event["event"] == name]


class DnsWatch(BackgroundProcess):
    """A running `dns-watch`."""

    def __init__(
        self, *, environment: Mapping[str, str], folder: Path, log: Path, prefix: Sequence[str | Path] = ()
    ) -> None:
        command = [*prefix, sys.executable, "-m", "lifecycle", "dns-watch"]
        super().__init__(command, log=log, environment=environment, folder=folder)

    @property
    def events(self) -> list[Event]:
        """The events logged so far."""
        return events_in(self.output())

    def events_named(self, name: str) -> list[Event]:
        """Return the events with this name that were logged so far."""
        return events_named(self.events, name)

    def wait_for(self, name: str, *, timeout_s: float = TIMEOUT_S, start: int = 0, **fields: object) -> Event:
        """Wait until an event with this name and these fields has been logged, and return the latest such event.

        Args:
            start: how many of the first events to ignore.
        """

        def find() -> Event | None:
            assert self.exit_status is None, self.output()
            matching = [event for event in events_named(self.events[start:], name) if fields.items() <= event.items()]
            return matching[-1] if matching else None

        return eventually(find, f"{name} {fields}", details=self.output, timeout_s=timeout_s)

    def wait_for_next(self, name: str, *, timeout_s: float = TIMEOUT_S, **fields: object) -> Event:
        """Wait until an event with this name and these fields is logged after this call, and return the event."""
        return self.wait_for(name, timeout_s=timeout_s, start=len(self.events), **fields)

    def terminate(self) -> int:
        """Send SIGTERM, as the kubelet does, and return the exit status."""
        return self.stop(signal.SIGTERM)
