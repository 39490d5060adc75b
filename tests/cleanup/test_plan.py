"""What cleanup removes and what it leaves, from values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.cleanup.observe import saved_state
from lifecycle.cleanup.plan import (
    NothingKept,
    SavedState,
    choose_kept,
    foreign_nodes,
    plan_nodes,
    plan_records,
    refuse_taken_name,
)
from lifecycle.domain.changes import DeleteNode, DeleteRecord
from lifecycle.domain.errors import NameTakenError
from lifecycle.domain.model import IpAddress, Node, Record, RegisterMethod, User
from tests.builders import (
    ANN,
    EXPIRED,
    MARK,
    NAME,
    NODE_IDENTITY,
    NOW,
    OTHER_MARK,
    RECORD_IDENTITY,
    a_node,
    a_record,
    addresses,
)

VPN6 = "fd7a:115c:a1e0::1"


def deleted(nodes: Iterable[Node], *, kept: str | None = None) -> list[str]:
    return [change.node.id for change in plan_nodes(nodes, identity=NODE_IDENTITY, kept=kept)]


class TestNodes:
    """Every node of ours is deleted, and no other."""

    @pytest.mark.parametrize(
        "node",
        [
            pytest.param(a_node(online=False), id="offline"),
            pytest.param(a_node(online=True), id="online"),
            pytest.param(a_node(expires_at=EXPIRED), id="expired"),
            pytest.param(a_node(hostname=NAME.upper()), id="other-case"),
            pytest.param(a_node(addresses=()), id="without-an-address"),
            pytest.param(a_node(user=None), id="tagged-with-our-key"),
            pytest.param(a_node(user=None, key_user=None, tags=["tag:svc"]), id="of-our-tag-alone"),
        ],
    )
    def test_node_of_ours_is_deleted(self, node: Node) -> None:
        assert plan_nodes([node], identity=NODE_IDENTITY) == [DeleteNode(node, reason="left by an earlier pod")]
        assert foreign_nodes([node], identity=NODE_IDENTITY) == []

    @pytest.mark.parametrize(
        ("node", "is_warned_about"),
        [
            pytest.param(a_node(hostname=f"{NAME}.evil"), False, id="longer-hostname"),
            pytest.param(a_node(hostname=f"x-{NAME}"), False, id="prefixed-hostname"),
            pytest.param(a_node(hostname="invalid-abcd1234"), False, id="hostname-that-Headscale-generated"),
            pytest.param(a_node(user=ANN), True, id="another-user's"),
            pytest.param(a_node(user=None, key_user=ANN, tags=["tag:svc"]), True, id="tagged-with-another-user's-key"),
            pytest.param(a_node(registered_by=RegisterMethod.OIDC), True, id="registered-by-OIDC"),
            pytest.param(a_node(registered_by=RegisterMethod.CLI), True, id="registered-by-CLI"),
            pytest.param(a_node(registered_by=RegisterMethod.UNKNOWN), True, id="unknown-register-method"),
        ],
    )
    def test_node_that_is_not_ours_stays(self, node: Node, is_warned_about: bool) -> None:
        assert deleted([node]) == []
        assert foreign_nodes([node], identity=NODE_IDENTITY) == ([node] if is_warned_about else [])

    def test_kept_node_stays_and_others_are_deleted(self) -> None:
        assert deleted([a_node(1), a_node(2), a_node(3)], kept="2") == ["1", "3"]

    def test_kept_id_is_compared_as_a_whole(self) -> None:
        assert deleted([a_node(1), a_node(12)], kept="2") == ["1", "12"]

    def test_order_is_by_numeric_id(self) -> None:
        assert deleted([a_node(10), a_node(9), a_node(100)]) == ["9", "10", "100"]
        foreign = [a_node(10, user=ANN), a_node(9, user=ANN)]
        assert [node.id for node in foreign_nodes(foreign, identity=NODE_IDENTITY)] == ["9", "10"]

    def test_no_nodes_need_no_deletion(self) -> None:
        assert deleted([]) == []


class TestKept:
    """Which node comes back with the state in the Secret."""

    @staticmethod
    def kept(*nodes: Node, state: dict[str, bytes] | None, version: str = "0.29.2") -> Node | NothingKept:
        return choose_kept(nodes, identity=NODE_IDENTITY, state=saved_state(state), version=version, now=NOW)

    @pytest.mark.parametrize(
        ("node", "version"),
        [
            pytest.param(a_node(7), "0.29.2", id="ours"),
            pytest.param(a_node(7, online=False), "0.23.0", id="offline"),
            pytest.param(a_node(7, user=None), "0.28.0", id="tagged-with-a-user's-key-on-0.28"),
            pytest.param(a_node(7, user=None, key_user=None, tags=["tag:svc"]), "0.29.0", id="tags-alone-on-0.29"),
            pytest.param(a_node(7, user=None, key_user=None, tags=["tag:svc"]), "0.27.1", id="tags-alone-on-0.27"),
        ],
    )
    def test_node_named_by_the_secret_is_kept(self, node: Node, version: str) -> None:
        """The newest node or the online node is not preferred."""
        assert self.kept(a_node(8), node, a_node(6), state={"device_id": b"7"}, version=version) is node

    @pytest.mark.parametrize(
        ("node", "state", "version", "part"),
        [
            pytest.param(a_node(7), None, "0.29.2", "Secret does not exist", id="no-secret"),
            pytest.param(a_node(7), {}, "0.29.2", "device_id", id="empty-secret"),
            pytest.param(a_node(7), {"device_id": b""}, "0.29.2", "device_id", id="empty-id"),
            pytest.param(a_node(7), {"device_ips": b'["100.64.0.7"]'}, "0.29.2", "device_id", id="addresses-alone"),
            pytest.param(a_node(7), {"device_id": b"8"}, "0.29.2", "no node 8", id="no-such-node"),
            pytest.param(a_node(7), {"device_id": b"07"}, "0.29.2", "no node 07", id="another-spelling"),
            pytest.param(a_node(7), {"device_id": b"\xff"}, "0.29.2", "no node", id="not-UTF-8"),
            pytest.param(a_node(7, user=ANN), {"device_id": b"7"}, "0.29.2", "user svc", id="another-user's"),
            pytest.param(a_node(7, hostname="x"), {"device_id": b"7"}, "0.29.2", "hostname x", id="another-name"),
            pytest.param(a_node(7, expires_at=EXPIRED), {"device_id": b"7"}, "0.29.2", "expired", id="expired"),
            pytest.param(a_node(7, expires_at=NOW), {"device_id": b"7"}, "0.29.2", "expired", id="expires-just-now"),
            pytest.param(
                a_node(7, user=None, key_user=None, tags=["tag:svc"]),
                {"device_id": b"7"},
                "0.28.0",
                "0.28",
                id="tags-alone-on-0.28",
            ),
        ],
    )
    def test_unsuitable_node_is_not_kept(
        self, node: Node, state: dict[str, bytes] | None, version: str, part: str
    ) -> None:
        found = self.kept(node, a_node(1), state=state, version=version)

        assert isinstance(found, NothingKept)
        assert part in found.reason


def gone(
    *records: Record,
    staying: Sequence[IpAddress] = (),
    others: Sequence[IpAddress] = (),
    leave_one: bool = False,
) -> list[str]:
    changes = plan_records(records, identity=RECORD_IDENTITY, staying=staying, others=others, leave_one=leave_one)
    return [change.record.id for change in changes]


class TestRecords:
    """Records of ours that do not point to a node of ours."""

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(a_record(), id="marked"),
            pytest.param(a_record(comment=""), id="an-older-script's"),
            pytest.param(a_record(type_="AAAA", content=VPN6), id="marked-AAAA"),
            pytest.param(a_record(type_="AAAA", content=VPN6, comment=""), id="an-older-script's-AAAA"),
            pytest.param(a_record(content="203.0.113.7"), id="marked-and-outside"),
            pytest.param(a_record(proxied=True, ttl_s=1), id="changed-by-hand"),
        ],
    )
    def test_stale_record_of_ours_is_deleted(self, record: Record) -> None:
        assert gone(record) == ["a"]

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(a_record(comment="managed by terraform"), id="foreign"),
            pytest.param(a_record(comment=MARK.upper()), id="our-mark-in-upper-case"),
            pytest.param(a_record(comment="", content="203.0.113.7"), id="unmarked-outside-the-VPN"),
            pytest.param(a_record(comment="", content="nonsense"), id="unmarked-nonsense"),
            pytest.param(a_record(name=f"x.{NAME}"), id="another-name"),
            pytest.param(a_record(type_="CNAME", content="x.example.com"), id="CNAME"),
            pytest.param(a_record(type_="TXT", content="x"), id="TXT"),
            pytest.param(a_record(type_="MX", content="x", comment=""), id="MX"),
            pytest.param(a_record(content="100.64.0.9"), id="address-of-the-node-that-stays"),
            pytest.param(a_record(content="100.64.0.9", comment=""), id="unmarked-with-that-address"),
            pytest.param(
                a_record(type_="AAAA", content="fd7a:115c:a1e0:0000:0:0:0:9"), id="that-IPv6-in-another-spelling"
            ),
        ],
    )
    def test_other_record_stays(self, record: Record) -> None:
        assert gone(record, staying=addresses("100.64.0.9", "fd7a:115c:a1e0::9"), others=addresses("100.64.0.1")) == []

    def test_reason_says_whose_address_it_is(self) -> None:
        here = [a_record("a", content="100.64.0.1"), a_record("b", content="100.64.0.2")]
        changes = plan_records(here, identity=RECORD_IDENTITY, staying=(), others=addresses("100.64.0.2"))

        assert changes == [
            DeleteRecord(here[0], reason="its node is gone"),
            DeleteRecord(here[1], reason="its address belongs to another node"),
        ]

    def test_deletions_are_in_order_of_ids(self) -> None:
        assert gone(a_record("c"), a_record("a"), a_record("b")) == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("records", "others", "expected"),
        [
            pytest.param([a_record("a")], [], [], id="only-record-is-left"),
            pytest.param([a_record("a"), a_record("b")], [], ["b"], id="one-of-two-is-left"),
            pytest.param([a_record("a"), a_record("b", type_="AAAA", content=VPN6)], [], [], id="one-of-each-type"),
            pytest.param([a_record("a")], ["100.64.0.1"], ["a"], id="address-of-another-node"),
            pytest.param(
                [a_record("a"), a_record("b", content="100.64.0.2")],
                ["100.64.0.1"],
                ["a"],
                id="record-with-a-free-address-is-left",
            ),
            pytest.param([a_record("a", comment="x"), a_record("b")], [], [], id="foreign-record-does-not-count"),
            pytest.param([a_record("a", comment="")], [], [], id="record-of-an-older-script-is-left"),
        ],
    )
    def test_one_stale_record_can_be_left_for_dns_watch(
        self, records: list[Record], others: list[str], expected: list[str]
    ) -> None:
        """The name keeps resolving, unless it would resolve to another machine."""
        assert gone(*records, others=addresses(*others), leave_one=True) == expected

    @pytest.mark.parametrize("order", [1, -1])
    def test_no_stale_record_is_left_beside_a_valid_one(self, order: int) -> None:
        """The name resolves without it."""
        records = [a_record("a", content="100.64.0.1"), a_record("b", content="100.64.0.9")][::order]
        stays = addresses("100.64.0.9")

        assert gone(*records, staying=stays, others=stays, leave_one=True) == ["a"]

    def test_types_are_independent(self) -> None:
        records = [a_record("a", content="100.64.0.9"), a_record("b", type_="AAAA", content=VPN6)]

        assert gone(*records, staying=addresses("100.64.0.9"), leave_one=True) == []


class TestTakenName:
    """Another owner of this program uses the name."""

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(a_record(comment=OTHER_MARK), id="another-namespace"),
            pytest.param(a_record(comment=OTHER_MARK, content="203.0.113.7"), id="another-namespace-outside-the-VPN"),
            pytest.param(a_record(comment=OTHER_MARK, type_="AAAA", content=VPN6), id="another-namespace's-AAAA"),
            pytest.param(a_record(comment="tailscale-lifecycle/2 default"), id="later-mark-version"),
        ],
    )
    def test_name_of_another_owner_is_refused(self, record: Record) -> None:
        with pytest.raises(NameTakenError) as raised:
            refuse_taken_name([a_record("0"), record], identity=RECORD_IDENTITY)

        for part in (NAME, record.content, record.comment, MARK, "TS_HOSTNAME"):
            assert part in str(raised.value)

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(a_record(), id="ours"),
            pytest.param(a_record(comment=""), id="an-older-script's"),
            pytest.param(a_record(comment="managed by terraform"), id="foreign"),
            pytest.param(a_record(comment=OTHER_MARK, name=f"x.{NAME}"), id="at-another-name"),
            pytest.param(a_record(comment=OTHER_MARK, type_="TXT", content="x"), id="TXT"),
            pytest.param(a_record(comment=f"was {OTHER_MARK}"), id="comment-that-contains-the-mark"),
        ],
    )
    def test_other_record_is_no_reason_to_refuse(self, record: Record) -> None:
        refuse_taken_name([record], identity=RECORD_IDENTITY)

    def test_empty_zone_is_no_reason_to_refuse(self) -> None:
        refuse_taken_name([], identity=RECORD_IDENTITY)


USERS = st.one_of(st.none(), st.sampled_from([User("1", "svc"), User(None, "svc"), ANN, User(None, "ann")]))

NODES = st.lists(
    st.builds(
        a_node,
        st.integers(1, 40),
        hostname=st.sampled_from([NAME, NAME.upper(), f"{NAME}.evil", f"x-{NAME}", "other"]),
        user=USERS,
        key_user=USERS,
        tags=st.lists(st.sampled_from(["tag:svc", "tag:other"]), max_size=2),
        registered_by=st.sampled_from(RegisterMethod),
        online=st.booleans(),
        expires_at=st.sampled_from([None, EXPIRED]),
    ),
    max_size=8,
    unique_by=lambda node: node.id,
)

CONTENTS = [f"100.64.0.{number}" for number in range(1, 6)] + ["203.0.113.7", VPN6, "fd7a:115c:a1e0::2", "x"]

RECORDS = st.lists(
    st.builds(
        a_record,
        st.sampled_from("abcdefgh"),
        name=st.sampled_from([NAME, NAME, NAME, f"x.{NAME}"]),
        type_=st.sampled_from(["A", "A", "AAAA", "CNAME", "TXT"]),
        content=st.sampled_from(CONTENTS),
        comment=st.sampled_from([MARK, MARK, "", "", OTHER_MARK, "foreign", MARK.upper()]),
    ),
    max_size=8,
    unique_by=lambda record: record.id,
)

SOME_ADDRESSES = st.lists(st.sampled_from(CONTENTS[:-1]).map(ip_address), max_size=3, unique=True)


class TestProperties:
    """Properties that hold for every input."""

    @given(NODES, st.sampled_from([None, "1", "2", "3"]))
    def test_exactly_the_nodes_of_ours_are_deleted(self, nodes: list[Node], kept: str | None) -> None:
        deletions = deleted(nodes, kept=kept)

        for node in nodes:
            assert (node.id in deletions) is (NODE_IDENTITY.owns_node(node) and node.id != kept)
            if node.id in deletions:
                assert node.hostname.lower() == NAME
                assert node.registered_by is RegisterMethod.AUTH_KEY
                assert node.user is None or node.user.name != ANN.name

    @given(NODES, st.randoms(use_true_random=False))
    def test_order_of_nodes_does_not_matter(self, nodes: list[Node], random: Random) -> None:
        shuffled = nodes[:]
        random.shuffle(shuffled)

        assert deleted(shuffled) == deleted(nodes)
        assert foreign_nodes(shuffled, identity=NODE_IDENTITY) == foreign_nodes(nodes, identity=NODE_IDENTITY)

    @given(NODES)
    def test_plan_after_deletion_is_empty(self, nodes: list[Node]) -> None:
        deletions = deleted(nodes)
        left = [node for node in nodes if node.id not in deletions]

        assert deleted(left) == []
        assert foreign_nodes(left, identity=NODE_IDENTITY) == foreign_nodes(nodes, identity=NODE_IDENTITY)

    @given(NODES)
    def test_every_node_of_our_name_is_deleted_or_reported(self, nodes: list[Node]) -> None:
        handled = [*deleted(nodes), *(node.id for node in foreign_nodes(nodes, identity=NODE_IDENTITY))]

        assert sorted(handled) == sorted(node.id for node in nodes if node.hostname.lower() == NAME)

    @given(RECORDS, SOME_ADDRESSES, SOME_ADDRESSES, st.booleans())
    def test_only_records_of_ours_are_deleted(
        self, records: list[Record], staying: list[IpAddress], others: list[IpAddress], leave_one: bool
    ) -> None:
        changes = plan_records(records, identity=RECORD_IDENTITY, staying=staying, others=others, leave_one=leave_one)

        for change in changes:
            record = change.record
            assert record in records
            assert (record.name, record.type in {"A", "AAAA"}) == (NAME, True)
            assert record.comment == MARK or (record.comment == "" and record.content.startswith(("100.64.", "fd7a:")))
            assert record.address not in staying

    @given(RECORDS, SOME_ADDRESSES, SOME_ADDRESSES)
    def test_every_stale_record_is_deleted(
        self, records: list[Record], staying: list[IpAddress], others: list[IpAddress]
    ) -> None:
        stale = {
            record.id for record in records if RECORD_IDENTITY.owns_record(record) and record.address not in staying
        }

        assert set(gone(*records, staying=staying, others=others)) == stale

    @given(RECORDS, SOME_ADDRESSES, SOME_ADDRESSES)
    def test_at_most_one_stale_record_of_each_type_is_left(
        self, records: list[Record], staying: list[IpAddress], others: list[IpAddress]
    ) -> None:
        """It is left only beside no valid record, and never with the address of another node."""
        all_stale = set(gone(*records, staying=staying, others=others))
        left = all_stale - set(gone(*records, staying=staying, others=others, leave_one=True))

        for type_ in ("A", "AAAA"):
            ours = [record for record in records if RECORD_IDENTITY.owns_record(record) and record.type == type_]
            left_here = [record for record in ours if record.id in left]
            has_valid = any(record.address in staying for record in ours)
            candidates = [record for record in ours if record.id in all_stale and record.address not in others]
            assert len(left_here) == (1 if candidates and not has_valid else 0)
            assert all(record in candidates for record in left_here)

    @given(RECORDS, SOME_ADDRESSES, SOME_ADDRESSES, st.booleans(), st.randoms(use_true_random=False))
    def test_order_of_records_does_not_matter(
        self,
        records: list[Record],
        staying: list[IpAddress],
        others: list[IpAddress],
        leave_one: bool,
        random: Random,
    ) -> None:
        shuffled = records[:]
        random.shuffle(shuffled)

        assert gone(*shuffled, staying=staying, others=others, leave_one=leave_one) == gone(
            *records, staying=staying[::-1], others=others[::-1], leave_one=leave_one
        )

    @given(RECORDS, SOME_ADDRESSES, SOME_ADDRESSES, st.booleans())
    def test_plan_after_record_deletion_is_empty(
        self, records: list[Record], staying: list[IpAddress], others: list[IpAddress], leave_one: bool
    ) -> None:
        deletions = gone(*records, staying=staying, others=others, leave_one=leave_one)
        left = [record for record in records if record.id not in deletions]

        assert gone(*left, staying=staying, others=others, leave_one=leave_one) == []

    @given(RECORDS)
    def test_name_is_refused_only_for_the_mark_of_another_owner(self, records: list[Record]) -> None:
        taken = any(
            record.name == NAME and record.type in {"A", "AAAA"} and record.comment == OTHER_MARK for record in records
        )
        try:
            refuse_taken_name(records, identity=RECORD_IDENTITY)
            refused = False
        except NameTakenError:
            refused = True

        assert refused is taken

    @given(NODES, st.integers(1, 40))
    def test_kept_node_is_the_named_node_if_it_is_ours(self, nodes: list[Node], node_id: int) -> None:
        """Age and online state do not matter."""
        found = choose_kept(nodes, identity=NODE_IDENTITY, state=SavedState(str(node_id)), version="0.29.0", now=NOW)
        awake = choose_kept(
            [replace(node, online=not node.online) for node in reversed(nodes)],
            identity=NODE_IDENTITY,
            state=SavedState(str(node_id)),
            version="0.29.0",
            now=NOW,
        )

        named = [node for node in nodes if node.id == str(node_id)]
        usable = [node for node in named if NODE_IDENTITY.owns_node(node) and not node.expired(NOW)]
        assert found == usable[0] if usable else isinstance(found, NothingKept)
        assert isinstance(awake, Node) is bool(usable)
