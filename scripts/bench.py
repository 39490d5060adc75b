"""Measure the real commands against simulators of the upstreams on loopback, and print a table."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import structlog
from bench_figures import Figure, outside_limits, page, table
from bench_passes import Usage, usage
from bench_world import (
    PYTHON,
    REPOSITORY,
    TIMEOUT_S,
    Cost,
    World,
    measure,
    memory_of_passes,
    through_the_cluster,
    wait_until,
)

from lifecycle.settings.models import DnsWatchSettings
from tests.fleet.fleet import BCRYPT_S
from tests.fleet.steady import steady_state
from tests.fleet.storm import storm
from tests.simulators import faults

LIBRARIES = "httpx, pydantic_settings, structlog, tenacity"
INTERFACE = "tailscale0"
LATENCY_S = 0.15
INJECTED = 200

# In docs/bench.md, what a person wrote begins with this heading.
NOTES = "\n## "


class Bench:
    """All measurements.

    Args:
        folder: the folder for files of the commands.
        quick: fewer and shorter runs.
    """

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder = folder
        self._quick = quick
        self._runs = 3 if quick else 21

    def figures(self) -> Iterator[Figure]:
        """Run the measurements one after another."""
        yield Figure("machine", f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
        yield Figure("the imports", LIBRARIES)
        yield from self._start_up()
        yield from self._many_nodes()
        yield from self._series()
        yield from self._publishing()
        yield from self._idle()
        yield from self._long_life()
        yield from self._traffic()
        yield from self._exec()
        yield from self._stopping()
        yield from self._injection()
        yield from self._storm()
        yield from self._steady()

    def _in_turn(self, measured: dict[str, Callable[[], Cost]], runs: int) -> dict[str, list[Cost]]:
        """Run each command several times, one after the other, so that the load of the machine affects all alike."""
        costs: dict[str, list[Cost]] = {name: [] for name in measured}
        for _ in range(runs):
            for name, run in measured.items():
                costs[name].append(run())
        return costs

    def _start_up(self) -> Iterator[Figure]:
        """Compare each command without latency with the import of its libraries."""
        world = World(self._folder)

        def once_joined(*arguments: str) -> Cost:
            client = world.join()
            cost = world.run(*arguments)
            client.die()
            return cost

        def with_stale(*arguments: str) -> Cost:
            world.add_stale()
            return world.run(*arguments)

        with world.served():
            costs = self._in_turn(
                {
                    "imports": lambda: measure(["-c", f"import {LIBRARIES}"], **world.environment),
                    "cleanup": lambda: with_stale("cleanup"),
                    "dns-watch --once": lambda: once_joined("dns-watch", "--once"),
                    "--dry-run": lambda: with_stale("--dry-run"),
                    "prune": lambda: world.run("prune"),
                },
                self._runs,
            )
        imports = costs.pop("imports")
        for name, taken in costs.items():
            ratio = _ratio(taken, imports)
            beside = f"the imports: {_medians(imports)}"
            yield Figure(f"lifecycle {name}, CPU", f"{_medians(taken)}: {ratio:.2f} x", beside, ratio)

    def _many_nodes(self) -> Iterator[Figure]:
        """Compare `cleanup` beside thousands of nodes with `cleanup` beside none."""
        none, many = World(self._folder), World(self._folder, nodes=5000)
        with none.served(), many.served():
            costs = self._in_turn(
                {"none": lambda: none.run("cleanup"), "many": lambda: many.run("cleanup")}, max(3, self._runs // 2)
            )
        ratio, peak_mib = _ratio(costs["many"], costs["none"]), statistics.median(c.peak_mib for c in costs["many"])
        beside = f"no other node: {_medians(costs['none'])}"
        yield Figure("cleanup, 5000 nodes, CPU", f"{_medians(costs['many'])}: {ratio:.2f} x", beside, ratio)
        yield Figure("cleanup, 5000 nodes, peak memory", f"{peak_mib:.1f} MiB", beside, peak_mib)

    def _series(self) -> Iterator[Figure]:
        """Measure how many requests of `cleanup` are in series: what latency adds, start-up excluded."""
        world = World(self._folder)
        times: dict[float, list[float]] = {0.0: [], LATENCY_S: []}
        requests: list[int] = []
        for _ in range(max(3, self._runs // 3)):
            for delay_s, taken in times.items():
                world.add_stale()
                with world.served(delay_s) as upstreams:
                    taken.append(world.run("cleanup").wall_s)
                    requests = [upstream.requests for upstream in upstreams]
        none_s, late_s = map(min, times.values())
        series = (late_s - none_s) / LATENCY_S
        text = f"{series:.1f}; {late_s:.2f} s at {LATENCY_S * 1000:.0f} ms per request, {none_s:.2f} s at 0 ms"
        beside = "{} requests to Headscale, {} to Cloudflare".format(*requests)
        yield Figure("cleanup, requests in series", text, beside, series)

    def _publishing(self) -> Iterator[Figure]:
        """Measure the time from a new address on the interface to the DNS record."""
        times = []
        runs = 3 if self._quick else 9
        for run in range(runs):
            world = World(self._folder)
            with world.served():
                world.run("cleanup")
                with world.watching(TAILSCALE_INTERFACE=INTERFACE):
                    # The runs start at different points of an interval of one second.
                    time.sleep(1.5 + run / runs)
                    client = world.join(INTERFACE)
                    times.append(wait_until(partial(world.published, client)))
                    client.die()
            _delete_interface()
        text = f"median {statistics.median(times):.2f} s, longest {max(times):.2f} s of {len(times)}"
        yield Figure("delay from interface address to DNS record", text, "promised: 1.5 s", max(times))

    def _idle(self) -> Iterator[Figure]:
        """Measure `dns-watch` while nothing happens: with default settings, and without interface and health port."""
        seconds = 60 if self._quick else 120
        world = World(self._folder, nodes=1000)
        sleeper = [PYTHON, "-c", f"import {LIBRARIES}\ninput()"]
        with world.served():
            world.run("cleanup")
            client = world.join(INTERFACE)
            with (
                subprocess.Popen(sleeper, env=world.environment, stdin=subprocess.PIPE) as imports,
                world.watching(TAILSCALE_INTERFACE=INTERFACE, HEALTH_PORT="9003") as default,
                world.watching() as bare,
            ):
                wait_until(partial(world.published, client))
                time.sleep(5)
                before, bare_before = usage(default.pid), usage(bare.pid)
                time.sleep(seconds)
                after, bare_after, alone = usage(default.pid), usage(bare.pid), usage(imports.pid)
                imports.kill()
            client.die()
        _delete_interface()
        cpu_s, wakes = _per_hour(before, after, seconds)
        bare_cpu_s, bare_wakes = _per_hour(bare_before, bare_after, seconds)
        without = "without interface and health port"
        yield Figure("dns-watch idle, CPU s per hour", f"{cpu_s:.1f}", f"{without}: {bare_cpu_s:.1f}", cpu_s)
        yield Figure("dns-watch idle, wake-ups per hour", f"{wakes:.0f}", f"{without}: {bare_wakes:.0f}", wakes)
        for name, has, least in (
            ("resident memory", after.resident_mib, alone.resident_mib),
            ("memory of its own", after.unique_mib, alone.unique_mib),
        ):
            beside = f"the imports: {least:.1f} MiB"
            yield Figure(f"dns-watch {name}, 1000 nodes", f"{has:.1f} MiB after {seconds + 5} s", beside, has)

    def _long_life(self) -> Iterator[Figure]:
        """Measure the memory after many passes without pauses."""
        number = 500 if self._quick else 10_000
        world = World(self._folder, nodes=1000)
        with world.served():
            world.run("cleanup")
            client = world.join()
            early, late = memory_of_passes(world, number)
            client.die()
        text = f"{late - early:+.1f} MiB, to {late:.1f} after {number} passes"
        yield Figure("dns-watch memory growth", text, f"{early:.1f} MiB after {number // 10}", late - early)

    def _traffic(self) -> Iterator[Figure]:
        """Compare the size of a poll of `dns-watch` beside thousands of nodes with one beside ten."""
        sizes = []
        for nodes in (10, 5000):
            world = World(self._folder, nodes=nodes)
            with world.served() as (headscale, _):
                world.run("cleanup")
                with world.watching(POLL_INTERVAL="1s", VERIFY_INTERVAL="1s"):
                    client = world.join()
                    wait_until(partial(world.published, client))
                    before = len(world.headscale.requests)
                    wait_until(partial(headscale.received, headscale.requests + 3))
                sizes.append(max(exchange.size for exchange in world.headscale.requests[before:]))
        yield Figure("dns-watch, bytes per poll, 5000 nodes", str(sizes[1]), f"10 nodes: {sizes[0]}", sizes[1])

    def _exec(self) -> Iterator[Figure]:
        """Compare access over exec with access over HTTP."""
        world = World(self._folder, nodes=1000)
        with (
            tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as folder,
            world.served(),
            through_the_cluster(world, Path(folder)) as run,
        ):
            costs = self._in_turn(
                {"HTTP": lambda: world.run("cleanup"), "exec": lambda: run("cleanup")}, max(3, self._runs // 3)
            )
        ratio = _ratio(costs["exec"], costs["HTTP"])
        beside = f"over HTTP: {_medians(costs['HTTP'])}"
        yield Figure("cleanup over exec, 1000 nodes, CPU", f"{_medians(costs['exec'])}: {ratio:.2f} x", beside, ratio)

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
        yield Figure("stop during a hanging request", text, "promised: 2 s", max(times))

    def _injection(self) -> Iterator[Figure]:
        """Compare the CPU time of `inject` for many workloads with that for one."""
        one = (REPOSITORY / "tests/inject/workloads.yaml").read_text().partition("\n---\n")[0]
        settings = {"DOMAIN_NAME": "example.com", "LOGIN_SERVER": "https://headscale.example.com"}
        measured: dict[str, Callable[[], Cost]] = {}
        for count in (1, INJECTED):
            file = self._folder / f"{count}.yaml"
            file.write_text("\n---\n".join([one] * count))
            measured[str(count)] = partial(measure, ["-m", "lifecycle", "inject", str(file)], **settings)
        costs = self._in_turn(measured, max(3, self._runs // 3))
        few, many = (statistics.median(c.cpu_s for c in taken) for taken in costs.values())
        yield Figure(f"inject, {INJECTED} workloads, CPU", f"{many:.2f} s", f"1 workload: {few:.2f} s", many - few)

    def _storm(self) -> Iterator[Figure]:
        """Compare a start of many pods at once, in a model, with the server's own limit."""
        # The model runs in this process.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        for pods in (300, 1000):
            # Fewer pods at a higher cost show the same.
            seen = storm(50, key_check_s=BCRYPT_S * pods / 50) if self._quick else storm(pods)
            ratio, wasted = seen.last_key_s / seen.limit_s, seen.wasted / seen.key_checks
            text = f"{seen.last_key_s:.0f} s: {ratio:.2f} x, {seen.exits} container exits"
            yield Figure(f"{pods} pods at once, last key", text, f"the server's limit: {seen.limit_s:.0f} s", ratio)
            beside = f"{seen.key_checks} key checks"
            yield Figure(f"{pods} pods at once, key checks wasted", f"{wasted:.0%}", beside, wasted)

    def _steady(self) -> Iterator[Figure]:
        """Compare the polls of many pods, in a model, with polls at POLL_INTERVAL."""
        pods, shortest_s = 1000, DnsWatchSettings.model_fields["poll_interval"].default.total_seconds()
        seen = steady_state(pods)
        text = f"{seen.cores:.2f} cores of Headscale, a poll every {seen.interval_s:.0f} s"
        beside = f"every {shortest_s:.0f} s: {pods * BCRYPT_S / shortest_s:.1f} cores"
        yield Figure(f"{pods} pods in steady state", text, beside, seen.cores)


def _ratio(costs: Sequence[Cost], references: Sequence[Cost]) -> float:
    """Return the ratio of the CPU times. The least time depends least on the load of the machine."""
    return min(c.cpu_s for c in costs) / min(c.cpu_s for c in references)


def _medians(costs: Sequence[Cost]) -> str:
    cpu_s, peak_mib = (
        statistics.median(values) for values in zip(*((c.cpu_s, c.peak_mib) for c in costs), strict=True)
    )
    return f"{cpu_s * 1000:.0f} ms, peak {peak_mib:.1f} MiB"


def _per_hour(before: Usage, after: Usage, seconds: float) -> tuple[float, float]:
    scale = 3600 / seconds
    return (after.cpu_s - before.cpu_s) * scale, (after.wake_ups - before.wake_ups) * scale


def _delete_interface() -> None:
    subprocess.run(["ip", "link", "delete", INTERFACE], check=False, stderr=subprocess.DEVNULL)  # noqa: S607


def main(arguments: Sequence[str]) -> int:
    """Print the table and the figures outside their limits, which do not change the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--save", type=Path, metavar="FILE.md", help="write the table into this page")
    options = parser.parse_args(arguments)
    # The network namespace is new and empty: see scripts/bench.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607
    with tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as folder:
        figures = list(Bench(Path(folder), quick=options.quick).figures())
    print(table(figures))
    print(*outside_limits(figures), sep="\n")
    if options.save:
        _, heading, notes = options.save.read_text().partition(NOTES)
        options.save.write_text(page(figures, heading + notes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
