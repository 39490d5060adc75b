"""`dns-watch` beside a VPN interface, in a network of its own: what every container of a pod sees."""

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

from tests.builders import MARK, NAME
from tests.process.commands import Pod

Result = TypeVar("Result")

# Source: <linux/sched.h>; Python has no name for it before 3.12.
CLONE_NEWNET = 0x40000000

INTERFACE = "tailscale0"


def ip(*arguments: str) -> None:
    """Run `ip` in this thread's network."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def enter_own_network() -> None:
    """Leave the machine's network, this thread alone and the processes that it starts.

    The loopback interface plays the VPN's: no other kind can be made on every machine.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    ip("link", "set", "lo", "name", INTERFACE)
    ip("link", "set", INTERFACE, "up")


@functools.cache
def _why_not() -> str | None:
    """Why no network can be made here; None when one can."""
    if shutil.which("ip") is None:
        return "ip is not installed (iproute2)"
    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(enter_own_network).result()
        except (OSError, subprocess.CalledProcessError) as error:
            return f"needs the right to make a network namespace, as root has it: {error}"
    return None


Elsewhere = Callable[[Callable[[], Result]], Result]


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere[object]]:
    """Runs a function in a network of its own, the same one each time."""
    if reason := _why_not():
        pytest.skip(reason)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(enter_own_network).result()
        yield lambda function: thread.submit(function).result()


def test_a_manifest_from_before_this_program_works_unchanged(
    elsewhere: Elsewhere[None], make_pod: Callable[..., Pod]
) -> None:
    """No key volume in the sidecar, no setting but those it always had; the interface tells the rest."""

    def story() -> None:
        pod = make_pod()
        pod.headscale.add_user("svc")
        manifest = {"MAX_RETRIES": "30", "RETRY_INTERVAL": "10", "AUTHKEY_OUTPUT_PATH": ""}
        watch = pod.start("dns-watch", **manifest)
        watch.until("pass.skipped")
        others = [pod.headscale.add_node(NAME, user="svc") for _ in range(2)]
        ours = pod.headscale.add_node(NAME, user="svc")
        ip("address", "add", f"{ours.address}/32", "dev", INTERFACE)
        assert watch.until("record.created")["content"] == ours.address

        moved = pod.headscale.readdress(ours.id)
        ip("address", "add", f"{moved.address}/32", "dev", INTERFACE)
        ip("address", "delete", f"{ours.address}/32", "dev", INTERFACE)
        assert watch.until("record.updated")["content"] == moved.address
        ended = watch.stop()
        assert (ended.status, ended.errors) == (0, "")
        assert pod.records() == {f"A {moved.address}": MARK}
        assert len(pod.headscale.nodes) == len(others) + 1

    elsewhere(story)


def test_an_address_that_no_node_has_is_published_by_nobody(
    elsewhere: Elsewhere[None], make_pod: Callable[..., Pod]
) -> None:
    def story() -> None:
        pod = make_pod()
        pod.headscale.add_user("svc")
        pod.headscale.add_node(NAME, user="svc")
        ip("address", "add", "100.64.7.7/32", "dev", INTERFACE)
        ended = pod.run("dns-watch", "--once", MAX_RETRIES="2", RETRY_INTERVAL="1")
        assert (ended.status, ended.errors) == (1, "")
        assert "no node with this pod's VPN address" in ended.last["error"]
        assert pod.untouched

    elsewhere(story)
