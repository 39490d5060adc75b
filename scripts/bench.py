"""Measure the real commands against stand-ins of the services on loopback; prints one table."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulators import faults
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve
from tests.simulators.vpn_client import VpnClient

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

NAME = "grafana.example.com"
LIBRARIES = "import httpx, pydantic_settings, structlog, tenacity"
INTERFACE = "tailscale0"

PATIENCE_S = 30.0

REPOSITORY = Path(__file__).parent.parent
PYTHON = str(REPOSITORY / ".venv" / "runtime" / "bin" / "python")


class Delayed:
    """A service that is some way off: each request takes longer by so many seconds."""

    def __init__(self, app: WSGIApplication, delay_s: float) -> None:
        self._app = app
        self._delay_s = delay_s
        self.requests = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer after the delay."""
        self.requests += 1
        time.sleep(self._delay_s)
        return self._app(environ, start_response)


class World:
    """Both services on loopback, and the commands' environment."""

    def __init__(self, folder: Path, *, nodes: int = 0) -> None:
        self.folder = folder
        self.headscale = HeadscaleSimulator()
        self.cloudflare = CloudflareSimulator()
        self.headscale.add_user("services")
        for number in range(nodes):
            self.headscale.add_node(f"other-{number}.example.com", user="services")
        self.zone = self.cloudflare.add_zone("example.com")
        self.key_file = folder / "authkey"
        self.environment: dict[str, str] = {}

    @contextmanager
    def served(self, delay_s: float = 0.0) -> Iterator[tuple[Delayed, Delayed]]:
        """Let both services listen, each request taking longer by the delay."""
        near, far = Delayed(self.headscale, delay_s), Delayed(self.cloudflare, delay_s)
        with serve(near) as headscale, serve(far) as cloudflare:
            self.environment = {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(REPOSITORY),
                "HOSTNAME": "grafana-0",
                "DOMAIN_NAME": "example.com",
                "HEADSCALE_URL": headscale,
                "HEADSCALE_API_KEY": self.headscale.api_key,
                "HEADSCALE_USER": "services",
                "CLOUDFLARE_API_URL": f"{cloudflare}/client/v4",
                "CLOUDFLARE_API_TOKEN": self.cloudflare.secrets()[0],
                "CLOUDFLARE_ZONE_ID": self.zone,
                "AUTHKEY_OUTPUT_PATH": str(self.key_file),
                "TAILSCALE_INTERFACE": "",
                "HEALTH_PORT": "0",
            }
            yield near, far

    def cleanup(self) -> float:
        """Run `cleanup` once; seconds."""
        started = time.monotonic()
        subprocess.run(command("cleanup"), env=self.environment, stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - started

    @contextmanager
    def watching(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """Let `dns-watch` run for as long as the block lasts."""
        process = subprocess.Popen(command("dns-watch"), env=self.environment | environment, stdout=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_S)

    def published(self) -> list[str]:
        """What the name resolves to."""
        return [record.content for record in self.cloudflare.records(self.zone, NAME)]


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    value: str
    goal: str


def command(name: str) -> list[str]:
    """The command line of one of ours."""
    return [PYTHON, "-m", "lifecycle", name]


def until(seen: Callable[[], bool], *, every_s: float = 0.005) -> float:
    """Wait until something can be seen; seconds."""
    started = time.monotonic()
    while not seen():
        if time.monotonic() - started > PATIENCE_S:
            raise TimeoutError("a step did not happen")
        time.sleep(every_s)
    return time.monotonic() - started


def seconds(arguments: list[str], runs: int) -> float:
    """The median time of a command that needs no service."""
    times = []
    for _ in range(runs):
        started = time.monotonic()
        subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True)
        times.append(time.monotonic() - started)
    return statistics.median(times)


def start_up(world: World, runs: int) -> Iterator[Figure]:
    """`cleanup` without latency beside the bare import of its libraries."""
    libraries = seconds([PYTHON, "-c", LIBRARIES], runs)
    with world.served():
        ours = statistics.median(world.cleanup() for _ in range(runs))
    yield Figure("four libraries imported", f"{libraries * 1000:.0f} ms", "")
    yield Figure("cleanup, no latency", f"{ours * 1000:.0f} ms = {ours / libraries:.2f} x the imports", "at most 2")


def latency(world: World, runs: int, delay_s: float) -> Iterator[Figure]:
    """`cleanup` with latency beside the longer of its two chains of requests."""
    with world.served():
        near = statistics.median(world.cleanup() for _ in range(runs))
    ratios = []
    for _ in range(runs):
        world.headscale.add_node(NAME, user="services", online=False)
        with world.served(delay_s) as (headscale, cloudflare):
            taken = world.cleanup()
        chain = max(headscale.requests, cloudflare.requests) * delay_s
        ratios.append(taken / (chain + near))
    ratio = statistics.median(ratios)
    yield Figure(
        f"cleanup, {delay_s * 1000:.0f} ms a request", f"{ratio:.2f} x (the longer chain + start-up)", "at most 1.3"
    )


def publishing(folder: Path, runs: int) -> Iterator[Figure]:
    """From the address on the interface to the record; in a network namespace of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        yield Figure("address to record", "not measured: needs root, unshare and ip", "at most 1.5 s")
        return
    done = subprocess.run(
        ["unshare", "--net", sys.executable, __file__, "--publishing", str(folder), str(runs)],  # noqa: S607
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    times = [float(line) for line in done.stdout.split()]
    yield Figure(
        "address on the interface to record",
        f"median {statistics.median(times):.2f} s, longest {max(times):.2f} s of {len(times)}",
        "at most 1.5 s in every run",
    )


def publish_in_namespace(folder: Path, runs: int) -> None:
    """Print how long each run took; this network namespace is nobody else's."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607
    for run in range(runs):
        world = World(folder)
        with world.served():
            world.cleanup()
            with world.watching(TAILSCALE_INTERFACE=INTERFACE):
                # Each time another part of the loop's second.
                time.sleep(1.5 + run / runs)
                client = VpnClient(world.headscale, key_file=world.key_file, hostname=NAME, interface=INTERFACE)
                client.start()
                print(until(lambda world=world, client=client: world.published() == [client.addresses[0]]))
                client.die()
        subprocess.run(["ip", "link", "delete", INTERFACE], check=False, stderr=subprocess.DEVNULL)  # noqa: S607


def steady_state(folder: Path, nodes: int, watched_s: float) -> Iterator[Figure]:
    """Traffic and memory of a watch over one node among many."""
    world = World(folder, nodes=nodes)
    with world.served():
        world.cleanup()
        with world.watching(POLL_INTERVAL="1s", VERIFY_INTERVAL="1h") as process:
            client = VpnClient(world.headscale, key_file=world.key_file, hostname=NAME)
            client.start()
            until(lambda: world.published() == [client.addresses[0]])
            before = len(world.headscale.requests)
            time.sleep(watched_s)
            polls = world.headscale.requests[before:]
            memory = _resident_mib(process.pid)
    largest = max(poll.size for poll in polls)
    yield Figure(f"a poll among {nodes} nodes", f"{largest / 1024:.1f} KiB, largest of {len(polls)}", "at most 4 KB")
    yield Figure(
        f"dns-watch after {watched_s:.0f} s and a list of {nodes} nodes", f"{memory:.1f} MiB resident", "at most 48 MiB"
    )


def stopping(world: World, runs: int) -> Iterator[Figure]:
    """SIGTERM while a request hangs."""
    times = []
    for _ in range(runs):
        with world.served():
            world.headscale.faults.add(faults.hang(), times=None)
            process = subprocess.Popen(command("dns-watch"), env=world.environment, stdout=subprocess.DEVNULL)
            time.sleep(1.5)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
            times.append(time.monotonic() - started)
            world.headscale.faults.clear()
    yield Figure("SIGTERM while a request hangs", f"longest {max(times):.2f} s of {len(times)}", "at most 2 s")


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError("the process has no memory any more")


def main() -> int:
    """Measure everything, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, shorter watches")
    parser.add_argument("--publishing", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publishing:
        publish_in_namespace(Path(options.publishing[0]), int(options.publishing[1]))
        return 0
    runs = 3 if options.quick else 9
    with tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as name:
        folder = Path(name)
        figures = [
            *start_up(World(folder), runs),
            *latency(World(folder), runs, 0.02),
            *latency(World(folder), runs, 0.15),
            *publishing(folder, runs),
            *steady_state(folder, 1000, 5.0 if options.quick else 30.0),
            *stopping(World(folder), 2 if options.quick else 3),
        ]
    print("| what | figure | goal |\n|---|---|---|")
    for figure in figures:
        print(f"| {figure.what} | {figure.value} | {figure.goal} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
