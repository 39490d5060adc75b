"""Test with simulators what `prune` deletes, and when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from lifecycle.commands import PRUNE_RETRY_BUDGET
from lifecycle.domain.errors import (
    ApiError,
    ConfigError,
    ConflictError,
    LifecycleError,
    PruneLimitError,
    ResponseError,
    StoppedError,
)
from lifecycle.prune.run import CONFIRMATION_DELAY_S, Prune
from lifecycle.runtime.retry import RetryPolicy
from lifecycle.settings.models import PruneSettings
from tests.simulators import faults
from tests.simulators.cloudflare import refusal
from tests.simulators.faults import Fault
from tests.simulators.messages import Handler, Request, Response
from tests.simulators.upstream import Upstream
from tests.world import StopAt, World, events_named

# The value of DNS_OWNER, and the comment that identifies our records.
OWNER = "monitoring"
OUR_COMMENT = f"tailscale-lifecycle/1 {OWNER}"
A_MONTH_S = timedelta(days=30).total_seconds()


def add_workload(world: World, label: str, *, comment: str = OUR_COMMENT) -> int:
    """Add an online node of our user, and a record with its address. Return the id of the node."""
    node = world.headscale.add_node(f"{label}.example.com", user="svc")
    world.cloudflare.add_record(
        world.zone_id, type="A", name=f"{label}.example.com", content=node.address, ttl=60, comment=comment
    )
    return node.id


def add_online_and_gone_workload(world: World) -> int:
    """Add a workload that is online, and a workload that has been offline for a month. Return the offline node's id."""
    add_workload(world, "grafana")
    node_id = add_workload(world, "redmine")
    world.headscale.disconnect(node_id)
    world.clock.sleep(A_MONTH_S)
    return node_id


def prune(world: World, name: str | None = None, *, stop: StopAt | None = None, **variables: str) -> Prune:
    """Return `prune` with these settings. With a name, it removes the workload of this name."""
    settings = world.settings(PruneSettings, **({"DNS_OWNER": OWNER, "HEADSCALE_USER": "svc"} | variables))
    stop = stop or StopAt(world.clock)
    policy = RetryPolicy(PRUNE_RETRY_BUDGET, stop, clock=world.clock.monotonic)
    return Prune(
        settings,
        writers=world.writers(settings, policy),
        name=name,
        now=world.clock.now,
        stop=stop,
        renew_budget=policy.renew_budget,
    )


def record_names(world: World) -> list[str]:
    return sorted(record.name for record in world.cloudflare.records(world.zone_id))


def test_further_names_of_a_workload_that_is_gone_are_removed(world: World) -> None:
    online, gone = add_workload(world, "grafana"), add_workload(world, "redmine")
    for label, address in (("grafana", "100.64.0.8"), ("redmine", "100.64.0.9")):
        comment = f"{OUR_COMMENT} {label}.example.com"
        world.add_record(f"{label}.example.com", name=f"{label}-docs.example.com", type_="CNAME", comment=comment)
        world.add_record(address, name="shared.example.com", comment=comment)
    # The owner of this record is "monitoring2".
    world.add_record("100.64.0.7", name="shared.example.com", comment=f"{OUR_COMMENT}2 redmine.example.com")
    world.headscale.disconnect(gone)
    world.clock.sleep(A_MONTH_S)
    prune(world).run()
    assert record_names(world) == [
        "grafana-docs.example.com",
        "grafana.example.com",
        "shared.example.com",
        "shared.example.com",
    ]
    assert world.records("shared.example.com").keys() == {"A 100.64.0.7", "A 100.64.0.8"}
    assert [node.id for node in world.headscale.nodes] == [online]


@pytest.mark.parametrize(("name", "is_skipped"), [(None, True), ("redmine", False)])
def test_prune_reports_that_no_node_is_online(
    world: World, events: list[dict[str, Any]], name: str | None, *, is_skipped: bool
) -> None:
    node_id = add_workload(world, "redmine")
    world.headscale.disconnect(node_id)
    world.clock.sleep(A_MONTH_S)
    prune(world, name).run()
    assert bool(events_named(events, "prune.skipped")) == is_skipped
    assert bool(world.headscale.node(node_id)) == is_skipped


def test_workload_that_is_online_again_during_the_wait_stays(world: World) -> None:
    """After a restart of Headscale, every node is offline until it reconnects."""
    node_id = add_online_and_gone_workload(world)
    world.clock.schedule(world.clock.elapsed_s + CONFIRMATION_DELAY_S / 2, lambda: world.headscale.connect(node_id))
    prune(world).run()
    assert len(world.headscale.nodes) == 2
    assert record_names(world) == ["grafana.example.com", "redmine.example.com"]
    assert world.cloudflare.writes == []


def test_run_waits_once_before_it_removes_anything(world: World) -> None:
    node_id = add_online_and_gone_workload(world)
    started = world.clock.elapsed_s
    prune(world).run()
    assert CONFIRMATION_DELAY_S <= world.clock.elapsed_s - started < CONFIRMATION_DELAY_S + 60
    assert world.headscale.node(node_id) is None
    assert record_names(world) == ["grafana.example.com"]


def test_too_many_workloads_are_refused_with_their_number(world: World) -> None:
    add_workload(world, "grafana")
    for number in range(3):
        world.headscale.disconnect(add_workload(world, f"gone-{number}"))
    world.clock.sleep(A_MONTH_S)
    with pytest.raises(PruneLimitError, match=r"^3 .*PRUNE_MAX"):
        prune(world, PRUNE_MAX="2").run()
    assert len(world.headscale.nodes) == 4
    assert world.cloudflare.writes == []
    prune(world, PRUNE_MAX="3").run()
    assert record_names(world) == ["grafana.example.com"]


def test_named_workload_is_removed_without_waiting(world: World) -> None:
    online = add_workload(world, "grafana")
    add_workload(world, "redmine")
    stop = StopAt(world.clock)
    prune(world, "redmine", stop=stop).run()
    assert [node.id for node in world.headscale.nodes] == [online]
    assert record_names(world) == ["grafana.example.com"]
    assert stop.waits == []


def test_interrupted_removal_is_resumed_by_the_next_run(world: World) -> None:
    """Nodes are deleted before the record, so that the next run still finds the record."""
    add_online_and_gone_workload(world)
    world.cloudflare.faults.add(faults.html(503), method="DELETE")
    with pytest.raises(ApiError):
        prune(world).run()
    assert record_names(world) == ["grafana.example.com", "redmine.example.com"]
    prune(world).run()
    assert record_names(world) == ["grafana.example.com"]


# The paths of requests. The lists are read before and after the wait, and each node directly before it is deleted.
USERS, NODES, ONE_NODE, RECORDS = "/api/v1/user", r"/api/v1/node(\?|$)", "/api/v1/node/", "/dns_records"

FAULTS = [
    pytest.param(faults.html(502), id="502 of a proxy"),
    pytest.param(faults.html(404), id="404 of a proxy"),
    pytest.param(refusal(403, 9109), id="403 for an invalid Cloudflare token"),
    pytest.param(faults.hang(), id="no response"),
    pytest.param(faults.truncate(), id="incomplete response"),
    pytest.param(faults.answer(200, "{}"), id="empty object"),
    pytest.param(
        faults.answer(200, '{"users": null, "nodes": null, "node": null, "success": true, "result": null}'), id="null"
    ),
]

# Paths of requests, each with the number of requests for this path that succeed before the fault.
READS = [
    pytest.param(USERS, 0, id="users before the wait"),
    pytest.param(NODES, 0, id="nodes before the wait"),
    pytest.param(RECORDS, 0, id="records before the wait"),
    pytest.param(USERS, 1, id="users after the wait"),
    pytest.param(NODES, 1, id="nodes after the wait"),
    pytest.param(RECORDS, 1, id="records after the wait"),
    pytest.param(ONE_NODE, 0, id="the node before it is deleted"),
]


def add_gone_workload_and_objects_to_keep(world: World) -> Callable[[], tuple[list[int], list[str]]]:
    """Add a workload that is gone, and objects to keep. Return a function that lists those that still exist."""
    add_online_and_gone_workload(world)
    world.headscale.add_user("ann")
    nodes = [
        world.headscale.add_node("laptop", user="ann").id,
        world.headscale.add_node("vault.example.com", user="ann").id,
        world.headscale.add_node("no-record.example.com", user="svc").id,
        add_workload(world, "wiki", comment="tailscale-lifecycle/1 other"),
        add_workload(world, "upper-case", comment=OUR_COMMENT.upper()),
        add_workload(world, "no-comment", comment=""),
    ]
    records = [
        world.add_record("100.64.0.99", name="vault.example.com", comment=OUR_COMMENT),
        world.add_record("100.64.0.98", name="no-node.example.com", comment="tailscale-lifecycle/1 other"),
        world.add_record("192.0.2.1", name="www.example.com"),
        world.add_record("a note", name="text.example.com", type_="TXT", comment=OUR_COMMENT),
    ]
    records += [record.id for record in world.cloudflare.records(world.zone_id) if record.comment != OUR_COMMENT]
    for node_id in nodes:
        world.headscale.disconnect(node_id)
    world.clock.sleep(A_MONTH_S)

    def remaining() -> tuple[list[int], list[str]]:
        return (
            [node_id for node_id in nodes if world.headscale.node(node_id)],
            [record.id for record in world.cloudflare.records(world.zone_id) if record.id in records],
        )

    return remaining


def writes(world: World) -> list[str]:
    """Return the requests that change something in Headscale or Cloudflare."""
    return [f"{write.method} {write.path}" for write in (*world.headscale.writes, *world.cloudflare.writes)]


@pytest.mark.parametrize(("path", "after"), READS)
@pytest.mark.parametrize("fault", FAULTS)
def test_failed_read_removes_nothing(world: World, fault: Fault, path: str, after: int) -> None:
    """The next run, which can read everything, removes only the workload that is gone."""
    kept_objects = add_gone_workload_and_objects_to_keep(world)
    before = kept_objects()
    upstream = world.cloudflare if path is RECORDS else world.headscale
    upstream.faults.add(fault, path=path, after=after, times=None)
    with pytest.raises(ApiError):
        prune(world).run()
    assert writes(world) == []
    upstream.faults.clear()
    prune(world).run()
    assert "redmine.example.com" not in record_names(world)
    assert kept_objects() == before
    # One node and one record were deleted.
    assert len(writes(world)) == 2


@pytest.mark.parametrize("after", [pytest.param(0, id="before the wait"), pytest.param(1, id="after the wait")])
@pytest.mark.parametrize(
    ("path", "response"),
    [
        pytest.param(NODES, {"nodes": []}, id="no nodes"),
        pytest.param(
            RECORDS,
            {"success": True, "result": [], "result_info": {"total_pages": 1, "total_count": 0}},
            id="no records",
        ),
        pytest.param(USERS, {"users": []}, id="no users"),
    ],
)
def test_empty_list_removes_nothing(world: World, path: str, response: dict[str, Any], after: int) -> None:
    """A Headscale with a new database has no nodes. A token for another zone sees no records."""
    add_gone_workload_and_objects_to_keep(world)
    upstream = world.cloudflare if path is RECORDS else world.headscale
    upstream.faults.add(faults.answer(200, json.dumps(response)), path=path, after=after, times=None)
    if path is USERS:
        with pytest.raises(LifecycleError, match="users create"):
            prune(world).run()
    else:
        prune(world).run()
    assert writes(world) == []


@pytest.mark.parametrize(
    ("method", "path", "after"),
    [
        pytest.param("GET", USERS, 1, id="users"),
        pytest.param("GET", NODES, 1, id="nodes"),
        pytest.param("GET", ONE_NODE, 0, id="the node before it is deleted"),
        pytest.param("DELETE", ONE_NODE, 0, id="the deletion"),
    ],
)
def test_temporary_failure_after_the_wait_is_retried(
    world: World, events: list[dict[str, Any]], method: str, path: str, after: int
) -> None:
    """The wait is longer than the retry budget, so a new retry budget starts after the wait."""
    kept_objects = add_gone_workload_and_objects_to_keep(world)
    before = kept_objects()
    world.headscale.faults.add(faults.html(502), method=method, path=path, after=after)
    prune(world).run()
    assert len(events_named(events, "retry.scheduled")) == 1
    assert "redmine.example.com" not in record_names(world)
    assert kept_objects() == before


def test_permanent_failure_after_the_wait_ends_the_run(world: World) -> None:
    add_gone_workload_and_objects_to_keep(world)
    started = world.clock.elapsed_s
    world.headscale.faults.add(faults.html(502), path=NODES, after=1, times=None)
    with pytest.raises(ApiError):
        prune(world).run()
    waited_s = world.clock.elapsed_s - started - CONFIRMATION_DELAY_S
    # The run ends when the next delay would exceed the budget.
    assert PRUNE_RETRY_BUDGET.total_seconds() / 2 < waited_s < PRUNE_RETRY_BUDGET.total_seconds()


def run_before_request(world: World, path: str, action: Callable[[], object]) -> None:
    """Run an action once, directly before the upstream handles a request for this path."""
    actions = [action]

    def route(upstream: Upstream) -> Handler:
        def handle(request: Request) -> Response:
            if actions and request.path == path:
                actions.pop()()
            return upstream.handle(request)

        return handle

    world.route = route


# The newest release that can move a node to another user.
@pytest.mark.parametrize("world", ["0.27.1"], indirect=True)
@pytest.mark.parametrize(
    ("name", "is_online_again"),
    [
        pytest.param(None, True, id="online again"),
        pytest.param(None, False, id="moved to another user"),
        pytest.param("redmine", False, id="named and moved to another user"),
    ],
)
def test_node_that_changed_directly_before_its_deletion_stays(
    world: World, events: list[dict[str, Any]], name: str | None, is_online_again: bool
) -> None:
    """Its record also stays."""
    world.headscale.add_user("ann")
    node_id = add_online_and_gone_workload(world)
    run_before_request(
        world,
        f"/api/v1/node/{node_id}",
        lambda: world.headscale.connect(node_id) if is_online_again else world.headscale.move_node(node_id, "ann"),
    )
    if name is None:
        prune(world).run()
        assert [event["workload"] for event in events_named(events, "workload.skipped")] == ["redmine.example.com"]
    else:
        with pytest.raises(ConflictError, match=f"[Nn]ode {node_id}"):
            prune(world, name).run()
    assert world.headscale.node(node_id) is not None
    assert record_names(world) == ["grafana.example.com", "redmine.example.com"]
    assert writes(world) == []


def give_to_another_owner(world: World) -> None:
    """Another owner takes over the record of redmine."""
    [record] = world.cloudflare.records(world.zone_id, "redmine.example.com")
    world.cloudflare.change_record(record.id, comment="tailscale-lifecycle/1 other")


def publish_a_later_pod(world: World) -> None:
    """A new pod of the workload registers and publishes its address."""
    [record] = world.cloudflare.records(world.zone_id, "redmine.example.com")
    node = world.headscale.add_node("redmine.example.com", user="svc")
    world.cloudflare.change_record(record.id, content=node.address)


@pytest.mark.parametrize("change", [give_to_another_owner, publish_a_later_pod])
@pytest.mark.parametrize("name", [None, "redmine"])
def test_record_that_changes_while_nodes_are_deleted_stays(
    world: World, name: str | None, change: Callable[[World], None]
) -> None:
    node_id = add_online_and_gone_workload(world)
    run_before_request(world, f"/api/v1/node/{node_id}", lambda: change(world))
    if name is None:
        prune(world).run()
    else:
        with pytest.raises(ConflictError, match=r"redmine\.example\.com"):
            prune(world, name).run()
    assert world.headscale.node(node_id) is None
    assert record_names(world) == ["grafana.example.com", "redmine.example.com"]
    assert world.cloudflare.writes == []


@pytest.mark.parametrize("change", [give_to_another_owner, publish_a_later_pod])
def test_workload_that_changes_while_another_is_removed_stays(world: World, change: Callable[[World], None]) -> None:
    add_workload(world, "grafana")
    gitea, redmine = add_workload(world, "gitea"), add_workload(world, "redmine")
    for node_id in (gitea, redmine):
        world.headscale.disconnect(node_id)
    world.clock.sleep(A_MONTH_S)
    run_before_request(world, f"/api/v1/node/{gitea}", lambda: change(world))
    prune(world).run()
    assert world.headscale.node(gitea) is None
    assert world.headscale.node(redmine) is not None
    assert record_names(world) == ["grafana.example.com", "redmine.example.com"]


@pytest.mark.parametrize("skew", [timedelta(days=400), timedelta(days=-400)], ids=["ahead", "behind"])
def test_offline_time_is_measured_by_the_clock_of_headscale(world: World, skew: timedelta) -> None:
    add_workload(world, "grafana")
    for label, offline_s in (("redmine", A_MONTH_S), ("gitea", 3600.0)):
        world.headscale.disconnect(add_workload(world, label))
        world.clock.sleep(offline_s)
    world.clock.skew = skew
    prune(world).run()
    assert record_names(world) == ["gitea.example.com", "grafana.example.com"]


def test_stop_during_the_wait_removes_nothing(world: World) -> None:
    add_online_and_gone_workload(world)
    with pytest.raises(StoppedError):
        prune(world, stop=StopAt(world.clock, world.clock.elapsed_s)).run()
    assert len(world.headscale.nodes) == 2


@pytest.mark.parametrize("name", [None, "redmine.example.org"])
def test_zone_id_of_another_zone_removes_nothing(world: World, name: str | None) -> None:
    """The dry run and `status` report the same problem."""
    add_online_and_gone_workload(world)
    zone_id = world.cloudflare.add_zone("example.org")
    world.cloudflare.add_record(
        zone_id, type="A", name="redmine.example.org", content="100.64.0.9", ttl=60, comment=OUR_COMMENT
    )
    with pytest.raises(ResponseError, match="CLOUDFLARE_ZONE_ID is the zone"):
        prune(world, name, CLOUDFLARE_ZONE_ID=zone_id).run()
    assert len(world.headscale.nodes) == 2
    assert world.cloudflare.writes == []


def test_dns_owner_is_required(world: World) -> None:
    with pytest.raises(ConfigError, match="DNS_OWNER: is required"):
        world.settings(PruneSettings, DNS_OWNER="")


def test_settings_need_no_pod_name(world: World) -> None:
    """The pod of a CronJob has a random name, which is not the hostname of a workload."""
    settings = world.settings(PruneSettings, DNS_OWNER=OWNER, HOSTNAME="prune-28391-x7k2p")
    assert settings.mark == OUR_COMMENT
