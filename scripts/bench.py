"""Measure the real commands against simulators of the upstreams on loopback, and print a table."""

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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bench_figures import Bar, Figure, chart, outside_limits, page, table
from bench_passes import resident_mib
from bench_world import (
    REPOSITORY,
    TIMEOUT_S,
    Cost,
    World,
    measure,
    memory_of_passes,
    run_in_network_namespace,
    through_the_cluster,
    wait_until,
)

from tests.simulators import faults

LIBRARIES = "httpx, dotenv, pydantic, structlog, tenacity"
INTERFACE = "tailscale0"
LATENCIES_S = (0.0, 0.02, 0.15)

INJECTED = 200

# Maximum requests of `dns-watch` per hour with POLL_INTERVAL=30s and VERIFY_INTERVAL=5m. Jitter only adds to them.
POLLS_AN_HOUR, READS_AN_HOUR = 120, 12


class Bench:
    """All measurements.

    Args:
        folder: the folder for files of the commands.
        quick: fewer and shorter runs.
    """

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder = folder
        self._quick = quick
        self._runs = 3 if quick else 9
        self.bars: list[Bar] = []

    def figures(self) -> Iterator[Figure]:
        """Run the measurements one after another."""
        yield Figure("machine", f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
        yield from self._start_up()
        yield from self._latency()
        yield from self._publishing()
        yield from self._traffic()
        yield from self._long_life()
        yield from self._exec()
        yield from self._stopping()
        yield from self._injection()
        yield from self._image()

    def _start_up(self) -> Iterator[Figure]:
        """Measure each command without latency, and the import of its libraries, in turn."""
        world = World(self._folder)
        costs: dict[str, list[Cost]] = {}
        with world.served():
            measured: dict[str, Callable[[], Cost]] = {
                "imports": lambda: measure(["-c", f"import {LIBRARIES}"], **world.environment),
                "lifecycle --version": lambda: world.run("--version"),
                "lifecycle cleanup": lambda: world.run("cleanup"),
                "lifecycle dns-watch --once": lambda: world.run("dns-watch", "--once"),
                "lifecycle --dry-run": lambda: world.run("--dry-run"),
                "lifecycle prune": lambda: world.run("prune"),
            }
            for _ in range(self._runs):
                world.add_stale()
                for name, run in measured.items():
                    client = world.join() if name.endswith("--once") else None
                    costs.setdefault(name, []).append(run())
                    if client is not None:
                        client.die()
        imports = costs["imports"]
        for name, taken in costs.items():
            wall_s, cpu_s, peak_mib = (
                statistics.median(values)
                for values in zip(*((c.wall_s, c.cpu_s, c.peak_mib) for c in taken), strict=True)
            )
            by_wall, by_cpu = (
                statistics.median(ratios)
                for ratios in zip(
                    *((c.wall_s / bare.wall_s, c.cpu_s / bare.cpu_s) for c, bare in zip(taken, imports, strict=True)),
                    strict=True,
                )
            )
            text = f"{wall_s * 1000:.0f} ms, CPU {cpu_s * 1000:.0f} ms, peak {peak_mib:.1f} MiB"
            if name == "imports":
                yield Figure(f"imports of {LIBRARIES}", text)
            else:
                # The limits apply to the ratio of CPU times, which depends least on the load of the machine.
                yield Figure(f"{name}, ratio to imports", f"{text}: {by_wall:.2f} x, CPU {by_cpu:.2f} x", by_cpu)
            self.bars.append(Bar("Start-up", name, wall_s, f"{wall_s * 1000:.0f} ms"))

    def _latency(self) -> Iterator[Figure]:
        """Compare `cleanup` with the latency of its requests: the longer of its two chains, and both."""
        world = World(self._folder)
        taken: dict[float, list[float]] = {delay_s: [] for delay_s in LATENCIES_S}
        requests: tuple[int, int] = (0, 0)
        for _ in range(self._runs):
            for delay_s in LATENCIES_S:
                world.add_stale()
                with world.served(delay_s) as (headscale, cloudflare):
                    taken[delay_s].append(world.run("cleanup").wall_s)
                requests = (headscale.requests, cloudflare.requests)
        for delay_s, times in taken.items():
            longer, both = (
                statistics.median(s / (near + count * delay_s) for s, near in zip(times, taken[0.0], strict=True))
                for count in (max(requests), sum(requests))
            )
            name = f"cleanup, {delay_s * 1000:.0f} ms per request"
            wall_s = statistics.median(times)
            chains = f"{requests[0]} requests to Headscale, {requests[1]} to Cloudflare"
            text = f"{wall_s:.2f} s: {longer:.2f} x the longer chain, {both:.2f} x both ({chains})"
            yield Figure(name, text, longer if delay_s else None)
            self.bars.append(
                Bar("cleanup, by latency", f"{delay_s * 1000:.0f} ms per request", wall_s, f"{wall_s:.2f} s")
            )

    def _publishing(self) -> Iterator[Figure]:
        """Measure the time from a new address on the interface to the DNS record, in a network namespace."""
        name = "delay from interface address to DNS record"
        if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
            yield Figure(name, "not measured: needs root, unshare and ip")
            return
        printed = run_in_network_namespace(__file__, "--publishing", str(self._folder), "2" if self._quick else "9")
        times = [float(line) for line in printed]
        text = f"median {statistics.median(times):.2f} s, longest {max(times):.2f} s of {len(times)}"
        yield Figure(name, text, max(times))

    def _traffic(self) -> Iterator[Figure]:
        """Measure the traffic of `dns-watch` per hour, by the number of nodes in Headscale."""
        for nodes in (10, 1000) if self._quick else (10, 100, 1000, 5000):
            world = World(self._folder, nodes=nodes)
            with world.served() as (headscale, _):
                world.run("cleanup")
                with world.watching(POLL_INTERVAL="1s", VERIFY_INTERVAL="1s") as process:
                    client = world.join()
                    wait_until(partial(world.published, client))
                    before, read_before = len(world.headscale.requests), len(world.cloudflare.requests)
                    wait_until(partial(headscale.received, headscale.requests + 3))
                    if nodes == 1000:  # noqa: PLR2004
                        time.sleep(5 if self._quick else 60)
                        memory = resident_mib(str(process.pid))
                poll = max(exchange.size for exchange in world.headscale.requests[before:])
                read = max(exchange.size for exchange in world.cloudflare.requests[read_before:])
            hour = (POLLS_AN_HOUR * poll + READS_AN_HOUR * read) / 1024
            yield Figure(
                f"dns-watch traffic per hour, {nodes} nodes",
                f"at most {POLLS_AN_HOUR + READS_AN_HOUR} requests, {hour:.0f} KiB; {poll} bytes per poll",
                poll / 1024,
            )
            if nodes == 1000:  # noqa: PLR2004
                after = "5 s" if self._quick else "1 min"
                yield Figure(f"dns-watch resident memory, {nodes} nodes", f"{memory:.1f} MiB after {after}", memory)

    def _long_life(self) -> Iterator[Figure]:
        """Measure the memory after many passes without pauses."""
        number = 500 if self._quick else 10_000
        world = World(self._folder, nodes=1000)
        with world.served():
            world.run("cleanup")
            client = world.join()
            early, late = memory_of_passes(world, number)
            client.die()
        text = f"{late:.1f} MiB after {number} passes, {late - early:+.1f} since the first {number // 10}"
        yield Figure("dns-watch memory growth", text, late - early)

    def _exec(self) -> Iterator[Figure]:
        """Compare access over exec with access over HTTP, with 1000 nodes."""
        if shutil.which("unshare") is None or shutil.which("openssl") is None:
            yield Figure("cleanup over exec, 1000 nodes, ratio to HTTP", "not measured: needs unshare and openssl")
            return
        world = World(self._folder, nodes=1000)
        over_http: list[Cost] = []
        over_exec: list[Cost] = []
        with (
            tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as folder,
            world.served(),
            through_the_cluster(world, Path(folder)) as (cli, run),
        ):
            for _ in range(self._runs):
                over_http.append(world.run("cleanup"))
                over_exec.append(run("cleanup"))
            largest = max(cli.output_sizes)
        ratio = statistics.median(e.wall_s / h.wall_s for e, h in zip(over_exec, over_http, strict=True))
        wall_s, peak_mib = (
            statistics.median(values) for values in zip(*((c.wall_s, c.peak_mib) for c in over_exec), strict=True)
        )
        text = f"{wall_s * 1000:.0f} ms, peak {peak_mib:.1f} MiB: {ratio:.2f} x; {largest / 1024:.0f} KiB per list"
        yield Figure("cleanup over exec, 1000 nodes, ratio to HTTP", text, ratio)

    def _stopping(self) -> Iterator[Figure]:
        """Measure the time from SIGTERM to the exit while a request hangs."""
        world = World(self._folder)
        times = []
        for _ in range(1 if self._quick else 3):
            with world.served() as (headscale, _):
                world.headscale.faults.add(faults.hang(), times=None)
                with world.watching() as process:
                    wait_until(partial(headscale.received, 1))
                    started = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                    process.wait(TIMEOUT_S)
                    times.append(time.monotonic() - started)
                world.headscale.faults.clear()
        text = f"longest {max(times):.2f} s of {len(times)}"
        yield Figure("stop during a hanging request", text, max(times))

    def _injection(self) -> Iterator[Figure]:
        """Measure the CPU time of `inject` for 200 workloads beyond that of one."""
        one = (REPOSITORY / "tests/inject/workloads.yaml").read_text().partition("\n---\n")[0]
        costs: dict[int, list[float]] = {1: [], INJECTED: []}
        settings = {"DOMAIN_NAME": "example.com", "LOGIN_SERVER": "https://headscale.example.com"}
        for _ in range(self._runs):
            for count, taken in costs.items():
                file = self._folder / f"{count}.yaml"
                file.write_text("\n---\n".join([one] * count))
                taken.append(measure(["-m", "lifecycle", "inject", str(file)], **settings).cpu_s)
        cpu_s = statistics.median(costs[INJECTED]) - statistics.median(costs[1])
        yield Figure(f"inject, CPU of {INJECTED} workloads after start", f"{cpu_s:.2f} s", cpu_s)

    def _image(self) -> Iterator[Figure]:
        """Read the size of the image from `scripts/image --report`."""
        name = "image size"
        if self._quick:
            yield Figure(name, "not measured: --quick")
            return
        done = subprocess.run(
            [REPOSITORY / "scripts" / "image", "--report"], capture_output=True, text=True, check=False
        )
        lines = dict(
            line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith(("compressed", "layers"))
        )
        if done.returncode != 0 or not lines:
            yield Figure(name, "not measured: scripts/image --report needs Buildah and a registry")
        else:
            yield Figure(
                name,
                f"{lines['compressed']} compressed, layers {lines['layers']}",
                float(lines["compressed"].split()[0]),
            )


def publish_in_namespace(folder: Path, runs: int) -> None:
    """Print the delay of each run. The network namespace must be empty."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607
    for run in range(runs):
        world = World(folder)
        with world.served():
            world.run("cleanup")
            with world.watching(TAILSCALE_INTERFACE=INTERFACE):
                # The runs start at different points of the polling interval of one second.
                time.sleep(1.5 + run / runs)
                client = world.join(INTERFACE)
                print(wait_until(partial(world.published, client)))
                client.die()
        subprocess.run(["ip", "link", "delete", INTERFACE], check=False, stderr=subprocess.DEVNULL)  # noqa: S607


def main(arguments: Sequence[str]) -> int:
    """Print the table and the figures outside their limits, which do not change the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--save", type=Path, metavar="FILE.svg", help="write a chart, and the table beside it as .md")
    parser.add_argument("--publishing", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.publishing:
        publish_in_namespace(Path(options.publishing[0]), int(options.publishing[1]))
        return 0
    with tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as folder:
        bench = Bench(Path(folder), quick=options.quick)
        figures = list(bench.figures())
    print(table(figures))
    for line in outside_limits(figures):
        print(line)
    if options.save:
        options.save.write_text(chart(bench.bars))
        options.save.with_suffix(".md").write_text(page(figures, chart_file=options.save.name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
