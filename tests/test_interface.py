"""Test how the program reads the addresses of the VPN interface, and how it notices that they have changed.

The interfaces are real ones in a network namespace. Each test runs a Python program in a new process, because a process
cannot leave the namespace that it has created.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lifecycle.clients.interface import InterfaceEvents, interface_addresses
from tests.conftest import FakeStop

# Each program starts with this code. It creates a network namespace, which exists until the process ends. It also
# defines the function `run`, which runs `ip` with the given arguments. The command "create" creates an interface.
CREATE_NAMESPACE = """
import ctypes, json, os, subprocess, sys

CLONE_NEWNET = 0x40000000
# tailscaled creates a tunnel. Not every machine supports every type of interface.
TYPES = [
    ["tuntap", "add", "dev", "NAME", "mode", "tun"],
    ["link", "add", "NAME", "type", "dummy"],
    ["link", "add", "NAME", "type", "bridge"],
]

def exit_with(error):
    print(json.dumps({"error": error}))
    sys.exit()

def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    return done.stderr.strip() or "ip failed" if done.returncode else ""

def run(command, *arguments):
    if command == "create":
        errors = []
        for words in TYPES:
            errors.append(ip(*(word.replace("NAME", arguments[0]) for word in words)))
            if not errors[-1]:
                return
        exit_with("; ".join(errors))
    elif error := ip(command, *arguments):
        exit_with(error)

libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(CLONE_NEWNET) != 0:
    exit_with(os.strerror(ctypes.get_errno()))
"""

PRINT_ADDRESSES = """
for command in json.loads(sys.argv[1]):
    run(*command)

from lifecycle.clients.interface import interface_addresses

addresses = interface_addresses("tailscale0")
print(json.dumps({"addresses": None if addresses is None else sorted(map(str, addresses))}))
"""

# This program calls `InterfaceEvents.wait` three times. After each call, it records how often `Stop.wait` was called.
# If the kernel reports changes, `InterfaceEvents.wait` calls `Stop.wait` only after a change.
COUNT_EVENTS = """
from lifecycle.clients.interface import InterfaceEvents
from lifecycle.runtime.stop import StopEvent

class Stop(StopEvent):
    wait_calls = 0

    def wait(self, timeout=None):
        self.wait_calls += 1

earlier_commands, commands = json.loads(sys.argv[1])
run("link", "set", "lo", "up")
for command in earlier_commands:
    run(*command)
stop = Stop()
events = InterfaceEvents(stop)
wait_calls = []
for command in commands:
    run(*command)
# The kernel reports a new IPv6 address in the background, so the first wait is not limited to messages that exist now.
for timeout_s in (60, 0):
    events.wait(timeout_s, is_settled=True)
    wait_calls.append(stop.wait_calls)
stop.set()
events.wait(3600, is_settled=True)
wait_calls.append(stop.wait_calls)
print(json.dumps({"wait_calls": wait_calls}))
"""

# A process that does not end within this time hangs, however slow the machine is.
HANG_TIMEOUT_S = 120

V4, V6 = "100.64.0.5", "fd7a:115c:a1e0::5"
CREATE = ["create", "tailscale0"]
UP = ["link", "set", "tailscale0", "up"]
# With this setting, the kernel assigns no link-local address.
NO_LINK_LOCAL = ["link", "set", "tailscale0", "addrgenmode", "none"]
# With this option, a new IPv6 address can be used immediately, without duplicate address detection.
NO_DAD = "nodad"

RunInNamespace = Callable[[str, Any], Any]


def add_address(address: str, *options: str, interface: str = "tailscale0") -> list[str]:
    return ["address", "add", address, "dev", interface, *options]


@pytest.fixture
def run_in_namespace(repository: Path, clean_environment: dict[str, str]) -> RunInNamespace:
    """Return a function that runs a program in a new network namespace, and returns the JSON that it prints."""

    def run(program: str, argument: Any) -> Any:
        if os.geteuid() != 0 or shutil.which("ip", path=clean_environment["PATH"]) is None:
            pytest.skip("needs to be root, and `ip` of iproute2, to create an interface")
        done = subprocess.run(
            [sys.executable, "-c", CREATE_NAMESPACE + program, json.dumps(argument)],
            check=True,
            capture_output=True,
            text=True,
            cwd=repository,
            env=clean_environment,
            timeout=HANG_TIMEOUT_S,
        )
        output = json.loads(done.stdout)
        if "error" in output:
            pytest.skip(f"this machine cannot create interfaces ({output['error']}); run as root with CAP_NET_ADMIN")
        return output

    return run


def test_addresses_of_an_existing_interface_are_returned() -> None:
    """The addresses are objects, not texts, because an IPv6 address can be written in several ways."""
    addresses = interface_addresses("lo")

    assert addresses is not None
    assert ip_address("127.0.0.1") in addresses
    assert {address.version for address in addresses} <= {4, 6}


@pytest.mark.parametrize(
    "name", ["nosuch0", "", "l", "lo0", "LO", "lo ", "127.0.0.1", "a-name-longer-than-any-interface"]
)
def test_result_for_a_missing_interface_is_none(name: str) -> None:
    assert interface_addresses(name) is None


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        pytest.param([], None, id="missing"),
        pytest.param([CREATE], [], id="down"),
        pytest.param([CREATE, NO_LINK_LOCAL, UP], [], id="up without an address"),
        pytest.param(
            [
                CREATE,
                NO_LINK_LOCAL,
                UP,
                add_address(f"{V4}/32"),
                add_address(f"{V6}/128", NO_DAD),
                add_address("fe80::1/64", NO_DAD),
            ],
            [V4, V6, "fe80::1"],
            id="both families and link-local",
        ),
        pytest.param(
            [
                CREATE,
                add_address(f"{V4}/32"),
                ["create", "eth0"],
                add_address("10.0.0.1/24", interface="eth0"),
                ["create", "tailscale01"],
                add_address("100.64.0.6/32", interface="tailscale01"),
            ],
            [V4],
            id="other interfaces",
        ),
        pytest.param([CREATE, add_address(f"{V4}/32"), ["link", "delete", "tailscale0"]], None, id="deleted"),
    ],
)
def test_addresses_of_a_tunnel(
    run_in_namespace: RunInNamespace, commands: Sequence[Sequence[str]], expected: list[str] | None
) -> None:
    output = run_in_namespace(PRINT_ADDRESSES, commands)

    assert output["addresses"] == (None if expected is None else sorted(expected))


# --- Events -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier_commands", "commands"),
    [
        pytest.param([], [CREATE], id="new interface"),
        pytest.param([CREATE], [add_address(f"{V4}/32")], id="new IPv4 address"),
        pytest.param([CREATE, UP], [add_address(f"{V6}/128", NO_DAD)], id="new IPv6 address"),
        pytest.param(
            [CREATE, add_address(f"{V4}/32")], [["address", "flush", "dev", "tailscale0"]], id="address removed"
        ),
        pytest.param([CREATE], [["link", "delete", "tailscale0"]], id="interface deleted"),
        pytest.param([], [add_address(f"127.0.1.{n}", interface="lo") for n in range(20)], id="twenty new addresses"),
    ],
)
def test_change_ends_exactly_one_wait(
    run_in_namespace: RunInNamespace, earlier_commands: list[list[str]], commands: list[list[str]]
) -> None:
    """The kernel can send several messages about one change."""
    output = run_in_namespace(COUNT_EVENTS, [earlier_commands, commands])

    assert output["wait_calls"] == [1, 1, 1]


class FailingSocket(socket.socket):
    """A netlink socket of which one method fails.

    Attributes:
        failing_call: the name of the method that fails.
    """

    failing_call = ""

    def bind(self, address: Any) -> None:
        self._fail("bind")
        super().bind(address)

    def _fail(self, call: str) -> None:
        if call == self.failing_call:
            raise PermissionError


class ReadableStop(FakeStop):
    """A stop event whose `wait_readable` always reports that the socket has data."""

    times_readable = 0

    def wait_readable(self, _socket: socket.socket, _timeout_s: float) -> bool:
        self.times_readable += 1
        return True


@pytest.mark.parametrize("failing_call", ["socket", "bind"])
def test_interface_is_polled_if_the_subscription_fails(monkeypatch: pytest.MonkeyPatch, failing_call: str) -> None:
    """gVisor and seccomp profiles can refuse these calls."""
    monkeypatch.setattr(FailingSocket, "failing_call", failing_call)
    monkeypatch.setattr(socket, "AF_NETLINK", -1 if failing_call == "socket" else socket.AF_NETLINK)
    monkeypatch.setattr(socket, "socket", FailingSocket)
    stop = ReadableStop()

    with closing(InterfaceEvents(stop)) as events:
        for _ in range(2):
            events.wait(3600, is_settled=True)

    assert stop.waits[-1] == 1.0
    assert stop.times_readable == 0


@pytest.mark.parametrize(("is_settled", "expected_s"), [(False, 1.0), (True, 60.0)])
def test_wait_without_an_event_ends_after_a_second_or_a_minute(is_settled: bool, expected_s: float) -> None:
    """An event can be lost, because the kernel drops messages if the socket's buffer is full.

    If `is_settled` is True, no change is expected soon.
    """
    stop = FakeStop()

    with closing(InterfaceEvents(stop)) as events:
        events.wait(3600, is_settled=is_settled)

    assert stop.waits == [expected_s]
