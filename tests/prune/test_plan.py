"""Which services are gone for good, and which only look it."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.domain.model import Node, Record, RegisterMethod
from lifecycle.prune.plan import PruneWorkload, confirmed, plan_gone, plan_named
from tests.builders import ANN, NAME, NOW, SVC, a_node, a_record

AFTER = timedelta(days=7)
LONG_AGO = NOW - timedelta(days=8)
LATELY = NOW - timedelta(days=7)

SOMEBODY_ONLINE = a_node(99, hostname="other.example.com")


def gone(nodes: list[Node], records: list[Record] | None = None) -> list[tuple[str, list[str]]]:
    """What would be pruned: names, and ids of nodes."""
    plan = plan_gone(
        [a_record()] if records is None else records,
        [SOMEBODY_ONLINE, *nodes],
        domain="example.com",
        user=SVC,
        tags=frozenset(),
        now=NOW,
        after=AFTER,
    )
    return [(service.name, [node.id for node in service.nodes]) for service in plan]


@pytest.mark.parametrize(
    ("nodes", "removed"),
    [
        pytest.param([], [(NAME, [])], id="its-node-is-gone"),
        pytest.param([a_node(online=False, last_seen=LONG_AGO)], [(NAME, ["1"])], id="offline-for-long"),
        pytest.param(
            [a_node(hostname="grafana", online=False, last_seen=LONG_AGO)],
            [(NAME, ["1"])],
            id="hostname-without-domain",
        ),
        pytest.param(
            [a_node(1, online=False, last_seen=LONG_AGO), a_node(2, online=False, last_seen=LONG_AGO)],
            [(NAME, ["1", "2"])],
            id="several-offline-for-long",
        ),
        pytest.param([a_node(hostname="x-" + NAME)], [(NAME, [])], id="only-a-longer-name-lives"),
    ],
)
def test_gone_for_good(nodes: list[Node], removed: list[tuple[str, list[str]]]) -> None:
    assert gone(nodes) == removed


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([a_node()], id="online"),
        pytest.param([a_node(hostname="grafana")], id="online-under-the-short-hostname"),
        pytest.param([a_node(hostname=NAME.upper())], id="online-in-capitals"),
        pytest.param([a_node(online=False, last_seen=LATELY)], id="offline-for-exactly-the-limit"),
        pytest.param([a_node(online=False, last_seen=None)], id="offline-since-nobody-knows-when"),
        pytest.param(
            [a_node(1, online=False, last_seen=LONG_AGO), a_node(2)], id="an-old-one-beside-the-one-that-lives"
        ),
        pytest.param([a_node(user=ANN, key_user=ANN)], id="the-service-of-another-user-of-the-same-owner"),
        pytest.param(
            [a_node(user=ANN, key_user=ANN, online=False, last_seen=LONG_AGO)], id="offline-and-another-user's"
        ),
        pytest.param(
            [a_node(registered_by=RegisterMethod.CLI, online=False, last_seen=LONG_AGO)], id="registered-by-hand"
        ),
    ],
)
def test_it_may_live(nodes: list[Node]) -> None:
    assert gone(nodes) == []


IN_ANOTHER_DOMAIN = [a_record(name="grafana.b.example.com")]


def test_a_short_hostname_may_have_a_domain_that_prune_is_not_told() -> None:
    assert gone([a_node(hostname="grafana")], records=IN_ANOTHER_DOMAIN) == []


def test_a_node_whose_record_is_not_surely_this_one_stays() -> None:
    """It may be grafana.example.com's, of which nothing is known here."""
    offline = a_node(hostname="grafana", online=False, last_seen=LONG_AGO)
    assert gone([offline], records=IN_ANOTHER_DOMAIN) == [("grafana.b.example.com", [])]


@pytest.mark.parametrize("others", [[], [a_node(98, hostname="other.example.com", online=False)]])
def test_while_nobody_is_online_nothing_is_believed(others: list[Node]) -> None:
    """After a restart of Headscale everybody is offline, with whatever moment they were last seen before."""
    stale = a_node(online=False, last_seen=LONG_AGO)
    plan = plan_gone(
        [a_record()], [stale, *others], domain="example.com", user=SVC, tags=frozenset(), now=NOW, after=AFTER
    )
    assert plan == []


def test_a_node_without_a_record_is_never_removed() -> None:
    assert gone([a_node(online=False, last_seen=LONG_AGO)], records=[]) == []


@pytest.mark.parametrize("name", [NAME, NAME.upper(), "grafana"])
def test_a_named_service_goes_at_once(name: str) -> None:
    other = a_record("b", name="redmine.example.com")
    plan = plan_named(
        [other, a_record()],
        [a_node(1), a_node(2, user=ANN, key_user=ANN), a_node(3, hostname="redmine.example.com")],
        name=name,
        domain="example.com",
        user=SVC,
        tags=frozenset(),
    )
    assert [(service.name, [node.id for node in service.nodes]) for service in plan] == [(NAME, ["1"])]


def test_only_what_two_looks_agree_on_is_confirmed() -> None:
    stays = [a_record("a"), a_record("b", name="redmine.example.com"), a_record("c", name="wiki.example.com")]
    stale = a_node(online=False, last_seen=LONG_AGO)

    def look(records: list[Record], nodes: list[Node]) -> list[PruneWorkload]:
        return plan_gone(
            records,
            [SOMEBODY_ONLINE, *nodes],
            domain="example.com",
            user=SVC,
            tags=frozenset(),
            now=NOW,
            after=AFTER,
        )

    before = look(stays, [stale])
    # Meanwhile grafana's node went, redmine's record was made anew, and wiki's stayed as it was.
    after = look([a_record("a"), a_record("d", name="redmine.example.com"), stays[2]], [])
    assert [service.name for service in confirmed(before, after)] == ["wiki.example.com"]


NODES = st.builds(
    a_node,
    st.integers(1, 40),
    hostname=st.sampled_from([NAME, "grafana", "redmine.example.com", "x"]),
    user=st.sampled_from([SVC, ANN]),
    key_user=st.sampled_from([SVC, ANN]),
    online=st.booleans(),
    last_seen=st.sampled_from([None, LATELY, LONG_AGO]),
    registered_by=st.sampled_from(list(RegisterMethod)),
)


@given(st.lists(NODES, max_size=8, unique_by=lambda node: node.id), st.randoms())
def test_never_a_node_that_lives_or_is_not_ours(nodes: list[Node], source: random.Random) -> None:
    records = [a_record("a"), a_record("b", name="redmine.example.com")]
    planned = gone(nodes, records)
    by_id = {node.id: node for node in nodes}
    for _, ids in planned:
        for node_id in ids:
            node = by_id[node_id]
            assert not node.online
            assert node.last_seen == LONG_AGO
            assert node.registered_by is RegisterMethod.AUTH_KEY
            assert node.user == SVC
    source.shuffle(nodes)
    source.shuffle(records)
    assert [(name, sorted(ids)) for name, ids in gone(nodes, records)] == [(name, sorted(ids)) for name, ids in planned]
