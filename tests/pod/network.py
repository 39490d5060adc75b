"""Hosts of the tests' own on one machine: a pod, the VPN's, the cluster's, each in a network namespace."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
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
class Network:
    """A pod, the VPN's machines on one side of it and the cluster's on the other."""

    pod: Host
    vpn: Host
    cluster: Host

    def give_the_pod_an_address(self, *addresses: str) -> None:
        """What a VPN client does in it."""
        for address in addresses:
            self.pod.ip("address", "add", address, "dev", "vpn0", *(["nodad"] if ":" in address else []))


@contextmanager
def network() -> Iterator[Network]:
    """Hosts that know the way to each other, for as long as the block lasts."""
    hosts = [Host(f"{name}-{os.getpid()}-{time.monotonic_ns() % 10**6}") for name in ("pod", "vpn", "cluster")]
    pod, vpn, cluster = hosts
    try:
        for host in hosts:
            run("ip", "netns", "add", host.name)
            host.ip("link", "set", "lo", "up")
        run("ip", "link", "add", "vpn0", "netns", pod.name, "type", "veth", "peer", "name", "vpn0", "netns", vpn.name)
        run(
            "ip",
            "link",
            "add",
            "eth0",
            "netns",
            pod.name,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            cluster.name,
        )
        _join(pod, "vpn0", ["fe80::1"], {"100.64.0.0/10": None, "fd7a:115c:a1e0::/48": "fe80::2"})
        _join(vpn, "vpn0", ["fe80::2", *ON_THE_VPN], {"100.64.0.0/10": None, "fd7a:115c:a1e0::/48": "fe80::1"})
        _join(pod, "eth0", POD_SIDE, {})
        _join(cluster, "eth0", ELSEWHERE, {})
        # What stands just beside the VPN's prefixes is reached through the cluster.
        for address in ELSEWHERE:
            if address not in CLUSTER_SIDE:
                gateway = CLUSTER_SIDE[":" in address]
                pod.ip("route", "add", address, "via", gateway, "dev", "eth0")
        yield Network(pod, vpn, cluster)
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, check=False)


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


@contextmanager
def reachable(host: Host, port: int, target: tuple[str, int]) -> Iterator[None]:
    """Pass on what comes to a port of a host to a server of this process, for as long as the block lasts."""
    with host.inside():
        listening = socket.create_server(("0.0.0.0", port))  # the host's own, reached from the pod alone

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                sink.sendall(chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                incoming, _ = listening.accept()
            except OSError:
                return
            outgoing = socket.create_connection(target)
            for ends in ((incoming, outgoing), (outgoing, incoming)):
                Thread(target=copy, args=ends, daemon=True).start()

    Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
