"""Measure the commands against simulators of Headscale and Cloudflare on loopback, and print a table of the results."""

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
    running_over_exec,
    wait_until,
)

from lifecycle.settings.models import DnsWatchSettings
from tests.fleet.fleet import BCRYPT_S
from tests.fleet.steady import steady_state
from tests.fleet.storm import storm
from tests.simulators import faults

# Importing these libraries takes most of the start-up time, so their import is the reference for each command.
LIBRARIES = "httpx, pydantic_settings, structlog, tenacity"
INTERFACE = "tailscale0"
# The simulated delay of each request, to measure how many requests are sent one after another.
LATENCY_S = 0.15
INJECTED_WORKLOADS = 200

PAGE = REPOSITORY / "docs" / "bench.md"
# On this page, the text from the first heading of this level on (the notes) was written by hand.
NOTES_HEADING = "\n## "


class Bench:
    """All measurements.

    Each measurement yields one or more results for the table.

    Args:
        folder: an empty folder for the key file and manifests.
        quick: make fewer and shorter runs.
    """

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder = folder
        self._quick = quick
        self._runs = 3 if quick else 21

    def figures(self) -> Iterator[Figure]:
        """Run the measurements one after another, and yield their results."""
        yield Figure("machine", f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
        yield Figure("the imports", f"a process that only imports {LIBRARIES}")
        yield from self._start_up()
        yield from self._many_nodes()
        yield from self._series()
        yield from self._publishing()
        yield from self._idle()
        yield from self._memory_growth()
        yield from self._traffic()
        yield from self._exec()
        yield from self._stopping()
        yield from self._injection()
        yield from self._storm()
        yield from self._steady()

    def _alternate(self, commands: dict[str, Callable[[], Cost]], runs: int) -> dict[str, list[Cost]]:
        """Run each command several times, and return the costs by the command's name.

        The commands take turns, so that the load of the machine affects all of them equally.
        """
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, run in commands.items():
                costs[name].append(run())
        return costs

    def _start_up(self) -> Iterator[Figure]:
        """Compare the cost of each command with the cost of importing the libraries that it uses.

        The simulators respond without a delay.
        """
        world = World(self._folder)

        def with_registered_node(*arguments: str) -> Cost:
            node = world.register()
            cost = world.run(*arguments)
            node.stop()
            return cost

        def with_leftovers(*arguments: str) -> Cost:
            world.add_leftovers()
            return world.run(*arguments)

        with world.served():
            costs = self._alternate(
                {
                    "imports": lambda: measure(["-c", f"import {LIBRARIES}"], **world.environment),
                    "cleanup": lambda: with_leftovers("cleanup"),
                    "dns-watch --once": lambda: with_registered_node("dns-watch", "--once"),
                    "--dry-run": lambda: with_leftovers("--dry-run"),
                    "prune": lambda: world.run("prune"),
                },
                self._runs,
            )
        imports = costs.pop("imports")
        for name, command_costs in costs.items():
            ratio = _ratio(command_costs, imports)
            reference = f"the imports: {_medians(imports)}"
            yield Figure(f"lifecycle {name}, CPU", f"{_medians(command_costs)}: {ratio:.2f} x", reference, ratio)

    def _many_nodes(self) -> Iterator[Figure]:
        """Compare the cost of `cleanup` with 5,000 other nodes in Headscale with its cost without other nodes."""
        none, many = World(self._folder), World(self._folder, nodes=5000)
        with none.served(), many.served():
            costs = self._alternate(
                {"none": lambda: none.run("cleanup"), "many": lambda: many.run("cleanup")}, max(3, self._runs // 2)
            )
        ratio = _ratio(costs["many"], costs["none"])
        peak_mib = statistics.median(cost.peak_mib for cost in costs["many"])
        reference = f"no other node: {_medians(costs['none'])}"
        yield Figure("cleanup, 5000 nodes, CPU", f"{_medians(costs['many'])}: {ratio:.2f} x", reference, ratio)
        yield Figure("cleanup, 5000 nodes, peak memory", f"{peak_mib:.1f} MiB", reference, peak_mib)

    def _series(self) -> Iterator[Figure]:
        """Measure how many requests `cleanup` makes one after another.

        With a delay of each request, `cleanup` takes longer. The number is the additional time divided by the delay.
        """
        world = World(self._folder)
        times: dict[float, list[float]] = {0.0: [], LATENCY_S: []}
        requests: list[int] = []
        for _ in range(max(3, self._runs // 3)):
            for delay_s, durations_s in times.items():
                world.add_leftovers()
                with world.served(delay_s) as upstreams:
                    durations_s.append(world.run("cleanup").wall_s)
                    requests = [upstream.request_count for upstream in upstreams]
        without_s, with_s = map(min, times.values())
        series = (with_s - without_s) / LATENCY_S
        text = f"{series:.1f}; {with_s:.2f} s at {LATENCY_S * 1000:.0f} ms per request, {without_s:.2f} s at 0 ms"
        reference = "{} requests to Headscale, {} to Cloudflare".format(*requests)
        yield Figure("cleanup, requests in series", text, reference, series)

    def _publishing(self) -> Iterator[Figure]:
        """Measure the time from a new address on the interface to the DNS record."""
        times = []
        runs = 3 if self._quick else 9
        for run in range(runs):
            world = World(self._folder)
            with world.served():
                world.run("cleanup")
                with world.watching(TAILSCALE_INTERFACE=INTERFACE):
                    # Vary the fraction of the second, because dns-watch may read the interface only once a second.
                    time.sleep(1.5 + run / runs)
                    node = world.register(INTERFACE)
                    times.append(wait_until(partial(world.is_published, node)))
                    node.stop()
            _delete_interface()
        text = f"median {statistics.median(times):.2f} s, longest {max(times):.2f} s of {len(times)}"
        yield Figure("delay from interface address to DNS record", text, "promised: 1.5 s", max(times))

    def _idle(self) -> Iterator[Figure]:
        """Measure `dns-watch` while nothing changes.

        For comparison, a second process has TAILSCALE_INTERFACE and HEALTH_PORT off.
        """
        seconds = 60 if self._quick else 120
        world = World(self._folder, nodes=1000)
        idle_python = [PYTHON, "-c", f"import {LIBRARIES}\ninput()"]
        with world.served():
            world.run("cleanup")
            node = world.register(INTERFACE)
            with (
                subprocess.Popen(idle_python, env=world.environment, stdin=subprocess.PIPE) as imports,
                world.watching(TAILSCALE_INTERFACE=INTERFACE, HEALTH_PORT="9003") as watch,
                world.watching() as bare_watch,
            ):
                wait_until(partial(world.is_published, node))
                time.sleep(5)
                before, bare_before = usage(watch.pid), usage(bare_watch.pid)
                time.sleep(seconds)
                after, bare_after, libraries = usage(watch.pid), usage(bare_watch.pid), usage(imports.pid)
                imports.kill()
            node.stop()
        _delete_interface()
        cpu_s, wakes = _per_hour(before, after, seconds)
        bare_cpu_s, bare_wakes = _per_hour(bare_before, bare_after, seconds)
        without = "with TAILSCALE_INTERFACE and HEALTH_PORT off"
        yield Figure("dns-watch idle, CPU s per hour", f"{cpu_s:.1f}", f"{without}: {bare_cpu_s:.1f}", cpu_s)
        yield Figure("dns-watch idle, wake-ups per hour", f"{wakes:.0f}", f"{without}: {bare_wakes:.0f}", wakes)
        for name, used_mib, libraries_mib in (
            ("resident memory", after.resident_mib, libraries.resident_mib),
            ("unshared memory", after.unique_mib, libraries.unique_mib),
        ):
            reference = f"the imports: {libraries_mib:.1f} MiB"
            yield Figure(
                f"dns-watch {name}, 1000 nodes", f"{used_mib:.1f} MiB after {seconds + 5} s", reference, used_mib
            )

    def _memory_growth(self) -> Iterator[Figure]:
        """Compare the memory of `dns-watch` after many passes with its memory after a tenth of these passes."""
        number = 500 if self._quick else 10_000
        world = World(self._folder, nodes=1000)
        with world.served():
            world.run("cleanup")
            node = world.register()
            early, late = memory_of_passes(world, number)
            node.stop()
        text = f"{late - early:+.1f} MiB, to {late:.1f} after {number} passes"
        yield Figure("dns-watch memory growth", text, f"{early:.1f} MiB after {number // 10}", late - early)

    def _traffic(self) -> Iterator[Figure]:
        """Compare the bytes that a poll of `dns-watch` transfers with 5,000 other nodes in Headscale and with ten."""
        sizes = []
        for nodes in (10, 5000):
            world = World(self._folder, nodes=nodes)
            with world.served() as (headscale, _):
                world.run("cleanup")
                with world.watching(POLL_INTERVAL="1s", VERIFY_INTERVAL="1s"):
                    node = world.register()
                    wait_until(partial(world.is_published, node))
                    before = len(world.headscale.requests)
                    wait_until(partial(headscale.received, headscale.request_count + 3))
                sizes.append(max(exchange.size for exchange in world.headscale.requests[before:]))
        yield Figure("dns-watch, bytes per poll, 5000 nodes", str(sizes[1]), f"10 nodes: {sizes[0]}", sizes[1])

    def _exec(self) -> Iterator[Figure]:
        """Compare the cost of `cleanup` with `HEADSCALE_ACCESS=exec` with its cost over HTTP."""
        world = World(self._folder, nodes=1000)
        with (
            tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as folder,
            world.served(),
            running_over_exec(world, Path(folder)) as run,
        ):
            costs = self._alternate(
                {"HTTP": lambda: world.run("cleanup"), "exec": lambda: run("cleanup")}, max(3, self._runs // 3)
            )
        ratio = _ratio(costs["exec"], costs["HTTP"])
        reference = f"over HTTP: {_medians(costs['HTTP'])}"
        yield Figure(
            "cleanup over exec, 1000 nodes, CPU", f"{_medians(costs['exec'])}: {ratio:.2f} x", reference, ratio
        )

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
        """Compare the CPU time of `inject` for many workloads with its CPU time for one workload."""
        one = (REPOSITORY / "tests/inject/workloads.yaml").read_text().partition("\n---\n")[0]
        settings = {"DOMAIN_NAME": "example.com", "LOGIN_SERVER": "https://headscale.example.com"}
        commands: dict[str, Callable[[], Cost]] = {}
        for count in (1, INJECTED_WORKLOADS):
            file = self._folder / f"{count}.yaml"
            file.write_text("\n---\n".join([one] * count))
            commands[str(count)] = partial(measure, ["-m", "lifecycle", "inject", str(file)], **settings)
        costs = self._alternate(commands, max(3, self._runs // 3))
        few, many = (statistics.median(cost.cpu_s for cost in of_count) for of_count in costs.values())
        yield Figure(
            f"inject, {INJECTED_WORKLOADS} workloads, CPU", f"{many:.2f} s", f"1 workload: {few:.2f} s", many - few
        )

    def _storm(self) -> Iterator[Figure]:
        """Simulate many pods that start at the same time.

        Compare the time until the last pod has its pre-auth key with the CPU time that Headscale needs.
        """
        # The simulation runs the commands in this process. Do not print their logs.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        for pods in (300, 1000):
            # For a quick run, simulate fewer pods with more expensive requests, which gives about the same result.
            result = storm(50, key_check_s=BCRYPT_S * pods / 50) if self._quick else storm(pods)
            ratio, wasted = result.last_key_s / result.min_cpu_s, result.wasted / result.key_checks
            text = f"{result.last_key_s:.0f} s: {ratio:.2f} x, {result.exits} container exits"
            yield Figure(
                f"{pods} pods starting together, time until each has its pre-auth key",
                text,
                f"Headscale's CPU time: {result.min_cpu_s:.0f} s",
                ratio,
            )
            reference = f"{result.key_checks} key checks"
            yield Figure(
                f"{pods} pods starting together, API key checks whose response no pod received",
                f"{wasted:.0%}",
                reference,
                wasted,
            )

    def _steady(self) -> Iterator[Figure]:
        """Simulate the polls of many pods, and measure the load of Headscale.

        The reference is the load if each pod polled once per `POLL_INTERVAL`.
        """
        pods, shortest_s = 1000, DnsWatchSettings.model_fields["poll_interval"].default.total_seconds()
        result = steady_state(pods)
        text = f"{result.cores:.2f} cores of Headscale, a poll every {result.interval_s:.0f} s"
        reference = f"every {shortest_s:.0f} s: {pods * BCRYPT_S / shortest_s:.1f} cores"
        yield Figure(f"{pods} pods in steady state", text, reference, result.cores)


def _ratio(costs: Sequence[Cost], references: Sequence[Cost]) -> float:
    """Return the shortest CPU time divided by the shortest CPU time of the references.

    The shortest times depend least on the load of the machine.
    """
    return min(cost.cpu_s for cost in costs) / min(cost.cpu_s for cost in references)


def _medians(costs: Sequence[Cost]) -> str:
    cpu_s = statistics.median(cost.cpu_s for cost in costs)
    peak_mib = statistics.median(cost.peak_mib for cost in costs)
    return f"{cpu_s * 1000:.0f} ms, peak {peak_mib:.1f} MiB"


def _per_hour(before: Usage, after: Usage, seconds: float) -> tuple[float, float]:
    scale = 3600 / seconds
    return (after.cpu_s - before.cpu_s) * scale, (after.wake_ups - before.wake_ups) * scale


def _delete_interface() -> None:
    subprocess.run(["ip", "link", "delete", INTERFACE], check=False, stderr=subprocess.DEVNULL)  # noqa: S607


def main(arguments: Sequence[str]) -> int:
    """Print the table, then the results that are outside their limits. Return 0, even if there are such results."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--save", action="store_true", help="also write the table into docs/bench.md")
    options = parser.parse_args(arguments)
    # scripts/bench runs this file in a new network namespace, in which even loopback is down.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607
    with tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as folder:
        figures = list(Bench(Path(folder), quick=options.quick).figures())
    print(table(figures))
    print(*outside_limits(figures), sep="\n")
    if options.save:
        _, heading, notes = PAGE.read_text().partition(NOTES_HEADING)
        PAGE.write_text(page(figures, heading + notes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
