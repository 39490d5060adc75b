"""The termination message, which `kubectl describe pod` shows, contains the reason of a failure."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.process.commands import HANGS_AFTER_S, PROGRAM, CompletedRun, Pod, Running
from tests.simulators import faults

# Runs in a separate mount namespace, so that the machine's /dev does not change. The arguments are the file to copy the
# termination log to, one of the following commands that create the log, and the command to run.
WITH_PRIVATE_DEV = """
out=$1 create=$2; shift 2
mount -t tmpfs none /dev
eval "$create"
"$@"
status=$?
test -e /dev/termination-log && cat /dev/termination-log >"$out"
exit "$status"
"""

EMPTY_LOG = ": >/dev/termination-log"
NO_LOG = ":"
READ_ONLY_LOG = "echo before >/dev/file; : >/dev/termination-log; mount --bind -o ro /dev/file /dev/termination-log"
# The log is the copy itself, so that the program can replace the shell and receive signals.
SHARED_LOG = ': >"$out"; : >/dev/termination-log; mount --bind "$out" /dev/termination-log; exec "$@"'


@functools.cache
def _reason_to_skip() -> str | None:
    """Return why no mount namespace can be created, or None if it can."""
    if shutil.which("unshare") is None:
        return "unshare is not installed (util-linux)"
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev"], check=False, capture_output=True, text=True
    )
    return None if result.returncode == 0 else f"needs the permission to mount, as root: {result.stderr.strip()}"


@pytest.fixture(autouse=True)
def _require_mount_namespace() -> None:
    if reason := _reason_to_skip():
        pytest.skip(reason)


def start(pod: Pod, *arguments: str, create: str, **variables: str) -> tuple[Running, Path]:
    """Start a command, and return it with the file that gets its termination message."""
    out = pod.working_directory / "termination-message"
    command = ["unshare", "--mount", "sh", "-c", WITH_PRIVATE_DEV, "sh", str(out), create, PROGRAM, *arguments]
    return pod.start_command(*command, **variables), out


def run_with_log(
    pod: Pod, *arguments: str, create: str = EMPTY_LOG, **variables: str
) -> tuple[CompletedRun, str | None]:
    """Run a command and return its result and termination message, or None if the log file is missing."""
    running, out = start(pod, *arguments, create=create, **variables)
    result = running.wait()
    return result, out.read_text() if out.exists() else None


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("arguments", "variables", "status", "word"),
    [
        pytest.param(["cleanup"], {"HEADSCALE_USER": "bob"}, 1, "bob", id="failure"),
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
            id="unregistered node",
        ),
    ],
)
def test_termination_message_contains_the_reason(
    pod: Pod, arguments: list[str], variables: dict[str, str], status: int, word: str
) -> None:
    result, message = run_with_log(pod, *arguments, **variables)
    assert result.status == status
    assert message is not None
    assert word in message
    if status == 1:
        assert message == result.last["error"]


def test_incomplete_dry_run_writes_the_reason(pod: Pod) -> None:
    result, message = run_with_log(pod, "--dry-run", HEADSCALE_USER="bob")
    assert result.status == 1
    assert message is not None
    assert "bob" in message


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("arguments", "logged"),
    [
        pytest.param(["cleanup"], ["settings.loaded", "stop.requested"], id="cleanup"),
        pytest.param(["prune", "--yes"], ["settings.loaded", "stop.requested"], id="prune"),
        pytest.param(["--dry-run"], [], id="dry run"),
        pytest.param(["prune"], [], id="prune without --yes"),
    ],
)
def test_termination_message_contains_the_signal_that_stopped_the_command(
    pod: Pod, arguments: list[str], logged: list[str]
) -> None:
    pod.headscale.faults.add(faults.hang(limit_s=3600), times=None)
    running, out = start(pod, *arguments, create=SHARED_LOG, HTTP_TIMEOUT="1h", DNS_OWNER="monitoring")
    assert pod.has_requested_headscale.wait(HANGS_AFTER_S)
    result = running.stop()
    assert result.status == 1
    assert [event["event"] for event in result.events] == logged
    assert out.read_text() == "stopped by SIGTERM before the work was done; no manual cleanup is needed"
    assert pod.has_no_writes


def test_termination_message_is_cut_to_the_limit_of_the_kubelet(pod: Pod) -> None:
    for number in range(400):
        pod.headscale.add_user(f"user-{number:04d}")
    result, message = run_with_log(pod, "cleanup")
    assert result.status == 1
    assert message is not None
    assert len(message.encode()) == 4096
    assert result.last["error"].startswith(message)


def test_success_writes_no_termination_message(pod: Pod) -> None:
    result, message = run_with_log(pod, "cleanup")
    assert (result.status, message) == (0, "")


@pytest.mark.parametrize("owner", ["monitoring", ""])
def test_status_does_not_change_the_termination_message_of_dns_watch(pod: Pod, owner: str) -> None:
    """An operator runs `status` in the container of dns-watch."""
    pod.headscale.faults.add(faults.html(502), times=None)
    result, message = run_with_log(pod, "status", DNS_OWNER=owner)
    assert (result.status, message) == (1 if owner else 2, "")


def test_missing_termination_log_is_not_created(pod: Pod) -> None:
    result, message = run_with_log(pod, "cleanup", create=NO_LOG, HEADSCALE_USER="bob")
    assert (result.status, result.stderr, message) == (1, "", None)


def test_read_only_termination_log_is_not_changed(pod: Pod) -> None:
    result, message = run_with_log(pod, "cleanup", create=READ_ONLY_LOG, HEADSCALE_USER="bob")
    assert (result.status, result.stderr, message) == (1, "", "before\n")


def test_termination_message_contains_no_secret(pod: Pod) -> None:
    pod.headscale.faults.add(faults.answer(500, pod.headscale.api_key, content_type="text/plain"), path="/none")
    result, message = run_with_log(pod, "cleanup", HEADSCALE_API_KEY="hskey-api-wrong-0123456789")
    assert result.status == 1
    assert message is not None
    assert "hskey-api-wrong-0123456789" not in message
    assert not Path(pod.key_file).exists()


@pytest.mark.parametrize(
    ("users", "variables"),
    [
        pytest.param(["bob\x9b2J"], {}, id="terminal escape in a response"),
        pytest.param([], {"HEADSCALE_USER": "caf\udce9"}, id="undecodable setting"),
    ],
)
def test_termination_message_is_printable(pod: Pod, users: list[str], variables: dict[str, str]) -> None:
    """`kubectl describe` prints it to a terminal."""
    for user in users:
        pod.headscale.add_user(user)
    result, message = run_with_log(pod, "cleanup", **variables)
    assert result.status == 1
    assert message
    assert message.isprintable()
