"""Decide which services are gone for good: pure, starting from the records that carry our mark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lifecycle.domain.model import Node, Record, User
from lifecycle.domain.ownership import NodeIdentity


@dataclass(frozen=True, slots=True)
class PruneWorkload:
    """Remove what one service left: its nodes, then its records.

    Attributes:
        name: the full name of its records.
        records: all of this name that carry our mark; at least one. They go last: a node is never
            removed without one, and what was interrupted is found again by it.
        nodes: of this name and ours; may be none.
    """

    name: str
    records: tuple[Record, ...]
    nodes: tuple[Node, ...]
    reason: str

    @property
    def ids(self) -> tuple[frozenset[str], frozenset[str]]:
        """What it is about: ids of records and of nodes."""
        return frozenset(record.id for record in self.records), frozenset(node.id for node in self.nodes)


def plan_gone(
    records: Iterable[Record],
    nodes: Sequence[Node],
    *,
    domain: str,
    user: User,
    tags: frozenset[str],
    now: datetime,
    after: timedelta,
) -> list[PruneWorkload]:
    """Find the services whose node has been offline for long, or is gone.

    Args:
        records: those of the zone that carry our mark, in any order.
        nodes: every node of the tailnet, in any order.
        domain: what is added to a hostname without a dot.
        user: the Headscale user that owns our nodes.
        tags: what our keys give to nodes.
        now: aware UTC.
        after: offline for longer than this is for good.

    Returns:
        In order of names; nothing at all while nobody is online: after a restart of Headscale everybody is
        offline until they come back.
    """
    if not any(node.online for node in nodes):
        return []
    found = []
    for name, ours in _by_name(records):
        bearers = [node for node in nodes if _may_bear(node, name)]
        # A node of the name that is not ours, or may be back any moment: the service lives.
        if all(_owns(node, user, tags) and _long_offline(node, now=now, after=after) for node in bearers):
            leaving = tuple(node for node in bearers if _bears(node, name, domain))
            reason = f"its node has been offline for more than {after}" if bearers else "its node is gone"
            found.append(PruneWorkload(name, ours, leaving, reason))
    return found


def plan_named(
    records: Iterable[Record], nodes: Sequence[Node], *, name: str, domain: str, user: User, tags: frozenset[str]
) -> list[PruneWorkload]:
    """Find one service, whatever its state; empty when no record of that name carries our mark.

    Args:
        name: its full name, or its hostname without the domain.
    """
    wanted = name.lower() if "." in name else f"{name.lower()}.{domain}"
    return [
        PruneWorkload(
            found,
            ours,
            tuple(node for node in nodes if _bears(node, found, domain) and _owns(node, user, tags)),
            reason="it was named",
        )
        for found, ours in _by_name(records)
        if found == wanted
    ]


def confirmed(before: Iterable[PruneWorkload], after: Iterable[PruneWorkload]) -> list[PruneWorkload]:
    """What two plans, some time apart, agree on."""
    seen = {service.name: service.ids for service in before}
    return [service for service in after if seen.get(service.name) == service.ids]


def _by_name(records: Iterable[Record]) -> list[tuple[str, tuple[Record, ...]]]:
    names: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.name, record.id)):
        names.setdefault(record.name, []).append(record)
    return [(name, tuple(ours)) for name, ours in names.items()]


def _bears(node: Node, name: str, domain: str) -> bool:
    hostname = node.hostname.casefold()
    return name == (hostname if "." in hostname else f"{hostname}.{domain}")


def _may_bear(node: Node, name: str) -> bool:
    """Whether the record may be the node's: to a hostname without a dot, its pod adds a domain we are not told."""
    hostname = node.hostname.casefold()
    return name == hostname or ("." not in hostname and name.startswith(f"{hostname}."))


def _owns(node: Node, user: User, tags: frozenset[str]) -> bool:
    return NodeIdentity(node.hostname, user, tags).owns_node(node)


def _long_offline(node: Node, *, now: datetime, after: timedelta) -> bool:
    return not node.online and node.last_seen is not None and now - node.last_seen > after
