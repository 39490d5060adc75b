"""Test which nodes and records `cleanup` deletes.

These tests call pure functions, without simulators, with tables of cases and with random values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.cleanup.plan import (
    CleanupConfig,
    foreign_nodes,
    plan_nodes,
    plan_records,
    refuse_taken_name,
)
from lifecycle.domain.changes import DeleteNode, DeleteRecord
from lifecycle.domain.errors import NameTakenError
from lifecycle.domain.model import IpAddress, KeySpec, Node, Record, RegisterMethod, User
from tests.builders import (
    ANN,
    COMMENT_OF_OTHER_OWNER,
    EXPIRED,
    NAME,
    NODE_OWNERSHIP,
    OUR_COMMENT,
    RECORD_OWNERSHIP,
    a_node,
    a_record,
    addresses,
)

VPN_IPV6_ADDRESS = "fd7a:115c:a1e0::1"

CONFIG = CleanupConfig(
    main_name_ownership=RECORD_OWNERSHIP,
    key_spec=lambda user: KeySpec(user, lifetime=timedelta(hours=1)),
    keep_node=False,
    keep_name_resolving=False,
)


def deleted_nodes(nodes: Iterable[Node], *, kept: str | None = None) -> list[str]:
    """Return the ids of the nodes that `cleanup` would delete. `kept` is the id of a node that must stay."""
    return [change.node.id for change in plan_nodes(nodes, node_ownership=NODE_OWNERSHIP, kept_id=kept)]


def foreign_ids(nodes: Iterable[Node]) -> list[str]:
    """Return the ids of the nodes that have our hostname and are not ours."""
    return [node.id for node in foreign_nodes(nodes, node_ownership=NODE_OWNERSHIP)]


class TestNodes:
    """Our nodes, which earlier pods left, are deleted. Other nodes stay, and are foreign if they have the hostname."""

    def test_our_nodes_are_deleted_and_nodes_with_our_hostname_are_foreign(self) -> None:
        """tests/test_ownership.py tests which nodes are ours."""
        nodes = [a_node(1), a_node(2, user=ANN), a_node(3, hostname=f"x-{NAME}")]
        assert plan_nodes(nodes, node_ownership=NODE_OWNERSHIP) == [
            DeleteNode(nodes[0], reason="it was left by an earlier pod")
        ]
        assert foreign_nodes(nodes, node_ownership=NODE_OWNERSHIP) == [nodes[1]]

    def test_kept_node_stays_and_others_are_deleted(self) -> None:
        assert deleted_nodes([a_node(1), a_node(2), a_node(3)], kept="2") == ["1", "3"]

    def test_id_of_the_kept_node_is_compared_exactly(self) -> None:
        assert deleted_nodes([a_node(1), a_node(12)], kept="2") == ["1", "12"]

    def test_order_is_by_numeric_id(self) -> None:
        assert deleted_nodes([a_node(10), a_node(9), a_node(100)]) == ["9", "10", "100"]
        assert foreign_ids([a_node(10, user=ANN), a_node(9, user=ANN)]) == ["9", "10"]


def record_deletions(
    records: Iterable[Record],
    *,
    our_addresses: Iterable[IpAddress] = (),
    other_addresses: Iterable[IpAddress] = (),
    leave_one: bool = False,
) -> list[DeleteRecord]:
    """Return the planned deletions.

    Args:
        records: the existing records.
        our_addresses: the addresses of a node of ours.
        other_addresses: the addresses of a node of another user.
        leave_one: whether one stale record of each type stays, so that the name resolves until `dns-watch` starts.
    """
    nodes = [
        a_node(1, addresses=map(str, our_addresses)),
        a_node(2, user=ANN, addresses=map(str, other_addresses)),
    ]
    return plan_records(
        records, nodes, config=replace(CONFIG, keep_name_resolving=leave_one), node_ownership=NODE_OWNERSHIP
    )


def deleted_records(*records: Record, **options: Any) -> list[str]:
    """Return the ids of the records that `cleanup` would delete."""
    return [change.record.id for change in record_deletions(records, **options)]


class TestRecords:
    """Our stale records are deleted. A record is stale if none of our nodes has its address."""

    def test_stale_record_is_deleted_if_it_is_ours(self) -> None:
        """tests/test_ownership.py tests which records are ours."""
        assert deleted_records(a_record("a"), a_record("b", comment="by hand"), a_record("c", comment="")) == ["a", "c"]

    def test_reason_names_the_state_of_the_address(self) -> None:
        records = [a_record("a", content="100.64.0.1"), a_record("b", content="100.64.0.2")]

        assert record_deletions(records, other_addresses=addresses("100.64.0.2")) == [
            DeleteRecord(records[0], reason="no remaining node has this address"),
            DeleteRecord(records[1], reason="its address belongs to another node"),
        ]

    def test_deletions_are_in_order_of_ids(self) -> None:
        assert deleted_records(a_record("c"), a_record("a"), a_record("b")) == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("records", "other_addresses", "expected"),
        [
            pytest.param([a_record("a")], [], [], id="only record"),
            pytest.param([a_record("a"), a_record("b")], [], ["b"], id="two records"),
            pytest.param(
                [a_record("a"), a_record("b", type_="AAAA", content=VPN_IPV6_ADDRESS)], [], [], id="two types"
            ),
            pytest.param([a_record("a", content="100.64.0.1")], ["100.64.0.1"], ["a"], id="address of another node"),
            pytest.param(
                [a_record("a", content="100.64.0.1"), a_record("b", content="100.64.0.2")],
                ["100.64.0.1"],
                ["a"],
                id="addresses of another node and of none",
            ),
            pytest.param(
                [a_record("a", comment="by hand"), a_record("b")], [], [], id="only record beside a foreign one"
            ),
            pytest.param([a_record("a", comment="")], [], [], id="only record, without comment"),
        ],
    )
    def test_one_stale_record_of_each_type_can_stay(
        self, records: list[Record], other_addresses: list[str], expected: list[str]
    ) -> None:
        """The name then resolves until `dns-watch` starts. A record with another node's address is still deleted."""
        assert deleted_records(*records, other_addresses=addresses(*other_addresses), leave_one=True) == expected

    @pytest.mark.parametrize(("stale_id", "valid_id"), [("a", "b"), ("b", "a")])
    def test_no_stale_record_stays_beside_a_valid_one(self, stale_id: str, valid_id: str) -> None:
        """The valid record is enough for the name to resolve, even if another node has the same address."""
        records = [a_record(stale_id, content="100.64.0.1"), a_record(valid_id, content="100.64.0.9")]
        valid = addresses("100.64.0.9")

        assert deleted_records(*records, our_addresses=valid, other_addresses=valid, leave_one=True) == [stale_id]

    @pytest.mark.parametrize(
        ("type_", "valid", "expected"), [("A", "100.64.0.9", []), ("AAAA", "fd7a:115c:a1e0::9", ["b"])]
    )
    def test_stale_aaaa_record_stays_only_beside_a_valid_a_record(
        self, type_: str, valid: str, expected: list[str]
    ) -> None:
        records = [a_record("a", type_=type_, content=valid), a_record("b", type_="AAAA", content=VPN_IPV6_ADDRESS)]

        assert deleted_records(*records, our_addresses=addresses(valid), leave_one=True) == expected


class TestTakenName:
    """`cleanup` fails if the name has a record with the comment of another DNS_OWNER or of another workload."""

    def test_name_of_another_owner_is_refused(self) -> None:
        record = a_record(comment=COMMENT_OF_OTHER_OWNER)
        with pytest.raises(NameTakenError) as raised:
            refuse_taken_name([a_record("0"), record], record_ownership=RECORD_OWNERSHIP)
        for part in (NAME, record.content, record.comment, OUR_COMMENT, "TS_HOSTNAME"):
            assert part in str(raised.value)


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

ADDRESS_TEXTS = [f"100.64.0.{number}" for number in range(1, 6)] + [
    "203.0.113.7",
    VPN_IPV6_ADDRESS,
    "fd7a:115c:a1e0::2",
]

# The comments of records of another owner, and of another workload with the same owner at one of its further names.
COMMENTS_OF_OTHERS = (COMMENT_OF_OTHER_OWNER, f"{OUR_COMMENT} other.example.com")

RECORDS = st.lists(
    st.builds(
        a_record,
        st.sampled_from("abcdefgh"),
        name=st.sampled_from([NAME, NAME, NAME, f"x.{NAME}"]),
        type_=st.sampled_from(["A", "A", "AAAA", "CNAME", "TXT"]),
        content=st.sampled_from([*ADDRESS_TEXTS, "not an address"]),
        comment=st.sampled_from(
            [OUR_COMMENT, OUR_COMMENT, "", "", *COMMENTS_OF_OTHERS, "foreign", OUR_COMMENT.upper()]
        ),
    ),
    max_size=8,
    unique_by=lambda record: record.id,
)

ADDRESSES = st.lists(st.sampled_from(ADDRESS_TEXTS).map(ip_address), max_size=3, unique=True)

# The other arguments of record_deletions.
OTHER_ARGUMENTS = st.fixed_dictionaries(
    {"our_addresses": ADDRESSES, "other_addresses": ADDRESSES, "leave_one": st.booleans()}
)


class TestProperties:
    """Properties of the plan that hold for every input."""

    @given(NODES, st.sampled_from([None, "1", "2", "3"]))
    def test_all_our_nodes_and_no_others_are_deleted(self, nodes: list[Node], kept: str | None) -> None:
        deletions = deleted_nodes(nodes, kept=kept)

        for node in nodes:
            assert (node.id in deletions) is (NODE_OWNERSHIP.is_owned(node) and node.id != kept)
            if node.id in deletions:
                assert node.hostname.lower() == NAME
                assert node.registered_by is RegisterMethod.AUTH_KEY
                assert node.user is None or node.user.name != ANN.name

    @given(NODES, st.randoms(use_true_random=False))
    def test_plan_does_not_depend_on_the_order_of_nodes(self, nodes: list[Node], random: Random) -> None:
        shuffled = nodes[:]
        random.shuffle(shuffled)

        assert deleted_nodes(shuffled) == deleted_nodes(nodes)
        assert foreign_ids(shuffled) == foreign_ids(nodes)

    @given(NODES)
    def test_plan_after_the_deletion_of_nodes_is_empty(self, nodes: list[Node]) -> None:
        deletions = deleted_nodes(nodes)
        remaining = [node for node in nodes if node.id not in deletions]

        assert deleted_nodes(remaining) == []
        assert foreign_ids(remaining) == foreign_ids(nodes)

    @given(NODES)
    def test_every_node_with_our_hostname_is_deleted_or_foreign(self, nodes: list[Node]) -> None:
        assert sorted([*deleted_nodes(nodes), *foreign_ids(nodes)]) == sorted(
            node.id for node in nodes if node.hostname.lower() == NAME
        )

    @given(RECORDS, OTHER_ARGUMENTS)
    def test_only_our_records_are_deleted(self, records: list[Record], options: dict[str, Any]) -> None:
        for change in record_deletions(records, **options):
            record = change.record
            assert record in records
            assert record.name == NAME
            assert record.type in {"A", "AAAA"}
            assert record.comment == OUR_COMMENT or (
                record.comment == "" and record.content.startswith(("100.64.", "fd7a:"))
            )
            assert record.address not in options["our_addresses"]

    @given(RECORDS, OTHER_ARGUMENTS)
    def test_every_stale_record_is_deleted(self, records: list[Record], options: dict[str, Any]) -> None:
        """With `leave_one`, one stale record of each type stays, unless a valid record of this type exists.

        A record with the address of another node is always deleted.
        """
        our_addresses, other_addresses = options["our_addresses"], options["other_addresses"]
        deletions = deleted_records(*records, **options)

        for type_ in ("A", "AAAA"):
            ours = [record for record in records if RECORD_OWNERSHIP.is_owned(record) and record.type == type_]
            stale = [record for record in ours if record.address not in our_addresses]
            staying = [record for record in stale if record.id not in deletions]
            candidates = [record for record in stale if record.address not in other_addresses]
            one_stays = options["leave_one"] and candidates and len(stale) == len(ours)
            assert len(staying) == (1 if one_stays else 0)
            assert all(record in candidates for record in staying)

    @given(RECORDS, OTHER_ARGUMENTS, st.randoms(use_true_random=False))
    def test_plan_does_not_depend_on_the_order_of_records(
        self, records: list[Record], options: dict[str, Any], random: Random
    ) -> None:
        shuffled = records[:]
        random.shuffle(shuffled)

        assert deleted_records(*shuffled, **options) == deleted_records(*records, **options)

    @given(RECORDS, OTHER_ARGUMENTS)
    def test_plan_after_the_deletion_of_records_is_empty(self, records: list[Record], options: dict[str, Any]) -> None:
        deletions = deleted_records(*records, **options)
        remaining = [record for record in records if record.id not in deletions]

        assert deleted_records(*remaining, **options) == []

    @given(RECORDS)
    def test_name_is_refused_only_for_a_comment_of_another_owner_or_workload(self, records: list[Record]) -> None:
        taken = any(
            record.name == NAME and record.type in {"A", "AAAA", "CNAME"} and record.comment in COMMENTS_OF_OTHERS
            for record in records
        )
        try:
            refuse_taken_name(records, record_ownership=RECORD_OWNERSHIP)
            refused = False
        except NameTakenError:
            refused = True

        assert refused is taken
