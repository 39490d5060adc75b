"""`dns-watch` with a VPN interface, in a network namespace of its own as in a pod."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from tests.builders import NAME, OUR_COMMENT
from tests.process.commands import PROGRAM
from tests.process.conftest import MakePod

Result = TypeVar("Result")

# Source: <linux/sched.h>; Python has no name for it before 3.12.
CLONE_NEWNET = 0x40000000

INTERFACE = "tailscale0"


def ip(*arguments: str) -> None:
    """Run `ip` in the network namespace of this thread."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def enter_new_network() -> None:
    """Move this thread, and the processes that it starts, to a new network namespace.

    Its loopback interface is renamed to the VPN interface, because other kinds are not available on every machine.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    ip("link", "set", "lo", "name", INTERFACE)
    ip("link", "set", INTERFACE, "up")


@functools.cache
def _reason_to_skip() -> str | None:
    """Return why no network namespace can be created, or None if it can."""
    if shutil.which("ip") is None:
        return "ip is not installed (iproute2)"
    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(enter_new_network).result()
        except (OSError, subprocess.CalledProcessError) as error:
            return f"needs the permission to create a network namespace, as root: {error}"
    return None


InNewNetwork = Callable[[Callable[[], Result]], Result]


@pytest.fixture
def in_new_network() -> Iterator[InNewNetwork[object]]:
    """Return a function that runs another function in a new network namespace, the same for each call."""
    if reason := _reason_to_skip():
        pytest.skip(reason)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(enter_new_network).result()
        yield lambda function: thread.submit(function).result()


def test_sidecar_of_an_existing_manifest_publishes_the_address_of_the_interface(
    in_new_network: InNewNetwork[None], make_pod: MakePod
) -> None:
    """The manifest gives the sidecar no key volume and no newer settings."""

    def scenario() -> None:
        pod = make_pod()
        manifest = {"MAX_RETRIES": "30", "RETRY_INTERVAL": "10", "AUTHKEY_OUTPUT_PATH": ""}
        watch = pod.start_command(PROGRAM, "dns-watch", **manifest)
        watch.until("pass.skipped")
        others = [pod.headscale.add_node(NAME, user="svc") for _ in range(2)]
        ours = pod.headscale.add_node(NAME, user="svc")
        ip("address", "add", f"{ours.address}/32", "dev", INTERFACE)
        assert watch.until("record.created")["content"] == ours.address

        moved = pod.headscale.readdress(ours.id)
        ip("address", "add", f"{moved.address}/32", "dev", INTERFACE)
        ip("address", "delete", f"{ours.address}/32", "dev", INTERFACE)
        assert watch.until("record.updated")["content"] == moved.address
        result = watch.stop()
        assert (result.status, result.stderr) == (0, "")
        assert pod.records() == {f"A {moved.address}": OUR_COMMENT}
        assert len(pod.headscale.nodes) == len(others) + 1

    in_new_network(scenario)


def test_address_without_a_node_is_not_published(in_new_network: InNewNetwork[None], make_pod: MakePod) -> None:
    def scenario() -> None:
        pod = make_pod()
        pod.headscale.add_node(NAME, user="svc")
        ip("address", "add", "100.64.7.7/32", "dev", INTERFACE)
        watch = pod.start_command(PROGRAM, "dns-watch", "--once", MAX_RETRIES="2", RETRY_INTERVAL="1")
        result = watch.wait()
        assert (result.status, result.stderr) == (1, "")
        assert "no node with this pod's VPN address" in result.last["error"]
        assert pod.has_no_writes

    in_new_network(scenario)
