"""Hosts of the tests' own on one machine: a pod, the VPN's, the cluster's, each in a network namespace."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[2]

POD_SIDE: Final = "192.0.2.1", "2001:db8::1"
"""The pod's addresses in the cluster."""
CLUSTER_SIDE: Final = "192.0.2.2", "2001:db8::2"
"""A cluster node's: the kubelet's probes come from there."""
ON_THE_VPN: Final = ("100.64.0.9", "100.127.255.254", "fd7a:115c:a1e0::9", "fd7a:115c:a1e0:ffff::9")
ELSEWHERE: Final = ("192.0.2.2", "100.63.255.254", "100.128.0.1", "2001:db8::2", "fd7a:115c:a1e1::9")
"""A cluster node, and what is just not on the VPN."""

PATIENCE_S: Final = 60.0
LOOK_EVERY_S: Final = 0.05


def eventually(look: Callable[[], Any], what: str, *, within_s: float = PATIENCE_S) -> Any:
    """Look until there is something to see; what that is."""
    deadline = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited {within_s} s for {what}"
        time.sleep(LOOK_EVERY_S)
    return seen


def run(*command: str | Path, **options: Any) -> str:
    """Run a command that must succeed; what it prints."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str

    def command(self, *words: str | Path) -> list[str]:
        """A command line that runs in it."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def ip(self, *words: str) -> str:
        """What `ip` says there."""
        return run("ip", "-n", self.name, *words)

    def set_sysctls(self, sysctls: Sequence[Mapping[str, str]]) -> None:
        """What the kubelet does with those of a pod."""
        for sysctl in sysctls:
            path = f"/proc/sys/{sysctl['name'].replace('.', '/')}"
            run(*self.command("sh", "-c", 'echo "$1" >"$2"', "sh", sysctl["value"], path))

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets that this thread makes in the block are this host's, also afterwards."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as here, Path("/run/netns", self.name).open() as there:
            if libc.setns(there.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(here.fileno(), 0)

    def ask(self, url: str, **options: Any) -> Answer:
        """Ask for a page as a browser on this host would; see `client.py` for the options."""
        asked = json.dumps({"url": url} | {name: value for name, value in options.items() if value is not None})
        done = subprocess.run(
            self.command(sys.executable, "-I", ROOT / "tests/pod/client.py"),
            input=asked,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        return Answer(**json.loads(done.stdout))


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        error: why nothing did; then the rest is empty.
        certificate: what the server showed, as hexadecimal DER.
        echo: what came back of what was sent after an upgrade.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    error: str = ""
    tls: str = ""
    certificate: str = ""
    echo: str = ""

    @property
    def seen(self) -> Any:
        """What the stand-in for an application saw of the request."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Surroundings:
    """What is around a pod: machines on the VPN on one side of it, the cluster's on the other."""

    vpn: Host
    cluster: Host

    def connect(self, pod: Host) -> None:
        """Lay cables to a pod; they vanish with its namespace."""
        for interface, other in (("vpn0", self.vpn), ("eth0", self.cluster)):
            # The one to a pod that was before may take a moment to vanish by itself.
            subprocess.run(["ip", "-n", other.name, "link", "delete", interface], capture_output=True, check=False)
            end = ("name", interface, "netns", other.name)
            run("ip", "link", "add", interface, "netns", pod.name, "type", "veth", "peer", *end)
        _join(pod, "vpn0", ["fe80::1"], {"100.64.0.0/10": None, "fd7a:115c:a1e0::/48": "fe80::2"})
        _join(self.vpn, "vpn0", ["fe80::2", *ON_THE_VPN], {"100.64.0.0/10": None, "fd7a:115c:a1e0::/48": "fe80::1"})
        _join(pod, "eth0", POD_SIDE, {})
        _join(self.cluster, "eth0", ELSEWHERE, {})
        # What stands just beside the VPN's prefixes is reached through the cluster.
        for address in ELSEWHERE:
            if address not in CLUSTER_SIDE:
                pod.ip("route", "add", address, "via", CLUSTER_SIDE[":" in address], "dev", "eth0")


@contextmanager
def host(name: str) -> Iterator[Host]:
    """A host with a loopback and nothing else, for as long as the block lasts."""
    made = Host(f"{name}-{os.getpid()}-{time.monotonic_ns() % 10**6}")
    run("ip", "netns", "add", made.name)
    try:
        made.ip("link", "set", "lo", "up")
        yield made
    finally:
        run("ip", "netns", "delete", made.name)


@contextmanager
def named(namespace: Path, name: str) -> Iterator[Host]:
    """A network namespace that is there, under a name for as long as the block lasts."""
    place = Path("/run/netns", name)
    place.touch()
    run("mount", "--bind", namespace, place)
    try:
        yield Host(name)
    finally:
        run("ip", "netns", "delete", name)


@contextmanager
def surroundings() -> Iterator[Surroundings]:
    """Hosts around a pod that is still to come."""
    with host("vpn") as vpn, host("cluster") as cluster:
        # Servers can listen there before there is a cable.
        cluster.ip("address", "add", f"{CLUSTER_SIDE[0]}/32", "dev", "lo")
        yield Surroundings(vpn, cluster)


@dataclass(frozen=True)
class Network(Surroundings):
    """A pod, and what is around it."""

    pod: Host

    def give_the_pod_an_address(self, *addresses: str) -> None:
        """What a VPN client does in it."""
        for address in addresses:
            self.pod.ip("address", "add", address, "dev", "vpn0", *(["nodad"] if ":" in address else []))


@contextmanager
def network() -> Iterator[Network]:
    """Hosts that know the way to each other, for as long as the block lasts."""
    with surroundings() as around, host("pod") as pod:
        around.connect(pod)
        yield Network(around.vpn, around.cluster, pod)


def _join(host: Host, interface: str, addresses: Sequence[str], routes: Mapping[str, str | None]) -> None:
    for address in addresses:
        if ":" in address:
            length = "64" if address.startswith(("2001", "fe80")) else "128"
            host.ip("address", "add", f"{address}/{length}", "dev", interface, "nodad")
        else:
            length = "24" if address.startswith("192") else "32"
            host.ip("address", "add", f"{address}/{length}", "dev", interface)
    host.ip("link", "set", interface, "up")
    for route, gateway in routes.items():
        host.ip("route", "add", route, *(["via", gateway] if gateway else []), "dev", interface)


@contextmanager
def process(command: Sequence[str | Path], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone when the block is over."""
    with log.open("ab") as output:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
