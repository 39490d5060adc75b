"""Test that the termination message, which `kubectl describe pod` shows, contains the reason of a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process.cluster import IN_NEW_MOUNT_NAMESPACE, require_mount_namespace
from tests.process.commands import HANG_TIMEOUT_S, PROGRAM, Pod
from tests.simulators import faults

# A shell script that mounts the file $1 as /dev/termination-log, read-only or writable ($2 is "ro" or "rw"), and then
# runs the command that the other arguments contain.
_WITH_TERMINATION_LOG = """
log=$1 mode=$2; shift 2
touch "$log"
mount -t tmpfs none /dev
touch /dev/termination-log
mount --bind "$log" /dev/termination-log
mount -o "remount,bind,$mode" /dev/termination-log
exec "$@"
"""

UNKNOWN_USER = "bob"
"""Headscale has no user with this name, so the commands fail."""


@pytest.fixture
def log(pod: Pod) -> Path:
    """The termination log, which the kubelet creates before it starts a container."""
    pod.termination_log.touch()
    return pod.termination_log


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_message_is_written_to_the_default_path_unless_the_file_is_read_only(pod: Pod, log: Path, mode: str) -> None:
    require_mount_namespace()
    log.write_text("before")
    command = [*IN_NEW_MOUNT_NAMESPACE, "sh", "-ec", _WITH_TERMINATION_LOG, "sh", str(log), mode, PROGRAM, "cleanup"]
    result = pod.start_command(*command, HEADSCALE_USER=UNKNOWN_USER).wait()
    assert (result.status, result.stderr) == (1, "")
    assert log.read_text() == (result.last_event["error"] if mode == "rw" else "before")


@pytest.mark.max_cases_without_full(2)
@pytest.mark.parametrize(
    ("arguments", "variables", "status", "word"),
    [
        pytest.param(["cleanup"], {"HEADSCALE_USER": UNKNOWN_USER}, 1, UNKNOWN_USER, id="failure"),
        pytest.param(
            ["cleanup"],
            {"CLOUDFLARE_ZONE_ID": "x", "DOMAIN_NAME": ""},
            2,
            "CLOUDFLARE_ZONE_ID",
            id="invalid settings",
        ),
        pytest.param(["cleanup", "--once"], {}, 2, "--once", id="invalid arguments"),
        pytest.param(
            ["dns-watch"],
            {"TAILSCALE_INTERFACE": "", "MAX_RETRIES": "1", "HEALTH_PORT": "0"},
            1,
            "MAX_RETRIES",
            id="node does not register within MAX_RETRIES",
        ),
    ],
)
def test_termination_message_contains_the_reason(
    pod: Pod, log: Path, arguments: list[str], variables: dict[str, str], status: int, word: str
) -> None:
    result = pod.run(*arguments, **variables)
    assert result.status == status
    assert word in log.read_text()
    if status == 1:
        assert log.read_text() == result.last_event["error"]


@pytest.mark.parametrize("arguments", [["--dry-run"], ["prune", "--name", "status"]], ids=" ".join)
def test_incomplete_dry_run_writes_the_reason(pod: Pod, log: Path, arguments: list[str]) -> None:
    assert pod.run(*arguments, HEADSCALE_USER=UNKNOWN_USER, DNS_OWNER="monitoring").status == 1
    assert UNKNOWN_USER in log.read_text()


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize(
    ("arguments", "event_names"),
    [
        pytest.param(["cleanup"], ["settings.loaded", "stop.requested"], id="cleanup"),
        pytest.param(["prune", "--yes"], ["settings.loaded", "stop.requested"], id="prune"),
        pytest.param(["--dry-run"], [], id="dry run"),
        pytest.param(["prune"], [], id="prune without --yes"),
    ],
)
def test_termination_message_contains_the_signal_that_stopped_the_command(
    pod: Pod, log: Path, arguments: list[str], event_names: list[str]
) -> None:
    pod.headscale.faults.add(faults.hang(limit_s=3600), times=None)
    # `prune` requires DNS_OWNER.
    running = pod.start(*arguments, HTTP_TIMEOUT="1h", DNS_OWNER="monitoring")
    assert pod.headscale_requested.wait(HANG_TIMEOUT_S)
    result = running.stop()
    assert result.status == 1
    assert [event["event"] for event in result.events] == event_names
    assert log.read_text() == "stopped by SIGTERM before the work was done; no manual cleanup is needed"
    assert pod.has_no_writes


def test_termination_message_is_cut_to_the_limit_of_the_kubelet(pod: Pod, log: Path) -> None:
    # Without HEADSCALE_USER, the message lists all users of Headscale.
    for number in range(400):
        pod.headscale.add_user(f"user-{number:04d}")
    result = pod.run("cleanup")
    assert result.status == 1
    assert len(log.read_bytes()) == 4096
    assert result.last_event["error"].startswith(log.read_text())


def test_success_writes_no_termination_message(pod: Pod, log: Path) -> None:
    assert pod.run("cleanup").status == 0
    assert log.read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "owner", "status"),
    [
        pytest.param([], "monitoring", 1, id="failure"),
        pytest.param([], "", 2, id="invalid settings"),
        pytest.param(["--once"], "monitoring", 2, id="invalid arguments"),
    ],
)
def test_status_does_not_change_the_termination_message_of_dns_watch(
    pod: Pod, log: Path, arguments: list[str], owner: str, status: int
) -> None:
    """An operator runs `status` in the container of dns-watch."""
    pod.headscale.faults.add(faults.html(502), times=None)
    assert pod.run("status", *arguments, DNS_OWNER=owner).status == status
    assert log.read_text() == ""


def test_missing_termination_log_is_not_created(pod: Pod) -> None:
    result = pod.run("cleanup", HEADSCALE_USER=UNKNOWN_USER)
    assert (result.status, result.stderr) == (1, "")
    assert not pod.termination_log.exists()


@pytest.mark.parametrize(
    ("users", "variables"),
    [
        pytest.param(["bob\x9b2J"], {}, id="terminal escape in a response"),
        pytest.param([], {"HEADSCALE_USER": "caf\udce9"}, id="undecodable setting"),
    ],
)
def test_termination_message_is_printable(pod: Pod, log: Path, users: list[str], variables: dict[str, str]) -> None:
    """`kubectl describe` prints the message to a terminal."""
    for user in users:
        pod.headscale.add_user(user)
    assert pod.run("cleanup", **variables).status == 1
    assert log.read_text()
    assert log.read_text().isprintable()
