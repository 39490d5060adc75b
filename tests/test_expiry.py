"""Test the warnings and metrics about an API key or a node that expires soon."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle.dns_watch.status import Status
from lifecycle.health.metrics import render_metrics
from tests.dns_watch.pods import Pod
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import answer, drop, html, malformed_json, oversize
from tests.world import World, event_names, events_named

HOUR_S = 3600.0
DAY_S = 86_400.0

API_KEYS = "/api/v1/apikey"

# A key in a list of API keys. Every API key of Headscale 0.28 starts with this prefix.
AMBIGUOUS_KEY = '{"prefix": "hskey-api-", "expiration": "2026-03-02T00:00:00Z"}'

# With the default intervals, tests that simulate weeks would need thousands of polls.
RARE_POLLS = {"POLL_INTERVAL": "30m", "RETRY_INTERVAL": "30m", "VERIFY_INTERVAL": "6h"}


def set_api_key_expiry(world: World, lifetime: timedelta) -> datetime:
    """Set the lifetime of the API key in use, and return when it expires."""
    state = world.headscale._state  # noqa: SLF001 - no API changes an API key's expiry
    (key_id,) = [key_id for key_id, key in state.api_keys.items() if key.key == world.headscale.api_key]
    expires_at = world.clock.now() + lifetime
    state.api_keys[key_id] = replace(state.api_keys[key_id], expires_at=expires_at)
    return expires_at


def api_key_requests(world: World) -> int:
    """Return the number of requests for the list of API keys."""
    return sum(exchange.path == API_KEYS for exchange in world.headscale.requests)


def metric(status: Status, name: str) -> float | None:
    """Return the value of one of the program's metrics; None if it is missing."""
    prefix = f"tailscale_lifecycle_{name} "
    _, text = render_metrics(status, accept="")
    samples = [line for line in text.decode().splitlines() if line.startswith(prefix)]
    return float(samples[0].removeprefix(prefix)) if samples else None


@pytest.mark.parametrize("world", VERSIONS, indirect=True)
def test_expiring_api_key_is_reported_after_the_record_is_published(
    world: World, tmp_path: Path, events: list[Any]
) -> None:
    # The list of API keys now also contains the previous key, which has expired. It must not be reported.
    world.headscale.rotate_api_key()
    world.environment["HEADSCALE_API_KEY"] = world.headscale.api_key
    expires_at = set_api_key_expiry(world, timedelta(days=13, hours=12))
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    assert api_key_requests(world) == 0
    pod.run(60)
    (warning,) = events_named(events, "api_key.expiring")
    assert (warning["log_level"], warning["expires_at"], warning["days_left"]) == ("warning", expires_at, 13)
    assert "headscale apikeys create" in warning["advice"]
    assert metric(pod.watch.status, "api_key_expiration_timestamp_seconds") == pytest.approx(expires_at.timestamp())


def test_expiring_api_key_is_reported_once_a_day_from_14_days_before(
    world: World, tmp_path: Path, events: list[Any]
) -> None:
    """Until then, dns-watch lists the API keys once a day, and only the metric reports the expiry.

    Afterwards, dns-watch lists them once an hour, so it soon detects that the key was replaced.
    """
    expires_at = set_api_key_expiry(world, timedelta(days=16))
    pod = Pod(world, tmp_path / "pod", RARE_POLLS)
    pod.start()
    pod.run(1.9 * DAY_S)
    assert not events_named(events, "api_key.expiring")
    assert metric(pod.watch.status, "api_key_expiration_timestamp_seconds") == pytest.approx(expires_at.timestamp())
    earlier_requests = api_key_requests(world)
    pod.run(3.5 * DAY_S)
    assert [event["days_left"] for event in events_named(events, "api_key.expiring")] == [13, 12, 11, 10]
    # The first interval can still be a day, and jitter lengthens each interval by up to a quarter.
    assert 50 <= api_key_requests(world) - earlier_requests <= 3.5 * 24 + 2


def test_new_api_key_in_the_file_ends_the_warning(world: World, tmp_path: Path, events: list[Any]) -> None:
    set_api_key_expiry(world, timedelta(days=10))
    file = tmp_path / "api-key"
    file.write_text(world.headscale.api_key)
    from_file = {"HEADSCALE_API_KEY": "", "HEADSCALE_API_KEY_FILE": str(file)}
    pod = Pod(world, tmp_path / "pod", RARE_POLLS | from_file)
    pod.start()
    pod.run(0.5 * DAY_S)
    assert events_named(events, "api_key.expiring")
    file.write_text(world.headscale.add_api_key())
    events.clear()
    pod.run(2 * DAY_S)
    assert not events_named(events, "api_key.expiring")
    expires_at = metric(pod.watch.status, "api_key_expiration_timestamp_seconds")
    # The simulator's keys are valid for 90 days.
    assert expires_at is not None
    assert expires_at > world.clock.now().timestamp() + 80 * DAY_S


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(html(502), id="502"),
        pytest.param(html(200), id="HTML page"),
        pytest.param(answer(200, '{"apiKeys": []}'), id="empty list"),
        pytest.param(
            answer(200, '{"apiKeys": [{"prefix": "", "expiration": "2026-03-02T00:00:00Z"}]}'), id="empty prefix"
        ),
        pytest.param(
            answer(200, '{"apiKeys": [{"prefix": "***", "expiration": "2026-03-02T00:00:00Z"}]}'), id="masked prefix"
        ),
        pytest.param(answer(200, f'{{"apiKeys": [{AMBIGUOUS_KEY}, {AMBIGUOUS_KEY}]}}'), id="ambiguous prefix"),
        pytest.param(malformed_json(), id="malformed JSON"),
        pytest.param(drop(), id="lost connection"),
        pytest.param(oversize(33 << 20), id="33 MiB"),
    ],
)
def test_unreadable_list_of_api_keys_is_not_an_error(
    world: World, tmp_path: Path, events: list[Any], fault: Any
) -> None:
    """The record is published, and the metric is missing."""
    set_api_key_expiry(world, timedelta(days=1))
    world.headscale.faults.add(fault, path=API_KEYS, times=None)
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    pod.run(60)
    assert pod.watch.state.records.in_sync
    assert not {"api_key.expiring", "pass.failed", "command.failed", "retry.scheduled"} & {*event_names(events)}
    # The settings of this test name no Headscale user, so dns-watch warns that it assumes the only one.
    assert all(event["log_level"] not in {"warning", "error"} for event in events if event["event"] != "user.assumed")
    assert metric(pod.watch.status, "api_key_expiration_timestamp_seconds") is None
    assert api_key_requests(world) == 1


def test_failed_read_of_the_api_keys_is_repeated_after_an_hour(world: World, tmp_path: Path, events: list[Any]) -> None:
    set_api_key_expiry(world, timedelta(days=1))
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    world.headscale.faults.add(html(502), path=API_KEYS)
    pod.run(HOUR_S - 600)
    assert not events_named(events, "api_key.expiring")
    pod.run(1400)
    assert len(events_named(events, "api_key.expiring")) == 1


def test_expiring_node_is_reported_once_a_day(world: World, tmp_path: Path, events: list[Any]) -> None:
    """The expiry is also a metric."""
    pod = Pod(world, tmp_path / "pod", RARE_POLLS)
    pod.start()
    expires_at = world.clock.now() + timedelta(days=16)
    world.headscale.expire_node(pod.node_id, expires_at)
    pod.run(DAY_S)
    assert not events_named(events, "node.expiring")
    assert metric(pod.watch.status, "node_expiration_timestamp_seconds") == pytest.approx(expires_at.timestamp())
    pod.run(4.5 * DAY_S)
    warnings = events_named(events, "node.expiring")
    assert [warning["days_left"] for warning in warnings] == [13, 12, 11, 10]
    assert (warnings[0]["log_level"], warnings[0]["node_id"]) == ("warning", str(pod.node_id))


def test_node_without_expiry_is_not_reported(world: World, tmp_path: Path, events: list[Any]) -> None:
    """By default, Headscale sets no expiry for nodes that register with a pre-auth key."""
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    pod.run(60)
    assert metric(pod.watch.status, "node_expiration_timestamp_seconds") is None
    assert "node.expiring" not in event_names(events)
