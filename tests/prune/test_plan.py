"""Test which workloads `prune` removes. These tests call pure functions, without simulators."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.domain.errors import LifecycleError
from lifecycle.domain.model import Node, Record, RegisterMethod
from lifecycle.domain.ownership import main_name_of
from lifecycle.prune.plan import Leftovers, Observation, PruneConfig, plan_prune
from tests.builders import (
    ALIAS,
    ANN,
    COMMENT_AT_FURTHER_NAMES,
    NAME,
    NOW,
    OUR_COMMENT,
    OUR_USER,
    SHARED_NAME,
    a_node,
    a_record,
)

PRUNE_AFTER = timedelta(days=7)
LONG_AGO = NOW - timedelta(days=8)
AT_THE_LIMIT = NOW - PRUNE_AFTER

CONFIG = PruneConfig(
    name=None, domain="example.com", mark=OUR_COMMENT, tags=frozenset(), prune_after=PRUNE_AFTER, prune_max=10
)

ONLINE_NODE = a_node(99, hostname="other.example.com")
OFFLINE_NODE = a_node(online=False, last_seen=LONG_AGO)


def plan(nodes: list[Node], records: list[Record], config: PruneConfig = CONFIG) -> list[Leftovers]:
    """Return the workloads that `prune` would remove."""
    return plan_prune(Observation(OUR_USER, tuple(nodes), tuple(records)), config=config, now=NOW)


def removed(nodes: list[Node], records: list[Record] | None = None) -> list[tuple[str, list[str]]]:
    """Add an online node of another workload, and return the name and node ids of each workload that is removed."""
    workloads = plan([ONLINE_NODE, *nodes], [a_record()] if records is None else records)
    return [(workload.name, [node.id for node in workload.nodes]) for workload in workloads]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        pytest.param([], [(NAME, [])], id="node is gone"),
        pytest.param([OFFLINE_NODE], [(NAME, ["1"])], id="offline for long"),
        pytest.param(
            [replace(OFFLINE_NODE, hostname="grafana")],
            [(NAME, ["1"])],
            id="hostname without domain",
        ),
        pytest.param(
            [OFFLINE_NODE, a_node(2, online=False, last_seen=LONG_AGO)],
            [(NAME, ["1", "2"])],
            id="several offline for long",
        ),
        pytest.param([a_node(hostname=f"my-{NAME}")], [(NAME, [])], id="only a longer hostname is online"),
    ],
)
def test_workload_that_is_gone_is_removed(nodes: list[Node], expected: list[tuple[str, list[str]]]) -> None:
    assert removed(nodes) == expected


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([a_node()], id="online"),
        pytest.param([a_node(hostname="grafana")], id="online with the short hostname"),
        pytest.param([a_node(hostname=NAME.upper())], id="online in upper case"),
        pytest.param([a_node(online=False, last_seen=AT_THE_LIMIT)], id="offline for exactly the limit"),
        pytest.param([a_node(online=False, last_seen=None)], id="offline for an unknown time"),
        pytest.param([OFFLINE_NODE, a_node(2)], id="offline node beside an online one"),
        pytest.param([a_node(user=ANN, key_user=ANN)], id="node of another user"),
        pytest.param([replace(OFFLINE_NODE, user=ANN)], id="offline node that was moved to another user"),
        pytest.param([replace(OFFLINE_NODE, registered_by=RegisterMethod.CLI)], id="registered by CLI"),
    ],
)
def test_workload_that_may_be_running_stays(nodes: list[Node]) -> None:
    assert removed(nodes) == []


RECORDS_IN_A_SUBDOMAIN = [a_record(name="grafana.sub.example.com")]


def test_online_node_with_a_short_hostname_protects_a_workload_in_a_subdomain() -> None:
    """A pod with DOMAIN_NAME=sub.example.com can have the hostname `grafana`."""
    assert removed([a_node(hostname="grafana")], records=RECORDS_IN_A_SUBDOMAIN) == []


def test_node_that_may_belong_to_another_workload_stays() -> None:
    """The node may belong to grafana.example.com, whose record is not in the list."""
    offline = replace(OFFLINE_NODE, hostname="grafana")
    assert removed([offline], records=RECORDS_IN_A_SUBDOMAIN) == [("grafana.sub.example.com", [])]


@pytest.mark.parametrize(
    "other_nodes",
    [[], [a_node(98, hostname="other.example.com", online=False)]],
    ids=["one-node", "two-nodes"],
)
def test_nothing_is_removed_while_no_node_is_online(other_nodes: list[Node]) -> None:
    """After a restart of Headscale every node is offline, and `last_seen` can be old."""
    assert plan([OFFLINE_NODE, *other_nodes], [a_record()]) == []


def test_node_without_a_record_is_never_removed() -> None:
    assert removed([OFFLINE_NODE], records=[]) == []


@pytest.mark.parametrize("name", [NAME, NAME.upper(), f"{NAME}.", "grafana"])
def test_named_workload_is_removed_even_if_it_is_online(name: str) -> None:
    other = a_record("b", name="redmine.example.com")
    nodes = [a_node(1), a_node(2, user=ANN, key_user=ANN), a_node(3, hostname="redmine.example.com")]
    [workload] = plan(nodes, [other, a_record()], replace(CONFIG, name=name))
    assert (workload.name, [node.id for node in workload.nodes]) == (NAME, ["1"])


def test_name_without_records_is_an_error() -> None:
    with pytest.raises(LifecycleError, match=r"no record of wiki .* Set DNS_OWNER"):
        plan([a_node()], [a_record()], replace(CONFIG, name="wiki"))


@pytest.mark.parametrize(
    ("node", "record"),
    [
        pytest.param(None, a_record(), id="node is gone"),
        pytest.param(
            replace(OFFLINE_NODE, machine_key="mkey:another"), a_record(), id="id was assigned to another machine"
        ),
        pytest.param(OFFLINE_NODE, a_record("b"), id="another record"),
        pytest.param(OFFLINE_NODE, a_record(content="100.64.0.77"), id="record with another address"),
    ],
)
def test_workload_that_changed_is_not_confirmed(node: Node | None, record: Record) -> None:
    """`prune` plans, waits, and plans again. It removes only a workload that is the same in both plans."""
    [planned] = plan([ONLINE_NODE, OFFLINE_NODE], [a_record()])
    [later] = plan([ONLINE_NODE, *([node] if node else [])], [record])
    assert later.deletions != planned.deletions


def test_unchanged_workload_is_confirmed() -> None:
    [planned] = plan([ONLINE_NODE, OFFLINE_NODE], [a_record()])
    [later] = plan([OFFLINE_NODE, ONLINE_NODE], [a_record()])
    assert later.deletions == planned.deletions


NODES = st.builds(
    a_node,
    st.integers(1, 40),
    hostname=st.sampled_from([NAME, "grafana", "redmine.example.com", "laptop"]),
    user=st.sampled_from([OUR_USER, ANN]),
    key_user=st.sampled_from([OUR_USER, ANN]),
    online=st.booleans(),
    last_seen=st.sampled_from([None, AT_THE_LIMIT, LONG_AGO]),
    registered_by=st.sampled_from(list(RegisterMethod)),
)


LISTS_OF_NODES = st.lists(NODES, max_size=8, unique_by=lambda node: node.id)
RECORDS_OF_TWO_WORKLOADS = [a_record("a"), a_record("b", name="redmine.example.com")]


@given(LISTS_OF_NODES)
def test_only_our_nodes_that_are_long_offline_are_removed(nodes: list[Node]) -> None:
    by_id = {node.id: node for node in nodes}
    for _, ids in removed(nodes, RECORDS_OF_TWO_WORKLOADS):
        for node_id in ids:
            node = by_id[node_id]
            assert not node.online
            assert node.last_seen == LONG_AGO
            assert node.registered_by is RegisterMethod.AUTH_KEY
            assert node.user == OUR_USER


@given(LISTS_OF_NODES, st.randoms())
def test_order_of_nodes_and_records_does_not_matter(nodes: list[Node], random: Random) -> None:
    shuffled = removed(random.sample(nodes, len(nodes)), random.sample(RECORDS_OF_TWO_WORKLOADS, 2))
    assert [(name, sorted(ids)) for name, ids in shuffled] == [
        (name, sorted(ids)) for name, ids in removed(nodes, RECORDS_OF_TWO_WORKLOADS)
    ]


# Records of the workload at names in DNS_ALIASES and DNS_SHARED_NAMES.
FURTHER_RECORDS = [
    a_record("b", name=ALIAS, type_="CNAME", content=NAME, comment=COMMENT_AT_FURTHER_NAMES),
    a_record("c", name=SHARED_NAME, comment=COMMENT_AT_FURTHER_NAMES),
]


@pytest.mark.parametrize(
    "main_records", [[a_record()], []], ids=["record-at-the-main-name", "no-record-at-the-main-name"]
)
def test_records_under_further_names_are_removed_with_their_workload(main_records: list[Record]) -> None:
    records = [*main_records, *FURTHER_RECORDS]
    [workload] = plan([ONLINE_NODE], records)
    assert workload.name == NAME
    assert {record.id for record in workload.records} == {record.id for record in records}
    assert removed([a_node()], records) == []


def test_records_at_a_shared_name_belong_to_several_workloads() -> None:
    wiki = a_record("w", name=SHARED_NAME, content="100.64.0.2", comment=f"{OUR_COMMENT} wiki.example.com")
    assert removed([a_node()], [a_record(), *FURTHER_RECORDS, wiki]) == [("wiki.example.com", [])]


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(" by hand", id="another text"),
        pytest.param(" wiki", id="name without a dot"),
        pytest.param(f"  {NAME}", id="two spaces"),
        pytest.param(f" {NAME.upper()}", id="upper case"),
        pytest.param(f"2 {NAME}", id="longer DNS_OWNER"),
    ],
)
def test_comment_that_differs_from_the_comment_at_further_names_is_ignored(end: str) -> None:
    assert main_name_of(a_record(comment=f"{OUR_COMMENT}{end}"), OUR_COMMENT) is None
