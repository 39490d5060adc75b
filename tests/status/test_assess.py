"""Test which state `status` reports for each workload, and whether it gives advice for manual action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lifecycle.domain.model import Node, Record, RegisterMethod
from lifecycle.status.assess import Observation, StatusConfig, assess_workloads
from tests.builders import (
    ANN,
    COMMENT_OF_OTHER_OWNER,
    EXPIRED,
    NAME,
    NOW,
    OUR_COMMENT,
    OUR_USER,
    SHARED_NAME,
    VPN_PREFIXES,
    a_node,
    a_record,
)

CONFIG = StatusConfig(domain="example.com", mark=OUR_COMMENT, tags=frozenset(), vpn_prefixes=VPN_PREFIXES, ipv6=False)
WITH_IPV6 = replace(CONFIG, ipv6=True)

AAAA = a_record("b", type_="AAAA", content="fd7a:115c:a1e0::1")
OLD_AAAA = replace(AAAA, content="fd7a:115c:a1e0::9")
CNAME = a_record("c", type_="CNAME", content="example.net", comment="")
UNRELATED_NODE = a_node(99, hostname="x.example.org")


def observed(nodes: Sequence[Node], records: Sequence[Record]) -> Observation:
    """Return what `status` has read: two users, a node that belongs to no workload, and these nodes and records."""
    return Observation((OUR_USER, ANN), OUR_USER, (UNRELATED_NODE, *nodes), records, "example.com")


def states(
    nodes: Sequence[Node], records: Sequence[Record], config: StatusConfig = CONFIG
) -> list[tuple[str, str | None, bool]]:
    """Return the state of each row of the report, the id of its node, and whether it has advice."""
    rows, problems = assess_workloads(observed(nodes, records), config=config, now=NOW)
    # The order of nodes and records must not matter.
    assert rows == assess_workloads(observed(nodes[::-1], records[::-1]), config=config, now=NOW)[0]
    assert rows or problems
    return [(row.state, row.node.id if row.node else None, bool(row.advice)) for row in rows]


@pytest.mark.parametrize(
    ("nodes", "records", "expected"),
    [
        pytest.param([a_node()], [a_record()], [("in sync", "1", False)], id="in sync"),
        pytest.param([a_node()], [a_record(), AAAA], [("in sync", "1", False)], id="with AAAA"),
        pytest.param([a_node(hostname="grafana")], [a_record()], [("in sync", "1", False)], id="short hostname"),
        pytest.param([a_node(hostname=NAME.upper())], [a_record()], [("in sync", "1", False)], id="upper case"),
        pytest.param([a_node()], [a_record(content="100.64.0.9")], [("drifted", "1", True)], id="another address"),
        pytest.param([a_node()], [a_record(proxied=True)], [("drifted", "1", True)], id="proxied"),
        pytest.param([a_node()], [a_record(), a_record("d")], [("drifted", "1", True)], id="duplicate"),
        pytest.param([a_node()], [a_record(comment="")], [("drifted", "1", True)], id="no comment"),
        pytest.param([a_node()], [a_record(), OLD_AAAA], [("drifted", "1", True)], id="old AAAA"),
        pytest.param([a_node(online=False)], [a_record()], [("offline", "1", True)], id="offline"),
        pytest.param([a_node(expires_at=EXPIRED)], [a_record()], [("node expired", "1", True)], id="expired"),
        pytest.param(
            [a_node(expires_at=NOW + timedelta(days=13))],
            [a_record()],
            [("node expiring", "1", True)],
            id="expires in less than 14 days",
        ),
        pytest.param(
            [a_node(expires_at=NOW + timedelta(days=15))],
            [a_record()],
            [("in sync", "1", False)],
            id="expires in more than 14 days",
        ),
        pytest.param([], [a_record()], [("orphaned", None, True)], id="no node"),
        pytest.param(
            [a_node(user=ANN, key_user=ANN)], [a_record()], [("foreign node", None, True)], id="node of another user"
        ),
        pytest.param(
            [a_node(registered_by=RegisterMethod.CLI)],
            [a_record()],
            [("foreign node", None, True)],
            id="node registered by CLI",
        ),
        pytest.param(
            [a_node(user=ANN, key_user=ANN), a_node(2, registered_by=RegisterMethod.CLI)],
            [a_record()],
            [("foreign node", None, True)],
            id="two foreign nodes",
        ),
        pytest.param([a_node()], [], [("no record", "1", True)], id="no record"),
        # The workload of an offline node may have been removed, and a node without a dot in its hostname may be another
        # machine of the VPN, so there is no advice.
        pytest.param([a_node(online=False)], [], [("no record", "1", False)], id="offline without a record"),
        pytest.param([a_node(hostname="laptop")], [], [("no record", "1", False)], id="hostname without a dot"),
        pytest.param([a_node()], [a_record(comment="terraform")], [("foreign record", "1", True)], id="foreign record"),
        pytest.param([a_node()], [a_record(), CNAME], [("foreign record", "1", True)], id="beside a CNAME"),
        pytest.param(
            [a_node()],
            [a_record(comment="terraform"), CNAME],
            [("foreign record", "1", True)],
            id="two foreign records",
        ),
        pytest.param([a_node()], [replace(CNAME, type="TXT")], [("no record", "1", True)], id="TXT"),
        pytest.param(
            [a_node(), a_node(2)],
            [a_record(content="100.64.0.2")],
            [("in sync", "2", False), ("superseded", "1", True)],
            id="two pods are online",
        ),
        pytest.param(
            [a_node(online=False), a_node(2)],
            [a_record(content="100.64.0.2")],
            [("in sync", "2", False), ("superseded", "1", False)],
            id="older node is offline",
        ),
        pytest.param(
            [a_node(), a_node(2, online=False)], [a_record()], [("in sync", "1", False)], id="later node is offline"
        ),
        pytest.param(
            [a_node(expires_at=EXPIRED), a_node(2)],
            [a_record(content="100.64.0.2")],
            [("in sync", "2", False)],
            id="older node has expired",
        ),
        pytest.param(
            [a_node(hostname="grafana")],
            [a_record(name="grafana.b.example.com")],
            [("in sync", "1", False), ("no record", "1", False)],
            id="pod with another DOMAIN_NAME",
        ),
        pytest.param(
            [a_node(hostname="x-" + NAME)],
            [a_record()],
            [("orphaned", None, True), ("no record", "1", True)],
            id="longer hostname",
        ),
        pytest.param([a_node()], [a_record(comment=COMMENT_OF_OTHER_OWNER)], [], id="workload of another owner"),
        pytest.param([a_node(user=ANN, key_user=ANN)], [], [], id="foreign node without a record"),
        pytest.param([a_node(hostname="grafana.example.org")], [], [], id="node of another domain"),
        pytest.param([], [CNAME, a_record(comment="")], [], id="records without our comment"),
    ],
)
def test_state_of_a_workload(
    nodes: list[Node], records: list[Record], expected: list[tuple[str, str | None, bool]]
) -> None:
    """A node is superseded if it has not expired and its workload has a later node. An orphaned record has no node."""
    assert states(nodes, records) == expected


@pytest.mark.parametrize(
    ("nodes", "records", "state"),
    [
        pytest.param([a_node()], [a_record(), AAAA], "in sync", id="both records"),
        pytest.param([a_node()], [a_record()], "drifted", id="without AAAA"),
        pytest.param([a_node(addresses=["100.64.0.1"])], [a_record()], "in sync", id="node without IPv6"),
        pytest.param([a_node(addresses=["fd7a:115c:a1e0::1"])], [AAAA], "in sync", id="node without IPv4"),
        pytest.param([a_node()], [a_record(), replace(AAAA, comment="x")], "foreign record", id="foreign AAAA"),
    ],
)
def test_state_with_ipv6(nodes: list[Node], records: list[Record], state: str) -> None:
    assert [actual for actual, _, _ in states(nodes, records, WITH_IPV6)] == [state]


@pytest.mark.parametrize(
    "observation",
    [
        pytest.param(Observation(records=(a_record(),), problems=("x",)), id="Headscale cannot be read"),
        pytest.param(Observation((OUR_USER,), OUR_USER, (a_node(),), problems=("x",)), id="Cloudflare cannot be read"),
        pytest.param(
            Observation((OUR_USER,), OUR_USER, (), (a_record(),)),
            id="Headscale lists no nodes, as for a moment after its start",
        ),
    ],
)
def test_row_has_advice_if_its_state_is_unknown(observation: Observation) -> None:
    [row], problems = assess_workloads(observation, config=CONFIG, now=NOW)
    assert (row.name, row.state, bool(row.advice)) == (NAME, "unknown", True)
    assert problems == list(observation.problems)


@pytest.mark.parametrize("problems", [(), ("Headscale did not respond",)])
def test_report_without_rows_has_one_problem(problems: tuple[str, ...]) -> None:
    rows, reported_problems = assess_workloads(replace(observed([], []), problems=problems), config=CONFIG, now=NOW)
    assert (rows, len(reported_problems)) == ([], 1)


@pytest.mark.parametrize(("days", "count"), [(13, 1), (15, 0)])
def test_api_key_that_expires_within_14_days_is_a_problem(days: int, count: int) -> None:
    observation = replace(observed([a_node()], [a_record()]), api_key_expires_at=NOW + timedelta(days=days))
    assert len(assess_workloads(observation, config=CONFIG, now=NOW)[1]) == count


def further_records(main_name: str = NAME) -> list[Record]:
    """Return the records of a workload at two further names: an alias, and a name that several workloads share."""
    comment = f"{OUR_COMMENT} {main_name}"
    return [
        a_record(f"{main_name[0]}1", name=f"x{main_name}", type_="CNAME", content=main_name, comment=comment),
        a_record(f"{main_name[0]}2", name=SHARED_NAME, comment=comment),
    ]


def states_by_name(nodes: Sequence[Node], records: Sequence[Record]) -> list[tuple[str, str]]:
    rows, _ = assess_workloads(observed(nodes, records), config=CONFIG, now=NOW)
    assert rows == assess_workloads(observed(nodes[::-1], records[::-1]), config=CONFIG, now=NOW)[0]
    return [(row.name, row.state) for row in rows]


def test_each_further_name_has_a_row() -> None:
    # By default, records have the address of node 1, so both nodes have it.
    wiki = replace(a_node(2, hostname="wiki.example.com"), addresses=a_node(1).addresses)
    records = [a_record(), *further_records(), *further_records("wiki.example.com")]
    assert states_by_name([a_node(), wiki], records) == [
        (SHARED_NAME, "in sync"),
        (SHARED_NAME, "in sync"),
        (NAME, "in sync"),
        ("wiki.example.com", "no record"),
        (f"x{NAME}", "in sync"),
        ("xwiki.example.com", "in sync"),
    ]


@pytest.mark.parametrize(
    ("change", "state"),
    [
        pytest.param({"content": "elsewhere.example.org"}, "drifted", id="another target"),
        pytest.param({"proxied": True}, "drifted", id="proxied"),
        pytest.param({"content": f"{NAME.upper()}."}, "in sync", id="another spelling"),
    ],
)
def test_state_of_an_alias(change: dict[str, Any], state: str) -> None:
    alias = replace(further_records()[0], **change)
    assert states_by_name([a_node()], [a_record(), alias]) == [(NAME, "in sync"), (alias.name, state)]


def test_address_that_another_workload_has_published_at_a_shared_name_is_not_missing() -> None:
    """Cloudflare refuses a second record with the same name and content, so dns-watch does not create it."""
    v4, v6 = replace(further_records()[1], comment=f"{OUR_COMMENT} wiki.example.com"), further_records()[1]
    v6 = replace(v6, id="e", type="AAAA", content=AAAA.content)
    records = [a_record(), AAAA, v4, v6]
    assert "drifted" not in {state for state, *_ in states([a_node()], records, WITH_IPV6)}
    assert "drifted" in {state for state, *_ in states([a_node()], [a_record(), AAAA, v6], WITH_IPV6)}


def test_foreign_record_at_a_shared_name_is_reported() -> None:
    shared = further_records()[1]
    records = [a_record(), shared, a_record("f", name=SHARED_NAME, content="198.51.100.7", comment="")]
    assert states_by_name([a_node()], records) == [(SHARED_NAME, "foreign record"), (NAME, "in sync")]


def test_advice_about_a_further_name_has_the_main_name() -> None:
    rows, _ = assess_workloads(observed([], further_records()), config=CONFIG, now=NOW)
    assert {row.state for row in rows} == {"orphaned"}
    # The option --name takes only main names.
    assert all(row.advice.count(NAME) == 2 and f"`lifecycle prune --name {NAME}`" in row.advice for row in rows)


@pytest.mark.parametrize(
    ("node", "records"),
    [
        pytest.param(a_node(online=False), [a_record(comment="")], id="offline, with a record without a comment"),
        pytest.param(a_node(expires_at=EXPIRED), [], id="expired, without a record"),
    ],
)
def test_advice_names_prune_only_if_it_finds_the_workload(node: Node, records: list[Record]) -> None:
    def advice(records: Sequence[Record]) -> str:
        (row,) = assess_workloads(observed([node], records), config=CONFIG, now=NOW)[0]
        return row.advice

    assert "lifecycle prune" in advice([a_record()])
    assert advice(records)
    assert "lifecycle prune" not in advice(records)


def test_alias_of_another_workload_is_a_foreign_record_at_a_main_name() -> None:
    alias = a_record(type_="CNAME", content="wiki.example.com", comment=f"{OUR_COMMENT} wiki.example.com")
    assert (NAME, "foreign record") in states_by_name([a_node()], [alias])
