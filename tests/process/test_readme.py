"""What the manual shows as printed is what is printed, step by step."""

from __future__ import annotations

import re
from pathlib import Path

from tests.builders import NAME
from tests.process.commands import Pod
from tests.process.test_commands import SIDECAR, leave_behind
from tests.simulators.vpn_client import VpnClient

# What differs from run to run.
VARYING = {
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)": "<time>",
    r'"duration_s": \d+\.\d+': '"duration_s": <s>',
    r'"path": "[^"]*"': '"path": "<path>"',
}


def shown(repository: Path, command: str) -> str:
    """What README.md shows below a command."""
    found = re.search(
        rf"^```console\n\$ {re.escape(command)}\n(.*?)^```",
        (repository / "README.md").read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    assert found, f"README.md does not show what {command!r} prints"
    return found[1]


def lasting(text: str) -> str:
    """A log without what differs from run to run, and without the settings, which have a table of their own."""
    for pattern, constant in VARYING.items():
        text = re.sub(pattern, constant, text)
    return "".join(line for line in text.splitlines(keepends=True) if "settings.loaded" not in line)


def test_both_commands_print_what_the_manual_shows(pod: Pod, repository: Path) -> None:
    """A pod whose predecessor left a node and a record."""
    pod.environment["HEADSCALE_USER"] = pod.headscale.add_user("services").name
    leave_behind(pod, user="services")
    cleaned = pod.run("cleanup")
    VpnClient(pod.headscale, key_file=pod.key_file, hostname=NAME).start()
    watched = pod.run("dns-watch", "--once", **SIDECAR)
    assert lasting(cleaned.out) == lasting(shown(repository, "lifecycle cleanup"))
    assert lasting(watched.out) == lasting(shown(repository, "lifecycle dns-watch --once"))
