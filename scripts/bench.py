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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bench_figures import Bar, Figure, page, picture, strays, table
from bench_passes import resident_mib
from bench_world import (
    PATIENCE_S,
    REPOSITORY,
    Cost,
    World,
    cost,
    in_a_network_namespace,
    passes,
    through_the_cluster,
    until,
)

from tests.simulators import faults

LIBRARIES = "import httpx, pydantic_settings, structlog, tenacity"
INTERFACE = "tailscale0"
LATENCIES_S = (0.0, 0.02, 0.15)

# What `dns-watch` asks in an hour at most, by POLL_INTERVAL=30s and VERIFY_INTERVAL=5m: jitter only lengthens them.
POLLS_AN_HOUR, READS_AN_HOUR = 120, 12


class Bench:
    """Everything that is measured, and how thoroughly.

    Args:
        folder: for what the commands write.
        quick: fewer runs, shorter watches, nothing that takes minutes.
    """

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder = folder
        self._quick = quick
        self._runs = 3 if quick else 9
        self.bars: list[Bar] = []

    def figures(self) -> Iterator[Figure]:
        """Measure one after another."""
        yield Figure("machine", f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when it began")
        yield from self._start_up()
        yield from self._latency()
        yield from self._publishing()
        yield from self._traffic()
        yield from self._long_life()
        yield from self._exec()
        yield from self._stopping()
        yield from self._image()

    def _start_up(self) -> Iterator[Figure]:
        """Each command without latency, and the bare import of its libraries, by turns."""
        world = World(self._folder)
        costs: dict[str, list[Cost]] = {}
        with world.served():
            measured: dict[str, Callable[[], Cost]] = {
                "four imports": lambda: cost(["-c", LIBRARIES], **world.environment),
                "lifecycle --version": lambda: world.run("--version"),
                "lifecycle cleanup": lambda: world.run("cleanup"),
                "lifecycle dns-watch --once": lambda: world.run("dns-watch", "--once"),
                "lifecycle --dry-run": lambda: world.run("--dry-run"),
                "lifecycle prune": lambda: world.run("prune"),
            }
            for _ in range(self._runs):
                world.leave_behind()
                for what, run in measured.items():
                    client = world.joined() if what.endswith("--once") else None
                    costs.setdefault(what, []).append(run())
                    if client is not None:
                        client.die()
        imports = costs["four imports"]
        for what, taken in costs.items():
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
            if what == "four imports":
                yield Figure(what, text)
            else:
                # The CPU's ratio has the band: a machine that is busy with other things moves it least.
                yield Figure(f"{what}, by the imports", f"{text}: {by_wall:.2f} x, CPU {by_cpu:.2f} x", by_cpu)
            self.bars.append(Bar("Start-up", what, wall_s, f"{wall_s * 1000:.0f} ms"))

    def _latency(self) -> Iterator[Figure]:
        """`cleanup` with a node and a record to delete, beside the longer of its two chains of requests, and both."""
        world = World(self._folder)
        taken: dict[float, list[float]] = {delay_s: [] for delay_s in LATENCIES_S}
        asked: tuple[int, int] = (0, 0)
        for _ in range(self._runs):
            for delay_s in LATENCIES_S:
                world.leave_behind()
                with world.served(delay_s) as (headscale, cloudflare):
                    taken[delay_s].append(world.run("cleanup").wall_s)
                asked = (headscale.requests, cloudflare.requests)
        for delay_s, times in taken.items():
            longer, both = (
                statistics.median(s / (near + count * delay_s) for s, near in zip(times, taken[0.0], strict=True))
                for count in (max(asked), sum(asked))
            )
            what = f"cleanup at {delay_s * 1000:.0f} ms a request"
            wall_s = statistics.median(times)
            chains = f"{asked[0]} requests to Headscale, {asked[1]} to Cloudflare"
            text = f"{wall_s:.2f} s: {longer:.2f} x the longer chain, {both:.2f} x both ({chains})"
            yield Figure(what, text, longer if delay_s else None)
            self.bars.append(
                Bar("cleanup, by latency", f"{delay_s * 1000:.0f} ms a request", wall_s, f"{wall_s:.2f} s")
            )

    def _publishing(self) -> Iterator[Figure]:
        """From the address on the interface to the record, in a network namespace of its own."""
        what = "address on the interface to record"
        if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
            yield Figure(what, "not measured: needs root, unshare and ip")
            return
        printed = in_a_network_namespace(__file__, "--publishing", str(self._folder), "2" if self._quick else "9")
        times = [float(line) for line in printed]
        text = f"median {statistics.median(times):.2f} s, longest {max(times):.2f} s of {len(times)}"
        yield Figure(what, text, max(times))

    def _traffic(self) -> Iterator[Figure]:
        """What a watch over one node among many asks in an hour."""
        for nodes in (10, 1000) if self._quick else (10, 100, 1000, 5000):
            world = World(self._folder, nodes=nodes)
            with world.served() as (headscale, _):
                world.run("cleanup")
                with world.watching(POLL_INTERVAL="1s", VERIFY_INTERVAL="1s") as process:
                    client = world.joined()
                    until(partial(world.published, client))
                    before, read_before = len(world.headscale.requests), len(world.cloudflare.requests)
                    until(partial(headscale.was_asked, headscale.requests + 3))
                    if nodes == 1000:  # noqa: PLR2004
                        time.sleep(5 if self._quick else 60)
                        memory = resident_mib(str(process.pid))
                poll = max(exchange.size for exchange in world.headscale.requests[before:])
                read = max(exchange.size for exchange in world.cloudflare.requests[read_before:])
            hour = (POLLS_AN_HOUR * poll + READS_AN_HOUR * read) / 1024
            yield Figure(
                f"dns-watch in an hour, {nodes} nodes",
                f"at most {POLLS_AN_HOUR + READS_AN_HOUR} requests, {hour:.0f} KiB; a poll is {poll} bytes",
                poll / 1024,
            )
            if nodes == 1000:  # noqa: PLR2004
                after = "5 s" if self._quick else "1 min"
                yield Figure(f"dns-watch resident, {nodes} nodes", f"{memory:.1f} MiB after {after}", memory)

    def _long_life(self) -> Iterator[Figure]:
        """Memory after many passes, one right after the other."""
        number = 500 if self._quick else 10_000
        world = World(self._folder, nodes=1000)
        with world.served():
            world.run("cleanup")
            client = world.joined()
            early, late = passes(world, number)
            client.die()
        text = f"{late:.1f} MiB after {number}, {late - early:+.1f} since the first {number // 10}"
        yield Figure("dns-watch, growth over many passes", text, late - early)

    def _exec(self) -> Iterator[Figure]:
        """The command line in Headscale's pod beside the API, with a thousand nodes."""
        if shutil.which("unshare") is None or shutil.which("openssl") is None:
            yield Figure("exec against HTTP", "not measured: needs unshare and openssl")
            return
        world = World(self._folder, nodes=1000)
        near: list[Cost] = []
        far: list[Cost] = []
        with (
            tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as folder,
            world.served(),
            through_the_cluster(world, Path(folder)) as (cli, run),
        ):
            for _ in range(self._runs):
                near.append(world.run("cleanup"))
                far.append(run("cleanup"))
            listed = max(cli.said)
        ratio = statistics.median(f.wall_s / n.wall_s for f, n in zip(far, near, strict=True))
        wall_s, peak_mib = (
            statistics.median(values) for values in zip(*((c.wall_s, c.peak_mib) for c in far), strict=True)
        )
        text = f"{wall_s * 1000:.0f} ms, peak {peak_mib:.1f} MiB: {ratio:.2f} x; a look is {listed / 1024:.0f} KiB"
        yield Figure("cleanup over exec, 1000 nodes, by HTTP", text, ratio)

    def _stopping(self) -> Iterator[Figure]:
        """SIGTERM while a request hangs."""
        world = World(self._folder)
        times = []
        for _ in range(1 if self._quick else 3):
            with world.served() as (headscale, _):
                world.headscale.faults.add(faults.hang(), times=None)
                with world.watching() as process:
                    until(partial(headscale.was_asked, 1))
                    started = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                    process.wait(PATIENCE_S)
                    times.append(time.monotonic() - started)
                world.headscale.faults.clear()
        text = f"longest {max(times):.2f} s of {len(times)}"
        yield Figure("SIGTERM while a request hangs", text, max(times))

    def _image(self) -> Iterator[Figure]:
        """The image's size by layer, as its own script reports it."""
        what = "image"
        if self._quick:
            yield Figure(what, "not measured: --quick")
            return
        done = subprocess.run(
            [REPOSITORY / "scripts" / "image", "--report"], capture_output=True, text=True, check=False
        )
        lines = dict(
            line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith(("compressed", "layers"))
        )
        if done.returncode != 0 or not lines:
            yield Figure(what, "not measured: scripts/image --report needs Buildah and a registry")
        else:
            yield Figure(
                what,
                f"{lines['compressed']} compressed, layers {lines['layers']}",
                float(lines["compressed"].split()[0]),
            )


def publish_in_namespace(folder: Path, runs: int) -> None:
    """Print how long each run took; this network namespace is nobody else's."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607
    for run in range(runs):
        world = World(folder)
        with world.served():
            world.run("cleanup")
            with world.watching(TAILSCALE_INTERFACE=INTERFACE):
                # Each time another part of the loop's second.
                time.sleep(1.5 + run / runs)
                client = world.joined(INTERFACE)
                print(until(partial(world.published, client)))
                client.die()
        subprocess.run(["ip", "link", "delete", INTERFACE], check=False, stderr=subprocess.DEVNULL)  # noqa: S607


def main(arguments: Sequence[str]) -> int:
    """Measure everything, print a table and what left its band; a band that was left is no failure."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, shorter watches")
    parser.add_argument(
        "--save", type=Path, metavar="FILE.svg", help="draw a picture, and write the table beside it as .md"
    )
    parser.add_argument("--publishing", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.publishing:
        publish_in_namespace(Path(options.publishing[0]), int(options.publishing[1]))
        return 0
    with tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as folder:
        bench = Bench(Path(folder), quick=options.quick)
        figures = list(bench.figures())
    print(table(figures))
    for line in strays(figures):
        print(line)
    if options.save:
        options.save.write_text(picture(bench.bars))
        options.save.with_suffix(".md").write_text(page(figures, picture=options.save.name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
