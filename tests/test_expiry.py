"""Before it breaks: an API key or a node that is about to expire is said once a day, and shown as a metric."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle.clients.headscale.parsing import parse_api_key
from lifecycle.health.metrics import render_metrics
from lifecycle.health.status import Status
from tests.dns_watch.pods import Pod
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import answer, drop, garbage, html, oversize
from tests.world import World, named, names

DAY_S = 86_400.0

API_KEYS = "/api/v1/apikey"

# For the long runs, which would look thousands of times.
SELDOM = {"POLL_INTERVAL": "30m", "RETRY_INTERVAL": "30m", "VERIFY_INTERVAL": "6h"}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


def set_api_key_expiry(world: World, life: timedelta) -> datetime:
    """Let the API key in use expire after so long."""
    state = world.headscale._state  # noqa: SLF001 - no API changes an API key's expiry
    (key_id,) = [key_id for key_id, key in state.api_keys.items() if key.key == world.headscale.api_key]
    expires_at = world.clock.now() + life
    state.api_keys[key_id] = replace(state.api_keys[key_id], expires_at=expires_at)
    return expires_at


def looks(world: World) -> int:
    """How often the list of API keys was asked for."""
    return sum(exchange.path == API_KEYS for exchange in world.headscale.requests)


def metric(status: Status, name: str) -> float | None:
    """The value of one of our metrics; None when it is not there."""
    prefix = f"tailscale_lifecycle_{name} "
    _, text = render_metrics(status, accept="")
    found = [line for line in text.decode().splitlines() if line.startswith(prefix)]
    return float(found[0].removeprefix(prefix)) if found else None


@pytest.mark.parametrize("version", VERSIONS)
def test_an_api_key_that_expires_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, events: list[Any], version: str
) -> None:
    """Said at the start of each command, whatever the server is, with what to do."""
    world = World(monkeypatch, tmp_path, version)
    world.headscale.rotate_api_key()
    world.environment["HEADSCALE_API_KEY"] = world.headscale.api_key
    expires_at = set_api_key_expiry(world, timedelta(days=13, hours=12))
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    (warning,) = named(events, "api_key.expiring")
    assert (warning["log_level"], warning["expires_at"], warning["days_left"]) == ("warning", expires_at, 13)
    assert "headscale apikeys create" in warning["advice"]
    pod.run(60)
    assert len(named(events, "api_key.expiring")) == 2
    assert metric(pod.watch.status, "api_key_expiration_timestamp_seconds") == pytest.approx(expires_at.timestamp())


def test_an_api_key_that_lives_longer(world: World, tmp_path: Path, events: list[Any]) -> None:
    """Is not talked about until 14 days are left; the metric says it all the time."""
    expires_at = set_api_key_expiry(world, timedelta(days=16))
    pod = Pod(world, tmp_path / "pod", SELDOM)
    pod.start()
    pod.run(1.9 * DAY_S)
    assert not named(events, "api_key.expiring")
    assert metric(pod.watch.status, "api_key_expiration_timestamp_seconds") == pytest.approx(expires_at.timestamp())
    pod.run(0.2 * DAY_S)
    assert [event["days_left"] for event in named(events, "api_key.expiring")] == [13]


def test_said_once_a_day(world: World, tmp_path: Path, events: list[Any]) -> None:
    """And looked at once an hour, so that a new key is soon seen."""
    set_api_key_expiry(world, timedelta(days=10))
    pod = Pod(world, tmp_path / "pod", SELDOM)
    pod.start()
    pod.run(4 * DAY_S)
    (_, *by_the_watch) = named(events, "api_key.expiring")
    assert 3 <= len(by_the_watch) <= 5
    assert [event["days_left"] for event in by_the_watch] == sorted(
        {event["days_left"] for event in by_the_watch}, reverse=True
    )
    assert 60 <= looks(world) <= 4 * 24 + 2


def test_a_rotated_key(world: World, tmp_path: Path, events: list[Any]) -> None:
    """The key that is in use counts, not the others that are listed."""
    world.headscale.rotate_api_key()
    expires_at = set_api_key_expiry(world, timedelta(days=80))
    world.environment["HEADSCALE_API_KEY"] = world.headscale.api_key
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    pod.run(60)
    assert not named(events, "api_key.expiring")
    assert metric(pod.watch.status, "api_key_expiration_timestamp_seconds") == pytest.approx(expires_at.timestamp())


def test_a_new_key_in_the_file_is_seen_long_before_the_old_one_is_refused(
    world: World, tmp_path: Path, events: list[Any]
) -> None:
    """Whoever did what the warning says hears no more of it."""
    set_api_key_expiry(world, timedelta(days=10))
    file = tmp_path / "api-key"
    file.write_text(world.headscale.api_key)
    from_file = {"HEADSCALE_API_KEY": "", "HEADSCALE_API_KEY_FILE": str(file)}
    pod = Pod(world, tmp_path / "pod", SELDOM | from_file)
    pod.start()
    pod.run(0.5 * DAY_S)
    assert named(events, "api_key.expiring")
    second = world.headscale.add_api_key()
    file.write_text(second)
    events.clear()
    pod.run(2 * DAY_S)
    assert not named(events, "api_key.expiring")
    expires_at = metric(pod.watch.status, "api_key_expiration_timestamp_seconds")
    assert expires_at is not None
    assert expires_at > world.clock.true_now().timestamp() + 80 * DAY_S


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(html(403), id="403"),
        pytest.param(html(404), id="404"),
        pytest.param(html(502), id="502"),
        pytest.param(html(200), id="a-page"),
        pytest.param(answer(200, '{"apiKeys": null}'), id="null"),
        pytest.param(answer(200, '{"apiKeys": []}'), id="nobody-s"),
        pytest.param(answer(200, '{"apiKeys": [{"prefix": "", "expiration": "2026-03-02T00:00:00Z"}]}'), id="empty"),
        pytest.param(
            answer(200, '{"apiKeys": [{"prefix": "***", "expiration": "2026-03-02T00:00:00Z"}]}'), id="masked"
        ),
        pytest.param(answer(200, '{"apiKeys": [{"prefix": 7}]}'), id="number"),
        pytest.param(garbage(), id="garbage"),
        pytest.param(drop(), id="lost"),
        pytest.param(oversize(33 << 20), id="oversize"),
    ],
)
def test_a_list_that_cannot_be_read(world: World, tmp_path: Path, events: list[Any], fault: Any) -> None:
    """Is no error: both commands do their work, and the metric is not there."""
    set_api_key_expiry(world, timedelta(days=1))
    world.headscale.faults.add(fault, path=API_KEYS, times=None)
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    pod.run(60)
    assert pod.watch.status.view.in_sync
    assert not {"api_key.expiring", "pass.failed", "command.failed", "retry.scheduled"} & {*names(events)}
    assert all(event["log_level"] not in {"warning", "error"} for event in events if event["event"] != "user.assumed")
    assert metric(pod.watch.status, "api_key_expiration_timestamp_seconds") is None
    assert looks(world) == 2


def test_asked_again_in_an_hour(world: World, tmp_path: Path, events: list[Any]) -> None:
    """What could not be read is not left unread for a day."""
    set_api_key_expiry(world, timedelta(days=1))
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    world.headscale.faults.add(html(502), path=API_KEYS)
    pod.run(3000)
    assert len(named(events, "api_key.expiring")) == 1
    pod.run(2000)
    assert len(named(events, "api_key.expiring")) == 2


def test_an_expiring_node(world: World, tmp_path: Path, events: list[Any]) -> None:
    """Said once a day from 14 days on, and shown all the time."""
    pod = Pod(world, tmp_path / "pod", SELDOM)
    pod.start()
    expires_at = world.clock.now() + timedelta(days=16)
    world.headscale.expire_node(pod.node_id, expires_at)
    pod.run(DAY_S)
    assert not named(events, "node.expiring")
    assert metric(pod.watch.status, "node_expiration_timestamp_seconds") == pytest.approx(expires_at.timestamp())
    pod.run(4.5 * DAY_S)
    warnings = named(events, "node.expiring")
    assert [warning["days_left"] for warning in warnings] == [13, 12, 11, 10]
    assert (warnings[0]["log_level"], warnings[0]["node_id"]) == ("warning", str(pod.node_id))


def test_a_node_that_never_expires(world: World, tmp_path: Path, events: list[Any]) -> None:
    """As nodes that came in with a key do not, unless the server is told otherwise."""
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    pod.run(60)
    assert metric(pod.watch.status, "node_expiration_timestamp_seconds") is None
    assert "node.expiring" not in names(events)


@pytest.mark.parametrize(
    ("shown", "prefix"),
    [
        pytest.param("gX7-A24fQA", "gX7-A24fQA", id="0.23"),
        pytest.param("Dvg0aDZ", "Dvg0aDZ", id="0.27"),
        pytest.param("d1WdO8-***", "d1WdO8-", id="made-by-0.27-shown-by-0.28"),
        pytest.param("hskey-api-8ZTWr3e-rZKX-***", "hskey-api-8ZTWr3e-rZKX-", id="0.28"),
        pytest.param("hskey-api-b2d4b895cbf7-***", "hskey-api-b2d4b895cbf7-", id="0.30"),
    ],
)
def test_prefix_of_a_listed_api_key(shown: str, prefix: str) -> None:
    """As real servers list them."""
    assert parse_api_key({"prefix": shown, "expiration": None}).prefix == prefix


@pytest.mark.parametrize("shown", ["", "***", "abc***", "hskey-"])
def test_too_short_prefix_is_refused(shown: str) -> None:
    """It would match any key."""
    with pytest.raises(ValueError, match="prefix"):
        parse_api_key({"prefix": shown, "expiration": None})
