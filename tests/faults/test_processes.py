"""The program as a process: killed at each request, frozen, stopped, and with a full or read-only volume."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Lock
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest

from tests.builders import MARK, NAME
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator, Node
from tests.simulators.serve import serve
from tests.tally import count

PROGRAM = [sys.executable, "-m", "lifecycle"]
HANGS_AFTER_S = 60.0

# The requests of cleanup: version, users, nodes, the node, its deletion, the read after it, the key.
REQUESTS = 7

# The requests of dns-watch, and if they are executed before the kill, which matters for the write only: users,
# nodes, version and API keys; the records, and the missing one.
WATCH_REQUESTS = [
    *(("headscale", number, True) for number in range(4)),
    ("cloudflare", 0, True),
    ("cloudflare", 1, False),
    ("cloudflare", 1, True),
]


class Gate:
    """A gate in front of an upstream: one request waits until the gate is opened.

    Args:
        number: of the request that waits, from 0.
        committed: the request is executed before it waits.
    """

    def __init__(self, application: WSGIApplication, number: int, *, committed: bool) -> None:
        self._application = application
        self._left = number
        self._committed = committed
        self._lock = Lock()
        self.reached = Event()
        self.opened = Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass a request on, now or when the gate is opened."""
        with self._lock:
            mine = self._left == 0
            self._left -= 1
        if not mine:
            return self._application(environ, start_response)
        if self._committed:
            answer = self._application(environ, start_response)
            self._wait()
            return answer
        self._wait()
        return self._application(environ, start_response)

    def _wait(self) -> None:
        self.reached.set()
        self.opened.wait(HANGS_AFTER_S)


class Place:
    """Both upstreams with what an earlier pod left behind, and a volume."""

    def __init__(self, base: Mapping[str, str], folder: Path) -> None:
        self.headscale, self.cloudflare = HeadscaleSimulator(), CloudflareSimulator()
        self.headscale.add_user("svc")
        self.foreign = self.headscale.add_node(NAME, user="svc", registered_by="oidc")
        self.old = self.headscale.add_node(NAME, user="svc", online=False)
        zone_id = self.zone_id = self.cloudflare.add_zone("example.com")
        self.cloudflare.add_record(zone_id, type="A", name=NAME, content=self.old.address, comment=MARK)
        self.volume = folder / "volume"
        self.volume.mkdir()
        self.key_file = self.volume / "authkey"
        self._folder = folder
        self._environment = {
            **base,
            "HEADSCALE_API_KEY": self.headscale.api_key,
            "CLOUDFLARE_API_TOKEN": self.cloudflare.token,
            "CLOUDFLARE_ZONE_ID": zone_id,
            "DOMAIN_NAME": "example.com",
            "AUTHKEY_OUTPUT_PATH": str(self.key_file),
            "HOSTNAME": "grafana-0",
            "HEALTH_PORT": "0",
            "TAILSCALE_INTERFACE": "",
            "PYTHONPATH": str(Path(__file__).parent.parent.parent),
        }
        self._stack = ExitStack()

    def close(self) -> None:
        """Stop the servers."""
        self._stack.close()

    def start(
        self, *command: str, headscale: WSGIApplication | None = None, cloudflare: WSGIApplication | None = None
    ) -> subprocess.Popen[str]:
        """Start a command. A gate can be placed in front of an upstream."""
        headscale_url = self._stack.enter_context(serve(headscale or self.headscale))
        cloudflare_url = self._stack.enter_context(serve(cloudflare or self.cloudflare))
        urls = {"HEADSCALE_URL": headscale_url, "CLOUDFLARE_API_URL": f"{cloudflare_url}/client/v4"}
        return subprocess.Popen(
            [*PROGRAM, *command],
            env=self._environment | urls,
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def join(self) -> Node:
        """Start the pod until its node is registered."""
        said, status = ended(self.start("cleanup"))
        assert status == 0, said
        node = self.headscale.register(key=self.key_file.read_text(), hostname=NAME)
        self.headscale.connect(node.id)
        return node

    def records(self) -> list[tuple[str, str]]:
        """Return type and content of the records of the name."""
        return [(record.type, record.content) for record in self.cloudflare.records(self.zone_id, NAME)]

    def has_to_be_whole(self) -> None:
        """Check that foreign objects exist, and that the key file is absent or complete."""
        assert self.headscale.node(self.foreign.id) is not None
        if self.key_file.exists():
            assert self.key_file.read_text() in {key.key for key in self.headscale.keys}
            assert stat.S_IMODE(self.key_file.stat().st_mode) == 0o640

    def has_to_come_right(self) -> None:
        """The next start succeeds."""
        said, status = ended(self.start("cleanup"))
        assert status == 0, said
        self.has_to_be_whole()
        assert [node.id for node in self.headscale.nodes] == [self.foreign.id]
        assert self.cloudflare.records(self.zone_id, NAME) == []
        assert sorted(file.name for file in self.volume.iterdir()) == ["authkey", "authkey.id"]
        assert self.headscale.register(key=self.key_file.read_text(), hostname=NAME)


def ended(process: subprocess.Popen[str]) -> tuple[str, int]:
    """Return the output and exit status of a process."""
    said, _ = process.communicate(timeout=HANGS_AFTER_S)
    return said, process.returncode


@pytest.fixture
def place(clean_environment: Mapping[str, str], tmp_path: Path) -> Iterator[Place]:
    place = Place(clean_environment, tmp_path)
    yield place
    place.close()


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(REQUESTS))
def test_killed_at_each_request(place: Place, number: int, committed: bool) -> None:
    """kill -9 during a request, before or after the server has executed it."""
    gate = Gate(place.headscale, number, committed=committed)
    process = place.start("cleanup", headscale=gate)
    assert gate.reached.wait(HANGS_AFTER_S)
    process.kill()
    _, status = ended(process)
    assert status == -signal.SIGKILL
    count("kills", "processes")
    gate.opened.set()
    place.has_to_be_whole()
    place.has_to_come_right()


@pytest.mark.parametrize(("upstream", "number", "committed"), WATCH_REQUESTS)
def test_dns_watch_killed_at_each_request(place: Place, upstream: str, number: int, committed: bool) -> None:
    """The next process finds its node by the same metadata, and writes what is missing at most once."""
    node = place.join()
    gate = Gate(getattr(place, upstream), number, committed=committed)
    process = place.start("dns-watch", **{upstream: gate})
    assert gate.reached.wait(HANGS_AFTER_S)
    process.kill()
    _, status = ended(process)
    assert status == -signal.SIGKILL
    count("kills", "processes")
    gate.opened.set()
    place.has_to_be_whole()
    written = len(place.cloudflare.writes)
    missing = not place.records()
    said, status = ended(place.start("dns-watch", "--once"))
    assert status == 0, said
    assert place.records() == [("A", node.address)]
    assert len(place.cloudflare.writes) - written == (1 if missing else 0)
    place.has_to_be_whole()


def test_frozen_dns_watch_does_not_change_a_record_taken_over_meanwhile(place: Place) -> None:
    """SIGSTOP after a read from Headscale. The records that it reads then belong to another owner."""
    place.join()
    gate = Gate(place.cloudflare, 0, committed=False)
    process = place.start("dns-watch", "--once", cloudflare=gate)
    assert gate.reached.wait(HANGS_AFTER_S)
    os.kill(process.pid, signal.SIGSTOP)
    count("interruptions", "SIGSTOP to processes")
    place.cloudflare.add_record(place.zone_id, type="CNAME", name=NAME, content="elsewhere.example.org")
    written = len(place.cloudflare.writes)
    gate.opened.set()
    os.kill(process.pid, signal.SIGCONT)
    said, status = ended(process)
    assert status == 1, said
    assert "elsewhere.example.org" in said
    assert place.records() == [("CNAME", "elsewhere.example.org")]
    assert len(place.cloudflare.writes) == written


@pytest.mark.parametrize("command", ["cleanup", "dns-watch"])
def test_stop_during_a_hanging_request(place: Place, command: str) -> None:
    gate = Gate(place.headscale, 2, committed=False)
    process = place.start(command, headscale=gate)
    assert gate.reached.wait(HANGS_AFTER_S)
    process.terminate()
    said, status = ended(process)
    assert status == (1 if command == "cleanup" else 0), said
    assert '"stop.requested"' in said
    count("kills", "SIGTERM to processes")
    gate.opened.set()
    place.has_to_come_right()


def test_frozen_in_the_middle_and_let_go_again(place: Place) -> None:
    """SIGSTOP while another pod cleans up. It then continues with stale data and changes nothing foreign."""
    gate = Gate(place.headscale, 3, committed=True)
    process = place.start("cleanup", headscale=gate)
    assert gate.reached.wait(HANGS_AFTER_S)
    os.kill(process.pid, signal.SIGSTOP)
    count("interruptions", "SIGSTOP to processes")
    # The other pod of the workload removes the same node, and writes to its own volume.
    place.headscale.delete_node(place.old.id)
    newer = place.headscale.add_node(NAME, user="svc")
    gate.opened.set()
    os.kill(process.pid, signal.SIGCONT)
    said, status = ended(process)
    assert status == 0, said
    assert {node.id for node in place.headscale.nodes} == {place.foreign.id, newer.id}
    place.has_to_be_whole()


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to mount a volume")


@contextmanager
def mounted(volume: Path, options: str) -> Iterator[None]:
    """A volume in memory that exists during the block."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(volume)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", volume], check=True)


@needs_root
@pytest.mark.parametrize("options", ["size=4k,nr_inodes=2", "ro"], ids=["full", "read-only"])
def test_cleanup_deletes_nothing_if_the_key_cannot_be_written(place: Place, options: str) -> None:
    """The failure is detected before anything is deleted. No unused key is left behind."""
    with mounted(place.volume, options):
        if options != "ro":
            (place.volume / "filler").write_bytes(bytes(4096))
        said, status = ended(place.start("cleanup"))
        count("faults injected", "read-only volume" if options == "ro" else "full volume")
        assert status == 1
        assert "could not be written" in said
        assert place.headscale.node(place.old.id) is not None
        assert not place.headscale.keys[1:]
        assert not place.key_file.exists()
    place.has_to_come_right()


@needs_root
@pytest.mark.parametrize("kind", ["full volume", "read-only volume"])
def test_dns_watch_works_without_a_writable_volume(place: Place, kind: str) -> None:
    """The record is in sync nevertheless, and the existing key stays complete."""
    with mounted(place.volume, "size=16k,nr_inodes=8"):
        node = place.join()
        if kind == "full volume":
            with suppress(OSError), (place.volume / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
        else:
            subprocess.run(["mount", "-o", "remount,ro", place.volume], check=True)
        said, status = ended(place.start("dns-watch", "--once"))
        count("faults injected", kind)
        assert status == 0, said
        assert place.records() == [("A", node.address)]
        place.has_to_be_whole()
        assert place.key_file.exists()
