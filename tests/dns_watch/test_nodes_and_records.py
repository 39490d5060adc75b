"""Which node is this pod's, and what its records should become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.dns_watch.nodes import Hints, choose_node, successors, why_missing
from lifecycle.dns_watch.observation import Loss, Missing, Unidentified
from lifecycle.dns_watch.records import RecordPlan, needs_successor_check, plan_records, published_successor
from lifecycle.dns_watch.state import KnownNode
from lifecycle.domain.changes import CreateRecord, DeleteRecord, RecordChange, UpdateRecord
from lifecycle.domain.model import KeyMetadata, Node, Record, RecordSpec, RegisterMethod, User, describe
from tests.builders import (
    ANN,
    EXPIRED,
    MARK,
    NAME,
    NODE_IDENTITY,
    NOW,
    OTHER_MARK,
    RECORD_IDENTITY,
    SVC,
    a_node,
    a_record,
    a_spec,
    addresses,
)

V4, V6 = "100.64.0.1", "fd7a:115c:a1e0::1"
OUTSIDE = "203.0.113.7"
APEX = "example.com"

# Hints of every kind.
UP = Hints(interface=addresses(V4, V6))
BARE = Hints(interface=())
WITH_KEY = Hints(interface=None, metadata=KeyMetadata("7"))
KEPT = Hints(interface=None, metadata=KeyMetadata("7", kept_node_id="1"))
WAITING = Hints(interface=None)
WAITED = Hints(interface=None, waited=True)


def known(node_id: str | None) -> KnownNode | None:
    """This pod's node when it was last known."""
    return KnownNode(node_id, a_node(int(node_id)).machine_key) if node_id else None


def chosen(*nodes: Node, hints: Hints) -> str | None:
    """The id of the node that is chosen; None for no answer."""
    found = choose_node(nodes, identity=NODE_IDENTITY, hints=hints, now=NOW)
    return found.id if isinstance(found, Node) else None


class TestChooseNode:
    """By what only this pod can have."""

    @pytest.mark.parametrize(
        ("nodes", "hints", "expected"),
        [
            pytest.param([a_node(1)], UP, "1", id="address-of-the-interface"),
            pytest.param([a_node(1)], Hints(interface=addresses(V4)), "1", id="IPv4-alone"),
            pytest.param([a_node(1)], Hints(interface=addresses(V6)), "1", id="IPv6-alone"),
            pytest.param([a_node(1), a_node(2)], UP, "1", id="not-the-newest"),
            pytest.param([a_node(1, online=False), a_node(2)], UP, "1", id="not-the-one-that-is-online"),
            pytest.param(
                [a_node(1, key_id="3"), a_node(2)], replace(UP, metadata=KeyMetadata("7")), "1", id="not-by-the-key"
            ),
            pytest.param(
                [a_node(1), a_node(2)],
                replace(UP, metadata=KeyMetadata(None, kept_node_id="2"), waited=True),
                "1",
                id="not-the-kept-one",
            ),
            pytest.param([a_node(1), a_node(2, hostname="x")], UP, "1", id="others-are-others"),
            pytest.param([a_node(2)], UP, None, id="not-registered-yet"),
            pytest.param(
                [a_node(2)], replace(UP, metadata=KeyMetadata("7"), waited=True), None, id="nor-by-other-signs"
            ),
            pytest.param([a_node(1, user=ANN)], UP, None, id="address-of-a-foreign-node"),
            pytest.param([a_node(1, hostname="x")], UP, None, id="address-of-another-name"),
            pytest.param([a_node(1, expires_at=EXPIRED)], UP, None, id="address-of-an-expired-node"),
            pytest.param([a_node(1, expires_at=NOW)], UP, None, id="expires-just-now"),
            pytest.param(
                [a_node(1, addresses=[V4]), a_node(2, addresses=[V6])], UP, None, id="one-address-of-each-of-two-nodes"
            ),
            pytest.param([a_node(1)], BARE, None, id="interface-without-an-address"),
            pytest.param([a_node(1)], replace(BARE, waited=True), None, id="however-long-it-is-without"),
            pytest.param([], UP, None, id="empty-list"),
        ],
    )
    def test_by_interface(self, nodes: list[Node], hints: Hints, expected: str | None) -> None:
        assert chosen(*nodes, hints=hints) == expected

    @pytest.mark.parametrize(
        ("nodes", "hints", "expected"),
        [
            pytest.param([a_node(1), a_node(2, key_id="8")], WITH_KEY, "1", id="the-one-with-our-key"),
            pytest.param([a_node(1, online=False), a_node(2, key_id="8")], WITH_KEY, "1", id="offline-all-the-same"),
            pytest.param([a_node(1, key_id="8")], WITH_KEY, None, id="another-key"),
            pytest.param([a_node(1, key_id="77")], WITH_KEY, None, id="a-longer-key-id"),
            pytest.param([a_node(1, key_id="8")], replace(WITH_KEY, waited=True), None, id="waiting-changes-nothing"),
            pytest.param([a_node(1), a_node(2)], WITH_KEY, None, id="two-with-our-key"),
            pytest.param([a_node(1), a_node(2, user=ANN)], WITH_KEY, "1", id="a-foreign-one-with-our-key"),
            pytest.param([a_node(1), a_node(2, expires_at=EXPIRED)], WITH_KEY, "1", id="an-expired-one-with-our-key"),
            pytest.param([a_node(1, key_id="3")], KEPT, "1", id="the-kept-one"),
            pytest.param([a_node(1, key_id="7")], KEPT, "1", id="the-kept-one-with-our-key"),
            pytest.param([a_node(1, key_id="3"), a_node(2, key_id="8")], KEPT, "1", id="the-kept-one-of-two"),
            pytest.param([a_node(1, key_id="3"), a_node(2, key_id="7")], KEPT, "2", id="the-kept-one's-state-was-lost"),
            pytest.param([a_node(1, key_id="3", user=ANN)], KEPT, None, id="the-kept-one-is-not-ours"),
            pytest.param([a_node(12, key_id="3")], KEPT, None, id="a-longer-id"),
            pytest.param([], WITH_KEY, None, id="empty-list"),
        ],
    )
    def test_by_note(self, nodes: list[Node], hints: Hints, expected: str | None) -> None:
        """Where no interface can be seen: the key that `cleanup` wrote for this pod."""
        assert chosen(*nodes, hints=hints) == expected

    @pytest.mark.parametrize(
        ("nodes", "hints", "expected"),
        [
            pytest.param([a_node(1)], WAITED, "1", id="the-only-one"),
            pytest.param([a_node(1, online=False), a_node(2)], WAITED, "2", id="the-only-one-online"),
            pytest.param([a_node(1), a_node(2, online=False)], WAITED, "1", id="though-it-is-the-older"),
            pytest.param([a_node(1), a_node(2, user=ANN)], WAITED, "1", id="the-only-one-of-ours"),
            pytest.param([a_node(1), a_node(2, expires_at=EXPIRED)], WAITED, "1", id="the-only-one-unexpired"),
            pytest.param([a_node(1), a_node(2)], WAITED, None, id="two-online"),
            pytest.param([a_node(1, online=False)], WAITED, None, id="none-online"),
            pytest.param([], WAITED, None, id="empty-list"),
            pytest.param([a_node(1)], WAITING, None, id="too-early"),
        ],
    )
    def test_by_being_the_only_one(self, nodes: list[Node], hints: Hints, expected: str | None) -> None:
        """Where there is nothing else to go by, after a while."""
        assert chosen(*nodes, hints=hints) == expected

    @pytest.mark.parametrize(
        ("nodes", "hints", "says"),
        [
            pytest.param([], UP, ["no node with this pod's VPN address"], id="not-registered-yet"),
            pytest.param(
                [a_node(1, user=ANN)], UP, ["node 1", "owner ann", "TS_HOSTNAME", "HEADSCALE_USER"], id="whose-it-is"
            ),
            pytest.param([a_node(1, hostname="x")], UP, ["node 1", "hostname x"], id="what-it-is-called"),
            pytest.param([], BARE, ["VPN_PREFIXES"], id="which-setting"),
            pytest.param(
                [a_node(1, addresses=[V4]), a_node(2, addresses=[V6])], UP, ["several", "1, 2"], id="which-have-it"
            ),
            pytest.param([], WITH_KEY, ["pre-auth key"], id="no-node-with-the-key"),
            pytest.param([a_node(2), a_node(10)], WITH_KEY, ["2, 10"], id="which-have-the-key"),
            pytest.param([a_node(2), a_node(10)], WAITED, ["2, 10"], id="which-are-online"),
            pytest.param([], WAITED, ["no node of ours is online"], id="none-online"),
            pytest.param([], WAITING, ["interface"], id="too-early"),
        ],
    )
    def test_no_answer_says_why(self, nodes: list[Node], hints: Hints, says: list[str]) -> None:
        found = choose_node(nodes, identity=NODE_IDENTITY, hints=hints, now=NOW)

        assert isinstance(found, Unidentified)
        for part in says:
            assert part in found.reason

    @pytest.mark.parametrize(
        ("node", "owner"),
        [
            (a_node(), "owner svc"),
            (a_node(user=None, tags=["tag:b", "tag:a"]), "owner tag:a, tag:b"),
            (a_node(user=None), "owner none"),
        ],
    )
    def test_a_node_in_a_few_words(self, node: Node, owner: str) -> None:
        assert describe(node) == f"hostname {NAME}, {owner}, registered by auth key"


class TestWhyMissing:
    """What a list without our node says, and what it does not."""

    @pytest.mark.parametrize(
        ("nodes", "hints", "own_id", "not_found", "loss"),
        [
            # Headscale itself says that it is gone, and the list has others.
            pytest.param([a_node(5, hostname="x")], WAITED, "1", True, Loss(Missing.GONE, "1"), id="gone"),
            pytest.param([a_node(5, hostname="x")], UP, "1", True, Loss(Missing.GONE, "1"), id="gone-with-interface"),
            pytest.param(
                [a_node(5, hostname="x")], WITH_KEY, "1", True, Loss(Missing.GONE, "1"), id="gone-with-a-note"
            ),
            pytest.param([a_node(2)], UP, "1", True, Loss(Missing.GONE, "1"), id="gone-with-a-later-pod"),
            pytest.param([], UP, "1", True, None, id="not-by-an-empty-list"),
            pytest.param([a_node(1, user=ANN)], UP, "1", True, None, id="not-while-the-list-has-it"),
            # It is there, and has to log in again.
            pytest.param(
                [a_node(1, expires_at=EXPIRED)], UP, None, False, Loss(Missing.EXPIRED, "1"), id="expired-by-interface"
            ),
            pytest.param(
                [a_node(1, expires_at=EXPIRED)], WITH_KEY, None, False, Loss(Missing.EXPIRED, "1"), id="expired-by-note"
            ),
            pytest.param(
                [a_node(1, expires_at=EXPIRED, key_id="3")],
                WAITED,
                "1",
                False,
                Loss(Missing.EXPIRED, "1"),
                id="expired-by-its-id",
            ),
            pytest.param(
                [a_node(2, expires_at=EXPIRED, key_id="3"), a_node(5, hostname="x")],
                WITH_KEY,
                None,
                False,
                Loss(Missing.UNREGISTERED),
                id="another-one-expired",
            ),
            # This pod has an address that nobody has.
            pytest.param([a_node(5, hostname="x")], UP, None, False, Loss(Missing.STRANDED), id="address-of-nobody"),
            pytest.param([a_node(5, hostname="x")], UP, "4", False, None, id="a-short-list-and-a-node-that-is-there"),
            pytest.param([a_node(5, hostname="x")], WITH_KEY, "4", False, None, id="a-short-list-and-no-interface"),
            pytest.param([a_node(1, user=ANN)], UP, None, False, None, id="address-of-somebody-else"),
            pytest.param([a_node(2)], UP, None, False, None, id="address-of-nobody-and-a-node-of-ours"),
            pytest.param([], UP, None, False, None, id="address-of-nobody-in-an-empty-list"),
            # It may still come.
            pytest.param([a_node(5, hostname="x")], WITH_KEY, None, False, Loss(Missing.UNREGISTERED), id="not-yet"),
            pytest.param([a_node(5, hostname="x")], WAITED, None, False, Loss(Missing.UNREGISTERED), id="never-yet"),
            pytest.param([a_node(5, hostname="x")], BARE, None, False, Loss(Missing.UNREGISTERED), id="no-address-yet"),
            pytest.param([a_node(2, key_id="8")], WITH_KEY, None, False, None, id="not-yet-but-another-pod's"),
            pytest.param([], WITH_KEY, None, False, None, id="nothing-by-an-empty-list"),
        ],
    )
    def test_why(self, nodes: list[Node], hints: Hints, own_id: str | None, not_found: bool, loss: Loss | None) -> None:
        found = why_missing(nodes, identity=NODE_IDENTITY, hints=hints, now=NOW, own=known(own_id), not_found=not_found)

        assert found == loss


class TestStandingDown:
    """Of two pods that live at once, the later one has the name."""

    @pytest.mark.parametrize(
        ("nodes", "expected"),
        [
            pytest.param([a_node(5), a_node(6), a_node(12)], ["6", "12"], id="later-ones-by-number"),
            pytest.param([a_node(6, online=False)], ["6"], id="offline"),
            pytest.param([a_node(4), a_node(5)], [], id="earlier-and-itself"),
            pytest.param([a_node(6, user=ANN), a_node(7, hostname="x")], [], id="foreign"),
            pytest.param([a_node(6, registered_by=RegisterMethod.OIDC)], [], id="a-person's"),
            pytest.param([a_node(6, expires_at=EXPIRED)], [], id="expired"),
            pytest.param([a_node(6, expires_at=NOW)], [], id="expires-just-now"),
        ],
    )
    def test_successors(self, nodes: list[Node], expected: list[str]) -> None:
        found = successors(nodes, node_id="5", identity=NODE_IDENTITY, now=NOW)

        assert [node.id for node in found] == expected
        assert successors(nodes[::-1], node_id="5", identity=NODE_IDENTITY, now=NOW) == found

    @pytest.mark.parametrize(
        ("records", "later", "own", "expected"),
        [
            pytest.param([a_record(content="100.64.0.2")], [a_node(2)], a_node(1), "2", id="has-the-name"),
            pytest.param(
                [a_record(type_="AAAA", content="fd7a:115c:a1e0::2")], [a_node(2)], a_node(1), "2", id="by-its-AAAA"
            ),
            pytest.param(
                [a_record("a"), a_record("b", content="100.64.0.2")], [a_node(2)], a_node(1), "2", id="beside-ours"
            ),
            pytest.param([a_record(content="100.64.0.3")], [a_node(2), a_node(3)], a_node(1), "3", id="one-of-two"),
            pytest.param([a_record(content=V4)], [a_node(2)], a_node(1), None, id="ours-has-it"),
            pytest.param([], [a_node(2)], a_node(1), None, id="nobody-has-it"),
            pytest.param([a_record(content="100.64.0.2")], [], a_node(1), None, id="no-successor"),
            pytest.param(
                [a_record(content="100.64.0.2")], [a_node(2, online=False)], a_node(1), None, id="it-is-offline"
            ),
            pytest.param(
                [a_record(content="100.64.0.2")],
                [a_node(2, online=False)],
                a_node(1, online=False),
                "2",
                id="everybody-is-offline-after-a-restart",
            ),
            pytest.param(
                [a_record(content="100.64.0.2", comment="")], [a_node(2)], a_node(1), None, id="an-unmarked-record"
            ),
            pytest.param(
                [a_record(content="100.64.0.2", comment=OTHER_MARK)], [a_node(2)], a_node(1), None, id="another-owner's"
            ),
            pytest.param(
                [a_record(content="100.64.0.2", name=f"x.{NAME}")], [a_node(2)], a_node(1), None, id="another-name"
            ),
        ],
    )
    def test_published(self, records: list[Record], later: list[Node], own: Node, expected: str | None) -> None:
        found = published_successor(records, later, identity=RECORD_IDENTITY, node=own)

        assert (found.id if found else None) == expected

    @pytest.mark.parametrize(
        ("records", "needed"),
        [
            pytest.param([], False, id="no-record"),
            pytest.param([a_record()], False, id="ours-says-ours"),
            pytest.param([a_record(type_="AAAA", content=V6)], False, id="ours-says-our-IPv6"),
            pytest.param([a_record(type_="AAAA", content="FD7A:115C:A1E0:0::1")], False, id="in-another-spelling"),
            pytest.param([a_record(content="100.64.0.2")], True, id="ours-says-another"),
            pytest.param([a_record("a"), a_record("b", content="100.64.0.2")], True, id="one-of-ours-says-another"),
            pytest.param([a_record(content="100.64.0.2", comment="")], False, id="an-older-script's"),
            pytest.param([a_record(content="100.64.0.2", comment="x")], False, id="foreign"),
        ],
    )
    def test_a_list_is_read_only_where_it_may_tell(self, records: list[Record], needed: bool) -> None:
        """At 1,000 nodes a list is 1 MB."""
        assert needs_successor_check(records, identity=RECORD_IDENTITY, node=a_node(1)) is needed


def planned(
    *records: Record, specs: Sequence[RecordSpec] = (a_spec(),), ipv6: bool = False, apex: str | None = APEX
) -> RecordPlan:
    return plan_records(records, specs, identity=RECORD_IDENTITY, ipv6=ipv6, apex=apex)


def changes_of(plan: RecordPlan) -> list[tuple[str, str]]:
    """Each change in a word, and the record it is about or the type it makes."""
    return [(type(change).__name__.removesuffix("Record").lower(), _about(change)) for change in plan.changes]


def _about(change: RecordChange) -> str:
    return change.spec.type if isinstance(change, CreateRecord) else change.record.id


class TestRecords:
    """One A record of ours, and with IPv6 one AAAA record; nothing else is touched."""

    def test_right(self) -> None:
        assert planned(a_record()) == RecordPlan()

    def test_missing(self) -> None:
        [change] = planned().changes
        assert isinstance(change, CreateRecord)
        assert change.spec == a_spec()

    @pytest.mark.parametrize(
        ("record", "differing"),
        [
            pytest.param(a_record(content="100.64.0.2"), "content", id="address-moved"),
            pytest.param(a_record(ttl_s=300), "ttl", id="TTL"),
            pytest.param(a_record(proxied=True), "proxied", id="proxied"),
            pytest.param(a_record(proxied=True, ttl_s=1), "ttl, proxied", id="proxied-with-its-TTL"),
            pytest.param(a_record(content=OUTSIDE), "content", id="changed-by-hand-to-an-address-outside"),
        ],
    )
    def test_changed_in_place(self, record: Record, differing: str) -> None:
        """The name never stops resolving."""
        [change] = planned(record).changes
        assert isinstance(change, UpdateRecord)
        assert (change.record, change.spec) == (record, a_spec())
        assert differing in change.reason

    @pytest.mark.parametrize("content", [V4, "100.64.0.9"])
    def test_an_older_scripts_is_adopted(self, content: str) -> None:
        record = a_record(content=content, comment="", ttl_s=1, proxied=True)

        [change] = planned(record).changes
        assert isinstance(change, UpdateRecord)
        assert (change.record, change.spec) == (record, a_spec())

    @pytest.mark.parametrize(
        ("records", "expected"),
        [
            pytest.param([a_record("a"), a_record("b")], [("delete", "b")], id="two-right-ones"),
            pytest.param(
                [a_record("a", content="100.64.0.2"), a_record("b")], [("delete", "a")], id="the-right-one-stays"
            ),
            pytest.param(
                [a_record("a", content="100.64.0.2"), a_record("b", content="100.64.0.3")],
                [("update", "a"), ("delete", "b")],
                id="neither-is-right",
            ),
            pytest.param(
                [a_record("a", content="100.64.0.2", comment=""), a_record("b", content="100.64.0.3")],
                [("update", "b"), ("delete", "a")],
                id="the-marked-one-stays",
            ),
            pytest.param(
                [a_record("a", comment=""), a_record("b")], [("delete", "a")], id="the-marked-one-of-two-right-ones"
            ),
            pytest.param(
                [a_record("a", comment=""), a_record("b", content="100.64.0.2")],
                [("update", "a"), ("delete", "b")],
                id="the-right-address-counts-most",
            ),
            pytest.param(
                [a_record("a", ttl_s=300), a_record("b"), a_record("c")],
                [("update", "a"), ("delete", "b"), ("delete", "c")],
                id="three",
            ),
        ],
    )
    def test_duplicates(self, records: list[Record], expected: list[tuple[str, str]]) -> None:
        assert changes_of(planned(*records)) == expected

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(a_record(comment="managed by terraform"), id="foreign-A"),
            pytest.param(a_record(comment=OTHER_MARK), id="another-owner's-A"),
            pytest.param(a_record(comment=MARK.upper()), id="our-mark-in-upper-case"),
            pytest.param(a_record(comment="", content=OUTSIDE), id="unmarked-A-outside"),
            pytest.param(a_record(type_="CNAME", content="x.example.com", comment=""), id="CNAME"),
            pytest.param(a_record(type_="CNAME", content="x.example.com"), id="CNAME-with-our-mark"),
            pytest.param(a_record(type_="NS", content="ns.example.com", comment=""), id="NS-below-the-apex"),
        ],
    )
    @pytest.mark.parametrize("ipv6", [True, False])
    @pytest.mark.parametrize("also", [[], [a_record("0", content="100.64.0.2")]])
    def test_in_the_way(self, record: Record, ipv6: bool, also: list[Record]) -> None:
        """Nothing at all is written, beside a record of ours neither."""
        assert planned(record, *also, ipv6=ipv6) == RecordPlan(in_the_way=(record,))

    def test_everything_in_the_way_is_named(self) -> None:
        foreign = [a_record("b", comment="x"), a_record("a", comment="x"), a_record("c", type_="CNAME", content="x")]

        assert [record.id for record in planned(*foreign).in_the_way] == ["a", "b", "c"]

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(
                a_record("x", type_=type_, content="x", comment=comment), id=f"{type_}-{comment or 'unmarked'}"
            )
            for type_ in ("TXT", "MX", "CAA", "HTTPS", "SRV")
            for comment in ("", MARK, "x")
        ]
        + [
            pytest.param(a_record("x", name=f"x.{NAME}", comment="x"), id="another-name"),
            pytest.param(a_record("x", name=f"x.{NAME}", type_="CNAME", content="x"), id="CNAME-of-another-name"),
        ],
    )
    def test_of_no_concern(self, record: Record) -> None:
        assert planned(record, a_record()) == RecordPlan()
        assert planned(record, a_record(), specs=(a_spec(), a_spec(V6)), ipv6=True).in_the_way == ()

    def test_name_servers_are_at_home_at_the_apex(self) -> None:
        identity = replace(RECORD_IDENTITY, name=APEX)
        record = a_record(name=APEX, type_="NS", content="ns.example.com", comment="")

        def in_the_way(apex: str | None) -> tuple[Record, ...]:
            return plan_records([record], [a_spec()], identity=identity, ipv6=False, apex=apex).in_the_way

        assert in_the_way(APEX) == ()
        assert in_the_way("com") == (record,)
        # "Could not find out" is not "it is at home".
        assert in_the_way(None) == (record,)

    @pytest.mark.parametrize(
        ("records", "specs", "expected"),
        [
            pytest.param([], [V4, V6], [("create", "A"), ("create", "AAAA")], id="both-missing"),
            pytest.param([a_record()], [V4, V6], [("create", "AAAA")], id="AAAA-missing"),
            pytest.param([a_record(), a_record("6", type_="AAAA", content=V6)], [V4, V6], [], id="both-right"),
            pytest.param(
                [a_record(), a_record("6", type_="AAAA", content="FD7A:115C:A1E0:0:0::1")],
                [V4, V6],
                [],
                id="IPv6-in-another-spelling",
            ),
            pytest.param(
                [a_record(), a_record("6", type_="AAAA", content="fd7a:115c:a1e0::2")],
                [V4, V6],
                [("update", "6")],
                id="IPv6-moved",
            ),
            pytest.param(
                [a_record(), a_record("6", type_="AAAA", content=V6, comment="")],
                [V4, V6],
                [("update", "6")],
                id="AAAA-adopted",
            ),
            pytest.param(
                [a_record(), a_record("6", type_="AAAA", content=V6)], [V4], [("delete", "6")], id="no-IPv6-any-more"
            ),
            pytest.param([a_record()], [V6], [("delete", "a"), ("create", "AAAA")], id="IPv6-alone"),
        ],
    )
    def test_with_ipv6(self, records: list[Record], specs: list[str], expected: list[tuple[str, str]]) -> None:
        plan = planned(*records, specs=[a_spec(address) for address in specs], ipv6=True)

        assert changes_of(plan) == expected
        assert plan.in_the_way == ()

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            pytest.param(a_record("6", type_="AAAA", content=V6), [("delete", "6")], id="marked-goes"),
            pytest.param(a_record("6", type_="AAAA", content=OUTSIDE), [("delete", "6")], id="marked-outside-goes"),
            pytest.param(a_record("6", type_="AAAA", content=V6, comment=""), [], id="unmarked-stays"),
            pytest.param(a_record("6", type_="AAAA", content="2001:db8::1", comment=""), [], id="outside-stays"),
            pytest.param(a_record("6", type_="AAAA", content=V6, comment="x"), [], id="foreign-is-not-in-the-way"),
            pytest.param(a_record("6", type_="AAAA", content=V6, comment=OTHER_MARK), [], id="nor-another-owner's"),
        ],
    )
    def test_without_ipv6(self, record: Record, expected: list[tuple[str, str]]) -> None:
        plan = planned(a_record(), record)

        assert changes_of(plan) == expected
        assert plan.in_the_way == ()

    def test_a_type_that_cannot_be_told_stays_as_it_is(self) -> None:
        """The node has an address of this type that the interface does not show: a stale one, or a right one?"""
        records = [a_record("a", content="100.64.0.9"), a_record("b", type_="AAAA", content=V6)]
        plan = plan_records(
            records,
            [a_spec(V6)],
            identity=RECORD_IDENTITY,
            ipv6=True,
            apex=None,
            undecided=frozenset({"A"}),
        )
        assert plan == RecordPlan()

    @pytest.mark.parametrize("comment", ["x", OTHER_MARK])
    def test_a_foreign_aaaa_is_in_the_way_with_ipv6(self, comment: str) -> None:
        record = a_record("6", type_="AAAA", content=V6, comment=comment)

        assert planned(a_record(), record, specs=(a_spec(), a_spec(V6)), ipv6=True) == RecordPlan(in_the_way=(record,))


# Nodes whose ids, keys and addresses meet one another in every way.
USERS = st.one_of(st.none(), st.sampled_from([SVC, SVC, User(None, "svc"), ANN]))

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
    Hints,
    interface=st.one_of(st.none(), SOME_ADDRESSES.map(lambda texts: tuple(map(ip_address, texts)))),
    metadata=st.one_of(
        st.none(),
        st.builds(
            KeyMetadata,
            pre_auth_key_id=st.sampled_from([None, "7", "9"]),
            kept_node_id=st.one_of(st.none(), st.integers(1, 20).map(str)),
        ),
    ),
    waited=st.booleans(),
)


class TestChooseNodeProperties:
    """For every tailnet and every hint."""

    @given(NODES, HINTS)
    def test_only_a_living_node_of_ours_is_chosen(self, nodes: list[Node], hints: Hints) -> None:
        found = choose_node(nodes, identity=NODE_IDENTITY, hints=hints, now=NOW)

        if isinstance(found, Node):
            assert found in nodes
            assert NODE_IDENTITY.owns_node(found)
            assert not found.expired(NOW)
            assert hints.interface is None or set(hints.interface) & set(found.addresses)
        else:
            assert found.reason

    @given(NODES, HINTS, st.randoms(use_true_random=False))
    def test_age_decides_nothing(self, nodes: list[Node], hints: Hints, random: Random) -> None:
        """With their ids dealt out anew, so that old is young, the same machine is chosen."""
        ids = [node.id for node in nodes]
        dealt = ids[:]
        random.shuffle(dealt)
        anew = dict(zip(ids, dealt, strict=True))
        kept = hints.kept.id if hints.kept else None
        metadata = hints.metadata and replace(hints.metadata, kept_node_id=kept and anew.get(kept, kept))

        before = choose_node(nodes, identity=NODE_IDENTITY, hints=hints, now=NOW)
        after = choose_node(
            [replace(node, id=anew[node.id]) for node in nodes],
            identity=NODE_IDENTITY,
            hints=replace(hints, metadata=metadata),
            now=NOW,
        )

        assert machine_of(after) == machine_of(before)

    @given(NODES, HINTS, st.randoms(use_true_random=False))
    def test_the_order_of_the_list_decides_nothing(self, nodes: list[Node], hints: Hints, random: Random) -> None:
        shuffled = nodes[:]
        random.shuffle(shuffled)

        assert choose_node(shuffled, identity=NODE_IDENTITY, hints=hints, now=NOW) == choose_node(
            nodes, identity=NODE_IDENTITY, hints=hints, now=NOW
        )

    @given(NODES, NODES, HINTS)
    def test_foreign_nodes_decide_nothing(self, nodes: list[Node], more: list[Node], hints: Hints) -> None:
        """Whatever others call themselves, this pod's node stays the same."""
        ids = {node.id for node in nodes}
        foreign = [node for node in more if not NODE_IDENTITY.owns_node(node) and node.id not in ids]

        alone = choose_node(nodes, identity=NODE_IDENTITY, hints=hints, now=NOW)
        among_others = choose_node([*foreign, *nodes], identity=NODE_IDENTITY, hints=hints, now=NOW)

        assert machine_of(among_others) == machine_of(alone)

    @given(NODES, HINTS, st.sampled_from([None, "1", "2", "3"]), st.booleans())
    def test_a_loss_is_never_told_of_a_node_that_is_there(
        self, nodes: list[Node], hints: Hints, own_id: str | None, not_found: bool
    ) -> None:
        loss = why_missing(nodes, identity=NODE_IDENTITY, hints=hints, now=NOW, own=known(own_id), not_found=not_found)

        if loss is None:
            return
        assert nodes
        listed = {node.id: node for node in nodes}
        if loss.kind is Missing.GONE:
            assert not_found
            assert own_id not in listed
        if loss.kind is Missing.EXPIRED:
            assert loss.node_id is not None
            assert listed[loss.node_id].expired(NOW)
            assert NODE_IDENTITY.owns_node(listed[loss.node_id])
        if loss.kind is Missing.STRANDED:
            assert not any(set(hints.interface or ()) & set(node.addresses) for node in nodes)


def machine_of(found: Node | Unidentified) -> str | None:
    return found.machine_key if isinstance(found, Node) else None


RECORDS = st.lists(
    st.builds(
        a_record,
        st.sampled_from("abcdefgh"),
        name=st.sampled_from([NAME, NAME, NAME, NAME, f"x.{NAME}"]),
        type_=st.sampled_from(["A", "A", "A", "AAAA", "AAAA", "CNAME", "NS", "TXT"]),
        content=st.sampled_from([*SOME_V4, *SOME_V6, OUTSIDE, "2001:db8::1", "x"]),
        comment=st.sampled_from([MARK, MARK, MARK, "", "", OTHER_MARK, "foreign", MARK.upper()]),
        ttl_s=st.sampled_from([1, 60, 300]),
        proxied=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda record: record.id,
)

# Records among which nothing is in the way, so that there is something to plan.
OWN_RECORDS = RECORDS.map(
    lambda records: [
        record
        for record in records
        if RECORD_IDENTITY.owns_record(record) or record.type == "TXT" or record.name != NAME
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
    """As `dns-watch` plans: no AAAA without DNS_IPV6."""
    return [spec for spec in specs if ipv6 or spec.type == "A"]


def applied(records: Iterable[Record], changes: Iterable[RecordChange]) -> list[Record]:
    """The zone after the changes."""
    zone = {record.id: record for record in records}
    for number, change in enumerate(changes):
        match change:
            case CreateRecord(spec):
                zone[f"new{number}"] = made(f"new{number}", spec)
            case UpdateRecord(record, spec):
                zone[record.id] = made(record.id, spec)
            case DeleteRecord(record):
                del zone[record.id]
    return list(zone.values())


def made(record_id: str, spec: RecordSpec) -> Record:
    return Record(record_id, spec.name, spec.type, str(spec.address), spec.ttl_s, proxied=False, comment=spec.comment)


class TestRecordProperties:
    """For every zone."""

    @given(st.one_of(RECORDS, OWN_RECORDS), SPECS, st.booleans(), st.sampled_from([APEX, NAME, None]))
    def test_only_records_of_ours_are_touched(
        self, records: list[Record], specs: list[RecordSpec], ipv6: bool, apex: str | None
    ) -> None:
        plan = planned(*records, specs=specs_for(specs, ipv6=ipv6), ipv6=ipv6, apex=apex)

        assert not (plan.changes and plan.in_the_way)
        for record in plan.in_the_way:
            assert record in records
            assert not RECORD_IDENTITY.owns_record(record)
        for change in plan.changes:
            if isinstance(change, CreateRecord):
                continue
            assert change.record in records
            assert change.record.name == NAME
            assert change.record.type in {"A", "AAAA"}
            assert change.record.comment in {MARK, ""}
            assert change.record.comment or change.record.content in {*SOME_V4, *SOME_V6}
            assert change.reason

    @given(OWN_RECORDS, SPECS, st.booleans())
    def test_the_zone_says_what_it_should_and_nothing_is_left_to_do(
        self, records: list[Record], specs: list[RecordSpec], ipv6: bool
    ) -> None:
        wanted = specs_for(specs, ipv6=ipv6)
        plan = planned(*records, specs=wanted, ipv6=ipv6)
        zone = applied(records, plan.changes)

        assert planned(*zone, specs=wanted, ipv6=ipv6) == RecordPlan()
        for type_ in ("A", "AAAA"):
            spec = next((spec for spec in wanted if spec.type == type_), None)
            ours = [record for record in zone if RECORD_IDENTITY.is_marked(record) and record.type == type_]
            assert len(ours) == (1 if spec else 0)
            assert all(spec and not spec.differences(record) for record in ours)
        untouched = [record for record in records if not RECORD_IDENTITY.owns_record(record)]
        assert [record for record in zone if not RECORD_IDENTITY.owns_record(record)] == untouched

    @given(OWN_RECORDS, SPECS, st.booleans())
    def test_a_name_never_stops_resolving_in_between(
        self, records: list[Record], specs: list[RecordSpec], ipv6: bool
    ) -> None:
        """A record of ours is changed in place; one is made only where none is, and changes go before deletions."""
        plan = planned(*records, specs=specs_for(specs, ipv6=ipv6), ipv6=ipv6)

        for type_ in ("A", "AAAA"):
            mine = [change for change in plan.changes if _type(change) == type_]
            kinds = [type(change) for change in mine]
            if CreateRecord in kinds:
                assert kinds == [CreateRecord]
                assert not any(RECORD_IDENTITY.owns_record(record) and record.type == type_ for record in records)
            assert UpdateRecord not in kinds[1:]

    @given(RECORDS, SPECS, st.booleans(), st.randoms(use_true_random=False))
    def test_the_order_of_the_records_changes_nothing(
        self, records: list[Record], specs: list[RecordSpec], ipv6: bool, random: Random
    ) -> None:
        """Nor that of the specs: two copies of this program agree."""
        shuffled = records[:]
        random.shuffle(shuffled)
        wanted = specs_for(specs, ipv6=ipv6)

        assert planned(*shuffled, specs=wanted[::-1], ipv6=ipv6) == planned(*records, specs=wanted, ipv6=ipv6)

    @given(RECORDS, SPECS)
    def test_what_blocks_without_ipv6_blocks_with_it(self, records: list[Record], specs: list[RecordSpec]) -> None:
        without = planned(*records, specs=specs_for(specs, ipv6=False), ipv6=False)
        with_it = planned(*records, specs=specs, ipv6=True)

        assert set(without.in_the_way) <= set(with_it.in_the_way)
        assert all(record.type == "AAAA" for record in set(with_it.in_the_way) - set(without.in_the_way))

    @given(
        st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=12),
        st.sampled_from([None, *SOME_V4, "100.64.0.9"]),
    )
    def test_of_pods_that_live_at_once_the_later_one_wins(self, turns: list[int], before: str | None) -> None:
        """Whoever looks in whatever order: once a later pod has the name, no earlier one takes it back."""
        nodes = [a_node(number, online=True, addresses=[f"100.64.0.{number}"]) for number in (1, 2, 3)]
        records = [a_record(content=before)] if before else []
        latest = 0
        for turn in turns:
            own = nodes[turn - 1]
            if not stands_down(own, nodes, records):
                spec = a_spec(str(own.addresses[0]))
                records = applied(records, planned(*records, specs=[spec]).changes)
            latest = max(latest, turn)
            holder = records[0].address if records else None
            already = [number for number in (1, 2, 3) if before == f"100.64.0.{number}"]

            assert len(records) == 1
            assert holder == ip_address(f"100.64.0.{max([latest, *already])}")

        # A later pod that has died gives the name back.
        survivors = [node for node in nodes if node.id == "1"]
        assert not stands_down(nodes[0], survivors, records)


def stands_down(own: Node, nodes: Sequence[Node], records: Sequence[Record]) -> bool:
    """As `dns-watch` decides it, before it plans."""
    if not needs_successor_check(records, identity=RECORD_IDENTITY, node=own):
        return False
    later = successors(nodes, node_id=own.id, identity=NODE_IDENTITY, now=NOW)
    return published_successor(records, later, identity=RECORD_IDENTITY, node=own) is not None


def _type(change: RecordChange) -> str:
    return change.record.type if isinstance(change, DeleteRecord) else change.spec.type
