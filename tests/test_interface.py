"""The VPN address of this pod, from real interfaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from lifecycle.clients.interface import interface_addresses
from lifecycle.domain.model import IpAddress

# Creates a network namespace that ends with the process, runs `ip` in it, and prints what the program sees.
IN_A_NAMESPACE = """
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
for command, *arguments in json.loads(sys.argv[1]):
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

from lifecycle.clients.interface import interface_addresses

found = interface_addresses("tailscale0")
print(json.dumps({"addresses": None if found is None else sorted(map(str, found))}))
"""

V4, V6 = "100.64.0.5", "fd7a:115c:a1e0::5"
MAKE = ["make", "tailscale0"]
UP = ["link", "set", "tailscale0", "up"]


def address(text: str, *more: str) -> list[str]:
    return ["address", "add", text, "dev", "tailscale0", *more]


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
    if os.geteuid() != 0 or shutil.which("ip", path=clean_environment["PATH"]) is None:
        pytest.skip("needs to be root, and `ip` of iproute2, to make an interface")

    done = subprocess.run(
        [sys.executable, "-c", IN_A_NAMESPACE, json.dumps(commands)],
        check=True,
        capture_output=True,
        text=True,
        cwd=repository,
        env=clean_environment,
    )
    seen = json.loads(done.stdout)
    if "refused" in seen:
        pytest.skip(f"interfaces cannot be created on this machine ({seen['refused']}); run as root with CAP_NET_ADMIN")

    assert seen["addresses"] == (None if expected is None else sorted(expected))


def test_addresses_are_not_text() -> None:
    """IPv6 addresses have many spellings."""
    found: Sequence[IpAddress] = interface_addresses("lo") or ()

    assert {one.version for one in found} <= {4, 6}
    assert all(one == ip_address(str(one)) for one in found)
