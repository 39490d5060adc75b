"""Test the behavior with a release of Headscale that is newer than all tested releases."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lifecycle.domain.errors import ResponseError
from lifecycle.domain.releases import NEWEST_TESTED, untested_warning
from tests.builders import NAME, OUR_COMMENT
from tests.simulators.dialects import VERSIONS
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.messages import Handler, Request, Response
from tests.simulators.upstream import Upstream
from tests.world import USER, Interface, World, event_names, events_named

NEWER = "0.31.0"
TEN_MINUTES_S = 600.0

Change = Callable[[Any], Any]


def change_members(value: Any, change: Callable[[str, str, Any], tuple[str, Any]], kind: str = "") -> Any:
    """Return a copy of a JSON value in which `change` has replaced each member of each object.

    Args:
        change: called with the kind of the object, such as "node", and with the member's name and value. It returns the
            new name and the new value.
    """
    match value:
        case dict():
            return dict(change(kind, name, change_members(member, change, name)) for name, member in value.items())
        case list():
            # The list "nodes" contains objects of the kind "node".
            return [change_members(item, change, kind.removesuffix("s")) for item in value]
    return value


def renamed(field: str, *, within: str) -> Change:
    """Return a function that renames a member of all objects of one kind in a JSON response."""
    return lambda response: change_members(
        response, lambda kind, name, value: (f"{name}X" if (name, kind) == (field, within) else name, value)
    )


def replaced(old: Any, new: Any, *, field: str) -> Change:
    """Return a function that replaces the old value of a member by the new value in a JSON response."""
    return lambda response: change_members(
        response, lambda _kind, name, value: (name, new if (name, value) == (field, old) else value)
    )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Simulated servers. Headscale reports a newer version, but behaves like the newest tested release."""
    world = World(monkeypatch, tmp_path, "0.30.0")
    world.headscale.reported_version = f"v{NEWER}"
    return world


def change_responses(world: World, change: Change) -> None:
    """Change every JSON response of Headscale. Clients that already exist still get unchanged responses."""

    def changing_handler(upstream: Upstream) -> Handler:
        def handle(request: Request) -> Response:
            response = upstream.handle(request)
            if "json" not in response.content_type:
                return response
            return replace(response, body=json.dumps(change(json.loads(response.body))).encode())

        return handle if isinstance(upstream, HeadscaleSimulator) else upstream.handle

    world.route = changing_handler


CHANGES = [
    *(
        pytest.param(renamed(field, within=kind), id=f"{field}-of-{kind or 'the-response'}-renamed")
        for kind, fields in {
            "user": ("id", "name"),
            "node": (
                *("id", "name", "machineKey", "ipAddresses", "user", "preAuthKey", "registerMethod"),
                *("online", "expiry", "lastSeen", "tags"),
            ),
            "preAuthKey": ("id", "user", "createdAt"),
            "": ("users", "nodes"),
        }.items()
        for field in fields
    ),
    pytest.param(replaced(True, "true", field="online"), id="online-as-string"),
    pytest.param(replaced(None, "never", field="expiry"), id="expiry-in-words"),
    pytest.param(replaced("1", "a1b2", field="id"), id="id-with-letters"),
]


@pytest.mark.max_cases_without_full(3)
@pytest.mark.parametrize("change", CHANGES)
def test_cleanup_refuses_a_changed_response_and_changes_nothing(world: World, change: Change) -> None:
    old = world.headscale.add_node(NAME, user=USER, online=True)
    world.add_record(old.address, comment=OUR_COMMENT)
    change_responses(world, change)

    with pytest.raises(ResponseError, match=rf"{NEWER}.*{NEWEST_TESTED}.*Upgrade"):
        world.cleanup().run()

    assert world.headscale.writes == world.cloudflare.writes == []
    assert world.key is None


@pytest.mark.max_cases_without_full(3)
@pytest.mark.parametrize("change", CHANGES)
def test_dns_watch_refuses_a_changed_response_and_changes_nothing(
    world: World, events: list[Any], change: Change
) -> None:
    """`dns-watch` must not report that the node is missing or was replaced."""
    world.cleanup().run()
    node = world.headscale.register(key=world.key, hostname=NAME)
    world.headscale.connect(node.id)
    world.run(world.watch(Interface(*node.addresses), SELF_HEAL="true"), 60)
    published, keys = world.records(), world.headscale.keys
    writes = len(world.headscale.writes), len(world.cloudflare.writes)
    events.clear()
    change_responses(world, change)

    world.run(world.watch(Interface(*node.addresses), SELF_HEAL="true", MAX_RETRIES="0"), TEN_MINUTES_S)

    assert (world.records(), world.headscale.keys) == (published, keys)
    assert (len(world.headscale.writes), len(world.cloudflare.writes)) == writes
    assert NEWER in events_named(events, "pass.failed")[0]["error"]
    assert not {"node.lost", "node.registered", "node.superseded", "node.identification_failed"} & {
        *event_names(events)
    }


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize(
    "field", ["id", "user", "key", "reusable", "ephemeral", "used", "expiration", "createdAt", "aclTags"]
)
def test_cleanup_refuses_a_changed_key_and_writes_no_key_file(world: World, field: str) -> None:
    """No node or key exists, so the first changed response is the response to the creation of a key."""
    change_responses(world, renamed(field, within="preAuthKey"))
    with pytest.raises(ResponseError, match=rf"{NEWER}.*Upgrade"):
        world.cleanup().run()
    assert world.key is None
    assert world.cloudflare.writes == []


def test_newer_release_with_unchanged_responses_works(world: World, events: list[Any]) -> None:
    """Each command logs one warning per release."""
    old = world.headscale.add_node(NAME, user=USER)
    world.cleanup().run()
    assert old not in world.headscale.nodes
    (warning,) = events_named(events, "headscale.untested")
    assert (warning["version"], warning["newest_tested"]) == (NEWER, NEWEST_TESTED)

    events.clear()
    node = world.headscale.register(key=world.key, hostname=NAME)
    world.headscale.connect(node.id)
    watch = world.watch(Interface(*node.addresses))
    world.run(watch, TEN_MINUTES_S)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}
    assert len(events_named(events, "headscale.untested")) == 1

    world.headscale.reported_version = "v0.32.1"
    world.headscale.restart()
    watch = world.watch(Interface(*node.addresses))
    world.run(watch, TEN_MINUTES_S)
    assert [event["version"] for event in events_named(events, "headscale.untested")] == [NEWER, "0.32.1"]


@pytest.mark.parametrize(
    ("version", "is_newer"),
    [
        ("0.30.0", False),
        ("0.30.9", False),
        ("0.31.0", True),
        ("0.31.0-beta.1", True),
        ("0.100.0", True),
        ("1.0.0", True),
        # Ranges, if the detection of the version finds no exact version.
        ("0.30 or newer", False),
        ("0.28 or 0.29", False),
        ("", False),
    ],
)
def test_version_is_compared_with_the_newest_tested_release(version: str, is_newer: bool) -> None:
    assert (untested_warning(version) is not None) is is_newer


def test_newest_tested_release_is_simulated() -> None:
    assert VERSIONS[-1].startswith(f"{NEWEST_TESTED}.")
