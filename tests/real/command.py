"""The commands as processes: how they end, and what they say while they run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.real.programs import PATIENCE_S, Background, eventually

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that ran to its end."""

    exit_status: int
    out: str
    errors: str

    @property
    def events(self) -> list[Event]:
        """What it logged."""
        return events_in(self.out)


def events_in(text: str) -> list[Event]:
    """The events of a log; a line that is still being written is left out."""
    lines = text.split("\n")[:-1]
    # A traceback, most likely: shown whole.
    assert all(line.startswith("{") for line in lines), text
    return [json.loads(line) for line in lines]


def named(events: list[Event], name: str) -> list[Event]:
    """The events of one name."""
    return [event for event in events if event["event"] == name]


def lifecycle(
    *arguments: str, environment: Mapping[str, str], folder: Path, within: Sequence[str | Path] = ()
) -> Ended:
    """Run a command to its end.

    Args:
        arguments: as typed.
        environment: all of it.
        folder: where it runs; without an `.env` in it.
        within: a command that runs it, such as one that makes a mount namespace.
    """
    done = subprocess.run(
        [*within, sys.executable, "-m", "lifecycle", *arguments],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Watch(Background):
    """`dns-watch` while it runs."""

    def __init__(
        self, *, environment: Mapping[str, str], folder: Path, log: Path, within: Sequence[str | Path] = ()
    ) -> None:
        command = [*within, sys.executable, "-m", "lifecycle", "dns-watch"]
        super().__init__(command, log=log, environment=environment, folder=folder)

    @property
    def events(self) -> list[Event]:
        """What it logged so far."""
        return events_in(self.words())

    def named(self, name: str) -> list[Event]:
        """What it logged so far under one name."""
        return named(self.events, name)

    def said(self, name: str, **keys: object) -> Event:
        """Wait until it has logged an event with these values, and give the last such."""

        def look() -> Event | None:
            assert self.exit_status is None, self.words()
            found = [event for event in self.named(name) if keys.items() <= event.items()]
            return found[-1] if found else None

        return eventually(look, f"{name} {keys}", tell=self.words)

    def next(self, name: str, **keys: object) -> Event:
        """Wait for an event that has not been logged yet."""
        before = len(self.events)

        def look() -> Event | None:
            assert self.exit_status is None, self.words()
            new = self.events[before:]
            return next((event for event in named(new, name) if keys.items() <= event.items()), None)

        return eventually(look, f"another {name} {keys}", tell=self.words)

    def stopped(self) -> int:
        """End it as the kubelet does, and give its exit status."""
        return self.stop(signal.SIGTERM)
