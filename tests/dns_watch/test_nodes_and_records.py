"""Test how `dns-watch` identifies its pod's node, and how it plans the changes of the records.

The tests call pure functions with tables of cases and with generated values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.dns_watch.nodes import Hints, choose_node, find_loss, successors
from lifecycle.dns_watch.records import (
    RecordPlan,
    desired_records,
    needs_preferred_nodes,
    plan_records,
    plan_records_at_name,
    published_preferred_node,
)
from lifecycle.dns_watch.state import KnownNode, Loss, LossKind, RecordsRead, Unregistered
from lifecycle.domain.changes import CreateRecord, DeleteRecord, RecordChange, UpdateRecord, name_of
from lifecycle.domain.foreign import advice_on_foreign_record
from lifecycle.domain.model import KeyMetadata, Node, Record, RecordSpec, RegisterMethod, User, describe
from lifecycle.domain.ownership import RecordOwnership
from tests.builders import (
    ALIAS,
    ANN,
    APEX,
    COMMENT_AT_FURTHER_NAMES,
    COMMENT_OF_OTHER_OWNER,
    EXPIRED,
    FURTHER_NAMES,
    NAME,
    NODE_OWNERSHIP,
    NOW,
    OUR_COMMENT,
    OUR_USER,
    RECORD_OWNERSHIP,
    SHARED_NAME,
    a_node,
    a_record,
    a_spec,
    addresses,
)
from tests.dns_watch.test_decide import CONFIG

V4, V6 = "100.64.0.1", "fd7a:115c:a1e0::1"
OUTSIDE = "203.0.113.7"

# Hints are what a pod knows about its node: the addresses of its VPN interface, and the key metadata, which names its
# pre-auth key and, with NODE_POLICY=keep, its node. Without hints, dns-watch waits for a grace period, and then chooses
# the only node that is online. The hints *_LATER are those after the grace period. In all hints, the pod's node is node
# 1, and its key is key 7, as in `a_node`.
make_hints = partial(Hints, NODE_OWNERSHIP, NOW)
BY_ADDRESS = make_hints(interface=addresses(V4, V6))
NO_ADDRESS = make_hints(interface=())
BY_KEY = make_hints(interface=None, metadata=KeyMetadata("7"))
BY_NODE_ID = make_hints(interface=None, metadata=KeyMetadata("7", node_id="1"))
NO_HINTS = make_hints(interface=None)
NO_ADDRESS_LATER, BY_KEY_LATER, NO_HINTS_LATER = (
    replace(hints, has_waited=True) for hints in (NO_ADDRESS, BY_KEY, NO_HINTS)
)


def known(node_id: str | None) -> KnownNode | None:
    """Return what dns-watch remembers about this pod's node; None if the node is not known."""
    return KnownNode(node_id, a_node(int(node_id)).machine_key) if node_id else None


def chosen_id(nodes: Iterable[Node], hints: Hints) -> str | None:
    """Return the id of the chosen node; None if no node is chosen."""
    node = choose_node(nodes, hints)
    return node.id if isinstance(node, Node) else None


class TestChooseNode:
    """Tests of how dns-watch identifies its pod's node: by the VPN address, the pre-auth key or the online state."""

    @pytest.mark.parametrize(
        ("nodes", "hints", "expected"),
        [
            pytest.param([a_node(1)], BY_ADDRESS, "1", id="both addresses of the interface"),
            pytest.param(
                [a_node(1)], make_hints(interface=addresses(V4)), "1", id="interface with the IPv4 address only"
            ),
            pytest.param(
                [a_node(1)], make_hints(interface=addresses(V6)), "1", id="interface with the IPv6 address only"
            ),
            pytest.param([a_node(1), a_node(2)], BY_ADDRESS, "1", id="a later node is not chosen"),
            pytest.param([a_node(1, online=False), a_node(2)], BY_ADDRESS, "1", id="an offline node with the address"),
            pytest.param(
                [a_node(1, key_id="3"), a_node(2)],
                replace(BY_ADDRESS, metadata=KeyMetadata("7")),
                "1",
                id="the address takes precedence over the key",
            ),
            pytest.param(
                [a_node(1), a_node(2)],
                replace(BY_ADDRESS, metadata=KeyMetadata(None, node_id="2"), has_waited=True),
                "1",
                id="the address takes precedence over the named node",
            ),
            pytest.param([a_node(1), a_node(2, hostname="x")], BY_ADDRESS, "1", id="another node has another hostname"),
            pytest.param([a_node(2)], BY_ADDRESS, None, id="no node with the address"),
            pytest.param(
                [a_node(2)],
                replace(BY_ADDRESS, metadata=KeyMetadata("7"), has_waited=True),
                None,
                id="no node with the address, but one with the key",
            ),
            pytest.param([a_node(1, user=ANN)], BY_ADDRESS, None, id="a foreign node with the address"),
            pytest.param([a_node(1, hostname="x")], BY_ADDRESS, None, id="another hostname with the address"),
            pytest.param([a_node(1, expires_at=EXPIRED)], BY_ADDRESS, None, id="an expired node with the address"),
            pytest.param([a_node(1, expires_at=NOW)], BY_ADDRESS, None, id="a node that expires now"),
            pytest.param(
                [a_node(1, addresses=[V4]), a_node(2, addresses=[V6])],
                BY_ADDRESS,
                None,
                id="two nodes with one address each",
            ),
            pytest.param([a_node(1)], NO_ADDRESS, None, id="interface without an address"),
            pytest.param([a_node(1)], NO_ADDRESS_LATER, None, id="no address after the grace period"),
            pytest.param([], BY_ADDRESS, None, id="empty list"),
        ],
    )
    def test_node_is_identified_by_the_addresses_of_the_interface(
        self, nodes: list[Node], hints: Hints, expected: str | None
    ) -> None:
        assert chosen_id(nodes, hints) == expected

    @pytest.mark.parametrize(
        ("nodes", "hints", "expected"),
        [
            pytest.param([a_node(1), a_node(2, key_id="8")], BY_KEY, "1", id="one node with our key"),
            pytest.param(
                [a_node(1, online=False), a_node(2, key_id="8")], BY_KEY, "1", id="an offline node with our key"
            ),
            pytest.param([a_node(1, key_id="8")], BY_KEY, None, id="a node with another key"),
            pytest.param([a_node(1, key_id="77")], BY_KEY, None, id="a key id that begins with ours"),
            pytest.param([a_node(1, key_id="8")], BY_KEY_LATER, None, id="another key after the grace period"),
            pytest.param(
                [a_node(1, key_created_at=NOW), a_node(2, key_created_at=NOW - timedelta(days=1))],
                make_hints(interface=None, metadata=KeyMetadata("7", key_created_at=NOW)),
                "1",
                id="a key with the same id but another time",
            ),
            pytest.param([a_node(1), a_node(2)], BY_KEY, None, id="two nodes with our key"),
            pytest.param([a_node(1), a_node(2, user=ANN)], BY_KEY, "1", id="a foreign node with our key"),
            pytest.param([a_node(1), a_node(2, expires_at=EXPIRED)], BY_KEY, "1", id="an expired node with our key"),
            pytest.param([a_node(1, key_id="3")], BY_NODE_ID, "1", id="the named node"),
            pytest.param([a_node(1, key_id="7")], BY_NODE_ID, "1", id="the named node with our key"),
            pytest.param(
                [a_node(1, key_id="3"), a_node(2, key_id="8")], BY_NODE_ID, "1", id="the named node and another node"
            ),
            pytest.param(
                [a_node(1, key_id="3"), a_node(2, key_id="7")],
                BY_NODE_ID,
                "2",
                id="our key takes precedence over the named node",
            ),
            pytest.param(
                [a_node(1, key_id="3", user=ANN)], BY_NODE_ID, None, id="the named node belongs to another user"
            ),
            pytest.param([a_node(12, key_id="3")], BY_NODE_ID, None, id="an id that begins with the named node's id"),
            pytest.param([], BY_KEY, None, id="empty list"),
        ],
    )
    def test_node_is_identified_by_the_key_metadata(
        self, nodes: list[Node], hints: Hints, expected: str | None
    ) -> None:
        """Without an interface, the key that cleanup wrote identifies the node."""
        assert chosen_id(nodes, hints) == expected

    @pytest.mark.parametrize(
        ("nodes", "hints", "expected"),
        [
            pytest.param([a_node(1)], NO_HINTS_LATER, "1", id="one node"),
            pytest.param([a_node(1, online=False), a_node(2)], NO_HINTS_LATER, "2", id="only the later is online"),
            pytest.param([a_node(1), a_node(2, online=False)], NO_HINTS_LATER, "1", id="only the earlier is online"),
            pytest.param([a_node(1), a_node(2, user=ANN)], NO_HINTS_LATER, "1", id="one of them is foreign"),
            pytest.param([a_node(1), a_node(2, expires_at=EXPIRED)], NO_HINTS_LATER, "1", id="one of them is expired"),
            pytest.param([a_node(1), a_node(2)], NO_HINTS_LATER, None, id="two nodes online"),
            pytest.param([a_node(1, online=False)], NO_HINTS_LATER, None, id="none online"),
            pytest.param([], NO_HINTS_LATER, None, id="empty list"),
            pytest.param([a_node(1)], NO_HINTS, None, id="during the grace period"),
        ],
    )
    def test_node_is_identified_by_its_online_state(
        self, nodes: list[Node], hints: Hints, expected: str | None
    ) -> None:
        """The online state counts only without hints, and after the grace period."""
        assert chosen_id(nodes, hints) == expected

    @pytest.mark.parametrize(
        ("nodes", "hints", "mentions"),
        [
            pytest.param([], BY_ADDRESS, ["no node with this pod's VPN address"], id="no node with the address"),
            pytest.param(
                [a_node(1, user=ANN)],
                BY_ADDRESS,
                ["node 1", "user ann", "TS_HOSTNAME", "HEADSCALE_USER"],
                id="foreign node with the address",
            ),
            pytest.param([a_node(1, hostname="x")], BY_ADDRESS, ["node 1", "hostname x"], id="another hostname"),
            pytest.param([], NO_ADDRESS, ["VPN_PREFIXES"], id="interface without an address"),
            pytest.param(
                [a_node(1, addresses=[V4]), a_node(2, addresses=[V6])],
                BY_ADDRESS,
                ["several", "1, 2"],
                id="two nodes with one address each",
            ),
            pytest.param([], BY_KEY, ["pre-auth key"], id="no node with the key"),
            pytest.param([a_node(2), a_node(10)], BY_KEY, ["2, 10"], id="two nodes with the key"),
            pytest.param([a_node(2), a_node(10)], NO_HINTS_LATER, ["2, 10"], id="two nodes online"),
            pytest.param([], NO_HINTS_LATER, ["no node of this workload is online"], id="none online"),
            pytest.param([], NO_HINTS, ["interface"], id="during the grace period"),
        ],
    )
    def test_the_reason_why_no_node_is_chosen(self, nodes: list[Node], hints: Hints, mentions: list[str]) -> None:
        choice = choose_node(nodes, hints)

        assert isinstance(choice, Unregistered)
        for mention in mentions:
            assert mention in choice.reason

    @pytest.mark.parametrize(
        ("node", "owner"),
        [
            pytest.param(a_node(), "user svc", id="user"),
            pytest.param(a_node(user=None, tags=["tag:b", "tag:a"]), "owner tag:a, tag:b", id="tags"),
            pytest.param(a_node(user=None), "owner none", id="neither"),
        ],
    )
    def test_describe_names_the_owner(self, node: Node, owner: str) -> None:
        assert describe(node) == f"hostname {NAME}, {owner}, registered by auth key"


OTHERS = [a_node(5, hostname="x")]
EXPIRED_NODE = a_node(1, expires_at=EXPIRED)
GONE, LOGGED_OUT = (Loss(kind, known("1")) for kind in (LossKind.GONE, LossKind.EXPIRED))
NEVER_FOUND = Loss(LossKind.NEVER_FOUND)


class TestFindLoss:
    """Tests of `find_loss`, which returns why Headscale has no usable node of this pod, or None if it may have one."""

    @pytest.mark.parametrize(
        ("nodes", "hints", "own_id", "is_gone", "loss"),
        [
            # Headscale reports that the node does not exist, and the list contains other nodes.
            pytest.param(OTHERS, NO_HINTS_LATER, "1", True, GONE, id="gone"),
            pytest.param(OTHERS, BY_ADDRESS, "1", True, GONE, id="gone, with an interface"),
            pytest.param(OTHERS, BY_KEY, "1", True, GONE, id="gone, with metadata"),
            pytest.param([a_node(2)], BY_ADDRESS, "1", True, GONE, id="gone, with a node of a later pod"),
            # The list is empty. Headscale also reports whether this pod's node exists.
            pytest.param([], BY_ADDRESS, "1", True, replace(GONE, is_list_empty=True), id="gone, with an empty list"),
            pytest.param([], BY_ADDRESS, "1", False, None, id="empty list, but the node exists"),
            pytest.param([], BY_KEY, "1", False, None, id="empty list, but the node exists, without an interface"),
            pytest.param([a_node(1, user=ANN)], BY_ADDRESS, "1", True, None, id="not found, but listed"),
            # The node exists and has to log in again.
            pytest.param([EXPIRED_NODE], BY_ADDRESS, None, False, LOGGED_OUT, id="expired, by its address"),
            pytest.param([EXPIRED_NODE], BY_KEY, None, False, LOGGED_OUT, id="expired, by metadata"),
            pytest.param([EXPIRED_NODE], NO_HINTS_LATER, "1", False, LOGGED_OUT, id="expired, by its id"),
            pytest.param(
                [*OTHERS, a_node(2, expires_at=EXPIRED, key_id="3")],
                BY_KEY,
                None,
                False,
                NEVER_FOUND,
                id="another node expired",
            ),
            # The list does not contain this pod's node, but Headscale does not report that the node does not exist.
            pytest.param(OTHERS, BY_ADDRESS, None, False, Loss(LossKind.STRANDED), id="address of no node"),
            pytest.param(OTHERS, BY_ADDRESS, "4", False, None, id="incomplete list, but the node exists"),
            pytest.param(OTHERS, BY_KEY, "4", False, None, id="incomplete list, without an interface"),
            pytest.param([a_node(1, user=ANN)], BY_ADDRESS, None, False, None, id="a foreign node with the address"),
            pytest.param([a_node(2)], BY_ADDRESS, None, False, None, id="address of no node, and another node of ours"),
            pytest.param([], BY_ADDRESS, None, False, None, id="address of no node, and an empty list"),
            # This pod's node was never found. It may exist if the workload has another node or the list is empty.
            pytest.param(OTHERS, BY_KEY, None, False, NEVER_FOUND, id="key not used yet"),
            pytest.param(OTHERS, NO_HINTS_LATER, None, False, NEVER_FOUND, id="no known node"),
            pytest.param(OTHERS, NO_ADDRESS, None, False, NEVER_FOUND, id="interface without an address"),
            pytest.param([a_node(2, key_id="8")], BY_KEY, None, False, None, id="key not used, and another pod's node"),
            pytest.param([], BY_KEY, None, False, None, id="key not used yet, and an empty list"),
        ],
    )
    def test_the_loss_of_the_node(
        self, nodes: list[Node], hints: Hints, own_id: str | None, is_gone: bool, loss: Loss | None
    ) -> None:
        hints = replace(hints, known=known(own_id))

        assert find_loss(nodes, hints, is_gone=is_gone) == loss

    def test_an_empty_list_is_no_loss_if_a_later_pod_had_the_name(self) -> None:
        """This pod's node was deleted. An empty list does not prove that the later pod's node was deleted, too."""
        loss = find_loss([], replace(BY_ADDRESS, known=known("1")), is_gone=True, is_superseded=True)

        assert loss is None


class TestStandingDown:
    """Tests of two simultaneous pods. The earlier pod stands down: it does not change the later pod's record."""

    @pytest.mark.parametrize(
        ("nodes", "expected"),
        [
            pytest.param([a_node(5), a_node(6), a_node(12)], ["6", "12"], id="later nodes, in numeric order"),
            pytest.param([a_node(6, online=False)], ["6"], id="offline node"),
            pytest.param([a_node(4), a_node(5)], [], id="earlier node and the node itself"),
            pytest.param([a_node(6, user=ANN), a_node(7, hostname="x")], [], id="foreign"),
            pytest.param([a_node(6, registered_by=RegisterMethod.OIDC)], [], id="registered by OIDC"),
            pytest.param([a_node(6, expires_at=EXPIRED)], [], id="expired node"),
            pytest.param([a_node(6, expires_at=NOW)], [], id="a node that expires now"),
        ],
    )
    def test_successors_are_the_valid_nodes_of_later_pods(self, nodes: list[Node], expected: list[str]) -> None:
        later = successors(nodes, node_id="5", node_ownership=NODE_OWNERSHIP, now=NOW)

        assert [node.id for node in later] == expected
        assert successors(nodes[::-1], node_id="5", node_ownership=NODE_OWNERSHIP, now=NOW) == later

    @pytest.mark.parametrize(
        ("records", "expected"),
        [
            pytest.param([a_record(content="100.64.0.2")], "2", id="A record of a successor"),
            pytest.param([a_record(type_="AAAA", content="fd7a:115c:a1e0::2")], "2", id="AAAA record of a successor"),
            pytest.param([a_record("a"), a_record("b", content="100.64.0.2")], "2", id="this pod and a successor"),
            pytest.param([a_record(content="100.64.0.3")], "3", id="the other successor"),
            pytest.param([a_record(content="100.64.0.4")], None, id="offline successor"),
            pytest.param([a_record(content=V4)], None, id="this pod"),
            pytest.param([], None, id="no record"),
            pytest.param([a_record(content="100.64.0.2", comment="")], None, id="no comment"),
            pytest.param([a_record(content="100.64.0.2", comment=COMMENT_OF_OTHER_OWNER)], None, id="another owner"),
            pytest.param([a_record(content="100.64.0.2", name=f"x.{NAME}")], None, id="another name"),
        ],
    )
    def test_successor_is_published_if_a_record_of_ours_has_its_address(
        self, records: list[Record], expected: str | None
    ) -> None:
        later = [a_node(2), a_node(3), a_node(4, online=False)]
        successor = published_preferred_node(records, later, a_node(1), CONFIG)

        assert (successor.id if successor else None) == expected
        assert published_preferred_node(records, [], a_node(1), CONFIG) is None

    def test_offline_successor_is_published_if_every_node_is_offline(self) -> None:
        """All nodes are offline after a restart of Headscale."""
        own, later = a_node(1, online=False), a_node(2, online=False)

        assert published_preferred_node([a_record(content="100.64.0.2")], [later], own, CONFIG) == later

    @pytest.mark.parametrize(
        ("records", "is_needed"),
        [
            pytest.param([], False, id="no record"),
            pytest.param([a_record()], False, id="our A record"),
            pytest.param([a_record(type_="AAAA", content=V6)], False, id="our AAAA record"),
            pytest.param([a_record(type_="AAAA", content="FD7A:115C:A1E0:0::1")], False, id="other spelling"),
            pytest.param([a_record(content="100.64.0.2")], True, id="our record with another address"),
            pytest.param(
                [a_record("a"), a_record("b", content="100.64.0.2")], True, id="two records, one with another address"
            ),
            pytest.param([a_record(content="100.64.0.2", comment="")], False, id="no comment"),
            pytest.param([a_record(content="100.64.0.2", comment="x")], False, id="foreign"),
        ],
    )
    def test_nodes_are_listed_only_if_a_successor_may_have_written_a_record(
        self, records: list[Record], is_needed: bool
    ) -> None:
        """Listing the nodes is expensive: the list of 1,000 nodes has 1 MB."""
        assert needs_preferred_nodes(records, a_node(1), CONFIG) is is_needed


def planned(
    *records: Record,
    specs: Sequence[RecordSpec] = (a_spec(),),
    ipv6: bool = False,
    apex: str | None = APEX,
    record_ownership: RecordOwnership = RECORD_OWNERSHIP,
    node: Node | None = None,
) -> RecordPlan:
    """Return the plan for these records and desired records (`specs`).

    Unless a node is given, the node has exactly the addresses of the desired records.
    """
    node = node or a_node(addresses=[str(spec.content) for spec in specs])
    config = replace(CONFIG, ipv6=ipv6)
    read = RecordsRead(records, apex)
    return plan_records_at_name(read, node, specs, record_ownership=record_ownership, config=config)


def changes_of(plan: RecordPlan) -> list[tuple[str, str]]:
    """Return each change as its action, and its record or type."""
    return [(type(change).__name__.removesuffix("Record").lower(), _target(change)) for change in plan.changes]


def _target(change: RecordChange) -> str:
    return change.spec.type if isinstance(change, CreateRecord) else change.record.id


class TestRecords:
    """Tests of the plan for the main name, which has one A record and, with DNS_IPV6, one AAAA record."""

    @pytest.mark.parametrize(
        ("record", "differing"),
        [
            pytest.param(a_record(content="100.64.0.2"), "content", id="address"),
            pytest.param(a_record(ttl_s=300), "ttl", id="TTL"),
            pytest.param(a_record(proxied=True), "proxied", id="proxied"),
            pytest.param(a_record(proxied=True, ttl_s=1), "ttl, proxied", id="proxied and its TTL"),
            pytest.param(a_record(content=OUTSIDE), "content", id="address outside the VPN"),
            pytest.param(a_record(comment="", ttl_s=1), "adopted", id="no comment"),
            pytest.param(a_record(comment="", content="100.64.0.9"), "adopted", id="stale address without a comment"),
        ],
    )
    def test_a_different_record_is_updated_in_place(self, record: Record, differing: str) -> None:
        [change] = planned(record).changes
        assert isinstance(change, UpdateRecord)
        assert (change.record, change.spec) == (record, a_spec())
        assert differing in change.reason

    @pytest.mark.parametrize(
        ("records", "expected"),
        [
            pytest.param([], [("create", "A")], id="no record"),
            pytest.param([a_record()], [], id="a correct record"),
            pytest.param([a_record("a"), a_record("b")], [("delete", "b")], id="two correct records"),
            pytest.param(
                [a_record("a", content="100.64.0.2"), a_record("b")],
                [("delete", "a")],
                id="a stale and a correct record",
            ),
            pytest.param(
                [a_record("a", content="100.64.0.2"), a_record("b", content="100.64.0.3")],
                [("update", "a"), ("delete", "b")],
                id="two stale records",
            ),
            pytest.param(
                [a_record("a", content="100.64.0.2", comment=""), a_record("b", content="100.64.0.3")],
                [("update", "b"), ("delete", "a")],
                id="a stale record without a comment",
            ),
            pytest.param(
                [a_record("a", comment=""), a_record("b")], [("delete", "a")], id="a correct record without a comment"
            ),
            pytest.param(
                [a_record("a", comment=""), a_record("b", content="100.64.0.2")],
                [("update", "a"), ("delete", "b")],
                id="a correct record without a comment and a stale record",
            ),
            pytest.param(
                [a_record("a", ttl_s=300), a_record("b"), a_record("c")],
                [("update", "a"), ("delete", "b"), ("delete", "c")],
                id="three records",
            ),
        ],
    )
    def test_the_name_gets_one_record(self, records: list[Record], expected: list[tuple[str, str]]) -> None:
        assert changes_of(planned(*records)) == expected

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(a_record(comment="managed by terraform"), id="A with another comment"),
            pytest.param(a_record(comment=COMMENT_OF_OTHER_OWNER), id="A of another owner"),
            pytest.param(a_record(comment=OUR_COMMENT.upper()), id="our comment in upper case"),
            pytest.param(a_record(comment="", content=OUTSIDE), id="A without a comment, outside the VPN"),
            pytest.param(a_record(type_="CNAME", content="x.example.com", comment=""), id="CNAME"),
            pytest.param(a_record(type_="CNAME", content="x.example.com"), id="CNAME with our comment"),
            pytest.param(a_record(type_="NS", content="ns.example.com", comment=""), id="NS below the zone"),
        ],
    )
    @pytest.mark.parametrize("ipv6", [True, False])
    @pytest.mark.parametrize("ours", [[], [a_record("0", content="100.64.0.2")]])
    def test_a_foreign_record_blocks_every_change(self, record: Record, ipv6: bool, ours: list[Record]) -> None:
        """A record of ours at the same name is not changed either."""
        assert planned(record, *ours, ipv6=ipv6) == RecordPlan(in_the_way=(record,))

    @pytest.mark.parametrize("ipv6", [False, True])
    def test_a_record_of_another_product_blocks_every_change(self, ipv6: bool) -> None:
        """Cloudflare allows no other record at the name of a Workers custom domain."""
        record = replace(a_record(type_="AAAA", content="100::", proxied=True, comment=""), read_only=True)
        assert planned(record, ipv6=ipv6) == RecordPlan(in_the_way=(record,))
        assert "Workers" in advice_on_foreign_record(record, record_ownership=RECORD_OWNERSHIP)

    @pytest.mark.parametrize("type_", ["MX", "TXT"])
    def test_a_read_only_mail_record_blocks_nothing(self, type_: str) -> None:
        """Cloudflare Email Routing locks its records, and allows address records beside them."""
        record = replace(a_record("x", type_=type_, content="x", comment=""), read_only=True)
        assert planned(record, a_record()) == RecordPlan()

    def test_every_foreign_record_is_named(self) -> None:
        foreign = [a_record("b", comment="x"), a_record("a", comment="x"), a_record("c", type_="CNAME", content="x")]

        assert [record.id for record in planned(*foreign).in_the_way] == ["a", "b", "c"]

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(
                a_record("x", type_=type_, content="x", comment=comment), id=f"{type_}-{comment or 'no comment'}"
            )
            for type_ in ("TXT", "MX", "CAA", "HTTPS", "SRV")
            for comment in ("", OUR_COMMENT, "x")
        ]
        + [
            pytest.param(a_record("x", name=f"x.{NAME}", comment="x"), id="record at another name"),
            pytest.param(a_record("x", name=f"x.{NAME}", type_="CNAME", content="x"), id="CNAME at another name"),
        ],
    )
    def test_other_records_are_ignored(self, record: Record) -> None:
        assert planned(record, a_record()) == RecordPlan()
        assert planned(record, a_record(), specs=(a_spec(), a_spec(V6)), ipv6=True).in_the_way == ()

    def test_name_server_records_at_the_apex_block_nothing(self) -> None:
        record_ownership = replace(RECORD_OWNERSHIP, name=APEX)
        record = a_record(name=APEX, type_="NS", content="ns.example.com", comment="")

        def blocking(apex: str | None) -> tuple[Record, ...]:
            return planned(record, apex=apex, record_ownership=record_ownership).in_the_way

        assert blocking(APEX) == ()
        assert blocking("com") == (record,)
        # If the apex is unknown, the NS record counts as foreign.
        assert blocking(None) == (record,)

    @pytest.mark.parametrize(
        ("records", "specs", "expected"),
        [
            pytest.param([], [V4, V6], [("create", "A"), ("create", "AAAA")], id="both missing"),
            pytest.param([a_record()], [V4, V6], [("create", "AAAA")], id="AAAA missing"),
            pytest.param([a_record(), a_record("6", type_="AAAA", content=V6)], [V4, V6], [], id="both correct"),
            pytest.param(
                [a_record(), a_record("6", type_="AAAA", content="FD7A:115C:A1E0:0:0::1")],
                [V4, V6],
                [],
                id="IPv6 address in another spelling",
            ),
            pytest.param(
                [a_record(), a_record("6", type_="AAAA", content="fd7a:115c:a1e0::2")],
                [V4, V6],
                [("update", "6")],
                id="IPv6 address changed",
            ),
            pytest.param(
                [a_record(), a_record("6", type_="AAAA", content=V6, comment="")],
                [V4, V6],
                [("update", "6")],
                id="AAAA without a comment",
            ),
            pytest.param(
                [a_record(), a_record("6", type_="AAAA", content=V6)],
                [V4],
                [("delete", "6")],
                id="node without an IPv6 address",
            ),
            pytest.param([a_record()], [V6], [("delete", "a"), ("create", "AAAA")], id="node without an IPv4 address"),
        ],
    )
    def test_changes_with_dns_ipv6(
        self, records: list[Record], specs: list[str], expected: list[tuple[str, str]]
    ) -> None:
        plan = planned(*records, specs=[a_spec(address) for address in specs], ipv6=True)

        assert changes_of(plan) == expected
        assert plan.in_the_way == ()

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            pytest.param(a_record("6", type_="AAAA", content=V6), [("delete", "6")], id="our comment"),
            pytest.param(
                a_record("6", type_="AAAA", content="2001:db8::1"), [("delete", "6")], id="our comment, outside the VPN"
            ),
            pytest.param(a_record("6", type_="AAAA", content=V6, comment=""), [], id="no comment"),
            pytest.param(
                a_record("6", type_="AAAA", content="2001:db8::1", comment=""), [], id="no comment, outside the VPN"
            ),
            pytest.param(a_record("6", type_="AAAA", content=V6, comment="x"), [], id="another comment"),
            pytest.param(
                a_record("6", type_="AAAA", content=V6, comment=COMMENT_OF_OTHER_OWNER), [], id="another owner"
            ),
        ],
    )
    def test_an_aaaa_record_is_deleted_without_dns_ipv6_if_it_has_our_comment(
        self, record: Record, expected: list[tuple[str, str]]
    ) -> None:
        plan = planned(a_record(), record)

        assert changes_of(plan) == expected
        assert plan.in_the_way == ()

    def test_a_type_whose_address_the_interface_lacks_is_not_changed(self) -> None:
        """The node has an address of this type that the interface does not have yet."""
        records = [a_record("a", content="100.64.0.9"), a_record("b", type_="AAAA", content=V6)]
        assert planned(*records, specs=[a_spec(V6)], ipv6=True, node=a_node(1)) == RecordPlan()

    @pytest.mark.parametrize("comment", ["x", COMMENT_OF_OTHER_OWNER])
    def test_a_foreign_aaaa_blocks_every_change_with_dns_ipv6(self, comment: str) -> None:
        record = a_record("6", type_="AAAA", content=V6, comment=comment)

        assert planned(a_record(), record, specs=(a_spec(), a_spec(V6)), ipv6=True) == RecordPlan(in_the_way=(record,))


# Generated nodes. They share ids, keys and addresses in many combinations.
USERS = st.one_of(st.none(), st.sampled_from([OUR_USER, OUR_USER, User(None, "svc"), ANN]))

SOME_V4 = [f"100.64.0.{number}" for number in range(1, 5)]
SOME_V6 = [f"fd7a:115c:a1e0::{number}" for number in range(1, 4)]
SOME_ADDRESSES = st.lists(st.sampled_from([*SOME_V4, *SOME_V6]), max_size=2, unique=True)

NODES = st.lists(
    st.builds(
        a_node,
        st.integers(1, 20),
        hostname=st.sampled_from([NAME, NAME, NAME, NAME.upper(), "other"]),
        user=USERS,
        key_user=USERS,
        key_id=st.sampled_from(["7", "8"]),
        tags=st.lists(st.sampled_from(["tag:svc", "tag:other"]), max_size=1),
        registered_by=st.sampled_from([RegisterMethod.AUTH_KEY] * 3 + [RegisterMethod.OIDC]),
        online=st.booleans(),
        expires_at=st.sampled_from([None, None, EXPIRED]),
        addresses=SOME_ADDRESSES,
    ),
    max_size=6,
    unique_by=lambda node: node.id,
)

HINTS = st.builds(
    make_hints,
    interface=st.one_of(st.none(), SOME_ADDRESSES.map(lambda texts: tuple(map(ip_address, texts)))),
    metadata=st.builds(
        KeyMetadata,
        pre_auth_key_id=st.sampled_from([None, "7", "9"]),
        node_id=st.one_of(st.none(), st.integers(1, 20).map(str)),
    ),
    has_waited=st.booleans(),
)


class TestChooseNodeProperties:
    """Properties that hold for all nodes and all hints."""

    @given(NODES, HINTS)
    def test_only_a_valid_node_of_ours_is_chosen(self, nodes: list[Node], hints: Hints) -> None:
        choice = choose_node(nodes, hints)

        if isinstance(choice, Node):
            assert choice in nodes
            assert NODE_OWNERSHIP.is_owned(choice)
            assert not choice.is_expired(NOW)
            assert hints.interface is None or set(hints.interface) & set(choice.addresses)
        else:
            assert choice.reason

    @given(NODES, HINTS, st.randoms(use_true_random=False))
    def test_the_age_of_nodes_does_not_matter(self, nodes: list[Node], hints: Hints, random: Random) -> None:
        """If the ids are shuffled among the nodes, the same machine is chosen."""
        ids = [node.id for node in nodes]
        shuffled = ids[:]
        random.shuffle(shuffled)
        renumbered = dict(zip(ids, shuffled, strict=True))
        named_id = hints.metadata_node.id if hints.metadata_node else None
        metadata = replace(hints.metadata, node_id=named_id and renumbered.get(named_id, named_id))

        before = choose_node(nodes, hints)
        after = choose_node(
            [replace(node, id=renumbered[node.id]) for node in nodes], replace(hints, metadata=metadata)
        )

        assert machine_key_of(after) == machine_key_of(before)

    @given(NODES, HINTS, st.randoms(use_true_random=False))
    def test_the_order_of_nodes_does_not_matter(self, nodes: list[Node], hints: Hints, random: Random) -> None:
        shuffled = nodes[:]
        random.shuffle(shuffled)

        assert choose_node(shuffled, hints) == choose_node(nodes, hints)

    @given(NODES, NODES, HINTS)
    def test_foreign_nodes_do_not_matter(self, nodes: list[Node], more: list[Node], hints: Hints) -> None:
        ids = {node.id for node in nodes}
        foreign = [node for node in more if not NODE_OWNERSHIP.is_owned(node) and node.id not in ids]

        alone = choose_node(nodes, hints)
        among_others = choose_node([*foreign, *nodes], hints)

        assert machine_key_of(among_others) == machine_key_of(alone)

    @given(NODES, HINTS, st.sampled_from([None, "1", "2", "3"]), st.booleans())
    def test_the_loss_agrees_with_the_list(
        self, nodes: list[Node], hints: Hints, own_id: str | None, is_gone: bool
    ) -> None:
        hints = replace(hints, known=known(own_id))
        loss = find_loss(nodes, hints, is_gone=is_gone)

        if loss is None:
            return
        assert nodes or loss.kind is LossKind.GONE
        assert loss.is_list_empty is not bool(nodes)
        listed = {node.id: node for node in nodes}
        if loss.kind is LossKind.GONE:
            assert is_gone
            assert hints.own_node is not None
            assert hints.own_node.id not in listed or not hints.own_node.is_same(listed[hints.own_node.id])
        if loss.kind is LossKind.EXPIRED:
            assert loss.node is not None
            node = listed[loss.node.id]
            assert loss.node.is_same(node)
            assert node.is_expired(NOW)
            assert NODE_OWNERSHIP.is_owned(node)
        if loss.kind is LossKind.STRANDED:
            assert not any(set(hints.interface or ()) & set(node.addresses) for node in nodes)


def machine_key_of(choice: Node | Unregistered) -> str | None:
    return choice.machine_key if isinstance(choice, Node) else None


RECORDS = st.lists(
    st.builds(
        a_record,
        st.sampled_from("abcdefgh"),
        name=st.sampled_from([NAME, NAME, NAME, NAME, f"x.{NAME}"]),
        type_=st.sampled_from(["A", "A", "A", "AAAA", "AAAA", "CNAME", "NS", "TXT"]),
        content=st.sampled_from([*SOME_V4, *SOME_V6, OUTSIDE, "2001:db8::1", "x"]),
        comment=st.sampled_from(
            [OUR_COMMENT, OUR_COMMENT, OUR_COMMENT, "", "", COMMENT_OF_OTHER_OWNER, "foreign", OUR_COMMENT.upper()]
        ),
        ttl_s=st.sampled_from([1, 60, 300]),
        proxied=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda record: record.id,
)

# Lists without a foreign record that blocks the name, so that changes are planned.
OWN_RECORDS = RECORDS.map(
    lambda records: [
        record for record in records if RECORD_OWNERSHIP.is_owned(record) or record.type == "TXT" or record.name != NAME
    ]
)

SPECS = st.sampled_from(
    [
        [a_spec(V4)],
        [a_spec("100.64.0.2", ttl_s=300)],
        [a_spec(V6)],
        [a_spec(V4), a_spec(V6)],
        [a_spec("fd7a:115c:a1e0::3"), a_spec("100.64.0.3")],
    ]
)


def specs_for(specs: list[RecordSpec], *, ipv6: bool) -> list[RecordSpec]:
    """Return the desired records, without AAAA records if `ipv6` is False."""
    return [spec for spec in specs if ipv6 or spec.type == "A"]


def applied(records: Iterable[Record], changes: Iterable[RecordChange]) -> list[Record]:
    """Return the records of the zone after the changes."""
    zone = {record.id: record for record in records}
    for number, change in enumerate(changes):
        match change:
            case CreateRecord(spec):
                zone[f"new{number}"] = record_from(f"new{number}", spec)
            case UpdateRecord(record, spec):
                zone[record.id] = record_from(record.id, spec)
            case DeleteRecord(record):
                del zone[record.id]
    return list(zone.values())


def record_from(record_id: str, spec: RecordSpec) -> Record:
    return Record(record_id, spec.name, spec.type, str(spec.content), spec.ttl_s, proxied=False, comment=spec.comment)


class TestRecordProperties:
    """Properties that hold for all records."""

    @given(OWN_RECORDS, SPECS, st.booleans())
    def test_a_name_resolves_during_the_changes(
        self, records: list[Record], specs: list[RecordSpec], ipv6: bool
    ) -> None:
        """Updates come before deletions, and a record is created only if there is none."""
        plan = planned(*records, specs=specs_for(specs, ipv6=ipv6), ipv6=ipv6)

        for type_ in ("A", "AAAA"):
            changes = [change for change in plan.changes if _type(change) == type_]
            kinds = [type(change) for change in changes]
            if CreateRecord in kinds:
                assert kinds == [CreateRecord]
                assert not any(RECORD_OWNERSHIP.is_owned(record) and record.type == type_ for record in records)
            assert UpdateRecord not in kinds[1:]

    @given(
        st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=12), st.sampled_from([None, *SOME_V4, "100.64.0.9"])
    )
    def test_the_record_is_that_of_the_latest_pod(self, passes: list[int], existing: str | None) -> None:
        """It has the address of the latest pod that ran a pass or had the record before. The order does not matter."""
        nodes = [a_node(number, online=True, addresses=[f"100.64.0.{number}"]) for number in (1, 2, 3)]
        records = [a_record(content=existing)] if existing else []
        latest = next((number for number in (1, 2, 3) if existing == f"100.64.0.{number}"), 0)
        for number in passes:
            own = nodes[number - 1]
            if not stands_down(own, nodes, records):
                spec = a_spec(str(own.addresses[0]))
                records = applied(records, planned(*records, specs=[spec]).changes)
            latest = max(latest, number)
            assert [record.address for record in records] == [ip_address(f"100.64.0.{latest}")]

        # When the later pods are gone, the first pod owns the name again.
        survivors = [node for node in nodes if node.id == "1"]
        assert not stands_down(nodes[0], survivors, records)


NAMED_RECORDS = st.lists(
    st.builds(
        a_record,
        st.sampled_from("abcdefgh"),
        name=st.sampled_from([NAME, NAME, ALIAS, ALIAS, APEX, SHARED_NAME, SHARED_NAME, "old.example.com"]),
        type_=st.sampled_from(["A", "A", "AAAA", "CNAME", "CNAME", "NS", "TXT"]),
        content=st.sampled_from([V4, SOME_V4[1], V6, OUTSIDE, "2001:db8::1", NAME, f"{NAME}."]),
        comment=st.sampled_from(
            [COMMENT_AT_FURTHER_NAMES] * 4
            + [
                OUR_COMMENT,
                OUR_COMMENT,
                "",
                OUR_COMMENT.upper(),
                f"{OUR_COMMENT} wiki.example.com",  # at further names of another workload
                COMMENT_OF_OTHER_OWNER,
                "foreign",
            ]
        ),
        ttl_s=st.sampled_from([60, 300]),
    ),
    max_size=8,
    unique_by=lambda record: record.id,
)
OUR_NODE = a_node(1)
OWNERSHIP_BY_NAME = {record_ownership.name: record_ownership for record_ownership in (RECORD_OWNERSHIP, *FURTHER_NAMES)}


def is_ours(record: Record) -> bool:
    """Return True if the workload owns the record, also if the record has a name that the workload no longer has."""
    if record.name in OWNERSHIP_BY_NAME:
        return OWNERSHIP_BY_NAME[record.name].is_owned(record)
    return record.comment == COMMENT_AT_FURTHER_NAMES and record.type in {"A", "AAAA", "CNAME"}


class TestNamesProperties:
    """Properties of the plan for all names of a workload."""

    def plan(self, records: Iterable[Record], *, ipv6: bool) -> RecordPlan:
        config = replace(CONFIG, further_name_ownerships=FURTHER_NAMES, ipv6=ipv6)
        return plan_records(
            RecordsRead(tuple(records), APEX), OUR_NODE, desired_records(OUR_NODE, None, config), config
        )

    @given(NAMED_RECORDS, st.booleans())
    def test_only_records_of_ours_are_changed(self, records: list[Record], ipv6: bool) -> None:
        plan = self.plan(records, ipv6=ipv6)

        blocked = {record.name for record in plan.in_the_way}
        assert not any(map(is_ours, plan.in_the_way))
        for change in plan.changes:
            assert change.reason
            name = name_of(change)
            assert name not in blocked
            if isinstance(change, CreateRecord):
                assert change.spec.comment == (OUR_COMMENT if name == NAME else COMMENT_AT_FURTHER_NAMES)
            elif name == NAME:
                assert change.record.type in {"A", "AAAA"}
                assert change.record.comment in {OUR_COMMENT, ""}
                assert change.record.comment or change.record.content in {*SOME_V4, *SOME_V6}
            else:
                assert change.record.comment == COMMENT_AT_FURTHER_NAMES
                assert change.record.type in {"A", "AAAA", "CNAME"}

    @given(NAMED_RECORDS, st.booleans())
    def test_a_plan_reaches_the_desired_state(self, records: list[Record], ipv6: bool) -> None:
        plan = self.plan(records, ipv6=ipv6)
        zone = applied(records, plan.changes)

        assert self.plan(zone, ipv6=ipv6) == RecordPlan(in_the_way=plan.in_the_way)
        assert [record for record in zone if not is_ours(record)] == [
            record for record in records if not is_ours(record)
        ]
        blocked = {record.name for record in plan.in_the_way}
        for name in OWNERSHIP_BY_NAME.keys() - blocked:
            ours = [record for record in zone if OWNERSHIP_BY_NAME[name].is_marked(record)]
            expected = ["A", "AAAA"] if ipv6 else ["A"]
            if name == ALIAS:
                expected = ["CNAME"]
            # At a shared name, the record of another workload can have this workload's address already.
            others = {
                record.type
                for record in zone
                if record.name == name == SHARED_NAME
                and not is_ours(record)
                and (record.type, record.content) in {("A", V4), ("AAAA", V6)}
            }
            expected = [type_ for type_ in expected if type_ not in others]
            # An alias of a blocked name is not changed.
            if name != ALIAS or NAME not in blocked:
                assert sorted(record.type for record in ours) == expected
        assert not any(record.name == "old.example.com" and is_ours(record) for record in zone)

    @given(NAMED_RECORDS, st.booleans())
    def test_no_cname_is_beside_another_record(self, records: list[Record], ipv6: bool) -> None:
        zone = applied(records, self.plan(records, ipv6=ipv6).changes)

        for record in zone:
            if record.type == "CNAME" and record not in records:
                assert [other for other in zone if other.name == record.name] == [record]

    @given(NAMED_RECORDS, st.booleans(), st.randoms(use_true_random=False))
    def test_the_order_of_records_does_not_matter(self, records: list[Record], ipv6: bool, random: Random) -> None:
        shuffled = records[:]
        random.shuffle(shuffled)

        assert self.plan(shuffled, ipv6=ipv6) == self.plan(records, ipv6=ipv6)


def stands_down(own: Node, nodes: Sequence[Node], records: Sequence[Record]) -> bool:
    """Return True if dns-watch stands down, because the node of a later pod is published."""
    if not needs_preferred_nodes(records, own, CONFIG):
        return False
    later = successors(nodes, node_id=own.id, node_ownership=NODE_OWNERSHIP, now=NOW)
    return published_preferred_node(records, later, own, CONFIG) is not None


def _type(change: RecordChange) -> str:
    return change.record.type if isinstance(change, DeleteRecord) else change.spec.type
