"""The VPN address of this pod, from real interfaces."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lifecycle.clients.interface import InterfaceEvents, interface_addresses
from lifecycle.domain.model import IpAddress
from tests.conftest import FakeStop

# Creates a network namespace that ends with the process, and runs `ip` in it.
NAMESPACE = """
import ctypes, json, os, subprocess, sys

CLONE_NEWNET = 0x40000000
# tailscale creates a tunnel; not every machine has every kind of interface.
KINDS = [
    ["tuntap", "add", "dev", "NAME", "mode", "tun"],
    ["link", "add", "NAME", "type", "dummy"],
    ["link", "add", "NAME", "type", "bridge"],
]

def refused(reason):
    print(json.dumps({"refused": reason}))
    sys.exit()

def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    return done.stderr.strip() or "exit status" if done.returncode else ""

libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(CLONE_NEWNET) != 0:
    refused(os.strerror(ctypes.get_errno()))
def run(command, *arguments):
    if command == "make":
        reasons = []
        for kind in KINDS:
            reasons.append(ip(*(word.replace("NAME", arguments[0]) for word in kind)))
            if not reasons[-1]:
                break
        else:
            refused("; ".join(reasons))
    elif reason := ip(command, *arguments):
        refused(reason)
"""

PRINT_ADDRESSES = """
for command in json.loads(sys.argv[1]):
    run(*command)

from lifecycle.clients.interface import interface_addresses

found = interface_addresses("tailscale0")
print(json.dumps({"addresses": None if found is None else sorted(map(str, found))}))
"""

# Counts the waits that an event ended: only those are followed by a pause.
PRINT_WOKEN = """
from lifecycle.clients.interface import InterfaceEvents
from lifecycle.runtime.stop import StopEvent

class Stop(StopEvent):
    pauses = 0

    def wait(self, timeout=None):
        self.pauses += 1

before, during = json.loads(sys.argv[1])
run("link", "set", "lo", "up")
for command in before:
    run(*command)
stop = Stop()
events = InterfaceEvents(stop)
woken = []
for command in during:
    run(*command)
for _ in range(2):
    events.wait(0, is_settled=True)
    woken.append(stop.pauses)
stop.set()
events.wait(3600, is_settled=True)
woken.append(stop.pauses)
print(json.dumps({"woken": woken}))
"""

# A process that does not end within this time hangs, however slow the machine is.
HANGS_AFTER_S = 120

V4, V6 = "100.64.0.5", "fd7a:115c:a1e0::5"
MAKE = ["make", "tailscale0"]
UP = ["link", "set", "tailscale0", "up"]


def address(text: str, *more: str) -> list[str]:
    return ["address", "add", text, "dev", "tailscale0", *more]


def in_a_namespace(program: str, argument: Any, *, cwd: Path, env: dict[str, str]) -> Any:
    """Run a program in a network namespace of its own, and return the JSON that it prints."""
    if os.geteuid() != 0 or shutil.which("ip", path=env["PATH"]) is None:
        pytest.skip("needs to be root, and `ip` of iproute2, to make an interface")
    done = subprocess.run(
        [sys.executable, "-c", NAMESPACE + program, json.dumps(argument)],
        check=True,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        timeout=HANGS_AFTER_S,
    )
    seen = json.loads(done.stdout)
    if "refused" in seen:
        pytest.skip(f"interfaces cannot be created on this machine ({seen['refused']}); run as root with CAP_NET_ADMIN")
    return seen


def test_an_existing_interface_has_its_addresses() -> None:
    found = interface_addresses("lo")

    assert found is not None
    assert ip_address("127.0.0.1") in found


@pytest.mark.parametrize(
    "name", ["nosuch0", "", "l", "lo0", "LO", "lo ", "127.0.0.1", "a-name-longer-than-any-interface"]
)
def test_a_missing_interface_differs_from_one_without_addresses(name: str) -> None:
    assert interface_addresses(name) is None


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        pytest.param([], None, id="missing"),
        pytest.param([MAKE], [], id="down"),
        pytest.param([MAKE, ["link", "set", "tailscale0", "addrgenmode", "none"], UP], [], id="up without an address"),
        pytest.param([MAKE, address(f"{V4}/32")], [V4], id="IPv4"),
        pytest.param(
            [MAKE, address(f"{V4}/32"), address("100.64.0.6/32")], [V4, "100.64.0.6"], id="two IPv4 addresses"
        ),
        pytest.param(
            [
                MAKE,
                ["link", "set", "tailscale0", "addrgenmode", "none"],
                UP,
                address(f"{V4}/32"),
                address(f"{V6}/128", "nodad"),
                address("fe80::1/64", "nodad"),
            ],
            [V4, V6, "fe80::1"],
            id="both families and link-local",
        ),
        pytest.param(
            [
                ["make", "tailscale01"],
                ["address", "add", f"{V4}/32", "dev", "tailscale01"],
            ],
            None,
            id="longer name",
        ),
        pytest.param(
            [
                MAKE,
                ["make", "eth0"],
                ["address", "add", "10.0.0.1/24", "dev", "eth0"],
                address(f"{V4}/32"),
            ],
            [V4],
            id="other interfaces",
        ),
        pytest.param(
            [
                MAKE,
                address(f"{V4}/32"),
                ["make", "tailscale01"],
                ["address", "add", "100.64.0.6/32", "dev", "tailscale01"],
            ],
            [V4],
            id="interface with a longer name",
        ),
        pytest.param([MAKE, address(f"{V4}/32"), ["link", "delete", "tailscale0"]], None, id="deleted"),
        pytest.param([MAKE, address(f"{V4}/32"), ["address", "flush", "dev", "tailscale0"]], [], id="flushed"),
    ],
)
def test_addresses_of_a_tunnel(
    repository: Path,
    clean_environment: dict[str, str],
    commands: Sequence[Sequence[str]],
    expected: list[str] | None,
) -> None:
    seen = in_a_namespace(PRINT_ADDRESSES, commands, cwd=repository, env=clean_environment)

    assert seen["addresses"] == (None if expected is None else sorted(expected))


def test_addresses_are_not_text() -> None:
    """IPv6 addresses have many spellings."""
    found: Sequence[IpAddress] = interface_addresses("lo") or ()

    assert {one.version for one in found} <= {4, 6}
    assert all(one == ip_address(str(one)) for one in found)


# --- Events -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "during"),
    [
        pytest.param([], [MAKE], id="new interface"),
        pytest.param([MAKE], [address(f"{V4}/32")], id="IPv4 address"),
        pytest.param([MAKE, UP], [address(f"{V6}/128", "nodad")], id="IPv6 address"),
        pytest.param([MAKE, address(f"{V4}/32")], [["address", "flush", "dev", "tailscale0"]], id="address removed"),
        pytest.param([MAKE], [["link", "delete", "tailscale0"]], id="interface deleted"),
        pytest.param([], [["address", "add", f"127.0.1.{n}", "dev", "lo"] for n in range(20)], id="flood"),
    ],
)
def test_a_change_ends_one_wait(
    repository: Path, clean_environment: dict[str, str], before: list[list[str]], during: list[list[str]]
) -> None:
    """However many messages the kernel sent about it."""
    seen = in_a_namespace(PRINT_WOKEN, [before, during], cwd=repository, env=clean_environment)

    assert seen["woken"] == [1, 1, 1]


class Unusable(socket.socket):
    """A netlink socket whose calls fail."""

    failing = ""

    def bind(self, address: Any) -> None:
        self._fail("bind")
        super().bind(address)

    def recv(self, *_: Any) -> bytes:
        self._fail("recv")
        raise BlockingIOError

    def _fail(self, call: str) -> None:
        if call == self.failing:
            raise PermissionError


class WokenStop(FakeStop):
    """A stop whose waits are ended by the socket."""

    received = 0

    def wait_readable(self, _socket: socket.socket, _timeout_s: float) -> bool:
        self.received += 1
        return True


@pytest.mark.parametrize("failing", ["socket", "bind", "recv"])
def test_the_interface_is_polled_if_events_are_refused(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """As by gVisor or a seccomp profile."""
    monkeypatch.setattr(Unusable, "failing", failing)
    monkeypatch.setattr(socket, "AF_NETLINK", -1 if failing == "socket" else socket.AF_NETLINK)
    monkeypatch.setattr(socket, "socket", Unusable)
    stop = WokenStop()

    with closing(InterfaceEvents(stop)) as events:
        for _ in range(2):
            events.wait(3600, is_settled=True)

    assert stop.waits[-1] == 1.0
    assert stop.received == (failing == "recv")


@pytest.mark.parametrize(("is_settled", "expected"), [(False, 1.0), (True, 60.0)])
def test_a_lost_event_only_delays(is_settled: bool, expected: float) -> None:
    """The interface is read once a minute, and every second while the pod starts."""
    stop = FakeStop()

    with closing(InterfaceEvents(stop)) as events:
        events.wait(3600, is_settled=is_settled)

    assert stop.waits == [expected]
