"""No secrets in command lines, child processes, logs and exec requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.builders import MARK, NAME
from tests.process.cluster import Authority, ClusterPod, require_mount_namespace
from tests.process.commands import HANGS_AFTER_S, PROGRAM, Pod, RequestDetector, served_pod
from tests.simulators import faults
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import Finished
from tests.simulators.kubernetes import ExecFault, KubernetesSimulator
from tests.simulators.serve import serve
from tests.tally import count

COMMANDS = [
    ("cleanup",),
    ("dns-watch", "--once"),
    ("--dry-run",),
    ("prune",),
    ("prune", "--name", NAME, "--yes"),
]

SETTINGS = {"LOG_LEVEL": "debug", "DNS_OWNER": "default", "MAX_RETRIES": "1", "HEALTH_PORT": "0", "HTTP_TIMEOUT": "5s"}

FAULTS = {
    "none": None,
    "truncated output": ExecFault(cut_after=5),
    "malformed output": ExecFault(instead=Finished(stdout=b"garbage")),
    "error": ExecFault(instead=Finished(exit_status=1, stderr=b"Error: rpc error: code = Unavailable")),
    "restarting container": ExecFault(unstarted="container is restarting"),
}


def add_leftovers(pod: Pod) -> None:
    """Add a node that has its own key, and its record."""
    user = pod.headscale.add_user("svc")
    node = pod.headscale.add_node(NAME, user=user, pre_auth_key=pod.headscale.create_key(user))
    pod.cloudflare.add_record(pod.zone_id, type="A", name=NAME, content=node.address, comment=MARK)


def children_of(pid: int) -> list[str]:
    """Return the ids of a process's children.

    This compares the parent of each process, because /proc lists children by thread, and threads end at any time.
    """
    children = []
    for process in Path("/proc").glob("[0-9]*"):
        # Other processes can end while they are read.
        with suppress(FileNotFoundError, ProcessLookupError):
            if f"\nPPid:\t{pid}\n".encode() in (process / "status").read_bytes():
                children.append(process.name)
    return children


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_line_contains_no_secret(
    clean_environment: Mapping[str, str], tmp_path: Path, command: tuple[str, ...]
) -> None:
    """All users of a machine can read command lines; child processes would have their own."""
    headscale = HeadscaleSimulator("0.27.1")
    detector = RequestDetector(headscale)
    with served_pod(clean_environment, tmp_path, headscale, wrap=lambda _application: detector) as pod:
        add_leftovers(pod)
        headscale.faults.add(faults.hang())
        running = pod.start_command(PROGRAM, *command, **SETTINGS)
        assert detector.has_request.wait(HANGS_AFTER_S)
        arguments = Path(f"/proc/{running.pid}/cmdline").read_text()
        children = children_of(running.pid)
        result = running.stop()
    assert arguments.rstrip("\0").split("\0")[-len(command) :] == list(command)
    assert pod.secrets_in(arguments, result.stdout, result.stderr) == []
    assert children == []
    count("secrets searched", by=len(headscale.secrets()) + len(pod.cloudflare.secrets()))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require_mount_namespace()
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def cluster_pod(authority: Authority, clean_environment: Mapping[str, str], tmp_path: Path) -> Iterator[ClusterPod]:
    """A pod with Headscale 0.27, whose list of nodes contains complete pre-auth keys."""
    headscale, cloudflare, kubernetes = HeadscaleSimulator("0.27.1"), CloudflareSimulator(), KubernetesSimulator()
    with ExitStack() as stack:
        yield ClusterPod(
            headscale,
            cloudflare,
            headscale_url=stack.enter_context(serve(headscale)),
            cloudflare_url=stack.enter_context(serve(cloudflare)),
            base=clean_environment,
            working_directory=tmp_path,
            kubernetes=kubernetes,
            kubernetes_url=stack.enter_context(serve(kubernetes, tls=authority.server)),
            authority=authority,
        )


@pytest.mark.parametrize("kind", FAULTS)
def test_output_of_failed_exec_contains_no_secret(cluster_pod: ClusterPod, kind: str) -> None:
    """The URLs of the requests contain the arguments of the commands, and audit logs store them."""
    pod, fault = cluster_pod, FAULTS[kind]
    add_leftovers(pod)
    for command in COMMANDS[:3]:
        if fault is not None:
            pod.kubernetes.spoil(fault, "nodes list")
            pod.kubernetes.spoil(fault, "preauthkeys create")
        result = pod.run(*command, **SETTINGS)
        count("runs of commands through failures", f"exec: {kind}")
        urls = [f"{request.path}?{request.query}" for request in pod.kubernetes.requests]
        metadata = [file.read_text() for file in pod.volume.iterdir() if file.name != "authkey"]
        assert result.stdout
        assert "Traceback" not in result.stdout + result.stderr
        count("secrets searched", by=len(pod.headscale.secrets()) + len(pod.cloudflare.secrets()) + 1)
        assert pod.secrets_in(result.stdout, result.stderr, *urls, *metadata) == []
