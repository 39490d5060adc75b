"""Tests of `dns-watch` with a VPN interface. Each test has its own network namespace, like a pod."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.builders import NAME, OUR_COMMENT
from tests.conftest import MakePod
from tests.process.commands import PROGRAM

# Source: <linux/sched.h>; Python has no name for it before 3.12.
CLONE_NEWNET = 0x40000000

INTERFACE = "tailscale0"


def ip(*arguments: str) -> None:
    """Run `ip` in the network namespace of this thread."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def enter_new_network() -> None:
    """Move this thread, and the processes that it starts, to a new network namespace.

    The loopback interface of the new namespace gets the name of the VPN interface, because not every machine can create
    interfaces of other kinds.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    ip("link", "set", "lo", "name", INTERFACE)
    ip("link", "set", INTERFACE, "up")


InNewNetwork = Callable[[Callable[[], None]], None]


@pytest.fixture
def in_new_network() -> Iterator[InNewNetwork]:
    """Return a function that runs its argument in the network namespace of this test."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip: install iproute2")
    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(enter_new_network).result()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs the permission to create a network namespace, as root: {error}")
        yield lambda scenario: thread.submit(scenario).result()


def test_sidecar_without_the_key_volume_publishes_the_address_of_the_interface(
    in_new_network: InNewNetwork, make_pod: MakePod
) -> None:
    """Old manifests without the key volume, such as a sidecar with only these settings, must keep working."""

    def scenario() -> None:
        pod = make_pod()
        settings = {"MAX_RETRIES": "30", "RETRY_INTERVAL": "10", "AUTHKEY_OUTPUT_PATH": ""}
        watch = pod.start_command(PROGRAM, "dns-watch", **settings)
        watch.wait_for_event("pass.skipped")
        other_nodes = [pod.headscale.add_node(NAME, user="svc") for _ in range(2)]
        node = pod.headscale.add_node(NAME, user="svc")
        ip("address", "add", f"{node.address}/32", "dev", INTERFACE)
        assert watch.wait_for_event("record.created")["content"] == node.address

        changed = pod.headscale.readdress(node.id)
        ip("address", "add", f"{changed.address}/32", "dev", INTERFACE)
        ip("address", "delete", f"{node.address}/32", "dev", INTERFACE)
        assert watch.wait_for_event("record.updated")["content"] == changed.address
        result = watch.stop()
        assert (result.status, result.stderr) == (0, "")
        assert pod.records() == {f"A {changed.address}": OUR_COMMENT}
        assert len(pod.headscale.nodes) == len(other_nodes) + 1

    in_new_network(scenario)


def test_address_without_a_node_is_not_published(in_new_network: InNewNetwork, make_pod: MakePod) -> None:
    def scenario() -> None:
        pod = make_pod()
        pod.headscale.add_node(NAME, user="svc")
        ip("address", "add", "100.64.7.7/32", "dev", INTERFACE)
        watch = pod.start_command(PROGRAM, "dns-watch", "--once", MAX_RETRIES="2", RETRY_INTERVAL="1")
        result = watch.wait()
        assert (result.status, result.stderr) == (1, "")
        assert "no node with this pod's VPN address" in result.last_event["error"]
        assert pod.has_no_writes

    in_new_network(scenario)
