"""Test that SIGTERM and SIGINT end a command, and that cleanup succeeds while Cloudflare hangs."""

from __future__ import annotations

import signal

import pytest

from tests.process.commands import HANG_TIMEOUT_S, PROGRAM, Pod
from tests.simulators import faults

SIGNALS = [pytest.param(signal.SIGTERM, id="SIGTERM"), pytest.param(signal.SIGINT, id="SIGINT")]


@pytest.mark.max_cases_without_full(2)
@pytest.mark.parametrize("sent", SIGNALS)
@pytest.mark.parametrize(
    ("arguments", "event_before_wait", "status"),
    [
        pytest.param(["cleanup"], "retry.scheduled", 1, id="cleanup"),
        pytest.param(["dns-watch"], "pass.failed", 0, id="dns-watch"),
        pytest.param(["dns-watch", "--once"], "pass.failed", 1, id="dns-watch --once"),
    ],
)
def test_signal_ends_a_wait(
    pod: Pod, sent: signal.Signals, arguments: list[str], event_before_wait: str, status: int
) -> None:
    """The status is 1 if the command has not finished. dns-watch normally runs until it is stopped."""
    pod.headscale.faults.add(faults.answer(503, headers={"Retry-After": "60"}), times=None)
    running = pod.start_command(PROGRAM, *arguments, HEALTH_PORT="0")
    running.wait_for_event(event_before_wait)
    result = running.stop(sent)
    assert (result.status, result.stderr) == (status, "")
    assert [event["signal"] for event in result.events_named("stop.requested")] == [sent.name]
    assert pod.has_no_writes


@pytest.mark.parametrize("sent", SIGNALS)
def test_signal_ends_a_hanging_request_of_dns_watch(pod: Pod, sent: signal.Signals) -> None:
    """test_termination_log.py tests the other commands."""
    pod.headscale.faults.add(faults.hang(limit_s=3600), times=None)
    running = pod.start_command(PROGRAM, "dns-watch", HEALTH_PORT="0", HTTP_TIMEOUT="1h")
    assert pod.headscale_requested.wait(HANG_TIMEOUT_S)
    result = running.stop(sent)
    assert (result.status, result.stderr) == (0, "")
    assert [event["signal"] for event in result.events_named("stop.requested")] == [sent.name]
    assert pod.has_no_writes


def test_cleanup_succeeds_while_cloudflare_hangs(pod: Pod) -> None:
    pod.cloudflare.faults.add(faults.hang(limit_s=3600), times=None)
    result = pod.run("cleanup", HTTP_TIMEOUT="2")
    assert (result.status, result.stderr) == (0, "")
    assert len(result.events_named("zone.unreadable")) == 1
    assert pod.volume_files == ["authkey", "authkey.id"]
