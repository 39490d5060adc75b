"""Test real processes of the commands: they are killed or frozen at a request, or cannot write to their volume."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest

from tests.builders import NAME, OUR_COMMENT
from tests.faults.schedule import UpstreamName
from tests.process.commands import HANG_TIMEOUT_S, CompletedRun, Pod, Running
from tests.simulators.headscale import HeadscaleSimulator, Node
from tests.simulators.serve import serve
from tests.tally import add_to_count

# The number of requests of cleanup to Headscale: reads of the version, the users and all nodes, a read and the deletion
# of the old node, the creation of the pre-auth key, and another read of all nodes before the old record is deleted.
CLEANUP_REQUESTS = 7
READ_OF_OLD_NODE = 3

# The requests of dns-watch to Headscale: users, nodes, version and API keys. Its requests to Cloudflare: a read of the
# records, and the creation of the missing record.
# Each item is the upstream (Headscale or Cloudflare), the number of the request, and True if the upstream executes the
# request before the process is killed. Only the creation changes anything, so only it is in the list with False, too.
WATCH_REQUESTS = [
    *(("headscale", number, True) for number in range(4)),
    ("cloudflare", 0, True),
    ("cloudflare", 1, False),
    ("cloudflare", 1, True),
]


class Gate:
    """A WSGI application that forwards requests to an upstream. One request waits until the gate is opened.

    Args:
        application: the upstream.
        number: the number of the request that waits, from 0.
        after_execution: True if the upstream executes this request, and its response waits; False if the request waits.

    Attributes:
        reached: set when this request has begun to wait.
        opened: set by the test to let this request continue.
    """

    def __init__(self, application: WSGIApplication, number: int, *, after_execution: bool) -> None:
        self._application = application
        self._requests_left = number
        self._after_execution = after_execution
        self._lock = Lock()
        self.reached = Event()
        self.opened = Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Forward a request, and return the response."""
        with self._lock:
            waits = self._requests_left == 0
            self._requests_left -= 1
        if waits and not self._after_execution:
            self._wait()
        response = self._application(environ, start_response)
        if waits and self._after_execution:
            self._wait()
        return response

    def _wait(self) -> None:
        self.reached.set()
        self.opened.wait(HANG_TIMEOUT_S)


class PodWithPredecessor(Pod):
    """A pod whose predecessor left a node and a record.

    The node `foreign` has the same name, but does not belong to the workload, because a person registered it (OIDC).
    """

    def __init__(self, **pod: Any) -> None:
        super().__init__(HeadscaleSimulator(), **pod)
        self.headscale.add_user("svc")
        self.foreign = self.headscale.add_node(NAME, user="svc", registered_by="oidc")
        self.old = self.add_leftovers()
        self.environment |= {"HEALTH_PORT": "0", "TAILSCALE_INTERFACE": ""}

    @contextmanager
    def start_until_request(
        self, *command: str, upstream: UpstreamName = "headscale", number: int, after_execution: bool = False
    ) -> Iterator[tuple[Running, Gate]]:
        """Start a command. Yield the process and the gate when the process waits for the response to one request.

        Args:
            command: the name of the command and its arguments.
            upstream: the upstream to which this request is sent.
            number: the number of the request, as for `Gate`.
            after_execution: True if the upstream executes the request before the process waits, as for `Gate`.
        """
        gate = Gate(getattr(self, upstream), number, after_execution=after_execution)
        with serve(gate) as url:
            urls = {"headscale": {"HEADSCALE_URL": url}, "cloudflare": {"CLOUDFLARE_API_URL": f"{url}/client/v4"}}
            running = self.start(*command, **urls[upstream])
            assert gate.reached.wait(HANG_TIMEOUT_S)
            yield running, gate
            gate.opened.set()

    def kill_at_request(self, *command: str, **request: Any) -> None:
        """Start a command, and kill it with SIGKILL at a request. `start_until_request` has the same arguments."""
        with self.start_until_request(*command, **request) as (running, _gate):
            assert running.stop(signal.SIGKILL).status == -signal.SIGKILL
        add_to_count("kills", "processes")

    def register(self) -> Node:
        """Run `cleanup`, and register the node of this pod with the pre-auth key that `cleanup` has written."""
        self.run_successfully("cleanup")
        node = self.headscale.register(key=self.key_file.read_text(), hostname=NAME)
        self.headscale.connect(node.id)
        return node

    def run_successfully(self, *command: str) -> CompletedRun:
        """Run a command that must succeed."""
        result = self.run(*command)
        assert result.status == 0, result.output
        return result

    def check_invariants(self) -> None:
        """Check that the foreign node exists, and that the key file, if it exists, contains a whole key."""
        assert self.headscale.node(self.foreign.id) is not None
        if self.key_file.exists():
            assert self.key_file.read_text() in {key.key for key in self.headscale.keys}
            assert stat.S_IMODE(self.key_file.stat().st_mode) == 0o640

    def check_recovery(self) -> None:
        """Check that the next `cleanup` deletes what the predecessor left, and writes a valid key."""
        self.run_successfully("cleanup")
        self.check_invariants()
        assert [node.id for node in self.headscale.nodes] == [self.foreign.id]
        assert self.records() == {}
        assert self.volume_files == ["authkey", "authkey.id"]
        assert self.headscale.register(key=self.key_file.read_text(), hostname=NAME)


@pytest.fixture
def pod(clean_environment: Mapping[str, str], tmp_path: Path) -> Iterator[PodWithPredecessor]:
    with ExitStack() as stack:
        yield PodWithPredecessor(environment=clean_environment, working_directory=tmp_path, stack=stack)


# --- Signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_execution", [False, True], ids=["before execution", "after execution"])
@pytest.mark.parametrize("number", range(CLEANUP_REQUESTS))
def test_cleanup_recovers_from_a_kill_at_each_request(
    pod: PodWithPredecessor, number: int, after_execution: bool
) -> None:
    pod.kill_at_request("cleanup", number=number, after_execution=after_execution)
    pod.check_invariants()
    pod.check_recovery()


@pytest.mark.parametrize(("upstream", "number", "after_execution"), WATCH_REQUESTS)
def test_dns_watch_recovers_from_a_kill_at_each_request(
    pod: PodWithPredecessor, upstream: UpstreamName, number: int, after_execution: bool
) -> None:
    """The next process finds the node of its pod, and creates the record only if it is missing."""
    node = pod.register()
    pod.kill_at_request("dns-watch", upstream=upstream, number=number, after_execution=after_execution)
    pod.check_invariants()
    writes = len(pod.cloudflare.writes)
    is_missing = pod.records() == {}
    pod.run_successfully("dns-watch", "--once")
    assert pod.records() == {f"A {node.address}": OUR_COMMENT}
    assert len(pod.cloudflare.writes) - writes == int(is_missing)
    pod.check_invariants()


def test_frozen_dns_watch_does_not_change_a_record_that_another_owner_took_over(pod: PodWithPredecessor) -> None:
    """While the process is frozen, before it reads the records, another owner adds a CNAME with the same name."""
    pod.register()
    with pod.start_until_request("dns-watch", "--once", upstream="cloudflare", number=0) as (running, gate):
        os.kill(running.pid, signal.SIGSTOP)
        add_to_count("interruptions", "SIGSTOP to processes")
        pod.cloudflare.add_record(pod.zone_id, type="CNAME", name=NAME, content="elsewhere.example.org")
        writes = len(pod.cloudflare.writes)
        gate.opened.set()
        os.kill(running.pid, signal.SIGCONT)
        result = running.wait()
    assert result.status == 1, result.output
    assert "elsewhere.example.org" in result.output
    assert list(pod.records()) == ["CNAME elsewhere.example.org"]
    assert len(pod.cloudflare.writes) == writes


def test_frozen_cleanup_does_not_delete_a_node_that_has_registered_meanwhile(pod: PodWithPredecessor) -> None:
    """While the process waits for the old node's data, another pod deletes the old node and registers a new one."""
    with pod.start_until_request("cleanup", number=READ_OF_OLD_NODE, after_execution=True) as (running, gate):
        os.kill(running.pid, signal.SIGSTOP)
        add_to_count("interruptions", "SIGSTOP to processes")
        pod.headscale.delete_node(pod.old.id)
        newer = pod.headscale.add_node(NAME, user="svc")
        gate.opened.set()
        os.kill(running.pid, signal.SIGCONT)
        result = running.wait()
    assert result.status == 0, result.output
    assert {node.id for node in pod.headscale.nodes} == {pod.foreign.id, newer.id}
    pod.check_invariants()


# --- The volume ---------------------------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a volume")


@contextmanager
def mounted(volume: Path, options: str) -> Iterator[None]:
    """Mount a volume in memory during the block."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(volume)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this process may not mount a volume")
    try:
        yield
    finally:
        subprocess.run(["umount", volume], check=True)


def fill(volume: Path) -> None:
    """Write to a volume until it is full."""
    with suppress(OSError), (volume / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@needs_root
@pytest.mark.parametrize(
    ("kind", "options"), [("full volume", "size=4k,nr_inodes=2"), ("read-only volume", "ro")], ids=["full", "read-only"]
)
def test_cleanup_deletes_nothing_if_the_key_cannot_be_written(pod: PodWithPredecessor, kind: str, options: str) -> None:
    """The old node is not deleted, and no pre-auth key is created, because the pod could not use it."""
    keys = pod.headscale.keys
    with mounted(pod.volume, options):
        if kind == "full volume":
            fill(pod.volume)
        result = pod.run("cleanup")
        add_to_count("faults injected", kind)
        assert result.status == 1
        assert "could not be written" in result.output
        assert pod.headscale.node(pod.old.id) is not None
        assert pod.headscale.keys == keys
        assert not pod.key_file.exists()
    pod.check_recovery()


@needs_root
@pytest.mark.parametrize("kind", ["full volume", "read-only volume"])
def test_dns_watch_works_without_a_writable_volume(pod: PodWithPredecessor, kind: str) -> None:
    """The record gets in sync, and the key file still contains a whole key."""
    with mounted(pod.volume, "size=16k,nr_inodes=8"):
        node = pod.register()
        if kind == "full volume":
            fill(pod.volume)
        else:
            subprocess.run(["mount", "-o", "remount,ro", pod.volume], check=True)
        pod.run_successfully("dns-watch", "--once")
        add_to_count("faults injected", kind)
        assert pod.records() == {f"A {node.address}": OUR_COMMENT}
        pod.check_invariants()
        assert pod.key_file.exists()
