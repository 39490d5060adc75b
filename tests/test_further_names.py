"""DNS_ALIASES and DNS_SHARED_NAMES: whole commands against both simulated upstreams."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.domain.errors import NameTakenError
from tests.builders import MARK, NAME, OTHER_MARK, WORKLOAD_MARK
from tests.simulators import faults
from tests.simulators.cloudflare import refusal
from tests.simulators.headscale import Node
from tests.simulators.messages import Handler
from tests.simulators.upstream import Upstream
from tests.world import USER, Interface, World, named

Events = list[Any]

MINUTE = 60.0
# Several reads of the records.
LONG = 20 * MINUTE

ALIASES = {"DNS_ALIASES": "docs,www.example.com,*.wiki"}
CNAME = {f"CNAME {NAME}": WORKLOAD_MARK}


@pytest.fixture(autouse=True)
def _no_output(events: Events) -> None:
    """Capture events instead of printing them."""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


@pytest.fixture
def node(world: World) -> Node:
    """Our node, registered and online."""
    return world.headscale.add_node(NAME, user=USER)


def run(world: World, node: Node, /, **variables: str) -> DnsWatch:
    """Run dns-watch in the pod of a node for several reads of the records."""
    watch = world.watch(Interface(*node.addresses), TS_HOSTNAME=node.name, **variables)
    world.run(watch, LONG)
    return watch


def zone(world: World) -> set[tuple[str, str, str, str]]:
    """Return the name, type, content and comment of every record."""
    records = world.cloudflare.records(world.zone_id)
    return {(record.name, record.type, record.content, record.comment) for record in records}


# --- Aliases ----------------------------------------------------------------------------------------------------


def test_aliases_point_to_the_main_name(world: World, node: Node) -> None:
    watch = run(world, node, **ALIASES)
    assert world.records() == {f"A {node.address}": MARK}
    for name in ("docs.example.com", "www.example.com", "*.wiki.example.com"):
        assert world.records(name) == CNAME
    assert all((record.ttl, record.proxied) == (60, False) for record in world.cloudflare.records(world.zone_id))
    assert watch.state.records.in_sync


def test_an_alias_that_is_the_domain_has_address_records(world: World, node: Node) -> None:
    """A CNAME there would hide the domain's mail servers."""
    world.add_record("mail.example.com", name="example.com", type_="MX", priority=10)
    run(world, node, DNS_ALIASES="example.com", DNS_IPV6="true")
    v4, v6 = node.addresses
    records = {key: comment for key, comment in world.records("example.com").items() if not key.startswith("MX")}
    assert records == {f"A {v4}": WORKLOAD_MARK, f"AAAA {v6}": WORKLOAD_MARK}


def test_names_that_are_right_cost_one_request_per_interval_and_no_write(world: World, node: Node) -> None:
    variables = {"DNS_ALIASES": "a,b,c,d,example.com", "DNS_SHARED_NAMES": "*.apps,ingress"}
    watch = run(world, node, **variables)
    requests, writes = len(world.cloudflare.requests), len(world.cloudflare.writes)
    assert writes == 8
    world.run(watch, 100 * MINUTE)
    assert len(world.cloudflare.writes) == writes
    # Jitter only makes the interval of 5 minutes longer.
    assert 15 <= len(world.cloudflare.requests) - requests <= 20


def test_only_the_main_record_changes_with_the_address(world: World, node: Node) -> None:
    run(world, node, **ALIASES)
    writes = len(world.cloudflare.writes)
    moved = world.headscale.readdress(node.id)
    run(world, moved, **ALIASES)
    assert world.records() == {f"A {moved.address}": MARK}
    assert world.records("docs.example.com") == CNAME
    assert len(world.cloudflare.writes) == writes + 1


FOREIGN = [
    pytest.param({"content": "198.51.100.7"}, id="public-address"),
    pytest.param({"content": "100.64.0.1"}, id="VPN-address-without-a-comment"),
    pytest.param({"content": "100.64.0.1", "comment": "by hand"}, id="other-comment"),
    pytest.param({"content": "100.64.0.1", "comment": MARK}, id="main-name-of-another-workload"),
    pytest.param({"content": "100.64.0.1", "comment": OTHER_MARK}, id="main-name-of-another-owner"),
    pytest.param({"content": "x.example.com", "type_": "CNAME"}, id="CNAME"),
    pytest.param({"content": "wiki.example.com", "type_": "CNAME", "comment": f"{MARK} wiki.example.com"}, id="alias"),
    pytest.param({"content": NAME, "type_": "CNAME", "comment": f"{WORKLOAD_MARK} x"}, id="CNAME-with-a-longer-mark"),
    pytest.param({"content": "2001:db8::1", "type_": "AAAA"}, id="AAAA"),
    pytest.param({"content": "v=spf1", "type_": "TXT"}, id="TXT-that-a-CNAME-would-hide"),
    pytest.param({"content": "ns.example.org", "type_": "NS"}, id="delegation"),
]


@pytest.mark.parametrize("fields", FOREIGN)
def test_a_foreign_record_at_an_alias_is_reported_and_does_not_hold_up_other_names(
    world: World, node: Node, events: Events, fields: dict[str, Any]
) -> None:
    foreign = world.add_record(**fields, name="www.example.com")
    before = world.cloudflare.records(world.zone_id, "www.example.com")
    world.cleanup(**ALIASES).run()
    # cleanup deleted the node of an earlier pod.
    node = world.headscale.register(key=world.key, hostname=NAME)
    world.headscale.connect(node.id)
    watch = run(world, node, **ALIASES)
    assert world.cloudflare.records(world.zone_id, "www.example.com") == before
    assert world.records() == {f"A {node.address}": MARK}
    assert world.records("docs.example.com") == world.records("*.wiki.example.com") == CNAME
    assert {event["record"] for event in named(events, "record.foreign")} == {"www.example.com"}
    assert not watch.state.records.in_sync
    assert "www.example.com" in watch.state.records.reason
    world.cloudflare.remove_record(foreign)
    world.run(watch, LONG)
    assert world.records("www.example.com") == CNAME
    assert watch.state.records.in_sync


def test_aliases_do_not_point_to_a_main_name_with_a_foreign_record(world: World, node: Node, events: Events) -> None:
    foreign = world.add_record("198.51.100.7")
    watch = run(world, node, **ALIASES)
    assert [record.id for record in world.cloudflare.records(world.zone_id)] == [foreign]
    assert {event["record"] for event in named(events, "record.foreign")} == {NAME}
    world.cloudflare.remove_record(foreign)
    world.run(watch, LONG)
    assert world.records("docs.example.com") == CNAME


def test_a_foreign_record_is_found_if_cloudflare_requires_all_filters(world: World, node: Node) -> None:
    """Then no record matches both the name and the comment."""

    def requiring_all(upstream: Upstream) -> Handler:
        return lambda request: upstream.handle(replace(request, query=request.query.replace("match=any", "match=all")))

    world.route = requiring_all
    world.add_record("100.64.9.9", comment=OTHER_MARK)
    before = zone(world)
    run(world, node, **ALIASES)
    assert zone(world) == before


def test_a_refused_alias_does_not_hold_up_other_names(world: World, node: Node) -> None:
    """The zone has as many records as its plan allows, for example. The second write is the first alias."""
    world.cloudflare.faults.add(refusal(400, 81045), method="POST", after=1)
    watch = world.watch(Interface(*node.addresses), **ALIASES)
    watch.run_pass()
    assert world.records() == {f"A {node.address}": MARK}
    assert world.records("*.wiki.example.com") == CNAME
    world.run(watch, LONG)
    assert world.records("docs.example.com") == CNAME
    assert watch.state.records.in_sync


def test_aliases_wait_until_the_main_name_is_accepted(world: World, node: Node) -> None:
    """Another owner can have created a record there since it was read."""
    world.cloudflare.faults.add(refusal(400, 81053), method="POST")
    watch = world.watch(Interface(*node.addresses), **ALIASES, DNS_SHARED_NAMES="ingress")
    watch.run_pass()
    assert {name for name, *_ in zone(world)} == {"ingress.example.com"}
    world.run(watch, LONG)
    assert world.records("docs.example.com") == CNAME
    assert watch.state.records.in_sync


def test_after_an_outage_no_further_name_is_written(world: World, node: Node) -> None:
    world.cloudflare.faults.add(faults.html(503), method="POST", times=1)
    world.watch(Interface(*node.addresses), **ALIASES).run_pass()
    assert len(world.cloudflare.writes) == 1


@pytest.mark.parametrize("change", [{"content": "elsewhere.example.org"}, {"ttl": 600}])
def test_an_edited_alias_is_corrected_in_place(world: World, node: Node, change: dict[str, Any]) -> None:
    watch = run(world, node, **ALIASES)
    [alias] = world.cloudflare.records(world.zone_id, "docs.example.com")
    world.cloudflare.change_record(alias.id, **change)
    world.run(watch, LONG)
    [after] = world.cloudflare.records(world.zone_id, "docs.example.com")
    assert (after.id, after.content, after.ttl) == (alias.id, NAME, 60)


@pytest.mark.parametrize(
    "mark", [MARK, f"{OTHER_MARK} {NAME}", f"{MARK} x{NAME}", f"was {WORKLOAD_MARK}", WORKLOAD_MARK.upper(), ""]
)
def test_records_with_another_mark_under_other_names_stay(world: World, node: Node, mark: str) -> None:
    world.add_record(node.address, name="old.example.com", comment=mark)
    world.add_record(NAME, name="older.example.com", type_="CNAME", comment=mark)
    world.add_record(WORKLOAD_MARK, name="note.example.com", type_="TXT", comment=WORKLOAD_MARK)
    before = zone(world)
    world.cleanup(**ALIASES).run()
    run(world, world.headscale.add_node(NAME, user=USER), **ALIASES)
    assert before <= zone(world)


def test_a_removed_alias_is_deleted_by_cleanup(world: World, node: Node) -> None:
    run(world, node, **ALIASES)
    world.cleanup().run()
    assert zone(world) == set()


def test_a_removed_alias_is_deleted_by_dns_watch(world: World, node: Node) -> None:
    run(world, node, **ALIASES)
    run(world, node, DNS_ALIASES="docs")
    assert {name for name, *_ in zone(world)} == {NAME, "docs.example.com"}


def test_cleanup_leaves_an_alias_that_is_still_configured(world: World, node: Node) -> None:
    run(world, node, DNS_ALIASES="docs,example.com")
    world.cleanup(DNS_ALIASES="docs,example.com").run()
    assert zone(world) == {("docs.example.com", "CNAME", NAME, WORKLOAD_MARK)}


@pytest.mark.parametrize("setting", ["DNS_ALIASES", "DNS_SHARED_NAMES"])
def test_a_name_can_change_between_alias_and_shared_name(world: World, node: Node, setting: str) -> None:
    settings = {"DNS_ALIASES": CNAME, "DNS_SHARED_NAMES": {f"A {node.address}": WORKLOAD_MARK}}
    other = next(name for name in settings if name != setting)
    run(world, node, **{setting: "docs"})
    assert world.records("docs.example.com") == settings[setting]
    run(world, node, **{other: "docs"})
    assert world.records("docs.example.com") == settings[other]


def test_of_two_workloads_with_one_alias_the_first_has_it(world: World, node: Node, events: Events) -> None:
    wiki = world.headscale.add_node("wiki.example.com", user=USER)
    watches = [
        world.watch(Interface(*each.addresses), TS_HOSTNAME=each.name, DNS_ALIASES="docs") for each in (node, wiki)
    ]
    world.run_together(*watches, seconds=LONG)
    assert world.records("docs.example.com") == CNAME
    assert len(world.cloudflare.writes) == 3
    assert [watch.state.records.in_sync for watch in watches] == [True, False]


def test_an_alias_of_another_workload_is_not_taken_as_a_main_name(world: World, node: Node) -> None:
    run(world, node, DNS_ALIASES="docs")
    docs = world.headscale.add_node("docs.example.com", user=USER)
    with pytest.raises(NameTakenError, match=r"docs\.example\.com"):
        world.cleanup(TS_HOSTNAME="docs.example.com").run()
    watch = run(world, docs)
    assert world.records("docs.example.com") == CNAME
    assert not watch.state.records.in_sync


def test_an_earlier_pod_leaves_all_names_to_the_later_one(world: World, node: Node) -> None:
    variables = {"DNS_ALIASES": "docs,example.com", "DNS_SHARED_NAMES": "ingress"}
    earlier = world.watch(Interface(*node.addresses), **variables)
    world.run(earlier, MINUTE)
    later = world.headscale.add_node(NAME, user=USER)
    world.run_together(earlier, world.watch(Interface(*later.addresses), **variables), seconds=3 * LONG)
    for name in (NAME, "example.com", "ingress.example.com"):
        assert list(world.records(name)) == [f"A {later.address}"]
    # The names of the first pod, and the three address records of the second one.
    assert len(world.cloudflare.writes) == 4 + 3
    assert earlier.state.superseded_by == str(later.id)


# --- Shared names -----------------------------------------------------------------------------------------------

SHARED = {"DNS_SHARED_NAMES": "*.apps,ingress"}
SHARED_NAMES = ("*.apps.example.com", "ingress.example.com")


def ingress_pods(world: World, count: int = 3) -> list[Node]:
    """Register the pods of a DaemonSet."""
    return [world.headscale.add_node(f"ingress-{number}.example.com", user=USER) for number in range(count)]


def shared_by(*nodes: Node) -> dict[str, str]:
    return {f"A {node.address}": f"{MARK} {node.name}" for node in nodes}


def test_each_pod_has_a_record_at_a_shared_name(world: World) -> None:
    pods = ingress_pods(world)
    watches = [world.watch(Interface(*pod.addresses), TS_HOSTNAME=pod.name, **SHARED) for pod in pods]
    world.run_together(*watches, seconds=LONG)
    for name in SHARED_NAMES:
        assert world.records(name) == shared_by(*pods)
    writes = len(world.cloudflare.writes)
    assert writes == 3 * len(pods)
    world.run_together(*watches, seconds=LONG)
    assert len(world.cloudflare.writes) == writes
    assert all(watch.state.records.in_sync for watch in watches)


@pytest.mark.parametrize("policy", ["delete", "keep"])
def test_cleanup_removes_only_the_records_of_its_own_pod(world: World, policy: str) -> None:
    first, second = ingress_pods(world, 2)
    for pod in (first, second):
        run(world, pod, **SHARED)
    world.cleanup(TS_HOSTNAME=first.name, DNS_CLEANUP=policy, **SHARED).run()
    for name in SHARED_NAMES:
        assert world.records(name) == shared_by(second)


def test_a_pod_with_a_new_address_replaces_its_own_record(world: World) -> None:
    first, second = ingress_pods(world, 2)
    for pod in (first, second):
        run(world, pod, **SHARED)
    moved = world.headscale.readdress(first.id)
    run(world, moved, **SHARED)
    for name in SHARED_NAMES:
        assert world.records(name) == shared_by(moved, second)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"content": "198.51.100.7"}, id="public-address"),
        pytest.param({"content": "100.64.0.1"}, id="VPN-address-without-a-comment"),
        pytest.param({"content": "100.64.0.1", "comment": MARK}, id="main-name-of-another-workload"),
        pytest.param({"content": "x.example.com", "type_": "CNAME"}, id="CNAME"),
        pytest.param({"content": "x.example.com", "type_": "CNAME", "comment": f"{MARK} x.example.com"}, id="alias"),
    ],
)
def test_nothing_is_added_beside_a_foreign_record_at_a_shared_name(
    world: World, node: Node, events: Events, fields: dict[str, Any]
) -> None:
    world.add_record(**fields, name="ingress.example.com")
    before = world.records("ingress.example.com")
    watch = run(world, node, **SHARED)
    assert world.records("ingress.example.com") == before
    assert world.records("*.apps.example.com") == shared_by(node)
    assert {event["record"] for event in named(events, "record.foreign")} == {"ingress.example.com"}
    assert not watch.state.records.in_sync


def test_a_shared_name_can_have_other_records_beside_it(world: World, node: Node) -> None:
    world.add_record("v=spf1", name="ingress.example.com", type_="TXT")
    run(world, node, **SHARED)
    assert world.records("ingress.example.com") == shared_by(node) | {"TXT v=spf1": ""}


def test_shared_names_are_published_although_the_main_name_has_a_foreign_record(world: World, node: Node) -> None:
    world.add_record("198.51.100.7")
    watch = run(world, node, **SHARED)
    assert world.records("ingress.example.com") == shared_by(node)
    assert not watch.state.records.in_sync
    assert watch.state.records.addresses == ()
