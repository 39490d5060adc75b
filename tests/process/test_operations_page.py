"""Test that the logs in docs/operations.md have the events of real runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.builders import NAME
from tests.pages import blocks
from tests.process.commands import Pod
from tests.process.test_commands import SIDECAR_SETTINGS
from tests.simulators.vpn_client import VpnClient


def documented_output(repository: Path, command: str) -> list[str]:
    """Return the lines that docs/operations.md shows below a command."""
    (output,) = [
        block.text.splitlines()[1:]
        for block in blocks((repository / "docs/operations.md").read_text(), "console")
        if block.text.startswith(f"$ {command}\n")
    ]
    return output


def events(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Parse a log, and omit the events about settings, because this test has other settings than the page."""
    logged = [json.loads(line) for line in lines]
    return [event for event in logged if not event["event"].startswith("settings.")]


def assert_documented(output: Iterable[str], documented: Iterable[str]) -> None:
    """Assert that a real log has the documented events, at the same levels and with at least the same keys."""
    logged, examples = events(output), events(documented)
    assert [(event["event"], event["level"]) for event in logged] == [
        (example["event"], example["level"]) for example in examples
    ]
    for example, event in zip(examples, logged, strict=True):
        assert example.keys() <= event.keys()


def test_both_commands_log_what_the_operations_page_shows(pod: Pod, repository: Path) -> None:
    pod.environment["HEADSCALE_USER"] = pod.headscale.add_user("services").name
    pod.add_leftovers(user="services")
    cleaned = pod.run("cleanup")
    VpnClient(pod.headscale, key_file=pod.key_file, hostname=NAME).start()
    watched = pod.run("dns-watch", "--once", **SIDECAR_SETTINGS)
    assert_documented(cleaned.stdout.splitlines(), documented_output(repository, "lifecycle cleanup"))
    assert_documented(watched.stdout.splitlines(), documented_output(repository, "lifecycle dns-watch --once"))
