"""Test dns-watch with simulators of Headscale and Cloudflare, for hours of simulated time."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.dns_watch.schedule import SLOWEST_POLL_S
from lifecycle.domain.model import IpAddress
from tests.builders import COMMENT_OF_OTHER_OWNER, NAME, OUR_COMMENT
from tests.simulators import faults
from tests.simulators.cloudflare import refusal
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import Fault
from tests.simulators.headscale import Node
from tests.world import USER, Interface, World, events_named

Events = list[Any]

MINUTE_S = 60.0
HOUR_S = 3600.0
# In this time, dns-watch reads the record several times.
SEVERAL_READS_S = 20 * MINUTE_S
# dns-watch does not exit, however long Headscale does not list the node.
NO_RETRY_LIMIT = {"MAX_RETRIES": "0"}
# The default intervals.
POLL_INTERVAL_S = 30.0
VERIFY_INTERVAL_S = 300.0
# Jitter lengthens an interval by up to this factor.
MAX_JITTER_FACTOR = 1.25


@pytest.fixture
def node(world: World) -> Node:
    """The node of the workload, registered and online."""
    return world.headscale.add_node(NAME, user=USER)


@pytest.fixture
def watch(world: World, node: Node) -> DnsWatch:
    """dns-watch in a pod whose VPN interface has the addresses of this node."""
    return world.watch(Interface(*node.addresses))


def in_sync(watch: DnsWatch) -> bool:
    """Return True if the record is reported as in sync."""
    return watch.state.records.in_sync


def writes(world: World) -> list[tuple[str, Any]]:
    """Return the method and body of each write to the zone."""
    return [(write.method, json.loads(write.body) if write.body else None) for write in world.cloudflare.writes]


def register_with_our_key(world: World, *, other_nodes: int = 0) -> Node:
    """Register a node with the key that cleanup wrote, after other nodes with the same name that used other keys."""
    world.cleanup().run()
    for _ in range(other_nodes):
        world.headscale.add_node(NAME, user=USER)
    registered = world.headscale.register(key=world.key, hostname=NAME)
    world.headscale.connect(registered.id)
    return registered


# --- Identifying the node ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", VERSIONS, indirect=True)
@pytest.mark.parametrize("tags", ["", "tag:web"])
def test_the_node_with_the_interfaces_address_is_published(world: World, tags: str) -> None:
    world.headscale.add_node(NAME, user=USER)
    ours = world.headscale.add_node(NAME, user=USER, tags=tuple(tags.split()), online=False)
    world.headscale.add_node(NAME, user=USER)
    world.run(world.watch(Interface(*ours.addresses), AUTHKEY_TAGS=tags), MINUTE_S)
    assert world.records() == {f"A {ours.address}": OUR_COMMENT}
    [record] = world.cloudflare.records(world.zone_id)
    assert (record.ttl, record.proxied) == (60, False)


@pytest.mark.parametrize("world", VERSIONS, indirect=True)
def test_without_an_interface_the_node_that_used_our_key_is_published(world: World) -> None:
    ours = register_with_our_key(world, other_nodes=2)
    world.run(world.watch(), MINUTE_S)
    assert world.records() == {f"A {ours.address}": OUR_COMMENT}


def test_the_only_online_node_is_published_after_the_grace_period(world: World, node: Node) -> None:
    """dns-watch first waits 30 s for the VPN interface, because its address would identify the node with certainty."""
    world.headscale.add_node(NAME, user=USER, online=False)
    watch = world.watch()
    world.run(watch, 29)
    assert world.records() == {}
    world.run(watch, 30)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}


def test_the_only_online_node_is_published_immediately_on_the_host_network(world: World, node: Node) -> None:
    world.run(world.watch(TAILSCALE_INTERFACE=""), 1)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}


def test_addresses_that_cannot_be_read_count_as_unchanged(world: World, node: Node) -> None:
    """For example, the process may have as many open files as it is allowed to."""

    class UnreadableInterface(Interface):
        is_readable = True

        def __call__(self) -> tuple[IpAddress, ...] | None:
            if not self.is_readable:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().__call__()

    interface = UnreadableInterface(*node.addresses)
    watch = world.watch(interface)
    world.run(watch, MINUTE_S)
    interface.is_readable = False
    assert not watch.interface_changed()
    world.run(watch, MINUTE_S)
    assert watch.state.interface == interface.addresses
    assert in_sync(watch)


def test_no_node_is_published_while_the_interface_has_no_vpn_address(world: World, node: Node, events: Events) -> None:
    world.run(world.watch(Interface("10.0.0.1", "fe80::1"), **NO_RETRY_LIMIT), SEVERAL_READS_S)
    assert world.cloudflare.requests == []
    assert "VPN_PREFIXES" in events_named(events, "pass.skipped")[-1]["reason"]


def test_malformed_key_metadata_is_ignored_if_there_is_an_interface(world: World, watch: DnsWatch) -> None:
    """cleanup writes a file with metadata of the pre-auth key beside the key."""
    Path(f"{world.key_file}.id").write_text("no json")
    world.run(watch, MINUTE_S)
    assert len(world.records()) == 1


def test_malformed_key_metadata_is_reported_once_without_an_interface(world: World, node: Node, events: Events) -> None:
    Path(f"{world.key_file}.id").write_text("no json")
    world.run(world.watch(**NO_RETRY_LIMIT), SEVERAL_READS_S)
    assert world.records() == {}
    assert [event["log_level"] for event in events if "authkey.id" in event.get("error", "")] == ["error"]


@pytest.mark.parametrize("user", ["", "bob"])
def test_an_ambiguous_or_unknown_user_is_reported_once_and_does_not_end_dns_watch(
    world: World, node: Node, events: Events, user: str
) -> None:
    world.headscale.add_user("ann")
    watch = world.watch(Interface(node.address), HEADSCALE_USER=user, **NO_RETRY_LIMIT)
    world.run(watch, SEVERAL_READS_S)
    assert world.cloudflare.requests == []
    assert [event["log_level"] for event in events if "HEADSCALE_USER" in event.get("error", "")] == ["error"]


# --- When to poll -------------------------------------------------------------------------------------


def test_an_address_that_appears_is_published_within_a_second_or_two(world: World) -> None:
    interface = Interface(None)
    watch = world.watch(interface, **NO_RETRY_LIMIT)

    def join() -> None:
        interface.set_addresses(*world.headscale.add_node(NAME, user=USER).addresses)

    world.clock.schedule(203.5, join)
    world.run(watch, 203)
    assert world.records() == {}
    world.run(watch, 2)
    assert len(world.records()) == 1


def test_an_address_that_headscale_does_not_list_yet_is_polled_frequently(world: World) -> None:
    interface = Interface(None)
    watch = world.watch(interface, **NO_RETRY_LIMIT)
    world.clock.schedule(200, lambda: interface.set_addresses("100.64.0.1"))
    world.clock.schedule(202, lambda: world.headscale.add_node(NAME, user=USER))
    world.run(watch, 204)
    assert world.records() == {"A 100.64.0.1": OUR_COMMENT}


# --- The record ---------------------------------------------------------------------------------------


def test_a_missing_record_is_created_once(world: World, node: Node, watch: DnsWatch, events: Events) -> None:
    world.run(watch, SEVERAL_READS_S)
    assert writes(world) == [
        (
            "POST",
            {"type": "A", "name": NAME, "content": node.address, "ttl": 60, "proxied": False, "comment": OUR_COMMENT},
        )
    ]
    assert [event["content"] for event in events_named(events, "record.created")] == [node.address]
    assert in_sync(watch)


@pytest.mark.parametrize(
    ("changed_fields", "sent_fields"),
    [
        pytest.param({"content": "100.64.0.9"}, {"content": "100.64.0.1"}, id="address"),
        pytest.param({"ttl": 300}, {"ttl": 60}, id="ttl"),
        pytest.param({"comment": None}, {"comment": OUR_COMMENT}, id="no comment"),
        pytest.param(
            {"comment": None, "content": "100.99.0.1", "ttl": 1},
            {"comment": OUR_COMMENT, "content": "100.64.0.1", "ttl": 60},
            id="no comment and a stale address",
        ),
        pytest.param(
            # Cloudflare replaces the TTL of a proxied record by 1.
            {"content": "198.51.100.7", "proxied": True},
            {"content": "100.64.0.1", "proxied": False, "ttl": 60},
            id="changed to a public address",
        ),
    ],
)
def test_our_record_is_updated_in_place(
    world: World, watch: DnsWatch, events: Events, changed_fields: dict[str, Any], sent_fields: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {"content": "100.64.0.1", "ttl": 60, "comment": OUR_COMMENT} | changed_fields
    record_id = world.add_record(**fields)
    world.run(watch, SEVERAL_READS_S)
    assert writes(world) == [("PATCH", sent_fields)]
    assert [record.id for record in world.cloudflare.records(world.zone_id)] == [record_id]
    assert world.records() == {"A 100.64.0.1": OUR_COMMENT}
    assert [event["was"] for event in events_named(events, "record.updated")] == [fields["content"]]


def test_a_record_is_updated_and_its_duplicates_are_deleted_in_one_request(
    world: World, node: Node, watch: DnsWatch
) -> None:
    for content in ("100.64.0.7", "100.64.0.8"):
        world.add_record(content, comment=OUR_COMMENT)
    world.add_record("100.64.0.9")
    world.run(watch, SEVERAL_READS_S)
    [(method, body)] = writes(world)
    assert (method, sorted(body), len(body["deletes"])) == ("POST", ["deletes", "patches"], 2)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}


@pytest.mark.parametrize(("dns_ttl", "ttl"), [("1", 1), ("86400", 86_400)])
def test_the_record_has_the_configured_ttl(world: World, node: Node, dns_ttl: str, ttl: int) -> None:
    world.run(world.watch(Interface(node.address), DNS_TTL=dns_ttl), SEVERAL_READS_S)
    assert [record.ttl for record in world.cloudflare.records(world.zone_id)] == [ttl]
    assert len(world.cloudflare.writes) == 1


def test_an_aaaa_record_is_created_with_dns_ipv6(world: World, node: Node) -> None:
    world.run(world.watch(Interface(*node.addresses), DNS_IPV6="true"), SEVERAL_READS_S)
    assert world.records() == {f"A {node.addresses[0]}": OUR_COMMENT, f"AAAA {node.addresses[1]}": OUR_COMMENT}
    assert len(world.cloudflare.writes) == 1


def test_a_record_stays_while_the_interface_lacks_its_address(world: World, node: Node) -> None:
    """One address family can appear before the other."""
    interface = Interface(*node.addresses)
    watch = world.watch(interface, DNS_IPV6="true")
    world.run(watch, SEVERAL_READS_S)
    both = world.records()
    interface.set_addresses(node.addresses[1])
    world.run(watch, SEVERAL_READS_S)
    assert world.records() == both
    assert len(both) == 2


def test_an_address_in_a_configured_prefix_is_published(world: World) -> None:
    world.headscale.add_node(NAME, user=USER, addresses=("10.9.0.1",))
    world.run(world.watch(Interface("10.9.0.1"), VPN_PREFIXES="10.9.0.0/16"), MINUTE_S)
    assert world.records() == {"A 10.9.0.1": OUR_COMMENT}


def test_the_domain_is_appended_to_a_hostname_without_a_dot(world: World) -> None:
    node = world.headscale.add_node("Grafana", user=USER)
    world.run(world.watch(Interface(node.address), TS_HOSTNAME="grafana"), MINUTE_S)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}


# --- Changes by other programs ----------------------------------------------------------------------------


def test_a_changed_address_updates_the_same_record(world: World, node: Node) -> None:
    interface = Interface(*node.addresses)
    watch = world.watch(interface)
    world.run(watch, 10 * MINUTE_S)
    [before] = world.cloudflare.records(world.zone_id)

    def move() -> None:
        interface.set_addresses(*world.headscale.readdress(node.id).addresses)

    world.clock.schedule(world.clock.elapsed_s + 7.5, move)
    world.run(watch, 9)
    [after] = world.cloudflare.records(world.zone_id)
    assert (after.id, after.content) == (before.id, world.headscale.nodes[0].address)
    assert after.content != before.content


def test_without_an_interface_a_changed_address_is_published_after_the_next_poll(world: World) -> None:
    node = register_with_our_key(world)
    watch = world.watch()
    world.run(watch, 10 * MINUTE_S)
    moved = world.headscale.readdress(node.id)
    world.run(watch, POLL_INTERVAL_S * MAX_JITTER_FACTOR)
    assert world.records() == {f"A {moved.address}": OUR_COMMENT}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda world, record_id: world.cloudflare.remove_record(record_id), id="removed"),
        pytest.param(lambda world, record_id: world.cloudflare.change_record(record_id, ttl=300), id="other TTL"),
        pytest.param(
            lambda world, _record_id: world.add_record("100.64.0.99", comment=OUR_COMMENT), id="second record"
        ),
    ],
)
def test_a_manual_change_of_the_record_is_reverted_at_the_next_read(
    world: World, node: Node, watch: DnsWatch, change: Callable[[World, str], object]
) -> None:
    world.run(watch, 10 * MINUTE_S)
    [record] = world.cloudflare.records(world.zone_id)
    change(world, record.id)
    world.run(watch, VERIFY_INTERVAL_S * MAX_JITTER_FACTOR)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}
    assert [record.ttl for record in world.cloudflare.records(world.zone_id)] == [60]
    write_count = len(world.cloudflare.writes)
    world.run(watch, SEVERAL_READS_S)
    assert len(world.cloudflare.writes) == write_count == 2


def test_a_record_that_got_the_comment_of_another_owner_is_not_changed(world: World, watch: DnsWatch) -> None:
    world.run(watch, 10 * MINUTE_S)
    [record] = world.cloudflare.records(world.zone_id)
    world.cloudflare.change_record(record.id, comment=COMMENT_OF_OTHER_OWNER, content="100.64.0.77")
    world.run(watch, SEVERAL_READS_S)
    assert world.records() == {"A 100.64.0.77": COMMENT_OF_OTHER_OWNER}
    assert len(world.cloudflare.writes) == 1
    assert not in_sync(watch)


# --- Conflicting records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "variables", "advice"),
    [
        pytest.param({"content": "100.64.0.1", "comment": "by hand"}, {}, "clear its comment", id="foreign A"),
        pytest.param({"content": "198.51.100.7"}, {}, "VPN_PREFIXES", id="A without a comment"),
        pytest.param(
            {"content": "100.64.0.9", "comment": COMMENT_OF_OTHER_OWNER}, {}, "DNS_OWNER", id="A of another owner"
        ),
        pytest.param({"type_": "CNAME", "content": "example.org"}, {}, "CNAME", id="CNAME"),
        pytest.param(
            {"type_": "CNAME", "content": "example.org", "comment": OUR_COMMENT},
            {},
            "CNAME",
            id="CNAME at the main name with our comment",
        ),
        pytest.param({"type_": "NS", "content": "ns.example.org"}, {}, "delegated", id="NS below the apex"),
        pytest.param(
            {"type_": "AAAA", "content": "2001:db8::1"}, {"DNS_IPV6": "true"}, "VPN_PREFIXES", id="foreign AAAA"
        ),
    ],
)
def test_a_conflicting_record_is_reported_once_and_prevents_writes(
    world: World, node: Node, events: Events, fields: dict[str, Any], variables: dict[str, str], advice: str
) -> None:
    record_id = world.add_record(**fields)
    records = world.records()
    watch = world.watch(Interface(*node.addresses), **variables)
    world.run(watch, 9)
    [event] = events_named(events, "record.foreign")
    assert (event["log_level"], event["record"], event["content"]) == ("error", NAME, fields["content"])
    assert advice in event["advice"]
    assert not in_sync(watch)
    assert advice in watch.state.records.reason
    world.run(watch, SEVERAL_READS_S)
    assert world.records() == records
    assert world.cloudflare.writes == []

    world.cloudflare.remove_record(record_id)
    world.run(watch, VERIFY_INTERVAL_S * MAX_JITTER_FACTOR)
    assert f"A {node.address}" in world.records()
    assert in_sync(watch)


@pytest.mark.parametrize("has_zone_id", [True, False])
def test_name_server_records_at_the_apex_are_ignored(world: World, has_zone_id: bool) -> None:
    node = world.headscale.add_node("example.com", user=USER)
    world.add_record("ns.example.org", type_="NS", name="example.com")
    variables = {} if has_zone_id else {"CLOUDFLARE_ZONE_ID": ""}
    world.run(world.watch(Interface(node.address), TS_HOSTNAME="example.com", **variables), SEVERAL_READS_S)
    assert f"A {node.address}" in world.records("example.com")
    assert len(world.cloudflare.writes) == 1


def test_nothing_is_written_to_the_zone_of_another_domain(world: World, node: Node, events: Events) -> None:
    other_zone = world.cloudflare.add_zone("example.org")
    watch = world.watch(Interface(node.address), CLOUDFLARE_ZONE_ID=other_zone)
    world.run(watch, SEVERAL_READS_S)
    assert world.cloudflare.records(other_zone) == []
    assert "CLOUDFLARE_ZONE_ID" in watch.state.records.reason
    assert not events_named(events, "record.created")
    assert world.cloudflare.writes == []


# --- Cloudflare fails -------------------------------------------------------------------------


@pytest.mark.max_cases_without_full(14)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(502), id="down"),
        pytest.param(faults.refuse(), id="unreachable"),
        pytest.param(faults.hang(), id="slow"),
        pytest.param(faults.html(200), id="HTML page"),
        pytest.param(faults.malformed_json(), id="malformed JSON"),
        pytest.param(faults.too_many_requests(), id="rate limit"),
        pytest.param(faults.too_many_requests(0), id="rate limit with Retry-After 0"),
        pytest.param(faults.answer(503, headers={"Retry-After": "0"}), id="503 with Retry-After 0"),
        pytest.param(refusal(403, 9109), id="invalid token"),
        pytest.param(refusal(403, 10000), id="missing permission"),
        pytest.param(refusal(400, 81045), id="quota"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_cloudflare_failures_are_retried_with_exponential_backoff(
    world: World, node: Node, watch: DnsWatch, fault: Fault, method: str
) -> None:
    world.cloudflare.faults.add(fault, method=method, times=None)
    world.run(watch, HOUR_S)
    assert not in_sync(watch)
    # The delays between attempts are 0.5, 1, 2 … 256 s, and then VERIFY_INTERVAL. An attempt is a poll of Headscale, a
    # read of the record and, if the read succeeds, a write.
    max_attempts = 22
    assert len(world.cloudflare.requests) <= 2 * max_attempts
    assert len(world.headscale.requests) <= HOUR_S / POLL_INTERVAL_S + max_attempts
    world.cloudflare.faults.clear()
    world.run(watch, VERIFY_INTERVAL_S * MAX_JITTER_FACTOR)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}
    assert in_sync(watch)


def test_cloudflare_failures_do_not_increase_polls_of_headscale(world: World, node: Node) -> None:
    """The interface loses its VPN address before the record is created."""
    interface = Interface(*node.addresses)
    watch = world.watch(interface)
    world.cloudflare.faults.add(faults.html(502))
    world.run(watch, 0.4)
    interface.set_addresses("fe80::1")
    world.run(watch, HOUR_S)
    assert len(world.headscale.requests) <= HOUR_S / POLL_INTERVAL_S + 10


def test_a_rate_limit_without_a_retry_after_pauses_for_a_minute(world: World, node: Node, watch: DnsWatch) -> None:
    """The limit applies to all clients of the account, and every request counts."""
    world.cloudflare.limit_rate(0, per=timedelta(minutes=5), retry_after=False)
    world.run(watch, MINUTE_S - 1)
    assert len(world.cloudflare.requests) == 1
    world.run(watch, 5 * MINUTE_S)
    assert len(world.cloudflare.requests) <= 6
    world.cloudflare.remove_rate_limit()
    world.run(watch, VERIFY_INTERVAL_S * MAX_JITTER_FACTOR)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}


def test_jitter_spreads_the_retries_of_many_pods(world: World, node: Node) -> None:
    world.cloudflare.faults.add(faults.too_many_requests(300), times=None)
    watches = [world.watch(Interface(node.address)) for _ in range(20)]
    for watch in watches:
        watch.run_pass()
    waits = [watch.state.records.not_before_s for watch in watches]
    assert len(set(waits)) == 20


@pytest.mark.parametrize(
    "fault", [faults.drop(after_execution=True), faults.hang(after_execution=True), faults.truncate()]
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_no_second_record_is_created_if_the_response_to_a_write_is_lost(
    world: World, node: Node, watch: DnsWatch, fault: Fault, method: str
) -> None:
    if method == "PATCH":
        world.add_record("100.64.0.99", ttl=60, comment=OUR_COMMENT)
    world.cloudflare.faults.add(fault, method=method)
    world.run(watch, HOUR_S)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}
    assert len(world.cloudflare.writes) == 1
    assert in_sync(watch)


@pytest.mark.parametrize("upstream", ["cloudflare", "headscale"])
def test_a_rotated_token_is_read_from_its_file(
    world: World, node: Node, tmp_path: Path, upstream: str, events: Events
) -> None:
    token = tmp_path / "token"
    name = {"cloudflare": "CLOUDFLARE_API_TOKEN", "headscale": "HEADSCALE_API_KEY"}[upstream]
    token.write_text(world.environment[name])
    watch = world.watch(Interface(node.address), **{name: "", f"{name}_FILE": str(token)})
    world.run(watch, 10 * MINUTE_S)
    renewed = world.cloudflare.set_token() if upstream == "cloudflare" else world.headscale.rotate_api_key()
    token.write_text(renewed + "\n")
    world.run(watch, HOUR_S)
    assert events_named(events, "pass.failed") == []
    assert in_sync(watch)


# --- Headscale fails --------------------------------------------------------------------------


@pytest.mark.max_cases_without_full(14)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(502), id="down"),
        pytest.param(faults.refuse(), id="unreachable"),
        pytest.param(faults.hang(), id="slow"),
        pytest.param(faults.html(200), id="HTML page"),
        pytest.param(faults.html(404), id="404 of a proxy"),
        pytest.param(faults.malformed_json(), id="malformed JSON"),
        pytest.param(faults.answer(401, "Unauthorized", content_type="text/plain"), id="API key refused"),
        pytest.param(faults.answer(503, headers={"Retry-After": "0"}), id="503 with Retry-After 0"),
    ],
)
def test_headscale_failures_change_no_record_and_do_not_end_dns_watch(
    world: World, node: Node, watch: DnsWatch, fault: Fault
) -> None:
    world.run(watch, 10 * MINUTE_S)
    before = len(world.headscale.requests)
    world.headscale.faults.add(fault, times=None)
    world.run(watch, HOUR_S)
    assert len(world.cloudflare.writes) == 1
    # Each poll also detects the version again, which takes a few requests.
    assert len(world.headscale.requests) - before <= 4 * (HOUR_S / POLL_INTERVAL_S + 8)
    world.headscale.faults.clear()
    world.run(watch, POLL_INTERVAL_S * MAX_JITTER_FACTOR)
    assert watch.state.is_registered


@pytest.mark.parametrize("world", VERSIONS[:1], indirect=True)
def test_an_upgrade_of_headscale_is_handled(world: World) -> None:
    node = world.headscale.add_node(NAME, user=USER)
    watch = world.watch(Interface(*node.addresses))
    for version in VERSIONS:
        world.headscale.upgrade(version)
        world.headscale.connect(node.id)
        world.run(watch, 10 * MINUTE_S)
        assert watch.state.is_registered
        assert in_sync(watch)
    assert len(world.cloudflare.writes) == 1


# --- Number of requests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "poll_s"), [(10, POLL_INTERVAL_S), (1000, SLOWEST_POLL_S)])
def test_a_poll_without_changes_needs_one_request_and_no_write(
    world: World, watch: DnsWatch, nodes: int, poll_s: float
) -> None:
    for number in range(nodes):
        world.headscale.add_node(f"node{number}", user=USER)
    world.run(watch, 2 * HOUR_S)
    headscale, cloudflare = len(world.headscale.requests), len(world.cloudflare.requests)
    world.run(watch, HOUR_S)
    requests = world.headscale.requests[headscale:]
    # The number depends on the jitter and on when the first interval of the hour ends.
    assert HOUR_S / poll_s / MAX_JITTER_FACTOR - 1 <= len(requests) <= HOUR_S / poll_s + 1
    assert {exchange.path for exchange in requests} == {"/api/v1/node/1"}
    assert max(len(exchange.response_body) for exchange in requests) <= 4096
    reads = world.cloudflare.requests[cloudflare:]
    assert HOUR_S / VERIFY_INTERVAL_S / MAX_JITTER_FACTOR - 1 <= len(reads) <= HOUR_S / VERIFY_INTERVAL_S
    assert [exchange for exchange in reads if exchange.is_write] == []


def test_an_unreadable_list_of_nodes_fails_one_pass_in_hours(world: World, watch: DnsWatch, events: Events) -> None:
    """The list of very many nodes can be too large for Headscale. dns-watch reads its own node without the list."""
    world.run(watch, MINUTE_S)
    world.headscale.faults.add(faults.html(502), path="/api/v1/node$", times=None)
    world.run(watch, 4 * HOUR_S)
    assert len(events_named(events, "pass.failed")) == 1
    assert watch.state.is_registered


def test_nodes_with_a_pre_auth_key_are_counted_again_within_two_hours(world: World, watch: DnsWatch) -> None:
    """The poll interval depends on their number. The request for the list replaces one poll of the node."""
    world.run(watch, MINUTE_S)
    before = len(world.headscale.requests)
    for number in range(400):
        world.headscale.add_node(f"node{number}", user=USER)
        world.headscale.add_node(f"laptop{number}", user=USER, registered_by="cli")
    world.run(watch, 2 * HOUR_S)
    assert [exchange.path for exchange in world.headscale.requests[before:]].count("/api/v1/node") == 1
    assert watch.state.fleet_size == 401


def test_a_restart_with_a_correct_record_needs_one_read_and_no_write(world: World, node: Node) -> None:
    world.run(world.watch(Interface(node.address)), MINUTE_S)
    before = len(world.cloudflare.requests)
    world.run(world.watch(Interface(node.address)), MINUTE_S)
    assert [exchange.method for exchange in world.cloudflare.requests[before:]] == ["GET"]


def test_poll_and_verify_intervals_can_be_configured(world: World, node: Node) -> None:
    watch = world.watch(Interface(node.address), POLL_INTERVAL="5m", VERIFY_INTERVAL="1h")
    world.run(watch, 6 * HOUR_S)
    polls, reads = 6 * 12, 6
    # The first pass and each read of the record can need additional requests to Headscale.
    assert polls / MAX_JITTER_FACTOR <= len(world.headscale.requests) <= polls + reads + 5
    assert reads / MAX_JITTER_FACTOR <= len(world.cloudflare.requests) <= reads + 3


def test_each_pass_logs_one_line(world: World, watch: DnsWatch, events: Events) -> None:
    for _ in range(3):
        watch.run_pass()
    assert len(events_named(events, "pass.finished")) == 3
    assert events_named(events, "pass.finished")[-1]["in_sync"] is True


@pytest.mark.parametrize(("fault", "changes"), [(None, 1), (faults.html(502), 0)], ids=["made", "failed"])
def test_only_changes_that_were_made_are_counted(
    fault: Fault | None, changes: int, world: World, watch: DnsWatch, events: Events
) -> None:
    if fault is not None:
        world.cloudflare.faults.add(fault, method="POST")
    watch.run_pass()
    [event] = events_named(events, "pass.finished")
    assert (event["changes"], event["in_sync"]) == (changes, bool(changes))


def test_a_stale_record_is_deleted_if_the_interface_never_gets_an_address_of_its_type(world: World, node: Node) -> None:
    """The earlier pod had an IPv6 address. This pod runs where IPv6 is disabled."""
    world.add_record("fd7a:115c:a1e0::99", type_="AAAA", comment=OUR_COMMENT)
    world.run(world.watch(Interface(node.address), DNS_IPV6="true"), SEVERAL_READS_S)
    assert world.records() == {f"A {node.address}": OUR_COMMENT}
