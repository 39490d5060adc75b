"""The eight rules that hold in every state, at every fault, on every release: whole commands against both services."""

from __future__ import annotations

import json
import os
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.domain.errors import ApiError, LifecycleError
from lifecycle.health.metrics import render_metrics
from lifecycle.keyfile import writer as key_file_writer
from lifecycle.settings.models import CleanupSettings, DnsWatchSettings
from lifecycle.settings.reference import changed
from tests.builders import MARK, NAME, OTHER_MARK
from tests.simulators import faults
from tests.simulators.cloudflare import refusal
from tests.simulators.faults import Fault
from tests.simulators.headscale import Node
from tests.world import USER, Interface, World

Events = list[Any]

# Two looks at the record, at least.
LONG_S = 700.0
TAG = "tag:web"

# The oldest, the last that shows keys in lists, and the newest two kinds of API.
RELEASES = ("0.23.0", "0.27.1", "0.28.0", "0.30.0")


@pytest.fixture(autouse=True)
def _no_output(events: Events) -> None:
    """Events are captured, not printed."""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


MakeWorld = Callable[[str], World]


@pytest.fixture
def make_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeWorld:
    return lambda version: World(monkeypatch, tmp_path, version)


def leave_behind(world: World) -> Node:
    """What an earlier pod left: a node and its record."""
    node = world.headscale.add_node(NAME, user=USER, online=False)
    world.add_record(node.address, ttl=60, comment=MARK)
    return node


def join(world: World) -> Node:
    """The tailscale container logs in with the key that `cleanup` wrote."""
    node = world.headscale.register(key=world.key, hostname=NAME)
    world.headscale.connect(node.id)
    return node


def watch_for(world: World, seconds: float, *, node: Node | None = None, **variables: str) -> DnsWatch:
    """Let `dns-watch` run for a while, in a pod that has the node's address or no interface at all."""
    interface = Interface(*node.addresses) if node else Interface(None)
    watch = world.watch(interface, MAX_RETRIES="0", **variables)
    world.run(watch, seconds)
    return watch


# --- 1 ------------------------------------------------------------------------------------------------

NOT_OURS = [
    pytest.param({"content": "100.64.0.1", "comment": "by hand"}, id="another-comment"),
    pytest.param({"content": "100.64.0.1", "comment": OTHER_MARK}, id="another-owner"),
    pytest.param({"content": "100.64.0.1", "comment": f"{MARK}-2"}, id="a-longer-owner"),
    pytest.param({"content": "100.64.0.1", "comment": MARK[:-1]}, id="a-shorter-owner"),
    pytest.param({"content": "100.64.0.1", "comment": MARK.upper()}, id="our-mark-in-capitals"),
    pytest.param({"content": "100.64.0.1", "comment": f" {MARK}"}, id="our-mark-after-a-blank"),
    pytest.param({"content": "100.64.0.1", "comment": f"was {MARK}"}, id="our-mark-quoted"),
    pytest.param({"content": "198.51.100.7"}, id="no-comment-and-a-public-address"),
    pytest.param({"content": "100.128.0.1"}, id="no-comment-and-an-address-beside-the-vpn"),
    pytest.param({"content": "2001:db8::1", "type_": "AAAA"}, id="no-comment-and-a-public-IPv6-address"),
    pytest.param({"content": "fd7a:115c:a1e0::1", "type_": "AAAA", "comment": "by hand"}, id="another's-AAAA"),
    pytest.param({"content": "100.64.0.1", "type_": "TXT", "comment": MARK}, id="a-TXT-with-our-mark"),
    pytest.param({"content": "example.org", "type_": "CNAME", "comment": MARK}, id="a-CNAME-with-our-mark"),
    pytest.param({"content": "ns.example.org", "type_": "NS", "comment": MARK}, id="an-NS-with-our-mark"),
    pytest.param({"content": "100.64.0.1", "comment": MARK, "name": f"x.{NAME}"}, id="a-name-below"),
    pytest.param({"content": "100.64.0.1", "comment": MARK, "name": f"x{NAME}"}, id="a-longer-name"),
    pytest.param({"content": "100.64.0.1", "comment": MARK, "name": "example.com"}, id="a-name-above"),
    pytest.param({"content": "100.64.0.1", "comment": MARK, "name": f"{NAME}.example.com"}, id="a-name-that-begins-so"),
]


@pytest.mark.parametrize("fields", NOT_OURS)
@pytest.mark.parametrize("variables", [{}, {"DNS_CLEANUP": "keep", "DNS_IPV6": "true"}], ids=["as-usual", "all-on"])
def test_never_1_a_record_that_is_not_ours_is_never_changed_or_deleted(
    world: World, fields: dict[str, Any], variables: dict[str, str]
) -> None:
    foreign = world.add_record(**fields)
    [before] = world.cloudflare.records(world.zone_id)
    with suppress(LifecycleError):
        world.cleanup(**variables).run()
    node = world.headscale.add_node(NAME, user=USER)
    watch_for(world, LONG_S, node=node, **variables)
    assert [record for record in world.cloudflare.records(world.zone_id) if record.id == foreign] == [before]


def test_never_1_a_record_that_somebody_renamed_since_it_was_read_is_not_deleted(world: World) -> None:
    record = world.add_record("100.64.0.99", ttl=60, comment=MARK)
    world.cloudflare.change_record(record, name="wiki.example.com")
    world.cloudflare.faults.add(faults.stale(), method="GET")
    watch_for(world, LONG_S, node=world.headscale.add_node(NAME, user=USER))
    assert len(world.records("wiki.example.com")) == 1


@pytest.mark.parametrize("command", ["cleanup", "dns-watch"])
def test_never_1_but_what_is_ours_is_changed_and_deleted(world: World, command: str) -> None:
    """Else the test above would hold for a program that does nothing."""
    world.add_record("100.64.0.99", comment=MARK)
    if command == "cleanup":
        world.cleanup().run()
        assert world.records() == {}
    else:
        node = world.headscale.add_node(NAME, user=USER)
        watch_for(world, LONG_S, node=node)
        assert world.records() == {f"A {node.address}": MARK}


# --- 2 ------------------------------------------------------------------------------------------------


def anns(world: World) -> Node:
    return world.headscale.add_node(NAME, user="ann")


def anns_with_our_tag(world: World) -> Node:
    return world.headscale.add_node(NAME, user="ann", tags=(TAG,))


def anns_by_our_key(world: World) -> Node:
    """It came in with our user's key, and an administrator gave it to ann since."""
    key = world.headscale.create_key(USER)
    return world.headscale.add_node(NAME, user="ann", pre_auth_key=key)


def by_hand(world: World) -> Node:
    return world.headscale.add_node(NAME, user=USER, registered_by="cli")


def by_login(world: World) -> Node:
    return world.headscale.add_node(NAME, user=USER, registered_by="oidc")


def of_a_longer_name(world: World) -> Node:
    return world.headscale.add_node(f"{NAME}x", user=USER)


def of_a_name_below(world: World) -> Node:
    return world.headscale.add_node(f"x.{NAME}", user=USER)


def of_our_given_name(world: World) -> Node:
    """Somebody renamed it to what ours would be called."""
    node = world.headscale.add_node("phone", user=USER)
    return world.headscale.rename_node(node.id, NAME.replace(".", "-"))


def somebody_elses_tag(world: World) -> Node:
    return world.headscale.add_node(NAME, user="ann", tags=("tag:db",))


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize(
    "make",
    [
        anns,
        anns_with_our_tag,
        anns_by_our_key,
        by_hand,
        by_login,
        of_a_longer_name,
        of_a_name_below,
        of_our_given_name,
        somebody_elses_tag,
    ],
)
def test_never_2_a_node_that_is_not_ours_is_never_deleted_or_expired(
    make_world: MakeWorld, version: str, make: Callable[[World], Node]
) -> None:
    world = make_world(version)
    world.headscale.add_user("ann")
    foreign = make(world)
    ours = leave_behind(world)
    variables = {"HEADSCALE_USER": USER, "AUTHKEY_TAGS": TAG}
    world.cleanup(**variables).run()
    assert world.headscale.node(ours.id) is None
    joined = join(world)
    watch_for(world, LONG_S, node=joined, SELF_HEAL="true", **variables)
    world.headscale.delete_node(joined.id)
    watch_for(world, LONG_S, node=joined, SELF_HEAL="true", **variables)
    left = world.headscale.node(foreign.id)
    assert left is not None
    assert left.expires_at is None


@pytest.mark.parametrize("version", RELEASES)
def test_never_2_but_every_node_of_ours_goes(make_world: MakeWorld, version: str) -> None:
    world = make_world(version)
    world.headscale.add_user("ann")
    for tags in ((), (TAG,)):
        world.headscale.add_node(NAME, user=USER, tags=tags)
        world.headscale.add_node(NAME.upper(), user=USER, tags=tags, online=False)
    world.cleanup(HEADSCALE_USER=USER, AUTHKEY_TAGS=TAG).run()
    assert world.headscale.nodes == []


# --- 3 ------------------------------------------------------------------------------------------------

UNKNOWN = [
    pytest.param(faults.html(502), id="502"),
    pytest.param(faults.html(404), id="a-proxy's-404"),
    pytest.param(faults.answer(404, "{}"), id="a-404-in-JSON"),
    pytest.param(faults.html(403), id="a-right-is-missing"),
    pytest.param(faults.html(200), id="a-web-page"),
    pytest.param(faults.answer(200, "{}"), id="an-empty-object"),
    pytest.param(faults.answer(200, '{"success": true, "result": null}'), id="null"),
    pytest.param(faults.answer(200, '{"users": null, "nodes": null, "node": null}'), id="lists-that-are-null"),
    pytest.param(faults.garbage(), id="half-a-document"),
    pytest.param(faults.truncate(), id="half-a-body"),
    pytest.param(faults.drop(), id="no-answer"),
    pytest.param(faults.too_many_requests(1), id="throttled"),
]


@pytest.mark.parametrize("fault", UNKNOWN)
@pytest.mark.parametrize("path", ["/api/v1/user$", "/api/v1/node$", "/api/v1/node/"])
def test_never_3_a_headscale_that_cannot_be_read_makes_cleanup_change_nothing(
    world: World, fault: Fault, path: str
) -> None:
    node = leave_behind(world)
    world.headscale.faults.add(fault, method="GET", path=path, times=None)
    with pytest.raises(ApiError):
        world.cleanup().run()
    assert world.headscale.nodes == [node]
    assert world.headscale.writes == world.cloudflare.writes == []
    assert world.key is None


@pytest.mark.parametrize("fault", UNKNOWN)
def test_never_3_a_zone_that_cannot_be_read_is_not_changed(world: World, fault: Fault) -> None:
    for number in range(1, 131):
        world.add_record(f"100.64.0.{number}", comment=MARK)
    for path in (r"page=1", r"page=2"):
        world.cloudflare.faults.clear()
        world.cloudflare.faults.add(fault, method="GET", path=path, times=None)
        world.cleanup().run()
        watch_for(world, LONG_S, node=join(world))
    assert world.cloudflare.writes == []


def test_never_3_a_zone_that_says_less_than_it_counts_is_not_changed(world: World) -> None:
    page = {"success": True, "result": [], "result_info": {"page": 1, "total_pages": 1, "total_count": 1}}
    world.cloudflare.faults.add(faults.answer(200, json.dumps(page)), method="GET", times=None)
    watch_for(world, LONG_S, node=world.headscale.add_node(NAME, user=USER))
    assert world.cloudflare.writes == []


@pytest.mark.parametrize("fault", UNKNOWN)
@pytest.mark.parametrize("path", ["/api/v1/user$", "/api/v1/node$", "/api/v1/node/", ""])
def test_never_3_a_headscale_that_cannot_be_read_makes_dns_watch_change_nothing(
    world: World, fault: Fault, path: str
) -> None:
    """Neither is the node gone, nor has another one the name."""
    node = world.headscale.add_node(NAME, user=USER)
    interface = Interface(*node.addresses)
    watch = world.watch(interface, MAX_RETRIES="0", SELF_HEAL="true")
    world.run(watch, LONG_S)
    keys = len(world.headscale.keys)
    assert len(world.cloudflare.writes) == 1
    world.headscale.faults.add(fault, method="GET", path=path, times=None)
    world.run(watch, LONG_S)
    interface.show(None)
    world.run(watch, LONG_S)
    assert len(world.cloudflare.writes) == 1
    assert len(world.headscale.keys) == keys
    assert world.key is None


# --- 4 ------------------------------------------------------------------------------------------------

OLD_KEY = "hskey-auth-of-the-start-before"


@contextmanager
def at_each_line_of(module: Any, look: Callable[[], None]) -> Iterator[None]:
    """Look around before each line that runs in a module: there a kill -9 would leave things as they are."""

    def line_by_line(_frame: Any, event: str, _argument: Any) -> Any:
        if event in {"line", "return"}:
            look()
        return line_by_line

    def call(frame: Any, _event: str, _argument: Any) -> Any:
        return line_by_line if frame.f_code.co_filename == module.__file__ else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("mode", ["0640", "0600", "0444"])
@pytest.mark.parametrize("old", [None, OLD_KEY], ids=["first-start", "again"])
def test_never_4_the_key_file_is_absent_or_whole_at_every_instant(world: World, old: str | None, mode: str) -> None:
    if old is not None:
        world.key_file.write_text(old)
        world.key_file.chmod(int(mode, 8))
    folder = world.key_file.parent
    seen: list[tuple[str | None, int | None]] = []
    too_open: list[str] = []

    def look() -> None:
        there = world.key_file.exists()
        state = (
            world.key_file.read_text() if there else None,
            stat.S_IMODE(world.key_file.stat().st_mode) if there else None,
        )
        if state not in seen:
            seen.append(state)
        for path in folder.iterdir():
            bits = stat.S_IMODE(path.stat().st_mode)
            if path.name != "authkey.id" and not path.name.startswith(".authkey.id") and bits & ~int(mode, 8) & 0o077:
                too_open.append(path.name)

    umask = os.umask(0)
    try:
        with at_each_line_of(key_file_writer, look):
            world.cleanup(AUTHKEY_FILE_MODE=mode).run()
    finally:
        os.umask(umask)
    [key] = world.headscale.keys
    assert seen == [(old, int(mode, 8) if old else None), (key.key, int(mode, 8))]
    assert too_open == []


def test_never_4_a_key_that_healing_writes_is_whole_too(world: World) -> None:
    world.cleanup().run()
    node = join(world)
    watch = world.watch(Interface(*node.addresses), SELF_HEAL="true")
    world.run(watch, LONG_S)
    world.headscale.add_node("other", user=USER)
    world.headscale.delete_node(node.id)
    seen: list[str | None] = []
    with at_each_line_of(key_file_writer, lambda: seen.append(world.key)):
        world.run(watch, LONG_S)
    assert set(seen) <= {key.key for key in world.headscale.keys}
    assert len(set(seen)) > 1


# --- 5 ------------------------------------------------------------------------------------------------

TROUBLE = [
    None,
    faults.drop(committed=True),
    faults.truncate(),
    faults.html(502),
    faults.garbage(),
    faults.too_many_requests(1),
    refusal(403, 10000),
]


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("fault", TROUBLE, ids=lambda fault: fault.kind.name if fault else "none")
def test_never_5_no_secret_leaves(make_world: MakeWorld, version: str, fault: Fault | None, events: Events) -> None:
    """Not into a log line, an exception, a metric, an address, or a file but the one."""
    world = make_world(version)
    leave_behind(world)
    told: list[str] = []

    def trouble() -> None:
        if fault is not None:
            # Some pass unharmed first, so that each step meets it once.
            for number in range(6):
                world.headscale.faults.add(fault, after=2 * number)
                world.cloudflare.faults.add(fault, after=number)

    def gather(error: BaseException | None) -> None:
        while error is not None:
            told.extend([str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)])
            error = error.__cause__ or error.__context__

    trouble()
    for _ in range(4):
        try:
            world.cleanup().run()
        except LifecycleError as error:
            gather(error)
    world.headscale.faults.clear()
    world.cleanup().run()
    node = join(world)
    trouble()
    watch = watch_for(world, LONG_S, node=node, SELF_HEAL="true")
    world.headscale.add_node("other", user=USER)
    world.headscale.delete_node(node.id)
    trouble()
    world.run(watch, LONG_S)
    for command in (CleanupSettings, DnsWatchSettings):
        settings = world.settings(command)
        told += [repr(settings), str(changed(settings))]

    told += map(repr, events)
    told += [f"{exchange.path}?{exchange.query}" for exchange in world.headscale.requests + world.cloudflare.requests]
    told.append(render_metrics(watch.status, accept="")[1].decode())
    told += [repr(watch.status), json.dumps([watch.status.node(), watch.status.readiness()])]
    told += [path.read_text() for path in world.key_file.parent.iterdir() if path != world.key_file]
    secrets = [*world.headscale.secrets(), *world.cloudflare.secrets()]
    assert len(secrets) > 4
    assert [text for text in told for secret in secrets if secret in text] == []


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("path", ["/api/v1/node", "/api/v1/preauthkey"])
def test_never_5_an_answer_that_makes_no_sense_shows_none_of_its_secrets(
    make_world: MakeWorld, version: str, path: str, events: Events
) -> None:
    world = make_world(version)
    key = {"id": "none", "key": world.headscale.create_key(USER).key}
    node = {"id": "1", "name": NAME, "preAuthKey": key}
    answer = json.dumps({"node": node, "nodes": [node], "preAuthKey": key, "preAuthKeys": [key]})
    world.headscale.faults.add(faults.answer(200, answer), path=path)
    with pytest.raises(ApiError) as raised:
        world.cleanup().run()
    told = [*traceback.format_exception(raised.value), *map(repr, events)]
    assert [text for text in told if key["key"] in text] == []


# --- 6 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("order", ["earlier-first", "later-first"])
def test_never_6_two_pods_never_fight_over_one_name(make_world: MakeWorld, version: str, order: str) -> None:
    world = make_world(version)
    nodes = [world.headscale.add_node(NAME, user=USER) for _ in range(2)]
    earlier, later = (world.watch(Interface(*node.addresses)) for node in nodes)
    pair = (earlier, later) if order == "earlier-first" else (later, earlier)
    world.run_together(*pair, seconds=LONG_S)
    settled = len(world.cloudflare.writes)
    assert settled <= 2
    world.run_together(*pair, seconds=2 * LONG_S)
    assert len(world.cloudflare.writes) == settled
    assert world.records() == {f"A {nodes[1].address}": MARK}
    assert (earlier.status.view.superseded_by, later.status.view.superseded_by) == (str(nodes[1].id), None)


def test_never_6_a_pod_whose_node_is_gone_leaves_the_name_to_its_successor(world: World, tmp_path: Path) -> None:
    earlier_node = world.headscale.add_node(NAME, user=USER)
    # Its volume is not the later pod's.
    earlier = world.watch(Interface(*earlier_node.addresses), AUTHKEY_OUTPUT_PATH=str(tmp_path / "earlier"))
    world.run(earlier, LONG_S)
    world.cleanup().run()
    node = join(world)
    later = world.watch(Interface(*node.addresses))
    world.run_together(earlier, later, seconds=2 * LONG_S)
    assert world.records() == {f"A {node.address}": MARK}
    # The first pod's, its deletion by `cleanup`, and the second pod's.
    assert [write.method for write in world.cloudflare.writes] == ["POST", "DELETE", "POST"]
    assert earlier.status.view.superseded_by == str(node.id)


# --- 7 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="as-usual"),
        pytest.param({"DNS_IPV6": "true"}, id="both-families"),
        pytest.param({"DNS_TTL": "1"}, id="automatic-ttl"),
        pytest.param({"DNS_OWNER": "staging/eu"}, id="another-owner"),
        pytest.param({"CLOUDFLARE_ZONE_ID": ""}, id="zone-looked-up"),
    ],
)
def test_never_7_a_second_run_sends_no_write(world: World, variables: dict[str, str]) -> None:
    node = world.headscale.add_node(NAME, user=USER)
    watch_for(world, LONG_S, node=node, **variables)
    assert len(world.cloudflare.writes) == 1
    for _ in range(3):
        watch_for(world, LONG_S, node=node, **variables)
    assert len(world.cloudflare.writes) == 1


def test_never_7_an_address_in_another_spelling_is_no_difference(world: World) -> None:
    node = world.headscale.add_node(NAME, user=USER)
    watch_for(world, LONG_S, node=node, DNS_IPV6="true")
    [answer] = [exchange.response for exchange in world.cloudflare.requests if not exchange.is_write][-1:]
    spelt = answer.replace(b"fd7a:115c:a1e0::1", b"FD7A:115C:A1E0:0:0:0:0:1")
    assert spelt != answer
    world.cloudflare.faults.add(faults.answer(200, spelt), method="GET", times=None)
    watch_for(world, LONG_S, node=node, DNS_IPV6="true")
    assert len(world.cloudflare.writes) == 1


@pytest.mark.parametrize("dns_cleanup", ["delete", "keep"])
def test_never_7_a_second_cleanup_sends_no_write_to_cloudflare(world: World, dns_cleanup: str) -> None:
    leave_behind(world)
    world.add_record("100.64.0.98", comment=MARK)
    world.add_record("by hand", type_="TXT")
    world.cleanup(DNS_CLEANUP=dns_cleanup).run()
    assert len(world.cloudflare.writes) == 1
    world.cleanup(DNS_CLEANUP=dns_cleanup).run()
    assert len(world.cloudflare.writes) == 1


# --- 8 ------------------------------------------------------------------------------------------------

DOWN = [
    pytest.param(faults.refuse(), id="unreachable"),
    pytest.param(faults.hang(), id="silent"),
    pytest.param(faults.drop(), id="hanging-up"),
    pytest.param(faults.html(502), id="502"),
    pytest.param(faults.answer(503, headers={"Retry-After": "Fri, 31 Dec 9999 23:59:59 -0100"}), id="503-for-ever"),
    pytest.param(faults.too_many_requests(900), id="throttled-for-long"),
    pytest.param(faults.too_many_requests(), id="throttled"),
    pytest.param(faults.html(200), id="a-web-page"),
    pytest.param(faults.html(404), id="404"),
    pytest.param(faults.answer(401, "Unauthorized", content_type="text/plain"), id="401"),
    pytest.param(refusal(403, 9109), id="403"),
    pytest.param(refusal(400, 81053), id="conflict"),
    pytest.param(faults.garbage(), id="garbage"),
    pytest.param(faults.answer(200, b"[" * 100_000), id="nested-without-end"),
    pytest.param(faults.answer(200, b"\xff\xfe"), id="no-text"),
]


@pytest.mark.parametrize("fault", DOWN)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_never_8_a_cloudflare_that_is_down_never_keeps_a_pod_from_starting(
    world: World, fault: Fault, method: str
) -> None:
    leave_behind(world)
    world.cloudflare.faults.add(fault, method=method, times=None)
    world.cleanup().run()
    assert world.headscale.nodes == []
    assert world.key == world.headscale.keys[-1].key


@pytest.mark.parametrize("fault", DOWN)
@pytest.mark.parametrize("upstream", ["headscale", "cloudflare"])
def test_never_8_nothing_that_is_down_makes_dns_watch_exit(world: World, fault: Fault, upstream: str) -> None:
    node = world.headscale.add_node(NAME, user=USER)
    watch = world.watch(Interface(*node.addresses), SELF_HEAL="true")
    world.run(watch, LONG_S)
    [record] = world.cloudflare.records(world.zone_id)
    world.cloudflare.change_record(record.id, ttl=300)
    down = world.headscale if upstream == "headscale" else world.cloudflare
    down.faults.add(fault, times=None)
    world.run(watch, LONG_S)
    down.faults.clear()
    # However long it was asked to stay away.
    world.run(watch, 2 * LONG_S)
    assert watch.status.view.is_registered
    assert upstream == "cloudflare" or watch.status.view.in_sync


@pytest.mark.parametrize("fault", DOWN)
def test_never_8_a_headscale_that_is_down_uses_up_no_look(world: World, fault: Fault) -> None:
    """Before the node is there, only what Headscale answers counts."""
    interface = Interface(None)
    watch = world.watch(interface, MAX_RETRIES="3")
    watch.run_pass()
    world.headscale.faults.add(fault, times=None)
    world.run(watch, LONG_S)
    world.headscale.faults.clear()
    watch.run_pass()
    interface.show(*world.headscale.add_node(NAME, user=USER).addresses)
    world.run(watch, LONG_S)
    assert watch.status.view.in_sync


@pytest.mark.parametrize("name", ["HEADSCALE_API_KEY", "CLOUDFLARE_API_TOKEN"])
def test_never_8_a_secret_that_was_replaced_and_vanished_ends_nothing(
    world: World, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    secret = tmp_path_factory.mktemp("secret") / "value"
    secret.write_text(world.environment[name])
    node = world.headscale.add_node(NAME, user=USER)
    watch = world.watch(Interface(*node.addresses), **{name: "", f"{name}_FILE": str(secret)})
    world.run(watch, LONG_S)
    secret.unlink()
    renewed = world.cloudflare.set_token() if name.startswith("CLOUDFLARE") else world.headscale.rotate_api_key()
    world.run(watch, LONG_S)
    secret.write_text(renewed)
    world.run(watch, LONG_S)
    assert watch.status.view.is_registered
    assert watch.status.view.in_sync
