"""Network namespaces that act as hosts: the pod, VPN clients, and the cluster."""

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
"""The pod's addresses in the cluster network."""
CLUSTER_SIDE: Final = "192.0.2.2", "2001:db8::2"
"""A cluster node's addresses. The kubelet's probes use them as the source."""
ON_THE_VPN: Final = ("100.64.0.9", "100.127.255.254", "fd7a:115c:a1e0::9", "fd7a:115c:a1e0:ffff::9")
ELSEWHERE: Final = ("192.0.2.2", "100.63.255.254", "100.128.0.1", "2001:db8::2", "fd7a:115c:a1e1::9")
"""A cluster node's addresses, and addresses just outside the VPN prefixes."""

TIMEOUT_S: Final = 60.0
POLL_INTERVAL_S: Final = 0.05


def eventually(condition: Callable[[], Any], what: str, *, within_s: float = TIMEOUT_S) -> Any:
    """Poll until the condition returns a true value, and return that value."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {within_s} s for {what}"
        time.sleep(POLL_INTERVAL_S)
    return value


def run(*command: str | Path, **options: Any) -> str:
    """Run a command that must succeed, and return its output."""
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
        """Return a command line that runs in this namespace."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def ip(self, *words: str) -> str:
        """Run `ip` in this namespace and return its output."""
        return run("ip", "-n", self.name, *words)

    def set_sysctls(self, sysctls: Sequence[Mapping[str, str]]) -> None:
        """Set sysctls as the kubelet does for a pod."""
        for sysctl in sysctls:
            path = f"/proc/sys/{sysctl['name'].replace('.', '/')}"
            run(*self.command("sh", "-c", 'echo "$1" >"$2"', "sh", sysctl["value"], path))

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Switch this thread to the namespace. Sockets created in the block stay in it."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as here, Path("/run/netns", self.name).open() as there:
            if libc.setns(there.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(here.fileno(), 0)

    def request(self, url: str, **options: Any) -> Response:
        """Send an HTTP request from this host. See `client.py` for the options."""
        request = json.dumps({"url": url} | {name: value for name, value in options.items() if value is not None})
        done = subprocess.run(
            self.command(sys.executable, "-I", ROOT / "tests/pod/client.py"),
            input=request,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr
        return Response(**json.loads(done.stdout))


@dataclass(frozen=True)
class Response:
    """The result of a request.

    Attributes:
        error: why there was no response. The other attributes are empty then.
        certificate: the server's certificate, as hexadecimal DER.
        echo: the data that came back after a protocol upgrade.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    error: str = ""
    tls: str = ""
    certificate: str = ""
    echo: str = ""

    @property
    def forwarded(self) -> Any:
        """The request as the stand-in application received it."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Hosts:
    """The hosts that a pod is connected to: VPN clients and the cluster."""

    vpn: Host
    cluster: Host

    def connect(self, pod: Host) -> None:
        """Connect a pod by veth pairs, which disappear with its namespace."""
        for interface, other in (("vpn0", self.vpn), ("eth0", self.cluster)):
            # The pair of a previous pod may take a moment to disappear.
            subprocess.run(["ip", "-n", other.name, "link", "delete", interface], capture_output=True, check=False)
            end = ("name", interface, "netns", other.name)
            run("ip", "link", "add", interface, "netns", pod.name, "type", "veth", "peer", *end)
        _join(pod, "vpn0", ["fe80::1"], {"100.64.0.0/10": None, "fd7a:115c:a1e0::/48": "fe80::2"})
        _join(self.vpn, "vpn0", ["fe80::2", *ON_THE_VPN], {"100.64.0.0/10": None, "fd7a:115c:a1e0::/48": "fe80::1"})
        _join(pod, "eth0", POD_SIDE, {})
        _join(self.cluster, "eth0", ELSEWHERE, {})
        # Addresses just outside the VPN prefixes are routed through the cluster.
        for address in ELSEWHERE:
            if address not in CLUSTER_SIDE:
                pod.ip("route", "add", address, "via", CLUSTER_SIDE[":" in address], "dev", "eth0")


@contextmanager
def host(name: str) -> Iterator[Host]:
    """Create a host with only a loopback interface for the duration of the block."""
    made = Host(f"{name}-{os.getpid()}-{time.monotonic_ns() % 10**6}")
    run("ip", "netns", "add", made.name)
    try:
        made.ip("link", "set", "lo", "up")
        yield made
    finally:
        run("ip", "netns", "delete", made.name)


@contextmanager
def named(namespace: Path, name: str) -> Iterator[Host]:
    """Give an existing network namespace a name for the duration of the block."""
    place = Path("/run/netns", name)
    place.touch()
    run("mount", "--bind", namespace, place)
    try:
        yield Host(name)
    finally:
        run("ip", "netns", "delete", name)


@contextmanager
def hosts() -> Iterator[Hosts]:
    """Create the hosts for a pod that is started later."""
    with host("vpn") as vpn, host("cluster") as cluster:
        # Servers can listen on this address before a pod is connected.
        cluster.ip("address", "add", f"{CLUSTER_SIDE[0]}/32", "dev", "lo")
        yield Hosts(vpn, cluster)


@dataclass(frozen=True)
class Network(Hosts):
    """A pod and the hosts that it is connected to."""

    pod: Host

    def add_vpn_addresses(self, *addresses: str) -> None:
        """Add VPN addresses to the pod, as tailscale does."""
        for address in addresses:
            self.pod.ip("address", "add", address, "dev", "vpn0", *(["nodad"] if ":" in address else []))


@contextmanager
def network() -> Iterator[Network]:
    """Create a pod and its hosts, connected, for the duration of the block."""
    with hosts() as around, host("pod") as pod:
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
    """Run a process for the duration of the block."""
    with log.open("ab") as output:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
