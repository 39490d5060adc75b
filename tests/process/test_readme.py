"""The logs that docs/operations.md shows have the events of a real run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.builders import NAME
from tests.pages import blocks
from tests.process.commands import Pod
from tests.process.test_commands import SIDECAR, add_leftovers
from tests.simulators.vpn_client import VpnClient


def shown(repository: Path, command: str) -> list[str]:
    """Return the lines that the page shows below a command."""
    (found,) = [
        block.text.splitlines()[1:]
        for block in blocks((repository / "docs/operations.md").read_text(), "console")
        if block.text.startswith(f"$ {command}\n")
    ]
    return found


def events(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the logged events, except those about settings, which depend on the test."""
    logged = [json.loads(line) for line in lines]
    return [event for event in logged if not event["event"].startswith("settings.")]


def compare(run: Iterable[str], shown: Iterable[str]) -> None:
    """Assert the same events at the same levels, and no key in the page that a run does not log."""
    expected, logged = events(shown), events(run)
    assert [(event["event"], event["level"]) for event in logged] == [
        (event["event"], event["level"]) for event in expected
    ]
    for example, event in zip(expected, logged, strict=True):
        assert example.keys() <= event.keys()


def test_both_commands_log_what_the_operations_page_shows(pod: Pod, repository: Path) -> None:
    """The previous pod left a node and a record."""
    pod.environment["HEADSCALE_USER"] = pod.headscale.add_user("services").name
    add_leftovers(pod, user="services")
    cleaned = pod.run("cleanup")
    VpnClient(pod.headscale, key_file=pod.key_file, hostname=NAME).start()
    watched = pod.run("dns-watch", "--once", **SIDECAR)
    compare(cleaned.stdout.splitlines(), shown(repository, "lifecycle cleanup"))
    compare(watched.stdout.splitlines(), shown(repository, "lifecycle dns-watch --once"))
