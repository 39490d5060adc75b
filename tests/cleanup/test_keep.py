"""Tests of `cleanup` with NODE_POLICY=keep.

Tailscale stores the id of its node in a Secret, the state Secret. `cleanup` does not delete this node.
If the Secret cannot be read, `cleanup` deletes nothing.
"""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from lifecycle.cleanup.machine_key import public_machine_key
from lifecycle.cleanup.observe import saved_state
from lifecycle.cleanup.plan import Observation, find_kept_node
from lifecycle.cleanup.run import Cleanup
from lifecycle.domain.errors import ResponseError, TransientError
from lifecycle.domain.model import Node, RegisterMethod, User
from tests.builders import ANN, EXPIRED, NAME, NODE_OWNERSHIP, NOW, OUR_COMMENT, a_node
from tests.in_cluster import NAMESPACE, STATE_SECRET, ClusterWorld, may_read
from tests.simulators import faults
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import Fault
from tests.simulators.messages import Handler, Request, Response
from tests.simulators.tailnet import Node as SimulatedNode
from tests.simulators.upstream import Upstream
from tests.world import USER, Interface, events_named

Events = list[Any]


# --- The decision --------------------------------------------------------------------------


def kept_id_or_reason(*nodes: Node, device_id: str | None = "3", version: str = "0.29.2", **state: str) -> str:
    """Return the id of the kept node, or the reason why no node is kept. `state` is the content of the Secret."""
    values = {key: value.encode() for key, value in state.items()}
    if device_id is not None:
        values["device_id"] = device_id.encode()
    observation = Observation(version, NODE_OWNERSHIP, nodes, records=(), state=saved_state(values))
    kept = find_kept_node(observation, now=NOW)
    return kept.id if isinstance(kept, Node) else kept


def test_node_that_the_secret_names_is_kept() -> None:
    nodes = [a_node(1), a_node(3, online=False), a_node(12)]
    assert {kept_id_or_reason(*order) for order in permutations(nodes)} == {"3"}


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        pytest.param(a_node(4), "no node 3", id="gone"),
        pytest.param(a_node(30), "no node 3", id="longer id"),
        pytest.param(a_node(3, expires_at=EXPIRED), "has expired", id="expired"),
        pytest.param(a_node(3, expires_at=NOW), "has expired", id="expires now"),
        pytest.param(a_node(3, hostname="wiki.example.com"), "hostname wiki.example.com", id="another hostname"),
        pytest.param(a_node(3, user=ANN), "user svc", id="moved to another user"),
        pytest.param(a_node(3, registered_by=RegisterMethod.CLI), "user svc", id="registered by CLI"),
    ],
)
def test_node_that_is_foreign_or_expired_is_not_kept(node: Node, reason: str) -> None:
    assert reason in kept_id_or_reason(a_node(1), node, a_node(9))


@pytest.mark.parametrize(
    ("device_id", "state"),
    [
        pytest.param(None, {}, id="empty secret"),
        pytest.param("", {}, id="cleared"),
        pytest.param(None, {"device_ips": '["100.64.0.3"]', "device_fqdn": "x.", "_machinekey": "x"}, id="device ips"),
    ],
)
def test_no_node_is_kept_without_its_id(device_id: str | None, state: dict[str, str]) -> None:
    """The addresses in the Secret can be those of an earlier pod."""
    assert "device_id" in kept_id_or_reason(a_node(3), device_id=device_id, **state)


@pytest.mark.parametrize("device_id", ["nTxyz11CNTRL", "3 ", "03", "+3", "٣", "\xff"])
def test_id_is_compared_exactly(device_id: str) -> None:
    assert "no node" in kept_id_or_reason(a_node(3), device_id=device_id)


def test_no_node_is_kept_without_the_secret() -> None:
    observation = Observation("0.29.2", NODE_OWNERSHIP, (a_node(3),), records=(), state=None)
    assert isinstance(find_kept_node(observation, now=NOW), str)


@pytest.mark.parametrize(
    ("version", "key_user", "is_kept"),
    [
        pytest.param("0.28.0", None, False, id="0.28, key without a user"),
        pytest.param("0.28.1", None, False, id="0.28.1, key without a user"),
        pytest.param("0.28 or 0.29", None, False, id="possibly 0.28, key without a user"),
        pytest.param("0.27.1", None, True, id="0.27, key without a user"),
        pytest.param("0.29.2", None, True, id="0.29, key without a user"),
        pytest.param("0.30.0", None, True, id="0.30, key without a user"),
        pytest.param("0.28.0", User("1", "svc"), True, id="0.28, key of our user"),
        pytest.param("0.29.2", User("1", "svc"), True, id="0.29, key of our user"),
    ],
)
def test_tagged_node_from_a_key_without_a_user_is_not_kept_on_0_28(
    version: str, key_user: User | None, is_kept: bool
) -> None:
    """Headscale 0.28 does not let a node log in again if its key has tags and no user."""
    node = a_node(3, user=None, tags=["tag:svc"], key_user=key_user)
    assert (kept_id_or_reason(node, version=version) == "3") is is_kept


# --- The command --------------------------------------------------------------------------------------


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClusterWorld:
    """Simulators of Headscale in a pod, Cloudflare and Kubernetes, and a simulated clock."""
    return ClusterWorld(monkeypatch, tmp_path, getattr(request, "param", "0.28.0"))


def add_kept_node(world: ClusterWorld) -> SimulatedNode:
    """Add two nodes of the workload. Return the second: its id is in the state Secret, and a record has its address."""
    world.headscale.add_node(NAME, user=USER, online=False)
    node = world.headscale.add_node(NAME, user=USER, online=False)
    world.add_record(node.address, ttl=60, comment=OUR_COMMENT)
    world.kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": str(node.id), "_machinekey": "privkey:00"})
    return node


def metadata(world: ClusterWorld) -> dict[str, Any]:
    """Return the content of authkey.id, the metadata of the key file."""
    values: dict[str, Any] = json.loads(world.key_file.with_name("authkey.id").read_text())
    return values


def cleanup(world: ClusterWorld, access: str = "exec", **variables: str) -> Cleanup:
    """Return `cleanup` with NODE_POLICY=keep. It reaches Headscale by the REST API or by commands in its pod."""
    if access == "api":
        variables |= {"HEADSCALE_URL": "http://headscale", "HEADSCALE_API_KEY": world.headscale.api_key}
    world.environment |= {"NODE_POLICY": "keep", "TS_KUBE_SECRET": STATE_SECRET} | variables
    return world.cleanup()


@pytest.mark.parametrize("world", VERSIONS, indirect=True)
@pytest.mark.parametrize("access", ["exec", "api"])
def test_kept_node_and_its_record_stay_and_others_are_deleted(access: str, world: ClusterWorld, events: Events) -> None:
    kept = add_kept_node(world)
    cleanup(world, access).run()
    assert [node.id for node in world.headscale.nodes] == [kept.id]
    assert world.records() == {f"A {kept.address}": OUR_COMMENT}
    assert world.cloudflare.writes == []
    new_key = world.headscale.keys[-1]
    assert (metadata(world)["node_id"], metadata(world)["pre_auth_key_id"]) == (str(kept.id), str(new_key.id))
    # The kept node does not need the new key. If it is deleted in Headscale, its pod registers with the new key.
    assert world.headscale.register(key=world.key, hostname=NAME).name == NAME
    [event] = events_named(events, "node.kept")
    assert event["node_id"] == str(kept.id)


@pytest.mark.parametrize("has_interface", [True, False], ids=["with-an-interface", "without-an-interface"])
def test_dns_watch_finds_the_kept_node_and_writes_nothing(has_interface: bool, world: ClusterWorld) -> None:
    node = add_kept_node(world)
    cleanup(world).run()
    world.headscale.connect(node.id)
    watch = world.watch(Interface(*node.addresses) if has_interface else Interface(None))
    world.run(watch, 200)
    assert (watch.status.node()["node_id"], watch.state.records.in_sync) == (str(node.id), True)
    assert world.cloudflare.writes == []


def test_stale_duplicate_of_the_kept_nodes_record_is_deleted(world: ClusterWorld) -> None:
    """DNS_CLEANUP=keep leaves no stale record beside a valid record."""
    node = add_kept_node(world)
    world.add_record("100.64.99.1", ttl=60, comment=OUR_COMMENT)
    cleanup(world, DNS_CLEANUP="keep").run()
    assert world.records() == {f"A {node.address}": OUR_COMMENT}


def test_record_of_the_kept_node_stays_if_a_later_list_lacks_the_node(world: ClusterWorld) -> None:
    """Headscale 0.27 can return incomplete lists. `cleanup` lists the nodes again before it deletes stale records."""
    node = add_kept_node(world)
    world.add_record("100.64.99.1", ttl=60, comment=OUR_COMMENT)
    incomplete = faults.answer(200, '{"nodes": []}')

    def handler(upstream: Upstream) -> Handler:
        def handle(request: Request) -> Response:
            if request.method == "POST" and request.path == "/api/v1/preauthkey":
                world.headscale.faults.add(incomplete, path="/api/v1/node")
            return upstream.handle(request)

        return handle

    world.route = handler
    cleanup(world, "api").run()
    assert world.records() == {f"A {node.address}": OUR_COMMENT}


def test_first_start_keeps_no_node(world: ClusterWorld, events: Events) -> None:
    world.headscale.add_node(NAME, user=USER, online=False)
    cleanup(world).run()
    assert world.hostnames == []
    assert metadata(world)["node_id"] is None
    [event] = events_named(events, "node.not_kept")
    assert event["secret"] == STATE_SECRET


def test_node_policy_replace_does_not_read_the_secret(world: ClusterWorld) -> None:
    add_kept_node(world)
    world.cleanup(NODE_POLICY="replace", TS_KUBE_SECRET=STATE_SECRET).run()
    assert world.hostnames == []
    assert not [exchange.path for exchange in world.kubernetes.requests if "/secrets/" in exchange.path]


def test_no_other_secret_is_read(world: ClusterWorld) -> None:
    add_kept_node(world)
    cleanup(world).run()
    paths = {exchange.path for exchange in world.kubernetes.requests if "/secrets" in exchange.path}
    assert paths == {f"/api/v1/namespaces/{NAMESPACE}/secrets/{STATE_SECRET}"}


# --- The Secret cannot be read -------------------------------------------------------------------------------

FAULTS = [
    pytest.param(faults.html(503), id="503"),
    pytest.param(faults.html(404), id="404 of a proxy"),
    pytest.param(faults.drop(), id="connection lost"),
    pytest.param(faults.hang(), id="hangs"),
    pytest.param(faults.answer(403, '{"kind": "Status", "message": "forbidden"}'), id="forbidden"),
    pytest.param(faults.answer(401, "{}"), id="token refused"),
    pytest.param(faults.too_many_requests(1), id="throttled"),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_temporary_failure_to_read_the_secret_is_retried(fault: Fault, world: ClusterWorld, events: Events) -> None:
    kept = add_kept_node(world)
    world.kubernetes.faults.add(fault, path="/secrets/", times=4)
    cleanup(world).run()
    assert [node.id for node in world.headscale.nodes] == [kept.id]
    assert len(events_named(events, "retry.scheduled")) == 4


@pytest.mark.parametrize("fault", FAULTS)
def test_lasting_failure_to_read_the_secret_deletes_nothing(fault: Fault, world: ClusterWorld) -> None:
    add_kept_node(world)
    world.kubernetes.faults.add(fault, path="/secrets/", times=None)
    with pytest.raises(TransientError):
        cleanup(world).run()
    assert world.clock.elapsed_s > 60
    assert (world.headscale.writes, world.cloudflare.writes, world.key) == ([], [], None)


def test_missing_permission_is_reported_with_the_rbac_rule_to_add(world: ClusterWorld) -> None:
    add_kept_node(world)
    world.kubernetes.allow_nothing()
    with pytest.raises(TransientError) as raised:
        cleanup(world, "api").run()
    assert f"resourceNames: [{STATE_SECRET}]" in str(raised.value)
    world.kubernetes.allow(NAMESPACE, may_read(STATE_SECRET))
    cleanup(world, "api").run()
    assert len(world.hostnames) == 1


@pytest.mark.parametrize("body", ["{}", "[]", "null", '{"data": {}}', '{"kind": "Secret"}'])
def test_malformed_secret_deletes_nothing(body: str, world: ClusterWorld) -> None:
    """A Secret without values is valid: no node is kept. A malformed Secret must not be treated like that."""
    add_kept_node(world)
    world.kubernetes.faults.add(faults.answer(200, body), path="/secrets/")
    with pytest.raises(ResponseError, match="Kubernetes"):
        cleanup(world).run()
    assert (world.headscale.writes, world.cloudflare.writes, world.key) == ([], [], None)


@pytest.mark.parametrize("access", ["api", "exec"])
@pytest.mark.parametrize("skew", [timedelta(days=400), timedelta(days=-400)], ids=["ahead", "behind"])
def test_expiry_is_compared_with_the_clock_of_headscale(world: ClusterWorld, skew: timedelta, access: str) -> None:
    node = add_kept_node(world)
    # With this program's clock, the result would be the opposite.
    world.headscale.expire_node(node.id, world.clock.true_now() + timedelta(days=30 if skew > timedelta() else -30))
    world.clock.skew = skew
    cleanup(world, access).run()
    assert (metadata(world)["node_id"] == str(node.id)) is (skew > timedelta())


# --- Node ids that Headscale assigns again ----------------------------------------------------------------------

# Source: RFC 7748, section 6.1.
PRIVATE_KEY = "privkey:5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
PUBLIC_KEY = "mkey:de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"


@pytest.mark.parametrize(
    ("private_key", "public_key"),
    [
        pytest.param(PRIVATE_KEY.encode(), PUBLIC_KEY, id="RFC 7748"),
        pytest.param(PRIVATE_KEY.encode() + b"\n", PUBLIC_KEY, id="line break"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"privkey:00", None, id="short"),
        pytest.param(PUBLIC_KEY.encode(), None, id="public"),
        pytest.param(b"\xff" * 72, None, id="not text"),
    ],
)
def test_public_machine_key_is_computed_from_the_private_key(private_key: bytes, public_key: str | None) -> None:
    assert public_machine_key(private_key) == public_key


@pytest.mark.parametrize(
    ("machine_key", "is_kept"),
    [
        pytest.param(PUBLIC_KEY, True, id="same machine"),
        pytest.param("mkey:" + "1" * 64, False, id="another machine"),
    ],
)
def test_node_of_another_machine_is_not_kept(machine_key: str, is_kept: bool) -> None:
    kept = kept_id_or_reason(a_node(3, machine_key=machine_key), _machinekey=PRIVATE_KEY)
    assert (kept == "3") is is_kept


def test_node_is_kept_if_the_machine_key_in_the_secret_is_invalid() -> None:
    assert kept_id_or_reason(a_node(3), _machinekey="privkey:00") == "3"


def test_metadata_contains_the_public_machine_key_and_no_output_the_private_key(
    world: ClusterWorld, events: Events
) -> None:
    node = world.headscale.add_node(NAME, user=USER, online=False, machine_key=PUBLIC_KEY)
    values = {"device_id": str(node.id), "_machinekey": PRIVATE_KEY}
    world.kubernetes.put_secret(NAMESPACE, STATE_SECRET, values)
    cleanup(world).run()
    assert (metadata(world)["node_id"], metadata(world)["machine_key"]) == (str(node.id), PUBLIC_KEY)
    output = json.dumps(events, default=str) + "".join(path.read_text() for path in world.key_file.parent.iterdir())
    assert PRIVATE_KEY.removeprefix("privkey:") not in output


def test_node_with_another_hostname_is_not_reported_as_another_machine() -> None:
    reason = kept_id_or_reason(a_node(3, hostname="wiki.example.com", machine_key=PUBLIC_KEY), _machinekey=PRIVATE_KEY)
    assert "wiki.example.com" in reason
    assert "machine" not in reason
