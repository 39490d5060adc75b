"""What `cleanup` removes, what it leaves, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.cleanup.plan import (
    NothingKept,
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
    """Every node of ours goes, and no other."""

    @pytest.mark.parametrize(
        "node",
        [
            pytest.param(a_node(online=False), id="offline"),
            pytest.param(a_node(online=True), id="online-all-the-same"),
            pytest.param(a_node(expires_at=EXPIRED), id="expired"),
            pytest.param(a_node(hostname=NAME.upper()), id="other-case"),
            pytest.param(a_node(addresses=()), id="without-an-address"),
            pytest.param(a_node(user=None), id="tagged-with-our-key"),
            pytest.param(a_node(user=None, key_user=None, tags=["tag:svc"]), id="of-our-tag-alone"),
        ],
    )
    def test_goes(self, node: Node) -> None:
        assert plan_nodes([node], identity=NODE_IDENTITY) == [DeleteNode(node, reason="left by an earlier pod")]
        assert foreign_nodes([node], identity=NODE_IDENTITY) == []

    @pytest.mark.parametrize(
        ("node", "is_warned_about"),
        [
            pytest.param(a_node(hostname=f"{NAME}.evil"), False, id="longer-hostname"),
            pytest.param(a_node(hostname=f"x-{NAME}"), False, id="prefixed-hostname"),
            pytest.param(a_node(hostname="invalid-abcd1234"), False, id="name-that-Headscale-made-up"),
            pytest.param(a_node(user=ANN), True, id="another-user's"),
            pytest.param(a_node(user=None, key_user=ANN, tags=["tag:svc"]), True, id="tagged-with-another-user's-key"),
            pytest.param(a_node(registered_by=RegisterMethod.OIDC), True, id="a-person's-machine"),
            pytest.param(a_node(registered_by=RegisterMethod.CLI), True, id="registered-by-hand"),
            pytest.param(a_node(registered_by=RegisterMethod.UNKNOWN), True, id="registered-in-an-unknown-way"),
        ],
    )
    def test_stays(self, node: Node, is_warned_about: bool) -> None:
        assert deleted([node]) == []
        assert foreign_nodes([node], identity=NODE_IDENTITY) == ([node] if is_warned_about else [])

    def test_the_kept_one_stays_and_the_others_go(self) -> None:
        assert deleted([a_node(1), a_node(2), a_node(3)], kept="2") == ["1", "3"]

    def test_a_kept_id_is_the_whole_id(self) -> None:
        assert deleted([a_node(1), a_node(12)], kept="2") == ["1", "12"]

    def test_ids_are_numbers_in_the_order(self) -> None:
        assert deleted([a_node(10), a_node(9), a_node(100)]) == ["9", "10", "100"]
        foreign = [a_node(10, user=ANN), a_node(9, user=ANN)]
        assert [node.id for node in foreign_nodes(foreign, identity=NODE_IDENTITY)] == ["9", "10"]

    def test_nothing_to_do(self) -> None:
        assert deleted([]) == []


class TestKept:
    """Which node comes back with the state in the Secret."""

    @staticmethod
    def kept(*nodes: Node, state: dict[str, bytes] | None, version: str = "0.29.2") -> Node | NothingKept:
        return choose_kept(nodes, identity=NODE_IDENTITY, state=state, version=version, now=NOW)

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
    def test_kept(self, node: Node, version: str) -> None:
        """By its id alone: never the newest, never the one that is online."""
        assert self.kept(a_node(8), node, a_node(6), state={"device_id": b"7"}, version=version) is node

    @pytest.mark.parametrize(
        ("node", "state", "version", "says"),
        [
            pytest.param(a_node(7), None, "0.29.2", "no such Secret", id="no-secret"),
            pytest.param(a_node(7), {}, "0.29.2", "device_id", id="empty-secret"),
            pytest.param(a_node(7), {"device_id": b""}, "0.29.2", "device_id", id="empty-id"),
            pytest.param(a_node(7), {"device_ips": b'["100.64.0.7"]'}, "0.29.2", "device_id", id="addresses-alone"),
            pytest.param(a_node(7), {"device_id": b"8"}, "0.29.2", "no node 8", id="no-such-node"),
            pytest.param(a_node(7), {"device_id": b"07"}, "0.29.2", "no node 07", id="another-spelling"),
            pytest.param(a_node(7), {"device_id": b"\xff"}, "0.29.2", "no node", id="no-text"),
            pytest.param(a_node(7, user=ANN), {"device_id": b"7"}, "0.29.2", "not ours", id="another-user's"),
            pytest.param(a_node(7, hostname="x"), {"device_id": b"7"}, "0.29.2", "not ours", id="another-name"),
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
    def test_nothing_kept(self, node: Node, state: dict[str, bytes] | None, version: str, says: str) -> None:
        """And it says why."""
        found = self.kept(node, a_node(1), state=state, version=version)

        assert isinstance(found, NothingKept)
        assert says in found.reason


def gone(
    *records: Record,
    staying: Sequence[IpAddress] = (),
    others: Sequence[IpAddress] = (),
    leave_one: bool = False,
) -> list[str]:
    changes = plan_records(records, identity=RECORD_IDENTITY, staying=staying, others=others, leave_one=leave_one)
    return [change.record.id for change in changes]


class TestRecords:
    """Records of ours that point where this service no longer is."""

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
    def test_goes(self, record: Record) -> None:
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
    def test_stays(self, record: Record) -> None:
        assert gone(record, staying=addresses("100.64.0.9", "fd7a:115c:a1e0::9"), others=addresses("100.64.0.1")) == []

    def test_why(self) -> None:
        here = [a_record("a", content="100.64.0.1"), a_record("b", content="100.64.0.2")]
        changes = plan_records(here, identity=RECORD_IDENTITY, staying=(), others=addresses("100.64.0.2"))

        assert changes == [
            DeleteRecord(here[0], reason="its node is gone"),
            DeleteRecord(here[1], reason="its address belongs to another node"),
        ]

    def test_the_order_is_that_of_the_ids(self) -> None:
        assert gone(a_record("c"), a_record("a"), a_record("b")) == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("records", "others", "expected"),
        [
            pytest.param([a_record("a")], [], [], id="the-only-one-is-left"),
            pytest.param([a_record("a"), a_record("b")], [], ["b"], id="one-is-enough"),
            pytest.param([a_record("a"), a_record("b", type_="AAAA", content=VPN6)], [], [], id="one-of-each-type"),
            pytest.param([a_record("a")], ["100.64.0.1"], ["a"], id="not-another-node's"),
            pytest.param(
                [a_record("a"), a_record("b", content="100.64.0.2")],
                ["100.64.0.1"],
                ["a"],
                id="the-one-that-is-nobody's",
            ),
            pytest.param(
                [a_record("a", comment="x"), a_record("b")], [], [], id="a-foreign-one-is-not-the-one-that-is-left"
            ),
            pytest.param([a_record("a", comment="")], [], [], id="an-older-script's-is-left"),
        ],
    )
    def test_one_can_be_left_for_dns_watch(self, records: list[Record], others: list[str], expected: list[str]) -> None:
        """So that resolvers do not learn that there is no such name, unless it would lead to somebody else."""
        assert gone(*records, others=addresses(*others), leave_one=True) == expected

    @pytest.mark.parametrize("order", [1, -1])
    def test_none_is_left_beside_the_right_one(self, order: int) -> None:
        """The name resolves already: a stale one would send every other client to nobody."""
        records = [a_record("a", content="100.64.0.1"), a_record("b", content="100.64.0.9")][::order]
        stays = addresses("100.64.0.9")

        assert gone(*records, staying=stays, others=stays, leave_one=True) == ["a"]

    def test_one_type_says_nothing_of_the_other(self) -> None:
        records = [a_record("a", content="100.64.0.9"), a_record("b", type_="AAAA", content=VPN6)]

        assert gone(*records, staying=addresses("100.64.0.9"), leave_one=True) == []


class TestTakenName:
    """Another owner of this program runs the name."""

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(a_record(comment=OTHER_MARK), id="another-namespace"),
            pytest.param(a_record(comment=OTHER_MARK, content="203.0.113.7"), id="another-namespace-outside-the-VPN"),
            pytest.param(a_record(comment=OTHER_MARK, type_="AAAA", content=VPN6), id="another-namespace's-AAAA"),
            pytest.param(a_record(comment="tailscale-lifecycle/2 default"), id="a-later-version-of-ours"),
        ],
    )
    def test_refused(self, record: Record) -> None:
        with pytest.raises(NameTakenError) as raised:
            refuse_taken_name([a_record("0"), record], identity=RECORD_IDENTITY)

        for part in (NAME, record.content, record.comment, MARK, "TS_HOSTNAME", "nothing was deleted"):
            assert part in str(raised.value)

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(a_record(), id="ours"),
            pytest.param(a_record(comment=""), id="an-older-script's"),
            pytest.param(a_record(comment="managed by terraform"), id="foreign"),
            pytest.param(a_record(comment=OTHER_MARK, name=f"x.{NAME}"), id="at-another-name"),
            pytest.param(a_record(comment=OTHER_MARK, type_="TXT", content="x"), id="no-address"),
            pytest.param(a_record(comment=f"was {OTHER_MARK}"), id="a-comment-about-it"),
        ],
    )
    def test_not_refused(self, record: Record) -> None:
        refuse_taken_name([record], identity=RECORD_IDENTITY)

    def test_an_empty_zone_is_no_objection(self) -> None:
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
    """For every world."""

    @given(NODES, st.sampled_from([None, "1", "2", "3"]))
    def test_only_nodes_of_ours_go_and_all_of_them(self, nodes: list[Node], kept: str | None) -> None:
        going = deleted(nodes, kept=kept)

        for node in nodes:
            assert (node.id in going) is (NODE_IDENTITY.owns_node(node) and node.id != kept)
            if node.id in going:
                assert node.hostname.lower() == NAME
                assert node.registered_by is RegisterMethod.AUTH_KEY
                assert node.user is None or node.user.name != ANN.name

    @given(NODES, st.randoms(use_true_random=False))
    def test_the_order_of_the_nodes_changes_nothing(self, nodes: list[Node], random: Random) -> None:
        shuffled = nodes[:]
        random.shuffle(shuffled)

        assert deleted(shuffled) == deleted(nodes)
        assert foreign_nodes(shuffled, identity=NODE_IDENTITY) == foreign_nodes(nodes, identity=NODE_IDENTITY)

    @given(NODES)
    def test_once_done_nothing_is_left_to_do(self, nodes: list[Node]) -> None:
        going = deleted(nodes)
        left = [node for node in nodes if node.id not in going]

        assert deleted(left) == []
        assert foreign_nodes(left, identity=NODE_IDENTITY) == foreign_nodes(nodes, identity=NODE_IDENTITY)

    @given(NODES)
    def test_every_node_of_our_name_goes_or_is_warned_about(self, nodes: list[Node]) -> None:
        told = [*deleted(nodes), *(node.id for node in foreign_nodes(nodes, identity=NODE_IDENTITY))]

        assert sorted(told) == sorted(node.id for node in nodes if node.hostname.lower() == NAME)

    @given(RECORDS, SOME_ADDRESSES, SOME_ADDRESSES, st.booleans())
    def test_only_records_of_ours_go(
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
    def test_every_stale_record_goes(
        self, records: list[Record], staying: list[IpAddress], others: list[IpAddress]
    ) -> None:
        stale = {
            record.id for record in records if RECORD_IDENTITY.owns_record(record) and record.address not in staying
        }

        assert set(gone(*records, staying=staying, others=others)) == stale

    @given(RECORDS, SOME_ADDRESSES, SOME_ADDRESSES)
    def test_leaving_one_leaves_at_most_one(
        self, records: list[Record], staying: list[IpAddress], others: list[IpAddress]
    ) -> None:
        """Of each type, and only where none is right; never one that leads to another node."""
        all_stale = set(gone(*records, staying=staying, others=others))
        left = all_stale - set(gone(*records, staying=staying, others=others, leave_one=True))

        for type_ in ("A", "AAAA"):
            ours = [record for record in records if RECORD_IDENTITY.owns_record(record) and record.type == type_]
            left_here = [record for record in ours if record.id in left]
            right = any(record.address in staying for record in ours)
            candidates = [record for record in ours if record.id in all_stale and record.address not in others]
            assert len(left_here) == (1 if candidates and not right else 0)
            assert all(record in candidates for record in left_here)

    @given(RECORDS, SOME_ADDRESSES, SOME_ADDRESSES, st.booleans(), st.randoms(use_true_random=False))
    def test_the_order_of_the_records_changes_nothing(
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
    def test_once_they_are_gone_nothing_is_left_to_do(
        self, records: list[Record], staying: list[IpAddress], others: list[IpAddress], leave_one: bool
    ) -> None:
        going = gone(*records, staying=staying, others=others, leave_one=leave_one)
        left = [record for record in records if record.id not in going]

        assert gone(*left, staying=staying, others=others, leave_one=leave_one) == []

    @given(RECORDS)
    def test_a_name_is_refused_only_for_another_owners_mark(self, records: list[Record]) -> None:
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
    def test_the_kept_node_is_the_one_that_is_named_and_ours(self, nodes: list[Node], node_id: int) -> None:
        """Nothing else about a node matters: not its age, nor whether it is online."""
        found = choose_kept(
            nodes, identity=NODE_IDENTITY, state={"device_id": str(node_id).encode()}, version="0.29.0", now=NOW
        )
        awake = choose_kept(
            [replace(node, online=not node.online) for node in reversed(nodes)],
            identity=NODE_IDENTITY,
            state={"device_id": str(node_id).encode()},
            version="0.29.0",
            now=NOW,
        )

        named = [node for node in nodes if node.id == str(node_id)]
        usable = [node for node in named if NODE_IDENTITY.owns_node(node) and not node.expired(NOW)]
        assert found == usable[0] if usable else isinstance(found, NothingKept)
        assert isinstance(awake, Node) is bool(usable)
