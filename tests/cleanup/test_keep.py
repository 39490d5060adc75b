"""NODE_POLICY=keep: which node stays, when none does, and that a doubt deletes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from lifecycle.cleanup.plan import NothingKept, choose_kept
from lifecycle.cleanup.run import Cleanup
from lifecycle.domain.errors import ConfigError, ResponseError, TransientError
from lifecycle.domain.model import Node, RegisterMethod, User
from tests.builders import ANN, EXPIRED, MARK, NAME, NODE_IDENTITY, NOW, a_node
from tests.in_cluster import NAMESPACE, STATE_SECRET, ClusterWorld, cluster_world, may_read
from tests.simulators import faults
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import Fault
from tests.simulators.tailnet import Node as SimulatedNode
from tests.world import USER, Interface, named, names

Events = list[Any]


# --- The decision, by values --------------------------------------------------------------------------


def kept(*nodes: Node, device_id: str | None = "3", version: str = "0.29.2", **state: str) -> str:
    """The id of the node that stays; else why none does."""
    values = {key: value.encode() for key, value in state.items()}
    if device_id is not None:
        values["device_id"] = device_id.encode()
    found = choose_kept(nodes, identity=NODE_IDENTITY, state=values, version=version, now=NOW)
    return found.id if isinstance(found, Node) else found.reason


def test_the_node_that_the_secret_names_stays() -> None:
    nodes = [a_node(1), a_node(3, online=False), a_node(12)]
    assert {kept(*order) for order in permutations(nodes)} == {"3"}


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        pytest.param(a_node(4), "no node 3 any more", id="gone"),
        pytest.param(a_node(30), "no node 3 any more", id="an-id-that-begins-alike"),
        pytest.param(a_node(3, expires_at=EXPIRED), "has expired", id="expired"),
        pytest.param(a_node(3, expires_at=NOW), "has expired", id="expires-now"),
        pytest.param(a_node(3, hostname="wiki.example.com"), "is not ours", id="the-id-of-another-service-by-now"),
        pytest.param(a_node(3, user=ANN), "is not ours", id="given-to-another-user"),
        pytest.param(a_node(3, registered_by=RegisterMethod.CLI), "is not ours", id="a-person's-machine"),
    ],
)
def test_a_node_that_cannot_come_back_does_not_stay(node: Node, reason: str) -> None:
    assert reason in kept(a_node(1), node, a_node(9))


@pytest.mark.parametrize(
    ("device_id", "state"),
    [
        pytest.param(None, {}, id="empty-secret"),
        pytest.param("", {}, id="cleared"),
        pytest.param(None, {"device_ips": '["100.64.0.3"]', "device_fqdn": "x.", "_machinekey": "x"}, id="device-ips"),
    ],
)
def test_nothing_but_the_id_names_a_node(device_id: str | None, state: dict[str, str]) -> None:
    """The addresses in the Secret may be those of the pod before."""
    assert "device_id" in kept(a_node(3), device_id=device_id, **state)


@pytest.mark.parametrize("device_id", ["nTxyz11CNTRL", "3 ", "03", "+3", "٣", "\xff"])
def test_an_id_is_compared_whole(device_id: str) -> None:
    assert "no node" in kept(a_node(3), device_id=device_id)


def test_no_secret_is_no_node() -> None:
    found = choose_kept([a_node(3)], identity=NODE_IDENTITY, state=None, version="0.29.2", now=NOW)
    assert isinstance(found, NothingKept)


@pytest.mark.parametrize(
    ("version", "key_user", "stays"),
    [
        pytest.param("0.28.0", None, False, id="0.28-key-of-no-user"),
        pytest.param("0.28.1", None, False, id="0.28.1-key-of-no-user"),
        pytest.param("0.28 or 0.29", None, False, id="perhaps-0.28"),
        pytest.param("0.29.2", None, True, id="0.29-key-of-no-user"),
        pytest.param("0.30.0", None, True, id="0.30-key-of-no-user"),
        pytest.param("0.28.0", User("1", "svc"), True, id="0.28-key-of-our-user"),
        pytest.param("0.29.2", User("1", "svc"), True, id="0.29-key-of-our-user"),
    ],
)
def test_a_tagged_node_comes_back_except_on_0_28_without_a_user(
    version: str, key_user: User | None, stays: bool
) -> None:
    """Seen on real servers: 0.28 lets a node with a key of tags alone never in again."""
    node = a_node(3, user=None, tags=["tag:svc"], key_user=key_user)
    assert (kept(node, version=version) == "3") is stays


# --- The command --------------------------------------------------------------------------------------


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ClusterWorld]:
    with cluster_world(monkeypatch, tmp_path) as world:
        yield world


def a_kept_world(world: ClusterWorld) -> SimulatedNode:
    """A service whose node, record and state are there, and one older node."""
    world.headscale.add_node(NAME, user=USER, online=False)
    node = world.headscale.add_node(NAME, user=USER, online=False)
    world.add_record(node.address, ttl=60, comment=MARK)
    world.kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": str(node.id), "_machinekey": "privkey:00"})
    return node


def note(world: ClusterWorld) -> dict[str, Any]:
    """What stands beside the key."""
    text: dict[str, Any] = json.loads(world.key_file.with_name("authkey.id").read_text())
    return text


def cleanup(world: ClusterWorld, **variables: str) -> Cleanup:
    world.environment |= {"NODE_POLICY": "keep", "TS_KUBE_SECRET": STATE_SECRET} | variables
    return world.cleanup()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("access", ["exec", "api"])
def test_the_kept_node_and_its_record_stay_and_the_rest_goes(
    version: str, access: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, events: Events
) -> None:
    with cluster_world(monkeypatch, tmp_path, version) as world:
        node = a_kept_world(world)
        by_api = {"HEADSCALE_URL": "http://headscale", "HEADSCALE_API_KEY": world.headscale.api_key}
        cleanup(world, **(by_api if access == "api" else {})).run()
        assert [left.id for left in world.headscale.nodes] == [node.id]
        assert world.records() == {f"A {node.address}": MARK}
        assert world.cloudflare.writes == []
        assert (note(world)["kept_node_id"], note(world)["pre_auth_key_id"]) == (str(node.id), "3")
        # The key is there all the same: for the day on which Headscale forgets the node.
        assert world.headscale.register(key=world.key, hostname=NAME).name == NAME
    [told] = named(events, "node.kept")
    assert told["node_id"] == str(node.id)


@pytest.mark.parametrize("interface", [True, False], ids=["with-an-interface", "without"])
def test_the_watch_finds_the_kept_node_and_has_nothing_to_write(interface: bool, world: ClusterWorld) -> None:
    node = a_kept_world(world)
    cleanup(world).run()
    world.headscale.connect(node.id)
    watch = world.watch(Interface(*node.addresses) if interface else Interface(None))
    world.run(watch, 200)
    assert (watch.status.view.node_id, watch.status.view.in_sync) == (str(node.id), True)
    assert world.cloudflare.writes == []


def test_a_stale_duplicate_of_the_kept_nodes_record_goes(world: ClusterWorld) -> None:
    """DNS_CLEANUP=keep leaves one record: the right one is left already."""
    node = a_kept_world(world)
    world.add_record("100.64.99.1", ttl=60, comment=MARK)
    cleanup(world, DNS_CLEANUP="keep").run()
    assert world.records() == {f"A {node.address}": MARK}


def test_a_first_start_has_nothing_to_keep(world: ClusterWorld, events: Events) -> None:
    world.headscale.add_node(NAME, user=USER, online=False)
    cleanup(world).run()
    assert world.hostnames == []
    assert note(world)["kept_node_id"] is None
    [told] = named(events, "node.not_kept")
    assert (told["secret"], "no such Secret" in told["reason"]) == (STATE_SECRET, True)


def test_replace_never_asks_for_the_secret(world: ClusterWorld) -> None:
    a_kept_world(world)
    world.cleanup(TS_KUBE_SECRET=STATE_SECRET).run()
    assert world.hostnames == []
    assert not [exchange.path for exchange in world.kubernetes.requests if "/secrets/" in exchange.path]


def test_keep_without_a_secrets_name_is_refused(world: ClusterWorld) -> None:
    with pytest.raises(ConfigError, match="TS_KUBE_SECRET"):
        world.cleanup(NODE_POLICY="keep")


def test_only_the_one_secret_is_read(world: ClusterWorld) -> None:
    a_kept_world(world)
    cleanup(world).run()
    read = {exchange.path for exchange in world.kubernetes.requests if "/secrets" in exchange.path}
    assert read == {f"/api/v1/namespaces/{NAMESPACE}/secrets/{STATE_SECRET}"}


# --- Could not find out -------------------------------------------------------------------------------

TROUBLE = [
    pytest.param(faults.html(503), id="503"),
    pytest.param(faults.html(404), id="a-404-of-somebody-else"),
    pytest.param(faults.drop(), id="connection-lost"),
    pytest.param(faults.hang(), id="hangs"),
    pytest.param(faults.answer(403, '{"kind": "Status", "message": "forbidden"}'), id="no-right"),
    pytest.param(faults.answer(401, "{}"), id="token-refused"),
    pytest.param(faults.too_many_requests(1), id="throttled"),
]


@pytest.mark.parametrize("fault", TROUBLE)
def test_a_secret_that_cannot_be_read_for_a_while_is_waited_for(
    fault: Fault, world: ClusterWorld, events: Events
) -> None:
    node = a_kept_world(world)
    world.kubernetes_timeout_s = 0.2
    world.kubernetes.faults.add(fault, path="/secrets/", times=4)
    cleanup(world).run()
    assert [left.id for left in world.headscale.nodes] == [node.id]
    assert len(named(events, "retry.scheduled")) == 4


@pytest.mark.parametrize("fault", TROUBLE)
def test_a_secret_that_cannot_be_read_deletes_nothing(fault: Fault, world: ClusterWorld) -> None:
    a_kept_world(world)
    world.kubernetes_timeout_s = 0.2
    world.kubernetes.faults.add(fault, path="/secrets/", times=None)
    with pytest.raises(TransientError):
        cleanup(world).run()
    assert world.clock.elapsed_s > 60
    assert (world.headscale.writes, world.cloudflare.writes, world.key) == ([], [], None)


def test_a_right_that_is_missing_is_named_with_its_rule(world: ClusterWorld) -> None:
    a_kept_world(world)
    world.kubernetes.allow_nothing()
    by_api = {"HEADSCALE_URL": "http://headscale", "HEADSCALE_API_KEY": world.headscale.api_key}
    with pytest.raises(TransientError) as raised:
        cleanup(world, **by_api).run()
    assert f"resourceNames: [{STATE_SECRET}]" in str(raised.value)
    world.kubernetes.allow(NAMESPACE, may_read(STATE_SECRET))
    cleanup(world, **by_api).run()
    assert len(world.hostnames) == 1


def test_a_right_that_is_given_late_is_waited_for(world: ClusterWorld) -> None:
    """The RoleBinding is often applied a moment after the pod."""
    a_kept_world(world)
    world.kubernetes.allow_nothing()
    by_api = {"HEADSCALE_URL": "http://headscale", "HEADSCALE_API_KEY": world.headscale.api_key}
    world.clock.at(20, lambda: world.kubernetes.allow(NAMESPACE, may_read(STATE_SECRET)))
    cleanup(world, **by_api).run()
    assert len(world.hostnames) == 1


@pytest.mark.parametrize("body", ["{}", "[]", "null", '{"data": {}}', '{"kind": "Secret"}'])
def test_garbage_in_the_secrets_place_deletes_nothing(body: str, world: ClusterWorld) -> None:
    """What is not there reads like a first start: only a Secret may say so."""
    a_kept_world(world)
    world.kubernetes.faults.add(faults.answer(200, body), path="/secrets/")
    with pytest.raises(ResponseError, match="not what Kubernetes says"):
        cleanup(world).run()
    assert (world.headscale.writes, world.cloudflare.writes, world.key) == ([], [], None)


def test_a_kept_node_that_goes_in_between_is_simply_gone(world: ClusterWorld, events: Events) -> None:
    """Somebody deletes it while we run: the fresh key brings a new one."""
    node = a_kept_world(world)
    command = cleanup(world)
    plan = command.plan(command.read())
    assert plan.kept is not None
    world.headscale.delete_node(node.id)
    command.run()
    assert world.headscale.register(key=world.key, hostname=NAME).id != node.id
    assert "node.not_kept" in names(events)
