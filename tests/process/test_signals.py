"""SIGTERM and SIGINT end either command, whatever it is doing."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.process.commands import HANGS_AFTER_S, Doorbell, Pod
from tests.simulators import faults

SIGNALS = [pytest.param(signal.SIGTERM, id="SIGTERM"), pytest.param(signal.SIGINT, id="SIGINT")]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("arguments", "waits", "status"),
    [
        pytest.param(["cleanup"], "retry.scheduled", 1, id="cleanup"),
        pytest.param(["dns-watch"], "pass.failed", 0, id="dns-watch"),
        pytest.param(["dns-watch", "--once"], "pass.failed", 0, id="dns-watch-once"),
    ],
)
def test_a_wait_is_ended(pod: Pod, number: signal.Signals, arguments: list[str], waits: str, status: int) -> None:
    pod.headscale.faults.add(faults.answer(503, headers={"Retry-After": "60"}), times=None)
    running = pod.start(*arguments, HEALTH_PORT="0")
    running.until(waits)
    ended = running.stop(number)
    assert (ended.status, ended.errors) == (status, "")
    assert [event["signal"] for event in ended.named("stop.requested")] == [number.name]
    assert pod.untouched


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("arguments", "status"),
    [pytest.param(["cleanup"], 1, id="cleanup"), pytest.param(["dns-watch"], 0, id="dns-watch")],
)
def test_a_request_that_hangs_is_left_behind(
    make_pod: Callable[..., Pod], number: signal.Signals, arguments: list[str], status: int
) -> None:
    """Its answer would come in an hour."""
    bells: list[Doorbell] = []

    def with_a_bell(application: Callable[..., object]) -> Doorbell:
        bells.append(Doorbell(application))  # type: ignore[arg-type]
        return bells[0]

    pod = make_pod(before=with_a_bell)
    pod.headscale.add_user("svc")
    pod.headscale.faults.add(faults.hang(limit_s=3600), times=None)
    running = pod.start(*arguments, HEALTH_PORT="0", HTTP_TIMEOUT="1h", TAILSCALE_INTERFACE="")
    assert bells[0].rang.wait(HANGS_AFTER_S)
    ended = running.stop(number)
    assert (ended.status, ended.errors) == (status, "")
    assert [event["signal"] for event in ended.named("stop.requested")] == [number.name]
    assert pod.untouched


def test_a_zone_that_hangs_holds_no_cleanup_up(pod: Pod) -> None:
    """Its one request is left behind when HTTP_TIMEOUT is over, without a word on standard error."""
    pod.cloudflare.faults.add(faults.hang(limit_s=3600), times=None)
    ended = pod.run("cleanup", HTTP_TIMEOUT="2")
    assert (ended.status, ended.errors) == (0, "")
    assert len(ended.named("zone.unreadable")) == 1
    assert pod.files == ["authkey", "authkey.id"]
