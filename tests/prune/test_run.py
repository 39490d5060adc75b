"""`prune` against both services: what it removes, and when it refuses to."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle.cli import HEADSCALE_RETRY_BUDGET
from lifecycle.domain.errors import ApiError, ConfigError, ConflictError, LifecycleError, PruneLimitError, StoppedError
from lifecycle.prune.run import OBSERVATION_S, Prune
from lifecycle.runtime.retry import RetryBudget, retrying
from lifecycle.settings.models import PruneSettings
from tests.simulators import faults
from tests.simulators.cloudflare import refusal
from tests.simulators.faults import Fault
from tests.simulators.messages import Handler, Request, Response
from tests.simulators.upstream import Upstream
from tests.world import StopAt, World, named

OWNER = "monitoring"
MARK = f"tailscale-lifecycle/1 {OWNER}"
A_MONTH_S = timedelta(days=30).total_seconds()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


def a_service(world: World, label: str, *, mark: str = MARK) -> int:
    """A service of ours that runs: a node that is online, and its record; the node's id."""
    node = world.headscale.add_node(f"{label}.example.com", user="svc")
    world.cloudflare.add_record(
        world.zone_id, type="A", name=f"{label}.example.com", content=node.address, ttl=60, comment=mark
    )
    return node.id


def prune(world: World, name: str | None = None, *, stop: StopAt | None = None, **variables: str) -> Prune:
    settings = world.settings(PruneSettings, **({"DNS_OWNER": OWNER, "HEADSCALE_USER": "svc"} | variables))
    stop = stop or StopAt(world.clock)
    patience = RetryBudget(HEADSCALE_RETRY_BUDGET, clock=world.clock.monotonic)
    return Prune(
        settings,
        writers=world.writers(settings, retrying(patience=patience, stop=stop)),
        name=name,
        now=world.clock.now,
        stop=stop,
        renew_budget=patience.renew,
    )


def names(world: World) -> list[str]:
    return sorted(record.name for record in world.cloudflare.records(world.zone_id))


def test_what_has_been_gone_for_long_goes_and_the_rest_stays(world: World, events: list[dict[str, Any]]) -> None:
    lives = a_service(world, "grafana")
    gone = a_service(world, "redmine")
    foreign = a_service(world, "wiki", mark="tailscale-lifecycle/1 other")
    bare = world.headscale.add_node("laptop", user="svc").id
    for node_id in (gone, foreign, bare):
        world.headscale.disconnect(node_id)
    world.clock.sleep(A_MONTH_S)
    prune(world).run()
    assert names(world) == ["grafana.example.com", "wiki.example.com"]
    assert sorted(node.id for node in world.headscale.nodes) == sorted([lives, foreign, bare])
    assert [event["event"] for event in events if event["event"].endswith(".deleted")] == [
        "node.deleted",
        "record.deleted",
    ]


def test_it_looks_twice_some_time_apart(world: World) -> None:
    """A node that comes back in between, as all do after a restart of Headscale, stays."""
    lives = a_service(world, "grafana")
    slow = a_service(world, "redmine")
    world.headscale.disconnect(slow)
    world.clock.sleep(A_MONTH_S)
    world.clock.at(world.clock.elapsed_s + OBSERVATION_S / 2, lambda: world.headscale.connect(slow))
    prune(world).run()
    assert sorted(node.id for node in world.headscale.nodes) == [lives, slow]
    assert names(world) == ["grafana.example.com", "redmine.example.com"]
    assert world.cloudflare.writes == []


def test_it_looks_no_third_time(world: World) -> None:
    """Who is offline at both looks is gone, whoever would have come after."""
    a_service(world, "grafana")
    late = a_service(world, "redmine")
    world.headscale.disconnect(late)
    world.clock.sleep(A_MONTH_S)
    started = world.clock.elapsed_s
    prune(world).run()
    assert OBSERVATION_S <= world.clock.elapsed_s - started < OBSERVATION_S + 60
    assert world.headscale.node(late) is None
    assert names(world) == ["grafana.example.com"]


def test_a_restarted_headscale_loses_nothing(world: World) -> None:
    for label in ("grafana", "redmine"):
        a_service(world, label)
    world.clock.sleep(A_MONTH_S)
    world.headscale.restart()
    prune(world).run()
    assert len(world.headscale.nodes) == len(names(world)) == 2


def test_the_brake_gives_the_numbers_and_removes_nothing(world: World) -> None:
    a_service(world, "grafana")
    for number in range(3):
        world.headscale.disconnect(a_service(world, f"gone-{number}"))
    world.clock.sleep(A_MONTH_S)
    with pytest.raises(PruneLimitError, match=r"3 services \(3 nodes, 3 records\).*PRUNE_MAX is 2"):
        prune(world, PRUNE_MAX="2").run()
    assert len(world.headscale.nodes) == 4
    assert world.cloudflare.writes == []
    prune(world, PRUNE_MAX="3").run()
    assert names(world) == ["grafana.example.com"]


def test_one_service_is_taken_down_at_once(world: World) -> None:
    lives = a_service(world, "grafana")
    a_service(world, "redmine")
    stop = StopAt(world.clock)
    prune(world, "redmine", stop=stop).run()
    assert [node.id for node in world.headscale.nodes] == [lives]
    assert names(world) == ["grafana.example.com"]
    assert stop.waits == []


@pytest.mark.parametrize("name", ["wiki", "nothing.example.com"])
def test_a_name_without_our_mark_is_refused(world: World, name: str) -> None:
    node_id = a_service(world, "wiki", mark="tailscale-lifecycle/1 other")
    with pytest.raises(LifecycleError, match="DNS_OWNER"):
        prune(world, name).run()
    assert world.headscale.node(node_id) is not None
    assert names(world) == ["wiki.example.com"]


def test_what_was_interrupted_is_found_again(world: World) -> None:
    """Nodes go first: after a failure the record is still there, and the next run goes on."""
    a_service(world, "grafana")
    world.headscale.disconnect(a_service(world, "redmine"))
    world.clock.sleep(A_MONTH_S)
    world.cloudflare.faults.add(faults.html(503), method="DELETE")
    with pytest.raises(ApiError):
        prune(world).run()
    assert names(world) == ["grafana.example.com", "redmine.example.com"]
    prune(world).run()
    assert names(world) == ["grafana.example.com"]


# What is read: both services' lists, and each node once more before it is deleted.
USERS, NODES, ONE_NODE, RECORDS = "/api/v1/user", r"/api/v1/node(\?|$)", "/api/v1/node/", "/dns_records"

FAULTS = [
    pytest.param(faults.html(500), id="500-of-a-proxy"),
    pytest.param(faults.html(502), id="502-of-a-proxy"),
    pytest.param(faults.html(404), id="404-of-a-proxy"),
    pytest.param(faults.html(401), id="401-of-a-proxy"),
    pytest.param(faults.html(403), id="403-of-a-proxy"),
    pytest.param(refusal(401, 10000), id="401"),
    pytest.param(refusal(403, 9109), id="403"),
    pytest.param(faults.too_many_requests(), id="429"),
    pytest.param(faults.refuse(), id="refused-connection"),
    pytest.param(faults.drop(), id="dropped-connection"),
    pytest.param(faults.hang(), id="no-answer"),
    pytest.param(faults.truncate(), id="half-an-answer"),
    pytest.param(faults.garbage(), id="garbage"),
    pytest.param(faults.wrong_content_type(), id="200-and-a-page"),
    pytest.param(faults.answer(200, ""), id="200-and-nothing"),
    pytest.param(faults.answer(200, "{}"), id="200-and-an-empty-object"),
    pytest.param(faults.answer(200, "[]"), id="200-and-a-bare-list"),
    pytest.param(
        faults.answer(200, '{"users": null, "nodes": null, "node": null, "success": true, "result": null}'),
        id="200-and-null",
    ),
]

LOOKS = [
    pytest.param(USERS, 0, id="users-at-the-first-look"),
    pytest.param(NODES, 0, id="nodes-at-the-first-look"),
    pytest.param(RECORDS, 0, id="records-at-the-first-look"),
    pytest.param(USERS, 1, id="users-at-the-second-look"),
    pytest.param(NODES, 1, id="nodes-at-the-second-look"),
    pytest.param(RECORDS, 1, id="records-at-the-second-look"),
    pytest.param(ONE_NODE, 0, id="the-node-before-it-is-deleted"),
]


def among_others(world: World) -> Callable[[], tuple[list[int], list[str]]]:
    """One service of ours that is gone for good, beside all that is none of ours; gives what of the others is there."""
    a_service(world, "grafana")
    gone = a_service(world, "redmine")
    world.headscale.add_user("ann")
    others = [
        world.headscale.add_node("laptop", user="ann").id,
        world.headscale.add_node("vault.example.com", user="ann").id,
        world.headscale.add_node("bare.example.com", user="svc").id,
        a_service(world, "wiki", mark="tailscale-lifecycle/1 other"),
        a_service(world, "shop", mark=MARK.upper()),
        a_service(world, "shadow", mark=""),
    ]
    records = [
        world.add_record("100.64.0.99", name="vault.example.com", comment=MARK),
        world.add_record("100.64.0.98", name="someone.example.com", comment="tailscale-lifecycle/1 other"),
        world.add_record("192.0.2.1", name="www.example.com"),
        world.add_record("ours", name="text.example.com", type_="TXT", comment=MARK),
    ]
    records += [record.id for record in world.cloudflare.records(world.zone_id) if record.comment != MARK]
    for node_id in (gone, *others):
        world.headscale.disconnect(node_id)
    world.clock.sleep(A_MONTH_S)

    def there() -> tuple[list[int], list[str]]:
        return (
            [node_id for node_id in others if world.headscale.node(node_id)],
            [record.id for record in world.cloudflare.records(world.zone_id) if record.id in records],
        )

    return there


def writes(world: World) -> list[str]:
    """What both services were asked to change."""
    return [f"{write.method} {write.path}" for write in (*world.headscale.writes, *world.cloudflare.writes)]


@pytest.mark.parametrize(("path", "after"), LOOKS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_removes_nothing(world: World, fault: Fault, path: str, after: int) -> None:
    """And once it can be read, what is ours goes and nothing else."""
    others = among_others(world)
    before = others()
    asked = world.cloudflare if path is RECORDS else world.headscale
    asked.faults.add(fault, path=path, after=after, times=None)
    with pytest.raises(ApiError):
        prune(world).run()
    assert writes(world) == []
    asked.faults.clear()
    prune(world).run()
    assert "redmine.example.com" not in names(world)
    assert others() == before
    assert len(writes(world)) == 2


@pytest.mark.parametrize("after", [pytest.param(0, id="at-the-first-look"), pytest.param(1, id="at-the-second-look")])
@pytest.mark.parametrize(
    ("path", "answer"),
    [
        pytest.param(NODES, {"nodes": []}, id="no-nodes"),
        pytest.param(
            RECORDS,
            {"success": True, "result": [], "result_info": {"total_pages": 1, "total_count": 0}},
            id="no-records",
        ),
        pytest.param(USERS, {"users": []}, id="no-users"),
    ],
)
def test_an_empty_list_removes_nothing(world: World, path: str, answer: dict[str, Any], after: int) -> None:
    """A Headscale with a new database has no nodes; a token for another zone sees no records."""
    among_others(world)
    asked = world.cloudflare if path is RECORDS else world.headscale
    asked.faults.add(faults.answer(200, json.dumps(answer)), path=path, after=after, times=None)
    if path is USERS:
        with pytest.raises(LifecycleError, match="no user"):
            prune(world).run()
    else:
        prune(world).run()
    assert writes(world) == []


@pytest.mark.parametrize(
    ("method", "path", "after"),
    [
        pytest.param("GET", USERS, 1, id="users"),
        pytest.param("GET", NODES, 1, id="nodes"),
        pytest.param("GET", ONE_NODE, 0, id="the-node-before-it-is-deleted"),
        pytest.param("DELETE", ONE_NODE, 0, id="the-deletion"),
    ],
)
def test_a_passing_trouble_after_the_wait_is_waited_out(
    world: World, events: list[dict[str, Any]], method: str, path: str, after: int
) -> None:
    """The wait between the looks is longer than the patience of the first: the second has its own."""
    others = among_others(world)
    before = others()
    world.headscale.faults.add(faults.html(502), method=method, path=path, after=after)
    prune(world).run()
    assert len(named(events, "retry.scheduled")) == 1
    assert "redmine.example.com" not in names(world)
    assert others() == before


def test_a_headscale_that_stays_down_at_the_second_look_is_given_up(world: World) -> None:
    among_others(world)
    started = world.clock.elapsed_s
    world.headscale.faults.add(faults.html(502), path=NODES, after=1, times=None)
    with pytest.raises(ApiError):
        prune(world).run()
    waited_s = world.clock.elapsed_s - started - OBSERVATION_S
    assert HEADSCALE_RETRY_BUDGET.total_seconds() / 2 < waited_s < HEADSCALE_RETRY_BUDGET.total_seconds()


@pytest.mark.parametrize(
    ("type_", "content", "mark"),
    [
        pytest.param("TXT", "a note", MARK, id="no-address"),
        pytest.param("A", "100.64.0.99", MARK.upper(), id="another-owner's-by-its-case"),
    ],
)
@pytest.mark.parametrize("name", [None, "redmine"])
def test_a_record_that_only_looks_ours_stays(
    world: World, type_: str, content: str, mark: str, name: str | None
) -> None:
    """Cloudflare finds both by our mark, and no node bears their name any more."""
    a_service(world, "grafana")
    world.add_record(content, name="redmine.example.com", type_=type_, comment=mark)
    if name is None:
        prune(world).run()
    else:
        with pytest.raises(LifecycleError, match="DNS_OWNER"):
            prune(world, name).run()
    assert names(world) == ["grafana.example.com", "redmine.example.com"]
    assert writes(world) == []


def just_before(world: World, path: str, action: Callable[[], object]) -> None:
    """Let something happen once, right before a request for this path is answered."""
    due = [action]

    def between(upstream: Upstream) -> Handler:
        def handle(request: Request) -> Response:
            if due and request.path == path:
                due.pop()()
            return upstream.handle(request)

        return handle

    world.between = between


@pytest.mark.parametrize(
    ("name", "comes_back"),
    [
        pytest.param(None, True, id="came-back"),
        pytest.param(None, False, id="given-to-somebody-else"),
        pytest.param("redmine", False, id="named-and-given-to-somebody-else"),
    ],
)
def test_a_node_that_changed_since_the_second_look_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None, comes_back: bool
) -> None:
    """And its record with it; the error tells."""
    # The last release that gives a node to another user.
    world = World(monkeypatch, tmp_path, "0.27.1")
    world.headscale.add_user("ann")
    a_service(world, "grafana")
    node_id = a_service(world, "redmine")
    world.headscale.disconnect(node_id)
    world.clock.sleep(A_MONTH_S)
    just_before(
        world,
        f"/api/v1/node/{node_id}",
        lambda: world.headscale.connect(node_id) if comes_back else world.headscale.move_node(node_id, "ann"),
    )
    with pytest.raises(ConflictError, match=f"node {node_id} is no longer ours; it was not deleted"):
        prune(world, name).run()
    assert world.headscale.node(node_id) is not None
    assert names(world) == ["grafana.example.com", "redmine.example.com"]
    assert writes(world) == []


def test_asked_to_stop_while_it_looks_it_removes_nothing(world: World) -> None:
    world.headscale.disconnect(a_service(world, "redmine"))
    a_service(world, "grafana")
    world.clock.sleep(A_MONTH_S)
    with pytest.raises(StoppedError):
        prune(world, stop=StopAt(world.clock, world.clock.elapsed_s)).run()
    assert len(world.headscale.nodes) == 2


def test_an_owner_has_to_be_named(world: World) -> None:
    with pytest.raises(ConfigError, match="DNS_OWNER: is required"):
        world.settings(PruneSettings, DNS_OWNER="")


def test_it_works_in_a_pod_of_any_name(world: World) -> None:
    settings = world.settings(PruneSettings, DNS_OWNER=OWNER, HOSTNAME="prune-28391-x7k2p")
    assert settings.mark == MARK
