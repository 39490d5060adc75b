"""Test the names that a workload has in addition to its main name, which is the hostname of its node.

There are two kinds of them. An alias (setting DNS_ALIASES) has a CNAME record that points to the main name. A shared
name (setting DNS_SHARED_NAMES) has an address record of each pod that is configured with it.

The comment of a record shows who owns the record. At main names, it is OUR_COMMENT, which contains the owner (setting
DNS_OWNER). At aliases and shared names, it is COMMENT_AT_FURTHER_NAMES, which also contains the main name.

The tests run the real commands with simulators of Headscale and Cloudflare.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.domain.errors import NameTakenError
from tests.builders import COMMENT_AT_FURTHER_NAMES, COMMENT_OF_OTHER_OWNER, NAME, OUR_COMMENT
from tests.simulators import faults
from tests.simulators.cloudflare import refusal
from tests.simulators.headscale import Node
from tests.simulators.messages import Handler
from tests.simulators.upstream import Upstream
from tests.world import USER, Interface, World, events_named

Events = list[Any]

MINUTE_S = 60.0
# dns-watch reads the records every 5 minutes.
SEVERAL_READS_S = 20 * MINUTE_S

WITH_ALIASES = {"DNS_ALIASES": "docs,www.example.com,*.wiki"}
# The expected records of an alias, as returned by `World.records`.
CNAME_TO_MAIN_NAME = {f"CNAME {NAME}": COMMENT_AT_FURTHER_NAMES}


@pytest.fixture
def node(world: World) -> Node:
    """Our node, registered and online."""
    return world.headscale.add_node(NAME, user=USER)


def run(world: World, node: Node, /, **variables: str) -> DnsWatch:
    """Run dns-watch in the pod of this node until it has read the records several times."""
    watch = world.watch(Interface(*node.addresses), TS_HOSTNAME=node.name, **variables)
    world.run(watch, SEVERAL_READS_S)
    return watch


def all_records(world: World) -> set[tuple[str, str, str, str]]:
    """Return the name, type, content and comment of every record in the zone."""
    records = world.cloudflare.records(world.zone_id)
    return {(record.name, record.type, record.content, record.comment) for record in records}


# --- Aliases ----------------------------------------------------------------------------------------------------


def test_aliases_point_to_the_main_name(world: World, node: Node) -> None:
    watch = run(world, node, **WITH_ALIASES)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}
    for name in ("docs.example.com", "www.example.com", "*.wiki.example.com"):
        assert world.records(name) == CNAME_TO_MAIN_NAME
    assert all(record.ttl == 60 and not record.proxied for record in world.cloudflare.records(world.zone_id))
    assert watch.state.records.in_sync


def test_alias_that_is_the_domain_has_address_records(world: World, node: Node) -> None:
    """A CNAME record at the domain would hide the domain's MX record."""
    world.add_record("mail.example.com", name="example.com", type_="MX", priority=10)
    run(world, node, DNS_ALIASES="example.com", DNS_IPV6="true")
    v4, v6 = node.addresses
    records = {key: comment for key, comment in world.records("example.com").items() if not key.startswith("MX")}
    assert records == {f"A {v4}": COMMENT_AT_FURTHER_NAMES, f"AAAA {v6}": COMMENT_AT_FURTHER_NAMES}


def test_correct_names_need_one_request_per_interval_and_no_write(world: World, node: Node) -> None:
    variables = {"DNS_ALIASES": "a,b,c,d,example.com", "DNS_SHARED_NAMES": "*.apps,ingress"}
    watch = run(world, node, **variables)
    requests, writes = len(world.cloudflare.requests), len(world.cloudflare.writes)
    # One record for each of the main name, five aliases and two shared names.
    assert writes == 8
    world.run(watch, 100 * MINUTE_S)
    assert len(world.cloudflare.writes) == writes
    # 100 minutes are 20 intervals of 5 minutes. Jitter lengthens an interval by up to a quarter.
    assert 15 <= len(world.cloudflare.requests) - requests <= 20


def test_only_the_main_record_changes_with_the_address(world: World, node: Node) -> None:
    run(world, node, **WITH_ALIASES)
    writes = len(world.cloudflare.writes)
    moved = world.headscale.readdress(node.id)
    run(world, moved, **WITH_ALIASES)
    assert world.records() == {f"A {moved.address}": OUR_COMMENT}
    assert world.records("docs.example.com") == CNAME_TO_MAIN_NAME
    assert len(world.cloudflare.writes) == writes + 1


# Records that this workload must not change, whether they are at an alias or at a shared name.
FOREIGN_RECORDS = [
    pytest.param({"content": "198.51.100.7"}, id="public-address"),
    pytest.param({"content": "100.64.0.1"}, id="VPN-address-without-a-comment"),
    pytest.param({"content": "100.64.0.1", "comment": OUR_COMMENT}, id="main-record-of-another-workload"),
    pytest.param({"content": "x.example.com", "type_": "CNAME"}, id="CNAME"),
    pytest.param(
        {"content": "wiki.example.com", "type_": "CNAME", "comment": f"{OUR_COMMENT} wiki.example.com"},
        id="alias-of-another-workload",
    ),
]
FOREIGN_RECORDS_AT_AN_ALIAS = [
    *FOREIGN_RECORDS,
    pytest.param({"content": "100.64.0.1", "comment": "by hand"}, id="other-comment"),
    pytest.param(
        {"content": "100.64.0.1", "comment": COMMENT_OF_OTHER_OWNER}, id="main-record-of-another-owner's-workload"
    ),
    pytest.param(
        {"content": NAME, "type_": "CNAME", "comment": f"{COMMENT_AT_FURTHER_NAMES} x"},
        id="CNAME-with-a-longer-comment",
    ),
    pytest.param({"content": "2001:db8::1", "type_": "AAAA"}, id="AAAA"),
    pytest.param({"content": "v=spf1", "type_": "TXT"}, id="TXT-that-a-CNAME-would-hide"),
    pytest.param({"content": "ns.example.org", "type_": "NS"}, id="delegation"),
]


@pytest.mark.parametrize("fields", FOREIGN_RECORDS_AT_AN_ALIAS)
def test_foreign_record_at_an_alias_is_reported_and_does_not_block_other_names(
    world: World, node: Node, events: Events, fields: dict[str, Any]
) -> None:
    foreign = world.add_record(**fields, name="www.example.com")
    before = world.cloudflare.records(world.zone_id, "www.example.com")
    # cleanup deletes the node, so the new pod has to register a new node.
    world.cleanup(**WITH_ALIASES).run()
    node = world.headscale.register(key=world.key, hostname=NAME)
    world.headscale.connect(node.id)
    watch = run(world, node, **WITH_ALIASES)
    assert world.cloudflare.records(world.zone_id, "www.example.com") == before
    assert world.records() == {f"A {node.address}": OUR_COMMENT}
    assert world.records("docs.example.com") == world.records("*.wiki.example.com") == CNAME_TO_MAIN_NAME
    assert {event["record"] for event in events_named(events, "record.foreign")} == {"www.example.com"}
    assert not watch.state.records.in_sync
    assert "www.example.com" in watch.state.records.reason
    world.cloudflare.remove_record(foreign)
    world.run(watch, SEVERAL_READS_S)
    assert world.records("www.example.com") == CNAME_TO_MAIN_NAME
    assert watch.state.records.in_sync


def test_aliases_do_not_point_to_a_main_name_with_a_foreign_record(world: World, node: Node, events: Events) -> None:
    foreign = world.add_record("198.51.100.7")
    watch = run(world, node, **WITH_ALIASES)
    assert [record.id for record in world.cloudflare.records(world.zone_id)] == [foreign]
    assert {event["record"] for event in events_named(events, "record.foreign")} == {NAME}
    world.cloudflare.remove_record(foreign)
    world.run(watch, SEVERAL_READS_S)
    assert world.records("docs.example.com") == CNAME_TO_MAIN_NAME


def test_foreign_record_is_found_if_cloudflare_ignores_match_any(world: World, node: Node) -> None:
    """dns-watch requests the records that have the name or the comment (`match=any`).

    A server that ignores `match=any` returns only the records that have the name and the comment, so the list lacks the
    foreign record. Therefore dns-watch requests the records of the name again before it creates a record.
    """

    def ignoring_match_any(upstream: Upstream) -> Handler:
        return lambda request: upstream.handle(replace(request, query=request.query.replace("match=any", "match=all")))

    world.route = ignoring_match_any
    world.add_record("100.64.9.9", comment=COMMENT_OF_OTHER_OWNER)
    before = all_records(world)
    run(world, node, **WITH_ALIASES)
    assert all_records(world) == before


def test_refused_alias_does_not_block_other_names(world: World, node: Node) -> None:
    """Cloudflare returns the error code 81045 if the zone has as many records as the customer's plan allows."""
    # The first POST creates the record of the main name. The second POST, for the first alias, is refused.
    world.cloudflare.faults.add(refusal(400, 81045), method="POST", after=1)
    watch = world.watch(Interface(*node.addresses), **WITH_ALIASES)
    watch.run_pass()
    assert world.records() == {f"A {node.address}": OUR_COMMENT}
    assert world.records("*.wiki.example.com") == CNAME_TO_MAIN_NAME
    world.run(watch, SEVERAL_READS_S)
    assert world.records("docs.example.com") == CNAME_TO_MAIN_NAME
    assert watch.state.records.in_sync


def test_aliases_are_not_created_before_the_main_record(world: World, node: Node) -> None:
    """Error code 81053: another owner created a record at the main name after dns-watch had read the zone."""
    world.cloudflare.faults.add(refusal(400, 81053), method="POST")
    watch = world.watch(Interface(*node.addresses), **WITH_ALIASES, DNS_SHARED_NAMES="ingress")
    watch.run_pass()
    assert {name for name, *_ in all_records(world)} == {"ingress.example.com"}
    world.run(watch, SEVERAL_READS_S)
    assert world.records("docs.example.com") == CNAME_TO_MAIN_NAME
    assert watch.state.records.in_sync


def test_dns_watch_sends_no_more_writes_in_a_pass_after_a_503(world: World, node: Node) -> None:
    world.cloudflare.faults.add(faults.html(503), method="POST", times=1)
    world.watch(Interface(*node.addresses), **WITH_ALIASES).run_pass()
    assert len(world.cloudflare.writes) == 1


@pytest.mark.parametrize("change", [{"content": "elsewhere.example.org"}, {"ttl": 600}])
def test_edited_alias_is_corrected_in_place(world: World, node: Node, change: dict[str, Any]) -> None:
    watch = run(world, node, **WITH_ALIASES)
    [alias] = world.cloudflare.records(world.zone_id, "docs.example.com")
    world.cloudflare.change_record(alias.id, **change)
    world.run(watch, SEVERAL_READS_S)
    [after] = world.cloudflare.records(world.zone_id, "docs.example.com")
    assert (after.id, after.content, after.ttl) == (alias.id, NAME, 60)


@pytest.mark.parametrize(
    "comment",
    [
        OUR_COMMENT,
        f"{COMMENT_OF_OTHER_OWNER} {NAME}",
        f"{OUR_COMMENT} x{NAME}",
        f"was {COMMENT_AT_FURTHER_NAMES}",
        COMMENT_AT_FURTHER_NAMES.upper(),
        "",
    ],
)
def test_records_with_another_comment_are_not_deleted_at_removed_names(world: World, node: Node, comment: str) -> None:
    """At a name that the settings no longer contain, a record is deleted if its comment is COMMENT_AT_FURTHER_NAMES.

    Records with any other comment are kept. TXT records are kept even with this comment.
    """
    world.add_record(node.address, name="old.example.com", comment=comment)
    world.add_record(NAME, name="older.example.com", type_="CNAME", comment=comment)
    world.add_record(COMMENT_AT_FURTHER_NAMES, name="note.example.com", type_="TXT", comment=COMMENT_AT_FURTHER_NAMES)
    before = all_records(world)
    world.cleanup(**WITH_ALIASES).run()
    run(world, world.headscale.add_node(NAME, user=USER), **WITH_ALIASES)
    assert before <= all_records(world)


def test_alias_that_was_removed_from_the_settings_is_deleted_by_cleanup(world: World, node: Node) -> None:
    run(world, node, **WITH_ALIASES)
    world.cleanup().run()
    assert all_records(world) == set()


def test_alias_that_was_removed_from_the_settings_is_deleted_by_dns_watch(world: World, node: Node) -> None:
    run(world, node, **WITH_ALIASES)
    run(world, node, DNS_ALIASES="docs")
    assert {name for name, *_ in all_records(world)} == {NAME, "docs.example.com"}


def test_cleanup_keeps_the_cname_of_a_configured_alias(world: World, node: Node) -> None:
    """The CNAME record is correct for the new pod, too. The address record of the alias `example.com` is deleted."""
    run(world, node, DNS_ALIASES="docs,example.com")
    world.cleanup(DNS_ALIASES="docs,example.com").run()
    assert all_records(world) == {("docs.example.com", "CNAME", NAME, COMMENT_AT_FURTHER_NAMES)}


@pytest.mark.parametrize("first_setting", ["DNS_ALIASES", "DNS_SHARED_NAMES"])
def test_name_can_change_between_alias_and_shared_name(world: World, node: Node, first_setting: str) -> None:
    expected = {"DNS_ALIASES": CNAME_TO_MAIN_NAME, "DNS_SHARED_NAMES": {f"A {node.address}": COMMENT_AT_FURTHER_NAMES}}
    second_setting = next(setting for setting in expected if setting != first_setting)
    for setting in (first_setting, second_setting):
        run(world, node, **{setting: "docs"})
        assert world.records("docs.example.com") == expected[setting]


def test_first_of_two_workloads_with_the_same_alias_owns_it(world: World, node: Node) -> None:
    wiki = world.headscale.add_node("wiki.example.com", user=USER)
    watches = [
        world.watch(Interface(*owner.addresses), TS_HOSTNAME=owner.name, DNS_ALIASES="docs") for owner in (node, wiki)
    ]
    world.run_together(*watches, seconds=SEVERAL_READS_S)
    assert world.records("docs.example.com") == CNAME_TO_MAIN_NAME
    # Each workload created the record of its main name. Only the first created the alias.
    assert len(world.cloudflare.writes) == 3
    assert [watch.state.records.in_sync for watch in watches] == [True, False]


def test_main_name_that_is_an_alias_of_another_workload_is_refused(world: World, node: Node) -> None:
    run(world, node, DNS_ALIASES="docs")
    docs = world.headscale.add_node("docs.example.com", user=USER)
    with pytest.raises(NameTakenError, match=r"docs\.example\.com"):
        world.cleanup(TS_HOSTNAME="docs.example.com").run()
    watch = run(world, docs)
    assert world.records("docs.example.com") == CNAME_TO_MAIN_NAME
    assert not watch.state.records.in_sync


def test_earlier_pod_stops_updating_all_names_when_a_later_one_is_online(world: World, node: Node) -> None:
    variables = {"DNS_ALIASES": "docs,example.com", "DNS_SHARED_NAMES": "ingress"}
    earlier = world.watch(Interface(*node.addresses), **variables)
    world.run(earlier, MINUTE_S)
    later = world.headscale.add_node(NAME, user=USER)
    world.run_together(earlier, world.watch(Interface(*later.addresses), **variables), seconds=3 * SEVERAL_READS_S)
    for name in (NAME, "example.com", "ingress.example.com"):
        assert list(world.records(name)) == [f"A {later.address}"]
    # The earlier pod created four records. The later pod updated three of them, because the CNAME record was correct.
    assert len(world.cloudflare.writes) == 4 + 3
    assert earlier.state.superseded_by == str(later.id)


# --- Shared names -----------------------------------------------------------------------------------------------

WITH_SHARED_NAMES = {"DNS_SHARED_NAMES": "*.apps,ingress"}
SHARED_NAMES = ("*.apps.example.com", "ingress.example.com")


def ingress_pods(world: World, count: int = 3) -> list[Node]:
    """Register the nodes of an ingress controller's pods, each with a hostname of its own."""
    return [world.headscale.add_node(f"ingress-{number}.example.com", user=USER) for number in range(count)]


def shared_by(*nodes: Node) -> dict[str, str]:
    """Return the expected records at a shared name, in the form in which `World.records` returns records."""
    return {f"A {node.address}": f"{OUR_COMMENT} {node.name}" for node in nodes}


def test_each_pod_has_a_record_at_each_shared_name(world: World) -> None:
    pods = ingress_pods(world)
    watches = [world.watch(Interface(*pod.addresses), TS_HOSTNAME=pod.name, **WITH_SHARED_NAMES) for pod in pods]
    world.run_together(*watches, seconds=SEVERAL_READS_S)
    for name in SHARED_NAMES:
        assert world.records(name) == shared_by(*pods)
    writes = len(world.cloudflare.writes)
    # Each pod has a record at its main name and at each of the two shared names.
    assert writes == 3 * len(pods)
    world.run_together(*watches, seconds=SEVERAL_READS_S)
    assert len(world.cloudflare.writes) == writes
    assert all(watch.state.records.in_sync for watch in watches)


@pytest.mark.parametrize("dns_cleanup", ["delete", "keep"])
def test_cleanup_deletes_only_the_shared_records_of_its_own_pod(world: World, dns_cleanup: str) -> None:
    """`DNS_CLEANUP=keep` does not apply to a shared name, because the name also resolves to the other pods."""
    first, second = ingress_pods(world, 2)
    for pod in (first, second):
        run(world, pod, **WITH_SHARED_NAMES)
    world.cleanup(TS_HOSTNAME=first.name, DNS_CLEANUP=dns_cleanup, **WITH_SHARED_NAMES).run()
    for name in SHARED_NAMES:
        assert world.records(name) == shared_by(second)


def test_pod_with_a_new_address_replaces_only_its_own_record(world: World) -> None:
    first, second = ingress_pods(world, 2)
    for pod in (first, second):
        run(world, pod, **WITH_SHARED_NAMES)
    moved = world.headscale.readdress(first.id)
    run(world, moved, **WITH_SHARED_NAMES)
    for name in SHARED_NAMES:
        assert world.records(name) == shared_by(moved, second)


def test_stale_record_of_another_workload_with_the_same_address_suffices(world: World, node: Node) -> None:
    """Cloudflare refuses a second record with the same content."""
    stale = f"{OUR_COMMENT} wiki.example.com"
    record_id = world.add_record(node.address, name="ingress.example.com", comment=stale)
    world.add_record("100.64.0.99", name="ingress.example.com", comment=COMMENT_AT_FURTHER_NAMES)
    watch = run(world, node, **WITH_SHARED_NAMES)
    assert world.records("ingress.example.com") == {f"A {node.address}": stale}
    assert watch.state.records.in_sync
    writes = len(world.cloudflare.writes)
    world.run(watch, SEVERAL_READS_S)
    assert len(world.cloudflare.writes) == writes
    world.cloudflare.remove_record(record_id)
    world.run(watch, SEVERAL_READS_S)
    assert world.records("ingress.example.com") == shared_by(node)


@pytest.mark.parametrize("fields", FOREIGN_RECORDS)
def test_no_record_is_created_at_a_shared_name_with_a_foreign_record(
    world: World, node: Node, events: Events, fields: dict[str, Any]
) -> None:
    world.add_record(**fields, name="ingress.example.com")
    before = world.records("ingress.example.com")
    watch = run(world, node, **WITH_SHARED_NAMES)
    assert world.records("ingress.example.com") == before
    assert world.records("*.apps.example.com") == shared_by(node)
    assert {event["record"] for event in events_named(events, "record.foreign")} == {"ingress.example.com"}
    assert not watch.state.records.in_sync


def test_shared_names_are_published_if_the_main_name_has_a_foreign_record(world: World, node: Node) -> None:
    world.add_record("198.51.100.7")
    watch = run(world, node, **WITH_SHARED_NAMES)
    assert world.records("ingress.example.com") == shared_by(node)
    assert not watch.state.records.in_sync
    assert watch.state.records.addresses == ()
