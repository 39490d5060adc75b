"""Test that a command completes its work even if its standard output is closed, broken, full or blocked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.builders import NAME, OUR_COMMENT
from tests.process.commands import HANG_TIMEOUT_S, PROGRAM, Pod
from tests.simulators import faults
from tests.test_output import Pipe

KINDS = ["closed", "broken", "full disk", "blocked"]
"""Standard outputs that cannot be written: `broken` is a pipe without a reader, and `blocked` is a full pipe."""


@contextmanager
def start(pod: Pod, kind: str, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start the program with a standard output that cannot be written."""
    command = [PROGRAM, *arguments]
    if kind == "closed":
        # The shell closes the file that Popen passes as standard output.
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    with closing(Pipe()) as pipe, Path("/dev/full").open("w") as disk:
        if kind == "broken":
            os.close(pipe.reader)
        elif kind == "blocked":
            pipe.fill()
        yield subprocess.Popen(
            command,
            env=pod.environment | variables,
            cwd=pod.working_directory,
            stdin=subprocess.DEVNULL,
            stdout=pipe.writer if kind in {"broken", "blocked"} else disk,
            stderr=subprocess.PIPE,
            text=True,
        )


def result_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait until the process has ended, and return its exit status and standard error."""
    with process:
        try:
            _, errors = process.communicate(timeout=HANG_TIMEOUT_S)
        finally:
            process.kill()
    return process.returncode, errors


def run(pod: Pod, kind: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run the program with a standard output that cannot be written. Return its exit status and standard error."""
    with start(pod, kind, *arguments, **variables) as process:
        return result_of(process)


@pytest.mark.parametrize("kind", KINDS)
def test_cleanup_writes_the_key_without_a_writable_output(pod: Pod, kind: str) -> None:
    assert run(pod, kind, "cleanup") == (0, "")
    assert pod.key_file.read_text() == pod.headscale.keys[-1].key


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("kind", KINDS)
def test_exit_status_of_a_failed_cleanup_without_a_writable_output(pod: Pod, kind: str) -> None:
    assert run(pod, kind, "cleanup", HEADSCALE_USER="unknown") == (1, "")
    assert run(pod, kind, "cleanup", DOMAIN_NAME="") == (2, "")
    assert pod.has_no_writes


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("kind", KINDS)
def test_dns_watch_publishes_the_record_without_a_writable_output(pod: Pod, kind: str) -> None:
    node = pod.headscale.add_node(NAME, user="svc")
    assert run(pod, kind, "dns-watch", "--once", TAILSCALE_INTERFACE="", LOG_LEVEL="debug") == (0, "")
    assert pod.records() == {f"A {node.address}": OUR_COMMENT}


@pytest.mark.max_cases_without_full(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "status"),
    [pytest.param(["cleanup"], 1, id="cleanup"), pytest.param(["dns-watch"], 0, id="dns-watch")],
)
def test_signal_ends_the_command_without_a_writable_output(
    pod: Pod, kind: str, arguments: list[str], status: int
) -> None:
    pod.headscale.faults.add(faults.answer(503, headers={"Retry-After": "60"}), times=None)
    with start(pod, kind, *arguments, HEALTH_PORT="0", TAILSCALE_INTERFACE="") as process:
        assert pod.headscale_requested.wait(HANG_TIMEOUT_S)
        process.send_signal(signal.SIGTERM)
        assert result_of(process) == (status, "")


@pytest.mark.max_cases_without_full(3)
@pytest.mark.parametrize("kind", ["closed", "broken", "full disk"])
@pytest.mark.parametrize("arguments", [["--dry-run"], ["--dry-run", "--output", "json"], ["--help"], ["--version"]])
def test_report_that_cannot_be_written_exits_with_1(pod: Pod, kind: str, arguments: list[str]) -> None:
    """A dry run logs the failure to standard error, except if the reader has ended, as with `| head`."""
    status, errors = run(pod, kind, *arguments, HEADSCALE_USER="svc")
    assert status == 1
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    is_quiet = kind == "broken" or "--dry-run" not in arguments
    assert events == ([] if is_quiet else ["command.failed"])
    assert pod.has_no_writes


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("kind", ["closed", "broken", "full disk"])
def test_manifests_that_cannot_be_written_exit_with_1(pod: Pod, kind: str) -> None:
    """The next program of a pipe, such as `kubectl apply -f -`, has not received all of the manifests."""
    manifest = pod.working_directory / "service.yaml"
    manifest.write_text("apiVersion: v1\nkind: Service\nmetadata: {name: wiki}\n")
    status, errors = run(pod, kind, "inject", str(manifest), LOGIN_SERVER="https://headscale.example.com")
    assert status == 1
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    assert events == ([] if kind == "broken" else ["command.failed"])


def test_signal_ends_a_dry_run_whose_output_is_not_read(pod: Pod) -> None:
    with start(pod, "blocked", "--dry-run", HEADSCALE_USER="svc") as process:
        assert pod.headscale_requested.wait(HANG_TIMEOUT_S)
        process.send_signal(signal.SIGTERM)
        assert result_of(process) == (1, "")


def test_usage_error_that_cannot_be_written_exits_with_2(pod: Pod) -> None:
    with Path("/dev/full").open("w") as disk:
        done = subprocess.run([PROGRAM, "clean"], env=pod.environment, stderr=disk, check=False)
    assert done.returncode == 2
