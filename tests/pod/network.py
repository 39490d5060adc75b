"""Create network namespaces that act as hosts: a pod, the VPN clients, and the rest of the cluster."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.image.tools import run_checked

ROOT = Path(__file__).parents[2]

POD_ADDRESSES: Final = "192.0.2.1", "2001:db8::1"
"""The pod's addresses in the cluster network."""
CLUSTER_NODE_ADDRESSES: Final = "192.0.2.2", "2001:db8::2"
"""A cluster node's addresses. The kubelet's probes use them as the source."""
VPN_CLIENT_ADDRESSES: Final = "100.64.0.9", "fd7a:115c:a1e0::9"
"""The addresses of one VPN client."""
VPN_SOURCES: Final = (*VPN_CLIENT_ADDRESSES, "100.127.255.254", "fd7a:115c:a1e0:ffff::9")
"""Addresses of several VPN clients. The last two are close to the end of the VPN prefixes."""
OTHER_SOURCES: Final = (*CLUSTER_NODE_ADDRESSES, "100.63.255.254", "100.128.0.1", "fd7a:115c:a1e1::9")
"""A cluster node's addresses, and addresses just outside the VPN prefixes."""

TIMEOUT_S: Final = 60.0


def same_family(addresses: tuple[str, str], address: str) -> str:
    """Return the first or the second of two addresses (IPv4, IPv6), whichever has the family of `address`."""
    ipv4, ipv6 = addresses
    return ipv6 if ":" in address else ipv4


def run(*command: str | Path, **options: Any) -> str:
    """Run a command that must succeed, and return its standard output."""
    return run_checked(command, **options)


@dataclass(frozen=True)
class Host:
    """A network namespace with a name, as `ip netns` lists it."""

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
        with Path("/proc/thread-self/ns/net").open() as original, Path("/run/netns", self.name).open() as target:
            if libc.setns(target.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(original.fileno(), 0)

    def request(self, url: str, **options: Any) -> Response:
        """Send an HTTP request from this host. `client.py` describes the options. The value None omits an option."""
        request = {"url": url} | {name: value for name, value in options.items() if value is not None}
        done = subprocess.run(
            self.command(sys.executable, "-I", ROOT / "tests/pod/client.py"),
            input=json.dumps(request),
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
        error: why there was no response, or "". With an error, the other attributes are empty.
        tls: the TLS version, such as TLSv1.3.
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
        """The request that nginx forwarded. The test's application behind nginx returns it as JSON in the body."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Hosts:
    """The hosts to which a pod is connected.

    Attributes:
        vpn: a machine with the addresses of all VPN clients.
        cluster: a cluster node and the rest of the cluster.
    """

    vpn: Host
    cluster: Host

    def connect(self, pod: Host) -> None:
        """Connect a pod by veth pairs. The kernel deletes them with the pod's namespace."""
        for interface, other in (("vpn0", self.vpn), ("eth0", self.cluster)):
            # The kernel may not have deleted the veth pair of a previous pod yet.
            subprocess.run(["ip", "-n", other.name, "link", "delete", interface], capture_output=True, check=False)
            peer = ("peer", "name", interface, "netns", other.name)
            run("ip", "link", "add", interface, "netns", pod.name, "type", "veth", *peer)
        _set_up(pod, "vpn0", ["fe80::1"], {"100.64.0.0/10": None, "fd7a:115c:a1e0::/48": "fe80::2"})
        _set_up(self.vpn, "vpn0", ["fe80::2", *VPN_SOURCES], {"100.64.0.0/10": None, "fd7a:115c:a1e0::/48": "fe80::1"})
        _set_up(pod, "eth0", POD_ADDRESSES, {})
        _set_up(self.cluster, "eth0", OTHER_SOURCES, {})
        # Addresses just outside the VPN prefixes are routed through the cluster.
        for address in OTHER_SOURCES:
            if address not in CLUSTER_NODE_ADDRESSES:
                pod.ip("route", "add", address, "via", same_family(CLUSTER_NODE_ADDRESSES, address), "dev", "eth0")


@contextmanager
def create_host(name: str) -> Iterator[Host]:
    """Create a host with only a loopback interface for the duration of the block."""
    host = Host(f"{name}-{os.getpid()}-{time.monotonic_ns() % 10**6}")
    run("ip", "netns", "add", host.name)
    try:
        host.ip("link", "set", "lo", "up")
        yield host
    finally:
        run("ip", "netns", "delete", host.name)


@contextmanager
def named_namespace(namespace: Path, name: str) -> Iterator[Host]:
    """Give an existing network namespace a name for the duration of the block."""
    file = Path("/run/netns", name)
    file.touch()
    run("mount", "--bind", namespace, file)
    try:
        yield Host(name)
    finally:
        run("ip", "netns", "delete", name)


@contextmanager
def create_hosts() -> Iterator[Hosts]:
    """Create the hosts to which a pod can be connected later."""
    with create_host("vpn") as vpn, create_host("cluster") as cluster:
        # Servers can listen on this address before a pod is connected.
        cluster.ip("address", "add", f"{CLUSTER_NODE_ADDRESSES[0]}/32", "dev", "lo")
        yield Hosts(vpn, cluster)


@dataclass(frozen=True)
class Network(Hosts):
    """A pod and the hosts to which it is connected."""

    pod: Host

    def add_vpn_addresses(self, *addresses: str) -> None:
        """Add VPN addresses to the pod, as tailscale does."""
        for address in addresses:
            self.pod.ip("address", "add", address, "dev", "vpn0", *(["nodad"] if ":" in address else []))


@contextmanager
def create_network() -> Iterator[Network]:
    """Create a pod and the hosts to which it is connected, for the duration of the block."""
    with create_hosts() as hosts, create_host("pod") as pod:
        hosts.connect(pod)
        yield Network(hosts.vpn, hosts.cluster, pod)


def _set_up(host: Host, interface: str, addresses: Sequence[str], routes: Mapping[str, str | None]) -> None:
    """Add addresses to an interface, and routes through it. The value of a route is its gateway, if it has one."""
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
