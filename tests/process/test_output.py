"""Test that a command completes its work even if its standard output is closed, broken, full or blocked."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.builders import NAME, OUR_COMMENT
from tests.process.commands import HANGS_AFTER_S, PROGRAM, Pod
from tests.simulators import faults

DEVNULL = subprocess.DEVNULL


class UnwritableOutput:
    """A standard output that cannot be written.

    Args:
        kind: `closed`, `broken` (a pipe whose reader has ended), `full disk`, or `blocked` (a full pipe).
    """

    def __init__(self, kind: str) -> None:
        self.is_closed = kind == "closed"
        self._descriptors: list[int] = []
        # If the kind is `closed`, the function `start` closes the standard output.
        if kind in {"closed", "full disk"}:
            self.descriptor = self._keep(os.open("/dev/full", os.O_WRONLY))
            return
        reader, self.descriptor = os.pipe()
        self._keep(self.descriptor)
        if kind == "broken":
            os.close(reader)
            return
        self._keep(reader)
        fcntl.fcntl(self.descriptor, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.descriptor, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.descriptor, b"x")
        os.set_blocking(self.descriptor, True)

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def close(self) -> None:
        """Close the descriptors of this process."""
        for descriptor in self._descriptors:
            os.close(descriptor)


@pytest.fixture(params=["closed", "broken", "full disk", "blocked"])
def output(request: pytest.FixtureRequest) -> Iterator[UnwritableOutput]:
    output = UnwritableOutput(request.param)
    yield output
    output.close()


def start(pod: Pod, output: UnwritableOutput, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start the program with this standard output."""
    command = [PROGRAM, *arguments]
    if output.is_closed:
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    return subprocess.Popen(
        command,
        env=pod.environment | variables,
        cwd=pod.working_directory,
        stdin=DEVNULL,
        stdout=output.descriptor,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait until the process has ended, and return its exit status and standard error."""
    with process:
        try:
            _, errors = process.communicate(timeout=HANGS_AFTER_S)
        finally:
            process.kill()
    return process.returncode, errors


def test_cleanup_writes_the_key_without_a_writable_output(pod: Pod, output: UnwritableOutput) -> None:
    assert result_of(start(pod, output, "cleanup")) == (0, "")
    assert pod.key_file.read_text() == pod.headscale.keys[-1].key


@pytest.mark.default_cases(2)
def test_failed_cleanup_has_its_exit_status_without_a_writable_output(pod: Pod, output: UnwritableOutput) -> None:
    assert result_of(start(pod, output, "cleanup", HEADSCALE_USER="bob")) == (1, "")
    assert result_of(start(pod, output, "cleanup", DOMAIN_NAME="")) == (2, "")
    assert pod.has_no_writes


def test_dns_watch_publishes_the_record_without_a_writable_output(pod: Pod, output: UnwritableOutput) -> None:
    node = pod.headscale.add_node(NAME, user="svc")

    process = start(pod, output, "dns-watch", "--once", TAILSCALE_INTERFACE="", LOG_LEVEL="debug")

    assert result_of(process) == (0, "")
    assert pod.records() == {f"A {node.address}": OUR_COMMENT}


@pytest.mark.default_cases(4)
@pytest.mark.parametrize(
    ("arguments", "status"),
    [pytest.param(["cleanup"], 1, id="cleanup"), pytest.param(["dns-watch"], 0, id="dns-watch")],
)
def test_signal_ends_the_command_without_a_writable_output(
    pod: Pod, output: UnwritableOutput, arguments: list[str], status: int
) -> None:
    pod.headscale.faults.add(faults.answer(503, headers={"Retry-After": "60"}), times=None)
    process = start(pod, output, *arguments, HEALTH_PORT="0", TAILSCALE_INTERFACE="")
    assert pod.headscale_requested.wait(HANGS_AFTER_S)

    process.send_signal(signal.SIGTERM)

    assert result_of(process) == (status, "")


@pytest.mark.default_cases(4)
@pytest.mark.parametrize("kind", ["closed", "broken", "full disk"])
@pytest.mark.parametrize("arguments", [["--dry-run"], ["--dry-run", "--output", "json"], ["--help"], ["--version"]])
def test_report_that_cannot_be_written_exits_with_1(pod: Pod, kind: str, arguments: list[str]) -> None:
    """The dry run reports the failure on standard error, except if the reader has ended, as with `| head`.

    --help and --version report nothing.
    """
    output = UnwritableOutput(kind)
    status, errors = result_of(start(pod, output, *arguments, HEADSCALE_USER="svc"))
    output.close()

    assert status == 1
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    is_quiet = kind == "broken" or "--dry-run" not in arguments
    assert events == ([] if is_quiet else ["command.failed"])
    assert pod.has_no_writes


def test_signal_ends_a_dry_run_whose_output_is_not_read(pod: Pod) -> None:
    output = UnwritableOutput("blocked")
    process = start(pod, output, "--dry-run", HEADSCALE_USER="svc")
    assert pod.headscale_requested.wait(HANGS_AFTER_S)

    process.send_signal(signal.SIGTERM)

    assert result_of(process) == (1, "")
    output.close()


def test_usage_error_that_cannot_be_written_exits_with_2(pod: Pod) -> None:
    with open(os.devnull) as null, open("/dev/full", "w") as disk:  # noqa: PTH123 - a device
        done = subprocess.run(
            [PROGRAM, "clean"], env=pod.environment, stdin=null, stdout=null, stderr=disk, check=False
        )

    assert done.returncode == 2
