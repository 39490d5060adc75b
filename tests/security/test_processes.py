"""Test that command lines, logs and exec requests contain no secrets, and that commands start no child processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.builders import NAME
from tests.process.cluster import Authority, ClusterPod, require_mount_namespace
from tests.process.commands import HANG_TIMEOUT_S, PROGRAM, Pod
from tests.simulators import faults
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import Finished
from tests.simulators.kubernetes import ExecFault
from tests.tally import add_to_count

POD_COMMANDS = [("cleanup",), ("dns-watch", "--once"), ("--dry-run",)]
COMMANDS = [*POD_COMMANDS, ("prune",), ("prune", "--name", NAME, "--yes")]

SETTINGS = {"LOG_LEVEL": "debug", "DNS_OWNER": "default", "MAX_RETRIES": "1", "HEALTH_PORT": "0", "HTTP_TIMEOUT": "5s"}

EXEC_FAULTS = {
    "no fault": None,
    "truncated output": ExecFault(sent_bytes=5),
    "malformed output": ExecFault(instead=Finished(stdout=b"garbage")),
    "error": ExecFault(instead=Finished(exit_status=1, stderr=b"Error: rpc error: code = Unavailable")),
    "restarting container": ExecFault(start_error="container is restarting"),
}


def children_of(pid: int) -> list[str]:
    """Return the ids of a process's children.

    /proc also has a list of children for each thread, but a thread can end before its list is read.
    """
    children = []
    for process in Path("/proc").glob("[0-9]*"):
        # Other processes can end while they are read.
        with suppress(FileNotFoundError, ProcessLookupError):
            if f"\nPPid:\t{pid}\n".encode() in (process / "status").read_bytes():
                children.append(process.name)
    return children


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_line_contains_no_secret_and_no_child_is_started(pod: Pod, command: tuple[str, ...]) -> None:
    """All users of a machine can read the command lines of a process and its children."""
    pod.add_leftovers()
    # The command waits for Headscale's response while /proc is read.
    pod.headscale.faults.add(faults.hang())
    running = pod.start_command(PROGRAM, *command, **SETTINGS)
    assert pod.headscale_requested.wait(HANG_TIMEOUT_S)
    arguments = Path(f"/proc/{running.pid}/cmdline").read_text()
    children = children_of(running.pid)
    result = running.stop()
    assert arguments.rstrip("\0").split("\0")[-len(command) :] == list(command)
    assert pod.secrets_in(arguments, result.output) == []
    assert children == []
    add_to_count("secrets searched", by=len(pod.headscale.secrets()) + len(pod.cloudflare.secrets()))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require_mount_namespace()
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def cluster_pod(authority: Authority, clean_environment: Mapping[str, str], tmp_path: Path) -> Iterator[ClusterPod]:
    """A pod with Headscale 0.27, whose list of nodes contains complete pre-auth keys."""
    headscale = HeadscaleSimulator("0.27.1")
    headscale.add_user("svc")
    with ExitStack() as stack:
        yield ClusterPod(
            headscale, authority=authority, environment=clean_environment, working_directory=tmp_path, stack=stack
        )


@pytest.mark.parametrize("kind", EXEC_FAULTS)
def test_output_and_urls_of_exec_requests_contain_no_secret(cluster_pod: ClusterPod, kind: str) -> None:
    """The URLs contain the arguments of the `headscale` command, and Kubernetes audit logs contain the URLs."""
    pod, fault = cluster_pod, EXEC_FAULTS[kind]
    pod.add_leftovers()
    for command in POD_COMMANDS:
        if fault is not None:
            pod.kubernetes.add_exec_fault(fault, "nodes list")
            pod.kubernetes.add_exec_fault(fault, "preauthkeys create")
            add_to_count("runs of commands during failures", f"exec: {kind}")
        result = pod.run(*command, **SETTINGS)
        urls = [f"{request.path}?{request.query}" for request in pod.kubernetes.requests]
        other_files = [file.read_text() for file in pod.volume.iterdir() if file.name != "authkey"]
        assert result.stdout
        assert "Traceback" not in result.output
        # `secrets_in` also searches for the token of the service account.
        add_to_count("secrets searched", by=len(pod.headscale.secrets()) + len(pod.cloudflare.secrets()) + 1)
        assert pod.secrets_in(result.output, *urls, *other_files) == []
